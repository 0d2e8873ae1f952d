#include "cache/llama-kv-cache-headkv.h"

#include "base/headkv-error.h"
#include "base/headkv-guard.h"
#include "base/headkv-scheduler.h"
#include "cache/headkv-hooks.h"
#include "llama-batch.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <limits>

// Some models have layers without attention (deci), and some files draft heads behind those that the model computes;
// graniteswitch has its router there.
static bool attends(const llama_hparams & hparams, uint32_t il) {
    const bool is_draft = il >= hparams.n_layer() && hparams.n_layer() > 0 && hparams.router_layer < 0;
    return !is_draft && hparams.n_head(il) > 0 && hparams.n_head_kv(il) > 0;
}

llama_kv_cache_headkv::llama_kv_cache_headkv(const llama_model & model, const llama_hparams & hparams, ggml_type type_k,
                                             ggml_type type_v, bool v_trans, bool offload, bool unified,
                                             uint32_t kv_size, uint32_t n_seq_max, uint32_t n_pad, uint32_t n_swa,
                                             llama_swa_type swa_type, llama_memory_t mem_other,
                                             const layer_filter_cb & filter, const layer_reuse_cb & reuse,
                                             const layer_share_cb & share)
    : llama_kv_cache(model, hparams, type_k, type_v, v_trans, offload, unified,
                     begin_small && n_seq_max == 1 ? std::min(kv_size, n_small) : kv_size, n_seq_max, n_pad, n_swa,
                     swa_type, mem_other, filter, reuse, share),
      type_of_k(type_k),
      type_of_v(type_v),
      offload(offload),
      n_ctx(kv_size) {
    headkv_require_scheduler(std::max<size_t>(1024, 8 * model.n_tensors())); // the context makes one next
    bytes_peak = size_of(*this);
    bytes_full = bytes_peak / get_size() * n_ctx;

    for (uint32_t i = 0; i < layers.size(); ++i) {
        const uint32_t il = layers[i].il;
        if (!attends(hparams, il)) {
            continue;
        }
        const size_t n_before = readers.size();
        for (const auto & [reader, of] : map_layer_ids) {
            if (of == (int32_t) i) {
                readers.emplace(reader, shapes.size());
            }
        }
        shapes.push_back({
            (int32_t) il,
            offload ? ggml_backend_dev_buffer_type(model.dev_layer(il)) : ggml_backend_cpu_buffer_type(),
            type_k,
            type_v,
            hparams.n_embd_head_k(il),
            hparams.n_embd_head_v(il),
            hparams.n_head(il),
            hparams.n_head_kv(il),
            (uint32_t) (readers.size() - n_before),
            attn_rot_k,
            attn_rot_v,
        });
        retained.push_back(i);
        n_heads += hparams.n_head_kv(il);
    }
    retains =
        n_seq_max == 1 && !v_trans && !other && !shapes.empty() && !hparams.is_mla() && swa_type == LLAMA_SWA_TYPE_NONE;
    if (!retains && !other && get_size() < kv_size) { // it never grows
        swap_cells(*make_cells(kv_size));
    }
}

void llama_kv_cache_headkv::wait() const {
    if (lctx) {
        ggml_backend_sched_synchronize(lctx->get_sched()); // lctx->synchronize() would end the timing of a batch
    }
}

bool llama_kv_cache_headkv::is_on_device() const {
    const ggml_backend_buffer_type_t buft = shapes.front().buft;
    return !ggml_backend_buft_is_host(buft) &&
           std::all_of(shapes.begin(), shapes.end(), [&](const auto & shape) { return shape.buft == buft; });
}

size_t llama_kv_cache_headkv::size_of(const llama_kv_cache & cells) {
    size_t res = 0;
    for (const auto & [_, size] : cells.llama_kv_cache::memory_breakdown()) {
        res += size;
    }
    return res;
}

//
// batches
//

llama_memory_context_ptr llama_kv_cache_headkv::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch,
                                                           bool embd_all) {
    if (!obs) {
        return llama_kv_cache::init_batch(balloc, n_ubatch, embd_all);
    }

    // as the base class does it, but with fewer tokens at once where they are observed
    balloc.split_reset();

    const llama_pos p0 = seq_pos_max(0) + 1;
    const size_t n_kv  = n_used() + balloc.get_n_tokens();

    std::vector<llama_ubatch> ubatches;
    while (true) {
        const llama_pos p = p0 + (llama_pos) balloc.get_n_used();
        auto ubatch       = balloc.split_simple(obs->limit(p, n_ubatch, n_kv));
        if (ubatch.n_tokens == 0) {
            break;
        }
        ubatches.push_back(std::move(ubatch)); // NOLINT
    }

    auto sinfos = prepare(ubatches);
    if (sinfos.empty() || balloc.get_n_used() < balloc.get_n_tokens()) {
        return std::make_unique<llama_kv_cache_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    }
    return std::make_unique<llama_kv_cache_context>(this, std::move(sinfos), std::move(ubatches));
}

