#include "select/headkv-select.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

static inline float larger(float a, float b) {
    return a > b ? a : b;
}

headkv_parts headkv_divide(uint32_t n_prompt, const uint8_t * ends, const headkv_params & params) {
    const uint32_t n_recent       = (uint32_t) std::min<uint64_t>((uint64_t) 2 * params.window, n_prompt);
    const uint32_t n_first_tokens = std::min(params.first_tokens, n_prompt - n_recent);

    return { n_first_tokens, n_prompt - n_recent - n_first_tokens, n_recent, ends ? ends + n_first_tokens : nullptr };
}

// one sentence; x, res: [n]
static void pool_sentence(const float * x, float * res, size_t n, size_t reach) {
    std::copy(x, x + n, res);

    float behind = 1.0f;
    float ahead  = 1.0f;

    // one loop without branches per distance
    for (size_t d = 1; d <= reach && d < n; ++d) {
        behind *= headkv_fade_behind;
        ahead  *= headkv_fade_ahead;
        for (size_t i = d; i < n; ++i) {
            res[i] = larger(res[i], behind * x[i - d]);
        }
        for (size_t i = d; i < n; ++i) {
            res[i - d] = larger(res[i - d], ahead * x[i]);
        }
    }
}

// x: [n_prompt] -> [candidates]
static std::vector<float> max_pool(const float * x, const headkv_parts & parts, const headkv_params & params) {
    const uint32_t n = parts.candidates;

    const size_t reach = std::min<size_t>(params.kernel / 2, headkv_reach_max);

    std::vector<float> res(n);

    x += parts.first;
    for (uint32_t first = 0, last; first < n; first = last) {
        last = n;
        if (parts.ends) {
            last = std::find_if(parts.ends + first, parts.ends + n, [](uint8_t end) { return end != 0; }) - parts.ends;
            last = std::min(last + 1, n);
        }
        pool_sentence(x + first, res.data() + first, last - first, reach);
    }

    return res;
}

void headkv_vote(const float * w, const headkv_parts & parts, double weight, const headkv_params & params,
                 double * votes) {
    const double sum = std::accumulate(w + parts.first, w + parts.first + parts.candidates, 0.0);
    if (!(sum > 0.0)) {
        return; // looks at none of them
    }

    const std::vector<float> pooled = max_pool(w, parts, params);
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

    const uint32_t n_window = std::min({ params.window, parts.recent, cap });
    const uint32_t n_first  = std::min(parts.first, cap - n_window);
    const uint32_t n_rest   = cap - n_window - n_first;

    // of the rest, what is recent before the window, within half of the cap; all of it where few others are left
    const uint32_t n_half = std::max(cap / 2, n_window) - n_window;
    const uint32_t n_more =
        std::max(std::min({ parts.recent - n_window, n_half, n_rest }), n_rest - std::min(parts.candidates, n_rest));

    const uint32_t n_last = n_window + n_more;
    const uint32_t n_best = n_rest - n_more;

    keep.reserve(cap);
    for (uint32_t p = 0; p < n_first; ++p) {
        keep.push_back(p);
    }
    if (n_best > 0) {
        std::vector<float> rank = max_pool(w, parts, params);
        for (uint32_t i = 0; votes && i < parts.candidates; ++i) {
            rank[i] *= votes[i];
        }
        // of rows that are no numbers: an order needs numbers
        std::replace_if(rank.begin(), rank.end(), [](float x) { return std::isnan(x); }, 0.0f);
        append_best(rank, n_best, parts.first, keep);
    }
    for (uint32_t p = n_prompt - n_last; p < n_prompt; ++p) {
        keep.push_back(p);
    }
}
