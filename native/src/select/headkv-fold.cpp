#include "select/headkv-fold.h"

#include "base/headkv-error.h"
#include "base/headkv-threads.h"
#include "llama-impl.h"
#include "observe/headkv-observer.h"
#include "rows/headkv-fetch.h"
#include "select/headkv-compact.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace {

// rows of a tensor in host memory: where they lie, or a copy from a device
struct host_rows {
    host_rows(const ggml_tensor * t, size_t row_size, const std::vector<uint32_t> & index) : at(index.size()) {
        std::vector<headkv_fetched> wanted;
        for (size_t i = 0; i < index.size(); ++i) {
            wanted.push_back({ index[i], i });
        }
        const bool is_here = ggml_backend_buffer_is_host(t->buffer);
        copied.resize(is_here ? 0 : index.size() * row_size);
        headkv_fetch(t, row_size, wanted, [&](size_t i, const uint8_t * row) {
            at[i] = is_here ? row : (const uint8_t *) memcpy(&copied[i * row_size], row, row_size);
        });
    }

    std::vector<const uint8_t *> at;

private:
    std::vector<uint8_t> copied;
};

// the queries of a layer that reads K
struct asking {
    asking(const headkv_attention & attn, uint32_t n_head)
        : attn(attn),
          q(ggml_nelements(attn.q)),
          sinks(attn.sinks ? n_head : 0) {
        ggml_backend_tensor_get(attn.q, q.data(), 0, ggml_nbytes(attn.q));
        if (attn.sinks) {
            ggml_backend_tensor_get(attn.sinks, sinks.data(), 0, sinks.size() * sizeof(float));
        }
    }

    const headkv_attention & attn;
    std::vector<float> q;     // [n][n_head][d]
    std::vector<float> sinks; // [n_head], or empty
};

} // namespace

// entries of one KV head: what it has kept, and all that is in cells
static std::vector<int32_t> entries_of(const std::vector<int32_t> & kept, const headkv_fold_prompt & prompt) {
    std::vector<int32_t> res = kept;
    for (uint32_t p = prompt.end; p < prompt.cell.size(); ++p) {
        res.push_back(p);
    }
    return res;
}

// So many queries are multiplied at once. Each has a lane, in which its sums have one order whatever a compiler makes
// of the lanes.
static constexpr size_t n_lanes = 32;

// rows: [n][d], q: [d][n_lanes] -> res: [n][n_lanes]
// Not inlined: GCC would keep the sums in memory and not in registers.
__attribute__((noinline)) static void multiply(const float * rows, size_t n, const float * q, size_t d, float * res) {
    for (size_t e = 0; e < n; ++e, rows += d, res += n_lanes) {
        float sum[n_lanes] = {};
        for (size_t i = 0; i < d; ++i) {
            for (size_t j = 0; j < n_lanes; ++j) {
                sum[j] += rows[i] * q[i * n_lanes + j];
            }
        }
        std::copy(sum, sum + n_lanes, res);
    }
}

// Adds to res, by entry, the fourth powers of the attention that n queries of KV head h pay to its entries, from query
// i0 on: query i is one of token i/n_gqa.
//   positions: of the entries, ascending; k: [entries][d]
static void add_powers(const asking & from, const headkv_layer_shape & shape, llama_pos first, uint32_t h, uint32_t i0,
                       uint32_t n, const std::vector<int32_t> & positions, const std::vector<float> & k,
                       std::vector<float> & res) {
    const size_t d      = shape.d_k;
    const float scale   = from.attn.scale;
    const float softcap = from.attn.softcap;
    const auto head_of  = [&](uint32_t j) { return h * shape.n_gqa() + (i0 + j) % shape.n_gqa(); };

    std::vector<float> q(d * n_lanes); // 0 in lanes without a query
    llama_pos p[n_lanes] = {};
    float most[n_lanes]  = {};
    double sum[n_lanes];
    for (uint32_t j = 0; j < n; ++j) {
        const uint32_t token = (i0 + j) / shape.n_gqa();
        const float * x      = &from.q[((size_t) token * shape.n_head + head_of(j)) * d];
        for (size_t i = 0; i < d; ++i) {
            q[i * n_lanes + j] = x[i];
        }
        p[j]    = first + token;
        most[j] = from.sinks.empty() ? -INFINITY : from.sinks[head_of(j)];
    }

    // to what the last one sees: logits, -infinity for what comes after a query's token
    const size_t n_seen = std::upper_bound(positions.begin(), positions.end(), p[n - 1]) - positions.begin();
    std::vector<float> logits(n_seen * n_lanes);
    multiply(k.data(), n_seen, q.data(), d, logits.data());
    for (size_t e = 0; e < n_seen; ++e) {
        float * x = &logits[e * n_lanes];
        for (size_t j = 0; j < n_lanes; ++j) {
            x[j] *= scale;
        }
        for (size_t j = 0; softcap > 0.0f && j < n_lanes; ++j) {
            x[j] = softcap * std::tanh(x[j] / softcap);
        }
        for (size_t j = 0; j < n_lanes; ++j) {
            x[j]    = positions[e] <= p[j] ? x[j] : -INFINITY;
            most[j] = std::max(most[j], x[j]);
        }
    }
    for (uint32_t j = 0; j < n; ++j) {
        sum[j] = from.sinks.empty() ? 0.0 : std::exp(from.sinks[head_of(j)] - most[j]);
    }
    for (size_t e = 0; e < n_seen; ++e) {
        float * x = &logits[e * n_lanes];
        for (uint32_t j = 0; j < n; ++j) {
            x[j]    = std::exp(x[j] - most[j]);
            sum[j] += x[j];
        }
    }
    for (size_t e = 0; e < n_seen; ++e) {
        const float * x = &logits[e * n_lanes];
        for (uint32_t j = 0; j < n; ++j) {
            const float w  = positions[e] <= p[j] - headkv_gap ? x[j] / sum[j] : 0.0f;
            res[e]        += w * w * w * w;
        }
    }
}

