#pragma once

// Copies of up to 16 rows of K or V into shared memory, by one warp, in its current group of asynchronous copies.
// Rows that are missing from the tile become zeros: their logits are masked, but what V holds is multiplied by zero.

#include "headkv-attn-params.h"
#include "headkv-ptx.cuh"

// rows of nb bytes distance, in pieces of W bytes
template <int row_size, int pitch, int W>
static __device__ __forceinline__ void headkv_load_rows_w(char * dst, const char * src, int64_t nb, int n, int lane) {
    constexpr int n_pieces = row_size / W; // of a row
    constexpr int n_all    = headkv_rows_tile * n_pieces;

#pragma unroll(W == 16 ? 32 : 1)
    for (int i0 = 0; i0 < n_all; i0 += 32) {
        const int i = i0 + lane;
        if (n_all % 32 != 0 && i >= n_all) {
            break;
        }
        const int row = i / n_pieces;
        const int at  = i % n_pieces * W;
        // no pointer past the rows, not even one that nothing is read from
        const char * from = src + (row < n ? row * nb + at : 0);
        char * to         = dst + row * pitch + at;

        if constexpr (W >= 4) {
            headkv_cp_async<W>(to, from, row < n ? W : 0);
        } else {
            *(uint16_t *) to = row < n ? *(const uint16_t *) from : 0;
        }
    }
}

// width: 16, 8, 4 or 2, divides addresses and strides
template <int row_size, int pitch>
static __device__ __forceinline__ void headkv_load_rows(char * dst, const char * src, int64_t nb, int n, int width,
                                                        int lane) {
    if (row_size % 16 == 0 && width == 16) {
        headkv_load_rows_w<row_size, pitch, row_size % 16 == 0 ? 16 : 2>(dst, src, nb, n, lane);
    } else if (row_size % 16 == 8 && width >= 8) {
        headkv_load_rows_w<row_size, pitch, row_size % 16 == 8 ? 8 : 2>(dst, src, nb, n, lane);
    } else if (row_size % 4 == 0 && width >= 4) {
        headkv_load_rows_w<row_size, pitch, row_size % 4 == 0 ? 4 : 2>(dst, src, nb, n, lane);
    } else {
        headkv_load_rows_w<row_size, pitch, 2>(dst, src, nb, n, lane);
    }
}

// n rows side by side, the first of them phase bytes behind src, which is aligned to 16; so they lie in dst
template <int row_size, bool full>
static __device__ __forceinline__ void headkv_load_run(char * dst, const char * src, int phase, int n, int lane) {
    constexpr int n_whole = full ? row_size : 0; // pieces of 16 bytes that a full tile has in any phase
    constexpr int n_all   = headkv_rows_tile * row_size / 16 + 1;

    const int size = phase + (full ? headkv_rows_tile : n) * row_size;

#pragma unroll
    for (int i0 = 0; i0 < n_all; i0 += 32) {
        const int i = i0 + lane;
        if (i0 + 32 <= n_whole) {
            headkv_cp_async<16>(dst + i * 16, src + i * 16, 16);
            continue;
        }
        if (i >= n_all) {
            break;
        }
        const int left = size - i * 16;
        // no pointer past the rows, not even one that nothing is read from
        headkv_cp_async<16>(dst + i * 16, src + (left > 0 ? i * 16 : 0), left >= 16 ? 16 : left > 0 ? left : 0);
    }
}

// where rows from row on begin in shared memory; the same for the row 16 behind
template <headkv_type type, int n_embd>
static __device__ __forceinline__ int headkv_pool_phase(int row) {
    return headkv_has_blocks(type) ? ((uint32_t) row * (uint32_t) headkv_row_size(type, n_embd)) & 15 : 0;
}

// a tile of the pool: n rows from row + at on; at is a multiple of a tile
template <headkv_type type, int n_embd>
static __device__ __forceinline__ void headkv_load_pool(char * dst, const char * base, int row, int at, int n,
                                                        int lane) {
    constexpr int row_size = headkv_row_size(type, n_embd);
    constexpr int pitch    = headkv_pitch(type, n_embd);

    const int phase  = headkv_pool_phase<type, n_embd>(row);
    const char * src = base + ((int64_t) row * row_size - phase) + (int64_t) at * row_size;

    if (!headkv_has_blocks(type)) {
        headkv_load_rows<row_size, pitch>(dst, src, row_size, n, 16, lane);
    } else if (n == headkv_rows_tile) {
        headkv_load_run<row_size, true>(dst, src, phase, n, lane);
    } else {
        headkv_load_run<row_size, false>(dst, src, phase, n, lane);
    }
}
