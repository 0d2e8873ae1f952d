// Observing the end of a long prompt of a model with many heads: the memory that it computes in is bounded, which takes
// several ubatches, and what they record together is what the same tokens record one by one. So do observed tokens that
// are a part of a ubatch, and those that are taken back after it.

#include "headkv.h"
#include "llama-kv-cells.h"
#include "observe/headkv-observer.h"
#include "other-memory.h"
#include "tiny-model.h"

#include <algorithm>
#include <cmath>
#include <vector>

static constexpr int n_layer    = 1;
static constexpr int n_head     = 512;
static constexpr int n_head_kv  = 8;
static constexpr int n_prompt   = 2048;
static constexpr int n_observed = 40;
static constexpr size_t n_bytes = sizeof(float) * n_prompt * n_head; // observing one token takes these
static constexpr size_t limit   = 32u * 1024 * 1024;
static_assert(n_observed * n_bytes >= 2 * limit, "else there is nothing to test");

static bool decode(llama_context * ctx, int p0, int n) {
    return tiny_model_decode(ctx, p0, n) == 0;
}

static const std::vector<float> all_count(n_observed, 1.0f);

// The last tokens of the prompt, decoded in batches of n_batch from position `from` on, n_behind of them no part of it
// -> [n_head_kv][n_prompt - n_behind], empty if that failed.
static std::vector<float> observe(llama_context * ctx, int from, int n_batch, int n_behind = 0,
                                  const std::vector<float> & weights    = all_count,
                                  const std::vector<int32_t> & again_at = {}) {
    bool ok = llama_memory_seq_rm(llama_get_memory(ctx), 0, from, -1) &&
              headkv_observe(ctx, HEADKV_OBSERVE_TOKENS, n_prompt - n_observed, n_observed, weights.data(),
                             again_at.data(), again_at.size()) == HEADKV_OK;
    for (int p = from; ok && p < n_prompt; p += n_batch) {
        ok = decode(ctx, p, std::min(n_batch, n_prompt - p));
    }
    ok = ok && (n_behind == 0 || llama_memory_seq_rm(llama_get_memory(ctx), 0, n_prompt - n_behind, -1));

    std::vector<float> res((size_t) n_layer * n_head_kv * (n_prompt - n_behind));
    ok = ok && headkv_observe(ctx, HEADKV_OBSERVE_OFF, 0, 0, nullptr, nullptr, 0) == HEADKV_OK &&
         headkv_get_attention(ctx, res.data(), res.size()) == HEADKV_OK;
    if (!ok) {
        printf("%s\n", headkv_last_error());
        res.clear();
    }
    return res;
}

