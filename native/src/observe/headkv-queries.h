#pragma once

#include "base/headkv-buffers.h"
#include "base/headkv-layer.h"
#include "observe/headkv-record.h"

#include "llama-io.h"
#include "llama.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

struct llama_ubatch;

// The queries of some tokens that are decoded after a prompt, of every layer that attends to its kept rows.
// From them is computed what each head looks at: of its own entries when the tail is folded, of the whole prompt for a
// draft of the answer.
class headkv_queries {
public:
    // readers: the layers, each with the shape of the layer whose K and V it reads; n tokens from position `first` on
    // allocates; throws headkv_error, std::bad_alloc
    headkv_queries(const std::map<int32_t, headkv_layer_shape> & readers, llama_pos first, uint32_t n);

    // This ubatch is about to be decoded. False if graphs built before are of no use for it.
    bool aim(const llama_ubatch & ubatch);

    // that build() adds to a graph at most, the layer's tensor among them
    static constexpr uint32_t n_nodes_max = 4;

    // add the recording of layer il to the graph; attn needs no K and no mask
    void build(ggml_context * ctx, ggml_cgraph * gf, int32_t il, const headkv_attention & attn);

    void state_write(llama_io_write_i & io) const;

    static constexpr uint32_t n_most = 512; // that a state has: a reader makes room for all of them first

    // make: for n tokens from position `first` on; sinks: the learned sink logits of a layer, or nullptr; end: position
    // after the last token that was decoded; throws headkv_error for what cannot be, std::bad_alloc
    using maker = std::function<std::unique_ptr<headkv_queries>(llama_pos first, uint32_t n)>;
    static std::unique_ptr<headkv_queries> state_read(llama_io_read_i & io, const maker & make,
                                                      const std::function<ggml_tensor *(int32_t)> & sinks, uint32_t end,
                                                      uint32_t n_ctx);

    // tokens from position p0 on are taken out of the cache
    void remove(llama_pos p0);

    // are all of them recorded, and at most n_more others behind them, of n_tokens tokens
    bool covers(uint32_t n_tokens, uint32_t n_more) const;

    // by layer; q: [d_k*n_head, n], contiguous
    const std::map<int32_t, headkv_attention> & get_layers() const { return layers; }

    llama_pos get_first() const { return first; }
    uint32_t get_n() const { return n; }
    uint32_t get_n_seen() const { return n_seen; }

    const headkv_buffers & get_buffers() const { return bufs; }

private:
    const llama_pos first;
    const uint32_t n;

    std::map<int32_t, headkv_attention> layers;
    headkv_buffers bufs;

    uint32_t n_seen = 0; // recorded, with those of this ubatch

    uint32_t i0    = 0; // of this ubatch: first token that is recorded, its place, how many
    uint32_t slot  = 0;
    uint32_t n_now = 0;
};
