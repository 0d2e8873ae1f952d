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
