#pragma once

#include "headkv.h"

#include <vector>

// Whose attention is recorded: the prompt's last tokens, and some that are read once more after it.
struct headkv_asking {
    // question: disjoint parts of a prompt of n_prompt tokens, in their order; n_least: last tokens that observe in any
    // case; n_room: tokens that may be read once more, the last ones of those that should be
    // throws headkv_error for parts that cannot be
    headkv_asking(const headkv_part * question, size_t n_question, int32_t n_prompt, int32_t n_least, int32_t n_room);

    // All of the prompt is read once more, and its last n_least tokens observe.
    headkv_asking(int32_t n_prompt, int32_t n_least);

    // Of the tokens after the first n_stay ones alone. If none of these asks, all is as it was, and 0 stay.
    void stay_at(int32_t n_stay);

    int32_t first = 1;          // from this position to the prompt's end
    std::vector<int32_t> again; // positions of a question that stood before what it asks about
    std::vector<float> weights; // of all of these tokens, in their order
    int32_t n_left_out = 0;     // tokens that there was no room for
    int32_t n_stay     = 0;
};
