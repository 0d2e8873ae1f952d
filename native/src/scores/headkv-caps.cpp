#include "scores/headkv-caps.h"

#include "base/headkv-error.h"
#include "llama-impl.h"
#include "scores/headkv-budget.h"
#include "scores/headkv-pour.h"
#include "scores/headkv-scores.h"
#include "scores/headkv-waterfill.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

static constexpr int64_t n_heads_max = 1 << 24; // more than any model has

namespace {

// the layers, as a budget sees them
struct model_heads {
    std::vector<int32_t> il, n_head, n_head_kv; // of each layer
    std::vector<int32_t> sizes;                 // of each KV head, K and V of one entry
    int32_t n_head_max    = 0;
    int32_t n_head_kv_max = 0;
    int64_t n             = 0; // KV heads in all
    int64_t all_bytes     = 0; // the sum of the sizes
};

} // namespace

static model_heads heads_of(const headkv_layer * layers, size_t n_layers) {
    model_heads res;
    for (size_t i = 0; i < n_layers; ++i) {
        const headkv_layer & l = layers[i];
        if (l.n_head_kv < 1 || l.n_head < 1 || l.n_head % l.n_head_kv != 0 || l.row_bytes < 1) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, format("layer %d cannot have %d query and %d KV heads with rows of "
                                                           "%d bytes",
                                                           l.il, l.n_head, l.n_head_kv, l.row_bytes));
        }
        res.il.push_back(l.il);
        res.n_head.push_back(l.n_head);
        res.n_head_kv.push_back(l.n_head_kv);
        res.n_head_max     = std::max(res.n_head_max, l.n_head);
        res.n_head_kv_max  = std::max(res.n_head_kv_max, l.n_head_kv);
        res.n             += l.n_head_kv;
        res.all_bytes     += (int64_t) l.n_head_kv * l.row_bytes;
    }
    if (res.n == 0 || res.n > n_heads_max) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("a model cannot have %lld KV heads", (long long) res.n));
    }
    for (size_t i = 0; i < n_layers; ++i) {
        res.sizes.insert(res.sizes.end(), layers[i].n_head_kv, layers[i].row_bytes);
    }
    return res;
}

//
// scores
//

// As numpy adds up: in pairs, so that large sums stay exact, and results stay those that were measured.
static double sum_of(const double * x, size_t n) {
    if (n < 8) {
        return std::accumulate(x, x + n, 0.0);
    }
    if (n > 128) {
        const size_t half = n / 2 - n / 2 % 8;
        return sum_of(x, half) + sum_of(x + half, n - half);
    }
    double part[8];
    std::copy(x, x + 8, part);
    size_t i = 8;
    for (; i < n - n % 8; i += 8) {
        for (size_t j = 0; j < 8; ++j) {
            part[j] += x[i + j];
        }
    }
    const double res = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    return std::accumulate(x + i, x + n, res);
}

