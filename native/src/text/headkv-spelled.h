#pragma once

#include "headkv.h"

#include <cstdint>
#include <string>
#include <vector>

struct llama_vocab;

// The text of tokens, each with the space before it; control tokens have none. Throws std::bad_alloc.
struct headkv_spelled {
    headkv_spelled(const llama_vocab & vocab, const int32_t * tokens, size_t n_tokens);

    headkv_text text() const { return { bytes.data(), bytes.size(), ends.data(), ends.size() }; }

    std::string bytes;
    std::vector<int64_t> ends;
};
