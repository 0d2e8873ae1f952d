// A prompt that is read into the cells that there are, and stays there if it is not read to its end.

#include "prefill/headkv-prefill.h"
#include "llama-context.h"
#include "llama-model.h"

void llama_kv_cache_headkv::reading::begin_in_cells() {
    if (n_past == 0) {
        ctx.get_memory()->clear(false);
    }
    kv.expect(n_prompt + prompt.n_again);
    if (!keeps_all) {
        const std::vector<float> weigh = weights();
        kv.observe(HEADKV_OBSERVE_TOKENS, prompt.first, weigh.size(), weigh.data(), again_at());
    }
    begun = true;
    slice = slices.front();
    kv.seq_rm(0, n_past, -1); // of bounded layers all stays then
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
