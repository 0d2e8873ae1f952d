#pragma once

// The partial results of a query become its result, always in the order of the blocks.

#include "headkv-attn-segment.cuh"
#include "headkv-attn-tile.cuh"

constexpr int headkv_combine_warps = 8;

constexpr size_t headkv_combine_smem_size(int n_embd) {
    return headkv_combine_warps * (n_embd + 2) * sizeof(float);
}

// grid: [n_head*n_tokens], block: 32*headkv_combine_warps; a warp takes every 8th partial result
template <int n_embd>
static __global__ void headkv_attn_combine(const headkv_attn_params p) {
    extern __shared__ __align__(16) char headkv_smem[];

    constexpr int n_warps = headkv_combine_warps;
    constexpr int n_vec   = (n_embd + 127) / 128; // float4s of a lane

    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;

    const int n_head = p.n_head_kv * p.n_gqa;
    const int head   = blockIdx.x % n_head;
    const int t      = blockIdx.x / n_head;
    const int h      = head / p.n_gqa;
    const int col    = t * p.n_gqa + head % p.n_gqa;

    // the blocks that have seen rows of the head
    const int range = headkv_range(p);
    const int r0    = headkv_first_row(p, h);
    const int r1    = headkv_first_row(p, h + 1);
    const int b0    = r0 / range;
    const int n     = r0 < r1 ? (r1 - 1) / range - b0 + 1 : 0;

    const int64_t part0 = (int64_t) (col / p.n_cols_tile) * headkv_n_partials(p) + b0 + h;
    const int64_t at0   = part0 * p.n_cols_tile + col % p.n_cols_tile;

    float m = p.sinks ? headkv_log2e * p.sinks[head] : -INFINITY;
    for (int i = lane; i < n; i += 32) {
        m = fmaxf(m, p.partial_ms[2 * (at0 + (int64_t) i * p.n_cols_tile)]);
    }
    m = fmaxf(m, headkv_shfl_xor(m, 1));
    m = fmaxf(m, headkv_shfl_xor(m, 2));
    m = headkv_max_rows(m);

    float s             = 0.0f;
    float acc[n_vec][4] = {};
#pragma unroll 4
    for (int i = warp; i < n; i += n_warps) {
        const int64_t at = at0 + (int64_t) i * p.n_cols_tile;
        const float f    = headkv_exp2(p.partial_ms[2 * at], m);

        s += p.partial_ms[2 * at + 1] * f;
#pragma unroll
        for (int v = 0; v < n_vec; ++v) {
            const int d = 128 * v + 4 * lane;
            if (d < n_embd) {
                const float4 x  = *(const float4 *) (p.partial_acc + at * n_embd + d);
                acc[v][0]      += x.x * f;
                acc[v][1]      += x.y * f;
                acc[v][2]      += x.z * f;
                acc[v][3]      += x.w * f;
            }
        }
    }

    float * all = (float *) headkv_smem; // [n_warps][n_embd + 2]
#pragma unroll
    for (int v = 0; v < n_vec; ++v) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int d = 128 * v + 4 * lane + e;
            if (d < n_embd) {
                all[warp * (n_embd + 2) + d] = acc[v][e];
            }
        }
    }
    if (lane == 0) {
        all[warp * (n_embd + 2) + n_embd] = s;
    }
    headkv_sync_block();

    for (int d = threadIdx.x; d < n_embd; d += blockDim.x) {
        float sum = p.sinks ? exp2f(headkv_log2e * p.sinks[head] - m) : 0.0f;
        float res = 0.0f;
        for (int w = 0; w < n_warps; ++w) {
            sum += all[w * (n_embd + 2) + n_embd];
            res += all[w * (n_embd + 2) + d];
        }
        p.dst[(int64_t) blockIdx.x * n_embd + d] = sum == 0.0f ? 0.0f : res / sum;
    }
}
