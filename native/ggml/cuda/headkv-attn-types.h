#pragma once

// The kernels of each K/V type, see headkv-attn-launch.cuh. Without tokens they only get ready.

#include "headkv-attn-params.h"

#ifdef HEADKV_CUDA_EMULATION
#include "headkv-emulation.h"
#else
#include <cuda_runtime_api.h>
#endif

cudaError_t headkv_attn_launch_f16(const headkv_attn_params & p, int n_embd, cudaStream_t stream);
cudaError_t headkv_attn_launch_bf16(const headkv_attn_params & p, int n_embd, cudaStream_t stream);
cudaError_t headkv_attn_launch_q8_0(const headkv_attn_params & p, int n_embd, cudaStream_t stream);
cudaError_t headkv_attn_launch_q4_0(const headkv_attn_params & p, int n_embd, cudaStream_t stream);