// One score per KV head that there is, with the sum 1. Scores of query heads are summed over the GQA group; in a layer
// with fewer heads than another one the first ones count. Where one layer has as many KV heads as any has query heads,
// scores are of query heads, as those of a file are.
static std::vector<double> kv_head_scores(const headkv_retention & r, const model_heads & heads) {
    const size_t n_layer = heads.n_head.size();
    const bool by_query  = r.n_rows == n_layer && r.n_cols == (size_t) heads.n_head_max;
    const bool by_kv     = r.n_rows == n_layer && r.n_cols == (size_t) heads.n_head_kv_max;
    if (!by_query && !by_kv) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("scores must have the shape (%zu, %d) (query heads) or (%zu, %d) (KV heads) for this "
                                  "model, not (%zu, %zu)",
                                  n_layer, heads.n_head_max, n_layer, heads.n_head_kv_max, r.n_rows, r.n_cols));
    }
    // the sum of very large scores would overflow
    const double most = *std::max_element(r.scores, r.scores + r.n_rows * r.n_cols);

    std::vector<double> grid(n_layer * heads.n_head_kv_max); // with zeros for heads that a layer does not have
    std::vector<double> group;
    for (size_t l = 0; l < n_layer; ++l) {
        const size_t n_group = by_query ? heads.n_head[l] / heads.n_head_kv[l] : 1;
        for (int32_t h = 0; h < heads.n_head_kv[l]; ++h) {
            const double * from = r.scores + l * r.n_cols + h * n_group;
            group.assign(from, from + n_group);
            for (double & score : group) {
                score /= most;
            }
            grid[l * heads.n_head_kv_max + h] = sum_of(group.data(), n_group);
        }
    }
    const double sum = sum_of(grid.data(), grid.size());
    if (!(sum > 0.0)) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "scores must not be 0 for all KV heads of this model");
    }
    std::vector<double> res;
    for (size_t l = 0; l < n_layer; ++l) {
        for (int32_t h = 0; h < heads.n_head_kv[l]; ++h) {
            res.push_back(grid[l * heads.n_head_kv_max + h] / sum);
        }
    }
    return res;
}

static std::string listed(const std::vector<int32_t> & numbers) {
    std::string res;
    for (const int32_t number : numbers) {
        res += (res.empty() ? "" : ", ") + std::to_string(number);
    }
    return res;
}

// which rows of scores of the layers `scored` are of a model's
static std::vector<int32_t> match(const std::vector<int32_t> & scored, int32_t n_head, int32_t n_head_kv,
                                  const model_heads & heads) {
    bool whole = true; // the model retains all of its layers
    for (size_t i = 0; i < heads.il.size(); ++i) {
        whole = whole && heads.il[i] == (int32_t) i;
    }
    const bool as_many = scored.size() == heads.il.size();
    if (n_head != heads.n_head_max || n_head_kv != heads.n_head_kv_max || (whole && !as_many)) {
        throw headkv_error(HEADKV_ERR_SCORES_VALUE,
                           format("the head scores are for %zu layers of %d query and %d KV heads, the model has %zu "
                                  "layers of %d and %d",
                                  scored.size(), n_head, n_head_kv, heads.il.size(), heads.n_head_max,
                                  heads.n_head_kv_max));
    }
    std::vector<int32_t> res;
    for (const int32_t il : heads.il) {
        const auto found = std::lower_bound(scored.begin(), scored.end(), il);
        if (found == scored.end() || *found != il) {
            throw headkv_error(HEADKV_ERR_SCORES_VALUE, "the head scores are for the layers " + listed(scored) +
                                                            ", and the model retains the layers " + listed(heads.il));
        }
        res.push_back(found - scored.begin());
    }
    return res;
}

static std::vector<int32_t> match(const headkv_scores & file, const model_heads & heads) {
    return match({ file.layers.begin(), file.layers.end() }, file.n_head, file.n_head_kv, heads);
}

// the rows of a file's scores that are of these layers, [n_layers][n_head]
static std::vector<double> rows_of(const headkv_scores & file, const model_heads & heads) {
    std::vector<double> res;
    for (const int32_t i : match(file, heads)) {
        const float * row = file.scores.data() + (size_t) i * file.n_head;
        res.insert(res.end(), row, row + file.n_head);
    }
    return res;
}

//
// curves
//

// those of KV heads that there are: the first ones of each of the rows
static headkv_curves pick(const float * shares, const float * losses, size_t n_points, size_t n_cols,
                          const std::vector<int32_t> & rows, const model_heads & heads) {
    headkv_curves res;
    res.shares.assign(shares, shares + n_points);
    for (size_t l = 0; l < rows.size(); ++l) {
        const float * row = losses + rows[l] * n_cols * n_points;
        res.losses.insert(res.losses.end(), row, row + heads.n_head_kv[l] * n_points);
    }
    return res;
}