// The power mean of the attention that the recorded tokens pay to the entries of each head, as headkv_read_attention()
// has it of a whole prompt: by head, by entry. Numbers are made of one head's rows at a time.
static std::vector<std::vector<float>> attention_of(const headkv_fold_layer & layer,
                                                    const headkv_fold_prompt & prompt) {
    const auto & shape     = layer.shape;
    const auto to_float    = ggml_get_type_traits(shape.type_k)->to_float;
    const size_t row_size  = ggml_row_size(shape.type_k, shape.d_k);
    const uint32_t n_asked = prompt.n * shape.n_gqa();
    const float scale      = 1.0f / (n_asked * layer.readers.size());

    std::vector<asking> readers;
    for (const auto * attn : layer.readers) {
        readers.emplace_back(*attn, shape.n_head);
    }
    const host_rows tail(layer.k, row_size * shape.n_head_kv, { prompt.cell.begin() + prompt.end, prompt.cell.end() });

    std::vector<std::vector<float>> res;
    uint32_t n_before = 0; // kept rows of the heads before
    for (const auto & keep : layer.kept.get_keep()) {
        const uint32_t h = res.size();

        std::vector<uint32_t> index(keep.size());
        std::iota(index.begin(), index.end(), n_before);
        n_before += keep.size();
        const host_rows kept(layer.kept.k, row_size, index);

        const auto positions = entries_of(keep, prompt);
        std::vector<float> k(positions.size() * shape.d_k);
        for (size_t e = 0; e < positions.size(); ++e) {
            const bool is_kept  = e < keep.size();
            const uint8_t * row = is_kept ? kept.at[e] : tail.at[e - keep.size()] + h * row_size;
            float * to          = &k[e * shape.d_k];
            if (to_float) {
                to_float(row, to, shape.d_k);
            } else { // F32
                memcpy(to, row, row_size);
            }
        }

        std::vector<float> w(positions.size());
        for (const auto & from : readers) {
            for (uint32_t i = 0; i < n_asked; i += n_lanes) {
                add_powers(from, shape, prompt.first, h, i, std::min<uint32_t>(n_lanes, n_asked - i), positions, k, w);
            }
        }
        for (float & x : w) {
            x = x > 0.0f ? std::sqrt(std::sqrt(scale * x)) : 0.0f; // also of a model that makes NaN
        }
        res.push_back(std::move(w));
    }
    return res;
}

namespace {

// a head's entries as a prompt of their own: one after the other, whatever lies between them
struct condensed {
    std::vector<int32_t> entries;
    std::vector<uint8_t> ends;
    headkv_parts parts;
};

} // namespace

static condensed condense(std::vector<int32_t> entries, const headkv_plan & plan, const headkv_params & params) {
    condensed res;
    res.entries = std::move(entries);
    if (plan.ends) {
        for (size_t e = 0; e < res.entries.size(); ++e) {
            const size_t next = e + 1 < res.entries.size() ? res.entries[e + 1] : plan.n_ends;
            res.ends.push_back(std::any_of(plan.ends + res.entries[e], plan.ends + next, [](uint8_t x) { return x; }));
        }
    }
    res.parts = headkv_divide(res.entries.size(), plan.ends ? res.ends.data() : nullptr, params);
    return res;
}

