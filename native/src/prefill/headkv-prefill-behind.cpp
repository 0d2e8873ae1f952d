// What is decoded behind a prompt to see what it looks at, and taken back.

#include "llama-context.h"
#include "llama-model.h"
#include "prefill/headkv-prefill.h"

#include <algorithm>

void llama_kv_cache_headkv::reading::behind(const std::function<void()> & work) {
    const float * last = ctx.get_logits_ith(-1); // none where samplers in the graph took their place
    const std::vector<float> logits(last, last ? last + ctx.get_model().vocab.n_tokens() : nullptr);

    work();

    take_back();
    if (last) {
        std::copy(logits.begin(), logits.end(), ctx.get_logits_ith(-1));
    }
}

void llama_kv_cache_headkv::reading::take_back() {
    if (at_end) {
        headkv_bounded(*at_end).put_back();
    }
    kv.seq_rm(0, n_prompt, -1);
}
