#pragma once

#include "llama-kv-cache.h"

#include "headkv-observer.h"
#include "headkv-pool.h"
#include "headkv-select.h"
#include "headkv.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

//
// llama_kv_cache_headkv
//

// KV cache with per-head retention. Composes a stock cache, the *live* one, and a pool:
//
//   dormant:   all tokens are in the live cache, there is no pool, graphs are the stock ones
//   compacted: the prompt is in the pool, newer tokens are in the live cache, then called the tail
//
// The live cache is made with n_ctx cells. As a tail it starts small and grows when needed. After clear() it is still
// small, and gets room for the next prompt when that is expected, else for n_ctx cells with the next batch.

class llama_kv_cache_headkv : public llama_memory_i {
public:
    // nullptr if the model or the context cannot be compacted: the stock cache is to be used then
    static llama_kv_cache_headkv * create(const llama_model & model, const llama_memory_params & params,
                                          const llama_cparams & cparams, const layer_filter_cb & filter);

    // why create() returns nullptr, "" if it does not
    static std::string unsupported(const llama_model & model, const llama_cparams & cparams);

    ~llama_kv_cache_headkv() override = default;

    //
    // llama_memory_i
    //

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;

    llama_memory_context_ptr init_full() override;

    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    // not while compacted: the pool's keys cannot be rotated to other positions
    bool get_can_shift() const override;

    void clear(bool data) override;

    // while compacted: false, and nothing is done, if the range touches the pool without holding all of it
    bool seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) override;
    void seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id) override;
    void seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) override;

    llama_pos seq_pos_min(llama_seq_id seq_id) const override;
    llama_pos seq_pos_max(llama_seq_id seq_id) const override;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    // dormant: the stock format. compacted: a magic word, the pool, the stock format of the tail
    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override;
    void state_read(llama_io_read_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    //
    // headkv API, see headkv.h; all of it throws headkv_error, std::bad_alloc
    //

    void configure(int32_t window, int32_t kernel, int32_t sinks);
    void set_budgets(const int32_t * caps, size_t n);
    void expect(int32_t n);
    void set_sentences(const uint8_t * ends, size_t n);
    void observe(int32_t what, int32_t first, int32_t n, const float * weights);
    void compact(uint32_t n_threads);

    void get_attention(float * w, size_t n) const;
    void get_rows(int32_t layer, float * w, size_t n) const;
    // these may be called while another thread is in here
    void get_kept(int32_t * kept, size_t n) const;
    void get_mask(uint8_t * mask, size_t n) const;
    headkv_stats get_stats() const;

    //
    // graph_build API
    //

    // graphs built in another epoch must not be reused
    uint64_t get_epoch() const { return epoch; }

    // the recorder of layer il, nullptr when nothing is to be recorded; sets ikv, the layer's index in the cache
    const headkv_observer * get_observer(int32_t il, uint32_t & ikv) const;

    // the pool of layer il, nullptr when dormant
    const headkv_pool::layer * get_pool(int32_t il) const;

    // The ubatch is about to be computed: before its graph is built, while it is, and when it is there.
    void on_apply(const llama_ubatch & ubatch);
    headkv_observer::inputs build_inputs(ggml_context * ctx, uint32_t n_kv) const;
    void on_compute(const headkv_observer::inputs & in) const;

    // of the last failure on this context, since the last batch began
    std::string last_error;

    std::atomic<bool> cancelled = false;

private:
    llama_kv_cache_headkv(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
                          const layer_filter_cb & filter);

    std::unique_ptr<llama_kv_cache> make_live(uint32_t n_cells) const;

    // Until no device is at the cache any more. To be called before rows are moved or buffers freed in what llama.cpp
    // calls, for it does not wait for a batch before the next one; what headkv.h offers waits there.
    void wait() const;

    // Reserve compute buffers anew if the live cache has another size than they are for: in them are the mask, and
    // CUDA's copy of a layer's quantized K and V. What fails in it does no harm.
    void reserve_compute() const;

    // make room for n_new more tokens in the live cache; throws if there is none
    void reserve(uint32_t n_new);

    // all positions of the live cache in order: cell[p]; throws unless they are 0, 1, ...
    std::vector<uint32_t> get_prompt_cells() const;

    // is the attention of all tokens recorded that are to select from a prompt of n_prompt tokens
    bool has_record(size_t n_prompt) const;

    // what was recorded of a layer, by position: [rows][n_prompt]
    std::vector<float> read_record(uint32_t ikv, const std::vector<uint32_t> & cell) const;

    // what selects: the power mean of the recorded attention, [n_head_kv][n_prompt]
    std::vector<float> read_attention(uint32_t ikv, const std::vector<uint32_t> & cell) const;

    // what the heads that have more than the smallest cap look at: [n_candidates], empty where none has more
    std::vector<float> get_votes(const std::vector<uint32_t> & cell, const headkv_parts & parts,
                                 uint32_t n_threads) const;

    void require_length(size_t n, size_t n_expected) const;
    void require_pool() const;
    void update_peak(size_t extra);
    void count_live();

    uint32_t ikv_of(int32_t il) const;

    const llama_model & model;
    const ggml_type type_k;
    const ggml_type type_v;
    const bool offload;
    const uint32_t n_ctx;
    const uint32_t n_head_kv;
    const layer_filter_cb filter;

    llama_context * lctx = nullptr; // whose memory this is; known from its first batch on

    // Held where what other threads may ask for changes: the three below, n_live, bytes_peak and the times. The one
    // thread that changes them reads them without.
    mutable std::mutex mutex;

    std::unique_ptr<llama_kv_cache> live;
    std::unique_ptr<headkv_pool> pool;
    std::unique_ptr<headkv_observer> obs;

    std::vector<headkv_layer_shape> shapes; // of the cached layers, in the order of the live cache

    headkv_params params;
    std::vector<int32_t> caps; // [n_layer*n_head_kv], empty until set
    uint32_t n_expected = 0;   // tokens of the prompt, 0 if not known; until the next clear()

    std::vector<uint8_t> ends; // [n_prompt] not 0 where a sentence ends, empty if not known; of one prompt only

    uint64_t epoch = 0;

    uint32_t n_reserved = 0; // cells that compute buffers were last reserved for

    mutable std::atomic<int32_t> n_splits = 0; // of the last graph

    uint32_t n_live      = 0; // cells of the live cache in use, of whole ubatches
    size_t bytes_full    = 0;
    size_t bytes_peak    = 0;
    int64_t t_select_us  = 0;
    int64_t t_compact_us = 0;
};

//
// llama_kv_cache_headkv_context
//

// Is the live cache's batch context, so that graphs can use it as any other llama_kv_cache_context.
class llama_kv_cache_headkv_context : public llama_kv_cache_context {
public:
    // used for errors
    explicit llama_kv_cache_headkv_context(llama_memory_status status);

    // used to create a full-cache context
    llama_kv_cache_headkv_context(llama_kv_cache_headkv * mem, llama_kv_cache * live);

    // used to create a batch processing context from a batch
    llama_kv_cache_headkv_context(llama_kv_cache_headkv * mem, llama_kv_cache * live, slot_info_vec_t sinfos,
                                  std::vector<llama_ubatch> ubatches);

    bool apply() override;

    const llama_kv_cache_headkv * get_mem() const { return mem; }

    // of no batch: what is built with it only reserves memory
    bool is_full() const { return full; }

private:
    llama_kv_cache_headkv * mem = nullptr;
    const bool full             = false;
};

//
// call sites in llama-graph.cpp; both do nothing for contexts of other memories
//

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
