# Applies all patches to a llama.cpp tree, in order; those that are applied already are left alone.
# As a script: cmake -DTREE=... -DPATCHES="a.patch;b.patch" -P apply-patches.cmake

cmake_minimum_required(VERSION 3.21)

function(headkv_apply_patches tree)
    find_program(GIT_EXECUTABLE git)
    if(NOT GIT_EXECUTABLE)
        message(FATAL_ERROR "headkv: git is needed to apply the patches to llama.cpp")
    endif()

    # the sdist ships a .git file that points nowhere, and the tree may lie inside another repository:
    # git must not look for one above it
    cmake_path(GET tree PARENT_PATH ceiling)
    set(git ${CMAKE_COMMAND} -E env GIT_CEILING_DIRECTORIES=${ceiling} GIT_DIR=${tree}/.git-none
            ${GIT_EXECUTABLE} apply --whitespace=nowarn)

    foreach(patch ${ARGN})
        cmake_path(GET patch FILENAME name)

        execute_process(COMMAND ${git} --reverse --check ${patch}
            WORKING_DIRECTORY ${tree} RESULT_VARIABLE rc OUTPUT_QUIET ERROR_QUIET)
        if(rc EQUAL 0)
            continue()
        endif()

        execute_process(COMMAND ${git} ${patch}
            WORKING_DIRECTORY ${tree} RESULT_VARIABLE rc ERROR_VARIABLE err)
        if(NOT rc EQUAL 0)
            message(FATAL_ERROR
                "headkv: ${name} does not apply to ${tree}: the tree is not the pinned llama.cpp, or was edited. "
                "Remove the build folder to start from a fresh copy. git said:\n${err}")
        endif()
        message(STATUS "headkv: applied ${name}")
    endforeach()
endfunction()

if(CMAKE_SCRIPT_MODE_FILE STREQUAL CMAKE_CURRENT_LIST_FILE)
    headkv_apply_patches(${TREE} ${PATCHES})
endif()
