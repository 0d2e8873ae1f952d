#include "headkv-observer.h"

#include "headkv-pool.h"
#include "llama-batch.h"
#include "llama-graph.h"
#include "llama-hparams.h"
#include "llama-kv-cells.h"

#include "ggml-backend.h"
#include "ggml-headkv.h"

#include <algorithm>

// What observing a ubatch's tokens writes is at most that large: memory should not grow for the end of the prompt by
// more. On a device, where it is written by single ops, CUDA multiplies no more columns by K without a copy of K in
// F32.
static constexpr size_t n_bytes_max   = 32u * 1024 * 1024;
static constexpr size_t n_columns_max = 16;

static bool is_on_device(const std::vector<headkv_layer_shape> & shapes) {
    return std::any_of(shapes.begin(), shapes.end(),
                       [](const headkv_layer_shape & s) { return !ggml_backend_buft_is_host(s.buft); });
}

headkv_observer::headkv_observer(mode mode, const std::vector<headkv_layer_shape> & shapes, uint32_t n_cells,
                                 uint32_t n_heads, llama_pos first, std::vector<float> weights)
    : what(mode),
      n_heads(n_heads),
      range_first(first),
      range_weights(std::move(weights)),
      on_device(is_on_device(shapes)),
      bufs(shapes.size()) {
    for (const auto & s : shapes) {
        records.push_back(bufs.new_tensor(s.buft, GGML_TYPE_F32, n_cells, n_heads, "obs", s.il));
    }
    bufs.alloc();
}

uint32_t headkv_observer::limit(llama_pos p0, uint32_t n_max, size_t n_kv, size_t n_head) const {
    if (!on || what == ROWS || p0 >= range_end()) {
        return n_max;
    }
    const size_t n_before  = std::max(0, range_first - p0);
    const size_t n_at_once = on_device ? 1 : GGML_HEADKV_RECORD_QUERIES;
    const size_t n_in_room = n_bytes_max * n_at_once / (sizeof(float) * n_kv * n_head);

    return std::min<size_t>(n_max, n_before + std::clamp<size_t>(n_in_room, 1, on_device ? n_columns_max : n_max));
}

bool headkv_observer::aim(const llama_ubatch & ubatch, const llama_kv_cells & cells) {
    if (!on) {
        return true;
    }
    const view before = std::move(aimed);
    aimed             = {};

    if (what == ROWS) {
        aimed.i0 = ubatch.n_tokens - 1;
        aimed.n  = 1;
        last     = ubatch.pos[aimed.i0];
        n_tokens++;
        return before.n > 0 && before.i0 == aimed.i0;
    }

    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        const llama_pos p = ubatch.pos[i];
        if (p < range_first || p >= range_end()) {
            continue;
        }
        aimed.i0 = aimed.pos.empty() ? i : aimed.i0;
        aimed.pos.push_back(p);
        aimed.weights.push_back(range_weights[p - range_first]);
        last = std::max(last, p);
    }
    aimed.n   = aimed.pos.size();
    n_tokens += aimed.n;
    if (aimed.n == 0) {
        return before.n == 0;
    }

    const uint32_t n_used = cells.used_max_p1();
    const auto is_near    = [&](uint32_t c) {
        return !cells.is_empty(c) && cells.pos_get(c) > aimed.pos.front() - headkv_gap;
    };
    while (aimed.first < n_used && !is_near(aimed.first)) {
        aimed.first++;
    }
    for (uint32_t c = aimed.first; c < n_used; ++c) {
        aimed.cells.push_back(cells.is_empty(c) ? std::numeric_limits<llama_pos>::max() : cells.pos_get(c));
    }
    return false;
}

headkv_observer::inputs headkv_observer::build_inputs(ggml_context * ctx, uint32_t n_kv, uint32_t n_gqa) {
    in = {};
    if (what == TOKENS && aims()) {
        in.rows = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 1, aimed.n * n_gqa, n_heads);
        in.far  = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_kv - aimed.first, aimed.n);
        ggml_set_input(in.rows);
        ggml_set_input(in.far);
    }
    return in;
}

