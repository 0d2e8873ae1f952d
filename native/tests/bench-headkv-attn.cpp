// How fast GGML_OP_HEADKV_ATTN reads K and V: a decode step of a graph with many layers, each with a pool of its own,
// beside the speed at which the device copies memory.
//
//   bench-headkv-attn             the first GPU, or the CPU where there is none
//   bench-headkv-attn --cpu       the CPU
//   bench-headkv-attn --smoke     tiny pools, one step: only shows that it runs
//   --gpu                         fails where there is no CUDA device
//   --caps A,B,.../GQA            also with rows per KV head in these proportions; may be given several times

#include "options.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-headkv.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

struct head_shares {
    std::vector<double> rows; // of each KV head, in proportion
    int n_gqa;
};

struct options {
    bool cpu   = false;
    bool smoke = false;
    std::vector<head_shares> caps;
};

struct bench_case {
    ggml_type type;
    head_shares heads;
    int n_rows; // of all KV heads
    int n_layer;
};

// what the kernel has to reach on a GPU
constexpr double goal_of_copy = 0.80; // from this on:
constexpr double large_mib    = 32;
constexpr double goal_us      = 15; // below

constexpr int n_embd = 128;
constexpr int n_kv   = 128; // tail cells, half of them seen

static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// seconds of one computation
static double measure(ggml_backend_t backend, ggml_cgraph * gf, bool smoke) {
    const auto run = [&](int n) {
        const double t0 = seconds();
        for (int i = 0; i < n; ++i) {
            GGML_ASSERT(ggml_backend_graph_compute_async(backend, gf) == GGML_STATUS_SUCCESS);
        }
        ggml_backend_synchronize(backend);
        return (seconds() - t0) / n;
    };
    if (smoke) {
        return run(1);
    }
    run(5); // caches, clocks, and the graph that the backend captures
    const double once = run(3);
    const int n       = std::max(5, std::min(500, (int) (0.2 / once)));

    double best = INFINITY;
    for (int i = 0; i < 5; ++i) {
        best = std::min(best, run(n));
    }
    return best;
}

// bytes per second, reading and writing both count
static double copy_bandwidth(ggml_backend_t backend, const options & opt) {
    const size_t size = (opt.smoke ? 1 : opt.cpu ? 64 : 512) * 1024 * 1024;

    const ggml_init_params params = { ggml_tensor_overhead() * 4 + ggml_graph_overhead(), nullptr, true };
    const ggml_context_ptr ctx(ggml_init(params));

    ggml_tensor * src = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, size / sizeof(float));
    ggml_tensor * dst = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, size / sizeof(float));
    ggml_cgraph * gf  = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(gf, ggml_cpy(ctx.get(), src, dst));

    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    GGML_ASSERT(buffer);
    ggml_backend_buffer_clear(buffer.get(), 0);

    return 2.0 * size / measure(backend, gf, opt.smoke);
}

// one long head, so many times the mean; the others share what is left
static head_shares one_long(int n_head_kv, int n_gqa, double skew) {
    head_shares res = { std::vector<double>(n_head_kv, (n_head_kv - skew) / (n_head_kv - 1)), n_gqa };

    res.rows[n_head_kv / 2] = skew;
    return res;
}

// "A,B,.../GQA"; false if it is something else
static bool parse_caps(const char * text, head_shares & res) {
    char * end;
    do {
        res.rows.push_back(strtod(text, &end));
        if (end == text || !(res.rows.back() > 0)) {
            return false;
        }
        text = end + 1;
    } while (*end == ',');
    res.n_gqa = *end == '/' ? atoi(text) : 0;
    return res.n_gqa > 0;
}

static std::vector<int32_t> head_table(const bench_case & c) {
    const double sum = std::accumulate(c.heads.rows.begin(), c.heads.rows.end(), 0.0);

    std::vector<int32_t> res(1, 0);
    for (const double rows : c.heads.rows) {
        res.push_back(res.back() + (int) (rows / sum * c.n_rows));
    }
    return res;
}

