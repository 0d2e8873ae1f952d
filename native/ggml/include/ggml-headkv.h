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

// Queries that ggml_headkv_record() sums up before it writes n_kv values.
#define GGML_HEADKV_RECORD_QUERIES 32

// How much attention each KV head pays to each cell, added to what is recorded already, in one op of the CPU backend:
//
//   record[p][h] += sum over tokens t, query heads of KV head h, of weights[t] * far[p][t] * softmax(...)[p]^4
//
//   record:  [n_kv, n_head_kv]                    F32, any strides over heads
//   q:       [n_embd_head_k, n_tokens, n_head]    F32, any strides over tokens and heads
//   k:       [n_embd_head_k, n_kv, n_head_kv]     any strides over cells and heads
//   mask:    [n_kv, n_tokens]                     F16, added to the logits
//   sinks:   [n_head]                             F32 or NULL, as in ggml_flash_attn_ext_add_sinks()
//   weights: [1, n_tokens*n_gqa, n_head_kv]       F32, those of the tokens again and again
//   far:     [n_near, n_tokens]                   F32, of the last n_near cells; 1 for those before them
//   res:     a view of record
GGML_API struct ggml_tensor * ggml_headkv_record(struct ggml_context * ctx, struct ggml_tensor * record,
                                                 struct ggml_tensor * q, struct ggml_tensor * k,
                                                 struct ggml_tensor * mask, struct ggml_tensor * sinks,
                                                 struct ggml_tensor * weights, struct ggml_tensor * far, float scale,
                                                 float logit_softcap);

// The same by ops that other backends have as well. They write n_kv times n_tokens times n_head values.
GGML_API void ggml_headkv_record_by_ops(struct ggml_context * ctx, struct ggml_cgraph * gf, struct ggml_tensor * record,
                                        struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * mask,
                                        struct ggml_tensor * sinks, struct ggml_tensor * weights,
                                        struct ggml_tensor * far, float scale, float logit_softcap);

// The softmax itself: [n_kv, n_tokens, n_head].
GGML_API struct ggml_tensor * ggml_headkv_attn_weights(struct ggml_context * ctx, struct ggml_tensor * q,
                                                       struct ggml_tensor * k, struct ggml_tensor * mask,
                                                       struct ggml_tensor * sinks, float scale, float logit_softcap);

#ifdef __cplusplus
}
#endif
