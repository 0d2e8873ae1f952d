#pragma once

#include "llama-kv-cache.h"

#include "base/headkv-cancel.h"
#include "base/headkv-layer.h"
#include "cache/headkv-bounded.h"
#include "headkv.h"
#include "observe/headkv-observer.h"
#include "observe/headkv-queries.h"
#include "rows/headkv-archive.h"
#include "rows/headkv-kept.h"
#include "select/headkv-compact.h"
#include "slice/headkv-slice.h"

#include <atomic>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>

// KV cache with per-head retention: a llama_kv_cache, and kept rows.
//
//   dormant:   all tokens are in cells, there are no kept rows, everything is the base class's
//   compacted: the prompt is in kept rows but for the window, which is in cells with all newer tokens: the tail
//
// It stands wherever llama.cpp makes a cache of full attention: the plain memory, the base half of a sliding-window
// memory, the attention half of a hybrid one. Its layers retain, if the model computes attention in them.
//
// It is made with n_ctx cells. After compaction there are few, and more when needed; after clear() still few, and room
// for the next prompt when that is expected, else for n_ctx cells with the next batch.
class llama_kv_cache_headkv : public llama_kv_cache {
public:
    // In place of a llama_kv_cache, with the arguments of its constructor. Composites do not know what a context is
    // for, so this cache is made for contexts too that can never be compacted; it stays dormant then.
    template <typename... Args>
    static std::unique_ptr<llama_kv_cache> make(Args &&... args) {
        if (is_disabled()) {
            return std::make_unique<llama_kv_cache>(std::forward<Args>(args)...);
        }
        return std::unique_ptr<llama_kv_cache>(new llama_kv_cache_headkv(std::forward<Args>(args)...));
    }

    ~llama_kv_cache_headkv() override = default;

    //
    // headkv-support.cpp
    //

    static bool is_disabled(); // by HEADKV_DISABLE

    // a cache that this thread makes has only so many cells at first
    static inline thread_local bool begin_small = false;
    static constexpr uint32_t n_small           = 8;

    // why a context can never be compacted, "" if it can
    static std::string unsupported(const llama_context & ctx);

    // the cache in a context's memory, wherever it lies; nullptr if there is none
    static llama_kv_cache_headkv * find(llama_memory_i * mem);
    static llama_kv_cache_headkv * find(const llama_kv_cache_context * mctx);

    // of no batch: what is built with it only reserves memory
    static bool is_full(const llama_kv_cache_context * mctx) { return mctx->ubatches.empty(); }
    void belongs_to(llama_context & ctx); // it is to change now

    //
    // llama_memory_i
    //

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override;
    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    // not while compacted: kept keys cannot be rotated to other positions
    bool get_can_shift() const override;

    void clear(bool data) override;

