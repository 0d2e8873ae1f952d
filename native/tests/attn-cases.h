#pragma once

// Cases of the attention op: their data, their reference, and their graph on any backend.

#include "attn-reference.h"
#include "attn-rows.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-headkv.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

struct test_case {
    ggml_type type_k;
    ggml_type type_v;
    int d_k;
    int d_v;
    int n_head_kv;
    int n_gqa;
    int n_tokens;
    int n_prompt; // rows that the pool's rows are chosen from
    int n_tail;   // tail cells
    int n_seen;   // of them, those that the last token sees; the one before sees one less, ...
    float softcap;
    bool sinks;
    int seed;

    std::string str() const {
        char buf[256];
        snprintf(buf, sizeof(buf), "%s,%s,%d,%d,%d,%d,%d,%d,%d,%d,%g,%d,%d", ggml_type_name(type_k),
                 ggml_type_name(type_v), d_k, d_v, n_head_kv, n_gqa, n_tokens, n_prompt, n_tail, n_seen, softcap, sinks,
                 seed);
        return buf;
    }

    double max_nmse() const { return ggml_is_quantized(type_k) || ggml_is_quantized(type_v) ? 5e-4 : 1e-6; }
};

struct test_data {
    const test_case & c;
    std::mt19937 rng;

    const int n_head;
    const int n_all; // prompt rows and tail cells

    rows_t k; // row j*n_head_kv + h
    rows_t v;
    std::vector<float> q;               // [n_tokens][n_head][d_k]
    std::vector<float> sinks;           // [n_head]
    std::vector<std::vector<int>> keep; // per KV head

    explicit test_data(const test_case & c)
        : c(c),
          rng(c.seed),
          n_head(c.n_head_kv * c.n_gqa),
          n_all(c.n_prompt + c.n_tail),
          k(c.type_k, c.d_k, n_all * c.n_head_kv, rng),
          v(c.type_v, c.d_v, n_all * c.n_head_kv, rng) {
        std::normal_distribution<float> normal;
        q.resize((size_t) c.n_tokens * n_head * c.d_k);
        for (auto & x : q) {
            x = normal(rng);
        }
        sinks.resize(n_head);
        for (auto & x : sinks) {
            x = normal(rng);
        }
        for (int h = 0; h < c.n_head_kv; ++h) {
            std::vector<int> all(c.n_prompt);
            for (int i = 0; i < c.n_prompt; ++i) {
                all[i] = i;
            }
            std::shuffle(all.begin(), all.end(), rng);
            all.resize(h == 0 ? 1 : 1 + rng() % c.n_prompt); // from one row to all of them
            std::sort(all.begin(), all.end());
            keep.push_back(all);
        }
    }

    bool tail_seen(int t, int cell) const { return cell < c.n_seen - (c.n_tokens - 1 - t); }

    float scale() const { return 1.0f / sqrtf(c.d_k); }

    // [n_tokens][n_head][d_v]
    std::vector<double> reference() const {
        std::vector<double> res;
        for (int t = 0; t < c.n_tokens; ++t) {
            for (int hq = 0; hq < n_head; ++hq) {
                const int h = hq / c.n_gqa;

                attn_reference one(&q[((size_t) t * n_head + hq) * c.d_k], c.d_k, c.d_v, scale(), c.softcap,
                                   c.sinks ? &sinks[hq] : nullptr);
                const auto add = [&](int r) {
                    one.add(k.val_row(r * c.n_head_kv + h), v.val_row(r * c.n_head_kv + h));
                };
                for (const int r : keep[h]) {
                    add(r);
                }
                for (int cell = 0; cell < c.n_tail; ++cell) {
                    if (tail_seen(t, cell)) {
                        add(c.n_prompt + cell);
                    }
                }
                one.finish(res);
            }
        }
        return res;
    }
};

// what is put into the tensors once they have memory
class graph {
public:
    graph() {
        const size_t size             = ggml_tensor_overhead() * 64 + ggml_graph_overhead();
        const ggml_init_params params = { size, nullptr, true };
        ctx.reset(ggml_init(params));
    }

