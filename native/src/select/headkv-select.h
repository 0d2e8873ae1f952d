#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

struct headkv_params {
    uint32_t window       = 8;  // alpha: last prompt positions, every KV head keeps them
    uint32_t kernel       = 29; // width of the max-pool over positions, odd
    uint32_t first_tokens = 4;  // first prompt positions
};

// A prompt by what can happen to its positions, in their order: how many of each.
struct headkv_parts {
    uint32_t first;      // tokens
    uint32_t candidates; // kept where attention says so
    uint32_t recent;     // the last ones, two windows of them

    const uint8_t * ends; // [candidates] not 0 where a sentence ends, or nullptr: all of them are one

    uint32_t n_prompt() const { return first + candidates + recent; }
};

// ends: [n_prompt] or nullptr, as in headkv_parts
headkv_parts headkv_divide(uint32_t n_prompt, const uint8_t * ends, const headkv_params & params);

// Choose what the KV heads keep of a prompt: HeadKV's selection (arXiv 2410.19258, section 3.3) with a vote of all
// heads, see docs/method.md, "Selection".
//
//   w: [n_prompt] attention that the observed tokens pay to each position, of one KV head
//
// Only the attention to candidates counts. That to the first tokens is large whatever the prompt says, and would leak
// into its neighbours.
//
// The max-pool stays inside a sentence, and what is looked at counts less with every position on the way: little less
// for those behind it, where the answer stands more often ("the code is 123"), than for those ahead of it.
static constexpr float headkv_fade_behind = 0.98f;
static constexpr float headkv_fade_ahead  = 0.90f;
static constexpr size_t headkv_reach_max  = 512; // farther off next to nothing is left

// One head's vote, added to votes [candidates]: its pooled attention as a share of all that it pays to candidates,
// times weight.
void headkv_vote(const float * w, const headkv_parts & parts, double weight, const headkv_params & params,
                 double * votes);

// What one head keeps.
//
//   votes: [candidates] of all heads, or nullptr: the head decides alone
//   keep : positions, ascending; min(cap, n_prompt) of them
//
// First the window, then the first tokens; then the recent ones before the window while they and the window are at most
// half of the cap; the rest are the best candidates by pooled attention times votes. Ties go to the lower position.
void headkv_select(const float * w, const float * votes, const headkv_parts & parts, uint32_t cap,
                   const headkv_params & params, std::vector<int32_t> & keep);
