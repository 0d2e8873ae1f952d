// What is decoded behind a prompt to see what it looks at, and taken back.

#include "llama-context.h"
#include "llama-model.h"
#include "prefill/headkv-prefill.h"

#include <algorithm>
#include <array>

void llama_kv_cache_headkv::reading::behind(const std::function<void()> & work) {
    const bool embeds = ctx.get_cparams().embeddings && ctx.get_cparams().pooling_type == LLAMA_POOLING_TYPE_NONE;
    const auto rows   = [&]() { // of the prompt's last token; no logits where samplers in the graph took their place
        return std::array<std::pair<float *, size_t>, 2>{
            std::pair(ctx.get_logits_ith(-1), ctx.get_model().vocab.n_tokens()),
            std::pair(embeds ? ctx.get_embeddings_ith(-1) : nullptr, ctx.get_model().hparams.n_embd_out()),
        };
    };
    std::vector<std::vector<float>> said;
    for (const auto & [data, n] : rows()) {
        said.emplace_back(data, data ? data + n : nullptr);
    }

    work();

    take_back();
    for (size_t i = 0; i < said.size(); ++i) {
        if (!said[i].empty()) {
            std::copy(said[i].begin(), said[i].end(), rows()[i].first);
        }
    }
}

void llama_kv_cache_headkv::reading::read_again() {
    for (uint32_t i = 0; i < prompt.n_again; i += n_piece) {
        if (i > 0) {
            take_back();
        }
        kv.obs->move_on(n_prompt, i);
        read_panels(prompt.again + i, std::min<size_t>(n_piece, prompt.n_again - i), n_prompt, /*keep =*/false);
    }
}

void llama_kv_cache_headkv::reading::take_back() {
    if (at_end) {
        headkv_bounded(*at_end).put_back();
    }
    kv.seq_rm(0, n_prompt, -1);
}
