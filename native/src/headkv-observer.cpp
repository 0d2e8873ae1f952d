#include "headkv-observer.h"

#include "headkv-pool.h"
#include "llama-batch.h"
#include "llama-graph.h"
#include "llama-hparams.h"

#include "ggml-backend.h"

#include <algorithm>

headkv_observer::headkv_observer(mode mode, const std::vector<headkv_layer_shape> & shapes, uint32_t n_cells,
                                 uint32_t n_heads)
    : what(mode),
      n_heads(n_heads),
      bufs(shapes.size()) {
    for (const auto & s : shapes) {
        records.push_back(bufs.new_tensor(s.buft, GGML_TYPE_F32, n_cells, n_heads, "obs", s.il));
    }
    bufs.alloc();
}

// Whether CUDA would make a copy of K in F32 in memory that it ends the process without: its products take heads of a
// multiple of 64 as they are.
static bool is_copied_by_device(const ggml_tensor * k) {
    return (k->type == GGML_TYPE_F16 || k->type == GGML_TYPE_BF16) && k->ne[0] % 64 != 0 && k->view_src &&
           k->view_src->buffer && !ggml_backend_buffer_is_host(k->view_src->buffer);
}

void headkv_observer::build(const llm_graph_context & gctx, uint32_t ikv, ggml_tensor * q, ggml_tensor * k,
                            ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale) const {
    ggml_context * ctx = gctx.ctx0;

    const int64_t n_kv     = k->ne[2];
    const int64_t n_tokens = q->ne[2];

    q = ggml_permute(ctx, q, 0, 2, 1, 3);
    k = ggml_permute(ctx, k, 0, 2, 1, 3);
    if (is_copied_by_device(k)) {
        k = ggml_cast(ctx, k, GGML_TYPE_F32); // lack of memory for this one is an error
    }

    // [n_kv, n_tokens, n_head]
    ggml_tensor * w = ggml_mul_mat(ctx, k, q);
    ggml_prec_set_acc(w, GGML_PREC_F32);

    if (gctx.hparams.attn_soft_cap) {
        const float cap = gctx.hparams.f_attn_logit_softcapping;
        // the cap applies to the scaled logits
        w        = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, w, kq_scale / cap)), cap);
        kq_scale = 1.0f;
    }
    w = ggml_soft_max_ext(ctx, w, kq_mask, kq_scale, 0.0f);
    ggml_soft_max_add_sinks(w, sinks);

    ggml_tensor * record = ggml_view_2d(ctx, records[ikv], n_kv, n_heads, records[ikv]->nb[1], 0);

    if (what == ROWS) {
        w = ggml_view_2d(ctx, w, n_kv, n_heads, w->nb[2], (n_tokens - 1) * w->nb[1]);
        ggml_build_forward_expand(gctx.gf, ggml_cpy(ctx, w, record));
        return;
    }

    // the query heads of a GQA group are neighbours: [n_kv, n_tokens*n_gqa, n_head_kv] -> sum over the rows
    w = ggml_reshape_3d(ctx, w, n_kv, w->ne[1] * w->ne[2] / n_heads, n_heads);
    w = ggml_cont(ctx, ggml_transpose(ctx, ggml_sqr(ctx, w)));
    w = ggml_reshape_2d(ctx, ggml_sum_rows(ctx, w), n_kv, n_heads);

    ggml_build_forward_expand(gctx.gf, ggml_add_inplace(ctx, record, w));
}

void headkv_observer::add(const llama_ubatch & ubatch) {
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        first = n_tokens == 0 ? ubatch.pos[i] : std::min(first, ubatch.pos[i]);
        last  = n_tokens == 0 ? ubatch.pos[i] : std::max(last, ubatch.pos[i]);
        n_tokens++;
    }
}

void headkv_observer::remove(llama_pos p0) {
    broken = broken || (n_tokens > 0 && p0 <= last);
}

bool headkv_observer::covers(uint32_t n_min, uint32_t n_max, llama_pos last_pos) const {
    return !broken && n_min <= n_tokens && n_tokens <= n_max && last == last_pos &&
           first == last_pos - (llama_pos) n_tokens + 1;
}

void headkv_observer::read(uint32_t ikv, uint32_t n, std::vector<float> & res) const {
    const size_t size = n * sizeof(float);

    res.resize((size_t) n * n_heads);
    ggml_backend_tensor_get_2d(records[ikv], res.data(), 0, size, n_heads, records[ikv]->nb[1], size);
}
