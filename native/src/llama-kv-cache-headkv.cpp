#include "llama-kv-cache-headkv.h"

#include "headkv-error.h"
#include "headkv-guard.h"
#include "headkv-io.h"
#include "headkv-threads.h"
#include "llama-batch.h"
#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

// cells of the tail right after compaction; it doubles when it is full
static constexpr uint32_t n_tail_min = 128;

// a dormant cache has a multiple of so many cells, as long as the context has: the stock cache attends to as many at
// once
static constexpr uint32_t n_live_pad = 256;

// first word of a compacted state, where the stock format has the number of streams
static constexpr uint32_t state_magic = 0x564b4448; // "HDKV"

static size_t total_size(const llama_kv_cache & kv) {
    size_t res = 0;
    for (const auto & [_, size] : kv.memory_breakdown()) {
        res += size;
    }
    return res;
}

//
// llama_kv_cache_headkv
//

std::string llama_kv_cache_headkv::unsupported(const llama_model & model, const llama_cparams & cparams) {
    const auto & hparams = model.hparams;

    const char * HEADKV_DISABLE = getenv("HEADKV_DISABLE");
    if (HEADKV_DISABLE && atoi(HEADKV_DISABLE)) {
        return "switched off by HEADKV_DISABLE";
    }
    if (llm_arch_is_recurrent(model.arch) || llm_arch_is_hybrid(model.arch)) {
        return "the model has recurrent layers";
    }
    if (hparams.swa_type != LLAMA_SWA_TYPE_NONE || hparams.is_swa_any()) {
        return "the model has sliding-window layers";
    }
    if (hparams.is_mla()) {
        return "the model has MLA layers, which cache no V";
    }
    if (llama_model_has_encoder(&model)) {
        return "the model has an encoder";
    }
    if (hparams.use_alibi || hparams.f_max_alibi_bias > 0.0f) {
        return "the model has ALiBi positions";
    }
    if (hparams.n_pos_per_embd() != 1) {
        return "the model has several positions per token";
    }
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        if (!hparams.has_kv(il) || hparams.n_head(il) != hparams.n_head() ||
            hparams.n_head_kv(il) != hparams.n_head_kv() || hparams.n_embd_head_k(il) != hparams.n_embd_head_k() ||
            hparams.n_embd_head_v(il) != hparams.n_embd_head_v()) {
            return format("layer %u of the model has other heads than layer 0", il);
        }
    }
    if (!cparams.causal_attn) {
        return "the context's attention is not causal";
    }
    if (cparams.n_seq_max != 1) {
        return format("the context is for %u sequences, only 1 is supported", cparams.n_seq_max);
    }
    if (!cparams.flash_attn) {
        return "the context has flash attention off";
    }
    if (cparams.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        return "the context is a draft head's";
    }
    if (model.split_mode() == LLAMA_SPLIT_MODE_TENSOR) {
        return "the model's tensors are split over devices";
    }

    return "";
}

llama_kv_cache_headkv * llama_kv_cache_headkv::create(const llama_model & model, const llama_memory_params & params,
                                                      const llama_cparams & cparams, const layer_filter_cb & filter) {
    const std::string reason = unsupported(model, cparams);
    if (!reason.empty()) {
        LLAMA_LOG_DEBUG("%s: no head retention: %s\n", __func__, reason.c_str());
        return nullptr;
    }

    return new llama_kv_cache_headkv(model, params, cparams, filter);
}

llama_kv_cache_headkv::llama_kv_cache_headkv(const llama_model & model, const llama_memory_params & params,
                                             const llama_cparams & cparams, const layer_filter_cb & filter)
    : model(model),
      type_k(params.type_k),
      type_v(params.type_v),
      offload(cparams.offload_kqv),
      n_ctx(cparams.n_ctx_seq),
      n_head_kv(model.hparams.n_head_kv()),
      filter(filter) {
    live = make_live(n_ctx);

    bytes_full = total_size(*live);
    bytes_peak = bytes_full;

    for (const uint32_t il : live->get_layer_ids()) {
        shapes.push_back({
            (int32_t) il,
            offload ? ggml_backend_dev_buffer_type(model.dev_layer(il)) : ggml_backend_cpu_buffer_type(),
            type_k,
            type_v,
            model.hparams.n_embd_head_k(il),
            model.hparams.n_embd_head_v(il),
        });
    }
}

