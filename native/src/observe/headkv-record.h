#pragma once

#include "base/headkv-buffers.h"
#include "base/headkv-layer.h"

#include <cstdint>
#include <vector>

// What the nodes of all layers read of the host, to record the tokens of a ubatch.
struct headkv_record_inputs {
    static constexpr uint32_t n_nodes = 2;

    ggml_tensor * weights = nullptr; // [n * most query heads of a layer] F32: those of the n tokens again and again
    ggml_tensor * far     = nullptr; // [n_kv - first, n] F32: 1 where the token counts for the cell, else 0
};

// A layer's attention as its graph computes it.
struct headkv_attention {
    ggml_tensor * q; // [n_embd_head_k, n_head,    n_tokens]
    ggml_tensor * k; // [n_embd_head_k, n_head_kv, n_kv]
    ggml_tensor * mask;
    ggml_tensor * sinks; // learned sink logits, or nullptr
    float scale;
    float softcap; // 0 for none
};

// The recorded attention of one layer to the cells of the full cache, where the layer's K is. Written by graph nodes.
// Layers that share K and V share a record.
class headkv_record {
public:
    // rows: of each query head, the row of one token; else of each KV head, a sum of fourth powers
    // allocates; throws headkv_error, std::bad_alloc
    headkv_record(const headkv_layer_shape & shape, uint32_t n_cells, bool rows);

    // that build() adds to a graph at most, its tensor among them: by single ops, with soft-capping and K in F32
    static constexpr uint32_t n_nodes_max = 26;

    // add the recording of n tokens from token i0 of the ubatch on to the graph
    void build(ggml_context * ctx, ggml_cgraph * gf, const headkv_attention & attn, uint32_t i0, uint32_t n,
               const headkv_record_inputs & in) const;

    // res[h*n + i]: of cell i of the first n
    void read(uint32_t n, std::vector<float> & res) const;

    const headkv_buffers & get_buffers() const { return bufs; }

private:
    const headkv_layer_shape shape;
    const bool rows;

    headkv_buffers bufs;
    ggml_tensor * tensor; // [n_cells, n_head or n_head_kv] F32
};
