#pragma once

#include "llama.h"
#include "slice/headkv-hidden.h"

#include <cstdint>
#include <string>

struct ggml_cgraph;
struct llama_ubatch;
class llm_graph_result;
struct llama_hparams;

// A model's graph that is cut to some of its layers, so that a prompt can be read layer by layer: what the layers
// before have computed comes from memory, and what the layers after are to read goes there.
//
// A layer's input is named by the model ("l_out-<layer before>") or by llama.cpp. What writes into a cache belongs to
// the layer that the cache's tensor is of; everything else is needed by something or dropped.
struct headkv_slice {
    int32_t begin   = 0;
    int32_t end     = 0; // layers [begin, end)
    int32_t n_layer = 0; // of the model

    llama_pos p0     = 0; // where the panel begins
    uint32_t n_cells = 0; // that a mask has room for at least

    bool drops_masks = false; // whether llama.cpp can do without a mask that the slice does not use
    bool is_causal   = false; // one layer, which attends to all cells before a token's own, in the order of positions

    bool is_whole() const { return begin == 0 && end == n_layer; }

    bool holds(int32_t il) const { return il >= begin && il < end; }
};

// Bytes of one token of what goes between layers, the most of all of them; those of n_embd numbers where the graph does
// not tell.
size_t headkv_hidden_row(const llm_graph_result & res, const llama_hparams & hparams);

// Tokens of a panel whose hidden states, of `row` bytes each, take 256 MiB at most: whole batches, or ubatches, or
// less.
uint32_t headkv_panel(size_t row, uint32_t n_batch, uint32_t n_ubatch);

// After nodes that record the attention of layer il were added to a graph, from node i0 on.
void headkv_name_records(ggml_cgraph * gf, int i0, int32_t il);

// Why the graph cannot be cut to the slice, "" if it can; the graph stays as it is.
//   row: set to the bytes of one token of what comes from the layers before
std::string headkv_check_slice(const llm_graph_result & res, const headkv_slice & slice, uint32_t n_tokens,
                               size_t & row);

// that cutting adds to a graph at most: a mask, and what goes out
static constexpr uint32_t headkv_cut_nodes_max = 11;

// Cut it; hidden: what comes in and goes out. Only after it was checked.
void headkv_cut(llm_graph_result & res, const headkv_slice & slice, const llama_ubatch & ubatch,
                const headkv_hidden & hidden);
