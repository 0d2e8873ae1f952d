# What a CUDA build needs besides -DGGML_CUDA=ON: an architecture list, cuBLAS, and a runtime path to it.

# no driver at link time: a machine without a GPU can build, and the library loads where there is no driver
set(GGML_CUDA_NO_VMM ON)
set(GGML_CUDA_NCCL OFF)

find_package(CUDAToolkit)
if(NOT CUDAToolkit_FOUND)
    message(FATAL_ERROR "headkv: GGML_CUDA is on, but no CUDA toolkit was found: put its bin folder with nvcc into PATH, "
                        "or build without CUDA=1")
endif()

# the GPUs of this machine, where there are any and the build is for it; else all that llama.cpp has kernels tuned for,
# PTX for what is newer
if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(rc 1)
    if(NOT HEADKV_PORTABLE)
        execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
            OUTPUT_VARIABLE caps OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE rc ERROR_QUIET)
    endif()
    if(rc EQUAL 0 AND caps MATCHES "^[0-9]+\\.[0-9]+")
        string(REPLACE "\n" ";" caps "${caps}")
        list(TRANSFORM caps REPLACE "^([0-9]+)\\.([0-9]+).*$" "\\1\\2-real")
        list(REMOVE_DUPLICATES caps)
        set(CMAKE_CUDA_ARCHITECTURES ${caps})
    else()
        set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90)
        if(CUDAToolkit_VERSION VERSION_GREATER_EQUAL 12.8)
            list(APPEND CMAKE_CUDA_ARCHITECTURES 120a-real)
        endif()
    endif()
endif()
message(STATUS "headkv: CUDA architectures: ${CMAKE_CUDA_ARCHITECTURES}")

# the libraries of the extra [cuda]
if(HEADKV_PORTABLE AND NOT CUDAToolkit_VERSION_MAJOR EQUAL 13)
    message(FATAL_ERROR "headkv: a wheel for CUDA is built with CUDA 13, whose libraries pip installs beside it with "
                        "the extra [cuda]; this toolkit is ${CUDAToolkit_VERSION}")
endif()

# A toolkit may come without cuBLAS, and cuBLAS as a Python wheel of its own. FindCUDAToolkit takes the
# library from the cache variable; the headers are added below.
set(HEADKV_CUBLAS_INCLUDE_DIR "")
if(NOT TARGET CUDA::cublas OR HEADKV_CUBLAS_FROM_WHEEL)
    execute_process(
        COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/find_cublas.py
                ${CUDAToolkit_VERSION_MAJOR} ${CUDAToolkit_VERSION_MINOR}
        OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE rc ERROR_VARIABLE err)
    if(NOT rc EQUAL 0)
        message(FATAL_ERROR "${err}")
    endif()
    list(POP_FRONT found HEADKV_CUBLAS_INCLUDE_DIR cublas)
    set(HEADKV_CUBLAS_FROM_WHEEL ON CACHE INTERNAL "cuBLAS is not the toolkit's")
    set(CUDA_cublas_LIBRARY ${cublas} CACHE FILEPATH "" FORCE)
    message(STATUS "headkv: cuBLAS of the wheel nvidia-cublas: ${cublas}")
endif()

# after llama.cpp's targets are made
function(headkv_finish_cuda)
    if(HEADKV_CUBLAS_INCLUDE_DIR)
        target_include_directories(ggml-cuda SYSTEM PRIVATE ${HEADKV_CUBLAS_INCLUDE_DIR})
    endif()

    # the package finds NVIDIA's wheels beside itself; where it is for this machine alone, it and the build tree also
    # find the libraries where they were found now
    set(here)
    if(NOT HEADKV_PORTABLE)
        get_filename_component(cublas_dir ${CUDA_cublas_LIBRARY} DIRECTORY)
        set(here ${cublas_dir} ${CUDAToolkit_LIBRARY_DIR})
    endif()
    set_property(TARGET ggml-cuda PROPERTY INSTALL_RPATH
        "$ORIGIN" "$ORIGIN/../../../../nvidia/cu${CUDAToolkit_VERSION_MAJOR}/lib" ${here})
endfunction()
