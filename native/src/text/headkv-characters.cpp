#include "text/headkv-characters.h"

#include "unicode.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <string>

// a full stop, and what may close a sentence after it; then those that no blank has to follow
static const char * const stops[]   = { ".", "!", "?", "…", "؟", "۔", "।", "॥", "։", "።", "፧", "\u037e" };
static const char * const closers[] = { "\"", "'", "*", "_", ")", "]", "»", "”", "’" };
static const char * const cjk_stops[]  = { "。", "！", "？", "｡", "．", "។", "။", "།", "༎" };
static const char * const cjk_closes[] = { "」", "』", "”", "’", "）" };

// of a question, beside the Latin one: full width, Arabic, Armenian, Ethiopic, Greek; with an exclamation, as a picture
static const char * const marks[] = { "？", "؟", "՞", "፧", "\u037e", "‽", "❓" };

static const char * const feeds[] = { "\n", "\r\n", "\r", "\u0085", "\u2028", "\u2029", "\f", "\v" };

static constexpr int n_wrapped = 32; // characters of a line that may be wrapped: those of records are shorter

bool headkv_is_space(uint8_t c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

// whether the text begins with a small letter, of any script
static bool is_small(const uint8_t * p, const uint8_t * end) {
    if (p == end || *p < 0x80) {
        return p < end && *p >= 'a' && *p <= 'z';
    }
    const uint32_t cpt     = unicode_cpts_from_utf8(std::string(p, p + std::min<size_t>(4, end - p)))[0];
    const bool is_georgian = cpt >= 0x10d0 && cpt <= 0x10ff; // which has no capitals where sentences begin
    return unicode_cpt_flags_from_cpt(cpt).is_lowercase && !is_georgian;
}

// the text of a line around a question mark, as far as it is looked at: a long line must not be read for each mark
static constexpr ptrdiff_t n_row = 8, n_line = 256;

static bool is_any_of(uint8_t c, const char * of) {
    return c && strchr(of, c);
}

// A question mark in an address, "a?b=c", or in code: "open(path)?;", "a?.b", "(?:a)", "name?: string", "x ? y : z",
// "a ?? b", "id = ?". A mark that asks has a word before it, and what goes on behind it goes on as prose.
static bool is_code(const uint8_t * begin, const uint8_t * p, const uint8_t * end) {
    const auto at  = [&](const uint8_t * q) { return q >= begin && q < end ? *q : (uint8_t) '\n'; };
    const auto gap = [&](const uint8_t * q) { return at(q) == ' ' || at(q) == '\t'; };

    const uint8_t * first = p; // of a row of marks
    const uint8_t * next  = p + 1;
    while (p - first < n_row && at(first - 1) == '?') {
        first--;
    }
    while (next - p < n_row && at(next) == '?') {
        next++;
    }
    const uint8_t * before = first - 1;
    while (first - before < n_row && gap(before)) {
        before--;
    }
    if (is_any_of(at(before), "\n\r=,;:([{<|&$\\^~@") || isalnum(at(next)) || is_any_of(at(next), "=>")) {
        return true;
    }
    if (is_any_of(at(first - 1), ")]") && is_any_of(at(next), ";,)")) {
        return true;
    }
    if (at(next) == '-' && at(next + 1) == '>') { // "a?->b"
        return true;
    }
    if (at(next) == '.') {
        return isalnum(at(next + 1)) || is_any_of(at(next + 1), "([");
    }
    const bool is_typed  = at(next) == ':'; // "name?: string", "a ?: b"
    const bool is_apart  = gap(first - 1) && (is_typed || gap(next));
    const uint8_t * rest = next + is_typed;
    while (rest - next < n_row && gap(rest)) {
        rest++;
    }
    bool has_colon = false;
    uint8_t last   = 0; // of the line
    for (const uint8_t * q = rest; q < end && *q != '\n' && *q != '\r'; ++q) {
        if (q - rest >= n_line) {
            last = 0;
            break;
        }
        has_colon |= *q == ':';
        last       = is_any_of(*q, " \t") ? last : *q;
    }
    if (rest > next && (is_any_of(last, ";{") || at(rest) == '=')) {
        return true;
    }
    const bool is_prose = at(rest) >= 0x80 || isupper(at(rest)) || is_any_of(at(rest), "\n\r");
    return !is_prose && rest > next && (is_typed || (is_apart && (has_colon || next - first > 1)));
}

// a semicolon after a Greek letter, or after what closes a quotation that ends in one
static bool is_greek_mark(const uint8_t * begin, const uint8_t * p) {
    if (*p != ';') {
        return false;
    }
    for (const char * closer : { "»", "”" }) { // not of code
        const ptrdiff_t n = strlen(closer);
        if (p - begin > n && memcmp(p - n, closer, n) == 0) {
            p -= n;
            break;
        }
    }
    return p - begin >= 2 && (p[-2] == 0xce || p[-2] == 0xcf);
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

// Whether a line that ends at p goes on at next: it is long, and small letters follow.
static bool is_wrapped(const uint8_t * begin, const uint8_t * p, const uint8_t * next, const uint8_t * end) {
    if (!is_small(next, end)) {
        return false;
    }
    p -= *p == '\n' && p > begin && p[-1] == '\r'; // both end it
    for (int n = 0; p > begin; ++n) {
        if (n == n_wrapped) {
            return true;
        }
        do {
            p--;
        } while (p > begin && (*p & 0xc0) == 0x80);
        if (headkv_feed_at(p, end) > 0) {
            return false;
        }
    }
    return false;
}

// of ASCII, or full width
static bool is_digit(const uint8_t * p, const uint8_t * end) {
    const bool is_wide = end - p >= 3 && p[0] == 0xef && p[1] == 0xbc && p[2] >= 0x90 && p[2] <= 0x99;
    return is_wide || (p < end && isdigit(*p));
}

// the end of a sentence that ends with what is at p, nullptr for none
static const uint8_t * sentence_end(const uint8_t * begin, const uint8_t * p, const uint8_t * end) {
    if (const size_t n = headkv_feed_at(p, end)) {
        return is_wrapped(begin, p, p + n, end) ? nullptr : p + n;
    }
    if (size_t n = is_greek_mark(begin, p) ? 1 : length_of(stops, p, end)) {
        do {
            p += n;
        } while ((n = length_of(closers, p, end)));
        const uint8_t * next = std::find_if_not(p, end, headkv_is_space);
        return next > p && next < end && !is_small(next, end) ? p : nullptr; // "e.g. this" goes on
    }
    if (size_t n = length_of(cjk_stops, p, end)) {
        const bool is_point = memcmp(p, "．", n) == 0;
        do {
            p += n;
        } while ((n = length_of(cjk_closes, p, end)));
        return is_point && is_digit(p, end) ? nullptr : p; // "３．５"
    }
    return nullptr;
}

const uint8_t * headkv_find_sentence_end(const uint8_t * begin, const uint8_t * p, const uint8_t * to,
                                         const uint8_t * end) {
    const uint8_t * res = nullptr;
    for (; p < to && !res; ++p) {
        res = sentence_end(begin, p, end);
    }
    return res;
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

const uint8_t * headkv_find_text(const uint8_t * p, const uint8_t * end) {
    for (size_t n; p < end && ((n = headkv_feed_at(p, end)) > 0 || headkv_is_space(*p)); p += std::max<size_t>(n, 1)) {}
    return p;
}

int headkv_n_feeds(const uint8_t * p, const uint8_t * end) {
    int res                    = 0;
    const uint8_t * const text = headkv_find_text(p, end);
    for (size_t n; p < text; p += std::max<size_t>(n, 1)) {
        n    = headkv_feed_at(p, end);
        res += n > 0;
    }
    return res;
}
