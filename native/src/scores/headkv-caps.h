#pragma once

#include "headkv.h"

#include <vector>

// How many entries each KV head keeps of a prompt. Pure.

// throws headkv_error for what can never work, whatever the model and the prompt
void headkv_check_retention(const headkv_retention & retention);

// Entries of each KV head of these layers, in their order.
//   bounded_bytes: what the model's other layers hold in any case
// throws headkv_error for a retention that does not fit the layers, or is too small
std::vector<int32_t> headkv_make_caps(const headkv_retention & retention, const headkv_layer * layers, size_t n_layers,
                                      int64_t bounded_bytes, int32_t n_prompt);

// Which rows of scores of the layers `scored` are of these layers. Throws headkv_error where they do not fit.
std::vector<int32_t> headkv_match_rows(const std::vector<int32_t> & scored, int32_t n_head, int32_t n_head_kv,
                                       const headkv_layer * layers, size_t n_layers);
