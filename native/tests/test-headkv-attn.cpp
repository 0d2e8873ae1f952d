// GGML_OP_HEADKV_ATTN on the CPU against attention in double precision over the stored rows, and against
// ggml_flash_attn_ext() with one mask per head on the same data.
//
//   test-headkv-attn          all cases
//   test-headkv-attn CASE     one case, as a failing one is printed

#include "ggml-cpu.h"
#include "ggml-cpp.h"
#include "ggml-headkv.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

static const ggml_type all_types[] = {
    GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0,   GGML_TYPE_Q5_0,
    GGML_TYPE_Q5_1, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL,
};

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

// rows of one type, and their values
struct rows_t {
    ggml_type type;
    int n_embd;
    std::vector<uint8_t> raw;
    std::vector<float> val;

    rows_t(ggml_type type, int n_embd, int n_rows, std::mt19937 & rng) : type(type), n_embd(n_embd) {
        std::normal_distribution<float> normal;
        val.resize((size_t) n_embd * n_rows);
        for (auto & x : val) {
            x = normal(rng);
        }
        raw.resize(row_size() * n_rows);
        ggml_quantize_chunk(type, val.data(), raw.data(), 0, n_rows, n_embd, nullptr);
        if (type != GGML_TYPE_F32) {
            ggml_get_type_traits(type)->to_float(raw.data(), val.data(), val.size());
        }
    }

    size_t row_size() const { return ggml_row_size(type, n_embd); }
    const uint8_t * raw_row(int i) const { return raw.data() + i * row_size(); }
    const float * val_row(int i) const { return val.data() + (size_t) i * n_embd; }
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

                std::vector<int> rows = keep[h];
                for (int cell = 0; cell < c.n_tail; ++cell) {
                    if (tail_seen(t, cell)) {
                        rows.push_back(c.n_prompt + cell);
                    }
                }

                std::vector<double> s;
                for (const int r : rows) {
                    double dot = 0.0;
                    for (int d = 0; d < c.d_k; ++d) {
                        dot += (double) k.val_row(r * c.n_head_kv + h)[d] * q[((size_t) t * n_head + hq) * c.d_k + d];
                    }
                    dot *= scale();
                    s.push_back(c.softcap == 0.0f ? dot : c.softcap * tanh(dot / c.softcap));
                }

                const double s_max = *std::max_element(s.begin(), s.end());
                double sum         = c.sinks ? exp(sinks[hq] - s_max) : 0.0;
                std::vector<double> acc(c.d_v);
                for (size_t i = 0; i < rows.size(); ++i) {
                    const double p  = exp(s[i] - s_max);
                    sum            += p;
                    for (int d = 0; d < c.d_v; ++d) {
                        acc[d] += p * v.val_row(rows[i] * c.n_head_kv + h)[d];
                    }
                }
                for (const double x : acc) {
                    res.push_back(x / sum);
                }
            }
        }
        return res;
    }
};

struct graph {
    ggml_context_ptr ctx;

    graph() {
        const ggml_init_params params = { 64u * 1024 * 1024, nullptr, false };
        ctx.reset(ggml_init(params));
    }

    std::vector<float> compute(ggml_tensor * out, int n_threads) {
        ggml_cgraph * gf = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(gf, out);
        ggml_graph_compute_with_ctx(ctx.get(), gf, n_threads);
        const float * data = (const float *) out->data;
        return std::vector<float>(data, data + ggml_nelements(out));
    }

