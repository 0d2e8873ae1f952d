// The CUDA kernels of GGML_OP_HEADKV_ATTN, run on the CPU by cuda-emulation/, against attention in double precision.
//
//   test-headkv-cuda            all cases
//   test-headkv-cuda --quick    some of them, for slow tools
//   test-headkv-cuda CASE       one case, as a failing one is printed

#include "attn-reference.h"
#include "attn-rows.h"
#include "headkv-attn-types.h"
#include "headkv-emulation.h"

#include "ggml.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

enum pool_kind { POOL_RAGGED, POOL_FEW, POOL_LONG, POOL_EMPTY, POOL_EVEN, N_POOL_KINDS };
enum mask_kind { MASK_CAUSAL, MASK_NONE, MASK_ALL, MASK_RANDOM, N_MASK_KINDS };
enum layout_kind { LAYOUT_CACHE, LAYOUT_HEADS, LAYOUT_ODD, N_LAYOUT_KINDS };

struct test_case {
    headkv_type type;
    int n_embd;
    int n_head_kv;
    int n_gqa;
    int n_tokens;
    int n_kv;
    int pool;
    int mask;
    int layout;
    int n_sm;
    float softcap;
    int sinks;
    int seed;

    std::string str() const {
        char buf[256];
        snprintf(buf, sizeof(buf), "%s,%d,%d,%d,%d,%d,%d,%d,%d,%d,%g,%d,%d", ggml_type_name(ggml()), n_embd, n_head_kv,
                 n_gqa, n_tokens, n_kv, pool, mask, layout, n_sm, softcap, sinks, seed);
        return buf;
    }

    ggml_type ggml() const {
        const ggml_type types[] = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 };
        return types[type];
    }

    // bf16 has 8 bits for queries and weights; blocks are exact in f16 but for the product with their scale
    double max_nmse() const { return type == HEADKV_BF16 ? 1e-4 : 5e-6; }
};

// exactly so many bytes on the heap, for the address sanitizer; NaN in every float type
struct bytes {
    size_t size;
    std::unique_ptr<char, void (*)(void *)> mem;

    explicit bytes(size_t size) : size(size), mem((char *) malloc(std::max<size_t>(size, 1)), free) {
        memset(mem.get(), 0xFF, size);
    }

    char * data() { return mem.get(); }
};

constexpr size_t guard_size = 256;

// floats between guards
struct guarded {
    bytes mem;

    explicit guarded(size_t n) : mem(n * sizeof(float) + 2 * guard_size) { memset(mem.data(), 0xAB, mem.size); }

    float * data() { return (float *) (mem.data() + guard_size); }
    size_t size() const { return mem.size - 2 * guard_size; }
    void poison() { memset(data(), 0xFF, size()); }

    bool intact() {
        for (size_t i = 0; i < guard_size; ++i) {
            if (mem.data()[i] != (char) 0xAB || mem.data()[mem.size - 1 - i] != (char) 0xAB) {
                return false;
            }
        }
        return true;
    }
};

// rows of the tail in memory, with something between them
struct tail_t {
    rows_t rows; // row cell*n_head_kv + h
    int64_t nb_cell;
    int64_t nb_head;
    size_t first;
    bytes mem;

    tail_t(const test_case & c, std::mt19937 & rng)
        : rows(c.ggml(), c.n_embd, c.n_kv * c.n_head_kv, rng),
          nb_cell(rows.row_size() * (c.layout == LAYOUT_HEADS ? 1 : c.n_head_kv)),
          nb_head(rows.row_size() * (c.layout == LAYOUT_HEADS ? c.n_kv : 1)),
          first(0),
          mem(0) {
        if (c.layout == LAYOUT_HEADS) {
            nb_head += 16;
        } else if (c.layout == LAYOUT_ODD) {
            nb_cell += 6;
            first    = 2;
        }
        mem = bytes(c.n_kv == 0 ? 0 : first + (c.n_kv - 1) * nb_cell + (c.n_head_kv - 1) * nb_head + rows.row_size());
        for (int cell = 0; cell < c.n_kv; ++cell) {
            for (int h = 0; h < c.n_head_kv; ++h) {
                memcpy(mem.data() + first + cell * nb_cell + h * nb_head, rows.raw_row(cell * c.n_head_kv + h),
                       rows.row_size());
            }
        }
    }

