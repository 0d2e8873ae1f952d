#include "headkv-attn-launch.cuh"
#include "headkv-attn-types.h"

cudaError_t headkv_attn_launch_bf16(const headkv_attn_params & p, int n_embd, cudaStream_t stream) {
    return headkv_attn_launch<HEADKV_BF16>(p, n_embd, stream);
}
