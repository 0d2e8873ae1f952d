#pragma once

// What one warp does with 16 rows: logits, online softmax, weighted sum of V.
//
// Logits are K*Q^T, so the rows fill the 16 rows of a product and the queries its 8 columns: a decode step of a small
// group wastes little. Lane (g = lane/4, t = lane%4) holds rows g and g + 8 (of the tile: headkv_row_index) of columns
// 2t and 2t + 1 of every 8, and of the accumulators V^T*P the same columns: maxima and sums are needed nowhere else.
// Logits and maxima are in units of ln 2, for exp2f().

#include "headkv-attn-frag.cuh"
#include "headkv-attn-segment.cuh"

constexpr float headkv_log2e = 1.4426950408889634f;

// the warp's own softmax over the tiles it has seen
template <int n_embd, int n_cols>
struct headkv_softmax {
    float m[n_cols / 8][2];
    float s[n_cols / 8][2]; // of the lane's own rows
    float acc[n_embd / 16][n_cols / 8][4];
};

// The queries of a segment, as the right operand. A few of them against blocks stay in registers, with what the
// products of a block begin with: all that the bias of its values adds to them, taken away.
template <headkv_type type, int n_embd, int n_cols>
struct headkv_queries {
    static constexpr bool kept = headkv_has_blocks(type) && n_cols == headkv_cols_narrow;

    const char * smem;
    uint32_t b[kept ? n_embd / 16 : 1][2];
    float begin[kept ? n_embd / 32 : 1][4];

    __device__ __forceinline__ headkv_queries(const char * smem, int lane) : smem(smem) {
#pragma unroll
        for (int j = 0; kept && j < n_embd / 16; ++j) {
            headkv_frag_q<headkv_cols_narrow, headkv_q_pitch(n_embd)>(b + j, smem, j, lane);

            const uint32_t bias = headkv_bias<type>(j % 2) ^ 0x80008000;
            const uint32_t a[4] = { bias, bias, bias, bias }; // in all rows

            float * x = begin[j / 2];
            if (j % 2 == 0) {
                x[0] = x[1] = x[2] = x[3] = 0.0f;
            }
            headkv_mma<type>(x, a, b[j]);
        }
    }
};

// exp2(x - m), where nothing seen yet counts as nothing
static __device__ __forceinline__ float headkv_exp2(float x, float m) {
    return x == -INFINITY ? 0.0f : exp2f(x - m);
}

static __device__ __forceinline__ float headkv_tanh(float x) {
    return 1.0f - 2.0f / (exp2f(2.0f * headkv_log2e * x) + 1.0f);
}

// the maximum over the 8 lanes that hold the same columns
static __device__ __forceinline__ float headkv_max_rows(float x) {
    x = fmaxf(x, headkv_shfl_xor(x, 4));
    x = fmaxf(x, headkv_shfl_xor(x, 8));
    return fmaxf(x, headkv_shfl_xor(x, 16));
}

static __device__ __forceinline__ float headkv_sum_rows(float x) {
    x += headkv_shfl_xor(x, 4);
    x += headkv_shfl_xor(x, 8);
    return x + headkv_shfl_xor(x, 16);
}

// mask of tail cell c, token of column col
static __device__ __forceinline__ float headkv_mask_at(const headkv_attn_params & p, int col, int c) {
    const char * row = p.mask + headkv_token_of(p, col) * p.nb_mask;
    return headkv_f16_to_f32(*(const uint16_t *) (row + c * (int64_t) sizeof(uint16_t)));
}

// x: logits of n rows; cell: tail cell of the first one, -1 in the pool; col: first column of the tile
template <headkv_type type, int n_embd, int n_cols>
static __device__ __forceinline__ void headkv_finish_logits(const headkv_attn_params & p, float (*x)[4], int n,
                                                            int cell, int col, int lane) {
    if (p.softcap != 0.0f) {
#pragma unroll
        for (int c = 0; c < n_cols / 8; ++c) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                x[c][e] = p.softcap * headkv_log2e * headkv_tanh(x[c][e]);
            }
        }
    }
    if (n == headkv_rows_tile && cell < 0) {
        return; // as most tiles
    }
#pragma unroll
    for (int c = 0; c < n_cols / 8; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int row = headkv_row_index<type, n_embd>(lane / 4, e / 2);
            if (row >= n) {
                x[c][e] = -INFINITY;
            } else if (cell >= 0) {
                x[c][e] += headkv_log2e * headkv_mask_at(p, col + 8 * c + lane % 4 * 2 + e % 2, cell + row);
            }
        }
    }
}