    char * data() { return mem.data() + first; }

    int width() {
        const size_t all = (size_t) data() | (size_t) nb_cell | (size_t) nb_head;
        return all % 16 == 0 ? 16 : all % 8 == 0 ? 8 : all % 4 == 0 ? 4 : 2;
    }
};

struct test_data {
    const test_case & c;
    std::mt19937 rng;

    const int n_head;

    std::vector<int32_t> rows; // [n_head_kv + 1]
    rows_t k;
    rows_t v;
    tail_t k_tail;
    tail_t v_tail;

    int64_t nb_q_token;
    int64_t nb_q_head;
    bytes q;

    int64_t nb_mask;
    bytes mask;
    std::vector<float> sinks;

    explicit test_data(const test_case & c)
        : c(c),
          rng(c.seed),
          n_head(c.n_head_kv * c.n_gqa),
          rows(make_rows()),
          k(c.ggml(), c.n_embd, rows.back(), rng),
          v(c.ggml(), c.n_embd, rows.back(), rng),
          k_tail(c, rng),
          v_tail(c, rng),
          nb_q_token(sizeof(float) * (c.layout == LAYOUT_HEADS ? c.n_embd : n_head * c.n_embd + 3)),
          nb_q_head(sizeof(float) * (c.layout == LAYOUT_HEADS ? c.n_tokens * c.n_embd + 1 : c.n_embd)),
          q((c.n_tokens - 1) * nb_q_token + (n_head - 1) * nb_q_head + c.n_embd * sizeof(float)),
          nb_mask(sizeof(uint16_t) * (c.n_kv + c.layout)),
          mask((c.n_tokens - 1) * nb_mask + c.n_kv * sizeof(uint16_t)) {
        std::normal_distribution<float> normal;
        for (int t = 0; t < c.n_tokens; ++t) {
            for (int hq = 0; hq < n_head; ++hq) {
                for (int d = 0; d < c.n_embd; ++d) {
                    q_row(t, hq)[d] = normal(rng);
                }
            }
            for (int cell = 0; cell < c.n_kv; ++cell) {
                const bool seen = c.mask == MASK_ALL      ? true
                                  : c.mask == MASK_NONE   ? false
                                  : c.mask == MASK_CAUSAL ? cell <= c.n_kv / 2 - c.n_tokens + t
                                                          : rng() % 3 == 0;
                const float x   = !seen ? -INFINITY : c.mask == MASK_RANDOM ? -0.25f * (rng() % 8) : 0.0f;

                mask_row(t)[cell] = ggml_fp32_to_fp16(x);
            }
        }
        sinks.resize(n_head);
        for (auto & x : sinks) {
            x = normal(rng);
        }
    }

    float * q_row(int t, int hq) { return (float *) (q.data() + t * nb_q_token + hq * nb_q_head); }
    ggml_fp16_t * mask_row(int t) { return (ggml_fp16_t *) (mask.data() + t * nb_mask); }
    float scale() const { return 1.0f / sqrtf((float) c.n_embd); }

    std::vector<int32_t> make_rows() {
        std::vector<int32_t> res(1, 0);
        for (int h = 0; h < c.n_head_kv; ++h) {
            int n = 0;
            switch (c.pool) {
            case POOL_RAGGED:
                n = 1 + rng() % 150;
                break;
            case POOL_FEW:
                n = rng() % 3;
                break;
            case POOL_LONG:
                n = h == (int) (c.seed % c.n_head_kv) ? 1100 : 7;
                break;
            case POOL_EVEN:
                n = 16 * (1 + rng() % 6);
                break;
            }
            res.push_back(res.back() + n);
        }
        return res;
    }

