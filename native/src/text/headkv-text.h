#pragma once

#include "headkv.h"

#include <vector>

// The text of a prompt, as its tokens spell it: where sentences end, and which tokens ask. Pure.
class headkv_text_view {
public:
    // throws headkv_error for what is no text of tokens
    explicit headkv_text_view(const headkv_text & text);

    int32_t n_tokens() const { return n; }

    // res: [n_tokens] 1 for the last token of every sentence and of every line, else 0
    void sentence_ends(uint8_t * res) const;

    // What asks in a message of the tokens from start on and before stop, or, with start < 0, in the last n_last ones
    // before stop; in their order, eight at most.
    std::vector<headkv_part> question(int32_t start, int32_t stop, int32_t n_last) const;

    // How many questions stand in the parts that weigh most, by their marks; 1 at least.
    int32_t n_questions(const std::vector<headkv_part> & parts) const;

private:
    // the first `stop` tokens of a text
    headkv_text_view(const headkv_text_view & text, int32_t stop)
        : bytes(text.bytes),
          n_bytes(text.start_of(stop)),
          ends(text.ends),
          n(stop) {}

    // the same as question(), of a message that ends where the text does
    std::vector<headkv_part> question_at_end(int32_t start, int32_t n_last) const;

    // the token that holds the last byte of what ends here
    size_t token_at(size_t end) const;

    size_t start_of(int32_t token) const { return token > 0 ? ends[token - 1] : 0; }

    // question marks in these tokens; several side by side are one
    int32_t n_marks(int32_t start, int32_t stop) const;
    bool has_mark(int32_t start, int32_t stop) const { return n_marks(start, stop) > 0; }
    bool are_short(int32_t start, int32_t stop) const;

    enum border_kind { BORDER_SENTENCE, BORDER_LINE, BORDER_PARAGRAPH };

    struct border {
        int32_t token; // the first one behind it
        border_kind kind;
    };

    // those between the tokens of start and stop, in their order
    std::vector<border> borders(int32_t start, int32_t stop) const;

    // a line or a sentence, counted from an end of a message
    struct unit {
        int32_t n;        // tokens from there, with it
        border_kind kind; // of its far end
        bool marked;
        bool is_short; // all from there, with it
    };

    // How many tokens ask of those that begin, or end, with these units. one_paragraph: the outermost one at most, 0 if
    // that is not short.
    static int32_t asking(const std::vector<unit> & units, bool one_paragraph);

    // Where what asks of the first n_last tokens ends, and where what asks of these tokens begins; start and stop where
    // nothing tells. is_border: whether the first token begins a paragraph.
    int32_t opening(int32_t start, int32_t n_last, bool one_paragraph) const;
    int32_t ending(int32_t start, int32_t stop, bool is_border, bool one_paragraph) const;

    // Where the first paragraph ends whose end is at least `least`; `least` if none does before stop.
    int32_t paragraph_end(int32_t start, int32_t stop, int32_t least) const;

    // Lines, or sentences of long ones, with a question mark: those next to an end of these tokens, n_most tokens at
    // most.
    std::vector<headkv_part> questions_in(int32_t start, int32_t stop, int32_t n_most) const;

    // The paragraphs, up to the end of the text, that begin in these tokens and are short, and the first lines of those
    // that begin with short ones: those that stand last, n_most tokens at most.
    std::vector<headkv_part> openings_in(int32_t start, int32_t stop, int32_t n_most) const;

    // Where the last line of these tokens begins, if it is so short that it may be a cue; else stop.
    int32_t closing(int32_t start, int32_t stop) const;

    bool end_in(bool (*is_one)(const uint8_t *, const uint8_t *, const uint8_t *), int32_t start, int32_t stop) const;

    // A list of questions, lines that end in a question mark each: takes in those before `last`, from start on, if the
    // line that begins there is one; or those after `first`, before stop, if the line that ends there is one.
    void take_in_questions_before(int32_t start, int32_t & last, int32_t stop) const;
    void take_in_questions_after(int32_t start, int32_t & first, int32_t stop) const;

    const uint8_t * const bytes;
    const size_t n_bytes;
    const int64_t * const ends;
    const int32_t n;
};