std::unique_ptr<llama_kv_cache> llama_kv_cache_headkv::make_live(uint32_t n_cells) const {
    return std::make_unique<llama_kv_cache>(
        model, model.hparams, type_k, type_v, /*v_trans =*/false, offload, /*unified =*/true, n_cells,
        /*n_seq_max =*/1, /*n_pad =*/1, /*n_swa =*/0, LLAMA_SWA_TYPE_NONE, nullptr, filter, nullptr, nullptr);
}

void llama_kv_cache_headkv::wait() const {
    if (lctx) {
        ggml_backend_sched_synchronize(lctx->get_sched()); // lctx->synchronize() would end the timing of a batch
    }
}

void llama_kv_cache_headkv::reserve(uint32_t n_new) {
    const uint32_t n_limit = n_ctx - (pool ? pool->get_n_prompt() : 0);
    const uint32_t n_used  = live->get_cells(0).get_used();

    const uint32_t n_needed = n_used + n_new;
    if (n_needed > n_limit) {
        throw headkv_error(HEADKV_ERR_STATE,
                           format("the context of %u positions is full: %u are taken, %u more were asked for", n_ctx,
                                  n_ctx - n_limit + n_used, n_new));
    }
    // a prompt gets room for all of it, if it is known how long it is, else for the whole context
    const uint32_t n_room = pool ? n_needed : std::max(n_needed, n_expected > 0 ? n_expected : n_ctx);
    const uint32_t n_now  = live->get_size();
    if (n_room <= n_now && (pool || n_now == n_ctx || n_now % n_live_pad == 0)) {
        return;
    }

    uint32_t n_cells = GGML_PAD(n_room, n_live_pad);
    if (pool || n_used > 0) { // rows have to move, but not each time
        for (n_cells = pool ? n_tail_min : n_live_pad; n_cells < n_room; n_cells *= 2) {}
    }
    n_cells = std::min(n_cells, n_limit);

    if (live->get_has_shift()) { // is not carried over
        throw headkv_error(HEADKV_ERR_STATE, "positions were shifted, and the next batch is to rotate their keys: "
                                             "decode it first");
    }
    wait();

    std::unique_ptr<llama_kv_cache> next;
    try {
        next = make_live(n_cells);
    } catch (const std::exception &) {
        throw headkv_error(HEADKV_ERR_MEMORY, format("no memory for a KV cache of %u cells", n_cells));
    }

    if (n_used > 0) {
        headkv_io_write io_write;
        live->state_write(io_write, 0);
        headkv_io_read io_read(io_write.data);
        next->state_read(io_read, 0);
    }

    {
        const std::lock_guard<std::mutex> lock(mutex);
        update_peak(total_size(*next));
        live.swap(next);
    }
    if (obs) {
        obs->remove(0); // the cells may have moved
    }
    epoch++;
}

llama_memory_context_ptr llama_kv_cache_headkv::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch,
                                                           bool embd_all) {
    GGML_UNUSED(embd_all);

    last_error.clear(); // if this decode fails, what failed before it is not the cause
    headkv_thread_error_of = nullptr;

    try {
        reserve(balloc.get_n_tokens());

        balloc.split_reset();

        const llama_pos p0 = live->seq_pos_max(0) + 1;
        const size_t n_kv  = live->get_cells(0).get_used() + balloc.get_n_tokens();

        std::vector<llama_ubatch> ubatches;
        while (true) {
            const llama_pos p = p0 + (llama_pos) balloc.get_n_used();
            auto ubatch = balloc.split_simple(obs ? obs->limit(p, n_ubatch, n_kv, model.hparams.n_head()) : n_ubatch);
            if (ubatch.n_tokens == 0) {
                break;
            }
            ubatches.push_back(std::move(ubatch)); // NOLINT
        }

        if (balloc.get_n_used() < balloc.get_n_tokens()) {
            throw headkv_error(HEADKV_ERR_INTERNAL, "the batch could not be split");
        }

        auto sinfos = live->prepare(ubatches);
        if (sinfos.empty()) {
            throw headkv_error(HEADKV_ERR_INTERNAL, "the live cache has no slot for the batch");
        }

        return std::make_unique<llama_kv_cache_headkv_context>(this, live.get(), std::move(sinfos),
                                                               std::move(ubatches));
    } catch (const std::exception & err) {
        headkv_set_error(last_error, err.what());
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
    }

    return std::make_unique<llama_kv_cache_headkv_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
}

