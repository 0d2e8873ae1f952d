#pragma once

#include "ggml-backend.h"

#include <cstddef>
#include <cstdint>

// What one layer that retains looks like.
struct headkv_layer_shape {
    int32_t il; // the layer's index in the model
    ggml_backend_buffer_type_t buft;
    ggml_type type_k;
    ggml_type type_v;
    uint32_t d_k; // n_embd_head_k
    uint32_t d_v; // n_embd_head_v
    uint32_t n_head;
    uint32_t n_head_kv;
    uint32_t n_readers; // layers that read its K and V, itself among them

    // by a Hadamard matrix, before they are quantized
    bool is_k_rotated = false;
    bool is_v_rotated = false;

    uint32_t n_gqa() const { return n_head / n_head_kv; }

    // K and V of one entry of one KV head
    size_t row_bytes() const { return ggml_row_size(type_k, d_k) + ggml_row_size(type_v, d_v); }
};