// Tokens of a draft that stand far behind all cells, none of which is free: a graph on a device can be built.
static bool test_far_behind() {
    static constexpr int n_cells = 1024, n_draft = 8;
    other_memory device;
    headkv_observer observer(headkv_observer::TOKENS,
                             { { 0, &device.type, GGML_TYPE_F16, GGML_TYPE_F16, 64, 64, 4, 2, 1 } }, n_cells,
                             n_cells - 8, std::vector<float>(8, 1.0f), {});
    llama_kv_cells cells;
    cells.resize(n_cells);
    for (int i = 0; i < n_cells; ++i) {
        cells.pos_set(i, i);
        cells.seq_add(i, 0);
    }
    observer.aim_beside(n_cells + 16, std::vector<float>(n_draft, 1.0f), cells);

    const ggml_init_params params = { 4 << 20, nullptr, true };
    ggml_context_ptr ctx(ggml_init(params));
    ggml_cgraph * gf    = ggml_new_graph(ctx.get());
    const auto in       = observer.build_inputs(ctx.get(), n_cells);
    ggml_tensor * q     = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 64, 4, n_draft);
    ggml_tensor * k     = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F16, 64, 2, n_cells);
    ggml_tensor * mask  = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, n_cells, n_draft);
    headkv_attention at = { q, k, mask, nullptr, 0.125f, 0.0f };
    observer.build(ctx.get(), gf, 0, at);
    return ggml_graph_n_nodes(gf) > 0 && in.far->ne[0] > 0;
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);

    tiny_model_params shape;
    shape.n_ctx     = n_prompt;
    shape.n_layer   = n_layer;
    shape.n_head    = n_head;
    shape.n_head_kv = n_head_kv;
    shape.d_head    = 4;

    const llama_model_ptr model = tiny_model_load(shape);

    llama_context_params params = llama_context_default_params();
    params.n_ctx                = n_prompt;
    params.n_batch              = n_prompt;
    params.n_threads            = 2;
    params.n_threads_batch      = 2;
    params.flash_attn_type      = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    llama_context_ptr ctx(llama_init_from_model(model.get(), params));
    if (!ctx || !decode(ctx.get(), 0, n_prompt)) {
        printf("FAIL: the prompt could not be decoded\n");
        return 1;
    }

    const auto one_by_one = observe(ctx.get(), n_prompt - n_observed, 1);
    const size_t before   = tiny_model_compute_bytes(ctx.get());
    const auto together   = observe(ctx.get(), n_prompt - n_observed, n_observed);
    const size_t after    = tiny_model_compute_bytes(ctx.get());
    const auto within     = observe(ctx.get(), n_prompt - 300, 200);
    const auto taken_back = observe(ctx.get(), n_prompt - 300, 300, n_observed / 2);
    if (one_by_one.empty() || together.empty() || within.empty() || taken_back.empty()) {
        printf("FAIL: nothing was recorded\n");
        return 1;
    }

    int n_fail = 0;

    printf("compute buffers: %zu bytes, %zu with observation\n", before, after);
    if (after > std::max(before, limit + limit / 16)) { // the observed tokens take a little besides
        printf("FAIL: that is more than it should take\n");
        n_fail++;
    }

    // the last ones read once more what stands at some positions, and nothing else counts
    const std::vector<int32_t> again_at = { 5, 6, 700, n_prompt - 100 };
    std::vector<float> weights(n_observed, 0.0f);
    std::fill(weights.end() - again_at.size(), weights.end(), 1.0f);
    const auto all_of     = observe(ctx.get(), n_prompt - 300, 300, again_at.size(), weights);
    const auto but_copies = observe(ctx.get(), n_prompt - 300, 300, again_at.size(), weights, again_at);
    if (all_of.empty() || but_copies.size() != all_of.size()) {
        printf("FAIL: nothing was recorded of what is read once more\n");
        return 1;
    }
    for (size_t i = 0; i < all_of.size(); ++i) {
        const bool copied  = std::count(again_at.begin(), again_at.end(), (int32_t) (i % (n_prompt - again_at.size())));
        const float wanted = copied ? all_of[i] / (float) std::sqrt(10.0) : all_of[i]; // the power mean of 1/100
        if (!(std::fabs(but_copies[i] - wanted) <= 1e-5f * wanted) || (copied && all_of[i] == 0.0f)) {
            printf("FAIL: %g instead of %g was recorded where a copy of %g is looked at\n", but_copies[i], wanted,
                   all_of[i]);
            n_fail++;
        }
    }
    for (const std::vector<int32_t> & wrong : { std::vector<int32_t>{ 6, 5 }, { -1 }, std::vector<int32_t>(99, 1) }) {
        if (headkv_observe(ctx.get(), HEADKV_OBSERVE_TOKENS, 0, n_observed, nullptr, wrong.data(), wrong.size()) !=
            HEADKV_ERR_ARGUMENT) {
            printf("FAIL: positions that do not ascend were taken\n");
            n_fail++;
        }
    }

    double sum = 0.0;
    for (const float x : one_by_one) {
        sum += x;
    }
    const auto compare = [&](const char * what, const std::vector<float> & other) {
        const int n = other.size() / n_head_kv;
        float worst = 0.0f;
        for (int h = 0; h < n_head_kv; ++h) {
            for (int p = 0; p < n; ++p) {
                const float wanted = one_by_one[h * n_prompt + p];
                worst              = std::max(worst, std::fabs(other[h * n + p] - wanted) / (1e-4f + wanted));
            }
        }
        printf("%s: largest relative difference %.2e\n", what, worst);
        if (!(worst <= 1e-3f)) {
            printf("FAIL: something else was recorded than by single tokens\n");
            n_fail++;
        }
    };
    compare("in ubatches", together);
    compare("within larger ubatches", within);
    compare("taken back", taken_back);

    const float * last = &one_by_one[n_prompt - 17];
    printf("attention: %.3f recorded; %g, %g at the last positions that are far enough\n", sum, last[0], last[1]);
    if (!(sum > 0.0) || !(last[0] > 0.0f) || last[1] != 0.0f) {
        printf("FAIL: a token counts for positions 16 before it, and for none that is nearer\n");
        n_fail++;
    }

    if (!test_far_behind()) {
        printf("FAIL: tokens far behind all cells\n");
        n_fail++;
    }
    return n_fail ? 1 : 0;
}
