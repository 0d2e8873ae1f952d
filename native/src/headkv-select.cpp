#include "headkv-select.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

static inline float larger(float a, float b) {
    return a > b ? a : b;
}

headkv_parts headkv_divide(uint32_t n_prompt, uint32_t n_observed, const headkv_params & params) {
    const uint32_t n_sinks = std::min(params.sinks, n_prompt - n_observed);

    return { n_sinks, n_prompt - n_observed - n_sinks, n_observed };
}

// res[i] = max(x[i - kernel/2 .. i + kernel/2]) of those that exist; doubles the width until it fits, so that
// every pass is one loop without branches
static std::vector<float> max_pool(const float * x, size_t n, size_t kernel) {
    const size_t half = std::min(kernel / 2, n);

    // a[i] = max(padded[i .. i + width - 1])
    std::vector<float> a(n + 2 * half, -std::numeric_limits<float>::infinity());
    std::copy(x, x + n, a.begin() + half);

    size_t width = 1;
    for (; 2 * width <= 2 * half + 1; width *= 2) {
        float * p = a.data();
        for (size_t i = 0; i + width < a.size(); ++i) {
            p[i] = larger(p[i], p[i + width]);
        }
    }

    // two windows that overlap
    std::vector<float> res(n);
    for (size_t i = 0; i < n; ++i) {
        res[i] = larger(a[i], a[i + 2 * half + 1 - width]);
    }

    return res;
}

void headkv_vote(const float * w, const headkv_parts & parts, double weight, const headkv_params & params,
                 double * votes) {
    w += parts.sinks;

    const double sum = std::accumulate(w, w + parts.candidates, 0.0);
    if (!(sum > 0.0)) {
        return; // looks at none of them
    }

    const std::vector<float> pooled = max_pool(w, parts.candidates, params.kernel);
    for (uint32_t i = 0; i < parts.candidates; ++i) {
        votes[i] += weight / sum * pooled[i];
    }
}

// append the n_best best of x, as ascending positions from `first` on; ties go to the lower position
static void append_best(const std::vector<float> & x, size_t n_best, uint32_t first, std::vector<int32_t> & keep) {
    std::vector<float> order = x;
    std::nth_element(order.begin(), order.begin() + (n_best - 1), order.end(), std::greater<float>());

    const float last = order[n_best - 1]; // the worst that is kept
    size_t n_as_last = n_best - std::count_if(order.begin(), order.begin() + n_best, [&](float v) { return v > last; });

    for (size_t i = 0; i < x.size(); ++i) {
        if (x[i] > last) {
            keep.push_back(first + i);
        } else if (x[i] == last && n_as_last > 0) {
            keep.push_back(first + i);
            n_as_last--;
        }
    }
}

void headkv_select(const float * w, const float * votes, const headkv_parts & parts, uint32_t cap,
                   const headkv_params & params, std::vector<int32_t> & keep) {
    const uint32_t n_prompt = parts.n_prompt();

    keep.clear();

    if (cap >= n_prompt) {
        keep.resize(n_prompt);
        std::iota(keep.begin(), keep.end(), 0);
        return;
    }

    const uint32_t n_window = std::min({ params.window, parts.observed, cap });
    const uint32_t n_first  = std::min(parts.sinks, cap - n_window);
    const uint32_t n_rest   = cap - n_window - n_first;

    // of the rest, what was observed before the window, within half of the cap; all of it where few others are left
    const uint32_t n_half = std::max(cap / 2, n_window) - n_window;
    const uint32_t n_more =
        std::max(std::min({ parts.observed - n_window, n_half, n_rest }), n_rest - std::min(parts.candidates, n_rest));

    const uint32_t n_last = n_window + n_more;
    const uint32_t n_best = n_rest - n_more;

    keep.reserve(cap);
    for (uint32_t p = 0; p < n_first; ++p) {
        keep.push_back(p);
    }
    if (n_best > 0) {
        std::vector<float> rank = max_pool(w + parts.sinks, parts.candidates, params.kernel);
        for (uint32_t i = 0; votes && i < parts.candidates; ++i) {
            rank[i] *= votes[i];
        }
        append_best(rank, n_best, parts.sinks, keep);
    }
    for (uint32_t p = n_prompt - n_last; p < n_prompt; ++p) {
        keep.push_back(p);
    }
}