llama_memory_context_ptr llama_kv_cache_headkv::init_full() {
    n_reserved = live->get_size(); // what is made with it reserves compute buffers for all cells

    return std::make_unique<llama_kv_cache_headkv_context>(this, live.get());
}

llama_memory_context_ptr llama_kv_cache_headkv::init_update(llama_context * lctx, bool optimize) {
    this->lctx = lctx;

    reserve_compute();

    return live->init_update(lctx, optimize);
}

void llama_kv_cache_headkv::reserve_compute() const {
    if (!lctx || live->get_size() == n_reserved) {
        return;
    }
    // reserving takes these for its own, and the last two may be those of a batch that has begun
    auto state =
        std::tie(lctx->cparams.n_outputs_max, lctx->n_outputs, lctx->n_queued_tokens, lctx->t_compute_start_us);
    const std::tuple<uint32_t, uint32_t, int64_t, int64_t> before = state;

    // Room for the logits of one token, where llama.cpp reserves it for those of a whole ubatch, which few ask for: a
    // batch that does gets it then. Samplers in the graph could not: it would have more nodes than are reserved.
    if (lctx->sampling.samplers.empty()) {
        lctx->cparams.n_outputs_max = 1;
    }
    lctx->n_queued_tokens    = 0;
    lctx->sched_need_reserve = true;
    try {
        lctx->sched_reserve();
    } catch (const std::exception & err) { // a batch asks by itself for the buffers that are not there
        lctx->gf_res_prev_active = nullptr;
        LLAMA_LOG_WARN("%s: %s\n", __func__, err.what());
    }
    state = before;
}

bool llama_kv_cache_headkv::get_can_shift() const {
    return !pool && live->get_can_shift();
}

void llama_kv_cache_headkv::clear(bool data) {
    const bool is_empty = !pool && live->get_cells(0).get_used() == 0; // the prompt is still to come

    if (pool || obs) {
        wait();
    }
    const std::lock_guard<std::mutex> lock(mutex);

    if (!is_empty) {
        n_expected = 0;
        obs.reset();
    }
    pool.reset();
    ends.clear();

    live->clear(data);

    n_live     = 0;
    bytes_peak = total_size(*live) + (obs ? obs->get_buffers().size() : 0);
    epoch++;
}

bool llama_kv_cache_headkv::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    // the pool holds sequence 0, the only one that can have tokens; -1 is any sequence
    if (seq_id > 0) {
        return live->seq_rm(seq_id, p0, p1); // has none
    }

    p0 = std::max(p0, 0);
    p1 = p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1;

    if (p0 >= p1) {
        return true;
    }

    if (p0 == 0 && p1 > seq_pos_max(0)) {
        clear(false);
        return true;
    }

    if (pool && p0 < (llama_pos) pool->get_n_prompt()) {
        return false;
    }

    if (obs) {
        obs->remove(p0);
    }
    ends.clear();

    const bool res = live->seq_rm(seq_id, p0, p1);
    count_live();
    return res;
}

void llama_kv_cache_headkv::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    if (pool && seq_id_src != seq_id_dst) {
        LLAMA_LOG_ERROR("%s: a compacted sequence cannot be copied\n", __func__);
        return;
    }
    live->seq_cp(seq_id_src, seq_id_dst, p0, p1);
}

void llama_kv_cache_headkv::seq_keep(llama_seq_id seq_id) {
    if (pool && seq_id != 0) {
        clear(false);
        return;
    }
    live->seq_keep(seq_id);
    count_live();
}

void llama_kv_cache_headkv::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    if (pool) {
        LLAMA_LOG_ERROR("%s: the positions of a compacted sequence cannot be shifted\n", __func__);
        return;
    }
    live->seq_add(seq_id, p0, p1, shift);
    count_live(); // positions below 0 are gone
}

