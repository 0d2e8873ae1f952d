#pragma once

// What the op is asked for, and the items that its work is cut into: see headkv-attn.cpp, which alone includes this.

#include "ggml-impl.h"
#include "ggml.h"
#include "headkv-rows.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace {

constexpr int64_t n_tokens_split = 4;  // up to so many tokens the rows are split
constexpr int64_t chunk_size     = 64; // rows of a chunk when they are split
constexpr int64_t block_size     = 32; // rows whose logits are computed at once
constexpr int64_t tile_queries   = 16; // queries (tokens x GQA group) of a tile, about

// floats, rounded up to whole cache lines
constexpr int64_t padded(int64_t n) {
    return (n + 15) / 16 * 16;
}

struct headkv_attn {
    const ggml_tensor * q;
    const ggml_tensor * k_pool;
    const ggml_tensor * v_pool;
    const ggml_tensor * rows;
    const ggml_tensor * k_tail;
    const ggml_tensor * v_tail;
    const ggml_tensor * mask;
    const ggml_tensor * sinks;
    ggml_tensor * dst;

    int64_t d_k;
    int64_t d_v;
    int64_t n_head;
    int64_t n_head_kv;
    int64_t n_gqa; // query heads per KV head
    int64_t n_tokens;
    int64_t n_kv; // tail cells

    bool split;     // rows are split into chunks
    int64_t n_tile; // tokens per tile

    float scale;
    float softcap;

    explicit headkv_attn(const ggml_tensor * node)
        : q(node->src[0]),
          k_pool(node->src[1]),
          v_pool(node->src[2]),
          rows(node->src[3]),
          k_tail(node->src[4]),
          v_tail(node->src[5]),
          mask(node->src[6]),
          sinks(node->src[7]),
          dst(const_cast<ggml_tensor *>(node)),
          d_k(q->ne[0]),
          d_v(v_tail->ne[0]),
          n_head(q->ne[2]),
          n_head_kv(k_tail->ne[2]),
          n_gqa(n_head / n_head_kv),
          n_tokens(q->ne[1]),
          n_kv(k_tail->ne[1]) {
        split   = n_tokens <= n_tokens_split;
        n_tile  = split ? n_tokens : std::max<int64_t>(1, tile_queries / n_gqa);
        scale   = ggml_get_op_params_f32(node, 0);
        softcap = ggml_get_op_params_f32(node, 1);
    }

    bool k_is_float() const {
        return k_tail->type == GGML_TYPE_F32 || k_tail->type == GGML_TYPE_F16 || k_tail->type == GGML_TYPE_BF16;
    }

    int64_t n_queries() const { return n_tile * n_gqa; }

    // M, S and the accumulator of one query in one chunk
    int64_t partial_size() const { return 2 + d_v; }

    // q, logits, accumulators, maxima and sums of a tile, a block of K and of V; an upper bound of all types
    size_t scratch_size() const {
        const int64_t nq = n_queries();
        return padded(nq * d_k) + padded(nq * block_size) + padded(nq * d_v) + 2 * padded(nq) +
               padded(block_size * d_k) + padded(block_size * d_v) + n_pad_f32;
    }

    int64_t n_rows(int64_t h) const {
        const int32_t * r = (const int32_t *) rows->data;
        return r[h + 1] - r[h] + n_kv;
    }

    int64_t n_chunks(int64_t h) const { return split ? (n_rows(h) + chunk_size - 1) / chunk_size : 1; }

    // more than the sum of n_chunks() over the heads: the head table is not known when the graph is planned
    int64_t n_chunks_max() const { return k_pool->ne[1] / chunk_size + n_head_kv * (n_kv / chunk_size + 2); }
};

} // namespace
