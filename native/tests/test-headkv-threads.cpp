// One thread reads prompts, compacts, decodes and clears, over and over; another asks all the while for what headkv.h
// says may be asked for at any time. What it gets must be of one moment, and fit together. For the thread sanitizer
// too.

#include "headkv.h"
#include "tiny-model.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

static constexpr int n_round    = 30;
static constexpr int n_prompt   = 300;
static constexpr int n_observed = 8;
static constexpr int n_more     = 200; // outgrows the first tail

static std::vector<int32_t> caps = { 20, 100, 64, 64, 8, 128 }; // of three layers

static bool compact(llama_context * ctx, const headkv_plan & plan) {
    return headkv_reserve(ctx, n_prompt) == HEADKV_OK && tiny_model_decode(ctx, 0, n_prompt - n_observed) == 0 &&
           headkv_observe(ctx, HEADKV_OBSERVE_TOKENS, n_prompt - n_observed, n_observed, nullptr, nullptr, 0) ==
               HEADKV_OK &&
           tiny_model_decode(ctx, n_prompt - n_observed, n_observed) == 0 &&
           headkv_observe(ctx, HEADKV_OBSERVE_OFF, 0, 0, nullptr, nullptr, 0) == HEADKV_OK &&
           headkv_compact(ctx, &plan, sizeof(plan)) == HEADKV_OK;
}

// with an archive, in place of all of that
static bool prefill(llama_context * ctx, const headkv_plan & plan) {
    std::vector<int32_t> tokens(n_prompt);
    for (int p = 0; p < n_prompt; ++p) {
        tokens[p] = tiny_model_token_at(p);
    }
    const std::vector<float> weights(n_observed, 1.0f);

    headkv_prompt prompt = {};
    prompt.tokens        = tokens.data();
    prompt.n_tokens      = n_prompt;
    prompt.order         = HEADKV_ORDER_LAYERS;
    prompt.first         = n_prompt - n_observed;
    prompt.weights       = weights.data();
    prompt.n_weights     = n_observed;
    return headkv_prefill(ctx, &prompt, sizeof(prompt), &plan, sizeof(plan)) == HEADKV_OK;
}

static bool one_round(llama_context * ctx, bool archive) {
    const headkv_plan plan = { n_observed, 7, 4, caps.data(), caps.size(), nullptr, 0 };
    return (archive ? prefill(ctx, plan) : compact(ctx, plan)) && tiny_model_decode(ctx, n_prompt, n_more) == 0 &&
           llama_memory_seq_rm(llama_get_memory(ctx), 0, -1, -1);
}

struct asked {
    int n_compacted = 0;
    int n_full      = 0;
    int n_wrong     = 0;

    void check(bool ok, const char * what) {
        if (!ok && n_wrong++ < 10) {
            printf("FAIL: %s\n", what);
        }
    }

    void ask(const llama_context * ctx) {
        headkv_stats stats;
        std::vector<int32_t> kept(caps.size());
        check(headkv_get_stats(ctx, &stats, sizeof(stats), kept.data(), kept.size()) == HEADKV_OK, "no stats");
        check((stats.n_prompt == n_prompt) == (stats.n_kept > 0), "kept rows without a prompt, or the other way round");
        check((stats.bytes_kept > 0) == (stats.n_kept > 0), "kept rows without memory, or the other way round");
        check(stats.n_archived == 0 || stats.n_archived == stats.n_prompt, "the archive of another prompt");
        check(stats.n_archived == 0 || stats.bytes_archive > 0, "archived rows without memory");
        check(stats.n_tokens <= n_prompt + n_more, "more tokens than were decoded");
        check(stats.bytes_cells + stats.bytes_kept + stats.bytes_record <= stats.bytes_peak, "more than the peak");

        check(kept == (stats.n_prompt > 0 ? caps : std::vector<int32_t>(caps.size())), "not the budgets were kept");
        (stats.n_prompt > 0 ? n_compacted : n_full)++;

        std::vector<uint8_t> mask(caps.size() * n_prompt);
        if (headkv_get_mask(ctx, mask.data(), mask.size()) == HEADKV_OK) {
            check(std::accumulate(mask.begin(), mask.end(), 0) == std::accumulate(caps.begin(), caps.end(), 0),
                  "not the budgets are in the mask");
        } else {
            check(strlen(headkv_last_error()) > 0, "no cause");
        }

        std::vector<int64_t> bytes(ggml_backend_dev_count());
        check(headkv_get_device_bytes(ctx, bytes.data(), bytes.size()) == HEADKV_OK &&
                  std::accumulate(bytes.begin(), bytes.end(), (int64_t) 0) > 0,
              "the cache is nowhere");
    }
};

// --windows: a model with sliding windows in half of its layers
int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);

    tiny_model_params shape;
    if (argc > 1 && strcmp(argv[1], "--windows") == 0) {
        shape.windows = true;
        shape.n_layer = 4;
        caps.resize(4); // of layers 1 and 3
    }
    const llama_model_ptr model = tiny_model_load(shape);

    llama_context_params params = llama_context_default_params();
    params.n_ctx                = 1024;
    params.n_threads            = 1;
    params.n_threads_batch      = 1;
    params.flash_attn_type      = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.swa_full             = false;
    llama_context_ptr ctx(llama_init_from_model(model.get(), params));
    if (!ctx) {
        printf("FAIL: no context\n");
        return 1;
    }

    if (headkv_set_archive(ctx.get(), HEADKV_ARCHIVE_MEMORY, nullptr) != HEADKV_OK) {
        printf("FAIL: no archive\n");
        return 1;
    }

    asked found;
    std::atomic<bool> done = false;
    std::thread other([&]() {
        while (!done) {
            found.ask(ctx.get());
        }
    });

    int n_failed = 0;
    for (int i = 0; i < n_round; ++i) {
        n_failed += !one_round(ctx.get(), i % 2 == 1);
    }
    done = true;
    other.join();

    printf("%d rounds, %d failed; asked %d times while compacted and %d times while not, %d answers wrong\n", n_round,
           n_failed, found.n_compacted, found.n_full, found.n_wrong);
    return n_failed == 0 && found.n_wrong == 0 && found.n_compacted > 0 && found.n_full > 0 ? 0 : 1;
}