    // Callers of llama.h come by headkv_seq_rm(). llama.cpp itself takes back a ubatch that failed: if there was
    // nothing before it, the prompt is still to come, and what was announced of it stays.
    bool seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id) override;
    void seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) override;

    llama_pos seq_pos_min(llama_seq_id seq_id) const override;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    // the stock format, with kept rows before it and the queries of a tail after it, where there are some
    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override;
    void state_read(llama_io_read_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    //
    // llama_kv_cache
    //

    // Where the cells have to become more: llama.cpp lets only apply() change a memory, but here an allocation that
    // fails can still be reported, and what is planned for a batch depends on the cells.
    slot_info_vec_t prepare(const std::vector<llama_ubatch> & ubatches) override;
    void apply_ubatch(const slot_info & sinfo, const llama_ubatch & ubatch) override;

    //
    // headkv API, see headkv.h; all of it throws headkv_error, std::bad_alloc
    //

    void expect(int32_t n);
    void observe(int32_t what, int32_t first, int32_t n, const float * weights, std::vector<llama_pos> again);
    uint32_t get_observe_limit(uint32_t n_kv) const;
    // t_start_us: when selection began
    void compact(const headkv_plan & plan, uint32_t n_threads, int64_t t_start_us);
    void set_archive(int32_t where, const char * path);

    // What a caller of llama.h wants to take out. While compacted: false, and nothing is done in any part of the
    // memory, if the range touches the prompt without holding all of it. If it is all that comes after a prompt that is
    // archived, bounded layers are put back to its end.
    bool take_out(llama_memory_i & mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1);

    bool is_compacted() const { return kept != nullptr; }

    // headkv-prefill.cpp
    void prefill(llama_context & ctx, const headkv_prompt & prompt, const headkv_plan * plan);

    // headkv-session.cpp: what a session holds. Cells come first, then the others; of an archived prompt also its rows,
    // and then its end. Where cells cannot be set, the context is empty; where others cannot, it stays as it was.
    enum class part {
        cells,   // with kept rows
        bounded, // layers with a sliding window and recurrent ones; no bytes where there are none
        end,     // of the archived prompt, what stands beside its rows, with these layers at its end
    };

    void write_part(llama_context & ctx, part which, llama_io_write_i & io) const;
    void set_part(llama_context & ctx, part which, llama_io_read_i & io, size_t size);
    std::vector<uint8_t> get_part(llama_context & ctx, part which) const; // the same bytes, in memory

    // bounded as it was when llama_state_seq_get_data_ext() gave this state of these layers alone, at n_prompt tokens
    std::vector<uint8_t> get_bounded_of(llama_context & ctx, const void * state, size_t n_state, size_t n_prompt);
    void get_archived(int32_t layer, int32_t first, int32_t n, void * rows, size_t size) const;
    void set_archived(int32_t layer, int32_t first, int32_t n, const void * rows, size_t size);
    int32_t hold_archived();
    void restore_archived(int32_t id);
    void release_archived(int32_t id);

    void get_attention(float * w, size_t n) const;
    void get_rows(int32_t layer, float * w, size_t n) const;

    bool get_retains() const { return retains; }
    bool has_archive() const { return archive != nullptr; }
    const std::string & get_uncut() const { return uncut; }
    size_t get_hidden_row(llama_context & ctx); // bytes of one token between two layers

    const std::vector<headkv_layer_shape> & get_shapes() const { return shapes; }

    // these may be called while another thread is in here
    headkv_stats get_stats(int32_t * kept, size_t n) const;
    void get_mask(uint8_t * mask, size_t n) const;

    //
    // graph_build API
    //

    // graphs built in another epoch must not be reused
    uint64_t get_epoch() const { return epoch; }

    // what records, nullptr when nothing is to be recorded
    const headkv_observer * get_observer() const { return obs && obs->aims() ? obs.get() : nullptr; }

    // what records the queries of tokens after a compacted prompt, nullptr when nothing is to be recorded
    headkv_queries * get_queries() const { return queries.get(); }

    // the kept rows of layer il, nullptr where there are none
    const headkv_kept * get_kept(int32_t il) const;

    uint32_t ikv_of(int32_t il) const { return readers.at(il); }

    // The ubatch is about to be computed: while its graph is built, and when it is there.
    headkv_record_inputs build_inputs(ggml_context * ctx, uint32_t n_kv) const;
    void on_compute(const headkv_record_inputs & in) const;

    // a graph was built; false if it is to be cut and cannot be
    bool cut(llm_graph_result & res, const llama_ubatch & ubatch) const;

    headkv_canceller canceller;

    //
    // what stands beside it in a memory is of the base class
    //

    static llama_kv_cells_vec & cells_of(llama_kv_cache & kv) { return kv.v_cells; }
    static std::vector<uint32_t> & heads_of(llama_kv_cache & kv) { return kv.v_heads; }

    // of a batch that failed while it was given its place: cells without a sequence
    static void free_lost(llama_kv_cache & kv);

    template <typename F>
    static void each_tensor_of(llama_kv_cache & kv, F && f) {
        for (const auto & layer : kv.layers) {
            f(layer.k);
            f(layer.v);
        }
    }

    // Does its window hide position p0 from the token at p1?
    static bool hides(const llama_kv_cache & kv, llama_pos p0, llama_pos p1) {
        return llama_hparams::is_masked_swa(kv.n_swa, kv.swa_type, p0, p1);
    }

    // the layer whose K and V layer il reads, -1 for one that is not in the cache
    static int32_t layer_read_in(const llama_kv_cache & kv, int32_t il);

private:
    class reading;

    llama_kv_cache_headkv(const llama_model & model, const llama_hparams & hparams, ggml_type type_k, ggml_type type_v,
                          bool v_trans, bool offload, bool unified, uint32_t kv_size, uint32_t n_seq_max,
                          uint32_t n_pad, uint32_t n_swa, llama_swa_type swa_type, llama_memory_t mem_other,
                          const layer_filter_cb & filter, const layer_reuse_cb & reuse, const layer_share_cb & share);

    //
    // headkv-resize.cpp: the same cache with another number of cells
    //

    // to be exchanged with swap_cells(); throws headkv_error
    std::unique_ptr<llama_kv_cache> make_cells(uint32_t n_cells) const;
    std::unique_ptr<llama_kv_cache> make_cells(uint32_t n_cells, const llama_hparams & hp) const;

    // Cells of which only n_rooms slices of layers have memory at a time: they lie in n_rooms places in turns.
    std::unique_ptr<llama_kv_cache> make_cells_by(uint32_t n_cells, const std::vector<headkv_slice> & slices,
                                                  size_t n_rooms) const;

    // cannot fail
    void swap_cells(llama_kv_cache & other);

    // positions from p0 on, in their order; cell[p]: the cell of position p
    void copy_cells(llama_kv_cache & to, const std::vector<uint32_t> & cell, uint32_t p0) const;

    // cells 0, 1, ... of empty ones hold positions from p0 on; exts: of these
    static void set_places(llama_kv_cache & cells, uint32_t p0, const std::vector<llama_kv_cell_ext> & exts);

    // rows of positions from p0 on, and what else cells know of them; throws headkv_error, std::bad_alloc
    void archive_cells(headkv_archive & to, const std::vector<uint32_t> & cell, uint32_t p0,
                       std::vector<llama_kv_cell_ext> & exts) const;

    // the same into its own archive, behind exts; the bounded layers where that ends, NULL if it is to have none
    std::shared_ptr<const headkv_bounded> archive_behind(const std::vector<uint32_t> & cell,
                                                         std::vector<llama_kv_cell_ext> & exts);

    // cells for n_needed tokens after kept rows that end at `end`
    uint32_t tail_cells(uint32_t n_needed, uint32_t end) const;
    // room for n_new more tokens
    void grow(uint32_t n_new);
    void require_no_shift() const;

    // Until no device is at the cache any more. To be called before rows are moved or buffers freed in what llama.cpp
    // calls, for it does not wait for a batch before the next one; what headkv.h offers waits there.
    void wait() const;

    // Reserve compute buffers anew if they are for another number of cells: in them are the mask, and CUDA's copy of a
    // layer's quantized K and V. What fails in it does no harm.
    void fit_compute() const;

    // Do the caches of two contexts have the same cells: that of a draft model looks into its target's.
    bool is_shared() const { return other || v_cells_impl.use_count() > 1; }

    uint32_t n_used() const { return get_cells(0).get_used(); }
    uint32_t kept_end() const { return kept ? kept->end : 0; }
    static size_t size_of(const llama_kv_cache & cells); // bytes

    void on_apply(const llama_ubatch & ubatch);
    bool can_take_out(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const;
    bool put_back_end(llama_pos p0); // of bounded layers, if the archived prompt is p0 tokens; false: no memory
    bool has_one_sequence() const;   // sequence 0, in cells of its own
    void record_by(std::unique_ptr<headkv_observer> next);
    void forget_observed();
    void forget_tokens(bool data);
    void forget_record();
    void forget_archived();

    // headkv-tail.cpp: the tail of a compacted prompt
    void observe_tail(int32_t first, int32_t n);
    std::unique_ptr<headkv_queries> make_queries(llama_pos first, uint32_t n) const; // of all that read the cache
    void fold(const headkv_plan & plan, uint32_t n_threads);
    void state_read_kept(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags);

    // whether all layers that retain lie in the memory of one device
    bool is_on_device() const;
    int32_t layer_read_by(int32_t il) const { return layer_read_in(*this, il); }

    // cells of a layer that retains, also in another cache of the same layers
    const kv_layer & cells_in(const llama_kv_cache & kv, size_t ikv) const { return kv.layers[retained[ikv]]; }

    // without the window, not filled yet; allocates
    std::unique_ptr<headkv_kept_prompt> make_kept(std::vector<headkv_kept::positions> keep, uint32_t n_prompt,
                                                  uint32_t n_window) const;

    // what takes the place of a prompt's cells
    struct compacted {
        std::unique_ptr<headkv_kept_prompt> kept;
        std::unique_ptr<llama_kv_cache> tail;
        int64_t t_select_end_us;
    };

    // of the prompt in cells, as it was observed; throws headkv_error
    compacted make_compacted(const headkv_plan & plan, uint32_t n_threads) const;

    // The prompt is compacted from here on: these take the place of whatever there was. Cannot fail.
    //   exts, at_end: what is archived beside rows, none without an archive
    void commit(std::unique_ptr<headkv_kept_prompt> next, std::unique_ptr<llama_kv_cache> tail,
                std::vector<llama_kv_cell_ext> exts, std::shared_ptr<const headkv_bounded> at_end, int64_t t_start_us,
                int64_t t_select_end_us);

    // all positions in cells in order: cell[p]; throws unless they are p0, p0 + 1, ...
    std::vector<uint32_t> get_prompt_cells(uint32_t p0 = 0) const;

    // is the attention of all tokens recorded that are to select from a prompt of n_prompt tokens
    bool has_record(size_t n_prompt) const;

    // throws unless the cells, with kept rows, are those of a sequence without gaps
    void require_sound() const;

    // throws headkv_error unless these are rows of the compacted prompt; returns the layer
    uint32_t require_rows(int32_t layer, int32_t first, int32_t n, const void * rows, size_t size) const;

    // is the row of position p, in cells or not to be compared, the one that is held
    bool is_held_as(int32_t id, uint32_t p) const;

    void set_cells(llama_context & ctx, llama_io_read_i & io, size_t size);
    void set_end(llama_context & ctx, llama_io_read_i & io, size_t size);

    // Kept rows as other threads may know of them: those that a draft is made with are not the prompt's.
    const headkv_kept_prompt * get_shown() const { return n_drafted == 0 ? kept.get() : nullptr; }
    const headkv_kept_prompt & require_kept() const;
    size_t n_bytes_recorded() const;
    void update_peak(size_t extra);
    void count_cells();

    mutable std::unique_ptr<llama_hparams> hparams_unallocated; // of cells that get their memory afterwards

    const ggml_type type_of_k;
    const ggml_type type_of_v;
    const bool offload;
    const uint32_t n_ctx;
    bool retains       = false; // else all of this is the base class's
    bool has_recurrent = false; // is it the attention half of a hybrid memory
    bool placing       = false; // the base class tries where ubatches can be

    llama_context * lctx = nullptr; // whose memory this is; known once something is decoded or changed

    // Held where what other threads may ask for changes: the two below, cells, n_cells, n_drafted, bytes_peak and the
    // times. The one thread that changes them reads them without.
    mutable std::mutex mutex;

    std::unique_ptr<headkv_kept_prompt> kept;
    std::unique_ptr<headkv_observer> obs;
    std::unique_ptr<headkv_queries> queries;

    // The full rows of the prompt, where they are kept. While it is compacted, those of all its positions; what else
    // cells knew of them; and what bounded layers held at its end.
    std::unique_ptr<headkv_archive> archive;
    std::vector<llama_kv_cell_ext> archived;
    std::shared_ptr<const headkv_bounded> archived_end;

    struct held_prompt {
        std::vector<llama_kv_cell_ext> archived;
        std::shared_ptr<const headkv_bounded> end;
    };

    std::map<int32_t, held_prompt> held; // in the archive, by number
    int32_t last_held = 0;               // of any archive

    reading * read = nullptr; // of the prompt that is read now by prefill()

    std::vector<uint32_t> placed; // cells where the base class tried to put the batch that came last
    std::exception_ptr refusal;   // why they had no room for it

    // The layers that retain, in their order: by a number of their own, ikv.
    std::vector<headkv_layer_shape> shapes;
    std::vector<uint32_t> retained;      // where they are among all of the cache
    std::map<int32_t, uint32_t> readers; // ikv by the layer that reads its K and V
    size_t n_heads = 0;                  // KV heads, summed over them

    uint32_t n_expected = 0; // tokens of the prompt, 0 if not known; until the next clear()

    uint64_t epoch = 0;

    uint32_t n_reserved = 0; // cells that compute buffers were last reserved for

    mutable std::atomic<int32_t> n_splits = 0; // of the last graph
    size_t hidden_row                     = 0; // 0: not known yet
    std::string uncut;                         // why graphs of this model cannot be cut, as far as it is known

    uint32_t n_cells     = 0; // in use, of whole ubatches
    uint32_t n_drafted   = 0; // tokens of the prompt that a draft is made for now
    size_t bytes_full    = 0;
    size_t bytes_peak    = 0;
    int64_t t_select_us  = 0;
    int64_t t_compact_us = 0;
};
