#pragma once

// Which rows a block takes, head by head, and which tiles of them a warp.

#include "headkv-attn-params.h"
#include "headkv-ptx.cuh"

// rows of the heads before h
static __device__ __forceinline__ int headkv_first_row(const headkv_attn_params & p, int h) {
    return p.rows[h] - p.rows[0] + h * p.n_kv;
}

// rows of a block's range; whole tiles, so that a head that is alone in many of them is not cut within
static __device__ __forceinline__ int headkv_range(const headkv_attn_params & p) {
    const int n     = (headkv_first_row(p, p.n_head_kv) + p.n_blocks - 1) / p.n_blocks;
    const int tiles = (n + headkv_rows_tile - 1) / headkv_rows_tile;
    return max(tiles * headkv_rows_tile, headkv_rows_block);
}

// which head has row r of all heads' rows
static __device__ __forceinline__ int headkv_head_of(const headkv_attn_params & p, int r, int lane) {
    int n = 0; // heads that end before
    for (int h = 0; h < p.n_head_kv; h += 32) {
        n += headkv_count(h + lane < p.n_head_kv && headkv_first_row(p, h + lane + 1) <= r);
    }
    return n;
}

// rows of one head; a tile lies in the pool or in the tail, never in both
struct headkv_segment {
    int h;
    int row; // of the pool
    int n_pool;
    int cell; // of the tail
    int n_tail;

    __device__ __forceinline__ int n_tiles_pool() const { return (n_pool + headkv_rows_tile - 1) / headkv_rows_tile; }
    __device__ __forceinline__ int n_tiles_tail() const { return (n_tail + headkv_rows_tile - 1) / headkv_rows_tile; }
};

// the part [r0, r1) of all heads' rows, all of head h
static __device__ __forceinline__ headkv_segment headkv_segment_of(const headkv_attn_params & p, int h, int r0,
                                                                   int r1) {
    const int first  = headkv_first_row(p, h);
    const int n_pool = p.rows[h + 1] - p.rows[h];

    const int a = r0 - first; // of the head's rows
    const int b = r1 - first;

    headkv_segment seg;
    seg.h      = h;
    seg.row    = p.rows[h] + a;
    seg.n_pool = max(min(b, n_pool) - a, 0);
    seg.cell   = max(a - n_pool, 0);
    seg.n_tail = max(b - n_pool, 0) - seg.cell;
    return seg;
}

// token of a column; columns past the last query are computed with it and dropped
static __device__ __forceinline__ int headkv_token_of(const headkv_attn_params & p, int col) {
    return p.n_tokens == 1 ? 0 : min(col / p.n_gqa, p.n_tokens - 1); // a decode step needs no division
}

// does any query of the tile see any of n tail cells
static __device__ __forceinline__ bool headkv_visible(const headkv_attn_params & p, int cell, int n, int col,
                                                      int n_cols, int lane) {
    const int t1 = headkv_token_of(p, col + n_cols - 1);

    bool seen = false;
    for (int t = headkv_token_of(p, col) + lane / 16; t <= t1; t += 2) {
        if (lane % 16 < n) {
            seen |= ((const uint16_t *) (p.mask + t * p.nb_mask))[cell + lane % 16] != 0xFC00; // -INFINITY
        }
    }
    return headkv_any(seen);
}

// the first tile from i on that is visible, in the warp's steps; -1 if there is none
template <int n_warps, int n_cols>
static __device__ __forceinline__ int headkv_next_tile(const headkv_attn_params & p, const headkv_segment & seg, int i,
                                                       int col, int lane) {
    const int n_pool = seg.n_tiles_pool();
    const int n_all  = n_pool + seg.n_tiles_tail();
    for (; i < n_all; i += n_warps) {
        const int at = (i - n_pool) * headkv_rows_tile;
        if (i < n_pool || headkv_visible(p, seg.cell + at, min(seg.n_tail - at, headkv_rows_tile), col, n_cols, lane)) {
            return i;
        }
    }
    return -1;
}
