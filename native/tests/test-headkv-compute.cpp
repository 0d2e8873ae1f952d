// Compute buffers follow the cache: they shrink when it is compacted and when a compacted state is read, also by the
// room for logits of a whole ubatch, and have at once what the next prompt needs.
//
// --gpu: with the model on the GPU, where they also hold a layer's quantized K and V in F16.

#include "options.h"
#include "headkv.h"
#include "tiny-model.h"

#include <algorithm>
#include <cmath>
#include <vector>

static constexpr uint32_t n_ctx    = 32768;
static constexpr uint32_t n_ubatch = 512;
static constexpr int n_prompt      = 600;
static constexpr int n_window      = 8;
static constexpr int n_vocab       = 16384;
static constexpr size_t MiB        = 1024 * 1024;
static constexpr size_t mask_bytes = n_ctx * n_ubatch * sizeof(ggml_fp16_t);
static constexpr size_t out_bytes  = n_vocab * n_ubatch * sizeof(float);
static_assert(mask_bytes == out_bytes, "they take turns in the same memory: then both have to shrink");

static int n_fail = 0;

static void check(bool ok, const char * what) {
    if (!ok) {
        n_fail++;
        printf("FAIL: %s\n", what);
    }
}

static llama_context_ptr open(llama_model * model, uint32_t n, ggml_type type, uint32_t n_outputs = 0) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = n;
    params.n_batch              = n_ubatch;
    params.n_ubatch             = n_ubatch;
    params.n_threads            = 2;
    params.n_threads_batch      = 2;
    params.n_outputs_max        = n_outputs; // 0: as many as tokens
    params.type_k               = type;
    params.type_v               = type;
    params.flash_attn_type      = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    return llama_context_ptr(llama_init_from_model(model, params));
}

static bool decode(llama_context * ctx, int p0, int n) {
    for (int i = 0; i < n; i += n_ubatch) {
        if (tiny_model_decode(ctx, p0 + i, std::min<int>(n_ubatch, n - i)) != 0) {
            return false;
        }
    }
    return true;
}

static bool compact(llama_context * ctx) {
    const std::vector<int32_t> caps = { 20, 200, 64, 64, 8, 128 };
    const headkv_plan plan          = { n_window, 7, 4, caps.data(), caps.size(), nullptr, 0 };
    return headkv_reserve(ctx, n_prompt) == HEADKV_OK && decode(ctx, 0, n_prompt - n_window) &&
           headkv_observe(ctx, HEADKV_OBSERVE_TOKENS, n_prompt - n_window, n_window, nullptr, nullptr, 0) ==
               HEADKV_OK &&
           decode(ctx, n_prompt - n_window, n_window) &&
           headkv_observe(ctx, HEADKV_OBSERVE_OFF, 0, 0, nullptr, nullptr, 0) == HEADKV_OK &&
           headkv_compact(ctx, &plan, sizeof(plan)) == HEADKV_OK;
}

static std::vector<float> logits(llama_context * ctx, int i = -1) {
    const float * data = llama_get_logits_ith(ctx, i);
    return data ? std::vector<float>(data, data + n_vocab) : std::vector<float>();
}

// with the logits of all tokens
static bool decode_all(llama_context * ctx, int p0, int n) {
    return tiny_model_decode(ctx, p0, n, true) == 0;
}

static float distance(const std::vector<float> & a, const std::vector<float> & b) {
    float res = a.size() == n_vocab && b.size() == n_vocab ? 0.0f : INFINITY;
    for (size_t i = 0; res < INFINITY && i < a.size(); ++i) {
        res = std::max(res, std::fabs(a[i] - b[i]));
    }
    return res;
}

