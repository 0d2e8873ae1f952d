#pragma once

// Saving and opening a session, and what they have in common.

#include "base/headkv-error.h"
#include "base/headkv-guard.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"
#include "scores/headkv-scores.h"
#include "session/headkv-session-file.h"

#include <algorithm>
#include <string>
#include <vector>

inline headkv_stats headkv_stats_of(llama_context * ctx) {
    headkv_stats res;
    headkv_require_ok(headkv_get_stats(ctx, &res, sizeof(res), nullptr, 0));
    return res;
}

inline std::vector<headkv_layer> headkv_layers_of(llama_context * ctx, int64_t n) {
    std::vector<headkv_layer> res(n);
    headkv_require_ok(headkv_get_layers(ctx, res.data(), res.size()));
    return res;
}

inline std::vector<uint8_t> headkv_part_of(llama_context * ctx, int32_t part) {
    size_t size = 0;
    headkv_require_ok(headkv_get_part(ctx, part, nullptr, &size));
    std::vector<uint8_t> res(size);
    if (size > 0) {
        headkv_require_ok(headkv_get_part(ctx, part, res.data(), &size));
    }
    return res;
}

// f(layer, first, n, bytes) for all rows in the order of the file
template <typename F>
void headkv_each_rows(const std::vector<headkv_layer> & layers, int32_t n_tokens, F && f) {
    static constexpr int32_t n_chunk = 256; // positions whose rows are in memory at once

    for (int32_t first = 0; first < n_tokens; first += n_chunk) {
        const int32_t n = std::min(n_chunk, n_tokens - first);
        for (size_t i = 0; i < layers.size(); ++i) {
            f((int32_t) i, first, n, (size_t) n * layers[i].n_head_kv * layers[i].row_bytes);
        }
    }
}

inline uint64_t headkv_n_bytes_rows(const std::vector<headkv_layer> & layers, int32_t n_tokens) {
    uint64_t res = 0;
    headkv_each_rows(layers, n_tokens, [&](int32_t, int32_t, int32_t, size_t size) { res += size; });
    return res;
}

inline std::string headkv_name_of(const llama_model & model, const std::string & path) {
    char name[256];
    if (llama_model_meta_val_str(&model, "general.name", name, sizeof(name)) < 0) {
        return "without a name (" + path.substr(path.find_last_of('/') + 1) + ")";
    }
    return std::string(name) + " (" + path.substr(path.find_last_of('/') + 1) + ")";
}

// Both throw headkv_error, std::bad_alloc.
void headkv_save_session(llama_context * ctx, llama_kv_cache_headkv & mem, const headkv_session & s, const char * path);
void headkv_open_session(llama_context * ctx, llama_kv_cache_headkv & mem, const char * path, const char * model_path,
                         int32_t * tokens, size_t * n_tokens);