// those that budgets are made of, or none: the caller's own, or those of a file where the caller has no scores either
static headkv_curves curves_of(const headkv_retention & r, const model_heads & heads) {
    if (r.losses) {
        if (r.n_rows != heads.il.size() || r.n_cols != (size_t) heads.n_head_kv_max) {
            throw headkv_error(
                HEADKV_ERR_ARGUMENT,
                format("curves must be of (%zu, %d) (layers, KV heads) for this model, not of (%zu, %zu)",
                       heads.il.size(), heads.n_head_kv_max, r.n_rows, r.n_cols));
        }
        std::vector<int32_t> rows(r.n_rows);
        std::iota(rows.begin(), rows.end(), 0);
        return pick(r.shares, r.losses, r.n_points, r.n_cols, rows, heads);
    }
    if (r.scores || !r.file || r.file->curves.shares.empty()) {
        return {};
    }
    const headkv_curves & of = r.file->curves;
    return pick(of.shares.data(), of.losses.data(), of.shares.size(), r.file->n_head_kv, match(*r.file, heads), heads);
}

//
// caps
//

static std::vector<int32_t> equal_caps(int64_t n_heads, int64_t n_entries, int32_t n_prompt) {
    return headkv_round(std::vector<double>(n_heads, (double) n_entries / (double) n_heads), n_entries, n_prompt);
}

static std::vector<int32_t> by_scores(const std::vector<double> & scores, int64_t n_entries, const headkv_retention & r,
                                      int32_t n_prompt) {
    const double n            = (double) scores.size();
    const double base         = r.window + ((double) n_entries / n - r.window) * (1.0 - 1.0 / r.beta);
    std::vector<double> exact = headkv_pour((double) n_entries - base * n, scores, (double) n_prompt - base);
    for (double & x : exact) {
        x = base + x;
    }
    return headkv_round(std::move(exact), n_entries, n_prompt);
}

static int64_t bytes_of(const std::vector<int32_t> & caps, const model_heads & heads) {
    int64_t res = 0;
    for (size_t i = 0; i < caps.size(); ++i) {
        res += (int64_t) caps[i] * heads.sizes[i];
    }
    return res;
}

// Of as many entries as take at most n_bytes.
template <typename F>
static std::vector<int32_t> most_that_fit(int64_t n_bytes, const model_heads & heads, int32_t window, int32_t n_prompt,
                                          const F & caps_of) {
    int64_t least = heads.n * window; // fit
    int64_t most  = heads.n * n_prompt;
    while (least < most) {
        const int64_t n = least + (most - least + 1) / 2;
        if (bytes_of(caps_of(n), heads) <= n_bytes) {
            least = n;
        } else {
            most = n - 1;
        }
    }
    return caps_of(least);
}

static void check_curves(const headkv_retention & r) {
    if (!r.shares && !r.losses) {
        return;
    }
    if (!r.shares || !r.losses) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "curves need both shares and losses");
    }
    if (r.scores) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "scores and curves exclude each other: give one of them");
    }
    if (r.n_points < 2 || r.n_points > headkv_n_points_max) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("the shares of curves must be 2 to %zu numbers, not %zu",
                                                       headkv_n_points_max, r.n_points));
    }
    if (!headkv_ascend(r.shares, r.n_points)) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the shares of curves must ascend from 0 to 1");
    }
    if (r.n_rows < 1 || r.n_rows > UINT16_MAX || r.n_cols < 1 || r.n_cols > UINT16_MAX) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("curves cannot be of (%zu, %zu)", r.n_rows, r.n_cols));
    }
    const size_t n = r.n_rows * r.n_cols * r.n_points;
    if (headkv_find_not_finite(r.losses, n) < n) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "losses must be finite");
    }
}

