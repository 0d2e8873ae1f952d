// headkv_select() against the same selection written the slow and plain way.
// With --bench: the time it takes for the heads of a model with long prompts.

#include "headkv-select.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>

// every position by itself: its place in the order (window, sinks, pooled attention, position)
static std::vector<int32_t> select_plain(const std::vector<float> & w, uint32_t cap, const headkv_params & params) {
    const int n        = w.size();
    const int n_keep   = std::min(cap, (uint32_t) n);
    const int n_window = std::min((int) params.window, n_keep);
    const int last     = n - n_window;
    const int first    = std::min({ (int) params.sinks, n_keep - n_window, last });
    const int64_t half = params.kernel / 2;

    std::vector<float> pooled(n, -1.0f);
    for (int p = first; p < last; ++p) {
        for (int64_t i = std::max<int64_t>(first, p - half); i <= std::min<int64_t>(last - 1, p + half); ++i) {
            pooled[p] = std::max(pooled[p], w[i]);
        }
    }

    const auto group = [&](int32_t p) { return p >= last ? 0 : p < first ? 1 : 2; };

    std::vector<int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        if (group(a) != group(b)) {
            return group(a) < group(b);
        }
        return pooled[a] != pooled[b] ? pooled[a] > pooled[b] : a < b;
    });
    order.resize(n_keep);
    std::sort(order.begin(), order.end());
    return order;
}

static void bench() {
    std::mt19937 rng(1);
    std::lognormal_distribution<float> dist(0.0f, 3.0f);

    const int n_head = 32 * 8;

    for (const uint32_t n : { 8192u, 32768u, 131072u }) {
        std::vector<float> w(n);
        for (auto & x : w) {
            x = dist(rng);
        }
        for (const uint32_t cap : { 128u, 512u, 1024u }) {
            std::vector<int32_t> keep;
            const auto start = std::chrono::steady_clock::now();
            for (int h = 0; h < n_head; ++h) {
                headkv_select(w.data(), n, cap, { 8, 17, 4 }, keep);
            }
            const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
            printf("%6u positions, cap %4u: %7.1f ms for %d heads on one thread\n", n, cap, took.count(), n_head);
        }
    }
}

int main(int argc, char ** argv) {
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench();
        return 0;
    }

    std::mt19937 rng(1);

    int n_fail      = 0;
    const int n_run = 3000;

    for (int i = 0; i < n_run; ++i) {
        const uint32_t n = 1 + rng() % (i % 10 ? 200 : 3000);

        headkv_params params;
        params.window = 1 + rng() % 12;
        params.kernel = i % 50 ? 1 + 2 * (rng() % 12) : 1 + 2 * (rng() % 2000); // also wider than the prompt
        params.sinks  = rng() % 6;

        if (i == 0) {
            params.kernel = 0x7fffffff;
        }

        const uint32_t cap = params.window + rng() % (n + 10);

        std::vector<float> w(n);
        for (auto & x : w) {
            // few different values, so that ties are common
            x = i % 2 ? (rng() % 8) / 8.0f : (rng() % 100000) / 100000.0f;
        }

        std::vector<int32_t> keep = { 7 }; // what was there before must go
        headkv_select(w.data(), n, cap, params, keep);

        if (keep != select_plain(w, cap, params)) {
            printf("FAIL run %d: n_prompt %u, cap %u, window %u, kernel %u, sinks %u\n", i, n, cap, params.window,
                   params.kernel, params.sinks);
            n_fail++;
        }
    }

    printf("%d passed, %d failed\n", n_run - n_fail, n_fail);
    return n_fail ? 1 : 0;
}