// scratch: what attention takes for a ubatch on that device, where stock attention takes none
static void run(llama_model * model, ggml_type type, size_t scratch) {
    const size_t small = tiny_model_compute_bytes(open(model, n_ubatch, type, 1).get());

    llama_context_ptr ctx = open(model, n_ctx, type);
    const size_t full     = tiny_model_compute_bytes(ctx.get());

    check(compact(ctx.get()), "the prompt was not compacted");
    const size_t compacted = tiny_model_compute_bytes(ctx.get());
    printf("%s: compute buffers of %.1f MiB, compacted %.1f, of a small context %.1f\n", ggml_type_name(type),
           (double) full / MiB, (double) compacted / MiB, (double) small / MiB);
    check(full >= small + mask_bytes * 9 / 10, "there was nothing to shrink");
    check(compacted <= small + scratch, "compaction left large compute buffers");

    // the prompt's logits are there as before
    const auto of_prompt    = logits(ctx.get());
    llama_context_ptr again = open(model, n_ctx, type);
    check(!of_prompt.empty() && decode(again.get(), 0, n_prompt - n_window) &&
              decode(again.get(), n_prompt - n_window, n_window) && logits(again.get()) == of_prompt,
          "the logits of the prompt are others");

    // a state that is read into a context of its own
    std::vector<uint8_t> state(llama_state_get_size(ctx.get()));
    check(llama_state_get_data(ctx.get(), state.data(), state.size()) == state.size(), "no state");
    check(llama_state_set_data(again.get(), state.data(), state.size()) == state.size(), "the state was not read");
    check(decode(ctx.get(), n_prompt, 1) && decode(again.get(), n_prompt, 1), "no token after the prompt");
    check(logits(ctx.get()) == logits(again.get()), "the state goes on otherwise");
    check(tiny_model_compute_bytes(again.get()) <= small + scratch, "a state left large compute buffers");

    // the logits of all tokens of a batch, for which there is no room yet; other batches sum up in another order
    check(decode_all(ctx.get(), n_prompt + 1, 300), "no logits of all tokens");
    for (const int i : { 149, 299 }) {
        check(decode(again.get(), n_prompt + 1 + i - 149, 150), "no turn");
        const auto wanted = logits(again.get());
        const float off   = distance(logits(ctx.get(), i), wanted);
        const float other = distance(logits(ctx.get(), i - 1), wanted);
        printf("logits of token %d of 300: off by %.1e, those of the token before by %.1e\n", i, off, other);
        check(off < other / 100.0f, "other logits within a batch");
    }

    // a long turn, which outgrows the tail and its buffers
    check(decode(ctx.get(), n_prompt + 301, 1000), "no long turn");
    check(logits(ctx.get()).size() == n_vocab, "no logits of a long turn");

    // the next prompt has its buffers from its first batch on
    check(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, -1, -1), "the cache was not cleared");
    check(headkv_reserve(ctx.get(), 16384) == HEADKV_OK && decode(ctx.get(), 0, 1), "no next prompt");
    const size_t first = tiny_model_compute_bytes(ctx.get());
    check(first >= small + mask_bytes * 4 / 10 && first < full, "not the buffers for half of the context");
    check(decode(ctx.get(), 1, 1500), "the next prompt could not be decoded");
    check(tiny_model_compute_bytes(ctx.get()) == first, "a prompt needed more than was reserved for it");

    check(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, -1, -1) && compact(ctx.get()), "not compacted again");
    check(logits(ctx.get()) == of_prompt, "the logits of the same prompt are others");
    check(tiny_model_compute_bytes(ctx.get()) <= first, "compacting took more compute buffers");
}

int main(int argc, char ** argv) {
    const bool gpu = has_gpu_option(argc, argv);

    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);

    tiny_model_params shape;
    shape.n_ctx                 = n_ctx;
    shape.n_vocab               = n_vocab;
    const llama_model_ptr model = tiny_model_load(shape, gpu);

    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        run(model.get(), type, gpu ? 8 * MiB : 0);
    }

    printf("%s\n", n_fail ? "failed" : "passed");
    return n_fail ? 1 : 0;
}
