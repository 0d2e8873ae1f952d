#pragma once

#include "headkv-buffers.h"

#include "llama.h"

#include <cstdint>
#include <vector>

struct headkv_layer_shape;
struct llama_ubatch;
struct llm_graph_context;

// Records how much attention decoded tokens pay to each cell of the full cache, per KV head: a sum over
// tokens and over the query heads of the GQA group. The sums are kept where the layer's K is, and grow
// by ordinary graph nodes, one set per layer.
class headkv_observer {
public:
    // allocates; throws headkv_error, std::bad_alloc
    headkv_observer(const std::vector<headkv_layer_shape> & shapes, uint32_t n_cells, uint32_t n_head_kv);

    // add the recording of one layer to the graph
    //   q: [n_embd_head_k, n_head,    n_tokens]
    //   k: [n_embd_head_k, n_head_kv, n_kv]
    void build(const llm_graph_context & gctx, uint32_t ikv, ggml_tensor * q, ggml_tensor * k, ggml_tensor * kq_mask,
               ggml_tensor * sinks, float kq_scale) const;

    // the tokens of this ubatch are about to be recorded
    void add(const llama_ubatch & ubatch);

    // positions from p0 on are taken out of the cache: the sums are of no use any more if they saw them
    void remove(llama_pos p0);

    // are exactly the n tokens up to position `last` recorded
    bool covers(uint32_t n, llama_pos last) const;

    // one layer's sums: res[h*n_cells + cell]
    void read(uint32_t ikv, std::vector<float> & sums) const;

    const headkv_buffers & get_buffers() const { return bufs; }

    bool on = true;

private:
    const uint32_t n_cells;
    const uint32_t n_head_kv;

    headkv_buffers bufs;
    std::vector<ggml_tensor *> sums; // per layer: [n_cells, n_head_kv] F32

    uint32_t n_tokens = 0;
    llama_pos first   = -1;
    llama_pos last    = -1;
    bool broken       = false;
};
