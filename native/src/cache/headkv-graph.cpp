#include "cache/headkv-hooks.h"
#include "cache/llama-kv-cache-headkv.h"

#include "llama-graph.h"
#include "llama-hparams.h"

#include "ggml-headkv.h"

namespace {

// what is read while tokens are observed; refuses that a graph outlives a compaction, other cells or an observation
class llm_graph_input_headkv : public llm_graph_input_i {
public:
    llm_graph_input_headkv(const llama_kv_cache_headkv * mem, const headkv_record_inputs & in)
        : mem(mem),
          in(in),
          epoch(mem->get_epoch()) {}

    void set_input(const llama_ubatch * ubatch) override {
        GGML_UNUSED(ubatch);
        mem->on_compute(in);
    }

    bool can_reuse(const llm_graph_params & params) override {
        GGML_UNUSED(params);
        return mem->get_epoch() == epoch;
    }

private:
    const llama_kv_cache_headkv * mem; // the context's own, and so are its graphs
    const headkv_record_inputs in;
    const uint64_t epoch;
};

} // namespace

ggml_cgraph * headkv_cut_graph(ggml_cgraph * gf, llm_graph_result & res, llama_memory_i * mem,
                               const llama_ubatch & ubatch) {
    const auto * kv = mem ? llama_kv_cache_headkv::find(mem) : nullptr;
    return gf && kv && !kv->cut(res, ubatch) ? nullptr : gf;
}

// of a compacted layer: its kept K and V, and where the rows of heads begin
static constexpr uint32_t n_kept_leafs = 3;

uint32_t headkv_max_nodes(llama_memory_i * mem) {
    const auto * kv = mem ? llama_kv_cache_headkv::find(mem) : nullptr;
    if (!kv || !kv->get_retains()) {
        return 0;
    }
    uint32_t n_layers = 0;
    for (const auto & shape : kv->get_shapes()) {
        n_layers += shape.n_readers;
    }
    return n_layers * (headkv_record::n_nodes_max + headkv_queries::n_nodes_max + n_kept_leafs) +
           headkv_record_inputs::n_nodes + headkv_cut_nodes_max;
}

void headkv_build_inp(llm_graph_result * res, const llama_kv_cache_context * mctx) {
    if (const auto * mem = llama_kv_cache_headkv::find(mctx)) {
        headkv_record_inputs in;
        if (!llama_kv_cache_headkv::is_full(mctx)) {
            in = mem->build_inputs(res->get_ctx(), mctx->get_n_kv());
        }
        res->add_input(std::make_unique<llm_graph_input_headkv>(mem, in));
    }
}

ggml_tensor * headkv_build_attn(const llm_graph_context & gctx, const llama_kv_cache_context * mctx, ggml_tensor * q,
                                ggml_tensor * k, ggml_tensor * v, ggml_tensor * kq_mask, ggml_tensor * sinks,
                                float kq_scale, int il) {
    const auto * mem = llama_kv_cache_headkv::find(mctx);
    if (!mem) {
        return nullptr;
    }

    const float softcap = gctx.hparams.attn_soft_cap ? gctx.hparams.f_attn_logit_softcapping : 0.0f;

    // what only reserves memory has no tokens that could be observed
    if (!llama_kv_cache_headkv::is_full(mctx)) {
        if (const auto * obs = mem->get_observer()) {
            const int n_nodes = ggml_graph_n_nodes(gctx.gf);
            obs->build(gctx.ctx0, gctx.gf, mem->ikv_of(il), { q, k, kq_mask, sinks, kq_scale, softcap });
            headkv_name_records(gctx.gf, n_nodes, il);
        }
    }

    const auto * kept = mem->get_kept(il);
    if (auto * queries = mem->get_queries(); queries && !llama_kv_cache_headkv::is_full(mctx)) {
        queries->build(gctx.ctx0, gctx.gf, il, { q, nullptr, nullptr, sinks, kq_scale, softcap });
    }
    if (!kept) {
        return nullptr;
    }

    ggml_context * ctx = gctx.ctx0;

    ggml_tensor * cur = ggml_headkv_attn(ctx, ggml_permute(ctx, q, 0, 2, 1, 3), kept->k, kept->v, kept->rows,
                                         ggml_permute(ctx, k, 0, 2, 1, 3), ggml_permute(ctx, v, 0, 2, 1, 3), kq_mask,
                                         sinks, kq_scale, softcap);

    if (!gctx.cparams.offload_kqv) {
        // K and V are in host memory: the op goes there, not they to the device for every token
        ggml_backend_sched_set_tensor_backend(gctx.sched, cur, gctx.backend_cpu);
    }

    cur = ggml_reshape_2d(ctx, cur, cur->ne[0] * cur->ne[1], cur->ne[2]);
    ggml_build_forward_expand(gctx.gf, cur);

    return cur;
}