void llama_kv_cache_headkv::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    if (pool) {
        LLAMA_LOG_ERROR("%s: the positions of a compacted sequence cannot be divided\n", __func__);
        return;
    }
    live->seq_div(seq_id, p0, p1, d);
}

llama_pos llama_kv_cache_headkv::seq_pos_min(llama_seq_id seq_id) const {
    return pool && seq_id == 0 ? 0 : live->seq_pos_min(seq_id);
}

llama_pos llama_kv_cache_headkv::seq_pos_max(llama_seq_id seq_id) const {
    const llama_pos res = live->seq_pos_max(seq_id);

    return pool && seq_id == 0 && res < 0 ? (llama_pos) pool->get_n_prompt() - 1 : res;
}

std::map<ggml_backend_buffer_type_t, size_t> llama_kv_cache_headkv::memory_breakdown() const {
    const std::lock_guard<std::mutex> lock(mutex);

    auto res = live->memory_breakdown();
    if (pool) {
        pool->get_buffers().add_breakdown(res);
    }
    if (obs) {
        obs->get_buffers().add_breakdown(res);
    }
    return res;
}

void llama_kv_cache_headkv::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    if (pool && seq_id <= 0) {
        const uint32_t n_tail = live->get_cells(0).get_used();

        io.write(&state_magic, sizeof(state_magic));
        io.write(&n_tail, sizeof(n_tail));
        pool->state_write(io);
    }
    live->state_write(io, seq_id, flags);
}

void llama_kv_cache_headkv::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    if (seq_id > 0) {
        live->state_read(io, seq_id, flags);
        return;
    }

    // what is here is replaced, whatever comes
    clear(false);

    uint32_t word;
    io.read(&word, sizeof(word));

    if (word != state_magic) {
        reserve(0);
        headkv_io_unread unread(io, word);
        try {
            live->state_read(unread, seq_id, flags);
        } catch (...) {
            count_live();
            throw;
        }
        count_live();
        return;
    }

    uint32_t n_tail;
    io.read(&n_tail, sizeof(n_tail));

    auto next = headkv_pool::state_read(io, shapes, n_head_kv, n_ctx);
    if (n_tail > n_ctx - next->get_n_prompt()) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the state's tail does not fit this context");
    }

    auto tail = make_live(std::min(std::max(n_tail, n_tail_min), std::max(1u, n_ctx - next->get_n_prompt())));
    tail->state_read(io, seq_id, flags);

    const std::lock_guard<std::mutex> lock(mutex);

    pool   = std::move(next);
    live   = std::move(tail);
    n_live = n_tail;
    update_peak(0);
}

//
// headkv API
//

void llama_kv_cache_headkv::configure(int32_t window, int32_t kernel, int32_t sinks) {
    if (window < 1 || window > (int32_t) n_ctx) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("window must be from 1 to %u, not %d", n_ctx, window));
    }
    if (kernel < 1 || kernel % 2 == 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("kernel must be odd and positive, not %d", kernel));
    }
    if (sinks < 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("sinks must not be negative, not %d", sinks));
    }
    if (pool) {
        throw headkv_error(HEADKV_ERR_STATE, "the cache is compacted: clear it before it is configured anew");
    }

    {
        const std::lock_guard<std::mutex> lock(mutex);
        obs.reset(); // of another window, or left by a compaction that failed
    }
    epoch++;

    params = { (uint32_t) window, (uint32_t) kernel, (uint32_t) sinks };
    caps.clear();
    ends.clear();
}

void llama_kv_cache_headkv::set_budgets(const int32_t * next, size_t n) {
    require_length(n, shapes.size() * n_head_kv);

    for (size_t i = 0; i < n; ++i) {
        if (next[i] < (int32_t) params.window) {
            throw headkv_error(HEADKV_ERR_ARGUMENT,
                               format("the cap of layer %zu, KV head %zu is %d, less than the window of %u",
                                      i / n_head_kv, i % n_head_kv, next[i], params.window));
        }
    }

    caps.assign(next, next + n);
}

