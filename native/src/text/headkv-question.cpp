#include "base/headkv-error.h"
#include "llama-impl.h"
#include "text/headkv-characters.h"
#include "text/headkv-text.h"

#include <algorithm>
#include <cctype>
#include <cstring>

static constexpr int32_t n_cue      = 5;  // tokens that ask nothing themselves: "Answer:", or the template's
static constexpr int32_t n_enough   = 32; // tokens of lines that ask, where short paragraphs are fewer
static constexpr int32_t n_list     = 4;  // times as many tokens as ask otherwise: of lines with a mark each
static constexpr size_t n_inside    = 4;  // questions far from both ends of a message
static constexpr int32_t n_distance = 64; // tokens between short paragraphs and a question mark that is theirs

// Weight of tokens that a question may be in, beside those that look like one: as if they paid a tenth of the
// attention, for the mean is of fourth powers. Where what looks like a question looks nowhere, they select.
static constexpr double maybe = 0.00010000000000000002;

// of those that a question is likely in, for no end of the message has a question mark: as if they paid half of it
static constexpr double likely = 0.0625;

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
    bool is_short  = true;
    for (const border & b : borders(start, start + n_last + 1)) {
        is_short = is_short && are_short(start, b.token); // what is long stays so, and is not counted again
        units.push_back({ b.token - start, b.kind, has_mark(before, b.token), is_short });
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
    bool is_short  = true;
    for (auto b = found.rbegin(); b != found.rend(); ++b) {
        is_short = is_short && are_short(b->token, stop);
        units.push_back({ stop - b->token, b->kind, has_mark(b->token, behind), is_short });
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
    const uint8_t * const line  = std::find_if_not(begin, bytes + n_bytes, headkv_is_space);
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
        size_t n = headkv_closer_at(p, end);
        n        = n ? n : headkv_feed_at(p, end);
        if (n == 0 && !headkv_is_space(*p) && (*p & 0xc0) != 0x80) {
            res = is_one(bytes, p, bytes + n_bytes);
        }
        p += std::max<size_t>(n, 1);
    }
    return res;
}

void headkv_text_view::take_in_questions_before(int32_t start, int32_t & last, int32_t stop) const {
    const auto inner = borders(last, stop);
    if (!end_in(headkv_is_mark, last, inner.empty() ? stop : inner[0].token)) {
        return;
    }
    const auto found = borders(start, last);
    for (auto b = found.rbegin(); b != found.rend() && end_in(headkv_is_mark, b->token, last); ++b) {
        last = b->token;
    }
}

void headkv_text_view::take_in_questions_after(int32_t start, int32_t & first, int32_t stop) const {
    const auto inner = borders(start, first);
    if (!end_in(headkv_is_mark, inner.empty() ? start : inner.back().token, first)) {
        return;
    }
    for (const border & b : borders(first, stop)) {
        if (!end_in(headkv_is_mark, first, b.token)) {
            return;
        }
        first = b.token;
    }
}

int32_t headkv_text_view::paragraph_end(int32_t start, int32_t stop, int32_t least) const {
    for (const border & b : borders(start, stop)) {
        if (b.kind == BORDER_PARAGRAPH && b.token >= least) {
            return b.token;
        }
    }
    return least;
}

std::vector<headkv_part> headkv_text_view::questions_in(int32_t start, int32_t stop, int32_t n_most) const {
    std::vector<headkv_part> found;
    std::vector<border> inner = borders(start, stop);
    inner.push_back({ stop, BORDER_LINE });
    int32_t before = start;
    for (const border & b : inner) {
        if (has_mark(before, b.token)) {
            found.push_back({ before, b.token, likely });
        }
        before = b.token;
    }
    if (found.size() == 1 && end_in(headkv_is_mark, found[0].start, found[0].stop)) {
        found[0].weight = 1.0; // of several, most are likely the document's; "a ? b : c" is none
    }
    std::stable_sort(found.begin(), found.end(), [&](const headkv_part & a, const headkv_part & b) {
        return std::min(a.start - start, stop - a.stop) < std::min(b.start - start, stop - b.stop);
    });
    std::vector<headkv_part> res;
    for (const headkv_part & part : found) {
        if (part.stop - part.start <= n_most && res.size() < n_inside) {
            n_most -= part.stop - part.start;
            res.push_back(part);
        }
    }
    std::sort(res.begin(), res.end(), [](const headkv_part & a, const headkv_part & b) { return a.start < b.start; });
    return res;
}

