#pragma once

#include "headkv-kept.h"
#include "headkv-observer.h"
#include "headkv-select.h"

#include <cstdint>
#include <vector>

// From what was recorded to the positions that each KV head keeps: pure but for reading records.

// What a compaction is to keep.
struct headkv_caps {
    headkv_params params;
    std::vector<int32_t> caps; // of the KV heads of all layers in their order
    std::vector<uint8_t> ends; // [n_prompt] not 0 where a sentence ends; empty if not known
};

// What selects: the power mean of the attention recorded in layer ikv, [n_head_kv][n_prompt].
// throws headkv_error where nothing was recorded that could have been
std::vector<float> headkv_read_attention(const headkv_observer & obs, const std::vector<headkv_layer_shape> & shapes,
                                         uint32_t ikv, const std::vector<uint32_t> & cell);

// The positions that the heads of each layer keep, the window included; cell[p]: the cell of position p.
// The number of threads changes nothing but the time.
std::vector<headkv_kept::positions> headkv_choose(const headkv_observer & obs,
                                                  const std::vector<headkv_layer_shape> & shapes,
                                                  const std::vector<uint32_t> & cell, const headkv_caps & caps,
                                                  uint32_t n_threads);
