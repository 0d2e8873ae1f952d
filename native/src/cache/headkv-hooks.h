#pragma once

// What llama.cpp calls where patch 0002 says so. For caches of other kinds all of it does what llama.cpp does.

#include "llama.h"

struct ggml_cgraph;
struct ggml_tensor;
struct llama_memory_i;
struct llama_ubatch;
struct llm_graph_context;
class llama_io_read_i;
class llama_kv_cache_context;
class llm_graph_result;

//
// llama.h: a memory may have several parts, which change together or not at all
//

// llama_memory_seq_rm()
bool headkv_seq_rm(llama_memory_i * mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1);

// Is the memory compacted, or in the middle of something: its tokens keep their sequence and their positions, and what
// was asked for is not done.
bool headkv_is_fixed(llama_memory_i * mem, const char * asked);

// llama_state_set_data() and its like: all of a memory, or nothing is in it
void headkv_state_read(llama_memory_i & mem, llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags);

//
// graphs
//

// The graph that was built for a ubatch, cut to some layers while a prompt is read layer by layer; nullptr where it
// cannot be cut.
ggml_cgraph * headkv_cut_graph(ggml_cgraph * gf, llm_graph_result & res, llama_memory_i * mem,
                               const llama_ubatch & ubatch);

// Nodes and leafs that graphs have at most beside those that llama.cpp expects of the model.
uint32_t headkv_max_nodes(llama_memory_i * mem);

// an input that ties the graph to the epoch it was built in
void headkv_build_inp(llm_graph_result * res, const llama_kv_cache_context * mctx);

// The attention of a compacted layer, [n_embd_head_v*n_head, n_tokens]; nullptr if the stock attention is
// to be built. Adds the recording nodes when the layer is observed.
//   q: [n_embd_head_k, n_head,    n_tokens]
//   k: [n_embd_head_k, n_head_kv, n_kv]
//   v: [n_embd_head_v, n_head_kv, n_kv]
ggml_tensor * headkv_build_attn(const llm_graph_context & gctx, const llama_kv_cache_context * mctx, ggml_tensor * q,
                                ggml_tensor * k, ggml_tensor * v, ggml_tensor * kq_mask, ggml_tensor * sinks,
                                float kq_scale, int il);
