// Which contexts can be compacted, and where their cache is.

#include "base/headkv-error.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid-idx.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-model.h"

bool llama_kv_cache_headkv::is_disabled() {
    const char * HEADKV_DISABLE = getenv("HEADKV_DISABLE");
    return HEADKV_DISABLE && atoi(HEADKV_DISABLE);
}

// the cache of full attention that a memory consists of or holds, nullptr if there is none
static llama_kv_cache * find_attention(llama_memory_i * mem) {
    if (dynamic_cast<llama_memory_hybrid_idx *>(mem)) {
        return nullptr; // its attention is sparse
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid *>(mem)) {
        return hybrid->get_mem_attn();
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid_iswa *>(mem)) {
        return hybrid->get_mem_attn()->get_base();
    }
    if (auto * iswa = dynamic_cast<llama_kv_cache_iswa *>(mem)) {
        return iswa->get_base();
    }
    return dynamic_cast<llama_kv_cache *>(mem);
}

llama_kv_cache_headkv * llama_kv_cache_headkv::find(llama_memory_i * mem) {
    return dynamic_cast<llama_kv_cache_headkv *>(find_attention(mem));
}

llama_kv_cache_headkv * llama_kv_cache_headkv::find(const llama_kv_cache_context * mctx) {
    auto * res = dynamic_cast<llama_kv_cache_headkv *>(mctx->kv);
    return res && res->retains ? res : nullptr;
}

std::string llama_kv_cache_headkv::unsupported(const llama_context & ctx) {
    const auto & model   = ctx.get_model();
    const auto & hparams = model.hparams;
    const auto & cparams = ctx.get_cparams();

    if (is_disabled()) {
        return "switched off by HEADKV_DISABLE";
    }
    if (hparams.vocab_only) {
        return "the model was loaded with vocab_only, so it has no weights";
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
    if (model.arch == LLM_ARCH_COGVLM) { // its graph leaves out build_inp_out_ids()
        return "llama.cpp takes the logits of another token than a prompt's last one for this architecture";
    }
    if (model.arch == LLM_ARCH_CHAMELEON) { // its graph masks logits of images, of which such a batch has none
        return "llama.cpp ends the process where this architecture reads tokens without asking for logits";
    }
    if (!cparams.causal_attn) {
        return "the context's attention is not causal";
    }
    if (cparams.n_seq_max != 1) {
        return format("the context is for %u sequences, only 1 is supported", cparams.n_seq_max);
    }
    if (!cparams.flash_attn) {
        return model.arch == LLM_ARCH_GROK ? "llama.cpp runs a Grok model without flash attention only"
                                           : "the context has flash attention off";
    }
    if (cparams.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        return "the context is a draft head's";
    }
    if (model.split_mode() == LLAMA_SPLIT_MODE_TENSOR) {
        return "the model's tensors are split over devices";
    }

    auto * mem = ctx.get_memory();
    if (!mem) {
        return "the model keeps no cache";
    }
    if (dynamic_cast<llama_memory_recurrent *>(mem)) {
        return "the model has recurrent layers only";
    }
    auto * attention = find_attention(mem);
    if (!attention) {
        return "the model's attention is sparse, with an indexer or a cache of its own kind";
    }
    auto * res = dynamic_cast<llama_kv_cache_headkv *>(attention);
    if (!res || res->is_shared()) {
        return "the context shares its cache with another one, a draft model's";
    }
    if (res->shapes.empty()) {
        return "the model has no layer of full attention: those of a sliding window are bounded already";
    }
    for (const auto & [il, ikv] : res->readers) {
        const auto & shape = res->shapes[ikv];
        if (hparams.n_head(il) != shape.n_head || hparams.n_head_kv(il) != shape.n_head_kv) {
            return format("layer %d reads the cache of layer %d with another number of heads", il, shape.il);
        }
    }
    return "";
}

// A context of a model without weights tells what it would take: it can be asked, but ggml ends the process where such
// a one computes.
void llama_kv_cache_headkv::belongs_to(llama_context & ctx) {
    if (hparams.no_alloc) {
        throw headkv_error(HEADKV_ERR_UNSUPPORTED, "the model was loaded with no_alloc, so it has no weights");
    }
    lctx = &ctx;
}
