#include "scores/headkv-pour.h"

#include <algorithm>
#include <cmath>
#include <numeric>

// the indices of x, the largest value first, of equal ones the lower index
static std::vector<size_t> descending(const std::vector<double> & x) {
    std::vector<size_t> res(x.size());
    std::iota(res.begin(), res.end(), 0);
    std::stable_sort(res.begin(), res.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
    return res;
}

std::vector<double> headkv_pour(double pool, const std::vector<double> & weights, double room) {
    const std::vector<size_t> order = descending(weights);
    const size_t n                  = weights.size();

    std::vector<double> rest(n + 1); // rest[k]: weight of all but the k heaviest
    for (size_t k = n; k-- > 0;) {
        rest[k] = rest[k + 1] + weights[order[k]];
    }
    std::vector<double> shares(n);
    for (size_t n_full = 0; n_full < n; ++n_full) {
        const double left  = pool - (double) n_full * room;
        const double heavy = weights[order[n_full]];
        if (rest[n_full] <= 0) { // only heads of no weight have room left
            for (size_t i = n_full; i < n; ++i) {
                shares[order[i]] = left / (double) (n - n_full);
            }
            break;
        }
        if (heavy / rest[n_full] * left <= room) {
            for (size_t i = n_full; i < n; ++i) {
                shares[order[i]] = weights[order[i]] / rest[n_full] * left;
            }
            break;
        }
        shares[order[n_full]] = room;
    }
    return shares;
}

std::vector<int32_t> headkv_round(std::vector<double> exact, int64_t total, int32_t most) {
    std::vector<int32_t> caps(exact.size());
    int64_t left = total;
    for (size_t i = 0; i < exact.size(); ++i) {
        const double x  = std::min(std::max(exact[i], 0.0), (double) most);
        caps[i]         = (int32_t) std::floor(x);
        exact[i]        = caps[i] < most ? x - caps[i] : -1.0; // the remainder
        left           -= caps[i];
    }
    const std::vector<size_t> order = descending(exact);
    for (int64_t i = 0; i < std::min<int64_t>(left, order.size()); ++i) {
        caps[order[i]]++;
    }
    return caps;
}
