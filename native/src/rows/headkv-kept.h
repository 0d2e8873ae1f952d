#pragma once

#include "base/headkv-buffers.h"
#include "base/headkv-layer.h"
#include "rows/headkv-gather.h"

#include <cstdint>
#include <memory>
#include <vector>

class headkv_archive;
class llama_io_write_i;
class llama_io_read_i;

// The kept K and V rows of one layer: ragged, one block of rows per KV head, immutable once filled. Rows are in the
// cache's own types, moved as raw bytes.
class headkv_kept {
public:
    // of each KV head, ascending
    using positions = std::vector<std::vector<int32_t>>;

    // allocates, and fills the head table; throws headkv_error, std::bad_alloc
    headkv_kept(const headkv_layer_shape & shape, positions keep);

    ggml_tensor * k;    // [d_k, n_rows]
    ggml_tensor * v;    // [d_v, n_rows]
    ggml_tensor * rows; // [n_head_kv + 1] I32, see ggml_headkv_attn()

    // copy the kept rows from an archive, in which the layer has number ikv
    void fill(const headkv_archive & archive, uint32_t ikv);

    // tell how many rows will be copied from cells
    void add_to(headkv_gather & gather) const;

    // copy the kept rows from the layer's cells
    //   from_k: [d_k*n_head_kv, n_cells], from_v: [d_v*n_head_kv, n_cells], one cell after the other
    //   cell[p]: the cell of position p
    void fill(headkv_gather & gather, const ggml_tensor * from_k, const ggml_tensor * from_v,
              const std::vector<uint32_t> & cell);

    const positions & get_keep() const { return keep; }
    const headkv_buffers & get_buffers() const { return bufs; }

    uint32_t get_n_rows() const { return n_rows; } // summed over the KV heads

    void state_write(llama_io_write_i & io) const;

    // throws headkv_error if the state is not that of a layer of this shape, std::bad_alloc
    static std::unique_ptr<headkv_kept> state_read(llama_io_read_i & io, const headkv_layer_shape & shape,
                                                   uint32_t end);

private:
    const headkv_layer_shape shape;
    const positions keep;
    const uint32_t n_rows;

    headkv_buffers bufs;
};

// The kept rows of a compacted prompt, of all layers that retain. They are of positions before `end`; the window after
// them, which every head keeps, is in ordinary cells.
struct headkv_kept_prompt {
    uint32_t n_prompt = 0;
    uint32_t end      = 0;

    std::vector<std::unique_ptr<headkv_kept>> layers;

    size_t size() const;     // bytes of the buffers
    uint64_t n_rows() const; // summed over layers and KV heads, without those in cells

    void add_breakdown(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const;

    void state_write(llama_io_write_i & io) const;

    // throws headkv_error if the state is not that of a prompt in such layers, std::bad_alloc
    static std::unique_ptr<headkv_kept_prompt>
    state_read(llama_io_read_i & io, const std::vector<headkv_layer_shape> & shapes, uint32_t n_ctx);
};
