#pragma once

// One item of the work of headkv-attn.cpp, which alone includes this: attention of some tokens to some rows of one KV
// head, with a softmax that goes on from block to block.
//
// K of a float type is widened and multiplied with the F32 query; K of a quantized type is multiplied with the query
// quantized by ggml's own type traits, as the stock flash attention does.

#include "common.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "headkv-attn-cut.h"
#include "headkv-rows.h"
#include "ops.h"
#include "vec.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

// n rows will be read soon: a decode step reads all of the cache once, so most of it comes from far away
void prefetch(const char * rows, size_t nb, int64_t n, size_t size) {
#if defined(__GNUC__)
    for (int64_t j = 0; j < n; ++j) {
        for (size_t i = 0; i < size; i += CACHE_LINE_SIZE) {
            __builtin_prefetch(rows + j * nb + i);
        }
    }
#else
    GGML_UNUSED(rows);
    GGML_UNUSED(nb);
    GGML_UNUSED(n);
    GGML_UNUSED(size);
#endif
}

// y += sum over the n rows of v[j]*p[j]; the accumulators stay in registers over the rows
void mad_rows(int64_t n_embd, int64_t n, float * y, const float * v, size_t nb, const float * p) {
    int64_t i = 0;
#if defined(GGML_SIMD) && defined(GGML_F32_ARR) && !defined(__ARM_FEATURE_SVE) && !defined(__riscv_v_intrinsic)
    for (; i + GGML_F32_STEP <= n_embd; i += GGML_F32_STEP) {
        GGML_F32_VEC acc[GGML_F32_ARR];
        for (int a = 0; a < GGML_F32_ARR; ++a) {
            acc[a] = GGML_F32_VEC_LOAD(y + i + a * GGML_F32_EPR);
        }
        for (int64_t j = 0; j < n; ++j) {
            const float * row = (const float *) ((const char *) v + j * nb) + i;
            const auto pj     = GGML_F32_VEC_SET1(p[j]);
            for (int a = 0; a < GGML_F32_ARR; ++a) {
                acc[a] = GGML_F32_VEC_FMA(acc[a], GGML_F32_VEC_LOAD(row + a * GGML_F32_EPR), pj);
            }
        }
        for (int a = 0; a < GGML_F32_ARR; ++a) {
            GGML_F32_VEC_STORE(y + i + a * GGML_F32_EPR, acc[a]);
        }
    }
#endif
    if (i == n_embd) {
        return;
    }
    for (int64_t j = 0; j < n; ++j) {
        ggml_vec_mad_f32(n_embd - i, y + i, (const float *) ((const char *) v + j * nb) + i, p[j]);
    }
}

// One item: the rows [r0, r1) of KV head h against the tokens [t0, t1).
// Query i of the tile is token t0 + i/n_gqa and query head h*n_gqa + i%n_gqa.
struct headkv_attn_item {
    const headkv_attn & a;

    const int64_t h;
    const int64_t t0;
    const int64_t t1;
    const int64_t nq;

    const bool k_float;
    const ggml_type_traits_cpu * traits_k;
    const size_t q_size; // bytes of a converted query

    char * q;       // [nq][q_size]
    float * logits; // [nq][block_size]
    float * acc;    // [nq][d_v]
    float * M;      // [nq]
    float * S;      // [nq]
    float * k_buf;  // [block_size][d_k]
    float * v_buf;  // [block_size][d_v]

    headkv_attn_item(const headkv_attn & a, int64_t h, int64_t t0, int64_t t1, float * wdata)
        : a(a),
          h(h),
          t0(t0),
          t1(t1),
          nq((t1 - t0) * a.n_gqa),
          k_float(a.k_is_float()),
          traits_k(ggml_get_type_traits_cpu(a.k_tail->type)),
          q_size(k_float ? a.d_k * sizeof(float) : ggml_row_size(traits_k->vec_dot_type, a.d_k)) {
        const auto take = [&](int64_t n) {
            float * res  = wdata;
            wdata       += n;
            return res;
        };
        q      = (char *) take(nq * a.d_k); // no type is wider than F32
        logits = take(nq * block_size);
        acc    = take(nq * a.d_v);
        M      = take(nq);
        S      = take(nq);
        k_buf  = take(block_size * a.d_k);
        v_buf  = take(block_size * a.d_v);

        for (int64_t i = 0; i < nq; ++i) {
            const float * src =
                (const float *) ((const char *) a.q->data + token(i) * a.q->nb[1] + head(i) * a.q->nb[2]);
            if (k_float) {
                memcpy(q + i * q_size, src, q_size);
            } else {
                ggml_get_type_traits_cpu(traits_k->vec_dot_type)->from_float(src, q + i * q_size, a.d_k);
            }
            M[i] = -INFINITY;
            S[i] = 0.0f;
        }
        memset(acc, 0, nq * a.d_v * sizeof(float));
    }

    int64_t token(int64_t i) const { return t0 + i / a.n_gqa; }
    int64_t head(int64_t i) const { return h * a.n_gqa + i % a.n_gqa; }