void llama_kv_cache_headkv::set_sentences(const uint8_t * next, size_t n) {
    if (pool) {
        throw headkv_error(HEADKV_ERR_STATE, "the cache is compacted already");
    }
    require_length(n, live->get_cells(0).get_used());

    ends.assign(next, next + n);
}

void llama_kv_cache_headkv::expect(int32_t n) {
    if (n < 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("a prompt cannot have %d tokens", n));
    }
    if (n > (int32_t) n_ctx) {
        throw headkv_error(HEADKV_ERR_STATE, format("the context has %u positions, not %d", n_ctx, n));
    }
    if (pool) {
        throw headkv_error(HEADKV_ERR_STATE, "the cache is compacted: clear it before it gets room for another prompt");
    }

    const uint32_t before = n_expected;
    n_expected            = n;
    try {
        reserve(0);
    } catch (...) {
        n_expected = before;
        throw;
    }
}

void llama_kv_cache_headkv::observe(int32_t what, int32_t first, int32_t n, const float * weights) {
    if (what < HEADKV_OBSERVE_OFF || what > HEADKV_OBSERVE_ROWS) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("there is no kind of observation %d", what));
    }
    if (what == HEADKV_OBSERVE_TOKENS && (first < 0 || n < 1 || n > (int32_t) n_ctx - first)) {
        throw headkv_error(
            HEADKV_ERR_ARGUMENT,
            format("%d tokens from position %d on cannot be observed in a context of %u", n, first, n_ctx));
    }
    std::vector<float> weigh(what == HEADKV_OBSERVE_TOKENS ? n : 0, 1.0f);
    if (weights) {
        std::copy(weights, weights + weigh.size(), weigh.begin());
    }
    if (std::any_of(weigh.begin(), weigh.end(), [](float x) { return !(x >= 0.0f && x <= 1.0f); })) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the weight of an observed token must be from 0 to 1");
    }
    if (what == HEADKV_OBSERVE_TOKENS && *std::max_element(weigh.begin(), weigh.end()) == 0.0f) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "at least one observed token must have a weight above 0");
    }
    if (pool) {
        throw headkv_error(HEADKV_ERR_STATE, "the cache is compacted: clear it before it is observed again");
    }

    if (what == HEADKV_OBSERVE_OFF) {
        if (obs) {
            obs->on = false;
        }
    } else {
        const bool rows = what == HEADKV_OBSERVE_ROWS;

        reserve(0);
        auto next =
            std::make_unique<headkv_observer>(rows ? headkv_observer::ROWS : headkv_observer::TOKENS, shapes, n_ctx,
                                              rows ? model.hparams.n_head() : n_head_kv, first, std::move(weigh));
        const std::lock_guard<std::mutex> lock(mutex);
        update_peak(next->get_buffers().size());
        obs = std::move(next);
    }

    epoch++;
}

std::vector<uint32_t> llama_kv_cache_headkv::get_prompt_cells() const {
    const auto & cells = live->get_cells(0);

    std::vector<uint32_t> res(cells.get_used(), std::numeric_limits<uint32_t>::max());
    if (res.empty()) {
        throw headkv_error(HEADKV_ERR_STATE, "there is no prompt in the cache");
    }

    for (uint32_t i = 0; i < cells.size(); ++i) {
        if (cells.is_empty(i)) {
            continue;
        }
        const llama_pos p = cells.pos_get(i);
        if (p < 0 || p >= (llama_pos) res.size()) {
            throw headkv_error(HEADKV_ERR_STATE, "the positions in the cache have gaps");
        }
        res[p] = i;
    }

    return res;
}

std::vector<float> llama_kv_cache_headkv::read_record(uint32_t ikv, const std::vector<uint32_t> & cell) const {
    const size_t n_cells = 1 + *std::max_element(cell.begin(), cell.end());

    std::vector<float> record;
    obs->read(ikv, n_cells, record);

    std::vector<float> res(record.size() / n_cells * cell.size());
    float * to = res.data();
    for (size_t row = 0; row < record.size(); row += n_cells) {
        to = std::transform(cell.begin(), cell.end(), to, [&](uint32_t c) { return record[row + c]; });
    }
    return res;
}

