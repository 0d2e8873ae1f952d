// headkv_vote() and headkv_select() against the same, written the slow and plain way.
// With --bench: the time it takes for the heads of a model with long prompts.

#include "select/headkv-select.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

using sentence_ends = std::vector<uint8_t>; // empty: one sentence

// factor^d, multiplied up
static float faded(float factor, int d) {
    float res = 1.0f;
    for (; d > 0; --d) {
        res *= factor;
    }
    return res;
}

// pooled attention of one position: the largest of those around it, the further the less; none of them a first token,
// of the window, or of another sentence
static float pooled(const std::vector<float> & w, const sentence_ends & ends, int p, int first, int last,
                    const headkv_params & params) {
    const auto ends_at = [&](int i) { return !ends.empty() && ends[i]; };
    const int reach    = std::min<size_t>(params.kernel / 2, headkv_reach_max);

    float res = w[p];
    for (int d = 1, i = p - 1; d <= reach && i >= first && !ends_at(i); ++d, --i) {
        res = std::max(res, faded(headkv_fade_behind, d) * w[i]);
    }
    for (int d = 1, i = p + 1; d <= reach && i < last && !ends_at(i - 1); ++d, ++i) {
        res = std::max(res, faded(headkv_fade_ahead, d) * w[i]);
    }
    return res;
}

// candidates of a prompt: [first, last)
static std::pair<int, int> candidates(int n, const headkv_params & params) {
    const int last = std::max(0, n - 2 * (int) params.window);
    return { std::min((int) params.first_tokens, last), last };
}

static std::vector<double> vote_plain(const std::vector<float> & w, const sentence_ends & ends, double weight,
                                      const headkv_params & params) {
    const auto [first, last] = candidates(w.size(), params);

    double sum = 0.0;
    for (int p = first; p < last; ++p) {
        sum += w[p];
    }
    std::vector<double> res;
    for (int p = first; p < last; ++p) {
        res.push_back(sum > 0.0 ? weight / sum * pooled(w, ends, p, first, last, params) : 0.0);
    }
    return res;
}

// one position after the other, until the cap is full
static std::vector<int32_t> select_plain(const std::vector<float> & w, const sentence_ends & ends, const float * votes,
                                         int cap, const headkv_params & params) {
    const int n              = w.size();
    const auto [first, last] = candidates(n, params);

    std::vector<std::pair<float, int>> best; // ascending: best first, then the lower position
    for (int p = first; p < last; ++p) {
        best.push_back({ -pooled(w, ends, p, first, last, params) * (votes ? votes[p - first] : 1.0f), p });
    }
    std::sort(best.begin(), best.end());

    std::vector<int32_t> order;
    const auto take = [&](int from, int to, int step, int most) {
        for (int p = from; p != to && most > 0; p += step, --most) {
            order.push_back(p);
        }
    };
    const int n_recent = n - last;
    const int n_window = std::min((int) params.window, n_recent);
    take(n - 1, last - 1, -1, n_window);
    take(0, first, 1, n);
    const int n_more = std::max(0, std::min(n_recent, cap / 2) - n_window);
    take(n - 1 - n_window, last - 1, -1, n_more);
    for (const auto & [rank, p] : best) {
        order.push_back(p);
    }
    take(n - 1 - n_window - n_more, last - 1, -1, n);
    order.resize(std::min(cap, n));
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
        sentence_ends ends(n);
        for (auto & end : ends) {
            end = rng() % 20 == 0;
        }
        for (const uint32_t cap : { 128u, 512u, 1024u }) {
            std::vector<int32_t> keep;
            const headkv_params params;
            const auto parts = headkv_divide(n, ends.data(), params);
            std::vector<double> votes(parts.candidates);
            const auto start = std::chrono::steady_clock::now();
            for (int h = 0; h < n_head; ++h) {
                headkv_vote(w.data(), parts, 1.0, params, votes.data());
            }
            const std::vector<float> sums(votes.begin(), votes.end());
            for (int h = 0; h < n_head; ++h) {
                headkv_select(w.data(), sums.data(), parts, cap, params, keep);
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
        params.window       = 1 + rng() % 12;
        params.kernel       = i % 50 ? 1 + 2 * (rng() % 12) : 1 + 2 * (rng() % 2000); // also wider than the prompt
        params.first_tokens = rng() % 6;

        if (i == 0) {
            params.kernel = 0x7fffffff;
        }

        const uint32_t cap = rng() % (n + 10);

        std::vector<float> w(n);
        for (auto & x : w) {
            // few different values, so that ties are common
            x = i % 2 ? (rng() % 8) / 8.0f : (rng() % 100000) / 100000.0f;
        }
        if (i % 100 == 0) {
            std::fill(w.begin(), w.end(), 0.0f);
        }

        sentence_ends ends(i % 4 ? n : 0);
        for (auto & end : ends) {
            end = rng() % (i % 4 == 1 ? 3 : 30) == 0;
        }

        const auto parts = headkv_divide(n, ends.empty() ? nullptr : ends.data(), params);

        const double weight = rng() % 5;

        std::vector<double> votes(parts.candidates);
        headkv_vote(w.data(), parts, weight, params, votes.data());

        if (votes != vote_plain(w, ends, weight, params)) {
            printf("FAIL run %d: vote of %u positions, window %u, kernel %u, first tokens %u\n", i, n, params.window,
                   params.kernel, params.first_tokens);
            n_fail++;
        }

        std::vector<float> by_others(votes.size());
        for (auto & x : by_others) {
            x = (rng() % 8) / 8.0f;
        }
        const float * with = i % 3 ? by_others.data() : nullptr;

        std::vector<int32_t> keep = { 7 }; // what was there before must go
        headkv_select(w.data(), with, parts, cap, params, keep);

        if (keep != select_plain(w, ends, with, cap, params)) {
            printf("FAIL run %d: n_prompt %u, cap %u, window %u, kernel %u, first tokens %u, %s votes, %s "
                   "sentences\n",
                   i, n, cap, params.window, params.kernel, params.first_tokens, with ? "with" : "without",
                   ends.empty() ? "no" : "with");
            n_fail++;
        }
    }

    printf("%d passed, %d failed\n", n_run - n_fail, n_fail);
    return n_fail ? 1 : 0;
}
