#pragma once

#include "headkv.h"
#include "observe/headkv-queries.h"
#include "rows/headkv-kept.h"
#include "select/headkv-select.h"

#include <cstdint>
#include <vector>

// A compacted prompt and the tail after it become one prompt: each head chooses among its own entries, those that it
// has kept and those in cells. Pure, but for reading rows.

// One layer whose K and V are read by one or several.
struct headkv_fold_layer {
    const headkv_layer_shape & shape;
    const headkv_kept & kept;
    const ggml_tensor * k; // [d_k*n_head_kv, n_cells], of the cells
    const ggml_tensor * v;
    std::vector<const headkv_attention *> readers;
};

// Positions from `end` on are in cells: cell[p]. There are cell.size() tokens.
struct headkv_fold_prompt {
    uint32_t end;
    const std::vector<uint32_t> & cell;
    llama_pos first; // of the tokens whose queries are recorded
    uint32_t n;
};

// What each KV head of each layer keeps, ascending positions, the window included. The number of threads changes
// nothing but the time.
std::vector<headkv_kept::positions> headkv_choose_again(const std::vector<headkv_fold_layer> & layers,
                                                        const headkv_fold_prompt & prompt, const headkv_plan & plan,
                                                        uint32_t n_threads);

// Fill what is kept now from what was kept and from cells.
void headkv_fill_again(headkv_kept & to, const headkv_fold_layer & from, const headkv_fold_prompt & prompt);