std::vector<float> llama_kv_cache_headkv::read_attention(uint32_t ikv, const std::vector<uint32_t> & cell) const {
    std::vector<float> w = read_record(ikv, cell);
    if (obs->counts() && std::none_of(w.begin(), w.end(), [](float x) { return x > 0.0f; })) {
        throw headkv_error(HEADKV_ERR_UNSUPPORTED,
                           format("the attention of layer %d could not be recorded", shapes[ikv].il));
    }

    const float scale = 1.0f / (obs->get_n_tokens() * (model.hparams.n_head() / n_head_kv));
    for (float & x : w) {
        x = x > 0.0f ? std::sqrt(std::sqrt(scale * x))
                     : 0.0f; // a model that makes NaN is no reason to select at random
    }
    return w;
}

// A head is trusted as far as its cap is above the smallest one; equal caps trust none, and every head decides alone.
std::vector<float> llama_kv_cache_headkv::get_votes(const std::vector<uint32_t> & cell, const headkv_parts & parts,
                                                    uint32_t n_threads) const {
    std::vector<int32_t> kept(caps.size());
    std::transform(caps.begin(), caps.end(), kept.begin(),
                   [&](int32_t cap) { return std::min(cap, (int32_t) cell.size()); });
    const int32_t least = *std::min_element(kept.begin(), kept.end());
    if (std::all_of(kept.begin(), kept.end(), [&](int32_t k) { return k == least; })) {
        return {};
    }

    // by layer, and added up in their order: the number of threads changes nothing but the time
    std::vector<std::vector<double>> by_layer(shapes.size(), std::vector<double>(parts.candidates));
    headkv_for_each(shapes.size(), n_threads, [&](uint32_t ikv) {
        const std::vector<float> w = read_attention(ikv, cell);
        for (uint32_t h = 0; h < n_head_kv; ++h) {
            const double weight = kept[ikv * n_head_kv + h] - least;
            headkv_vote(&w[h * cell.size()], parts, weight, params, by_layer[ikv].data());
        }
    });

    std::vector<float> res(parts.candidates);
    for (uint32_t i = 0; i < parts.candidates; ++i) {
        double sum = 0.0;
        for (const auto & votes : by_layer) {
            sum += votes[i];
        }
        res[i] = sum;
    }
    return res;
}

void llama_kv_cache_headkv::compact(uint32_t n_threads) {
    if (pool) {
        throw headkv_error(HEADKV_ERR_STATE, "the cache is compacted already");
    }
    if (caps.empty()) {
        throw headkv_error(HEADKV_ERR_STATE, "no budgets are set");
    }

    const auto cell = get_prompt_cells();

    const uint32_t n_prompt = cell.size();

    if (n_prompt < params.window) {
        throw headkv_error(HEADKV_ERR_STATE,
                           format("the prompt of %u tokens is shorter than the window of %u", n_prompt, params.window));
    }
    if (!has_record(n_prompt)) {
        throw headkv_error(HEADKV_ERR_STATE,
                           "all tokens that are to be observed must be decoded, the prompt's last one "
                           "among them or behind it, and none of the prompt be taken back since");
    }

    // select

    const int64_t t_start_us = ggml_time_us();

    headkv_keep keep(shapes.size(), std::vector<std::vector<int32_t>>(n_head_kv));

    const auto parts = headkv_divide(n_prompt, ends.empty() ? nullptr : ends.data(), params);
    const auto votes = get_votes(cell, parts, n_threads);

    // layers do not depend on each other, so the number of threads changes nothing but the time
    headkv_for_each(shapes.size(), n_threads, [&](uint32_t ikv) {
        const std::vector<float> w = read_attention(ikv, cell);
        for (uint32_t h = 0; h < n_head_kv; ++h) {
            headkv_select(&w[(size_t) h * n_prompt], votes.empty() ? nullptr : votes.data(), parts,
                          caps[ikv * n_head_kv + h], params, keep[ikv][h]);
        }
    });

    // allocate

    const int64_t t_select_end_us = ggml_time_us();

    auto next = std::make_unique<headkv_pool>(shapes, n_prompt, std::move(keep));

    std::unique_ptr<llama_kv_cache> tail;
    try {
        tail = make_live(std::min(n_tail_min, std::max(1u, n_ctx - n_prompt)));
    } catch (const std::exception &) {
        throw headkv_error(HEADKV_ERR_MEMORY, "no memory for the tail");
    }

    headkv_gather gather;
    next->add_to(gather);
    gather.prepare();

    // gather

    const ggml_init_params ctx_params = {
        /*.mem_size   =*/ggml_tensor_overhead(),
        /*.mem_buffer =*/nullptr,
        /*.no_alloc   =*/true,
    };
    for (uint32_t ikv = 0; ikv < shapes.size(); ++ikv) {
        // the stock cache shows its V only as a view
        ggml_context_ptr ctx(ggml_init(ctx_params));

        llama_kv_cache::slot_info sinfo;
        sinfo.s0 = 0;
        sinfo.s1 = 0;

        const int32_t il = shapes[ikv].il;
        next->fill(gather, ikv, live->get_k_storage(il), live->get_v(ctx.get(), il, 1, sinfo)->view_src, cell);
    }

    // commit; nothing can fail from here on

    {
        const std::lock_guard<std::mutex> lock(mutex);
        update_peak(next->get_buffers().size() + total_size(*tail));

        pool = std::move(next);
        live.swap(tail);
        obs.reset();
        n_live       = 0;
        t_select_us  = t_select_end_us - t_start_us;
        t_compact_us = ggml_time_us() - t_select_end_us;
    }
    ends.clear();
    epoch++;

    tail.reset(); // by now the full cache
    reserve_compute();

    const std::lock_guard<std::mutex> lock(mutex);
    t_compact_us = ggml_time_us() - t_select_end_us;
}

