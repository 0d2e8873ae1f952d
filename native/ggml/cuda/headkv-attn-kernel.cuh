#pragma once

// Partial results of the segments. The warps of a block take the tiles of a segment in turn; each has tiles in shared
// memory for itself and waits for nobody until the segment ends.

#include "headkv-attn-load.cuh"
#include "headkv-attn-segment.cuh"
#include "headkv-attn-tile.cuh"

// starts the copy of tile i to stage
template <headkv_type type, int n_embd>
static __device__ __forceinline__ void headkv_load_tile(const headkv_attn_params & p, const headkv_segment & seg, int i,
                                                        char * stage, int lane) {
    constexpr int row_size = headkv_row_size(type, n_embd);
    constexpr int pitch    = headkv_pitch(type, n_embd);

    char * k = stage;
    char * v = stage + headkv_tile_size(type, n_embd);

    const int at = i * headkv_rows_tile;
    if (at < seg.n_pool) {
        const int n = min(seg.n_pool - at, headkv_rows_tile);

        headkv_load_pool<type, n_embd>(k, p.k_pool, seg.row, at, n, lane);
        headkv_load_pool<type, n_embd>(v, p.v_pool, seg.row, at, n, lane);
    } else {
        const int at_tail  = (i - seg.n_tiles_pool()) * headkv_rows_tile;
        const int n        = min(seg.n_tail - at_tail, headkv_rows_tile);
        const int64_t cell = seg.cell + at_tail;

        headkv_load_rows<row_size, pitch>(k, p.k_tail + cell * p.nb_k_cell + seg.h * p.nb_k_head, p.nb_k_cell, n,
                                          p.k_tail_width, lane);
        headkv_load_rows<row_size, pitch>(v, p.v_tail + cell * p.nb_v_cell + seg.h * p.nb_v_head, p.nb_v_cell, n,
                                          p.v_tail_width, lane);
    }
}

// tile i, which has arrived in stage
template <headkv_type type, int n_embd, int n_cols>
static __device__ __forceinline__ void
headkv_attend_tile(const headkv_attn_params & p, const headkv_segment & seg, headkv_softmax<n_embd, n_cols> & sm, int i,
                   const headkv_queries<type, n_embd, n_cols> & q, const char * stage, int col, int lane) {
    const int at      = i * headkv_rows_tile;
    const int at_tail = (i - seg.n_tiles_pool()) * headkv_rows_tile;

    const bool pool = at < seg.n_pool;
    const int n     = min(pool ? seg.n_pool - at : seg.n_tail - at_tail, headkv_rows_tile);
    const int phase = pool ? headkv_pool_phase<type, n_embd>(seg.row) : 0;

    const char * k = stage + phase;
    headkv_attend<type, n_embd, n_cols>(p, sm, q, k, k + headkv_tile_size(type, n_embd), n,
                                        pool ? -1 : seg.cell + at_tail, col, lane);
}

// queries of head h from column col on, scaled so that the product with K is what exp2f() or tanh takes
template <headkv_type type, int n_embd, int n_cols>
static __device__ __forceinline__ void headkv_load_q(const headkv_attn_params & p, int h, int col, char * q) {
    const float scale = p.softcap == 0.0f ? p.scale * headkv_log2e : p.scale / p.softcap;

    for (int i = threadIdx.x; i < n_cols * n_embd / 2; i += blockDim.x) {
        const int c = i / (n_embd / 2);
        const int d = i % (n_embd / 2);
        const int t = (col + c) / p.n_gqa;

        float x[2] = { 0.0f, 0.0f };
        if (t < p.n_tokens) {
            const int head    = h * p.n_gqa + (col + c) % p.n_gqa;
            const float * src = (const float *) (p.q + t * p.nb_q_token + head * p.nb_q_head);
            x[0]              = src[headkv_k_index<type>(2 * d)] * scale;
            x[1]              = src[headkv_k_index<type>(2 * d + 1)] * scale;
        }
        *(uint32_t *) (q + c * headkv_q_pitch(n_embd) + d * 4) = headkv_pack<type>(x[0], x[1]);
    }
}

// all warps' results become one partial result; ms: [2][n_warps][n_cols], sum: [n_cols][n_embd + 4]
template <headkv_type type, int n_embd, int n_cols>
static __device__ __forceinline__ void headkv_write_partial(const headkv_attn_params & p,
                                                            headkv_softmax<n_embd, n_cols> & sm, int h, float * ms,
                                                            float * sum, int warp, int lane) {
    constexpr int n_warps = headkv_n_warps(n_embd);
    constexpr int pitch   = n_embd + 4;

#pragma unroll
    for (int c = 0; c < n_cols / 8; ++c) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const float s = headkv_sum_rows(sm.s[c][e]);
            const int col = 8 * c + lane % 4 * 2 + e;
            if (lane < 4) {
                ms[warp * n_cols + col]             = sm.m[c][e];
                ms[(n_warps + warp) * n_cols + col] = s;
            }
        }
    }
    headkv_sync_block(); // from here on nobody needs the tiles

    float f[n_cols / 8][2];
