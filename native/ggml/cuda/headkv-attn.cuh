#pragma once

// GGML_OP_HEADKV_ATTN on CUDA: what ggml-cuda.cu calls. ROCm and MUSA have no such kernels; the op runs on the CPU.

#include "common.cuh"

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)

inline void ggml_cuda_headkv_attn(ggml_backend_cuda_context &, ggml_tensor *) {
    GGML_ABORT("not supported");
}

inline bool ggml_cuda_headkv_attn_supported(int, const ggml_tensor *) {
    return false;
}

inline size_t ggml_cuda_headkv_attn_get_alloc_size(int, const ggml_tensor * dst) {
    return ggml_nbytes(dst);
}

#else

void ggml_cuda_headkv_attn(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

bool ggml_cuda_headkv_attn_supported(int device, const ggml_tensor * dst);

// the result, and the partial results behind it
size_t ggml_cuda_headkv_attn_get_alloc_size(int device, const ggml_tensor * dst);

#endif