static void fill_random(ggml_tensor * t, std::mt19937 & rng) {
    const int64_t n_rows = ggml_nelements(t) / t->ne[0];
    const int64_t n_some = std::min<int64_t>(n_rows, 4096); // the rest repeats them

    std::normal_distribution<float> normal;
    std::vector<float> x(n_some * t->ne[0]);
    for (auto & v : x) {
        v = normal(rng);
    }
    std::vector<uint8_t> raw(ggml_row_size(t->type, t->ne[0]) * n_some);
    ggml_quantize_chunk(t->type, x.data(), raw.data(), 0, n_some, t->ne[0], nullptr);

    const size_t size = ggml_nbytes(t);
    for (size_t i = 0; i < size; i += raw.size()) {
        ggml_backend_tensor_set(t, raw.data(), i, std::min(raw.size(), size - i));
    }
}

struct summary {
    bool ok              = true;
    double least_of_copy = INFINITY; // of the large ones
    double slowest_us    = 0;        // of the small ones
};

static void run_case(ggml_backend_t backend, const bench_case & c, double bandwidth, const options & opt,
                     summary & all) {
    const int n_head_kv = c.heads.rows.size();
    const int n_gqa     = c.heads.n_gqa;
    const int n_head    = n_head_kv * n_gqa;
    std::mt19937 rng(1);

    const auto table = head_table(c);
    const int n_rows = table.back();

    const ggml_init_params params = { ggml_tensor_overhead() * (16 + 12 * c.n_layer) + ggml_graph_overhead(), nullptr,
                                      true };
    const ggml_context_ptr ctx(ggml_init(params));

    ggml_tensor * q    = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, n_embd, n_head, 1);
    ggml_tensor * rows = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, n_head_kv + 1);
    ggml_tensor * mask = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, n_kv, 1);

    std::vector<ggml_tensor *> kv;
    const auto new_kv = [&](int64_t ne1, int64_t ne2) {
        kv.push_back(ggml_new_tensor_3d(ctx.get(), c.type, n_embd, ne1, ne2));
        return kv.back();
    };

    // a layer's query is the result of the one before
    ggml_tensor * cur = q;
    for (int il = 0; il < c.n_layer; ++il) {
        ggml_tensor * k_pool = new_kv(n_rows, 1);
        ggml_tensor * v_pool = new_kv(n_rows, 1);
        ggml_tensor * k_tail = ggml_permute(ctx.get(), new_kv(n_head_kv, n_kv), 0, 2, 1, 3);
        ggml_tensor * v_tail = ggml_permute(ctx.get(), new_kv(n_head_kv, n_kv), 0, 2, 1, 3);

        cur = ggml_headkv_attn(ctx.get(), ggml_permute(ctx.get(), cur, 0, 2, 1, 3), k_pool, v_pool, rows, k_tail,
                               v_tail, mask, nullptr, 1.0f / sqrtf(n_embd), 0.0f);
    }
    if (!ggml_backend_supports_op(backend, cur)) {
        printf("%s is not supported\n", ggml_type_name(c.type));
        all.ok = false;
        return;
    }

    ggml_cgraph * gf = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(gf, cur);

    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    if (!buffer) {
        printf("not enough memory\n");
        all.ok = false;
        return;
    }

    fill_random(q, rng);
    ggml_backend_tensor_set(rows, table.data(), 0, ggml_nbytes(rows));
    for (ggml_tensor * t : kv) {
        fill_random(t, rng);
    }
    std::vector<ggml_fp16_t> m(n_kv);
    for (int i = 0; i < n_kv; ++i) {
        m[i] = ggml_fp32_to_fp16(i < n_kv / 2 ? 0.0f : -INFINITY);
    }
    ggml_backend_tensor_set(mask, m.data(), 0, ggml_nbytes(mask));

    const double t     = measure(backend, gf, opt.smoke) / c.n_layer;
    const double bytes = 2.0 * ggml_row_size(c.type, n_embd) * (n_rows + n_head_kv * n_kv / 2);
    const double mib   = bytes / 1048576;
    const double share = bytes / t / bandwidth;

    if (mib >= large_mib) {
        all.least_of_copy = std::min(all.least_of_copy, share);
    } else {
        all.slowest_us = std::max(all.slowest_us, t * 1e6);
    }

    int longest = 0;
    for (int h = 0; h < n_head_kv; ++h) {
        longest = std::max(longest, table[h + 1] - table[h]);
    }
    printf("%-5s %8d %4d %9d %9d %9.2f %10.2f %8.1f %7.0f%%\n", ggml_type_name(c.type), n_head_kv, n_gqa, n_rows,
           longest, mib, t * 1e6, bytes / t / 1e9, 100.0 * share);
}

