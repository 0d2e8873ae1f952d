// Compute buffers that are as large as the cells want them.

#include "base/headkv-scheduler.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "slice/headkv-slice.h"

#include <algorithm>
#include <tuple>

void llama_kv_cache_headkv::fit_compute() const {
    if (lctx && get_size() != n_reserved) {
        lctx->headkv_fit_compute();
    }
}

bool llama_context::headkv_fit_compute() {
    // reserving takes these for its own, and the last two may be those of a batch that has begun
    auto state = std::tie(cparams.n_outputs_max, n_outputs, n_queued_tokens, t_compute_start_us);
    const std::tuple<uint32_t, uint32_t, int64_t, int64_t> before = state;

    // Room for the logits of one token, where llama.cpp reserves it for those of a whole ubatch, which few ask for: a
    // batch that does gets it then. Samplers in the graph could not: it would have more nodes than are reserved. Nor
    // can embeddings: their graph takes the mean of all tokens.
    if (sampling.samplers.empty() && !cparams.embeddings) {
        cparams.n_outputs_max = 1;
    }
    n_queued_tokens = 0;
    bool done       = false;
    try {
        headkv_require_scheduler(graph_max_nodes(std::min(cparams.n_ctx, cparams.n_ubatch)));
        sched_need_reserve = true;
        sched_reserve();
        done = true;
    } catch (const std::exception & err) { // a batch asks by itself for the buffers that are not there
        gf_res_prev_active = nullptr;
        LLAMA_LOG_WARN("%s: %s\n", __func__, err.what());
    }
    state = before;
    return done;
}

// By a graph of the cells that there are: the one that was reserved before may be of others, which are gone.
size_t llama_kv_cache_headkv::get_hidden_row(llama_context & ctx) {
    if (hidden_row == 0) {
        if (!ctx.headkv_fit_compute()) { // the graph that is there then may not have been built
            throw std::bad_alloc();
        }
        hidden_row = headkv_hidden_row(*ctx.get_gf_res_reserve(), hparams);
    }
    return hidden_row;
}
