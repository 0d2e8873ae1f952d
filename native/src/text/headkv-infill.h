#pragma once

#include "headkv.h"

#include <cstdint>
#include <vector>

struct llama_vocab;

// What asks in a prompt that the model is to fill in: what stands around the gap, wherever that is, and what comes
// behind the mark that the middle follows. Of n_last tokens a half before the gap and a quarter after it. Empty for any
// other prompt, and where the middle has more than n_last tokens already.
//   prefix, text, suffix, text, middle: the gap is where the suffix begins
//   suffix, text, prefix, text, middle: the gap is where the middle begins
std::vector<headkv_part> headkv_infill_question(const llama_vocab & vocab, const int32_t * tokens, int32_t n_tokens,
                                                int32_t n_last);
