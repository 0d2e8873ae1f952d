#include "headkv-attn-launch.cuh"
#include "headkv-attn-types.h"

cudaError_t headkv_attn_launch_q8_0(const headkv_attn_params & p, int n_embd, cudaStream_t stream) {
    return headkv_attn_launch<HEADKV_Q8_0>(p, n_embd, stream);
}