static std::vector<bench_case> all_cases(const options & opt) {
    std::vector<bench_case> res;
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        if (opt.smoke) {
            res.push_back({ type, one_long(8, 4, 4.0), 800, 2 });
            for (const auto & heads : opt.caps) {
                res.push_back({ type, heads, 800, 2 });
            }
            continue;
        }
        const size_t row_size = ggml_row_size(type, n_embd);
        for (const int mib : { 32, 64, 128 }) {
            const int n_rows = (int) (mib * 1048576 / 2 / row_size);
            // as many layers as the caches of a GPU cannot hold
            const int n_layer = opt.cpu ? 2 : 512 / mib;
            res.push_back({ type, one_long(32, 1, 20.0), n_rows, n_layer });
            res.push_back({ type, one_long(8, 4, 5.0), n_rows, n_layer });
            res.push_back({ type, one_long(8, 4, 1.0), n_rows, n_layer });
            for (const auto & heads : opt.caps) {
                res.push_back({ type, heads, n_rows, n_layer });
            }
        }
        for (const int n_rows : { 8 * 32, 8 * 128, 8 * 512, 8 * 1024 }) {
            res.push_back({ type, one_long(8, 4, 4.0), n_rows, opt.cpu ? 32 : 256 });
        }
    }
    return res;
}

int main(int argc, char ** argv) {
    setvbuf(stdout, nullptr, _IOLBF, BUFSIZ); // what was measured stays when it is ended

    options opt;
    has_gpu_option(argc, argv);
    for (int i = 1; i < argc; ++i) {
        opt.cpu   |= strcmp(argv[i], "--cpu") == 0;
        opt.smoke |= strcmp(argv[i], "--smoke") == 0;
        if (strcmp(argv[i], "--caps") == 0) {
            head_shares heads = {};
            if (++i == argc || !parse_caps(argv[i], heads)) {
                fprintf(stderr, "--caps takes rows per KV head and the heads of a group: 600,300,10/3\n");
                return 2;
            }
            opt.caps.push_back(heads);
        }
    }

    ggml_backend_dev_t dev = opt.cpu ? nullptr : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU);
    if (!dev) {
        opt.cpu = true;
        dev     = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    }
    const ggml_backend_ptr backend(ggml_backend_dev_init(dev, nullptr));

    const double bandwidth = copy_bandwidth(backend.get(), opt);
    printf("%s, copies %.1f GB/s (read and written)\n", ggml_backend_dev_description(dev), bandwidth / 1e9);
    printf("type  kv heads  gqa      rows   longest MiB/layer   us/layer     GB/s  of copy\n");

    summary all;
    for (const auto & c : all_cases(opt)) {
        run_case(backend.get(), c, bandwidth, opt, all);
    }
    if (!opt.cpu && !opt.smoke) {
        printf("at least %.0f%% of copy from %.0f MiB a layer on (goal %.0f%%), at most %.1f us a layer below "
               "(goal %.0f)\n",
               100 * all.least_of_copy, large_mib, 100 * goal_of_copy, all.slowest_us, goal_us);
    }
    return all.ok ? 0 : 1;
}
