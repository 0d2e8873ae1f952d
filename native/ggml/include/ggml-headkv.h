#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// Attention over a ragged pool (no mask: every query sees every row of its KV head) and over a tail of
// ordinary KV cache cells (with mask), in one softmax:
//
//   q:      [n_embd_head_k, n_tokens, n_head]     F32, any strides over tokens and heads
//   k_pool: [n_embd_head_k, n_rows]               rows of KV head 0, then of KV head 1, ...
//   v_pool: [n_embd_head_v, n_rows]
//   rows:   [n_head_kv + 1]                       I32, KV head h owns the pool rows [rows[h], rows[h + 1])
//   k_tail: [n_embd_head_k, n_kv, n_head_kv]      any strides over cells and heads
//   v_tail: [n_embd_head_v, n_kv, n_head_kv]
//   mask:   [n_kv, n_tokens]                      F16, added to the tail's logits
//   sinks:  [n_head]                              F32 or NULL, as in ggml_flash_attn_ext_add_sinks()
//   res:    [n_embd_head_v, n_head, n_tokens]     F32
//
// n_head is a multiple of n_head_kv: query head h reads KV head h/(n_head/n_head_kv).
// scale and logit_softcap as in ggml_flash_attn_ext().
GGML_API struct ggml_tensor * ggml_headkv_attn(struct ggml_context * ctx, struct ggml_tensor * q,
                                               struct ggml_tensor * k_pool, struct ggml_tensor * v_pool,
                                               struct ggml_tensor * rows, struct ggml_tensor * k_tail,
                                               struct ggml_tensor * v_tail, struct ggml_tensor * mask,
                                               struct ggml_tensor * sinks, float scale, float logit_softcap);

#ifdef __cplusplus
}
#endif
