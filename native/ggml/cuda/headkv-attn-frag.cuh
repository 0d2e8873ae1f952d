#pragma once

// Rows of K and V in shared memory as operands of the tensor cores. Both are the left one, A[16][16]: register 0 of
// lane (g = lane/4, t = lane%4) holds A[g][2t, 2t + 1], 1 holds A[g + 8][2t, 2t + 1], 2 and 3 the same 8 columns on.
//
// 16 bit types come by ldmatrix. Blocks become f16 on the way: the bits of a value are put into the mantissa of a
// power of two, one instruction for two values, and a bias is left to take away. A sum does not ask in which order it
// is made, so a lane reads the bytes that lie together, headkv_k_index and headkv_v_index say which values these are,
// and headkv_row_index deals out the rows so that the lanes of a warp read from different banks.

#include "headkv-attn-params.h"
#include "headkv-ptx.cuh"

static __device__ __forceinline__ uint32_t headkv_u16(const char * p) {
    return *(const uint16_t *) p;
}

// two words of 16 bits
static __device__ __forceinline__ uint32_t headkv_pair_u16(uint32_t lo, uint32_t hi) {
    return headkv_byte_perm(lo, hi, 0x5410);
}

// 4 bytes that are aligned to 4 or to 2
static __device__ __forceinline__ uint32_t headkv_u32(const char * p, bool aligned) {
    return aligned ? *(const uint32_t *) p : headkv_pair_u16(headkv_u16(p), headkv_u16(p + 2));
}

// are the values of block j aligned to 4, in every row
template <headkv_type type, int n_embd>
static __device__ __forceinline__ constexpr bool headkv_aligned(int j) {
    return headkv_row_size(type, n_embd) % 4 == 0 && (headkv_row_size(type, 32) * j + 2) % 4 == 0;
}

// Two values of a block in f16, each more by headkv_bias(): bytes 0 and 2 of w, or for q4_0 the lower (0) or upper (1)
// halves of these bytes. In f16 0x6400 is 1024 and its lowest bit is worth 1; 0x5400 is 64, and bit 4 is worth 1.
template <headkv_type type>
static __device__ __forceinline__ uint32_t headkv_biased(uint32_t w, int half) {
    return type == HEADKV_Q8_0 ? headkv_and_xor(w, 0x00FF00FF, 0x64806480)
           : half == 0         ? headkv_and_xor(w, 0x000F000F, 0x64006400)
                               : headkv_and_xor(w, 0x00F000F0, 0x54005400);
}

template <headkv_type type>
static __device__ __forceinline__ constexpr uint32_t headkv_bias(int half) {
    return type == HEADKV_Q8_0 ? 0x64806480 : half == 0 ? 0x64086408 : 0x54805480; // 1152, 1032, 72
}

// which row of a tile is row g (high: g + 8) of the operand K; also of a pair of rows of V, which take their order
template <headkv_type type, int n_embd>
static __device__ __forceinline__ constexpr int headkv_row_index(int g, int high) {
    return headkv_has_blocks(type) && headkv_row_size(type, n_embd) % 16 == 8 ? 2 * g + high : g + 8 * high;
}

// which value of a row is column i of the operand K
template <headkv_type type>
static __device__ __forceinline__ constexpr int headkv_k_index(int i) {
    return headkv_has_blocks(type) ? i / 16 * 16 + i % 8 / 2 * 4 + i % 2 * 2 + i / 8 % 2 : i;
}

// which value of a row is row g (high: g + 8) of the operand V of product j
template <headkv_type type>
static __device__ __forceinline__ constexpr int headkv_v_index(int j, int g, int high) {
    return type == HEADKV_Q8_0   ? j / 2 * 32 + j % 2 * 2 + 4 * g + high
           : type == HEADKV_Q4_0 ? j * 16 + 2 * g + high
                                 : j * 16 + 8 * high + g;
}

// A[row][i] of block j, for two products: values that are biased and lack the scales d of the lane's two rows
template <headkv_type type, int n_embd>
static __device__ __forceinline__ void headkv_frag_k_biased(uint32_t (*a)[4], uint32_t * d, const char * tile, int j,
                                                            int lane) {
    const bool aligned = headkv_aligned<type, n_embd>(j);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row      = headkv_row_index<type, n_embd>(lane / 4, r);
        const char * block = tile + row * headkv_pitch(type, n_embd) + j * headkv_row_size(type, 32);
        const char * qs    = block + 2 + lane % 4 * 4;

        const uint32_t w0 = headkv_u32(qs, aligned);
        const uint32_t w1 = type == HEADKV_Q8_0 ? headkv_u32(qs + 16, aligned) : w0;

        d[r]        = headkv_u16(block);
        a[0][r]     = headkv_biased<type>(w0, 0);
        a[0][2 + r] = headkv_biased<type>(w0 >> 8, 0);
        a[1][r]     = headkv_biased<type>(w1, 1);
        a[1][2 + r] = headkv_biased<type>(w1 >> 8, 1);
    }
}

// a value of a block from a biased one; d: scales
template <headkv_type type>
static __device__ __forceinline__ uint32_t headkv_unbiased(uint32_t x, int half, uint32_t d) {
    return headkv_mul_f16(headkv_sub_f16(x, headkv_bias<type>(half)), d);
}

// A[i][row] of block j, for two products
template <headkv_type type, int n_embd>
static __device__ __forceinline__ void headkv_frag_v_block(uint32_t (*a)[4], const char * tile, int j, int lane) {
    const int g = lane / 4;
    const int t = lane % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const char * blocks = tile + j * headkv_row_size(type, 32);
        const char * block0 = blocks + headkv_row_index<type, n_embd>(2 * t, r) * headkv_pitch(type, n_embd);
        const char * block1 = blocks + headkv_row_index<type, n_embd>(2 * t + 1, r) * headkv_pitch(type, n_embd);

        const uint32_t d = headkv_pair_u16(headkv_u16(block0), headkv_u16(block1));

        uint32_t w[2]; // of both rows two bytes
        if (type == HEADKV_Q4_0) {
            w[0] = headkv_pair_u16(headkv_u16(block0 + 2 + 2 * g), headkv_u16(block1 + 2 + 2 * g));
            w[1] = w[0];
        } else if (headkv_aligned<type, n_embd>(j)) {
            const uint32_t x0 = *(const uint32_t *) (block0 + 2 + 4 * g);
            const uint32_t x1 = *(const uint32_t *) (block1 + 2 + 4 * g);
            w[0]              = headkv_byte_perm(x0, x1, 0x5410);
            w[1]              = headkv_byte_perm(x0, x1, 0x7632);
        } else {
            w[0] = headkv_pair_u16(headkv_u16(block0 + 2 + 4 * g), headkv_u16(block1 + 2 + 4 * g));
            w[1] = headkv_pair_u16(headkv_u16(block0 + 4 + 4 * g), headkv_u16(block1 + 4 + 4 * g));
        }
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            a[s][2 * r]     = headkv_unbiased<type>(headkv_biased<type>(w[s], s), s, d);
            a[s][2 * r + 1] = headkv_unbiased<type>(headkv_biased<type>(w[s] >> 8, s), s, d);
        }
    }
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