    ggml_tensor * new_q(const test_data & td) {
        ggml_tensor * q = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, td.c.d_k, td.n_head, td.c.n_tokens);
        memcpy(q->data, td.q.data(), ggml_nbytes(q));
        return ggml_permute(ctx.get(), q, 0, 2, 1, 3);
    }

    // cells [first, first + n) as in a KV cache, seen as [n_embd, n, n_head_kv]
    ggml_tensor * new_cells(const rows_t & rows, int n_head_kv, int first, int n) {
        ggml_tensor * t = ggml_new_tensor_3d(ctx.get(), rows.type, rows.n_embd, n_head_kv, n);
        memcpy(t->data, rows.raw_row(first * n_head_kv), ggml_nbytes(t));
        return ggml_permute(ctx.get(), t, 0, 2, 1, 3);
    }

    ggml_tensor * new_pool(const test_data & td, const rows_t & rows) {
        int n = 0;
        for (const auto & keep : td.keep) {
            n += keep.size();
        }
        ggml_tensor * t = ggml_new_tensor_2d(ctx.get(), rows.type, rows.n_embd, n);
        uint8_t * dst   = (uint8_t *) t->data;
        for (int h = 0; h < td.c.n_head_kv; ++h) {
            for (const int r : td.keep[h]) {
                memcpy(dst, rows.raw_row(r * td.c.n_head_kv + h), rows.row_size());
                dst += rows.row_size();
            }
        }
        return t;
    }

    ggml_tensor * new_sinks(const test_data & td) {
        if (!td.c.sinks) {
            return nullptr;
        }
        ggml_tensor * t = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, td.n_head);
        memcpy(t->data, td.sinks.data(), ggml_nbytes(t));
        return t;
    }
};

static std::vector<float> run_headkv(const test_data & td, int n_threads) {
    const auto & c = td.c;
    graph g;

    ggml_tensor * rows = ggml_new_tensor_1d(g.ctx.get(), GGML_TYPE_I32, c.n_head_kv + 1);
    int32_t * r        = (int32_t *) rows->data;
    r[0]               = 0;
    for (int h = 0; h < c.n_head_kv; ++h) {
        r[h + 1] = r[h] + (int32_t) td.keep[h].size();
    }

    ggml_tensor * mask = ggml_new_tensor_2d(g.ctx.get(), GGML_TYPE_F16, c.n_tail, c.n_tokens);
    for (int t = 0; t < c.n_tokens; ++t) {
        for (int cell = 0; cell < c.n_tail; ++cell) {
            ((ggml_fp16_t *) mask->data)[t * c.n_tail + cell] =
                ggml_fp32_to_fp16(td.tail_seen(t, cell) ? 0.0f : -INFINITY);
        }
    }

    return g.compute(ggml_headkv_attn(g.ctx.get(), g.new_q(td), g.new_pool(td, td.k), g.new_pool(td, td.v), rows,
                                      g.new_cells(td.k, c.n_head_kv, c.n_prompt, c.n_tail),
                                      g.new_cells(td.v, c.n_head_kv, c.n_prompt, c.n_tail), mask, g.new_sinks(td),
                                      td.scale(), c.softcap),
                     n_threads);
}

static std::vector<float> run_stock(const test_data & td) {
    const auto & c = td.c;
    graph g;

    ggml_tensor * mask = ggml_new_tensor_3d(g.ctx.get(), GGML_TYPE_F16, td.n_all, c.n_tokens, td.n_head);
    ggml_fp16_t * m    = (ggml_fp16_t *) mask->data;
    for (int hq = 0; hq < td.n_head; ++hq) {
        const auto & keep = td.keep[hq / c.n_gqa];
        for (int t = 0; t < c.n_tokens; ++t) {
            for (int i = 0; i < td.n_all; ++i) {
                const bool seen =
                    i < c.n_prompt ? std::binary_search(keep.begin(), keep.end(), i) : td.tail_seen(t, i - c.n_prompt);
                *m++ = ggml_fp32_to_fp16(seen ? 0.0f : -INFINITY);
            }
        }
    }

    ggml_tensor * out =
        ggml_flash_attn_ext(g.ctx.get(), g.new_q(td), g.new_cells(td.k, c.n_head_kv, 0, td.n_all),
                            g.new_cells(td.v, c.n_head_kv, 0, td.n_all), mask, td.scale(), 0.0f, c.softcap);
    ggml_flash_attn_ext_add_sinks(out, g.new_sinks(td));
    return g.compute(out, 1);
}

static double nmse(const std::vector<float> & x, const std::vector<double> & ref) {
    double err = 0.0;
    double sum = 0.0;
    for (size_t i = 0; i < ref.size(); ++i) {
        err += (x[i] - ref[i]) * (x[i] - ref[i]);
        sum += ref[i] * ref[i];
    }
    return err / sum;
}