// takes the logits' maximum into account and makes them weights
template <int n_embd, int n_cols>
static __device__ __forceinline__ void headkv_weights(headkv_softmax<n_embd, n_cols> & sm, float (*x)[4]) {
    float m[n_cols / 8][2];
    bool rescale = false;
#pragma unroll
    for (int c = 0; c < n_cols / 8; ++c) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            m[c][e]  = fmaxf(sm.m[c][e], headkv_max_rows(fmaxf(x[c][e], x[c][e + 2])));
            rescale |= m[c][e] > sm.m[c][e];
        }
    }
    if (headkv_any(rescale)) {
#pragma unroll
        for (int c = 0; c < n_cols / 8; ++c) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const float f = headkv_exp2(sm.m[c][e], m[c][e]);

                sm.m[c][e]  = m[c][e];
                sm.s[c][e] *= f;
#pragma unroll
                for (int d = 0; d < n_embd / 16; ++d) {
                    sm.acc[d][c][e]     *= f;
                    sm.acc[d][c][e + 2] *= f;
                }
            }
        }
    }
#pragma unroll
    for (int c = 0; c < n_cols / 8; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const float seen = sm.m[c][e % 2] == -INFINITY ? 0.0f : sm.m[c][e % 2]; // then x is -INFINITY as well

            x[c][e]         = exp2f(x[c][e] - seen);
            sm.s[c][e % 2] += x[c][e];
        }
    }
}

// x += K*Q^T of 16 rows in shared memory
template <headkv_type type, int n_embd, int n_cols>
static __device__ __forceinline__ void headkv_logits(float (*x)[4], const headkv_queries<type, n_embd, n_cols> & q,
                                                     const char * k, int lane) {
    uint32_t b[n_cols / 8][2];

    if constexpr (headkv_has_blocks(type)) {
#pragma unroll
        for (int j = 0; j < n_embd / 32; ++j) {
            uint32_t a[2][4];
            uint32_t d[2];
            headkv_frag_k_biased<type, n_embd>(a, d, k, j, lane);

            if constexpr (headkv_queries<type, n_embd, n_cols>::kept) {
                // bias and scale are taken care of with the products, which are fewer than values
                float y[4] = { q.begin[j][0], q.begin[j][1], q.begin[j][2], q.begin[j][3] };
                headkv_mma<type>(y, a[0], q.b[2 * j]);
                headkv_mma<type>(y, a[1], q.b[2 * j + 1]);
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    x[0][e] += headkv_f16_to_f32(d[e / 2]) * y[e];
                }
            } else {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        a[i][e] = headkv_unbiased<type>(a[i][e], i, d[e % 2] * 0x10001);
                    }
                    headkv_frag_q<n_cols, headkv_q_pitch(n_embd)>(b, q.smem, 2 * j + i, lane);
#pragma unroll
                    for (int c = 0; c < n_cols / 8; ++c) {
                        headkv_mma<type>(x[c], a[i], b[c]);
                    }
                }
            }
        }
    } else {
#pragma unroll
        for (int j = 0; j < n_embd / 16; ++j) {
            uint32_t a[4];
            headkv_frag_k_16<headkv_pitch(type, n_embd)>(a, k, j, lane);
            headkv_frag_q<n_cols, headkv_q_pitch(n_embd)>(b, q.smem, j, lane);
#pragma unroll
            for (int c = 0; c < n_cols / 8; ++c) {
                headkv_mma<type>(x[c], a, b[c]);
            }
        }
    }
}

// n rows of K and V in shared memory against the queries
template <headkv_type type, int n_embd, int n_cols>
static __device__ __forceinline__ void headkv_attend(const headkv_attn_params & p, headkv_softmax<n_embd, n_cols> & sm,
                                                     const headkv_queries<type, n_embd, n_cols> & q, const char * k,
                                                     const char * v, int n, int cell, int col, int lane) {
    constexpr int n_step = headkv_has_blocks(type) ? 2 : 1; // products of a step, 16 values each

    float x[n_cols / 8][4] = {};
    headkv_logits<type, n_embd, n_cols>(x, q, k, lane);
    headkv_finish_logits<type, n_embd, n_cols>(p, x, n, cell, col, lane);
    headkv_weights<n_embd, n_cols>(sm, x);

    // the weights lie as a result [row][column]; as the right operand they are read column by column
    uint32_t b[n_cols / 8][2];
#pragma unroll
    for (int c = 0; c < n_cols / 8; ++c) {
        b[c][0] = headkv_movmatrix_trans(headkv_pack<type>(x[c][0], x[c][1]));
        b[c][1] = headkv_movmatrix_trans(headkv_pack<type>(x[c][2], x[c][3]));
    }

#pragma unroll
    for (int j = 0; j < n_embd / 16 / n_step; ++j) {
        uint32_t a[n_step][4];
        if constexpr (headkv_has_blocks(type)) {
            headkv_frag_v_block<type, n_embd>(a, v, j, lane);
        } else {
            headkv_frag_v_16<headkv_pitch(type, n_embd)>(a[0], v, j, lane);
        }
#pragma unroll
        for (int i = 0; i < n_step; ++i) {
#pragma unroll
            for (int c = 0; c < n_cols / 8; ++c) {
                headkv_mma<type>(sm.acc[j * n_step + i][c], a[i], b[c]);
            }
        }
    }
}
