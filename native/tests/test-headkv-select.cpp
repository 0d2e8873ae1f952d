// headkv_select() against the same selection written the slow and plain way.

#include "headkv-select.h"

#include <algorithm>
#include <cstdio>
#include <random>
#include <set>

static std::vector<int32_t> select_plain(const std::vector<float> & w, uint32_t cap, const headkv_params & params) {
    const int n = w.size();
    if ((int) cap >= n) {
        cap = n;
    }
    std::set<int32_t> keep;
    for (int p = n - 1; p >= 0 && keep.size() < std::min(cap, params.window); --p) {
        keep.insert(p);
    }
    const int last = n - (int) keep.size();
    int first      = 0;
    for (; first < (int) params.sinks && first < last && keep.size() < cap; ++first) {
        keep.insert(first);
    }
    while (keep.size() < cap) {
        int best     = -1;
        float best_w = 0.0f;
        for (int p = first; p < last; ++p) {
            if (keep.count(p)) {
                continue;
            }
            const int half = params.kernel / 2;
            float pooled   = w[p];
            for (int i = std::max(first, p - half); i <= std::min(last - 1, p + half); ++i) {
                pooled = std::max(pooled, w[i]);
            }
            if (best < 0 || pooled > best_w) {
                best   = p;
                best_w = pooled;
            }
        }
        keep.insert(best);
    }
    return std::vector<int32_t>(keep.begin(), keep.end());
}

int main() {
    std::mt19937 rng(1);

    int n_fail      = 0;
    const int n_run = 3000;

    for (int i = 0; i < n_run; ++i) {
        const uint32_t n = 1 + rng() % 200;

        headkv_params params;
        params.window = 1 + rng() % 12;
        params.kernel = 1 + 2 * (rng() % 12);
        params.sinks  = rng() % 6;

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
