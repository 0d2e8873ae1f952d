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

// Remember an error's text, or at least what went wrong when there is no memory left for it: one line without what a
// terminal would obey, for names out of files stand in it.
inline void headkv_set_error(const char * text) noexcept {
    try {
        headkv_error_text = text;
        bool is_c1        = false; // U+0080 to U+009F
        for (size_t i = headkv_error_text.size(); i-- > 0;) {
            const uint8_t c = headkv_error_text[i];
            if (c < 0x20 || c == 0x7f || (c == 0xc2 && is_c1)) {
                headkv_error_text.replace(i, c == 0xc2 ? 2 : 1, "?"); // no longer than before: needs no memory
            }
            is_c1 = c >= 0x80 && c < 0xa0;
        }
    } catch (const std::bad_alloc &) {
        headkv_error_text.assign("out of memory"); // fits into an empty string
    }
}