    ggml_tensor * new_tensor(ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, const void * data) {
        ggml_tensor * t = ggml_new_tensor_3d(ctx.get(), type, ne0, ne1, ne2);
        const auto * p  = (const uint8_t *) data;
        inputs.push_back({ t, std::vector<uint8_t>(p, p + ggml_nbytes(t)) });
        return t;
    }

    ggml_tensor * new_q(const test_data & td) {
        return ggml_permute(ctx.get(), new_tensor(GGML_TYPE_F32, td.c.d_k, td.n_head, td.c.n_tokens, td.q.data()), 0, 2,
                            1, 3);
    }

    // cells [first, first + n) as in a KV cache, seen as [n_embd, n, n_head_kv]
    ggml_tensor * new_cells(const rows_t & rows, int n_head_kv, int first, int n) {
        return ggml_permute(
            ctx.get(), new_tensor(rows.type, rows.n_embd, n_head_kv, n, rows.raw_row(first * n_head_kv)), 0, 2, 1, 3);
    }

    ggml_tensor * new_pool(const test_data & td, const rows_t & rows) {
        std::vector<uint8_t> raw;
        for (int h = 0; h < td.c.n_head_kv; ++h) {
            for (const int r : td.keep[h]) {
                const uint8_t * row = rows.raw_row(r * td.c.n_head_kv + h);
                raw.insert(raw.end(), row, row + rows.row_size());
            }
        }
        return new_tensor(rows.type, rows.n_embd, raw.size() / rows.row_size(), 1, raw.data());
    }

    ggml_tensor * new_sinks(const test_data & td) {
        return td.c.sinks ? new_tensor(GGML_TYPE_F32, td.n_head, 1, 1, td.sinks.data()) : nullptr;
    }

    // memory on the backend for everything, and the inputs in it
    void init(ggml_backend_t backend_, ggml_tensor * out_) {
        backend = backend_;
        out     = out_;
        gf      = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(gf, out);
        buffer.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
        GGML_ASSERT(buffer);
        for (const auto & [t, data] : inputs) {
            ggml_backend_tensor_set(t, data.data(), 0, data.size());
        }
    }

    std::vector<float> compute() {
        GGML_ASSERT(ggml_backend_graph_compute(backend, gf) == GGML_STATUS_SUCCESS);
        std::vector<float> res(ggml_nelements(out));
        ggml_backend_tensor_get(out, res.data(), 0, ggml_nbytes(out));
        return res;
    }

    ggml_context_ptr ctx;

private:
    ggml_backend_t backend = nullptr;
    ggml_tensor * out      = nullptr;
    ggml_cgraph * gf       = nullptr;
    ggml_backend_buffer_ptr buffer;
    std::vector<std::pair<ggml_tensor *, std::vector<uint8_t>>> inputs;
};

// the op of a case
struct headkv_graph : graph {
    ggml_tensor * rows;
    ggml_tensor * out;

    explicit headkv_graph(const test_data & td) {
        const auto & c = td.c;

        std::vector<int32_t> r(1, 0);
        for (const auto & keep : td.keep) {
            r.push_back(r.back() + (int32_t) keep.size());
        }
        rows = new_tensor(GGML_TYPE_I32, r.size(), 1, 1, r.data());

        std::vector<ggml_fp16_t> m;
        for (int t = 0; t < c.n_tokens; ++t) {
            for (int cell = 0; cell < c.n_tail; ++cell) {
                m.push_back(ggml_fp32_to_fp16(td.tail_seen(t, cell) ? 0.0f : -INFINITY));
            }
        }
        ggml_tensor * mask = new_tensor(GGML_TYPE_F16, c.n_tail, c.n_tokens, 1, m.data());

        out = ggml_headkv_attn(ctx.get(), new_q(td), new_pool(td, td.k), new_pool(td, td.v), rows,
                               new_cells(td.k, c.n_head_kv, c.n_prompt, c.n_tail),
                               new_cells(td.v, c.n_head_kv, c.n_prompt, c.n_tail), mask, new_sinks(td), td.scale(),
                               c.softcap);
    }
};
