#pragma once

#include "headkv-buffers.h"

#include "llama.h"

#include <cstdint>
#include <vector>

struct headkv_layer_shape;
struct llama_ubatch;
struct llm_graph_context;

// Records the attention that decoded tokens pay to the cells of the full cache, where the layer's K is, by
// ordinary graph nodes, one set per layer. Two kinds of record:
//
//   WINDOW: per KV head, the sum of squares over all tokens and over the query heads of the GQA group
//   ROWS:   per query head, the row of the last token of the last ubatch
class headkv_observer {
public:
    enum mode { WINDOW, ROWS };

    // n_heads: columns, KV heads or query heads; allocates; throws headkv_error, std::bad_alloc
    headkv_observer(mode mode, const std::vector<headkv_layer_shape> & shapes, uint32_t n_cells, uint32_t n_heads);

    // add the recording of one layer to the graph
    //   q: [n_embd_head_k, n_head,    n_tokens]
    //   k: [n_embd_head_k, n_head_kv, n_kv]
    void build(const llm_graph_context & gctx, uint32_t ikv, ggml_tensor * q, ggml_tensor * k, ggml_tensor * kq_mask,
               ggml_tensor * sinks, float kq_scale) const;

    // the tokens of this ubatch are about to be recorded
    void add(const llama_ubatch & ubatch);

    // positions from p0 on are taken out of the cache: the record is of no use any more if it saw them
    void remove(llama_pos p0);

    // are the tokens up to position `last` recorded, n_min to n_max of them, and no others
    bool covers(uint32_t n_min, uint32_t n_max, llama_pos last) const;

    // is the token at position `pos` the last one recorded
    bool has_seen(llama_pos pos) const { return !broken && n_tokens > 0 && last == pos; }

    // one layer's record of the first n cells: res[h*n + cell]
    void read(uint32_t ikv, uint32_t n, std::vector<float> & res) const;

    mode get_mode() const { return what; }

    uint32_t get_n_tokens() const { return n_tokens; }

    const headkv_buffers & get_buffers() const { return bufs; }

    bool on = true;

private:
    const mode what;
    const uint32_t n_heads;

    headkv_buffers bufs;
    std::vector<ggml_tensor *> records; // per layer: [n_cells, n_heads] F32

    uint32_t n_tokens = 0;
    llama_pos first   = -1;
    llama_pos last    = -1;
    bool broken       = false;
};
