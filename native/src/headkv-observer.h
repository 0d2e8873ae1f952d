#pragma once

#include "headkv-buffers.h"

#include "llama.h"

#include <cstdint>
#include <limits>
#include <vector>

class llama_kv_cells;
struct headkv_layer_shape;
struct llama_ubatch;
struct llm_graph_context;

// An observed token counts for positions that far before it, and farther ones: what stands nearer is looked at whatever
// the text says.
static constexpr llama_pos headkv_gap = 16;

// Records the attention that tokens pay to the cells of the full cache, while their ubatch is decoded: a view of its q,
// where the layer's K is, by ordinary graph nodes, one set per layer. Two kinds of record:
//
//   TOKENS: per KV head, the sum of fourth powers over the tokens of a range, each with its weight, and the query heads
//           of the GQA group
//   ROWS:   per query head, the row of the last token of the last ubatch
class headkv_observer {
public:
    enum mode { TOKENS, ROWS };

    // n_heads  : columns, KV heads or query heads
    // first    : TOKENS: position where the range begins; what else is decoded is not recorded
    // weights  : TOKENS: of each token of the range
    // allocates; throws headkv_error, std::bad_alloc
    headkv_observer(mode mode, const std::vector<headkv_layer_shape> & shapes, uint32_t n_cells, uint32_t n_heads,
                    llama_pos first, std::vector<float> weights);

    // How many tokens from position p0 on may be one ubatch, of n_max at most. Observed ones of a ubatch are bounded:
    // n_kv cells, n_head query heads.
    uint32_t limit(llama_pos p0, uint32_t n_max, size_t n_kv, size_t n_head) const;

    // This ubatch is about to be decoded; cells: with its tokens. False if graphs built before are of no use for it.
    bool aim(const llama_ubatch & ubatch, const llama_kv_cells & cells);

    // is anything of the ubatch to be recorded
    bool aims() const { return on && aimed.n > 0; }

    // what the nodes of all layers read of the host
    struct inputs {
        ggml_tensor * rows; // [1, n*n_gqa, n_head_kv] F32: weights, to sum rows with
        ggml_tensor * far;  // [n_kv - first, n]       F32: 1 where the token counts for the cell, else 0
    };

    // for the graph that is made next
    inputs build_inputs(ggml_context * ctx, uint32_t n_kv, uint32_t n_gqa);
    void set_inputs(const inputs & in) const;

    // add the recording of one layer to the graph
    //   q: [n_embd_head_k, n_head,    n_tokens]
    //   k: [n_embd_head_k, n_head_kv, n_kv]
    void build(const llm_graph_context & gctx, uint32_t ikv, ggml_tensor * q, ggml_tensor * k, ggml_tensor * kq_mask,
               ggml_tensor * sinks, float kq_scale) const;

    // positions from p0 on are taken out of the cache: what was recorded is of use for those before
    void remove(llama_pos p0);

    // Is the whole range recorded, for a prompt of n tokens: up to its last token, or farther.
    bool covers(uint32_t n_prompt) const;

    llama_pos range_end() const { return range_first + (llama_pos) range_weights.size(); }

    // does any token of the range count for any position: none does in a prompt that is shorter than the gap
    bool counts() const;

    // is the token at position `pos` the last one recorded
    bool has_seen(llama_pos pos) const { return pos < valid && last == pos; }

    // one layer's record of the first n cells: res[h*n + cell]
    void read(uint32_t ikv, uint32_t n, std::vector<float> & res) const;

    mode get_mode() const { return what; }

    uint32_t get_n_tokens() const { return n_tokens; }

    const headkv_buffers & get_buffers() const { return bufs; }

    bool on = true;

private:
    // of a ubatch, what is recorded
    struct view {
        uint32_t i0    = 0;           // first token
        uint32_t n     = 0;           // tokens
        uint32_t first = 0;           // cells before this one are far from all of them
        std::vector<llama_pos> pos;   // [n]
        std::vector<float> weights;   // [n]
        std::vector<llama_pos> cells; // positions from cell `first` on, none: the largest there is
    };

    const mode what;
    const uint32_t n_heads;
    const llama_pos range_first;
    const std::vector<float> range_weights;
    const bool on_device; // is any layer

    headkv_buffers bufs;
    std::vector<ggml_tensor *> records; // per layer: [n_cells, n_heads] F32

    view aimed;
    inputs in = {}; // of the graph that is made

    uint32_t n_tokens = 0;
    llama_pos last    = -1;
    llama_pos valid   = std::numeric_limits<llama_pos>::max(); // positions from here on are not those recorded
};
