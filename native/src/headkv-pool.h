#pragma once

#include "headkv-buffers.h"
#include "headkv-gather.h"

#include <cstdint>
#include <memory>
#include <vector>

class llama_io_write_i;
class llama_io_read_i;

// What one layer's KV cache looks like.
struct headkv_layer_shape {
    int32_t il;
    ggml_backend_buffer_type_t buft;
    ggml_type type_k;
    ggml_type type_v;
    uint32_t d_k; // n_embd_head_k
    uint32_t d_v; // n_embd_head_v
};

// keep[ikv][h]: positions that KV head h of the ikv-th cached layer keeps, ascending
using headkv_keep = std::vector<std::vector<std::vector<int32_t>>>;

// The kept K and V rows of a prompt: ragged, one block of rows per KV head, immutable once filled.
// Rows are in the cache's own types, moved as raw bytes.
class headkv_pool {
public:
    struct layer {
        ggml_tensor * k;    // [d_k, n_rows]
        ggml_tensor * v;    // [d_v, n_rows]
        ggml_tensor * rows; // [n_head_kv + 1] I32, see ggml_headkv_attn()
    };

    // allocates, and fills the head tables; throws headkv_error, std::bad_alloc
    headkv_pool(const std::vector<headkv_layer_shape> & shapes, uint32_t n_prompt, headkv_keep keep);

    // tell how many rows the layers will copy
    void add_to(headkv_gather & gather) const;

    // copy the kept rows of one layer from its full cache
    //   k: [d_k*n_head_kv, n_cells], v: [d_v*n_head_kv, n_cells], one cell after the other
    //   cell[p]: the cell of position p
    void fill(headkv_gather & gather, uint32_t ikv, const ggml_tensor * k, const ggml_tensor * v,
              const std::vector<uint32_t> & cell);

    const layer & get_layer(uint32_t ikv) const { return layers[ikv]; }
    const headkv_keep & get_keep() const { return keep; }
    const headkv_buffers & get_buffers() const { return bufs; }

    uint32_t get_n_prompt() const { return n_prompt; }
    uint64_t get_n_rows() const; // summed over the layers

    void state_write(llama_io_write_i & io) const;

    // throws headkv_error if the state is not that of a pool of these shapes, std::bad_alloc
    static std::unique_ptr<headkv_pool> state_read(llama_io_read_i & io, const std::vector<headkv_layer_shape> & shapes,
                                                   uint32_t n_head_kv, uint32_t n_ctx);

private:
    const std::vector<headkv_layer_shape> shapes;
    const uint32_t n_prompt;
    const headkv_keep keep;

    headkv_buffers bufs;
    std::vector<layer> layers;
};
