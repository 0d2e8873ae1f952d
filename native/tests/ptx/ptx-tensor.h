#pragma once

// Tensor cores: 8x8 matrices from shared memory, and products of 16x8 results. Which lane holds what: PTX manual,
// "Matrix multiply-accumulate". Row g = l/4 and column pair t = l%4 of lane l.

#include "ptx-warp.h"

template <int n, bool transposed>
PTX_CALL void load_matrices(const ptx_warp & w, u32v (&res)[n], u64v address, int64_t offset) {
    for (int i = 0; i < n; ++i) {
        uint16_t x[8][8];
        for (int row = 0; row < 8; ++row) {
            const uint64_t p = address[8 * i + row] + offset;
            w.memory->check(p, 16, 16);
            memcpy(x[row], (const void *) p, 16);
        }
        PTX_EACH {
            const int g   = l / 4;
            const int t   = l % 4;
            const auto lo = transposed ? x[2 * t][g] : x[g][2 * t];
            const auto hi = transposed ? x[2 * t + 1][g] : x[g][2 * t + 1];
            res[i][l]     = lo | (uint32_t) hi << 16;
        }
    }
}

PTX_CALL u32v transpose_matrix(u32v a) {
    uint16_t x[8][8];
    PTX_EACH {
        x[l / 4][l % 4 * 2]     = a[l];
        x[l / 4][l % 4 * 2 + 1] = a[l] >> 16;
    }
    u32v res;
    PTX_EACH {
        res[l] = x[l % 4 * 2][l / 4] | (uint32_t) x[l % 4 * 2 + 1][l / 4] << 16;
    }
    return res;
}

// a[16][k]*b[k][8] in sum; the operands come as [16][k] and [8][k]
template <typename T, typename S, int k>
PTX_INLINE void multiply(const T (&a)[16][k], const T (&b)[8][k], S (&res)[16][8]) {
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 8; ++j) {
            S sum = 0;
            for (int d = 0; d < k; ++d) {
                sum += (S) a[i][d] * (S) b[j][d];
            }
            res[i][j] = sum;
        }
    }
}

// registers with 32/bits values each become rows: 16 of the left operand, 8 of the right one
template <int bits, typename T, int rows, int k, typename F>
PTX_INLINE void unpack(const u32v (&x)[rows / 4], T (&res)[rows][k], F value) {
    constexpr int n      = 32 / bits;
    constexpr int n_high = rows / 8; // matrices of 8 rows, one below the other
    PTX_EACH {
        for (int i = 0; i < rows / 4; ++i) {
            for (int e = 0; e < n; ++e) {
                res[l / 4 + i % n_high * 8][l % 4 * n + e + i / n_high * 4 * n] = value(x[i][l] >> (bits * e));
            }
        }
    }
}

template <int k, int bits, typename F>
PTX_INLINE void mma_f32(u32v (&d)[4], const u32v (&a)[4], const u32v (&b)[2], const u32v (&c)[4], F value) {
    float x[16][k];
    float y[8][k];
    float sum[16][8];
    unpack<bits>(a, x, value);
    unpack<bits>(b, y, value);
    multiply(x, y, sum);
    PTX_EACH {
        for (int e = 0; e < 4; ++e) {
            d[e][l] = f32_to_bits(bits_to_f32(c[e][l]) + sum[l / 4 + e / 2 * 8][l % 4 * 2 + e % 2]);
        }
    }
}

PTX_CALL void mma_m16n8k16_f32_f16(u32v (&d)[4], const u32v (&a)[4], const u32v (&b)[2], const u32v (&c)[4]) {
    mma_f32<16, 16>(d, a, b, c, [](uint32_t x) { return f16_to_f32(x); });
}

PTX_CALL void mma_m16n8k16_f32_bf16(u32v (&d)[4], const u32v (&a)[4], const u32v (&b)[2], const u32v (&c)[4]) {
    mma_f32<16, 16>(d, a, b, c, [](uint32_t x) { return bf16_to_f32(x); });
}

PTX_CALL void mma_m16n8k8_f32_tf32(u32v (&d)[4], const u32v (&a)[4], const u32v (&b)[2], const u32v (&c)[4]) {
    mma_f32<8, 32>(d, a, b, c, [](uint32_t x) { return bits_to_f32(x & 0xFFFFE000u); });
}

PTX_CALL void mma_m16n8k16_f16_f16(u32v (&d)[2], const u32v (&a)[4], const u32v (&b)[2], const u32v (&c)[2]) {
    float x[16][16];
    float y[8][16];
    float sum[16][8];
    unpack<16>(a, x, [](uint32_t v) { return f16_to_f32(v); });
    unpack<16>(b, y, [](uint32_t v) { return f16_to_f32(v); });
    multiply(x, y, sum);
    PTX_EACH {
        for (int i = 0; i < 2; ++i) {
            uint32_t bits = 0;
            for (int e = 0; e < 2; ++e) {
                const float v  = f16_to_f32(c[i][l] >> (16 * e)) + sum[l / 4 + i * 8][l % 4 * 2 + e];
                bits          |= (uint32_t) f32_to_f16(v) << (16 * e);
            }
            d[i][l] = bits;
        }
    }
}

PTX_CALL void mma_m16n8k32_s32_s8(u32v (&d)[4], const u32v (&a)[4], const u32v (&b)[2], const u32v (&c)[4]) {
    int16_t x[16][32];
    int16_t y[8][32];
    int32_t sum[16][8];
    unpack<8>(a, x, [](uint32_t v) { return (int8_t) v; });
    unpack<8>(b, y, [](uint32_t v) { return (int8_t) v; });
    multiply(x, y, sum);
    PTX_EACH {
        for (int e = 0; e < 4; ++e) {
            d[e][l] = c[e][l] + (uint32_t) sum[l / 4 + e / 2 * 8][l % 4 * 2 + e % 2];
        }
    }
}
