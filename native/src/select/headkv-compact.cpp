#include "select/headkv-compact.h"

#include "base/headkv-error.h"
#include "base/headkv-guard.h"
#include "base/headkv-threads.h"
#include "llama-impl.h"
#include "select/headkv-pool.h"

#include <algorithm>
#include <cmath>
#include <functional>

std::vector<float> headkv_read_attention(const headkv_observer & obs, const std::vector<headkv_layer_shape> & shapes,
                                         uint32_t ikv, const std::vector<uint32_t> & cell) {
    std::vector<float> w = obs.read(ikv, cell);
    if (obs.counts() && std::none_of(w.begin(), w.end(), [](float x) { return x > 0.0f; })) {
        throw headkv_error(HEADKV_ERR_UNSUPPORTED,
                           format("the attention of layer %d could not be recorded", shapes[ikv].il));
    }

    const float scale = 1.0f / (obs.get_n_tokens() * shapes[ikv].n_gqa() * shapes[ikv].n_readers);
    for (float & x : w) {
        x = x > 0.0f ? std::sqrt(std::sqrt(scale * x))
                     : 0.0f; // a model that makes NaN is no reason to select at random
    }
    return w;
}

headkv_params headkv_params_of(const headkv_plan & plan) {
    return { (uint32_t) plan.window, (uint32_t) plan.kernel, (uint32_t) plan.first_tokens };
}

void headkv_check(const headkv_plan & plan, const std::vector<headkv_layer_shape> & shapes, uint32_t n_prompt) {
    if (plan.window < 1) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("window must be at least 1, not %d", plan.window));
    }
    if (plan.kernel < 1 || plan.kernel % 2 == 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("kernel must be odd and positive, not %d", plan.kernel));
    }
    if (plan.first_tokens < 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("first_tokens must not be negative, not %d", plan.first_tokens));
    }
    headkv_require_pointer(plan.caps);
    if (plan.ends || plan.n_ends > 0) {
        headkv_require_pointer(plan.ends);
        headkv_require_length(plan.n_ends, n_prompt);
    }

    size_t n_heads = 0;
    for (const auto & shape : shapes) {
        n_heads += shape.n_head_kv;
    }
    headkv_require_length(plan.n_caps, n_heads);

    size_t i = 0;
    for (const auto & shape : shapes) {
        for (uint32_t h = 0; h < shape.n_head_kv; ++h, ++i) {
            if (plan.caps[i] < plan.window) {
                throw headkv_error(HEADKV_ERR_ARGUMENT,
                                   format("the cap of layer %d, KV head %u is %d, less than the window of %d", shape.il,
                                          h, plan.caps[i], plan.window));
            }
        }
    }
    if ((int64_t) n_prompt < plan.window) {
        throw headkv_error(HEADKV_ERR_STATE,
                           format("the prompt of %u tokens is shorter than the window of %d", n_prompt, plan.window));
    }
}

void headkv_check_weights(const std::vector<float> & weights) {
    if (std::any_of(weights.begin(), weights.end(), [](float x) { return !(x >= 0.0f && x <= 1.0f); })) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the weight of an observed token must be from 0 to 1");
    }
    if (std::none_of(weights.begin(), weights.end(), [](float x) { return x > 0.0f; })) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "at least one observed token must have a weight above 0");
    }
}

void headkv_check_again(const std::vector<llama_pos> & at, size_t n) {
    const bool ascends = std::adjacent_find(at.begin(), at.end(), std::greater_equal<llama_pos>()) == at.end();
    if (at.size() > n || !ascends || (!at.empty() && at[0] < 0)) {
        throw headkv_error(
            HEADKV_ERR_ARGUMENT,
            format("%zu of %zu observed tokens are read once more: their positions must ascend", at.size(), n));
    }
}

// What the heads that have more than the smallest cap look at: [n_candidates], empty where none has more. A head is
// trusted as far as its cap is above the smallest one; equal caps trust none, and every head decides alone.
static std::vector<float> get_votes(const headkv_observer & obs, const std::vector<headkv_layer_shape> & shapes,
                                    const std::vector<uint32_t> & offsets, const std::vector<uint32_t> & cell,
                                    const headkv_plan & plan, const headkv_parts & parts, uint32_t n_threads) {
    std::vector<int32_t> kept(plan.n_caps);
    std::transform(plan.caps, plan.caps + plan.n_caps, kept.begin(),
                   [&](int32_t cap) { return std::min(cap, (int32_t) cell.size()); });
    const int32_t least = *std::min_element(kept.begin(), kept.end());
    if (std::all_of(kept.begin(), kept.end(), [&](int32_t k) { return k == least; })) {
        return {};
    }

    const headkv_params params = headkv_params_of(plan);

    // by layer, and added up in their order: the number of threads changes nothing
    std::vector<std::vector<double>> by_layer(shapes.size(), std::vector<double>(parts.candidates));
    headkv_for_each(shapes.size(), n_threads, [&](uint32_t ikv) {
        const std::vector<float> w = headkv_read_attention(obs, shapes, ikv, cell);
        for (uint32_t h = 0; h < shapes[ikv].n_head_kv; ++h) {
            const double weight = kept[offsets[ikv] + h] - least;
            headkv_vote(&w[h * cell.size()], parts, weight, params, by_layer[ikv].data());
        }
    });

    std::vector<float> res(parts.candidates);
    for (uint32_t i = 0; i < parts.candidates; ++i) {
        double sum = 0.0;
        for (const auto & votes : by_layer) {
            sum += votes[i];
        }
        res[i] = sum;
    }
    return res;
}

std::vector<headkv_kept::positions> headkv_choose(const headkv_observer & obs,
                                                  const std::vector<headkv_layer_shape> & shapes,
                                                  const std::vector<uint32_t> & cell, const headkv_plan & plan,
                                                  uint32_t n_threads) {
    std::vector<headkv_kept::positions> keep;
    std::vector<uint32_t> offsets; // of each layer's first KV head
    uint32_t n_heads = 0;
    for (const auto & shape : shapes) {
        offsets.push_back(n_heads);
        n_heads += shape.n_head_kv;
        keep.emplace_back(shape.n_head_kv);
    }

    const headkv_params params = headkv_params_of(plan);

    const auto parts = headkv_divide(cell.size(), plan.ends, params);

    std::vector<int32_t> caps(plan.caps, plan.caps + plan.n_caps);
    std::vector<float> votes;
    if (plan.pooled) {
        caps = headkv_pool_caps(obs, shapes, offsets, cell, plan, parts, n_threads);
    } else {
        votes = get_votes(obs, shapes, offsets, cell, plan, parts, n_threads);
    }

    // layers do not depend on each other
    headkv_for_each(shapes.size(), n_threads, [&](uint32_t ikv) {
        const std::vector<float> w = headkv_read_attention(obs, shapes, ikv, cell);
        for (uint32_t h = 0; h < shapes[ikv].n_head_kv; ++h) {
            headkv_select(&w[(size_t) h * cell.size()], votes.empty() ? nullptr : votes.data(), parts,
                          caps[offsets[ikv] + h], params, keep[ikv][h]);
        }
    });
    return keep;
}
