#include "observe/headkv-record.h"

#include "ggml-backend.h"
#include "ggml-headkv.h"

headkv_record::headkv_record(const headkv_layer_shape & shape, uint32_t n_cells, bool rows)
    : shape(shape),
      rows(rows),
      bufs(1),
      tensor(bufs.new_tensor(shape.buft, GGML_TYPE_F32, n_cells, rows ? shape.n_head : shape.n_head_kv, "record",
                             shape.il)) {
    bufs.alloc();
}

// Whether CUDA would make a copy of K in F32 in memory that it ends the process without: its products take heads of a
// multiple of 64 as they are.
static bool is_copied_by_device(const ggml_tensor * k) {
    return (k->type == GGML_TYPE_F16 || k->type == GGML_TYPE_BF16) && k->ne[0] % 64 != 0 && k->view_src &&
           k->view_src->buffer && !ggml_backend_buffer_is_host(k->view_src->buffer);
}

void headkv_record::build(ggml_context * ctx, ggml_cgraph * gf, const headkv_attention & attn, uint32_t i0, uint32_t n,
                          const headkv_record_inputs & in) const {
    const int64_t n_kv    = attn.k->ne[2];
    const int64_t n_heads = tensor->ne[1];

    ggml_tensor * q    = attn.q;
    ggml_tensor * mask = attn.mask;

    q    = ggml_view_3d(ctx, q, q->ne[0], q->ne[1], n, q->nb[1], q->nb[2], i0 * q->nb[2]);
    mask = ggml_view_2d(ctx, mask, mask->ne[0], n, mask->nb[1], i0 * mask->nb[1]);

    q               = ggml_permute(ctx, q, 0, 2, 1, 3);
    ggml_tensor * k = ggml_permute(ctx, attn.k, 0, 2, 1, 3);

    if (is_copied_by_device(k)) {
        k = ggml_cast(ctx, k, GGML_TYPE_F32); // lack of memory for this one is an error
    }

    ggml_tensor * to = ggml_view_2d(ctx, tensor, n_kv, n_heads, tensor->nb[1], 0);

    if (rows) {
        ggml_tensor * w = ggml_headkv_attn_weights(ctx, q, k, mask, attn.sinks, attn.scale, attn.softcap);
        w               = ggml_view_2d(ctx, w, n_kv, n_heads, w->nb[2], 0);
        ggml_build_forward_expand(gf, ggml_cpy(ctx, w, to));
        return;
    }

    const int64_t n_rows = (int64_t) n * shape.n_gqa();

    ggml_tensor * weights = ggml_view_3d(ctx, in.weights, 1, n_rows, n_heads, sizeof(float), n_rows * sizeof(float), 0);
    if (ggml_backend_buft_is_host(shape.buft)) {
        ggml_build_forward_expand(
            gf, ggml_headkv_record(ctx, to, q, k, mask, attn.sinks, weights, in.far, attn.scale, attn.softcap));
    } else {
        ggml_headkv_record_by_ops(ctx, gf, to, q, k, mask, attn.sinks, weights, in.far, attn.scale, attn.softcap);
    }
}

void headkv_record::read(uint32_t n, std::vector<float> & res) const {
    const size_t size    = n * sizeof(float);
    const size_t n_heads = tensor->ne[1];

    res.resize(n * n_heads);
    ggml_backend_tensor_get_2d(tensor, res.data(), 0, size, n_heads, tensor->nb[1], size);
}
