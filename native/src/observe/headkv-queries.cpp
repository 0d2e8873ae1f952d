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

void headkv_queries::state_write(llama_io_write_i & io) const {
    const uint32_t head[] = { (uint32_t) first, n, n_seen, (uint32_t) layers.size() };
    io.write(head, sizeof(head));
    for (const auto & [il, layer] : layers) {
        const uint32_t row = layer.q->ne[0];
        io.write(&row, sizeof(row));
        io.write(&layer.scale, sizeof(layer.scale));
        io.write(&layer.softcap, sizeof(layer.softcap));
        if (n_seen > 0) {
            io.write_tensor(layer.q, 0, n_seen * layer.q->nb[1]);
        }
    }
}

std::unique_ptr<headkv_queries> headkv_queries::state_read(llama_io_read_i & io, const maker & make,
                                                           const std::function<ggml_tensor *(int32_t)> & sinks,
                                                           uint32_t end, uint32_t n_ctx) {
    const auto require = [](bool ok) {
        if (!ok) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, "the state's queries do not fit this model and context");
        }
    };
    uint32_t head[4];
    io.read(head, sizeof(head));
    const auto [first, n, n_seen, n_layers] = head;
    require(n > 0 && n <= n_most && first < n_ctx && n <= n_ctx - first && n_seen <= n);
    require(n_seen == n ? first + n <= end : n_seen == 0 || first + n_seen == end);

    auto res    = make(first, n);
    res->n_seen = n_seen;
    require(n_layers == res->layers.size());
    for (auto & [il, layer] : res->layers) {
        uint32_t row;
        io.read(&row, sizeof(row));
        require(row == layer.q->ne[0]);
        layer.sinks = sinks(il);
        io.read(&layer.scale, sizeof(layer.scale));
        io.read(&layer.softcap, sizeof(layer.softcap));
        if (n_seen > 0) {
            io.read_tensor(layer.q, 0, n_seen * layer.q->nb[1]);
        }
    }
    return res;
}

void headkv_queries::remove(llama_pos p0) {
    n_seen = std::min<uint32_t>(n_seen, std::max(0, p0 - first));
}

bool headkv_queries::covers(uint32_t n_tokens, uint32_t n_more) const {
    const uint32_t end = first + n;
    return n_seen == n && end <= n_tokens && n_tokens - end <= n_more;
}
