#pragma once

#include <cstdint>
#include <vector>

struct headkv_params {
    uint32_t window = 8; // alpha: last prompt positions, they look at the prompt and are always kept
    uint32_t kernel = 7; // width of the max-pool over positions, odd
    uint32_t sinks  = 4; // first prompt positions, always kept
};

// Choose what one KV head keeps of a prompt (HeadKV, arXiv 2410.19258, section 3.3; SnapKV's selection).
//
//   w:    [n_prompt] attention that the window pays to each position
//   keep: positions, ascending; min(cap, n_prompt) of them
//
// The window comes first, then the sinks, then the best of the rest by max-pooled attention, until the
// cap is full. Only the candidates between sinks and window are pooled: the attention to the sinks and
// within the window is large whatever the prompt says, and would leak into their neighbours.
// Ties go to the lower position.
void headkv_select(const float * w, uint32_t n_prompt, uint32_t cap, const headkv_params & params,
                   std::vector<int32_t> & keep);