    // [n_tokens][n_head][n_embd]
    std::vector<double> reference() {
        std::vector<double> res;
        for (int t = 0; t < c.n_tokens; ++t) {
            for (int hq = 0; hq < n_head; ++hq) {
                const int h = hq / c.n_gqa;

                attn_reference one(q_row(t, hq), c.n_embd, c.n_embd, scale(), c.softcap,
                                   c.sinks ? &sinks[hq] : nullptr);
                for (int r = rows[h]; r < rows[h + 1]; ++r) {
                    one.add(k.val_row(r), v.val_row(r));
                }
                for (int cell = 0; cell < c.n_kv; ++cell) {
                    const float bias = ggml_fp16_to_fp32(mask_row(t)[cell]);
                    if (bias != -INFINITY) {
                        const int r = cell * c.n_head_kv + h;
                        one.add(k_tail.rows.val_row(r), v_tail.rows.val_row(r), bias);
                    }
                }
                one.finish(res);
            }
        }
        return res;
    }

    // 0xAB: the kernel wrote around its result or its scratch
    bool run(bool other_order, std::vector<float> & res) {
        bytes k_mem(k.raw.size());
        bytes v_mem(v.raw.size());
        std::copy(k.raw.begin(), k.raw.end(), k_mem.data());
        std::copy(v.raw.begin(), v.raw.end(), v_mem.data());

        guarded dst((size_t) c.n_tokens * n_head * c.n_embd);

        headkv_attn_params p = {};

        p.q            = q.data();
        p.nb_q_token   = nb_q_token;
        p.nb_q_head    = nb_q_head;
        p.k_pool       = k_mem.data();
        p.v_pool       = v_mem.data();
        p.rows         = rows.data();
        p.k_tail       = k_tail.data();
        p.v_tail       = v_tail.data();
        p.nb_k_cell    = k_tail.nb_cell;
        p.nb_k_head    = k_tail.nb_head;
        p.nb_v_cell    = v_tail.nb_cell;
        p.nb_v_head    = v_tail.nb_head;
        p.k_tail_width = k_tail.width();
        p.v_tail_width = v_tail.width();
        p.mask         = mask.data();
        p.nb_mask      = nb_mask;
        p.sinks        = c.sinks ? sinks.data() : nullptr;
        p.dst          = dst.data();
        p.n_head_kv    = c.n_head_kv;
        p.n_gqa        = c.n_gqa;
        p.n_tokens     = c.n_tokens;
        p.n_kv         = c.n_kv;
        p.scale        = scale();
        p.softcap      = c.softcap;

        constexpr size_t smem_per_sm = 99 * 1024;

        headkv_attn_plan(p, c.type, c.n_embd, c.n_sm, smem_per_sm, nullptr);
        guarded scratch(headkv_scratch_size(p, c.n_embd));
        headkv_attn_plan(p, c.type, c.n_embd, c.n_sm, smem_per_sm, scratch.data());

        dst.poison();
        scratch.poison();

        const std::string name = "test-headkv-cuda " + c.str();

        headkv_emu = { name.c_str(),
                       other_order,
                       other_order,
                       { k_mem.data(), k_mem.data() + k_mem.size, v_mem.data(), v_mem.data() + v_mem.size,
                         k_tail.mem.data(), k_tail.mem.data() + k_tail.mem.size, v_tail.mem.data(),
                         v_tail.mem.data() + v_tail.mem.size } };

        const auto launch = c.type == HEADKV_F16    ? headkv_attn_launch_f16
                            : c.type == HEADKV_BF16 ? headkv_attn_launch_bf16
                            : c.type == HEADKV_Q8_0 ? headkv_attn_launch_q8_0
                                                    : headkv_attn_launch_q4_0;
        if (launch(p, c.n_embd, nullptr) != cudaSuccess) {
            return false;
        }
        res.assign(dst.data(), dst.data() + dst.size() / sizeof(float));
        return dst.intact() && scratch.intact();
    }
};

static double worst[4];

