# What a CUDA build needs besides -DGGML_CUDA=ON: an architecture list, cuBLAS, and a runtime path to it.

# no driver at link time: a machine without a GPU can build, and the library loads where there is no driver
set(GGML_CUDA_NO_VMM ON)
set(GGML_CUDA_NCCL OFF)

# the GPUs of this machine, where there are any; else all that llama.cpp has kernels tuned for, PTX for what is newer
if(NOT CMAKE_CUDA_ARCHITECTURES)
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
        OUTPUT_VARIABLE caps OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE rc ERROR_QUIET)
    if(rc EQUAL 0 AND caps MATCHES "^[0-9]+\\.[0-9]+")
        string(REPLACE "\n" ";" caps "${caps}")
        list(TRANSFORM caps REPLACE "^([0-9]+)\\.([0-9]+).*$" "\\1\\2-real")
        list(REMOVE_DUPLICATES caps)
        set(CMAKE_CUDA_ARCHITECTURES ${caps})
    else()
        set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90)
    endif()
endif()
message(STATUS "headkv: CUDA architectures: ${CMAKE_CUDA_ARCHITECTURES}")

find_package(CUDAToolkit)
if(NOT CUDAToolkit_FOUND)
    message(FATAL_ERROR "headkv: GGML_CUDA is on, but no CUDA toolkit was found: put its bin folder with nvcc into PATH, "
                        "or build without CUDA=1")
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

    # the build tree and the package in the environment that it was built for find the libraries where they
    # were found now; a package that was carried elsewhere finds a cuBLAS wheel beside itself
    get_filename_component(cublas_dir ${CUDA_cublas_LIBRARY} DIRECTORY)
    set_property(TARGET ggml-cuda PROPERTY INSTALL_RPATH
        "$ORIGIN" "$ORIGIN/../../../../nvidia/cu${CUDAToolkit_VERSION_MAJOR}/lib" ${cublas_dir} ${CUDAToolkit_LIBRARY_DIR})
endfunction()
