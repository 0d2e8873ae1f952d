// One thread reads prompts, compacts, decodes and clears, over and over; another asks all the while for what headkv.h
// says may be asked for at any time. What it gets must be of one moment, and fit together. For the thread sanitizer
// too.

#include "archive-turn.h"

#include <atomic>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

static constexpr int n_round  = 30;
static constexpr int n_prompt = 300;
static constexpr int n_more   = 200; // outgrows the first tail

static std::vector<int32_t> caps; // of each head that retains

static bool one_round(llama_context * ctx, bool archive) {
    const bool read = archive ? turn_prefill(ctx, { 0, n_prompt }) == HEADKV_OK
                              : headkv_reserve(ctx, n_prompt) == HEADKV_OK && turn_compact(ctx, { 0, n_prompt });
    return read && turn_decode(ctx, n_prompt, n_prompt + n_more) &&
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

// --windows, --hybrid, --hybrid-windows: a model with such layers
int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);

    const llama_model_ptr model = tiny_model_load(tiny_model_asked(argc, argv));
    const llama_context_ptr ctx = turn_open(model.get());
    if (!ctx) {
        printf("FAIL: no context\n");
        return 1;
    }
    const turn_plan plan(ctx.get(), n_prompt);
    caps.assign(plan.caps, plan.caps + plan.n_caps);

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
