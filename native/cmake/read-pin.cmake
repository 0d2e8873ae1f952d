# headkv_read_pin(FILE): sets the variables that the pin file names

function(headkv_read_pin file)
    file(STRINGS ${file} lines REGEX "^[A-Z]")
    foreach(line ${lines})
        if(NOT line MATCHES "^([A-Z0-9_]+) +([^ ]+)$")
            message(FATAL_ERROR "headkv: ${file} has a line that is not \"NAME value\": ${line}")
        endif()
        set(${CMAKE_MATCH_1} ${CMAKE_MATCH_2} PARENT_SCOPE)
    endforeach()
endfunction()