void headkv_check_retention(const headkv_retention & r) {
    if (r.window < 1) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("window must be at least 1, not %d", r.window));
    }
    if (r.kernel < 1 || r.kernel % 2 == 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("kernel must be odd, not %d", r.kernel));
    }
    if (r.sinks < 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("sinks must not be negative, not %d", r.sinks));
    }
    if (r.observe < 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("observe must be at least 1, or 0 for all of a prompt, not %d", r.observe));
    }
    if (r.draft < 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("draft must be at least 0, not %d", r.draft));
    }
    if (!std::isfinite(r.beta) || r.beta <= 1.0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("beta must be a finite number above 1, not %g", r.beta));
    }
    headkv_budget_of(r);
    check_curves(r);
    if (!r.scores) {
        return;
    }
    if (r.n_rows < 1 || r.n_rows > UINT16_MAX || r.n_cols < 1 || r.n_cols > UINT16_MAX) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("scores cannot have the shape (%zu, %zu)", r.n_rows, r.n_cols));
    }
    double most = 0.0;
    for (size_t i = 0; i < r.n_rows * r.n_cols; ++i) {
        if (!std::isfinite(r.scores[i]) || r.scores[i] < 0.0) {
            most = 0.0;
            break;
        }
        most = std::max(most, r.scores[i]);
    }
    if (!(most > 0.0)) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           "scores must be finite and not negative, and at least one must be above 0");
    }
}

// With alpha the window, b the mean budget, L layers of H KV heads and s the scores with the sum 1:
//
//   cap[l][h] = alpha + (b - alpha) * (1 - 1/beta) + s[l][h] * (b - alpha)/beta * L*H
//
// No cap exceeds the prompt: what a head cannot use is shared out among those that still have room. Of curves:
// headkv_waterfill().
std::vector<int32_t> headkv_make_caps(const headkv_retention & retention, const headkv_layer * layers, size_t n_layers,
                                      int64_t bounded_bytes, int32_t n_prompt) {
    headkv_check_retention(retention);
    const model_heads heads = heads_of(layers, n_layers);

    headkv_retention r = retention;
    std::vector<double> rows;
    const headkv_curves curves = curves_of(r, heads);
    const bool has_curves      = !curves.shares.empty();
    if (r.file && !r.scores && !has_curves) {
        rows     = rows_of(*r.file, heads);
        r.scores = rows.data();
        r.n_rows = n_layers;
        r.n_cols = r.file->n_head;
    }
    if (n_prompt < 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("n_prompt must not be negative, not %d", n_prompt));
    }
    if (bounded_bytes < 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("bounded_bytes must not be negative, not %lld", (long long) bounded_bytes));
    }
    const std::vector<double> scores = r.scores ? kv_head_scores(r, heads) : std::vector<double>();
    if (n_prompt <= r.window) {
        return std::vector<int32_t>(heads.n, n_prompt);
    }
    const headkv_budget budget = headkv_budget_of(r);
    const int64_t total        = budget.total(heads.n, heads.all_bytes, bounded_bytes, n_prompt, r.window);
    const auto caps_of         = [&](int64_t n_entries) {
        return r.scores ? by_scores(scores, n_entries, r, n_prompt) : equal_caps(heads.n, n_entries, n_prompt);
    };
    const bool alike = std::equal(heads.sizes.begin() + 1, heads.sizes.end(), heads.sizes.begin());
    const auto caps  = budget.kind == headkv_budget::BYTES && !alike
                           ? most_that_fit(budget.n_bytes() - bounded_bytes, heads, r.window, n_prompt, caps_of)
                           : caps_of(total);
    return has_curves ? headkv_waterfill(curves, caps, heads.sizes, r.beta, r.window, n_prompt) : caps;
}

std::vector<int32_t> headkv_match_rows(const std::vector<int32_t> & scored, int32_t n_head, int32_t n_head_kv,
                                       const headkv_layer * layers, size_t n_layers) {
    return match(scored, n_head, n_head_kv, heads_of(layers, n_layers));
}
