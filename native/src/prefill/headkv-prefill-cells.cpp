// A prompt that is read into the cells that there are, and stays there if it is not read to its end.

#include "prefill/headkv-prefill.h"
#include "llama-context.h"
#include "llama-model.h"

void llama_kv_cache_headkv::reading::begin_in_cells() {
    if (n_past == 0) {
        ctx.get_memory()->clear(false);
    }
    kv.expect(n_prompt + n_piece);
    if (!keeps_all) {
        kv.record_by(std::make_unique<headkv_observer>(headkv_observer::TOKENS, kv.shapes, n_cells_in_use(),
                                                       prompt.first, weights(), again_at()));
    }
    begun = true;
    slice = slices.front();
    ctx.get_memory()->seq_rm(0, n_past, -1);
    kv.v_heads[0] = 0; // new tokens take the first cells that are free
}

// So many of them, from the first one on, hold tokens or are looked at while the prompt is read. Of other sequences all
// stay.
uint32_t llama_kv_cache_headkv::reading::n_cells_in_use() const {
    const auto & cells = kv.get_cells(0);
    uint32_t n         = 0;
    uint32_t end       = 0;
    for (uint32_t i = 0; i < cells.used_max_p1(); ++i) {
        const bool goes = cells.is_empty(i) ||
                          (cells.seq_count(i) == 1 && cells.seq_has(i, 0) && cells.pos_get(i) >= (llama_pos) n_past);
        n   += !goes;
        end  = goes ? end : i + 1;
    }
    n += prompt.n_tokens + n_piece;
    return std::min<uint32_t>(kv.n_ctx, GGML_PAD(std::max(n, end), 256));
}

void llama_kv_cache_headkv::reading::begin_batch(llama_pos p0) {
    p_batch = p0;
    if (llama_model_is_hybrid(&ctx.get_model())) { // they cannot take back a part of a batch
        ctx.synchronize();
        unfinished = std::make_unique<headkv_bounded>(ctx.get_memory(), /*rows =*/true);
    }
}

void llama_kv_cache_headkv::reading::leave_cells() {
    if (unfinished) {
        unfinished->put_back();
    }
    if (p_batch >= 0 && (unfinished || bounded.reaches(p_batch))) { // else ubatches that are done stay
        ctx.get_memory()->seq_rm(0, p_batch, -1);
    }
    if (at_end) {
        at_end->put_back();
    }
    kv.seq_rm(0, n_prompt, -1); // what was read behind it
    free_lost(kv);
    bounded.free_lost();
    if (kv.n_used() == 0) {
        kv.n_expected = 0;
    }
    const std::lock_guard<std::mutex> lock(kv.mutex);
    kv.obs.reset();
    kv.epoch++;
}
