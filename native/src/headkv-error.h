#pragma once

#include "headkv.h"

#include <new>
#include <stdexcept>
#include <string>

// an error that the C API reports as `code`, with its text as headkv_last_error()
class headkv_error : public std::runtime_error {
public:
    headkv_error(int32_t code, const std::string & text) : std::runtime_error(text), code(code) {}

    const int32_t code;
};

// remember an error's text, or at least what went wrong when there is no memory left for it
inline void headkv_set_error(std::string & dst, const char * text) noexcept {
    try {
        dst = text;
    } catch (const std::bad_alloc &) {
        dst.assign("out of memory"); // fits into an empty string
    }
}
