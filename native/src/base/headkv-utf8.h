#pragma once

#include <cstdint>
#include <string>

// well-formed UTF-8: no overlong forms, no surrogates, nothing beyond U+10FFFF
inline bool headkv_is_utf8(const std::string & text) {
    for (size_t i = 0; i < text.size();) {
        const auto byte = [&](size_t j) { return i + j < text.size() ? (uint8_t) text[i + j] : 0; };

        const uint8_t c = byte(0);
        if (c < 0x80) {
            ++i;
            continue;
        }
        const size_t n = c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
        if (n == 0) {
            return false;
        }
        for (size_t j = 1; j < n; ++j) {
            if ((byte(j) & 0xc0) != 0x80) {
                return false;
            }
        }
        if ((c == 0xe0 && byte(1) < 0xa0) || (c == 0xed && byte(1) > 0x9f) || (c == 0xf0 && byte(1) < 0x90) ||
            (c == 0xf4 && byte(1) > 0x8f)) {
            return false;
        }
        i += n;
    }
    return true;
}
