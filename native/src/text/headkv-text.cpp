#include "text/headkv-text.h"

#include "base/headkv-error.h"
#include "llama-impl.h"
#include "unicode.h"

#include <algorithm>
#include <cctype>
#include <cstring>

static constexpr int64_t n_short    = 256; // characters of the paragraphs at one end of a message that ask, at most
static constexpr int32_t n_cue      = 5;   // tokens that ask nothing themselves: "Answer:", or the template's
static constexpr int32_t n_enough   = 32;  // tokens of lines that ask, where short paragraphs are fewer
static constexpr int32_t n_list     = 4;   // times as many tokens as ask otherwise: of lines with a mark each
static constexpr int32_t n_distance = 64;  // tokens between short paragraphs and a question mark that is theirs

// Weight of tokens that a question may be in, beside those that look like one: as if they paid a tenth of the
// attention, for the mean is of fourth powers. Where what looks like a question looks nowhere, they select.
static constexpr double maybe = 0.00010000000000000002;

// of those that a question is likely in, for no end of the message has a question mark: as if they paid half of it
static constexpr double likely = 0.0625;

// a full stop, and what may close a sentence after it; then those that no blank has to follow
static const char * const stops[]   = { ".", "!", "?", "…", "؟", "۔", "।", "॥", "։", "።", "፧", "\u037e" };
static const char * const closers[] = { "\"", "'", "*", "_", ")", "]", "»", "”", "’" };
static const char * const cjk_stops[]  = { "。", "！", "？" };
static const char * const cjk_closes[] = { "」", "』", "”", "’", "）" };

// of a question, beside the Latin one: full width, Arabic, Armenian, Ethiopic, Greek
static const char * const marks[] = { "？", "؟", "՞", "፧", "\u037e" };

static const char * const feeds[] = { "\n", "\r\n", "\r", "\u0085", "\u2028", "\u2029" };

