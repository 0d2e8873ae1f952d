#include "text/headkv-text.h"

#include "base/headkv-error.h"
#include "llama-impl.h"
#include "llama-vocab.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

static constexpr int32_t n_ending  = 32; // tokens after a question that the chat template may add
static constexpr int32_t n_opening = 64; // tokens of a question before a document, where nobody says which is which
static constexpr int32_t n_cue     = 5;  // tokens of a last line that asks nothing itself: "Answer:", or the template's

// Weight of tokens that a question may be in, beside those that look like one: as if they paid a tenth of the
// attention, for the mean is of fourth powers. Where what looks like a question looks nowhere, they select.
static constexpr double maybe = 0.00010000000000000002;

// a full stop, and what may close a sentence after it; then as Chinese and Japanese have them
static const char * const stops[]      = { ".", "!", "?", "…" };
static const char * const closers[]    = { "\"", "'", "*", "_", ")", "]", "»", "”", "’" };
static const char * const cjk_stops[]  = { "。", "！", "？" };
static const char * const cjk_closes[] = { "」", "』", "”", "’", "）" };

static const char * const marks[] = { "?", "？", "؟" }; // of a question: Latin and others, full width, Arabic

static bool is_space(uint8_t c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool is_small(uint8_t c) {
    return c >= 'a' && c <= 'z';
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

// the end of a sentence that ends with what begins at p, nullptr for none
static const uint8_t * sentence_end(const uint8_t * p, const uint8_t * end) {
    if (*p == '\n') { // not where small letters go on: a line that was wrapped
        return p + 1 == end || !is_small(p[1]) ? p + 1 : nullptr;
    }
    if (size_t n = length_of(stops, p, end)) {
        do {
            p += n;
        } while ((n = length_of(closers, p, end)));
        const uint8_t * next = std::find_if_not(p, end, is_space);
        return next > p && next < end && !is_small(*next) ? p : nullptr; // "e.g. this" goes on
    }
    if (size_t n = length_of(cjk_stops, p, end)) {
        do {
            p += n;
        } while ((n = length_of(cjk_closes, p, end)));
        return p;
    }
    return nullptr;
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
        if (const uint8_t * end = sentence_end(p, stop)) {
            res[token_at(end - bytes)] = 1;
            p                          = end;
        } else {
            p++;
        }
    }
}

int32_t headkv_text_view::end_of_line(int32_t token) const {
    const uint8_t * const stop = bytes + n_bytes;
    const uint8_t * feed       = std::find(bytes + start_of(token), stop, '\n');
    if (feed == stop) {
        return n;
    }
    return (int32_t) token_at(std::find_if_not(feed + 1, stop, is_space) - bytes) + 1;
}

bool headkv_text_view::has_mark(int32_t start, int32_t stop) const {
    const uint8_t * const end = bytes + start_of(stop);
    for (const uint8_t * p = bytes + start_of(start); p < end; ++p) {
        if (length_of(marks, p, end) > 0) {
            return true;
        }
    }
    return false;
}

bool headkv_text_view::begins_paragraph(int32_t token) const {
    int n_feeds = 0;
    size_t at   = start_of(token);
    while (at > 0 && is_space(bytes[at - 1])) {
        n_feeds += bytes[--at] == '\n';
    }
    return at == 0 || n_feeds > 1;
}

int32_t headkv_text_view::short_end(const std::vector<int32_t> & lines, int32_t end) const {
    for (size_t i = lines.size(); i-- > 0 && end - lines[i] <= n_opening;) {
        if (end - lines[i] > n_cue && begins_paragraph(lines[i])) {
            return lines[i];
        }
    }
    // no blank line stands before what asks: its last line, and those before that make it more than three cues
    int32_t asks = end;
    for (size_t i = lines.size(); i-- > 1 && end - lines[i] <= n_opening && end - asks <= 3 * n_cue;) {
        asks = lines[i];
    }
    return asks;
}

// The last lines with a question mark, one after the other, and what follows them; without any mark the last paragraph
// that is more than a cue, if it is short, or last lines. What stands before them may ask; all of it in one, where
// nothing tells.
std::vector<headkv_part> headkv_text_view::ending(int32_t end, int32_t n_last) const {
    const int32_t start = std::max(0, end - n_last);

    std::vector<int32_t> lines = { start };
    for (int32_t next; (next = end_of_line(lines.back())) < end;) {
        lines.push_back(next);
    }
    const auto marked = [&](size_t i) { return has_mark(lines[i], i + 1 < lines.size() ? lines[i + 1] : end); };

    size_t i = lines.size();
    while (i > 0 && !marked(i - 1)) {
        i--;
    }
    int32_t asks = end;
    if (i > 0) {
        for (i--; i > 0 && marked(i - 1);) {
            i--;
        }
        asks = lines[i];
    } else {
        asks = short_end(lines, end);
    }
    if (asks > start && asks < end) {
        return { { start, asks, maybe }, { asks, end, 1.0 } };
    }
    return { { start, end, 1.0 } };
}

// the first line, if it ends before token `end`; with those up to the first with a question mark
bool headkv_text_view::opening(int32_t start, int32_t end, headkv_part & res) const {
    bool found = false;
    for (int32_t stop = start; stop < n && (stop = end_of_line(stop)) <= end;) {
        const bool asks = has_mark(start, stop);
        if (asks || !found) {
            res = { start, stop, 1.0 };
        }
        found = true;
        if (asks) {
            break;
        }
    }
    return found;
}

std::vector<headkv_part> headkv_text_view::question(int32_t start, int32_t stop, int32_t n_last) const {
    if (n_last < 1 || stop > n || (start >= 0 ? stop <= start : stop < 1)) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("the last %d of the tokens from %d to %d of %d cannot ask", n_last, start, stop, n));
    }
    if (start < 0) {
        return ending(stop, n_last);
    }
    if (stop - start <= n_last) {
        return { { start, stop, 1.0 } };
    }
    // it holds a document: its last n_last tokens may ask, and its first lines, for a question may stand first
    std::vector<headkv_part> last = ending(stop, n_last);

    headkv_part first;
    if (!opening(start, std::min(start + n_opening, stop - n_last), first)) {
        return last;
    }
    const bool asks_first = has_mark(first.start, first.stop);
    const bool asks_last  = has_mark(last.back().start, last.back().stop);
    if (asks_last && !asks_first) {
        return last;
    }
    if (asks_first != asks_last || last.size() == 1) {
        return { first, { last[0].start, stop, maybe } };
    }
    last.insert(last.begin(), first);
    return last;
}

