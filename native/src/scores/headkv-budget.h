#pragma once

#include "headkv.h"

#include <string>

// A budget as it was written: mean entries per KV head, percent of the prompt, or bytes.
struct headkv_budget {
    enum kind_t { ENTRIES, PERCENT, BYTES } kind = ENTRIES;

    uint64_t whole    = 0; // of the number, before its point
    uint64_t fraction = 0; // after it
    uint64_t scale    = 1; // that the fraction is divided by, a power of 10
    int64_t unit      = 1; // of bytes
    std::string text;      // as in a sentence

    int64_t n_bytes() const; // of a budget in bytes

    // Entries of n_heads KV heads together for a prompt of n_prompt tokens, at most the whole prompt. A percentage is
    // at least what a short prompt needs. Exact: nothing is rounded but down to a whole entry.
    // Of a number of bytes it is how many entries of the mean size take them.
    //   all_bytes: of one entry of all heads; bounded_bytes: what other layers hold in any case
    // throws headkv_error, with the smallest budget that works, if a number of bytes is less than the window
    int64_t total(int64_t n_heads, int64_t all_bytes, int64_t bounded_bytes, int32_t n_prompt, int32_t window) const;
};

// throws headkv_error for what can never work
headkv_budget headkv_budget_of(const headkv_retention & retention);