static bool is_space(uint8_t c) {
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

// a semicolon after a Greek letter
static bool is_greek_mark(const uint8_t * begin, const uint8_t * p) {
    return *p == ';' && p - begin >= 2 && (p[-2] == 0xce || p[-2] == 0xcf);
}

static int64_t n_characters(const uint8_t * p, const uint8_t * end) {
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

static bool is_mark(const uint8_t * begin, const uint8_t * p, const uint8_t * end) {
    if (*p == '?') { // not in an address: "a?b=c"
        return p + 1 == end || !isalnum(p[1]);
    }
    return is_greek_mark(begin, p) || length_of(marks, p, end) > 0;
}

// the end of a sentence that ends with what is at p, nullptr for none
static const uint8_t * sentence_end(const uint8_t * begin, const uint8_t * p, const uint8_t * end) {
    if (*p == '\n') { // not where small letters go on: a line that was wrapped
        return is_small(p + 1, end) ? nullptr : p + 1;
    }
    if (size_t n = is_greek_mark(begin, p) ? 1 : length_of(stops, p, end)) {
        do {
            p += n;
        } while ((n = length_of(closers, p, end)));
        const uint8_t * next = std::find_if_not(p, end, is_space);
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

static bool is_colon(const uint8_t *, const uint8_t * p, const uint8_t * end) {
    return *p == ':' || (end - p >= 3 && memcmp(p, "：", 3) == 0);
}

static const uint8_t * find_feed(const uint8_t * p, const uint8_t * end) {
    while (p < end && !length_of(feeds, p, end)) {
        p++;
    }
    return p;
}

// how many lines end before the next text
static int n_feeds(const uint8_t * p, const uint8_t * end) {
    int res = 0;
    for (size_t n; p < end; p += n) {
        n    = length_of(feeds, p, end);
        res += n > 0;
        if (n == 0 && !is_space(*p)) {
            break;
        }
        n = std::max<size_t>(n, 1);
    }
    return res;
}

//
// headkv_text_view
//

headkv_text_view::headkv_text_view(const headkv_text & text)
    : bytes((const uint8_t *) text.bytes),
      n_bytes(text.n_bytes),
      ends(text.ends),
      n((int32_t) std::min<size_t>(text.n_tokens, INT32_MAX)) {
    if ((n_bytes > 0 && !bytes) || (n > 0 && !ends)) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "a pointer is NULL");
    }
    const bool ascends = std::is_sorted(ends, ends + n) && (n == 0 || ends[0] >= 0);
    if (text.n_tokens > INT32_MAX || !ascends || (n > 0 ? (size_t) ends[n - 1] : 0) != n_bytes) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the tokens' ends must ascend to the end of the text");
    }
}

size_t headkv_text_view::token_at(size_t end) const {
    return std::lower_bound(ends, ends + n, (int64_t) end) - ends;
}

void headkv_text_view::sentence_ends(uint8_t * res) const {
    std::fill(res, res + n, 0);
    const uint8_t * const stop = bytes + n_bytes;
    for (const uint8_t * p = bytes; p < stop;) {
        if (const uint8_t * end = sentence_end(bytes, p, stop)) {
            res[token_at(end - bytes)] = 1;
            p                          = end;
        } else {
            p++;
        }
    }
}

int32_t headkv_text_view::n_marks(int32_t start, int32_t stop) const {
    const uint8_t * const end = bytes + start_of(stop);
    int32_t res               = 0;
    bool before               = false;
    for (const uint8_t * p = bytes + start_of(start); p < end; ++p) {
        if ((*p & 0xc0) == 0x80) { // within a character
            continue;
        }
        const bool here  = is_mark(bytes, p, bytes + n_bytes);
        res             += here && !before;
        before           = here;
    }
    return res;
}

int32_t headkv_text_view::n_questions(const std::vector<headkv_part> & parts) const {
    double most = 0.0;
    for (const auto & part : parts) {
        most = std::max(most, part.weight);
    }
    int32_t res = 0;
    for (const auto & part : parts) {
        res += part.weight == most ? n_marks(part.start, part.stop) : 0;
    }
    return std::max(res, 1);
}

bool headkv_text_view::are_short(int32_t start, int32_t stop) const {
    return n_characters(bytes + start_of(start), bytes + start_of(stop)) <= n_short;
}

// Lines, or the sentences of a long one.
std::vector<headkv_text_view::border> headkv_text_view::borders(int32_t start, int32_t stop) const {
    const uint8_t * const end = bytes + n_bytes;
    std::vector<border> res;
    const auto add = [&](const uint8_t * before, border_kind kind) {
        const uint8_t * next = std::find_if_not(before, end, is_space);
        const auto token     = (int32_t) (std::upper_bound(ends, ends + n, next - bytes) - ends);
        if (token > start && token < stop) {
            if (res.empty() || res.back().token < token) {
                res.push_back({ token, kind });
            }
            res.back().kind = std::max(res.back().kind, kind);
        }
        return next;
    };
    const uint8_t * line = bytes + start_of(start);
    while (line > bytes && line[-1] != '\n' && line[-1] != '\r') {
        line--;
    }
    for (const uint8_t * const last = bytes + start_of(stop); line < last;) {
        const uint8_t * feed = find_feed(line, end);
        if (n_characters(line, feed) > n_short) {
            for (const uint8_t * p = line; p < feed;) {
                const uint8_t * next = sentence_end(bytes, p, end);
                p                    = next ? next : p + 1;
                if (next) {
                    add(next, BORDER_SENTENCE);
                }
            }
        }
        line = add(feed + length_of(feeds, feed, end), n_feeds(feed, end) > 1 ? BORDER_PARAGRAPH : BORDER_LINE);
    }
    return res;
}

// One end of a message: as many paragraphs as are short together, and further lines if these are not enough. Without a
// question mark among them up to a near one; where no paragraph ends there, up to the first one of what is short.
int32_t headkv_text_view::asking(const std::vector<unit> & units, bool one_paragraph) {
    const unit * res = nullptr;
    for (const unit & u : units) {
        const bool further = u.kind == BORDER_LINE && (!res || res->n < n_enough);
        if (u.is_short && (u.kind == BORDER_PARAGRAPH || (further && !one_paragraph))) {
            res = &u;
        }
        if (one_paragraph && res && res->n > n_cue) {
            return res->n;
        }
    }
    if (one_paragraph) {
        return 0;
    }
    if (res && res->n <= n_cue) {
        res = nullptr;
    }
    const bool is_whole = res && res->kind == BORDER_PARAGRAPH;
    const unit * mark   = nullptr;
    int32_t before      = 0; // tokens up to a unit
    for (const unit & u : units) {
        if (u.marked && (is_whole ? before <= res->n + n_distance : !mark || u.is_short)) {
            mark = &u;
        }
        if (mark && is_whole) {
            break;
        }
        before = u.n;
    }
    if (mark && (!res || mark->n > res->n)) {
        res = mark;
        for (const unit * u = mark; !mark->is_short && u < units.data() + units.size(); ++u) {
            if (u->kind == BORDER_PARAGRAPH) { // a question far from the end, with its paragraph
                res = u;
                break;
            }
        }
    }
    return res ? res->n : 0;
}

int32_t headkv_text_view::opening(int32_t start, int32_t n_last, bool one_paragraph) const {
    std::vector<unit> units;
    int32_t before = start;
    for (const border & b : borders(start, start + n_last + 1)) {
        units.push_back({ b.token - start, b.kind, has_mark(before, b.token), are_short(start, b.token) });
        before = b.token;
    }
    return start + asking(units, one_paragraph);
}

int32_t headkv_text_view::ending(int32_t start, int32_t stop, bool is_border, bool one_paragraph) const {
    std::vector<border> found = borders(start, stop);
    if (is_border) {
        found.insert(found.begin(), { start, BORDER_PARAGRAPH });
    }
    std::vector<unit> units;
    int32_t behind = stop;
    for (auto b = found.rbegin(); b != found.rend(); ++b) {
        units.push_back({ stop - b->token, b->kind, has_mark(b->token, behind), are_short(b->token, stop) });
        behind = b->token;
    }
    return stop - asking(units, one_paragraph);
}

int32_t headkv_text_view::closing(int32_t start, int32_t stop) const {
    const auto found = borders(start, stop);
    if (found.empty() || found.back().kind == BORDER_SENTENCE || stop - found.back().token > n_cue) {
        return stop;
    }
    const uint8_t * const begin = bytes + start_of(found.back().token);
    const uint8_t * const line  = std::find_if_not(begin, bytes + n_bytes, is_space);
    const bool is_tag           = bytes + n_bytes - line >= 2 && memcmp(line, "</", 2) == 0;
    const bool has_words =
        std::any_of(begin, bytes + start_of(stop), [](uint8_t c) { return c >= 0x80 || isalnum(c); });
    return is_tag || !has_words ? stop : found.back().token;
}

// whether what these tokens end in is one, but for blanks and what closes a sentence
bool headkv_text_view::end_in(bool (*is_one)(const uint8_t *, const uint8_t *, const uint8_t *), int32_t start,
                              int32_t stop) const {
    const uint8_t * const end = bytes + start_of(stop);
    bool res                  = false;
    for (const uint8_t * p = bytes + start_of(start); p < end;) {
        size_t n = length_of(closers, p, end);
        n        = n ? n : length_of(cjk_closes, p, end);
        n        = n ? n : length_of(feeds, p, end);
        if (n == 0 && !is_space(*p) && (*p & 0xc0) != 0x80) {
            res = is_one(bytes, p, end);
        }
        p += std::max<size_t>(n, 1);
    }
    return res;
}

void headkv_text_view::take_in_questions_before(int32_t start, int32_t & last, int32_t stop) const {
    const auto inner = borders(last, stop);
    if (!end_in(is_mark, last, inner.empty() ? stop : inner[0].token)) {
        return;
    }
    const auto found = borders(start, last);
    for (auto b = found.rbegin(); b != found.rend() && end_in(is_mark, b->token, last); ++b) {
        last = b->token;
    }
}

void headkv_text_view::take_in_questions_after(int32_t start, int32_t & first, int32_t stop) const {
    const auto inner = borders(start, first);
    if (!end_in(is_mark, inner.empty() ? start : inner.back().token, first)) {
        return;
    }
    for (const border & b : borders(first, stop)) {
        if (!end_in(is_mark, first, b.token)) {
            return;
        }
        first = b.token;
    }
}

std::vector<headkv_part> headkv_text_view::question(int32_t start, int32_t stop, int32_t n_last) const {
    if (n_last < 1 || stop > n || start < -1 || stop <= std::max(start, 0)) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("the last %d of the tokens from %d to %d of %d cannot ask", n_last, start, stop, n));
    }
    if (start >= 0 && stop - start <= n_last) {
        return { { start, stop, 1.0 } };
    }
    // it holds a document: a question may stand before it or after it
    std::vector<headkv_part> res;
    const int32_t from  = std::max(start, 0);
    int32_t first       = start < 0 ? 0 : opening(start, n_last, false);
    const int32_t begin = std::max(first, stop - n_last);
    const int32_t all   = ending(begin, stop, begin == first, false);
    int32_t last        = all;

    // where one end alone has a mark, the other one is likely the document's: one paragraph of it asks at most
    const bool asks_first = has_mark(from, first);
    const bool asks_last  = has_mark(last, stop);
    const bool is_marked  = asks_first || asks_last;
    if (asks_last) {
        const int64_t reach = stop - (int64_t) n_list * n_last;
        take_in_questions_before((int32_t) std::max<int64_t>(first, reach), last, stop);
    } else if (asks_first) {
        last                = ending(begin, stop, begin == first, true);
        const int64_t reach = start + (int64_t) n_list * n_last;
        take_in_questions_after(start, first, (int32_t) std::min<int64_t>(begin, reach));
    }
    if (first > from) {
        const int32_t one = asks_last && !asks_first ? opening(start, n_last, true) : first;
        res.push_back({ start, one > start ? one : first, one > start ? 1.0 : maybe });
    } else if (start >= 0 && !is_marked && start + n_enough < begin) {
        res.push_back({ start, start + n_enough, likely }); // no border tells where it would end
    }
    if (all == stop) { // nothing tells
        const int32_t cue = first > from && !is_marked ? closing(begin, stop) : stop;
        const bool is_all = cue < stop && !end_in(is_colon, cue, stop); // no cue, but an instruction of a few words
        res.push_back({ begin, cue, first == from ? 1.0 : is_marked || is_all ? maybe : likely });
        if (cue < stop) {
            res.push_back({ cue, stop, 1.0 });
        }
        return res;
    }
    if (last == stop && all > begin) {
        res.push_back({ begin, all, maybe });
    }
    if (all < last) {
        res.push_back({ all, last, likely });
    } else if (last > begin) {
        res.push_back({ begin, last, is_marked ? maybe : likely });
    }
    if (last < stop) {
        res.push_back({ last, stop, 1.0 });
    }
    return res;
}
