#include "ggml-headkv.h"

#include "ggml-impl.h"

struct ggml_tensor * ggml_headkv_attn(struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k_pool,
                                      struct ggml_tensor * v_pool, struct ggml_tensor * rows,
                                      struct ggml_tensor * k_tail, struct ggml_tensor * v_tail,
                                      struct ggml_tensor * mask, struct ggml_tensor * sinks, float scale,
                                      float logit_softcap) {
    const int64_t n_head    = q->ne[2];
    const int64_t n_tokens  = q->ne[1];
    const int64_t n_head_kv = k_tail->ne[2];
    const int64_t n_kv      = k_tail->ne[1];

    GGML_ASSERT(q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && q->ne[3] == 1);
    GGML_ASSERT(n_head % n_head_kv == 0);

    GGML_ASSERT(k_pool->type == k_tail->type && v_pool->type == v_tail->type);
    GGML_ASSERT(k_pool->ne[0] == q->ne[0] && k_tail->ne[0] == q->ne[0]);
    GGML_ASSERT(v_pool->ne[0] == v_tail->ne[0]);
    GGML_ASSERT(k_pool->ne[1] == v_pool->ne[1] && ggml_is_contiguous(k_pool) && ggml_is_contiguous(v_pool));
    GGML_ASSERT(v_tail->ne[1] == n_kv && v_tail->ne[2] == n_head_kv);
    GGML_ASSERT(k_tail->nb[0] == ggml_type_size(k_tail->type) && v_tail->nb[0] == ggml_type_size(v_tail->type));
    GGML_ASSERT(k_tail->ne[3] == 1 && v_tail->ne[3] == 1);

    GGML_ASSERT(rows->type == GGML_TYPE_I32 && rows->ne[0] == n_head_kv + 1);
    GGML_ASSERT(mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(ggml_fp16_t));
    GGML_ASSERT(mask->ne[0] == n_kv && mask->ne[1] >= n_tokens);
    GGML_ASSERT(!sinks || (sinks->type == GGML_TYPE_F32 && sinks->ne[0] == n_head));

    struct ggml_tensor * res = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, v_tail->ne[0], n_head, n_tokens);

    ggml_set_op_params_f32(res, 0, scale);
    ggml_set_op_params_f32(res, 1, logit_softcap);

    res->op     = GGML_OP_HEADKV_ATTN;
    res->src[0] = q;
    res->src[1] = k_pool;
    res->src[2] = v_pool;
    res->src[3] = rows;
    res->src[4] = k_tail;
    res->src[5] = v_tail;
    res->src[6] = mask;
    res->src[7] = sinks;

    return res;
}

struct ggml_tensor * ggml_headkv_record(struct ggml_context * ctx, struct ggml_tensor * record, struct ggml_tensor * q,
                                        struct ggml_tensor * k, struct ggml_tensor * mask, struct ggml_tensor * sinks,
                                        struct ggml_tensor * weights, struct ggml_tensor * far, float scale,
                                        float logit_softcap) {
    const int64_t n_tokens  = q->ne[1];
    const int64_t n_head    = q->ne[2];
    const int64_t n_head_kv = k->ne[2];
    const int64_t n_kv      = k->ne[1];

    GGML_ASSERT(q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && q->ne[3] == 1);
    GGML_ASSERT(k->ne[0] == q->ne[0] && k->nb[0] == ggml_type_size(k->type) && k->ne[3] == 1);
    GGML_ASSERT(n_head % n_head_kv == 0);
    GGML_ASSERT(record->type == GGML_TYPE_F32 && record->nb[0] == sizeof(float));
    GGML_ASSERT(record->ne[0] == n_kv && record->ne[1] == n_head_kv);
    GGML_ASSERT(mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(ggml_fp16_t));
    GGML_ASSERT(mask->ne[0] == n_kv && mask->ne[1] >= n_tokens);
    GGML_ASSERT(!sinks || (sinks->type == GGML_TYPE_F32 && sinks->ne[0] == n_head));
    GGML_ASSERT(weights->type == GGML_TYPE_F32 && ggml_is_contiguous(weights));
    GGML_ASSERT(weights->ne[1] == n_tokens * n_head / n_head_kv && weights->ne[2] == n_head_kv);
    GGML_ASSERT(far->type == GGML_TYPE_F32 && far->nb[0] == sizeof(float));
    GGML_ASSERT(far->ne[0] <= n_kv && far->ne[1] == n_tokens);

    struct ggml_tensor * res = ggml_view_tensor(ctx, record);

    ggml_set_op_params_f32(res, 0, scale);
    ggml_set_op_params_f32(res, 1, logit_softcap);

    res->op     = GGML_OP_HEADKV_RECORD;
    res->src[0] = q;
    res->src[1] = k;
    res->src[2] = mask;
    res->src[3] = sinks;
    res->src[4] = weights;
    res->src[5] = far;
    res->src[6] = record;

    return res;
}

struct ggml_tensor * ggml_headkv_attn_weights(struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k,
                                              struct ggml_tensor * mask, struct ggml_tensor * sinks, float scale,
                                              float logit_softcap) {
    struct ggml_tensor * w = ggml_mul_mat(ctx, k, q);
    ggml_prec_set_acc(w, GGML_PREC_F32);

    if (logit_softcap != 0.0f) {
        // the cap applies to the scaled logits
        w     = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, w, scale / logit_softcap)), logit_softcap);
        scale = 1.0f;
    }
    w = ggml_soft_max_ext(ctx, w, mask, scale, 0.0f);
    ggml_soft_max_add_sinks(w, sinks);

    return w;
}

// w: [n_cells, n_tokens, n_head], the query heads of a group are neighbours: their rows are summed and added to the
// record from `cell` on
static void add_to_record(struct ggml_context * ctx, struct ggml_cgraph * gf, struct ggml_tensor * record,
                          struct ggml_tensor * w, struct ggml_tensor * weights, int64_t cell) {
    const int64_t n_rows    = weights->ne[1];
    const int64_t n_head_kv = weights->ne[2];

    w = ggml_view_3d(ctx, w, w->ne[0], n_rows, n_head_kv, w->nb[1], n_rows * w->nb[1], 0);
    w = ggml_out_prod(ctx, w, weights);

    record = ggml_view_3d(ctx, record, w->ne[0], 1, n_head_kv, record->nb[1], record->nb[1], cell * record->nb[0]);
    ggml_build_forward_expand(gf, ggml_add_inplace(ctx, record, w));
}

void ggml_headkv_record_by_ops(struct ggml_context * ctx, struct ggml_cgraph * gf, struct ggml_tensor * record,
                               struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * mask,
                               struct ggml_tensor * sinks, struct ggml_tensor * weights, struct ggml_tensor * far,
                               float scale, float logit_softcap) {
    const int64_t n_kv  = k->ne[1];
    const int64_t first = n_kv - far->ne[0];

    struct ggml_tensor * w = ggml_headkv_attn_weights(ctx, q, k, mask, sinks, scale, logit_softcap);

    w = ggml_sqr(ctx, ggml_sqr(ctx, w));

    if (first > 0) {
        add_to_record(ctx, gf, record, ggml_view_3d(ctx, w, first, w->ne[1], w->ne[2], w->nb[1], w->nb[2], 0), weights,
                      0);
    }
    w = ggml_view_3d(ctx, w, n_kv - first, w->ne[1], w->ne[2], w->nb[1], w->nb[2], first * w->nb[0]);
    add_to_record(ctx, gf, record, ggml_mul(ctx, w, far), weights, first);
}