void llama_kv_cache_headkv::get_attention(float * w, size_t n) const {
    const auto cell = get_prompt_cells();
    if (!has_record(cell.size())) {
        throw headkv_error(HEADKV_ERR_STATE, "there is no complete record of the observed tokens' attention");
    }
    require_length(n, shapes.size() * n_head_kv * cell.size());

    for (uint32_t ikv = 0; ikv < shapes.size(); ++ikv) {
        const std::vector<float> layer = read_attention(ikv, cell);
        w                              = std::copy(layer.begin(), layer.end(), w);
    }
}

void llama_kv_cache_headkv::get_rows(int32_t layer, float * w, size_t n) const {
    const auto cell = get_prompt_cells();
    if (!obs || obs->get_mode() != headkv_observer::ROWS || !obs->has_seen((llama_pos) cell.size() - 1)) {
        throw headkv_error(HEADKV_ERR_STATE, "the attention of the last token is not recorded");
    }
    if (layer < 0 || layer >= (int32_t) shapes.size()) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("there is no layer %d, there are %zu", layer, shapes.size()));
    }
    require_length(n, model.hparams.n_head() * cell.size());

    const std::vector<float> rows = read_record(layer, cell);
    std::copy(rows.begin(), rows.end(), w);
}

void llama_kv_cache_headkv::get_kept(int32_t * kept, size_t n) const {
    const std::lock_guard<std::mutex> lock(mutex);

    require_pool();
    require_length(n, shapes.size() * n_head_kv);

    for (const auto & layer : pool->get_keep()) {
        for (const auto & positions : layer) {
            *kept++ = positions.size();
        }
    }
}

void llama_kv_cache_headkv::get_mask(uint8_t * mask, size_t n) const {
    const std::lock_guard<std::mutex> lock(mutex);

    require_pool();
    require_length(n, shapes.size() * n_head_kv * pool->get_n_prompt());

    std::fill(mask, mask + n, 0);
    for (const auto & layer : pool->get_keep()) {
        for (const auto & positions : layer) {
            for (const int32_t p : positions) {
                mask[p] = 1;
            }
            mask += pool->get_n_prompt();
        }
    }
}

