#pragma once

// Which kernels an op takes. Every K/V type is compiled in a file of its own.

#include "headkv-attn-combine.cuh"
#include "headkv-attn-kernel.cuh"

template <headkv_type type, int n_embd, int n_cols>
static cudaError_t headkv_attn_launch_cols(const headkv_attn_params & p, cudaStream_t stream) {
    constexpr size_t smem = headkv_smem_size(type, n_embd, n_cols);

    const auto partials = headkv_attn_partials<type, n_embd, n_cols>;
    const auto combine  = headkv_attn_combine<n_embd>;

    const cudaError_t err = cudaFuncSetAttribute(partials, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) smem);
    if (err != cudaSuccess) {
        return err;
    }
    if (p.n_tokens == 0) { // only to load the kernels
        cudaFuncAttributes attributes;
        return cudaFuncGetAttributes(&attributes, combine);
    }
    HEADKV_LAUNCH(partials, dim3(p.n_blocks, p.n_col_tiles), 32 * headkv_n_warps(n_embd), smem, stream)(p);
    HEADKV_LAUNCH(combine, dim3(p.n_head_kv * p.n_gqa * p.n_tokens), 32 * headkv_combine_warps,
                  headkv_combine_smem_size(n_embd), stream)
    (p);
    return cudaGetLastError();
}

template <headkv_type type, int n_embd>
static cudaError_t headkv_attn_launch_embd(const headkv_attn_params & p, cudaStream_t stream) {
    constexpr int wide = headkv_cols_wide(n_embd); // the narrow ones where registers hold no more
    return p.n_cols_tile == wide ? headkv_attn_launch_cols<type, n_embd, wide>(p, stream)
                                 : headkv_attn_launch_cols<type, n_embd, headkv_cols_narrow>(p, stream);
}

template <headkv_type type>
static cudaError_t headkv_attn_launch(const headkv_attn_params & p, int n_embd, cudaStream_t stream) {
    switch (n_embd) {
    case 64:
        return headkv_attn_launch_embd<type, 64>(p, stream);
    case 80:
        // where a size is not supported, the other branch is never taken
        return headkv_attn_launch_embd < type, headkv_n_embd_supported(type, 80) ? 80 : 64 > (p, stream);
    case 96:
        return headkv_attn_launch_embd<type, 96>(p, stream);
    case 128:
        return headkv_attn_launch_embd<type, 128>(p, stream);
    case 256:
        return headkv_attn_launch_embd<type, 256>(p, stream);
    case 512:
        return headkv_attn_launch_embd < type, headkv_n_embd_supported(type, 512) ? 512 : 64 > (p, stream);
    default:
        return cudaErrorInvalidValue;
    }
}
