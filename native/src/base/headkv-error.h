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

// of this thread's last call of the C API that failed, or of its last llama_decode() that our cache refused
inline thread_local std::string headkv_error_text;

// remember an error's text, or at least what went wrong when there is no memory left for it
inline void headkv_set_error(const char * text) noexcept {
    try {
        headkv_error_text = text;
    } catch (const std::bad_alloc &) {
        headkv_error_text.assign("out of memory"); // fits into an empty string
    }
}
