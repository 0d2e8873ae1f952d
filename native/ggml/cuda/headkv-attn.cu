// From ggml's tensors to the kernels' parameters. The kernels of each K/V type are in files of their own, which know
// nothing of ggml.

#include "headkv-attn.cuh"

#include "headkv-attn-types.h"

// not a type of the kernels: -1
static int get_type(ggml_type type) {
    switch (type) {
    case GGML_TYPE_F16:
        return HEADKV_F16;
    case GGML_TYPE_BF16:
        return HEADKV_BF16;
    case GGML_TYPE_Q8_0:
        return HEADKV_Q8_0;
    case GGML_TYPE_Q4_0:
        return HEADKV_Q4_0;
    default:
        return -1;
    }
}

// bytes that divide the address of every row
static int get_width(const ggml_tensor * t) {
    const size_t all = (size_t) t->data | t->nb[1] | t->nb[2];
    return all % 16 == 0 ? 16 : all % 8 == 0 ? 8 : all % 4 == 0 ? 4 : 2;
}

// the shapes, and from them how the work is cut: the same for the allocation and for every launch
static headkv_attn_params get_params(int device, const ggml_tensor * dst, float * scratch) {
    const ggml_tensor * q      = dst->src[0];
    const ggml_tensor * k_tail = dst->src[4];

    headkv_attn_params p = {};

    p.n_head_kv = (int) k_tail->ne[2];
    p.n_gqa     = (int) (q->ne[2] / k_tail->ne[2]);
    p.n_tokens  = (int) q->ne[1];
    p.n_kv      = (int) k_tail->ne[1];

    const auto & info = ggml_cuda_info().devices[device];
    headkv_attn_plan(p, (headkv_type) get_type(k_tail->type), (int) q->ne[0], info.nsm, info.smpbo, scratch);
    return p;
}

static cudaError_t launch(const headkv_attn_params & p, ggml_type type, int n_embd, cudaStream_t stream) {
    switch (type) {
    case GGML_TYPE_F16:
        return headkv_attn_launch_f16(p, n_embd, stream);
    case GGML_TYPE_BF16:
        return headkv_attn_launch_bf16(p, n_embd, stream);
    case GGML_TYPE_Q8_0:
        return headkv_attn_launch_q8_0(p, n_embd, stream);
    case GGML_TYPE_Q4_0:
        return headkv_attn_launch_q4_0(p, n_embd, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

static bool shapes_supported(int device, const ggml_tensor * dst) {
    const ggml_tensor * q      = dst->src[0];
    const ggml_tensor * k_tail = dst->src[4];
    const ggml_tensor * v_tail = dst->src[5];

    const int type = get_type(k_tail->type);
    if (type < 0 || v_tail->type != k_tail->type || v_tail->ne[0] != q->ne[0]) {
        return false;
    }
    return headkv_n_embd_supported((headkv_type) type, q->ne[0]) &&
           ampere_mma_available(ggml_cuda_info().devices[device].cc);
}

bool ggml_cuda_headkv_attn_supported(int device, const ggml_tensor * dst) {
    if (!shapes_supported(device, dst)) {
        return false;
    }

    const int n_embd     = (int) dst->src[0]->ne[0];
    const ggml_type type = dst->src[4]->type;

    headkv_attn_params p = get_params(device, dst, nullptr);
    if (headkv_smem_size((headkv_type) get_type(type), n_embd, p.n_cols_tile) >
            ggml_cuda_info().devices[device].smpbo ||
        p.n_col_tiles > UINT16_MAX) { // as many as a grid has in y
        return false;
    }

    // without tokens the kernels only get ready: they are loaded here, where a lack of memory is no error yet
    p.n_tokens = 0;
    ggml_cuda_set_device(device);
    if (launch(p, type, n_embd, nullptr) != cudaSuccess) {
        (void) cudaGetLastError();
        return false;
    }
    return true;
}

size_t ggml_cuda_headkv_attn_get_alloc_size(int device, const ggml_tensor * dst) {
    const size_t size = ggml_nbytes(dst);
    if (!shapes_supported(device, dst)) {
        return size;
    }
    const headkv_attn_params p = get_params(device, dst, nullptr);
    return size + headkv_scratch_size(p, (int) dst->src[0]->ne[0]) * sizeof(float);
}

void ggml_cuda_headkv_attn(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * q      = dst->src[0];
    const ggml_tensor * k_pool = dst->src[1];
    const ggml_tensor * v_pool = dst->src[2];
    const ggml_tensor * rows   = dst->src[3];
    const ggml_tensor * k_tail = dst->src[4];
    const ggml_tensor * v_tail = dst->src[5];
    const ggml_tensor * mask   = dst->src[6];
    const ggml_tensor * sinks  = dst->src[7];

    if (ggml_is_empty(dst)) {
        return;
    }

    // whole 16 byte words are copied from the pool; the scratch begins where the result ends
    GGML_ASSERT((uintptr_t) k_pool->data % 16 == 0 && (uintptr_t) v_pool->data % 16 == 0);
    GGML_ASSERT((uintptr_t) dst->data % 16 == 0 && ggml_nbytes(dst) % 16 == 0);

    headkv_attn_params p = get_params(ctx.device, dst, (float *) ((char *) dst->data + ggml_nbytes(dst)));

    p.q          = (const char *) q->data;
    p.nb_q_token = q->nb[1];
    p.nb_q_head  = q->nb[2];

    p.k_pool = (const char *) k_pool->data;
    p.v_pool = (const char *) v_pool->data;
    p.rows   = (const int32_t *) rows->data;

    p.k_tail       = (const char *) k_tail->data;
    p.v_tail       = (const char *) v_tail->data;
    p.nb_k_cell    = k_tail->nb[1];
    p.nb_k_head    = k_tail->nb[2];
    p.nb_v_cell    = v_tail->nb[1];
    p.nb_v_head    = v_tail->nb[2];
    p.k_tail_width = get_width(k_tail);
    p.v_tail_width = get_width(v_tail);

    p.mask    = (const char *) mask->data;
    p.nb_mask = mask->nb[1];
    p.sinks   = sinks ? (const float *) sinks->data : nullptr;
    p.dst     = (float *) dst->data;

    p.scale   = ggml_get_op_params_f32(dst, 0);
    p.softcap = ggml_get_op_params_f32(dst, 1);

    CUDA_CHECK(launch(p, k_tail->type, (int) q->ne[0], ctx.stream()));
}