std::vector<headkv_part> headkv_text_view::openings_in(int32_t start, int32_t stop, int32_t n_most) const {
    const std::vector<border> inner = borders(start, n);
    std::vector<headkv_part> res;
    int32_t next = n; // where the paragraph behind it begins
    for (auto b = inner.rbegin(); b != inner.rend() && res.size() < n_inside; ++b) {
        if (b->kind != BORDER_PARAGRAPH) {
            continue;
        }
        int32_t end = are_short(b->token, next) ? next : b->token;
        for (auto line = b.base(); end < next && line != inner.end() && end - b->token < n_enough; ++line) {
            if (line->kind == BORDER_SENTENCE || line->token > next || !are_short(b->token, line->token)) {
                break; // as prose has it
            }
            end = line->token;
        }
        if (b->token < stop && end > b->token && end - b->token <= n_most) {
            n_most -= end - b->token;
            res.push_back({ b->token, end, likely });
        }
        next = b->token;
    }
    return { res.rbegin(), res.rend() };
}

std::vector<headkv_part> headkv_text_view::question(int32_t start, int32_t stop, int32_t n_last) const {
    if (n_last < 1 || stop > n || start < -1 || stop <= std::max(start, 0)) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("the last %d of the tokens from %d to %d of %d cannot ask", n_last, start, stop, n));
    }
    if (start >= 0 && stop - start <= n_last) {
        return { { start, stop, 1.0 } };
    }
    return headkv_text_view(*this, stop).question_at_end(start, n_last); // what a template puts after it is not read
}

std::vector<headkv_part> headkv_text_view::question_at_end(int32_t start, int32_t n_last) const {
    const int32_t stop = n;
    // it holds a document: a question may stand before it or after it
    std::vector<headkv_part> res;
    const int32_t from = std::max(start, 0);
    int32_t first      = start < 0 ? 0 : opening(start, n_last, false);
    int32_t begin      = std::max(first, stop - n_last);
    const int32_t all  = ending(begin, stop, begin == first, false);
    int32_t last       = all;

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
    bool tells      = first > from;
    int32_t further = first; // what asks at the beginning, with what likely does
    if (first > from) {
        const int32_t one = asks_last && !asks_first ? opening(start, n_last, true) : first;
        res.push_back({ start, one > start ? one : first, one > start ? 1.0 : maybe });
        if (one > start && one < first) {
            res.push_back({ one, first, likely });
        }
    } else if (start >= 0 && !is_marked && start + n_enough < begin) {
        further = start + n_enough; // if no border tells where it would end
    }
    if (start >= 0 && !is_marked) {
        further = std::min(begin, paragraph_end(start, start + n_last + 1, further));
        if (further > first) {
            res.push_back({ first, further, likely });
        }
        const auto after  = borders(begin, last); // a question may begin before the last tokens, and end in them
        auto inside       = questions_in(further, after.empty() ? begin : after[0].token, n_last);
        const auto tail   = borders(begin, stop);
        const bool is_end = std::any_of(tail.begin(), tail.end(), [&](const border & b) {
            return b.token == all && b.kind == BORDER_PARAGRAPH; // a short one, which asks
        });
        if (inside.empty() && !is_end) {
            const int64_t reach = stop - (int64_t) n_list * n_last;
            const auto before   = headkv_text_view(*this, all); // what follows asks in any case
            inside              = before.openings_in((int32_t) std::max<int64_t>(further, reach), begin, n_last);
        }
        res.insert(res.end(), inside.begin(), inside.end());
        if (!inside.empty()) {
            tells = tells || inside.back().weight == 1.0;
            begin = std::max(begin, inside.back().stop);
        }
    }
    if (all == stop) { // nothing tells
        const int32_t cue = first > from && !is_marked ? closing(begin, stop) : stop;
        const bool is_all =
            cue < stop && !end_in(headkv_is_colon, cue, stop); // no cue, but an instruction of a few words
        res.push_back({ begin, cue, !tells ? 1.0 : is_marked || is_all ? maybe : likely });
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
