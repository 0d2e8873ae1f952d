// A question that stood before what it asks about is read once more behind the prompt, observed, and taken back.

#include "llama-context.h"
#include "llama-model.h"
#include "prefill/headkv-prefill.h"

#include <algorithm>

void llama_kv_cache_headkv::reading::read_behind() {
    const size_t n_vocab = ctx.get_model().vocab.n_tokens();
    const float * last   = ctx.get_logits_ith(-1);
    if (!last) { // samplers in the graph took its place: nothing says which token is the likeliest
        n_draft = 0;
    }
    const std::vector<float> logits(last, last ? last + n_vocab : nullptr);

    const auto go_back = [&]() {
        take_back();
        if (last) {
            std::copy(logits.begin(), logits.end(), ctx.get_logits_ith(-1));
        }
    };
    if (prompt.n_again > 0) {
        read_panels(prompt.again, prompt.n_again, n_prompt, /*keep =*/false);
        go_back();
    }
    t_select_us = ggml_time_us(); // reading a question once more is prefill
    if (n_draft > 0) {
        observe_draft();
        go_back();
    }
}

void llama_kv_cache_headkv::reading::take_back() {
    if (at_end) {
        headkv_bounded(*at_end).put_back();
    }
    if (in_cells) {
        kv.seq_rm(0, n_prompt, -1);
    }
}
