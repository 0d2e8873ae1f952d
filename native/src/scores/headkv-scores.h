#pragma once

#include "scores/headkv-waterfill.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

// Head scores and their provenance as GGUF metadata holds them, see docs/gguf-metadata.md.
struct headkv_scores {
    uint32_t n_layer   = 0;
    uint32_t n_head    = 0;
    uint32_t n_head_kv = 0;

    std::vector<float> scores;    // [n_layer][n_head], raw: finite, not negative, not all zero
    std::vector<uint32_t> layers; // [n_layer] the model's layers that the rows are of, ascending

    headkv_curves curves; // of n_layer times n_head_kv KV heads; none where the file has none

    // what the file recommends, negative where it says nothing
    float beta     = -1.0f;
    int32_t window = -1;
    int32_t kernel = -1;
    int32_t sinks  = -1;

    std::vector<std::pair<std::string, std::string>> texts; // headkv.method and headkv.source.*, numbers as decimals

    // throws headkv_error with one of the HEADKV_ERR_FILE / HEADKV_ERR_SCORES_* codes, std::bad_alloc
    static headkv_scores load(const char * path);
    static headkv_scores load(const void * data, size_t size); // a GGUF file in memory
};

// Identity of a model's weights: a hash over name, type, shape and the first and last bytes of every tensor.
// The same with and without embedded scores, another for another quantization. Throws headkv_error.
std::string headkv_model_id(const char * path);
std::string headkv_model_id(const void * data, size_t size);

// Whether that may have given it.
bool headkv_is_model_id(const std::string & text);