llama_kv_cache::slot_info_vec_t llama_kv_cache_headkv::prepare(const std::vector<llama_ubatch> & ubatches) {
    if (!retains) {
        return llama_kv_cache::prepare(ubatches);
    }
    if (canceller.refuses("llama_decode")) {
        return {};
    }
    headkv_error_text.clear(); // if this decode fails, what failed before it is not the cause
    refusal = nullptr;

    placing       = true;
    uint32_t head = v_heads[0];
    placed.clear();
    slot_info_vec_t res;
    try {
        uint32_t n_new = 0;
        for (const auto & ubatch : ubatches) {
            n_new += ubatch.n_tokens;
        }
        if (!read) { // it has made room
            grow(n_new);
            head = v_heads[0];
        }
        res = llama_kv_cache::prepare(ubatches);
        if (res.empty()) {
            throw headkv_error(HEADKV_ERR_INTERNAL, "the cells have no slot for the batch");
        }
    } catch (const std::exception & err) {
        for (const uint32_t i : placed) { // the base class frees them again, but not where something is thrown
            if (!v_cells[0].is_empty(i)) {
                v_cells[0].rm(i);
            }
        }
        v_heads[0] = head;
        if (read) {
            placing = false;
            throw;
        }
        refusal = std::current_exception();
        headkv_set_error(err.what());
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
    }
    placing = false;
    return res;
}

void llama_kv_cache_headkv::apply_ubatch(const slot_info & sinfo, const llama_ubatch & ubatch) {
    if (retains && placing) {
        placed.insert(placed.end(), sinfo.idxs[0].begin(), sinfo.idxs[0].end());
    }
    llama_kv_cache::apply_ubatch(sinfo, ubatch);
    if (retains && !placing) {
        on_apply(ubatch);
    }
}

void llama_kv_cache_headkv::on_apply(const llama_ubatch & ubatch) {
    const bool same_obs     = !obs || obs->aim(ubatch, get_cells(0));
    const bool same_queries = !queries || queries->aim(ubatch); // both are told of each ubatch
    if (!same_obs || !same_queries || read) {
        epoch++;
    }
    canceller.must_finish = has_recurrent && ubatch.n_tokens == 1 && !read;
    count_cells();
}

llama_memory_context_ptr llama_kv_cache_headkv::init_full() {
    n_reserved = get_size(); // what is made with it reserves compute buffers for all cells

    return llama_kv_cache::init_full();
}

llama_memory_context_ptr llama_kv_cache_headkv::init_update(llama_context * lctx, bool optimize) {
    this->lctx    = lctx;
    has_recurrent = llama_model_is_hybrid(&model);
    if (retains && !canceller.calls_back) {
        fit_compute();
    }
    return llama_kv_cache::init_update(lctx, optimize);
}

void llama_kv_cache_headkv::forget_archived() {
    archived.clear();
    archived_end.reset();
    if (archive) {
        archive->clear();
    }
}

//
// sequences
//

bool llama_kv_cache_headkv::get_can_shift() const {
    return !kept && llama_kv_cache::get_can_shift();
}

void llama_kv_cache_headkv::clear(bool data) {
    if (!retains) {
        llama_kv_cache::clear(data);
        return;
    }
    if (canceller.refuses(__func__)) {
        return;
    }
    if (kept || n_used() > 0) { // else the prompt is still to come
        n_expected = 0;
        forget_observed();
    }
    forget_tokens(data);
}

void llama_kv_cache_headkv::forget_observed() {
    wait();
    const std::lock_guard<std::mutex> lock(mutex);
    obs.reset();
    epoch++;
}

void llama_kv_cache_headkv::forget_tokens(bool data) {
    if (kept || obs || queries) {
        wait();
    }
    const std::lock_guard<std::mutex> lock(mutex);

    kept.reset();
    queries.reset();
    forget_archived();

    llama_kv_cache::clear(data);

    n_cells    = 0;
    bytes_peak = size_of(*this) + (obs ? obs->size() : 0);
    epoch++;
}

bool llama_kv_cache_headkv::has_one_sequence() const {
    llama_seq_id other = 1;
    while (other < LLAMA_MAX_SEQ && get_cells(0).seq_pos_get(other).empty()) {
        other++;
    }
    return other == LLAMA_MAX_SEQ;
}

