#include "headkv-select.h"

#include <algorithm>
#include <deque>
#include <numeric>

// res[i] = max(x[i - kernel/2 .. i + kernel/2]), in O(n) with a queue of falling values
static std::vector<float> max_pool(const float * x, uint32_t n, uint32_t kernel) {
    const uint32_t half = kernel / 2;

    std::vector<float> res(n);
    std::deque<uint32_t> best;

    for (uint32_t i = 0; i < n + half; ++i) {
        if (i < n) {
            while (!best.empty() && x[best.back()] <= x[i]) {
                best.pop_back();
            }
            best.push_back(i);
        }
        if (i >= half) {
            const uint32_t c = i - half;
            while (best.front() + half < c) {
                best.pop_front();
            }
            res[c] = x[best.front()];
        }
    }

    return res;
}

void headkv_select(const float * w, uint32_t n_prompt, uint32_t cap, const headkv_params & params,
                   std::vector<int32_t> & keep) {
    keep.clear();

    if (cap >= n_prompt) {
        keep.resize(n_prompt);
        std::iota(keep.begin(), keep.end(), 0);
        return;
    }

    const uint32_t n_window = std::min(params.window, cap);
    const uint32_t n_sinks  = std::min(params.sinks, cap - n_window);
    const uint32_t n_best   = cap - n_window - n_sinks;

    // candidates: [first, last)
    const uint32_t first = n_sinks;
    const uint32_t last  = n_prompt - n_window;

    keep.reserve(cap);
    for (uint32_t p = 0; p < n_sinks; ++p) {
        keep.push_back(p);
    }

    if (n_best > 0) {
        const std::vector<float> pooled = max_pool(w + first, last - first, params.kernel);

        std::vector<int32_t> order(last - first);
        std::iota(order.begin(), order.end(), (int32_t) first);

        const auto better = [&](int32_t a, int32_t b) {
            const float wa = pooled[a - first];
            const float wb = pooled[b - first];
            return wa != wb ? wa > wb : a < b;
        };

        std::nth_element(order.begin(), order.begin() + (n_best - 1), order.end(), better);
        order.resize(n_best);
        std::sort(order.begin(), order.end());
        keep.insert(keep.end(), order.begin(), order.end());
    }

    for (uint32_t p = last; p < n_prompt; ++p) {
        keep.push_back(p);
    }
}
