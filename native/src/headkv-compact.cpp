#include "headkv-compact.h"

#include "headkv-error.h"
#include "headkv-threads.h"
#include "llama-impl.h"

#include <algorithm>
#include <cmath>

std::vector<float> headkv_read_attention(const headkv_observer & obs, const std::vector<headkv_layer_shape> & shapes,
                                         uint32_t ikv, const std::vector<uint32_t> & cell) {
    std::vector<float> w = obs.read(ikv, cell);
    if (obs.counts() && std::none_of(w.begin(), w.end(), [](float x) { return x > 0.0f; })) {
        throw headkv_error(HEADKV_ERR_UNSUPPORTED,
                           format("the attention of layer %d could not be recorded", shapes[ikv].il));
    }

    const float scale = 1.0f / (obs.get_n_tokens() * shapes[ikv].n_gqa());
    for (float & x : w) {
        x = x > 0.0f ? std::sqrt(std::sqrt(scale * x))
                     : 0.0f; // a model that makes NaN is no reason to select at random
    }
    return w;
}

// What the heads that have more than the smallest cap look at: [n_candidates], empty where none has more. A head is
// trusted as far as its cap is above the smallest one; equal caps trust none, and every head decides alone.
static std::vector<float> get_votes(const headkv_observer & obs, const std::vector<headkv_layer_shape> & shapes,
                                    const std::vector<uint32_t> & offsets, const std::vector<uint32_t> & cell,
                                    const headkv_caps & caps, const headkv_parts & parts, uint32_t n_threads) {
    std::vector<int32_t> kept(caps.caps.size());
    std::transform(caps.caps.begin(), caps.caps.end(), kept.begin(),
                   [&](int32_t cap) { return std::min(cap, (int32_t) cell.size()); });
    const int32_t least = *std::min_element(kept.begin(), kept.end());
    if (std::all_of(kept.begin(), kept.end(), [&](int32_t k) { return k == least; })) {
        return {};
    }

    // by layer, and added up in their order: the number of threads changes nothing
    std::vector<std::vector<double>> by_layer(shapes.size(), std::vector<double>(parts.candidates));
    headkv_for_each(shapes.size(), n_threads, [&](uint32_t ikv) {
        const std::vector<float> w = headkv_read_attention(obs, shapes, ikv, cell);
        for (uint32_t h = 0; h < shapes[ikv].n_head_kv; ++h) {
            const double weight = kept[offsets[ikv] + h] - least;
            headkv_vote(&w[h * cell.size()], parts, weight, caps.params, by_layer[ikv].data());
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
                                                  const std::vector<uint32_t> & cell, const headkv_caps & caps,
                                                  uint32_t n_threads) {
    std::vector<headkv_kept::positions> keep;
    std::vector<uint32_t> offsets; // of each layer's first KV head
    uint32_t n_heads = 0;
    for (const auto & shape : shapes) {
        offsets.push_back(n_heads);
        n_heads += shape.n_head_kv;
        keep.emplace_back(shape.n_head_kv);
    }

    const auto parts = headkv_divide(cell.size(), caps.ends.empty() ? nullptr : caps.ends.data(), caps.params);
    const auto votes = get_votes(obs, shapes, offsets, cell, caps, parts, n_threads);

    // layers do not depend on each other
    headkv_for_each(shapes.size(), n_threads, [&](uint32_t ikv) {
        const std::vector<float> w = headkv_read_attention(obs, shapes, ikv, cell);
        for (uint32_t h = 0; h < shapes[ikv].n_head_kv; ++h) {
            headkv_select(&w[(size_t) h * cell.size()], votes.empty() ? nullptr : votes.data(), parts,
                          caps.caps[offsets[ikv] + h], caps.params, keep[ikv][h]);
        }
    });
    return keep;
}