bool llama_kv_cache_headkv::can_take_out(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const {
    p0 = std::max(p0, 0);
    p1 = p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1;

    // Kept rows are those of sequence 0, the only one that can have tokens; -1 is any sequence. The window is in cells,
    // but what was kept was chosen for it.
    return !kept || seq_id > 0 || p0 >= p1 || p0 >= (llama_pos) kept->n_prompt || (p0 == 0 && p1 > seq_pos_max(0));
}

bool llama_kv_cache_headkv::take_out(llama_memory_i & mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (canceller.refuses(__func__) || !can_take_out(seq_id, p0, p1)) {
        return false;
    }
    if (seq_id <= 0 && (p1 < 0 || p1 > seq_pos_max(0)) && !put_back_end(p0)) {
        return false;
    }
    const bool is_empty = !kept && n_used() == 0;
    // the sequence by its name: recurrent layers refuse to go back in any, and the others would have done so
    const bool res = mem.seq_rm(kept ? std::max(seq_id, 0) : seq_id, p0, p1);
    if (retains && !is_empty && n_used() == 0) { // the prompt that was announced
        n_expected = 0;
        forget_observed();
    }
    return res;
}

bool llama_kv_cache_headkv::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (!retains || read) { // what is set aside while a prompt is read has to stay
        return llama_kv_cache::seq_rm(seq_id, p0, p1);
    }

    p0 = std::max(p0, 0);
    p1 = p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1;

    if (p0 >= p1) {
        return true;
    }
    if (seq_id <= 0 && p0 == 0 && p1 > seq_pos_max(0) && has_one_sequence()) {
        if (obs && obs->has_begun()) {
            forget_observed();
        }
        forget_tokens(false);
        return true;
    }

    if (obs && seq_id <= 0) {
        obs->remove(p0);
    }
    if (queries && seq_id <= 0) {
        queries->remove(p0);
    }

    const bool res = llama_kv_cache::seq_rm(seq_id, p0, p1);
    count_cells();
    return res;
}

bool headkv_seq_rm(llama_memory_i * mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    auto * kv = llama_kv_cache_headkv::find(mem);
    return kv ? kv->take_out(*mem, seq_id, p0, p1) : mem->seq_rm(seq_id, p0, p1);
}

bool headkv_is_fixed(llama_memory_i * mem, const char * asked) {
    const auto * kv = llama_kv_cache_headkv::find(mem);
    if (!kv || kv->canceller.refuses(asked) || !kv->is_compacted()) {
        return kv && kv->canceller.calls_back;
    }
    LLAMA_LOG_ERROR("%s: a compacted sequence cannot be copied, shifted or divided\n", asked);
    return true;
}

void llama_kv_cache_headkv::seq_keep(llama_seq_id seq_id) {
    if (retains && seq_id != 0 && has_one_sequence()) {
        clear(false);
        return;
    }
    llama_kv_cache::seq_keep(seq_id);
    count_cells();
}

// what was recorded is of other positions
void llama_kv_cache_headkv::forget_record() {
    if (obs) {
        obs->remove(0);
    }
    if (queries) {
        wait();
        const std::lock_guard<std::mutex> lock(mutex);
        queries.reset();
        epoch++;
    }
}

void llama_kv_cache_headkv::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    forget_record();
    llama_kv_cache::seq_add(seq_id, p0, p1, shift);
    count_cells(); // positions below 0 are gone
}

void llama_kv_cache_headkv::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    forget_record();
    llama_kv_cache::seq_div(seq_id, p0, p1, d);
}

llama_pos llama_kv_cache_headkv::seq_pos_min(llama_seq_id seq_id) const {
    return kept && seq_id == 0 ? 0 : llama_kv_cache::seq_pos_min(seq_id);
}

//
// graph_build API
//

const headkv_kept * llama_kv_cache_headkv::get_kept(int32_t il) const {
    if (!kept) {
        return nullptr;
    }
    const auto * res = kept->layers[ikv_of(il)].get();
    return res->get_n_rows() > 0 ? res : nullptr; // everything of it is in cells
}

headkv_record_inputs llama_kv_cache_headkv::build_inputs(ggml_context * ctx, uint32_t n_kv) const {
    return obs ? obs->build_inputs(ctx, n_kv) : headkv_record_inputs{};
}

void llama_kv_cache_headkv::on_compute(const headkv_record_inputs & in) const {
    if (obs) {
        obs->set_inputs(in);
    }
    n_splits = lctx ? ggml_backend_sched_get_n_splits(lctx->get_sched()) : 0;
}
