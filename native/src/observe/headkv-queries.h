#pragma once

#include "base/headkv-buffers.h"
#include "base/headkv-layer.h"

#include "llama.h"

#include <cstdint>
#include <map>
#include <vector>

struct llama_ubatch;
struct llm_graph_context;

// The queries of some tokens that are decoded after a compacted prompt, of every layer that attends to its kept rows:
// what each head looks at of its own entries is computed from them when the tail is folded.
class headkv_queries {
public:
    // readers: the layers, each with the shape of the layer whose K and V it reads; n tokens from position `first` on
    // allocates; throws headkv_error, std::bad_alloc
    headkv_queries(const std::map<int32_t, headkv_layer_shape> & readers, llama_pos first, uint32_t n);

    // This ubatch is about to be decoded. False if graphs built before are of no use for it.
    bool aim(const llama_ubatch & ubatch);

    // add the recording of layer il to the graph
    //   q: [n_embd_head_k, n_head, n_tokens]; sinks: learned sink logits, or nullptr
    void build(const llm_graph_context & gctx, int32_t il, ggml_tensor * q, ggml_tensor * sinks, float scale);

    // tokens from position p0 on are taken out of the cache
    void remove(llama_pos p0);

    // are all of them recorded, the last of them at the end of n_tokens tokens
    bool covers(uint32_t n_tokens) const;

    struct layer {
        ggml_tensor * q     = nullptr; // [d_k, n_head, n]
        ggml_tensor * sinks = nullptr;
        float scale         = 1.0f;
        float softcap       = 0.0f;
    };

    const std::map<int32_t, layer> & get_layers() const { return layers; }

    llama_pos get_first() const { return first; }
    uint32_t get_n() const { return n; }

    const headkv_buffers & get_buffers() const { return bufs; }

private:
    const llama_pos first;
    const uint32_t n;

    std::map<int32_t, layer> layers;
    headkv_buffers bufs;

    uint32_t n_seen = 0; // recorded, with those of this ubatch

    uint32_t i0    = 0; // of this ubatch: first token that is recorded, its place, how many
    uint32_t slot  = 0;
    uint32_t n_now = 0;
};
