#include "observe/headkv-queries.h"

#include "base/headkv-error.h"
#include "llama-batch.h"

#include <algorithm>

headkv_queries::headkv_queries(const std::map<int32_t, headkv_layer_shape> & readers, llama_pos first, uint32_t n)
    : first(first),
      n(n),
      bufs(readers.size()) {
    for (const auto & [il, shape] : readers) {
        layers[il].q = bufs.new_tensor(shape.buft, GGML_TYPE_F32, (int64_t) shape.d_k * shape.n_head, n, "q", il);
    }
    bufs.alloc();
}

bool headkv_queries::aim(const llama_ubatch & ubatch) {
    const uint32_t before = n_now;

    n_now = 0;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        if (ubatch.pos[i] == first + (llama_pos) (n_seen + n_now) && n_seen + n_now < n) {
            i0 = n_now == 0 ? i : i0;
            n_now++;
        }
    }
    slot    = n_seen;
    n_seen += n_now;
    return n_now == 0 && before == 0;
}

void headkv_queries::build(ggml_context * ctx, ggml_cgraph * gf, int32_t il, const headkv_attention & attn) {
    if (n_now == 0) {
        return;
    }
    auto & layer    = layers.at(il);
    ggml_tensor * q = attn.q;
    layer           = { layer.q, nullptr, nullptr, attn.sinks, attn.scale, attn.softcap };

    ggml_tensor * from = ggml_view_3d(ctx, q, q->ne[0], q->ne[1], n_now, q->nb[1], q->nb[2], i0 * q->nb[2]);
    ggml_tensor * to   = ggml_view_3d(ctx, layer.q, q->ne[0], q->ne[1], n_now, q->ne[0] * sizeof(float), layer.q->nb[1],
                                      slot * layer.q->nb[1]);
    ggml_build_forward_expand(gf, ggml_cpy(ctx, from, to));
}

void headkv_queries::remove(llama_pos p0) {
    n_seen = std::min<uint32_t>(n_seen, std::max(0, p0 - first));
}

bool headkv_queries::covers(uint32_t n_tokens, uint32_t n_more) const {
    const uint32_t end = first + n;
    return n_seen == n && end <= n_tokens && n_tokens - end <= n_more;
}