static bool run_case(const test_case & c, double & worst_float, double & worst_quant) {
    const test_data td(c);

    const auto ref   = td.reference();
    const auto res   = run_headkv(td, 1);
    const auto stock = run_stock(td);

    const bool quantized = c.max_nmse() > 1e-6;

    const double err       = nmse(res, ref);
    const double err_stock = nmse(stock, ref);

    double & worst = quantized ? worst_quant : worst_float;
    worst          = std::max(worst, err);

    const char * failure = nullptr;
    if (!(err <= c.max_nmse())) {
        failure = "too far from the reference";
    }
    // both quantize q alike; what is left to differ is the order of float additions
    if (quantized && !(err <= err_stock * 1.001)) {
        failure = "further from the reference than flash_attn_ext";
    }
    for (const int n_threads : { 2, 3, 7 }) {
        const auto other = run_headkv(td, n_threads);
        if (memcmp(other.data(), res.data(), res.size() * sizeof(float)) != 0) {
            failure = "the result depends on the number of threads";
        }
    }

    if (failure) {
        printf("FAIL test-headkv-attn %s: %s (NMSE %.3g, flash_attn_ext %.3g)\n", c.str().c_str(), failure, err,
               err_stock);
    }
    return !failure;
}

static std::vector<test_case> all_cases() {
    std::vector<test_case> res;

    const int n_tokens[] = { 1, 2, 3, 4, 5, 8, 16, 17, 33, 64 };

    int i = 0;
    for (const ggml_type type : all_types) {
        for (const int d : { 64, 80, 96, 128, 256 }) {
            if (d % ggml_blck_size(type) != 0) {
                continue; // the stock cache refuses these as well
            }
            for (int n_gqa = 1; n_gqa <= 8; ++n_gqa, ++i) {
                const int nt = n_tokens[i % 10];
                res.push_back({ type, type, d, d, 1 + i % 4, n_gqa, nt, 1 + (i * 37) % 300, nt + (i * 11) % 150,
                                nt + (i * 5) % 11, 0.0f, false, i });
            }
        }
    }

    // every K type beside every V type
    for (const ggml_type type_k : all_types) {
        for (const ggml_type type_v : all_types) {
            res.push_back({ type_k, type_v, 64, 64, 3, 3, 1 + i % 6, 100, 40, 20, 0.0f, false, i });
            ++i;
        }
    }

    // soft-cap, sinks, K and V of other sizes, a long head, a tail of which nothing or all is seen
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        for (const int nt : { 1, 6 }) {
            res.push_back({ type, type, 64, 64, 2, 4, nt, 200, 50, 10, 30.0f, false, i++ });
            res.push_back({ type, type, 64, 64, 2, 4, nt, 200, 50, 10, 0.0f, true, i++ });
            res.push_back({ type, type, 128, 64, 2, 2, nt, 200, 50, 10, 0.0f, false, i++ });
            res.push_back({ type, type, 64, 64, 2, 4, nt, 5000, 64, 10, 0.0f, false, i++ });
            res.push_back({ type, type, 64, 64, 2, 4, nt, 200, 50, 0, 0.0f, false, i++ });
            res.push_back({ type, type, 64, 64, 2, 4, nt, 200, 50, 50, 0.0f, false, i++ });
            res.push_back({ type, type, 64, 64, 2, 4, nt, 1, 1, 1, 0.0f, false, i++ });
        }
    }

    return res;
}

int main(int argc, char ** argv) {
    ggml_cpu_init();

    int n_run  = 0;
    int n_fail = 0;

    double worst_float = 0.0;
    double worst_quant = 0.0;

    for (const auto & c : all_cases()) {
        if (argc > 1 && c.str() != argv[1]) {
            continue;
        }
        n_run++;
        n_fail += !run_case(c, worst_float, worst_quant);
    }

    printf("worst NMSE: %.3g with float K/V, %.3g with quantized K/V\n", worst_float, worst_quant);
    printf("%d passed, %d failed\n", n_run - n_fail, n_fail);

    return n_run > 0 && n_fail == 0 ? 0 : 1;
}
