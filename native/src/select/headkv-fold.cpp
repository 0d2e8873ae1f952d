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

// rows of a tensor as numbers: [n][ne0]; index: which rows
static std::vector<float> read_rows(const ggml_tensor * t, const std::vector<uint32_t> & index) {
    const auto to_float   = ggml_get_type_traits(t->type)->to_float;
    const size_t row_size = ggml_row_size(t->type, t->ne[0]);

    std::vector<headkv_fetched> rows;
    for (size_t i = 0; i < index.size(); ++i) {
        rows.push_back({ index[i], i });
    }
    std::vector<float> res(index.size() * t->ne[0]);
    headkv_fetch(t, row_size, rows, [&](size_t i, const uint8_t * row) {
        float * to = res.data() + i * t->ne[0];
        if (t->type == GGML_TYPE_F32) {
            memcpy(to, row, row_size);
        } else {
            to_float(row, to, t->ne[0]);
        }
    });
    return res;
}

// entries of one KV head: what it has kept, and all that is in cells
static std::vector<int32_t> entries_of(const std::vector<int32_t> & kept, const headkv_fold_prompt & prompt) {
    std::vector<int32_t> res = kept;
    for (uint32_t p = prompt.end; p < prompt.cell.size(); ++p) {
        res.push_back(p);
    }
    return res;
}

static float dot(const float * a, const float * b, size_t n) {
    float sum = 0.0f;
    for (size_t i = 0; i < n; ++i) {
        sum += a[i] * b[i];
    }
    return sum;
}

// The power mean of the attention that the recorded tokens pay to the entries of each head, as headkv_read_attention()
// has it of a whole prompt: by head, by entry.
static std::vector<std::vector<float>> attention_of(const headkv_fold_layer & layer,
                                                    const headkv_fold_prompt & prompt) {
    const auto & keep    = layer.kept.get_keep();
    const uint32_t d     = layer.shape.d_k;
    const uint32_t n_gqa = layer.shape.n_gqa();
    const uint32_t n_kv  = layer.shape.n_head_kv;

    std::vector<uint32_t> all(layer.kept.get_n_rows());
    std::iota(all.begin(), all.end(), 0);
    const std::vector<float> kept = read_rows(layer.kept.k, all);
    const std::vector<float> tail =
        read_rows(layer.k, { prompt.cell.begin() + prompt.end, prompt.cell.end() }); // [n_tail][n_kv*d]

    std::vector<std::vector<float>> res(n_kv);
    for (uint32_t h = 0; h < n_kv; ++h) {
        res[h].resize(keep[h].size() + prompt.cell.size() - prompt.end);
    }

    std::vector<float> logits;
    for (const auto * reader : layer.readers) {
        std::vector<float> q(ggml_nelements(reader->q)); // [n][n_head][d]
        ggml_backend_tensor_get(reader->q, q.data(), 0, ggml_nbytes(reader->q));
        std::vector<float> sinks(reader->sinks ? layer.shape.n_head : 0);
        if (reader->sinks) {
            ggml_backend_tensor_get(reader->sinks, sinks.data(), 0, sinks.size() * sizeof(float));
        }

        const float * block = kept.data(); // of the KV head
        for (uint32_t h = 0; h < n_kv; block += keep[h].size() * d, ++h) {
            const size_t n_kept = keep[h].size();
            for (uint32_t i = 0; i < prompt.n * n_gqa; ++i) {
                const uint32_t token  = i / n_gqa;
                const uint32_t head   = h * n_gqa + i % n_gqa;
                const llama_pos p     = prompt.first + token;
                const float * of      = &q[((size_t) token * layer.shape.n_head + head) * d];
                const size_t n_before = n_kept + p + 1 - prompt.end;

                logits.resize(n_before);
                for (size_t e = 0; e < n_before; ++e) {
                    const float * row = e < n_kept ? block + e * d : &tail[((e - n_kept) * n_kv + h) * d];
                    const float x     = reader->scale * dot(of, row, d);
                    logits[e]         = reader->softcap > 0.0f ? reader->softcap * std::tanh(x / reader->softcap) : x;
                }
                float most = *std::max_element(logits.begin(), logits.end());
                if (!sinks.empty()) {
                    most = std::max(most, sinks[head]);
                }
                double sum = sinks.empty() ? 0.0 : std::exp(sinks[head] - most);
                for (float & x : logits) {
                    x    = std::exp(x - most);
                    sum += x;
                }
                for (size_t e = 0; e < n_before; ++e) {
                    const llama_pos at  = e < n_kept ? keep[h][e] : (llama_pos) (prompt.end + e - n_kept);
                    const float w       = at <= p - headkv_gap ? logits[e] / sum : 0.0f;
                    res[h][e]          += w * w * w * w;
                }
            }
        }
    }

    const float scale = 1.0f / (prompt.n * n_gqa * layer.readers.size());
    for (auto & head : res) {
        for (float & x : head) {
            x = x > 0.0f ? std::sqrt(std::sqrt(scale * x)) : 0.0f; // also of a model that makes NaN
        }
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

std::vector<headkv_kept::positions> headkv_choose_again(const std::vector<headkv_fold_layer> & layers,
                                                        const headkv_fold_prompt & prompt, const headkv_plan & plan,
                                                        uint32_t n_threads) {
    const headkv_params params = headkv_params_of(plan);
    const size_t n_prompt      = prompt.cell.size();
    const int32_t least        = *std::min_element(plan.caps, plan.caps + plan.n_caps);
    const bool votes = std::any_of(plan.caps, plan.caps + plan.n_caps, [&](int32_t cap) { return cap > least; });

    std::vector<size_t> offsets; // of each layer's first KV head
    size_t n_heads = 0;
    for (const auto & layer : layers) {
        offsets.push_back(n_heads);
        n_heads += layer.shape.n_head_kv;
    }

    std::vector<std::vector<std::vector<float>>> w(layers.size());
    std::vector<std::vector<double>> by_layer(layers.size(), std::vector<double>(votes ? n_prompt : 0));
    headkv_for_each(layers.size(), n_threads, [&](uint32_t i) {
        w[i] = attention_of(layers[i], prompt);
        for (size_t h = 0; votes && h < w[i].size(); ++h) {
            const auto head = condense(entries_of(layers[i].kept.get_keep()[h], prompt), plan, params);

            std::vector<double> own(head.parts.candidates);
            headkv_vote(w[i][h].data(), head.parts, plan.caps[offsets[i] + h] - least, params, own.data());
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
            headkv_select(w[i][h].data(), votes ? own.data() : nullptr, head.parts, plan.caps[offsets[i] + h], params,
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