static bool run_case(const test_case & c) {
    test_data td(c);

    const auto ref = td.reference();
    std::vector<float> res;
    std::vector<float> again;

    const char * failure = nullptr;
    if (!td.run(false, res) || !td.run(true, again)) {
        failure = "wrote around its result, or was not launched";
    }

    double err = 0.0; // of the worst query
    for (size_t i = 0; i < ref.size(); i += c.n_embd) {
        const double e = nmse(res.data() + i, ref.data() + i, c.n_embd);
        err            = e <= err ? err : e; // NaN stays
    }
    if (!(err <= c.max_nmse())) {
        failure = "too far from the reference";
    }
    if (memcmp(res.data(), again.data(), res.size() * sizeof(float)) != 0) {
        failure = "the result depends on the order of threads or copies";
    }

    worst[c.type] = std::max(worst[c.type], err);
    if (failure) {
        printf("FAIL test-headkv-cuda %s: %s (NMSE %.3g)\n", c.str().c_str(), failure, err);
    }
    return !failure;
}

static std::vector<test_case> all_cases() {
    std::vector<test_case> res;

    const int n_tokens[] = { 1, 1, 2, 1, 3, 5, 1, 9, 17, 1, 33 };
    const int n_kv[]     = { 32, 1, 100, 7, 256, 17, 48 };
    const int n_sm[]     = { 3, 1, 7, 16, 2 };

    int i = 0;
    for (const headkv_type type : { HEADKV_F16, HEADKV_BF16, HEADKV_Q8_0, HEADKV_Q4_0 }) {
        for (const int n_embd : { 64, 80, 96, 128, 256, 512 }) {
            if (!headkv_n_embd_supported(type, n_embd)) {
                continue;
            }
            for (const int n_gqa : { 1, 2, 3, 4, 5, 6, 7, 8, 12, 16 }) {
                const bool capped = i % 5 == 0;
                res.push_back({ type, n_embd, 1 + i % 4, n_gqa, n_tokens[i % 11], n_kv[i % 7], i % N_POOL_KINDS,
                                i * 7 / 3 % N_MASK_KINDS, i % N_LAYOUT_KINDS, n_sm[i * 3 / 2 % 5],
                                capped ? 20.0f : 0.0f, i % 6 == 0, i });
                ++i;
            }
        }
        // decode of many heads, a verified draft, a window of a later turn, no tail, nothing to see at all
        res.push_back({ type, 64, 33, 1, 1, 32, POOL_RAGGED, MASK_CAUSAL, LAYOUT_CACHE, 132, 0.0f, 0, i++ });
        res.push_back({ type, 128, 8, 4, 1, 64, POOL_LONG, MASK_CAUSAL, LAYOUT_CACHE, 30, 0.0f, 0, i++ });
        res.push_back({ type, 128, 2, 7, 8, 64, POOL_LONG, MASK_CAUSAL, LAYOUT_CACHE, 5, 0.0f, 0, i++ });
        res.push_back({ type, 64, 2, 4, 64, 128, POOL_RAGGED, MASK_CAUSAL, LAYOUT_CACHE, 4, 0.0f, 0, i++ });
        res.push_back({ type, 96, 3, 2, 1, 0, POOL_RAGGED, MASK_ALL, LAYOUT_CACHE, 2, 0.0f, 1, i++ });
        res.push_back({ type, 96, 3, 2, 1, 0, POOL_EMPTY, MASK_ALL, LAYOUT_CACHE, 2, 0.0f, 1, i++ });
        res.push_back({ type, 64, 3, 2, 3, 40, POOL_EMPTY, MASK_NONE, LAYOUT_CACHE, 2, 0.0f, 0, i++ });
    }
    return res;
}

int main(int argc, char ** argv) {
    int n_run              = 0;
    int n_fail             = 0;
    const std::string only = argc > 1 ? argv[1] : "";
    const bool quick       = only == "--quick";

    const auto cases = all_cases();
    for (size_t i = 0; i < cases.size(); ++i) {
        const auto & c = cases[i];
        if (quick ? i % 7 != 0 : !only.empty() && c.str() != only) {
            continue;
        }
        n_run++;
        n_fail += !run_case(c);
    }

    printf("worst NMSE of a query: f16 %.3g, bf16 %.3g, q8_0 %.3g, q4_0 %.3g\n", worst[HEADKV_F16], worst[HEADKV_BF16],
           worst[HEADKV_Q8_0], worst[HEADKV_Q4_0]);
    printf("%d passed, %d failed\n", n_run - n_fail, n_fail);

    return n_run > 0 && n_fail == 0 ? 0 : 1;
}