// Those of the plan; of a pooled one each head's share of what lies beside the window is that of the entries it has
// kept there.
static std::vector<int32_t> caps_of(const std::vector<headkv_fold_layer> & layers, const headkv_plan & plan) {
    std::vector<int32_t> res(plan.caps, plan.caps + plan.n_caps);
    if (!plan.pooled) {
        return res;
    }
    double planned = 0.0, kept = 0.0; // bytes
    size_t i = 0;
    for (const auto & layer : layers) {
        for (const auto & entries : layer.kept.get_keep()) {
            planned += (double) (res[i++] - plan.window) * layer.shape.row_bytes();
            kept    += (double) entries.size() * layer.shape.row_bytes();
        }
    }
    i = 0;
    for (const auto & layer : layers) {
        for (const auto & entries : layer.kept.get_keep()) {
            if (kept > 0.0) {
                res[i] = std::min<double>(plan.window + std::floor(planned * entries.size() / kept), INT32_MAX);
            }
            i++;
        }
    }
    return res;
}

std::vector<headkv_kept::positions> headkv_choose_again(const std::vector<headkv_fold_layer> & layers,
                                                        const headkv_fold_prompt & prompt, const headkv_plan & plan,
                                                        uint32_t n_threads) {
    const headkv_params params = headkv_params_of(plan);
    const size_t n_prompt      = prompt.cell.size();

    std::vector<size_t> offsets; // of each layer's first KV head
    size_t n_heads = 0;
    for (const auto & layer : layers) {
        offsets.push_back(n_heads);
        n_heads += layer.shape.n_head_kv;
    }
    const auto caps     = caps_of(layers, plan);
    const int32_t least = *std::min_element(caps.begin(), caps.end());
    const bool votes    = !plan.pooled && std::any_of(caps.begin(), caps.end(), [&](int32_t c) { return c > least; });

    std::vector<std::vector<std::vector<float>>> w(layers.size());
    std::vector<std::vector<double>> by_layer(layers.size(), std::vector<double>(votes ? n_prompt : 0));
    headkv_for_each(layers.size(), n_threads, [&](uint32_t i) {
        w[i] = attention_of(layers[i], prompt);
        for (size_t h = 0; votes && h < w[i].size(); ++h) {
            const auto head = condense(entries_of(layers[i].kept.get_keep()[h], prompt), plan, params);

            std::vector<double> own(head.parts.candidates);
            headkv_vote(w[i][h].data(), head.parts, caps[offsets[i] + h] - least, params, own.data());
            for (size_t c = 0; c < own.size(); ++c) {
                by_layer[i][head.entries[head.parts.first + c]] += own[c];
            }
        }
    });

    std::vector<float> all(votes ? n_prompt : 0);
    for (size_t p = 0; p < all.size(); ++p) {
        double sum = 0.0;
        for (const auto & of_layer : by_layer) {
            sum += of_layer[p];
        }
        all[p] = sum;
    }

    std::vector<headkv_kept::positions> keep(layers.size());
    headkv_for_each(layers.size(), n_threads, [&](uint32_t i) {
        keep[i].resize(layers[i].shape.n_head_kv);
        for (size_t h = 0; h < keep[i].size(); ++h) {
            const auto head = condense(entries_of(layers[i].kept.get_keep()[h], prompt), plan, params);

            std::vector<float> own(votes ? head.parts.candidates : 0);
            for (size_t c = 0; c < own.size(); ++c) {
                own[c] = all[head.entries[head.parts.first + c]];
            }
            headkv_select(w[i][h].data(), votes ? own.data() : nullptr, head.parts, caps[offsets[i] + h], params,
                          keep[i][h]);
            for (int32_t & e : keep[i][h]) {
                e = head.entries[e];
            }
        }
    });
    return keep;
}

void headkv_fill_again(headkv_kept & to, const headkv_fold_layer & from, const headkv_fold_prompt & prompt) {
    const auto & before = from.kept.get_keep();

    std::vector<headkv_fetched> from_kept, from_cells;
    size_t n     = 0; // rows so far
    size_t block = 0; // of the KV head among the rows that were kept
    for (size_t h = 0; h < before.size(); block += before[h].size(), ++h) {
        for (const int32_t p : to.get_keep()[h]) {
            if (p >= (int32_t) prompt.end) {
                from_cells.push_back({ prompt.cell[p] * before.size() + h, n++ });
            } else {
                const size_t i = std::lower_bound(before[h].begin(), before[h].end(), p) - before[h].begin();
                from_kept.push_back({ block + i, n++ });
            }
        }
    }

    const auto copy = [&](ggml_tensor * dst, const ggml_tensor * kept, const ggml_tensor * cells, size_t row_size) {
        std::vector<uint8_t> rows(to.get_n_rows() * row_size);
        const auto take = [&](size_t i, const uint8_t * row) { memcpy(&rows[i * row_size], row, row_size); };
        headkv_fetch(kept, row_size, from_kept, take);
        headkv_fetch(cells, row_size, from_cells, take);
        if (!rows.empty()) {
            ggml_backend_tensor_set(dst, rows.data(), 0, rows.size());
        }
    };
    copy(to.k, from.kept.k, from.k, ggml_row_size(from.shape.type_k, from.shape.d_k));
    copy(to.v, from.kept.v, from.v, ggml_row_size(from.shape.type_v, from.shape.d_v));
}
