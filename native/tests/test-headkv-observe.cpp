// Observing the end of a long prompt of a model with many heads: the memory that it computes in is bounded, which takes
// several ubatches, and what they record together is what the same tokens record one by one.

#include "headkv.h"
#include "tiny-model.h"

#include <algorithm>
#include <cmath>
#include <vector>

static constexpr int n_layer    = 1;
static constexpr int n_head     = 512;
static constexpr int n_head_kv  = 8;
static constexpr int n_prompt   = 2048;
static constexpr int n_observed = 16;
static constexpr size_t n_bytes = (size_t) 2 * sizeof(float) * n_prompt * n_head; // observing one token takes these
static constexpr size_t limit   = 64u * 1024 * 1024;
static_assert(n_observed * n_bytes >= 2 * limit, "else there is nothing to test");

static bool decode(llama_context * ctx, int p0, int n) {
    return tiny_model_decode(ctx, p0, n) == 0;
}

// the last tokens of the prompt, in batches of n_batch -> [n_head_kv][n_prompt], empty if that failed
static std::vector<float> observe(llama_context * ctx, int n_batch) {
    bool ok =
        llama_memory_seq_rm(llama_get_memory(ctx), 0, n_prompt - n_observed, -1) && headkv_observe(ctx, 1) == HEADKV_OK;
    for (int i = 0; ok && i < n_observed; i += n_batch) {
        ok = decode(ctx, n_prompt - n_observed + i, n_batch);
    }
    std::vector<float> res((size_t) n_layer * n_head_kv * n_prompt);
    ok = ok && headkv_observe(ctx, 0) == HEADKV_OK && headkv_get_attention(ctx, res.data(), res.size()) == HEADKV_OK;
    if (!ok) {
        printf("%s\n", headkv_last_error(ctx));
        res.clear();
    }
    return res;
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
    if (!ctx || headkv_configure(ctx.get(), n_observed / 2, 7, 4) != HEADKV_OK || !decode(ctx.get(), 0, n_prompt)) {
        printf("FAIL: the prompt could not be decoded\n");
        return 1;
    }

    const auto one_by_one = observe(ctx.get(), 1);
    const size_t before   = tiny_model_compute_bytes(ctx.get());
    const auto together   = observe(ctx.get(), n_observed);
    const size_t after    = tiny_model_compute_bytes(ctx.get());
    if (one_by_one.empty() || together.empty()) {
        printf("FAIL: nothing was recorded\n");
        return 1;
    }

    int n_fail = 0;

    printf("compute buffers: %zu bytes, %zu with observation\n", before, after);
    if (after > std::max(before, limit + limit / 32)) { // the observed tokens take a little besides
        printf("FAIL: that is more than it should take\n");
        n_fail++;
    }

    float worst = 0.0f;
    double sum  = 0.0;
    for (size_t i = 0; i < together.size(); ++i) {
        worst  = std::max(worst, std::fabs(together[i] - one_by_one[i]) / (1e-4f + one_by_one[i]));
        sum   += together[i];
    }
    printf("attention: %.3f recorded, largest relative difference %.2e\n", sum, worst);
    if (!(worst <= 1e-3f) || !(sum > 0.0)) {
        printf("FAIL: the ubatches recorded something else than single tokens\n");
        n_fail++;
    }

    return n_fail ? 1 : 0;
}