    void run(int64_t r0, int64_t r1) {
        const int32_t * rows = (const int32_t *) a.rows->data;
        const int64_t n_pool = rows[h + 1] - rows[h];

        // a block lies in the pool or in the tail, never in both
        for (int64_t r = r0; r < std::min(r1, n_pool); r += block_size) {
            const int64_t n = std::min({ block_size, r1 - r, n_pool - r });
            block((const char *) a.k_pool->data + (rows[h] + r) * a.k_pool->nb[1], a.k_pool->nb[1],
                  (const char *) a.v_pool->data + (rows[h] + r) * a.v_pool->nb[1], a.v_pool->nb[1], n, -1);
        }
        for (int64_t r = std::max(r0, n_pool); r < r1; r += block_size) {
            const int64_t n = std::min(block_size, r1 - r);
            const int64_t c = r - n_pool;
            if (!visible(c, n)) {
                continue;
            }
            block((const char *) a.k_tail->data + c * a.k_tail->nb[1] + h * a.k_tail->nb[2], a.k_tail->nb[1],
                  (const char *) a.v_tail->data + c * a.v_tail->nb[1] + h * a.v_tail->nb[2], a.v_tail->nb[1], n, c);
        }
    }

    const ggml_fp16_t * mask_row(int64_t t) const {
        return (const ggml_fp16_t *) ((const char *) a.mask->data + t * a.mask->nb[1]);
    }

    // does any token of the tile see any of the n tail cells from c on
    bool visible(int64_t c, int64_t n) const {
        for (int64_t t = t0; t < t1; ++t) {
            for (int64_t j = c; j < c + n; ++j) {
                if (GGML_CPU_FP16_TO_FP32(mask_row(t)[j]) != -INFINITY) {
                    return true;
                }
            }
        }
        return false;
    }

    // n rows of K and V; c is the tail cell of the first one, -1 in the pool
    void block(const char * k, size_t nb_k, const char * v, size_t nb_v, int64_t n, int64_t c) {
        prefetch(v, nb_v, n, ggml_row_size(a.v_tail->type, a.d_v));

        if (k_float) {
            const float * k32 = rows_f32(a.k_tail->type, k, nb_k, n, a.d_k, k_buf);
            for (int64_t i = 0; i < nq; ++i) {
                for (int64_t j = 0; j < n; ++j) {
                    ggml_vec_dot_f32(a.d_k, &logits[i * block_size + j], 0,
                                     (const float *) ((const char *) k32 + j * nb_k), 0,
                                     (const float *) (q + i * q_size), 0, 1);
                }
            }
        } else {
            for (int64_t j = 0; j < n; ++j) {
                for (int64_t i = 0; i < nq; ++i) {
                    traits_k->vec_dot(a.d_k, &logits[i * block_size + j], 0, k + j * nb_k, 0, q + i * q_size, 0, 1);
                }
            }
        }

        const float * v32 = rows_f32(a.v_tail->type, v, nb_v, n, a.d_v, v_buf);

        for (int64_t i = 0; i < nq; ++i) {
            float * s = logits + i * block_size;

            finish_logits(s, n, c < 0 ? nullptr : mask_row(token(i)) + c);

            float s_max;
            ggml_vec_max_f32(n, &s_max, s);
            if (s_max == -INFINITY) {
                continue;
            }
            if (s_max > M[i]) {
                rescale(i, s_max);
            }
            S[i] += ggml_vec_soft_max_f32(n, s, s, M[i]);

            mad_rows(a.d_v, n, acc + i * a.d_v, v32, nb_v, s);
        }
    }

    void finish_logits(float * s, int64_t n, const ggml_fp16_t * mask) const {
        for (int64_t j = 0; j < n; ++j) {
            s[j] *= a.scale;
        }
        if (a.softcap != 0.0f) {
            for (int64_t j = 0; j < n; ++j) {
                s[j] = a.softcap * tanhf(s[j] / a.softcap);
            }
        }
        if (mask) {
            for (int64_t j = 0; j < n; ++j) {
                s[j] += GGML_CPU_FP16_TO_FP32(mask[j]);
            }
        }
    }

    void rescale(int64_t i, float M_new) {
        const float ms = expf(M[i] - M_new);

        M[i]  = M_new;
        S[i] *= ms;
        ggml_vec_scale_f32(a.d_v, acc + i * a.d_v, ms);
    }

    void write_partials(float * partials) const {
        for (int64_t i = 0; i < nq; ++i) {
            float * p = partials + i * a.partial_size();

            p[0] = M[i];
            p[1] = S[i];
            memcpy(p + 2, acc + i * a.d_v, a.d_v * sizeof(float));
        }
    }

    // the chunks' partial results become this item's own, in the order of the chunks
    void merge_partials(const float * partials, int64_t n_chunks) {
        for (int64_t ic = 0; ic < n_chunks; ++ic) {
            for (int64_t i = 0; i < nq; ++i) {
                const float * p = partials + (ic * nq + i) * a.partial_size();
                if (p[1] == 0.0f) {
                    continue;
                }
                if (p[0] > M[i]) {
                    rescale(i, p[0]);
                }
                const float ms = expf(p[0] - M[i]);

                S[i] += p[1] * ms;
                ggml_vec_mad_f32(a.d_v, acc + i * a.d_v, p + 2, ms);
            }
        }
    }

    void write_result() {
        for (int64_t i = 0; i < nq; ++i) {
            if (a.sinks) {
                const float s = ((const float *) a.sinks->data)[head(i)];
                if (s > M[i]) {
                    rescale(i, s);
                }
                S[i] += expf(s - M[i]);
            }

            float * y         = (float *) ((char *) a.dst->data + token(i) * a.dst->nb[2] + head(i) * a.dst->nb[1]);
            const float S_inv = S[i] == 0.0f ? 0.0f : 1.0f / S[i];
            for (int64_t d = 0; d < a.d_v; ++d) {
                y[d] = acc[i * a.d_v + d] * S_inv;
            }
        }
    }
};

} // namespace
