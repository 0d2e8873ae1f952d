#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// Budgets from curves: entries go where the next one lowers the loss most, until the budget is spent. Pure.

static constexpr size_t headkv_n_points_max = 64;

// Of KV heads, the loss by what each one alone keeps while the others keep what they keep, see docs/gguf-metadata.md.
struct headkv_curves {
    std::vector<float> shares; // [n_points] of the prompt beyond the window, ascending from 0 to 1; empty: no curves
    std::vector<float> losses; // [n_heads][n_points], finite; only differences within a row count
};

// whether these are shares of curves: from 0 to 1, each above the one before it
bool headkv_ascend(const float * shares, size_t n_points);

// the number of the first loss that is not finite, n if all are
size_t headkv_find_not_finite(const float * losses, size_t n);

// Entries of each KV head, from window to n_prompt.
//   equal: what each would keep if budgets were equal. The caps take the same bytes, or, where rows differ in size, up
//   to one row fewer
//   row_bytes: of one entry of each head
std::vector<int32_t> headkv_waterfill(const headkv_curves & curves, const std::vector<int32_t> & equal,
                                      const std::vector<int32_t> & row_bytes, double beta, int32_t window,
                                      int32_t n_prompt);
