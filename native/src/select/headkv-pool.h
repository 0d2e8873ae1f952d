#pragma once

#include "headkv.h"
#include "observe/headkv-observer.h"
#include "select/headkv-select.h"

#include <cstdint>
#include <vector>

// Caps of a pooled plan, in the order of its caps: which take the bytes of these, or less than one row fewer; less too
// where nearly all is kept, for no head gets more than its candidates. Beside the first tokens and the window, which
// all heads keep, a head has as many entries as it has candidates among those that are looked at most, of all heads.
// (KVzip, arXiv 2505.23416, section 3.2.)
//
//   offsets: of each layer's first KV head
//   cell   : [n_prompt] the cell of each position
// The number of threads changes nothing but the time.
std::vector<int32_t> headkv_pool_caps(const headkv_observer & obs, const std::vector<headkv_layer_shape> & shapes,
                                      const std::vector<uint32_t> & offsets, const std::vector<uint32_t> & cell,
                                      const headkv_plan & plan, const headkv_parts & parts, uint32_t n_threads);
