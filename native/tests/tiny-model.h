#pragma once

// A tiny random model, written as a GGUF file: llama; gemma2 with sliding windows in every other layer; or lfm2 with
// recurrent layers, as llama_memory_hybrid holds them. No architecture of the pinned llama.cpp has all three, which
// llama_memory_hybrid_iswa holds: lfm2 with a window has it in each layer with K and V, so that some lose it here once
// the model is loaded.

#include "ggml-cpp.h"
#include "gguf.h"
#include "llama-cpp.h"
#include "llama-ext.h"
#include "llama-model.h"
#include "options.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

struct tiny_model_params {
    int n_vocab   = 96;
    int n_ctx     = 8192;
    int n_layer   = 3;
    int n_head    = 4;
    int n_head_kv = 2;
    int d_head    = 64;
    int n_ff      = 64;
    bool windows  = false; // of 64 tokens, in layers 0, 2, ...; of hybrid ones 1, 5, ...
    bool hybrid   = false; // recurrent layers 0, 2, ...

    bool bounded() const { return windows || hybrid; } // some layers
    const char * name() const {
        return hybrid ? windows ? "hybrid with windows" : "hybrid" : windows ? "windows" : "plain";
    }
};

// by a program's --windows, --hybrid or --hybrid-windows; of all but the first, two layers retain
inline tiny_model_params tiny_model_asked(int argc, char ** argv) {
    tiny_model_params res;
    const bool both = has_option(argc, argv, "--hybrid-windows");
    res.windows     = both || has_option(argc, argv, "--windows");
    res.hybrid      = both || has_option(argc, argv, "--hybrid");
    res.n_layer     = both ? 8 : res.bounded() ? 4 : 3;
    return res;
}

inline llama_token tiny_model_token_at(int pos) {
    return (pos * 7 + pos / 5) % 90;
}

// tokens of one sequence from position p0 on
class tiny_batch {
public:
    enum outputs { NONE, LAST, ALL };

    template <class F>
    tiny_batch(int p0, int n, F token_at, outputs which = LAST) : batch(llama_batch_init(n, 0, 1)) {
        batch.n_tokens = n;
        for (int i = 0; i < n; ++i) {
            batch.token[i]     = token_at(p0 + i);
            batch.pos[i]       = p0 + i;
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i]    = which == ALL || (which == LAST && i == n - 1);
        }
    }
    ~tiny_batch() { llama_batch_free(batch); }
    tiny_batch(const tiny_batch &)             = delete;
    tiny_batch & operator=(const tiny_batch &) = delete;

    int decode(llama_context * ctx) const { return llama_decode(ctx, batch); }

private:
    llama_batch batch;
};

// n tokens from position p0 on, with the logits of the last or of all; what llama_decode() returns
inline int tiny_model_decode(llama_context * ctx, int p0, int n, bool all = false) {
    return tiny_batch(p0, n, tiny_model_token_at, all ? tiny_batch::ALL : tiny_batch::LAST).decode(ctx);
}

