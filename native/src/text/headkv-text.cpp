#include "text/headkv-text.h"

#include "base/headkv-error.h"
#include "llama-impl.h"
#include "text/headkv-characters.h"

#include <algorithm>

static constexpr int64_t n_short = 256; // characters of the paragraphs at one end of a message that ask, at most

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
    const uint8_t * const end = bytes + n_bytes;
    for (const uint8_t * p = bytes; (p = headkv_find_sentence_end(bytes, p, end, end));) {
        res[token_at(p - bytes)] = 1;
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
        const bool here  = headkv_is_mark(bytes, p, bytes + n_bytes);
        res             += here && !before;
        before           = here;
    }
    return res;
}

int32_t headkv_text_view::n_questions(const std::vector<headkv_part> & parts) const {
    double most  = 0.0;
    int32_t stop = 0; // the last one may lie within another
    for (const auto & part : parts) {
        most = std::max(most, part.weight);
        stop = std::max(stop, part.stop);
    }
    const headkv_text_view message(*this, stop);
    int32_t res = 0;
    for (const auto & part : parts) {
        res += part.weight == most ? message.n_marks(part.start, part.stop) : 0;
    }
    return std::max(res, 1);
}

bool headkv_text_view::are_short(int32_t start, int32_t stop) const {
    return headkv_n_characters(bytes + start_of(start), bytes + start_of(stop)) <= n_short;
}

// Lines, or the sentences of a long one.
std::vector<headkv_text_view::border> headkv_text_view::borders(int32_t start, int32_t stop) const {
    const uint8_t * const end = bytes + n_bytes;
    std::vector<border> res;
    const auto add = [&](const uint8_t * before, border_kind kind) {
        const uint8_t * next = headkv_find_text(before, end);
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
        const uint8_t * feed = headkv_find_feed(line, end);
        if (headkv_n_characters(line, feed) > n_short) {
            for (const uint8_t * p = line; (p = headkv_find_sentence_end(bytes, p, feed, end));) {
                add(p, BORDER_SENTENCE);
            }
        }
        line = add(feed + headkv_feed_at(feed, end), headkv_n_feeds(feed, end) > 1 ? BORDER_PARAGRAPH : BORDER_LINE);
    }
    return res;
}
