#pragma once

#include "headkv.h"

#include <mutex>
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

// the last error on a context, which several threads may set and ask for
class headkv_error_text {
public:
    void set(const char * next) noexcept {
        const std::lock_guard<std::mutex> lock(mutex);
        headkv_set_error(text, next);
    }

    std::string get() const {
        const std::lock_guard<std::mutex> lock(mutex);
        return text;
    }

private:
    mutable std::mutex mutex;
    std::string text;
};

inline void headkv_set_error(headkv_error_text & dst, const char * text) noexcept {
    dst.set(text);
}
