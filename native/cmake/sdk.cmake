# What C and C++ programs are built with: headers, libraries, and where they are, for CMake and pkg-config.
#
# `cmake --install BUILD --prefix PREFIX` makes include/headkv, lib/headkv, lib/cmake/headkv, lib/pkgconfig and
# share/headkv. The wheel has the same beside its own libraries, in headkv_local/_sdk, without a second copy of these.

include(CMakePackageConfigHelpers)

file(STRINGS ${CMAKE_CURRENT_SOURCE_DIR}/pyproject.toml sdk_version REGEX "^version = ")
string(REGEX REPLACE "^version = \"(.*)\"$" "\\1" sdk_version "${sdk_version}")

set(sdk_headers
    ${CMAKE_CURRENT_SOURCE_DIR}/native/include/headkv.h
    ${CMAKE_CURRENT_SOURCE_DIR}/native/include/headkv-plan.h
    ${CMAKE_CURRENT_SOURCE_DIR}/native/include/headkv-session.h
    ${HEADKV_LLAMA_CPP_DIR}/include/llama.h
    ${HEADKV_LLAMA_CPP_DIR}/include/llama-cpp.h)
foreach(header ggml ggml-alloc ggml-backend ggml-cpp ggml-cpu ggml-opt gguf ${backends})
    set(header ${HEADKV_LLAMA_CPP_DIR}/ggml/include/${header}.h)
    if(EXISTS ${header} AND NOT header IN_LIST sdk_headers) # a variant of ggml-cpu has none of its own
        list(APPEND sdk_headers ${header})
    endif()
endforeach()

# headkv_install_sdk(COMPONENT PREFIX LIB): LIB: the libraries' folder, seen from PREFIX
function(headkv_install_sdk component prefix lib)
    set(made ${CMAKE_BINARY_DIR}/sdk/${component})

    set(sdk_include ../../../include/headkv)
    set(sdk_lib ../../../${lib})
    configure_file(native/cmake/headkv-config.cmake.in ${made}/headkv-config.cmake @ONLY)
    write_basic_package_version_file(${made}/headkv-config-version.cmake
        VERSION ${sdk_version} COMPATIBILITY SameMinorVersion)

    set(sdk_include ../../include/headkv)
    set(sdk_lib ../../${lib})
    configure_file(native/cmake/headkv.pc.in ${made}/headkv.pc @ONLY)

    install(FILES ${sdk_headers} DESTINATION ${prefix}include/headkv COMPONENT ${component} ${ARGN})
    install(FILES ${made}/headkv-config.cmake ${made}/headkv-config-version.cmake
        DESTINATION ${prefix}lib/cmake/headkv COMPONENT ${component} ${ARGN})
    install(FILES ${made}/headkv.pc DESTINATION ${prefix}lib/pkgconfig COMPONENT ${component} ${ARGN})
endfunction()

# what a build for a package was configured with: a folder of pip's that is gone
install(CODE [[
    if(CMAKE_INSTALL_PREFIX MATCHES "/wheel/platlib/?$")
        message(FATAL_ERROR "headkv: name where to install: cmake --install BUILD --prefix PREFIX")
    endif()]] COMPONENT sdk)
headkv_install_sdk(sdk "" lib/headkv)
foreach(library ${libraries})
    install(TARGETS ${library} LIBRARY DESTINATION lib/headkv COMPONENT sdk RUNTIME DESTINATION lib/headkv COMPONENT sdk)
endforeach()
install(FILES ${HEADKV_LLAMA_CPP_DIR}/LICENSE DESTINATION lib/headkv COMPONENT sdk RENAME LICENSE-llama.cpp)
install(FILES LICENSE DESTINATION share/headkv COMPONENT sdk)
install(DIRECTORY scores DESTINATION share/headkv COMPONENT sdk FILES_MATCHING PATTERN "*.gguf")

headkv_install_sdk(wheel headkv_local/_sdk/ ../_vendor/llama_cpp/lib EXCLUDE_FROM_ALL)
