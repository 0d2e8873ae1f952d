// Budgets from curves. As with head scores (headkv-caps.cpp), an equal base comes first: a share 1 - 1/beta of what a
// KV head has beyond the window. The rest is water-filling. Each curve is replaced by its lower convex hull, which
// takes measuring noise for what it is: a loss that rises with the budget becomes level, and a step becomes the slope
// across it. On hulls the greedy order is the optimum.

#include "scores/headkv-waterfill.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

__extension__ typedef __int128 wide; // holds the bytes of any heads

namespace {

struct point {
    int64_t at; // entries
    double loss;
};

// a straight piece of a hull: of one KV head, from `start` entries to `stop`
struct slope {
    double fall; // of the loss, per byte
    size_t head;
    int64_t start;
    int64_t stop;
};

} // namespace

bool headkv_ascend(const float * shares, size_t n_points) {
    bool res = n_points > 1 && shares[0] == 0.0f && shares[n_points - 1] == 1.0f;
    for (size_t i = 1; i < n_points; ++i) {
        res = res && shares[i] > shares[i - 1];
    }
    return res;
}

size_t headkv_find_not_finite(const float * losses, size_t n) {
    return std::find_if(losses, losses + n, [](float x) { return !std::isfinite(x); }) - losses;
}

// whether b lies on or above the line from a to c
static bool turns_up(const point & a, const point & b, const point & c) {
    return (b.loss - a.loss) * (double) (c.at - a.at) >= (c.loss - a.loss) * (double) (b.at - a.at);
}

// The lower convex hull of a curve, up to its lowest point. Points may have the same entries where a prompt is short.
static std::vector<point> hull_of(std::vector<point> points) {
    std::stable_sort(points.begin(), points.end(),
                     [](const point & a, const point & b) { return std::tie(a.at, a.loss) < std::tie(b.at, b.loss); });
    std::vector<point> res;
    for (const point & next : points) {
        if (!res.empty() && res.back().at == next.at) {
            continue; // the lowest of those with as many entries is there
        }
        while (res.size() > 1 && turns_up(res[res.size() - 2], res.back(), next)) {
            res.pop_back();
        }
        res.push_back(next);
    }
    const auto lower = [](const point & a, const point & b) { return a.loss < b.loss; };
    res.erase(std::min_element(res.begin(), res.end(), lower) + 1, res.end());
    return res;
}

// of all heads, the steepest first; ties go to the lower head
static std::vector<slope> slopes_of(const headkv_curves & curves, const std::vector<int32_t> & row_bytes,
                                    int32_t window, int32_t n_prompt) {
    const size_t n_points = curves.shares.size();

    std::vector<slope> res;
    std::vector<point> points(n_points);
    for (size_t head = 0; head < row_bytes.size(); ++head) {
        for (size_t i = 0; i < n_points; ++i) {
            const double beyond = (double) curves.shares[i] * (n_prompt - window);
            points[i]           = { window + (int64_t) std::nearbyint(beyond), curves.losses[head * n_points + i] };
        }
        const std::vector<point> hull = hull_of(points);
        for (size_t i = 1; i < hull.size(); ++i) {
            const int64_t n_bytes = (hull[i].at - hull[i - 1].at) * row_bytes[head];
            res.push_back({ (hull[i - 1].loss - hull[i].loss) / (double) n_bytes, head, hull[i - 1].at, hull[i].at });
        }
    }
    std::stable_sort(res.begin(), res.end(), [](const slope & a, const slope & b) { return a.fall > b.fall; });
    return res;
}

// spend what no curve asks for: the smallest caps are raised, all to one level
static void level(std::vector<int64_t> & caps, wide left, const std::vector<int32_t> & row_bytes, int32_t n_prompt) {
    const auto cost = [&](int64_t to) {
        wide res = 0;
        for (size_t i = 0; i < caps.size(); ++i) {
            res += (wide) std::max<int64_t>(to - caps[i], 0) * row_bytes[i];
        }
        return res;
    };
    int64_t low  = 0; // the highest level that can be paid
    int64_t high = n_prompt;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (cost(middle) <= left) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    left -= cost(low);
    for (size_t i = 0; i < caps.size(); ++i) {
        caps[i] = std::max(caps[i], low);
        if (caps[i] == low && low < n_prompt && row_bytes[i] <= left) {
            caps[i]++;
            left -= row_bytes[i];
        }
    }
}

std::vector<int32_t> headkv_waterfill(const headkv_curves & curves, const std::vector<int32_t> & equal,
                                      const std::vector<int32_t> & row_bytes, double beta, int32_t window,
                                      int32_t n_prompt) {
    const double mean  = (double) std::accumulate(equal.begin(), equal.end(), (int64_t) 0) / (double) equal.size();
    const int64_t base = window + (int64_t) ((mean - window) * (1.0 - 1.0 / beta));

    std::vector<int64_t> caps(equal.size(), base);
    wide left = 0;
    for (size_t i = 0; i < equal.size(); ++i) {
        left += (wide) (equal[i] - base) * row_bytes[i];
    }
    for (const slope & s : slopes_of(curves, row_bytes, window, n_prompt)) {
        const int64_t wanted = s.stop - std::max(s.start, caps[s.head]);
        const int64_t n      = (int64_t) std::min<wide>(wanted, left / row_bytes[s.head]);
        if (n > 0) {
            caps[s.head] += n;
            left         -= (wide) n * row_bytes[s.head];
        }
    }
    level(caps, left, row_bytes, n_prompt);
    return { caps.begin(), caps.end() };
}