headkv_stats llama_kv_cache_headkv::get_stats() const {
    const std::lock_guard<std::mutex> lock(mutex);

    const auto & s = shapes[0];

    headkv_stats res;
    res.n_layer      = shapes.size();
    res.n_head       = model.hparams.n_head();
    res.n_head_kv    = n_head_kv;
    res.n_ctx        = n_ctx;
    res.n_prompt     = pool ? pool->get_n_prompt() : 0;
    res.n_kept       = pool ? pool->get_n_rows() : 0;
    res.n_live       = n_live;
    res.row_bytes    = ggml_row_size(s.type_k, s.d_k) + ggml_row_size(s.type_v, s.d_v);
    res.bytes_full   = bytes_full;
    res.bytes_live   = total_size(*live);
    res.bytes_pool   = pool ? pool->get_buffers().size() : 0;
    res.bytes_obs    = obs ? obs->get_buffers().size() : 0;
    res.bytes_peak   = bytes_peak;
    res.t_select_us  = t_select_us;
    res.t_compact_us = t_compact_us;
    res.n_splits     = n_splits;
    return res;
}

bool llama_kv_cache_headkv::has_record(size_t n_prompt) const {
    return obs && obs->get_mode() == headkv_observer::TOKENS && obs->covers(n_prompt);
}

void llama_kv_cache_headkv::require_length(size_t n, size_t n_expected) const {
    if (n != n_expected) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("%zu values were given room for or handed over, %zu are needed", n, n_expected));
    }
}

void llama_kv_cache_headkv::require_pool() const {
    if (!pool) {
        throw headkv_error(HEADKV_ERR_STATE, "the cache is not compacted");
    }
}

void llama_kv_cache_headkv::count_live() {
    const std::lock_guard<std::mutex> lock(mutex);
    n_live = live->get_cells(0).get_used();
}

void llama_kv_cache_headkv::update_peak(size_t extra) {
    const size_t now =
        total_size(*live) + (pool ? pool->get_buffers().size() : 0) + (obs ? obs->get_buffers().size() : 0) + extra;

    bytes_peak = std::max(bytes_peak, now);
}

//
// graph_build API
//

uint32_t llama_kv_cache_headkv::ikv_of(int32_t il) const {
    const auto it =
        std::find_if(shapes.begin(), shapes.end(), [&](const headkv_layer_shape & s) { return s.il == il; });
    GGML_ASSERT(it != shapes.end());
    return it - shapes.begin();
}

const headkv_observer * llama_kv_cache_headkv::get_observer(int32_t il, uint32_t & ikv) const {
    if (!obs || !obs->aims()) {
        return nullptr;
    }
    ikv = ikv_of(il);
    return obs.get();
}

const headkv_pool::layer * llama_kv_cache_headkv::get_pool(int32_t il) const {
    return pool ? &pool->get_layer(ikv_of(il)) : nullptr;
}

headkv_observer::inputs llama_kv_cache_headkv::build_inputs(ggml_context * ctx, uint32_t n_kv) const {
    return obs ? obs->build_inputs(ctx, n_kv, model.hparams.n_head() / n_head_kv) : headkv_observer::inputs{};
}

void llama_kv_cache_headkv::on_compute(const headkv_observer::inputs & in) const {
    if (obs) {
        obs->set_inputs(in);
    }
    n_splits = lctx ? ggml_backend_sched_get_n_splits(lctx->get_sched()) : 0;
}

void llama_kv_cache_headkv::on_apply(const llama_ubatch & ubatch) {
    if (obs && !obs->aim(ubatch, live->get_cells(0))) {
        epoch++;
    }
    ends.clear(); // those of the prompt without this ubatch
    count_live();
}

//
// llama_kv_cache_headkv_context
//

llama_kv_cache_headkv_context::llama_kv_cache_headkv_context(llama_memory_status status)
    : llama_kv_cache_context(status) {}

llama_kv_cache_headkv_context::llama_kv_cache_headkv_context(llama_kv_cache_headkv * mem, llama_kv_cache * live)
    : llama_kv_cache_context(live),
      mem(mem),
      full(true) {}

llama_kv_cache_headkv_context::llama_kv_cache_headkv_context(llama_kv_cache_headkv * mem, llama_kv_cache * live,
                                                             slot_info_vec_t sinfos, std::vector<llama_ubatch> ubatches)
    : llama_kv_cache_context(live, std::move(sinfos), std::move(ubatches)),
      mem(mem) {}

bool llama_kv_cache_headkv_context::apply() {
    if (!llama_kv_cache_context::apply()) {
        return false;
    }
    mem->on_apply(get_ubatch());
    return true;
}
