// What is refused before anything of a prompt is read.

#include "base/headkv-error.h"
#include "base/headkv-guard.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"
#include "prefill/headkv-prefill.h"

#include <algorithm>

void llama_kv_cache_headkv::reading::require_prompt() const {
    if (prompt.order != HEADKV_ORDER_TOKENS && prompt.order != HEADKV_ORDER_LAYERS) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("there is no order %d", prompt.order));
    }
    if (keeps_all && (prompt.order != HEADKV_ORDER_TOKENS || kv.kept || prompt.n_again > 0)) {
        throw headkv_error(HEADKV_ERR_STATE, "all of a prompt can be kept in the cells where it is read in the order "
                                             "of tokens, nothing is read once more and nothing is compacted");
    }
    if (prompt.panel < 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("a panel cannot have %d tokens", prompt.panel));
    }
    if (prompt.n_tokens == 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the prompt has no new token");
    }
    if (prompt.n_past < 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("%d tokens cannot stay", prompt.n_past));
    }
    if (prompt.n_draft < 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("a draft cannot have %d tokens", prompt.n_draft));
    }
    const size_t n_free = n_past < kv.n_ctx ? kv.n_ctx - n_past : 0;
    const bool rereads  = !prompt.again_at && prompt.n_again == n_prompt; // the whole prompt, in pieces
    const size_t n_more = rereads ? std::max(n_piece, 1u) : prompt.n_again;
    if (prompt.n_tokens > n_free || n_more > n_free - prompt.n_tokens) {
        throw headkv_error(HEADKV_ERR_STATE,
                           format("the context of %u positions is too small: %u are taken, and %zu and %zu more were "
                                  "asked for",
                                  kv.n_ctx, n_past, prompt.n_tokens, n_more));
    }
    headkv_require_pointer(prompt.tokens);
    require_tokens(prompt.tokens, prompt.n_tokens);
    if (keeps_all) {
        return; // nothing is observed
    }
    headkv_require_pointer(prompt.weights);
    if (prompt.n_again > 0) {
        headkv_require_pointer(prompt.again);
        if (!rereads) {
            headkv_require_pointer(prompt.again_at);
        }
        require_tokens(prompt.again, prompt.n_again);
    }
    const size_t n_read = n_prompt + prompt.n_again;
    if (prompt.first < prompt.n_past || prompt.first > n_read || prompt.n_weights != n_read - prompt.first) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("%zu observed tokens from position %d on are not the last ones of the %zu from %u on",
                                  prompt.n_weights, prompt.first, prompt.n_tokens + prompt.n_again, n_past));
    }
    headkv_check_weights({ prompt.weights, prompt.weights + prompt.n_weights });
    headkv_check_again(again_at(), prompt.n_weights);
}

void llama_kv_cache_headkv::reading::require_tokens(const int32_t * tokens, size_t n) const {
    const int32_t n_vocab = ctx.get_model().vocab.n_tokens();
    for (size_t i = 0; i < n; ++i) {
        if (tokens[i] < 0 || tokens[i] >= n_vocab) {
            throw headkv_error(HEADKV_ERR_ARGUMENT,
                               format("token %d is none of the model's, which has %d", tokens[i], n_vocab));
        }
    }
}

void llama_kv_cache_headkv::reading::require_past() const {
    if (!kv.kept && n_past > 0 && kv.n_used() > 0) {
        kv.get_prompt_cells(); // positions without gaps, from 0 on
    }
    const uint32_t n_held = kv.kept ? kv.archived.size() : kv.n_used();
    if (n_past > n_held) {
        throw headkv_error(HEADKV_ERR_STATE,
                           format("the first %u tokens cannot stay: %u are held whole", n_past, n_held));
    }
    if (bounded.empty() || n_past == 0) {
        return;
    }
    if (kv.kept ? n_past != n_held || !kv.archived_end : n_past != n_held && !in_cells) {
        throw headkv_error(HEADKV_ERR_STATE,
                           format("layers with a sliding window and recurrent ones cannot go back to %u tokens: 0 "
                                  "of them or all %u can stay",
                                  n_past, n_held));
    }
    if (!kv.kept && !bounded.reaches(n_past)) { // also where all stay: llama_memory_seq_rm() does not ask
        throw headkv_error(HEADKV_ERR_STATE,
                           format("layers with a sliding window and recurrent ones cannot go back to %u tokens: they "
                                  "have forgotten what the next one looks at",
                                  n_past));
    }
}

// llama.cpp ends the process for more outputs than the context was made for, and refuses more than a sampler takes.
void llama_kv_cache_headkv::reading::require_outputs() const {
    const auto & has = ctx.get_cparams();
    size_t n         = 1;
    if (has.embeddings) { // of all tokens
        n = std::max({ prompt.n_tokens, prompt.n_again, (size_t) prompt.n_draft });
    } else if (prompt.logits && prompt.order == HEADKV_ORDER_TOKENS) {
        n = prompt.n_tokens;
    }
    n = std::min<size_t>(n, has.n_batch);
    if (n > has.n_outputs_max) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("logits of %zu tokens at once were asked for, and the context "
                                                       "was made for %u",
                                                       n, has.n_outputs_max));
    }
    if (ctx.headkv_samples() && prompt.n_again > 0) { // they would draw what follows these
        throw headkv_error(HEADKV_ERR_ARGUMENT, "no tokens can be read once more where the context's graph has a "
                                                "sampler");
    }
    if (ctx.headkv_samples() && n > has.n_outputs_max_per_seq) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("logits of %zu tokens at once were asked for, and the context's "
                                                       "sampler takes %u",
                                                       n, has.n_outputs_max_per_seq));
    }
}