inline void tiny_model_write(const char * path, const tiny_model_params & p = {}) {
    const int n_embd     = p.n_head * p.d_head;
    const int n_embd_gqa = p.n_head_kv * p.d_head;

    const std::string arch  = p.hybrid ? "lfm2" : p.windows ? "gemma2" : "llama";
    const auto is_recurrent = [&](int il) { return p.hybrid && il % 2 == 0; };

    gguf_context_ptr gguf(gguf_init_empty());
    const auto set = [&](const char * key, uint32_t value) {
        gguf_set_val_u32(gguf.get(), (arch + "." + key).c_str(), value);
    };
    gguf_set_val_str(gguf.get(), "general.architecture", arch.c_str());
    set("vocab_size", p.n_vocab);
    set("context_length", p.n_ctx);
    set("embedding_length", n_embd);
    set("block_count", p.n_layer);
    set("feed_forward_length", p.n_ff);
    set("attention.head_count", p.n_head);
    std::vector<uint32_t> n_head_kv;
    for (int il = 0; il < p.n_layer; ++il) {
        n_head_kv.push_back(is_recurrent(il) ? 0 : p.n_head_kv);
    }
    gguf_set_arr_data(gguf.get(), (arch + ".attention.head_count_kv").c_str(), GGUF_TYPE_UINT32, n_head_kv.data(),
                      n_head_kv.size());
    set("attention.key_length", p.d_head);
    set("attention.value_length", p.d_head);
    gguf_set_val_f32(gguf.get(), (arch + ".attention.layer_norm_rms_epsilon").c_str(), 1e-5f);
    if (p.windows) {
        set("attention.sliding_window", 64);
    }
    if (p.hybrid) {
        set("shortconv.l_cache", 3);
    }
    gguf_set_val_str(gguf.get(), "tokenizer.ggml.model", "no_vocab");

    ggml_context_ptr ctx(ggml_init({ 64u * 1024 * 1024, nullptr, false }));

    std::mt19937 rng(1);
    std::normal_distribution<float> normal;

    const auto add = [&](const std::string & name, int64_t ne0, int64_t ne1, float mean, float stddev) {
        ggml_tensor * t = ne1 > 0 ? ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, ne0, ne1)
                                  : ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, ne0);
        ggml_set_name(t, name.c_str());
        for (int64_t i = 0; i < ggml_nelements(t); ++i) {
            ((float *) t->data)[i] = mean + stddev * normal(rng);
        }
        gguf_add_tensor(gguf.get(), t);
    };

    const float s = 1.5f / sqrtf(n_embd);

    add("token_embd.weight", n_embd, p.n_vocab, 0.0f, 1.0f);
    add(p.hybrid ? "token_embd_norm.weight" : "output_norm.weight", n_embd, 0, 1.0f, 0.1f);
    if (arch != "gemma2") { // else that of the embeddings
        add("output.weight", n_embd, p.n_vocab, 0.0f, s);
    }
    for (int il = 0; il < p.n_layer; ++il) {
        const std::string b = "blk." + std::to_string(il) + ".";
        add(b + "attn_norm.weight", n_embd, 0, 1.0f, 0.1f);
        if (is_recurrent(il)) {
            add(b + "shortconv.conv.weight", 3, n_embd, 0.0f, 0.5f);
            add(b + "shortconv.in_proj.weight", n_embd, 3 * n_embd, 0.0f, s);
            add(b + "shortconv.out_proj.weight", n_embd, n_embd, 0.0f, s);
        } else {
            add(b + "attn_q.weight", n_embd, n_embd, 0.0f, s);
            add(b + "attn_k.weight", n_embd, n_embd_gqa, 0.0f, s);
            add(b + "attn_v.weight", n_embd, n_embd_gqa, 0.0f, s);
            add(b + "attn_output.weight", n_embd, n_embd, 0.0f, s);
        }
        if (p.hybrid && !is_recurrent(il)) {
            add(b + "attn_q_norm.weight", p.d_head, 0, 1.0f, 0.1f);
            add(b + "attn_k_norm.weight", p.d_head, 0, 1.0f, 0.1f);
        }
        if (arch == "gemma2") {
            add(b + "post_attention_norm.weight", n_embd, 0, 1.0f, 0.1f);
            add(b + "post_ffw_norm.weight", n_embd, 0, 1.0f, 0.1f);
        }
        add(b + "ffn_norm.weight", n_embd, 0, 1.0f, 0.1f);
        add(b + "ffn_gate.weight", n_embd, p.n_ff, 0.0f, s);
        add(b + "ffn_up.weight", n_embd, p.n_ff, 0.0f, s);
        add(b + "ffn_down.weight", p.n_ff, n_embd, 0.0f, s);
    }

    if (!gguf_write_to_file(gguf.get(), path, false)) {
        fprintf(stderr, "cannot write %s\n", path);
        exit(1);
    }
}

// loaded, and its file is gone again. gpu: on what GPUs there are, else on the CPU; no_alloc: without its weights
inline llama_model_ptr tiny_model_load(const tiny_model_params & p = {}, bool gpu = false, bool no_alloc = false) {
    const char * folder = getenv("TMPDIR");
    const std::string path =
        std::string(folder ? folder : "/tmp") + "/headkv-tiny-" + std::to_string(getpid()) + ".gguf";
    tiny_model_write(path.c_str(), p);

    ggml_backend_dev_t no_gpu[] = { nullptr };
    llama_model_params params   = llama_model_default_params();
    params.devices              = gpu ? nullptr : no_gpu;
    params.n_gpu_layers         = gpu ? -1 : 0;
    params.no_alloc             = no_alloc;
    params.load_mode            = no_alloc ? LLAMA_LOAD_MODE_NONE : params.load_mode;
    llama_model_ptr res(llama_model_load_from_file(path.c_str(), params));
    remove(path.c_str());
    for (int il = 3; res && p.hybrid && p.windows && il < p.n_layer; il += 4) {
        res->hparams.is_swa_impl[il] = false;
    }
    return res;
}

// what its graphs are computed in, on all devices
inline size_t tiny_model_compute_bytes(const llama_context * ctx) {
    size_t res = 0;
    for (const auto & [buft, data] : llama_get_memory_breakdown(ctx)) {
        res += data.compute;
    }
    return res;
}
