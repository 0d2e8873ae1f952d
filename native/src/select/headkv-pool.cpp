#include "select/headkv-pool.h"

#include "base/headkv-threads.h"
#include "select/headkv-compact.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace {

// How many bytes candidates take by their attention: floats that are not negative order as their bits do, so that two
// passes over 16 bits each find the least one that is kept, whatever the number of candidates.
using histogram = std::vector<uint64_t>; // [65536]

constexpr size_t n_bins = 1u << 16;

uint32_t bits_of(float x) {
    uint32_t res;
    memcpy(&res, &x, sizeof(res));
    return res;
}

// The highest bin that is kept in part: what lies above it takes no more than *left bytes, which are taken off.
uint32_t last_bin(const std::vector<histogram> & by_layer, int64_t * left) {
    uint32_t bin = n_bins;
    while (bin-- > 0) {
        uint64_t sum = 0;
        for (const auto & of_layer : by_layer) {
            sum += of_layer[bin];
        }
        if ((int64_t) sum > *left || bin == 0) {
            break;
        }
        *left -= sum;
    }
    return bin;
}

} // namespace

std::vector<int32_t> headkv_pool_caps(const headkv_observer & obs, const std::vector<headkv_layer_shape> & shapes,
                                      const std::vector<uint32_t> & offsets, const std::vector<uint32_t> & cell,
                                      const headkv_plan & plan, const headkv_parts & parts, uint32_t n_threads) {
    const int32_t n_prompt = cell.size();
    const int32_t n_always = std::min<int32_t>(plan.window + parts.first, n_prompt);

    // of layer ikv, each candidate of each KV head
    const auto for_candidates = [&](uint32_t ikv, const std::function<void(uint32_t, uint32_t)> & use) {
        const std::vector<float> w = headkv_read_attention(obs, shapes, ikv, cell);
        for (uint32_t h = 0; h < shapes[ikv].n_head_kv; ++h) {
            const float * from = &w[(size_t) h * n_prompt + parts.first];
            std::for_each(from, from + parts.candidates, [&](float x) { use(h, bits_of(x)); });
        }
    };
    const auto histograms = [&](const std::function<int64_t(uint32_t)> & bin_of) {
        std::vector<histogram> res(shapes.size(), histogram(n_bins));
        headkv_for_each(shapes.size(), n_threads, [&](uint32_t ikv) {
            for_candidates(ikv, [&](uint32_t, uint32_t bits) {
                if (const int64_t bin = bin_of(bits); bin >= 0) {
                    res[ikv][bin] += shapes[ikv].row_bytes();
                }
            });
        });
        return res;
    };

    std::vector<int32_t> caps(plan.n_caps);
    int64_t left = 0; // bytes
    for (uint32_t ikv = 0; ikv < shapes.size(); ++ikv) {
        for (uint32_t i = offsets[ikv]; i < offsets[ikv] + shapes[ikv].n_head_kv; ++i) {
            const int32_t cap  = std::min(plan.caps[i], n_prompt);
            caps[i]            = std::min(cap, n_always);
            left              += (int64_t) (cap - caps[i]) * shapes[ikv].row_bytes();
        }
    }

    const uint32_t high = last_bin(histograms([](uint32_t bits) { return bits >> 16; }), &left);
    const uint32_t low =
        last_bin(histograms([&](uint32_t bits) { return bits >> 16 == high ? (int64_t) (bits & 0xffff) : -1; }), &left);
    const uint32_t last = high << 16 | low;

    std::vector<int32_t> n_as_last(plan.n_caps);
    headkv_for_each(shapes.size(), n_threads, [&](uint32_t ikv) {
        for_candidates(ikv, [&](uint32_t h, uint32_t bits) {
            caps[offsets[ikv] + h]      += bits > last;
            n_as_last[offsets[ikv] + h] += bits == last;
        });
    });
    for (uint32_t ikv = 0; ikv < shapes.size(); ++ikv) { // what is left, to the first heads that have any of these
        const int64_t row = shapes[ikv].row_bytes();
        for (uint32_t i = offsets[ikv]; i < offsets[ikv] + shapes[ikv].n_head_kv; ++i) {
            const int32_t n  = std::min<int64_t>(n_as_last[i], left / row);
            caps[i]         += n;
            left            -= n * row;
        }
    }
    return caps;
}
