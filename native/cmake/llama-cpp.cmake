# Sets HEADKV_LLAMA_CPP_DIR to a patched copy of the pinned llama.cpp in the build folder, and HEADKV_BINDING_DIR to
# one of llama-cpp-python's Python files (llama_cpp/), whose sdist the llama.cpp comes from.

include(${CMAKE_CURRENT_LIST_DIR}/read-pin.cmake)
include(${CMAKE_CURRENT_LIST_DIR}/apply-patches.cmake)

set(HEADKV_LLAMA_CPP_SOURCE_DIR "" CACHE PATH "llama.cpp tree to build instead of the pinned sdist's, in the folder vendor/ of an unpacked llama-cpp-python; it is copied, never changed")

set(pin ${CMAKE_CURRENT_SOURCE_DIR}/native/llama-cpp.pin)
headkv_read_pin(${pin})

file(GLOB patches CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/native/patches/*.patch)
list(SORT patches)

set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${pin} ${patches})

set(HEADKV_LLAMA_CPP_DIR ${CMAKE_BINARY_DIR}/llama.cpp)
set(HEADKV_BINDING_DIR   ${CMAKE_BINARY_DIR}/llama-cpp-python)

# what the copy was made from; when it changes the copy is made anew
set(key "with llama_cpp ${HEADKV_LLAMA_CPP_SOURCE_DIR}")
foreach(file ${pin} ${patches})
    file(SHA256 ${file} hash)
    string(APPEND key " ${hash}")
endforeach()

set(stamp ${CMAKE_BINARY_DIR}/llama.cpp.stamp)
set(made "")
if(EXISTS ${stamp})
    file(READ ${stamp} made)
endif()

if(NOT made STREQUAL key)
    file(REMOVE ${stamp})
    file(REMOVE_RECURSE ${HEADKV_LLAMA_CPP_DIR} ${HEADKV_BINDING_DIR})

    # all that the libraries are built from
    set(parts CMakeLists.txt LICENSE cmake ggml include src vendor)
    set(binding_parts llama_cpp LICENSE.md)

    if(HEADKV_LLAMA_CPP_SOURCE_DIR)
        foreach(part ${parts})
            if(NOT EXISTS ${HEADKV_LLAMA_CPP_SOURCE_DIR}/${part})
                message(FATAL_ERROR "headkv: HEADKV_LLAMA_CPP_SOURCE_DIR=${HEADKV_LLAMA_CPP_SOURCE_DIR} is no llama.cpp tree: it has no ${part}")
            endif()
            file(COPY ${HEADKV_LLAMA_CPP_SOURCE_DIR}/${part} DESTINATION ${HEADKV_LLAMA_CPP_DIR})
        endforeach()
        foreach(part ${binding_parts})
            set(from ${HEADKV_LLAMA_CPP_SOURCE_DIR}/../../${part})
            if(NOT EXISTS ${from})
                message(FATAL_ERROR "headkv: HEADKV_LLAMA_CPP_SOURCE_DIR=${HEADKV_LLAMA_CPP_SOURCE_DIR} does not lie in the folder vendor/ of llama-cpp-python ${LLAMA_CPP_PYTHON_VERSION}: ${from} is missing")
            endif()
            file(COPY ${from} DESTINATION ${HEADKV_BINDING_DIR})
        endforeach()
    else()
        execute_process(
            COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/native/cmake/fetch_sdist.py
            OUTPUT_VARIABLE sdist OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE rc ERROR_VARIABLE err)
        if(NOT rc EQUAL 0)
            message(FATAL_ERROR "${err}")
        endif()

        set(sdist_root llama_cpp_python-${LLAMA_CPP_PYTHON_VERSION})
        set(root ${sdist_root}/vendor/llama.cpp)
        set(unpacked ${CMAKE_BINARY_DIR}/sdist)
        list(TRANSFORM parts PREPEND ${root}/ OUTPUT_VARIABLE patterns)
        list(TRANSFORM binding_parts PREPEND ${sdist_root}/ OUTPUT_VARIABLE binding_patterns)
        file(MAKE_DIRECTORY ${unpacked})
        execute_process(
            COMMAND ${CMAKE_COMMAND} -E tar xzf ${sdist} ${patterns} ${binding_patterns}
            WORKING_DIRECTORY ${unpacked}
            RESULT_VARIABLE rc ERROR_VARIABLE err)
        if(NOT rc EQUAL 0)
            file(REMOVE_RECURSE ${unpacked})
            message(FATAL_ERROR "headkv: could not unpack ${sdist} into ${CMAKE_BINARY_DIR} (disk space?): ${err}")
        endif()
        file(RENAME ${unpacked}/${root} ${HEADKV_LLAMA_CPP_DIR})
        file(MAKE_DIRECTORY ${HEADKV_BINDING_DIR})
        foreach(part ${binding_parts})
            file(RENAME ${unpacked}/${sdist_root}/${part} ${HEADKV_BINDING_DIR}/${part})
        endforeach()
        file(REMOVE_RECURSE ${unpacked})
    endif()
endif()

headkv_apply_patches(${HEADKV_LLAMA_CPP_DIR} ${patches})

file(WRITE ${stamp} "${key}")
