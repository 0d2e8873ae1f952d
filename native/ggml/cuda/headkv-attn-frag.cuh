#pragma once

// Rows of K and V in shared memory as operands of the tensor cores. Both are the left one, A[16][16]: register 0 of
// lane (g = lane/4, t = lane%4) holds A[g][2t, 2t + 1], 1 holds A[g + 8][2t, 2t + 1], 2 and 3 the same 8 columns on.
// 16 bit types come by ldmatrix; blocks are dequantized to f16 on the way, two bytes of a row at a time, since their
// rows are aligned to no more.

#include "headkv-attn-params.h"
#include "headkv-ptx.cuh"

// bytes b of w, unsigned, in f16: 0x6400 is 1024, and the lowest bit of its mantissa is worth one
static __device__ __forceinline__ uint32_t headkv_bytes_f16(uint32_t w, uint32_t sel, uint32_t bias, uint32_t d) {
    return headkv_sub_mul_f16(headkv_byte_perm(w, 0x64646464, sel), bias, d);
}

constexpr uint32_t headkv_bias_q8_0 = 0x64806480; // 1024 + 128: q8_0 with its sign bit flipped
constexpr uint32_t headkv_bias_q4_0 = 0x64086408; // 1024 + 8

static __device__ __forceinline__ uint32_t headkv_u16(const char * p) {
    return *(const uint16_t *) p;
}

// two values that lie side by side, and two that lie in two words of 16 bits
constexpr uint32_t headkv_sel_pair = 0x4140; // bytes 0 and 1
constexpr uint32_t headkv_sel_low  = 0x4240; // bytes 0 and 2
constexpr uint32_t headkv_sel_high = 0x4341; // bytes 1 and 3

// A[row][i]: 32 values from 32*j on of the tile's 16 rows, for two products
template <headkv_type type, int n_embd>
static __device__ __forceinline__ void headkv_frag_k_32(uint32_t (*a)[4], const char * tile, int j, int lane) {
    constexpr int pitch = headkv_pitch(type, n_embd);

    const int t = lane % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const char * block = tile + (lane / 4 + 8 * r) * pitch + j * (type == HEADKV_Q8_0 ? 34 : 18);
        const char * qs    = block + 2 + 2 * t;

        const uint32_t d = headkv_u16(block) * 0x10001;
        if (type == HEADKV_Q8_0) {
#pragma unroll
            for (int s = 0; s < 4; ++s) {
                const uint32_t w        = headkv_u16(qs + 8 * s) ^ 0x8080;
                a[s / 2][s % 2 * 2 + r] = headkv_bytes_f16(w, headkv_sel_pair, headkv_bias_q8_0, d);
            }
        } else {
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                const uint32_t w = headkv_u16(qs + 8 * s);
                a[0][s * 2 + r]  = headkv_bytes_f16(w & 0x0F0F, headkv_sel_pair, headkv_bias_q4_0, d);
                a[1][s * 2 + r]  = headkv_bytes_f16((w >> 4) & 0x0F0F, headkv_sel_pair, headkv_bias_q4_0, d);
            }
        }
    }
}

// A[i][row]: 32 values from 32*j on of the tile's 16 rows, for two products; row m of the fragment of a 16 bit type
// is value m, of a quantized type value headkv_v_index(m)
template <headkv_type type, int n_embd>
static __device__ __forceinline__ void headkv_frag_v_32(uint32_t (*a)[4], const char * tile, int j, int lane) {
    constexpr int pitch = headkv_pitch(type, n_embd);

    const int g = lane / 4;
    const int t = lane % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const char * block0 = tile + (2 * t + 8 * r) * pitch + j * (type == HEADKV_Q8_0 ? 34 : 18);
        const char * block1 = block0 + pitch;

        const uint32_t d = headkv_u16(block0) | headkv_u16(block1) << 16;
        if (type == HEADKV_Q8_0) {
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                const int at     = 2 + 2 * g + 16 * s;
                const uint32_t w = (headkv_u16(block0 + at) | headkv_u16(block1 + at) << 16) ^ 0x80808080;
                a[s][2 * r]      = headkv_bytes_f16(w, headkv_sel_low, headkv_bias_q8_0, d);
                a[s][2 * r + 1]  = headkv_bytes_f16(w, headkv_sel_high, headkv_bias_q8_0, d);
            }
        } else {
            const int at     = 2 + 2 * g;
            const uint32_t w = headkv_u16(block0 + at) | headkv_u16(block1 + at) << 16;
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                const uint32_t nibbles = (w >> (4 * s)) & 0x0F0F0F0F;
                a[s][2 * r]            = headkv_bytes_f16(nibbles, headkv_sel_low, headkv_bias_q4_0, d);
                a[s][2 * r + 1]        = headkv_bytes_f16(nibbles, headkv_sel_high, headkv_bias_q4_0, d);
            }
        }
    }
}

