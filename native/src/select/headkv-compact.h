#pragma once

#include "headkv.h"
#include "observe/headkv-observer.h"
#include "rows/headkv-kept.h"
#include "select/headkv-select.h"

#include <cstdint>
#include <vector>

// From what was recorded to the positions that each KV head keeps: pure but for reading records.

// throws headkv_error for a plan that does not fit these layers and a prompt of n_prompt tokens
void headkv_check(const headkv_plan & plan, const std::vector<headkv_layer_shape> & shapes, uint32_t n_prompt);

headkv_params headkv_params_of(const headkv_plan & plan);

// throws headkv_error for weights of observed tokens that can select nothing
void headkv_check_weights(const std::vector<float> & weights);

// throws headkv_error for what cannot be positions that the last tokens of n observed ones, or fewer, are copies of
void headkv_check_again(const std::vector<llama_pos> & at, size_t n);

// What selects: the power mean of the attention recorded in layer ikv, [n_head_kv][n_prompt].
// throws headkv_error where nothing was recorded that could have been
std::vector<float> headkv_read_attention(const headkv_observer & obs, const std::vector<headkv_layer_shape> & shapes,
                                         uint32_t ikv, const std::vector<uint32_t> & cell);

// The positions that the heads of each layer keep, the window included; cell[p]: the cell of position p.
// The number of threads changes nothing but the time.
std::vector<headkv_kept::positions> headkv_choose(const headkv_observer & obs,
                                                  const std::vector<headkv_layer_shape> & shapes,
                                                  const std::vector<uint32_t> & cell, const headkv_plan & plan,
                                                  uint32_t n_threads);