//
// headkv_spelled
//

// control tokens have none
static std::string piece_of(const llama_vocab & vocab, int32_t token) {
    std::string res(32, '\0');
    int32_t n = vocab.token_to_piece(token, res.data(), res.size(), 0, /*special =*/false);
    if (n < 0) {
        res.resize(-n);
        n = vocab.token_to_piece(token, res.data(), res.size(), 0, /*special =*/false);
    }
    res.resize(std::max(n, 0));
    return res;
}

headkv_spelled::headkv_spelled(const llama_vocab & vocab, const int32_t * tokens, size_t n_tokens) {
    ends.reserve(n_tokens);
    std::unordered_map<int32_t, std::string> pieces;
    for (size_t i = 0; i < n_tokens; ++i) {
        auto [it, is_new] = pieces.try_emplace(tokens[i]);
        if (is_new && vocab.get_type() != LLAMA_VOCAB_TYPE_NONE) {
            it->second = piece_of(vocab, tokens[i]);
        }
        bytes += it->second;
        ends.push_back(bytes.size());
    }
}

//
// headkv_asking
//

headkv_asking::headkv_asking(const headkv_part * question, size_t n_question, int32_t n_prompt, int32_t n_least,
                             int32_t n_room) {
    int64_t n_asking = 0;
    for (size_t i = 0; i < n_question; ++i) {
        const headkv_part & part = question[i];
        if (part.start < 0 || part.stop <= part.start || part.stop > n_prompt) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, format("no tokens from %d to %d are in a prompt of %d", part.start,
                                                           part.stop, n_prompt));
        }
        if (i > 0 && part.start < question[i - 1].start) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, "the parts of a question must be in their order");
        }
        n_asking += part.stop - part.start;
    }
    if (n_question == 0 || n_prompt < 1 || n_asking > 2 * (int64_t) n_prompt) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("%lld tokens cannot ask in a prompt of %d", (long long) n_asking, n_prompt));
    }

    // the last parts, if only what a template adds comes after them
    int64_t border = (int64_t) n_prompt - n_ending;
    first          = n_prompt - n_least;
    std::vector<const headkv_part *> last;
    for (const headkv_part * part = question + n_question; part-- > question;) {
        if (part->stop >= border) {
            last.push_back(part);
            border = part->start;
            first  = std::min(first, part->start);
        }
    }
    std::vector<float> of_again;
    for (size_t i = 0; i < n_question; ++i) {
        if (std::find(last.begin(), last.end(), question + i) == last.end()) {
            // a token once, also where it is a piece of two parts
            const int32_t begin = again.empty() ? 0 : again.back() + 1;
            for (int32_t p = std::max(question[i].start, begin); p < question[i].stop; ++p) {
                again.push_back(p);
                of_again.push_back((float) question[i].weight);
            }
        }
    }
    first = std::max(std::min(1, n_prompt - 1), first); // nothing stands before a prompt of one token

    n_left_out = std::max<int64_t>(0, (int64_t) again.size() - std::max(n_room, 0));
    again.erase(again.begin(), again.begin() + n_left_out);

    weights.assign(std::max(0, n_prompt - first), 1.0f);
    weights.insert(weights.end(), of_again.begin() + n_left_out, of_again.end());
    for (const headkv_part * part : last) {
        std::fill(weights.begin() + std::max(0, part->start - first), weights.begin() + std::max(0, part->stop - first),
                  (float) part->weight);
    }
}

void headkv_asking::stay_at(int32_t n) {
    const size_t n_gone = std::min<size_t>(std::max(0, n - first), weights.size());
    if (std::any_of(weights.begin() + n_gone, weights.end(), [](float w) { return w > 0.0f; })) {
        weights.erase(weights.begin(), weights.begin() + n_gone);
        first  = std::max(first, n);
        n_stay = n;
    }
}