void headkv_observer::set_inputs(const inputs & in) const {
    if (!in.far) {
        return;
    }
    std::vector<float> rows(ggml_nelements(in.rows));
    for (size_t i = 0; i < rows.size(); ++i) {
        rows[i] = aimed.weights[i % aimed.n];
    }
    ggml_backend_tensor_set(in.rows, rows.data(), 0, ggml_nbytes(in.rows));

    const size_t n_cells = in.far->ne[0]; // with what of the cache is not in use, and not looked at

    std::vector<float> far(n_cells * aimed.n, 0.0f);
    for (uint32_t i = 0; i < aimed.n; ++i) {
        std::transform(aimed.cells.begin(), aimed.cells.end(), &far[i * n_cells],
                       [&](llama_pos p) { return p <= aimed.pos[i] - headkv_gap ? 1.0f : 0.0f; });
    }
    ggml_backend_tensor_set(in.far, far.data(), 0, ggml_nbytes(in.far));
}

// Whether CUDA would make a copy of K in F32 in memory that it ends the process without: its products take heads of a
// multiple of 64 as they are.
static bool is_copied_by_device(const ggml_tensor * k) {
    return (k->type == GGML_TYPE_F16 || k->type == GGML_TYPE_BF16) && k->ne[0] % 64 != 0 && k->view_src &&
           k->view_src->buffer && !ggml_backend_buffer_is_host(k->view_src->buffer);
}

void headkv_observer::build(const llm_graph_context & gctx, uint32_t ikv, ggml_tensor * q, ggml_tensor * k,
                            ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale) const {
    ggml_context * ctx = gctx.ctx0;

    const int64_t n_kv = k->ne[2];
    const int64_t n    = aimed.n;

    q       = ggml_view_3d(ctx, q, q->ne[0], q->ne[1], n, q->nb[1], q->nb[2], aimed.i0 * q->nb[2]);
    kq_mask = ggml_view_2d(ctx, kq_mask, kq_mask->ne[0], n, kq_mask->nb[1], aimed.i0 * kq_mask->nb[1]);

    q = ggml_permute(ctx, q, 0, 2, 1, 3);
    k = ggml_permute(ctx, k, 0, 2, 1, 3);

    if (is_copied_by_device(k)) {
        k = ggml_cast(ctx, k, GGML_TYPE_F32); // lack of memory for this one is an error
    }

    ggml_tensor * record = ggml_view_2d(ctx, records[ikv], n_kv, n_heads, records[ikv]->nb[1], 0);

    const float cap = gctx.hparams.attn_soft_cap ? gctx.hparams.f_attn_logit_softcapping : 0.0f;

    if (what == ROWS) {
        ggml_tensor * w = ggml_headkv_attn_weights(ctx, q, k, kq_mask, sinks, kq_scale, cap);
        w               = ggml_view_2d(ctx, w, n_kv, n_heads, w->nb[2], 0);
        ggml_build_forward_expand(gctx.gf, ggml_cpy(ctx, w, record));
    } else if (on_device) {
        ggml_headkv_record_by_ops(ctx, gctx.gf, record, q, k, kq_mask, sinks, in.rows, in.far, kq_scale, cap);
    } else {
        ggml_build_forward_expand(
            gctx.gf, ggml_headkv_record(ctx, record, q, k, kq_mask, sinks, in.rows, in.far, kq_scale, cap));
    }
}

void headkv_observer::remove(llama_pos p0) {
    if (p0 <= last) {
        valid = std::min(valid, p0);
    }
}

bool headkv_observer::covers(uint32_t n_prompt) const {
    return n_tokens == range_weights.size() && last == range_end() - 1 && range_end() >= (llama_pos) n_prompt &&
           (llama_pos) n_prompt <= valid;
}

bool headkv_observer::counts() const {
    const size_t n_near = std::max(0, headkv_gap - range_first);

    return std::any_of(range_weights.begin() + std::min(n_near, range_weights.size()), range_weights.end(),
                       [](float weight) { return weight > 0.0f; });
}

void headkv_observer::read(uint32_t ikv, uint32_t n, std::vector<float> & res) const {
    const size_t size = n * sizeof(float);

    res.resize((size_t) n * n_heads);
    ggml_backend_tensor_get_2d(records[ikv], res.data(), 0, size, n_heads, records[ikv]->nb[1], size);
}
