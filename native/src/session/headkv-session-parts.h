#pragma once

// Saving and opening a session, and what they have in common.

#include "base/headkv-error.h"
#include "base/headkv-guard.h"
#include "base/headkv-hash.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"
#include "session/headkv-session-file.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

static constexpr size_t headkv_session_n_header = 64u << 20; // bytes of the caller's text at most

// The section "about": this, then the model's id, name and path, each with a zero byte.
struct headkv_session_about {
    uint32_t n_tokens, n_prompt, n_archived;
    uint32_t n_ctx, n_batch, n_ubatch;
    uint32_t type_k, type_v;
    float rope_freq_base, rope_freq_scale; // 0: the model's own

    // As a context of these settings has them, whatever they come from. All but the factor of attention are 0 without
    // YaRN, where they change nothing.
    float yarn_attn_factor, yarn_ext_factor, yarn_beta_fast, yarn_beta_slow;
    uint32_t yarn_orig_ctx;
    uint32_t rope_factors; // of the frequencies: 1 those of a short context, 2 of a long one, 0 the same for all; and
                           // 4 for K, 8 for V that are quantized as they are where llama.cpp rotates them by itself
};

static_assert(sizeof(headkv_session_about) == 64, "as in the file");

// whether a session may say that: what is written can be opened
inline bool headkv_is_sound(const headkv_session_about & a) {
    const auto is_frequency = [](float x) { return std::isfinite(x) && x >= 0.0f; };
    return a.n_tokens >= 1 && a.n_tokens <= INT32_MAX && a.n_prompt <= a.n_tokens && a.n_archived <= a.n_prompt &&
           std::max({ a.n_ctx, a.n_batch, a.n_ubatch }) <= INT32_MAX &&
           std::max(a.type_k, a.type_v) < GGML_TYPE_COUNT && is_frequency(a.rope_freq_base) &&
           is_frequency(a.rope_freq_scale) && std::isfinite(a.yarn_attn_factor) && std::isfinite(a.yarn_ext_factor) &&
           std::isfinite(a.yarn_beta_fast) && std::isfinite(a.yarn_beta_slow);
}

// what a session holds of no context's form; empty where it is not known
struct headkv_session_held {
    std::vector<int32_t> tokens;
    std::vector<float> logits, prompt_logits;
    std::vector<uint8_t> prompt_state;
};

// a session that is open
struct headkv_session_file {
    explicit headkv_session_file(const char * path);

    headkv_session_reader file;
    headkv_session_about about;
    std::string model_id, model_name, model_path;
    std::string header;

    headkv_session_held held; // once it has been loaded; callers point into it until it is closed
};

inline headkv_stats headkv_stats_of(llama_context * ctx) {
    headkv_stats res;
    headkv_require_ok(headkv_get_stats(ctx, &res, sizeof(res), nullptr, 0));
    return res;
}

// f(layer, first, n, bytes) for all rows of n_tokens positions, in the order of the file
template <typename F>
void headkv_each_rows(const llama_kv_cache_headkv & mem, int32_t n_tokens, F && f) {
    static constexpr int32_t n_chunk = 256; // positions whose rows are in memory at once

    const auto & layers = mem.get_shapes();
    for (int32_t first = 0; first < n_tokens; first += n_chunk) {
        const int32_t n = std::min(n_chunk, n_tokens - first);
        for (size_t i = 0; i < layers.size(); ++i) {
            f((int32_t) i, first, n, (size_t) n * layers[i].n_head_kv * layers[i].row_bytes());
        }
    }
}

inline uint64_t headkv_n_bytes_rows(const llama_kv_cache_headkv & mem, int32_t n_tokens) {
    uint64_t res = 0;
    headkv_each_rows(mem, n_tokens, [&](int32_t, int32_t, int32_t, size_t size) { res += size; });
    return res;
}

inline std::string headkv_name_of(const llama_model & model) {
    char name[256];
    return llama_model_meta_val_str(&model, "general.name", name, sizeof(name)) < 0 ? "without a name" : name;
}

// As llama_state_seq_get_data_ext() and _set_data_ext() with LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY, which do not say why
// they fail. Both throw headkv_error, std::bad_alloc, and what the memory throws.
std::vector<uint8_t> headkv_get_bounded_state(llama_context & ctx);
void headkv_set_bounded_state(llama_context & ctx, const void * state, size_t size);

// what this context has, with lengths of 0
inline headkv_session_about headkv_about(const llama_context & ctx, const llama_kv_cache_headkv & mem) {
    const auto & cparams = ctx.get_cparams();
    const auto & hparams = ctx.get_model().hparams;
    const auto & shape   = mem.get_shapes()[0];
    const auto & layer   = ctx.get_model().layers[shape.il];
    const auto unless    = [](float x, float own) { return x == own ? 0.0f : x; };

    headkv_session_about res = {};
    res.n_ctx                = cparams.n_ctx;
    res.n_batch              = cparams.n_batch;
    res.n_ubatch             = cparams.n_ubatch;
    res.type_k               = shape.type_k;
    res.type_v               = shape.type_v;
    res.rope_freq_base       = unless(cparams.rope_freq_base, hparams.rope_freq_base_train);
    res.rope_freq_scale      = unless(cparams.rope_freq_scale, hparams.rope_freq_scale_train);
    res.yarn_attn_factor     = cparams.yarn_attn_factor;
    if (cparams.yarn_ext_factor != 0.0f) {
        res.yarn_ext_factor = cparams.yarn_ext_factor;
        res.yarn_beta_fast  = cparams.yarn_beta_fast;
        res.yarn_beta_slow  = cparams.yarn_beta_slow;
        res.yarn_orig_ctx   = cparams.n_ctx_orig_yarn;
    }
    if (const ggml_tensor * factors = ctx.get_model().get_rope_factors(cparams, shape.il)) {
        res.rope_factors = factors == layer.rope_short ? 1 : factors == layer.rope_long ? 2 : 0;
    }
    const auto is_plain = [](ggml_type type, uint32_t d, bool is_rotated) {
        return ggml_is_quantized(type) && d % 64 == 0 && !is_rotated; // as LLAMA_ATTN_ROT_DISABLE makes them
    };
    res.rope_factors |= is_plain(shape.type_k, shape.d_k, shape.is_k_rotated) ? 4 : 0;
    res.rope_factors |= is_plain(shape.type_v, shape.d_v, shape.is_v_rotated) ? 8 : 0;
    return res;
}

// of what its rows depend on, whatever its lengths and batches are
inline uint64_t headkv_rows_id(const llama_context & ctx, const llama_kv_cache_headkv & mem) {
    headkv_session_about about = headkv_about(ctx, mem);
    about.n_ctx = about.n_batch = about.n_ubatch = 0;

    return headkv_hash(headkv_hash_begin, &about, sizeof(about));
}

// whether rows of the two are rotated alike
inline bool headkv_same_rope(const headkv_session_about & a, const headkv_session_about & b) {
    const auto rope = [](const headkv_session_about & x) {
        return std::tie(x.rope_freq_base, x.rope_freq_scale, x.yarn_attn_factor, x.yarn_ext_factor, x.yarn_beta_fast,
                        x.yarn_beta_slow, x.yarn_orig_ctx, x.rope_factors);
    };
    return rope(a) == rope(b);
}

// Both throw headkv_error, std::bad_alloc.
void headkv_save_session(llama_context & ctx, llama_kv_cache_headkv & mem, const headkv_session & s, const char * path);
void headkv_load_session(llama_context & ctx, llama_kv_cache_headkv & mem, headkv_session_file & s,
                         const char * model_id);
