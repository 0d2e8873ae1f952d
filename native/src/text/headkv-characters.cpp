#include "text/headkv-characters.h"

#include "unicode.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <string>

// a full stop, and what may close a sentence after it; then those that no blank has to follow
static const char * const stops[]   = { ".", "!", "?", "…", "؟", "۔", "।", "॥", "։", "።", "፧", "\u037e" };
static const char * const closers[] = { "\"", "'", "*", "_", ")", "]", "»", "”", "’" };
static const char * const cjk_stops[]  = { "。", "！", "？" };
static const char * const cjk_closes[] = { "」", "』", "”", "’", "）" };

// of a question, beside the Latin one: full width, Arabic, Armenian, Ethiopic, Greek
static const char * const marks[] = { "？", "؟", "՞", "፧", "\u037e" };

static const char * const feeds[] = { "\n", "\r\n", "\r", "\u0085", "\u2028", "\u2029" };

bool headkv_is_space(uint8_t c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

// whether the text begins with a small letter, of any script
static bool is_small(const uint8_t * p, const uint8_t * end) {
    if (p == end || *p < 0x80) {
        return p < end && *p >= 'a' && *p <= 'z';
    }
    const auto cpts = unicode_cpts_from_utf8(std::string(p, p + std::min<size_t>(4, end - p)));
    return unicode_cpt_flags_from_cpt(cpts[0]).is_lowercase;
}

// a question mark in an address, "a?b=c", or in code: "open(path)?;", "a?.b", "a ??= b", "(?:a)", "<?xml version?>"
static bool is_code(const uint8_t * begin, const uint8_t * p, const uint8_t * end) {
    const auto at = [&](ptrdiff_t i) { return i >= begin - p && i < end - p ? p[i] : (uint8_t) ' '; };

    const bool is_closed = at(-1) == ')' || at(-1) == ']';
    const uint8_t next   = at(1) == '?' ? at(2) : at(1);
    return isalnum(next) || next == '=' || next == '>' || at(-1) == '(' || at(-1) == '<' ||
           (is_closed && (next == ';' || next == ',' || next == ')')) ||
           (next == '.' && (isalnum(at(2)) || at(2) == '(' || at(2) == '['));
}

// a semicolon after a Greek letter
static bool is_greek_mark(const uint8_t * begin, const uint8_t * p) {
    return *p == ';' && p - begin >= 2 && (p[-2] == 0xce || p[-2] == 0xcf);
}

int64_t headkv_n_characters(const uint8_t * p, const uint8_t * end) {
    return std::count_if(p, end, [](uint8_t c) { return (c & 0xc0) != 0x80; });
}

// bytes of the text among these that stands at p, 0 for none
template <size_t N>
static size_t length_of(const char * const (&texts)[N], const uint8_t * p, const uint8_t * end) {
    for (const char * text : texts) {
        const size_t n = strlen(text);
        if (n <= (size_t) (end - p) && memcmp(p, text, n) == 0) {
            return n;
        }
    }
    return 0;
}

size_t headkv_feed_at(const uint8_t * p, const uint8_t * end) {
    return length_of(feeds, p, end);
}

size_t headkv_closer_at(const uint8_t * p, const uint8_t * end) {
    const size_t n = length_of(closers, p, end);
    return n ? n : length_of(cjk_closes, p, end);
}

bool headkv_is_mark(const uint8_t * begin, const uint8_t * p, const uint8_t * end) {
    if (*p == '?') {
        return !is_code(begin, p, end);
    }
    return is_greek_mark(begin, p) || length_of(marks, p, end) > 0;
}

// the end of a sentence that ends with what is at p, nullptr for none
const uint8_t * headkv_sentence_end(const uint8_t * begin, const uint8_t * p, const uint8_t * end) {
    if (*p == '\n') { // not where small letters go on: a line that was wrapped
        return is_small(p + 1, end) ? nullptr : p + 1;
    }
    if (size_t n = is_greek_mark(begin, p) ? 1 : length_of(stops, p, end)) {
        do {
            p += n;
        } while ((n = length_of(closers, p, end)));
        const uint8_t * next = std::find_if_not(p, end, headkv_is_space);
        return next > p && next < end && !is_small(next, end) ? p : nullptr; // "e.g. this" goes on
    }
    if (size_t n = length_of(cjk_stops, p, end)) {
        do {
            p += n;
        } while ((n = length_of(cjk_closes, p, end)));
        return p;
    }
    return nullptr;
}

bool headkv_is_colon(const uint8_t *, const uint8_t * p, const uint8_t * end) {
    return *p == ':' || (end - p >= 3 && memcmp(p, "：", 3) == 0);
}

const uint8_t * headkv_find_feed(const uint8_t * p, const uint8_t * end) {
    while (p < end && !headkv_feed_at(p, end)) {
        p++;
    }
    return p;
}

// how many lines end before the next text
int headkv_n_feeds(const uint8_t * p, const uint8_t * end) {
    int res = 0;
    for (size_t n; p < end; p += n) {
        n    = headkv_feed_at(p, end);
        res += n > 0;
        if (n == 0 && !headkv_is_space(*p)) {
            break;
        }
        n = std::max<size_t>(n, 1);
    }
    return res;
}