#pragma unroll
    for (int c = 0; c < n_cols / 8; ++c) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            float m = -INFINITY;
            for (int w = 0; w < n_warps; ++w) {
                m = fmaxf(m, ms[w * n_cols + 8 * c + lane % 4 * 2 + e]);
            }
            f[c][e] = headkv_exp2(sm.m[c][e], m);
        }
    }

    for (int w = 0; w < n_warps; ++w) {
        if (warp == w) {
#pragma unroll
            for (int d = 0; d < n_embd / 16; ++d) {
#pragma unroll
                for (int c = 0; c < n_cols / 8; ++c) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int at =
                            (8 * c + lane % 4 * 2 + e % 2) * pitch + headkv_v_index<type>(d, lane / 4, e / 2);
                        sum[at] = (w == 0 ? 0.0f : sum[at]) + sm.acc[d][c][e] * f[c][e % 2];
                    }
                }
            }
        }
        headkv_sync_block();
    }

    const int64_t part = (int64_t) blockIdx.y * headkv_n_partials(p) + blockIdx.x + h;
    float * dst_acc    = p.partial_acc + part * n_cols * n_embd;
    float * dst_ms     = p.partial_ms + part * n_cols * 2;

    for (int i = threadIdx.x; i < n_cols * n_embd / 4; i += blockDim.x) {
        *(float4 *) (dst_acc + 4 * i) = *(const float4 *) (sum + 4 * i / n_embd * pitch + 4 * i % n_embd);
    }
    for (int col = threadIdx.x; col < n_cols; col += blockDim.x) {
        float m = -INFINITY;
        float s = 0.0f;
        for (int w = 0; w < n_warps; ++w) {
            m = fmaxf(m, ms[w * n_cols + col]);
        }
        for (int w = 0; w < n_warps; ++w) {
            s += ms[(n_warps + w) * n_cols + col] * headkv_exp2(ms[w * n_cols + col], m);
        }
        dst_ms[2 * col]     = m;
        dst_ms[2 * col + 1] = s;
    }
    headkv_sync_block();
}

// grid: [n_blocks, n_col_tiles], block: 32*n_warps
template <headkv_type type, int n_embd, int n_cols>
static __global__ void __launch_bounds__(32 * headkv_n_warps(n_embd), headkv_blocks_per_sm(n_embd, n_cols))
    headkv_attn_partials(const headkv_attn_params p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    constexpr int n_warps    = headkv_n_warps(n_embd);
    constexpr int n_stages   = headkv_n_stages(type, n_embd);
    constexpr int stage_size = 2 * headkv_tile_size(type, n_embd);

    static_assert(n_cols * (n_embd + 4) * sizeof(float) <= (size_t) n_stages * n_warps * stage_size,
                  "the accumulators take the place of the tiles");

    extern __shared__ __align__(16) char headkv_smem[];

    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;

    char * q     = headkv_smem;
    float * ms   = (float *) (q + n_cols * headkv_q_pitch(n_embd));
    char * tiles = (char *) (ms + 2 * n_warps * n_cols);
    char * mine  = tiles + warp * n_stages * stage_size;

    const int col   = blockIdx.y * n_cols;
    const int range = headkv_range(p);
    const int r1    = min((int) (blockIdx.x + 1) * range, headkv_first_row(p, p.n_head_kv));

    int r0 = blockIdx.x * range;
    for (int h = headkv_head_of(p, r0, lane); r0 < r1; ++h) {
        const int end = min(headkv_first_row(p, h + 1), r1);
        if (end == r0) {
            continue; // a head without rows
        }
        const headkv_segment seg = headkv_segment_of(p, h, r0, end);
        r0                       = end;

        // oldest first, -1 after the last one; every stage is one group of copies, also an empty one
        int ring[n_stages];
        int next = warp;
#pragma unroll
        for (int s = 0; s < n_stages - 1; ++s) {
            ring[s] = next < 0 ? -1 : headkv_next_tile<n_warps, n_cols>(p, seg, next, col, lane);
            next    = ring[s] < 0 ? -1 : ring[s] + n_warps;
            if (ring[s] >= 0) {
                headkv_load_tile<type, n_embd>(p, seg, ring[s], mine + s * stage_size, lane);
            }
            headkv_cp_async_commit();
        }

        headkv_load_q<type, n_embd, n_cols>(p, h, col, q);
        headkv_sync_block();
        const headkv_queries<type, n_embd, n_cols> queries(q, lane);

        headkv_softmax<n_embd, n_cols> sm;
#pragma unroll
        for (int c = 0; c < n_cols / 8; ++c) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                sm.m[c][e] = -INFINITY;
                sm.s[c][e] = 0.0f;
#pragma unroll
                for (int d = 0; d < n_embd / 16; ++d) {
                    sm.acc[d][c][e]     = 0.0f;
                    sm.acc[d][c][e + 2] = 0.0f;
                }
            }
        }

        for (unsigned stage = 0; ring[0] >= 0; stage = (stage + 1) % n_stages) {
            const int last = n_stages - 1;

            ring[last] = next < 0 ? -1 : headkv_next_tile<n_warps, n_cols>(p, seg, next, col, lane);
            next       = ring[last] < 0 ? -1 : ring[last] + n_warps;
            if (ring[last] >= 0) {
                headkv_load_tile<type, n_embd>(p, seg, ring[last], mine + (stage + last) % n_stages * stage_size, lane);
            }
            headkv_cp_async_commit();

            headkv_cp_async_wait<n_stages - 1>();
            headkv_sync_warp();
            headkv_attend_tile<type, n_embd, n_cols>(p, seg, sm, ring[0], queries, mine + stage * stage_size, col,
                                                     lane);
            headkv_sync_warp(); // the next copy goes to this stage

#pragma unroll
            for (int s = 0; s < last; ++s) {
                ring[s] = ring[s + 1];
            }
        }

        headkv_write_partial<type, n_embd, n_cols>(p, sm, h, ms, (float *) tiles, warp, lane);
    }
#endif
}