// which of 16 values row g (high: g + 8) of a fragment of V is
template <headkv_type type>
static __device__ __forceinline__ int headkv_v_index(int g, bool high) {
    if (type == HEADKV_F16 || type == HEADKV_BF16) {
        return g + (high ? 8 : 0);
    }
    return 2 * g + (high ? 1 : 0);
}

// A[row][i] of a 16 bit type: 16 values from 16*j on
template <int pitch>
static __device__ __forceinline__ void headkv_frag_k_16(uint32_t * a, const char * tile, int j, int lane) {
    headkv_ldmatrix_x4(a, tile + lane % 16 * pitch + j * 32 + lane / 16 * 16);
}

// A[i][row] of a 16 bit type: 16 values from 16*j on
template <int pitch>
static __device__ __forceinline__ void headkv_frag_v_16(uint32_t * a, const char * tile, int j, int lane) {
    headkv_ldmatrix_x4_trans(a, tile + (lane % 8 + lane / 16 * 8) * pitch + j * 32 + lane / 8 % 2 * 16);
}

// B[i][column] of n_cols queries of which shared memory holds one per row: 16 values from 16*j on
template <int n_cols, int pitch>
static __device__ __forceinline__ void headkv_frag_q(uint32_t (*b)[2], const char * q, int j, int lane) {
    if (n_cols == 8) {
        headkv_ldmatrix_x2(b[0], q + lane % 8 * pitch + j * 32 + lane / 8 % 2 * 16);
    } else {
#pragma unroll
        for (int c = 0; c < n_cols / 16; ++c) {
            headkv_ldmatrix_x4(b[2 * c], q + (16 * c + lane % 8 + lane / 16 * 8) * pitch + j * 32 + lane / 8 % 2 * 16);
        }
    }
}

// n products' worth of K and of V
template <headkv_type type, int n_embd, int n>
static __device__ __forceinline__ void headkv_frag_k(uint32_t (*a)[4], const char * tile, int j, int lane) {
    if (type == HEADKV_F16 || type == HEADKV_BF16) {
#pragma unroll
        for (int i = 0; i < n; ++i) {
            headkv_frag_k_16<headkv_pitch(type, n_embd)>(a[i], tile, j * n + i, lane);
        }
    } else {
        headkv_frag_k_32<type, n_embd>(a, tile, j, lane);
    }
}

template <headkv_type type, int n_embd, int n>
static __device__ __forceinline__ void headkv_frag_v(uint32_t (*a)[4], const char * tile, int j, int lane) {
    if (type == HEADKV_F16 || type == HEADKV_BF16) {
#pragma unroll
        for (int i = 0; i < n; ++i) {
            headkv_frag_v_16<headkv_pitch(type, n_embd)>(a[i], tile, j * n + i, lane);
        }
    } else {
        headkv_frag_v_32<type, n_embd>(a, tile, j, lane);
    }
}

template <headkv_type type>
static __device__ __forceinline__ void headkv_mma(float * c, const uint32_t * a, const uint32_t * b) {
    if (type == HEADKV_BF16) {
        headkv_mma_bf16(c, a, b);
    } else {
        headkv_mma_f16(c, a, b);
    }
}

template <headkv_type type>
static __device__ __forceinline__ uint32_t headkv_pack(float lo, float hi) {
    return type == HEADKV_BF16 ? headkv_pack_bf16(lo, hi) : headkv_pack_f16(lo, hi);
}
