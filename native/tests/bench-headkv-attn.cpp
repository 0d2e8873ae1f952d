// How fast GGML_OP_HEADKV_ATTN reads K and V: a decode step of a graph with many layers, each with a pool of its own,
// beside the speed at which the device copies memory.
//
//   bench-headkv-attn             the first GPU, or the CPU where there is none
//   bench-headkv-attn --cpu       the CPU
//   bench-headkv-attn --json      one object per line instead of a table
//   bench-headkv-attn --smoke     tiny pools, one step: only shows that it runs

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-headkv.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

struct options {
    bool cpu   = false;
    bool json  = false;
    bool smoke = false;
};

struct bench_case {
    ggml_type type;
    int n_head_kv;
    int n_gqa;
    int n_rows;  // of all KV heads
    double skew; // longest head over the mean
    int n_layer;
};

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

// rows of each head: one long head, the others share what is left
static std::vector<int32_t> head_table(const bench_case & c) {
    const int longest = (int) (c.skew * c.n_rows / c.n_head_kv);

    std::vector<int32_t> res(1, 0);
    for (int h = 0; h < c.n_head_kv; ++h) {
        const int n_rest = c.n_head_kv > 1 ? (c.n_rows - longest) / (c.n_head_kv - 1) : 0;
        res.push_back(res.back() + (h == c.n_head_kv / 2 ? longest : n_rest));
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

static bool run_case(ggml_backend_t backend, const bench_case & c, double bandwidth, const options & opt) {
    const int n_head = c.n_head_kv * c.n_gqa;
    std::mt19937 rng(1);

    const auto table = head_table(c);
    const int n_rows = table.back();

    const ggml_init_params params = { ggml_tensor_overhead() * (16 + 12 * c.n_layer) + ggml_graph_overhead(), nullptr,
                                      true };
    const ggml_context_ptr ctx(ggml_init(params));

    ggml_tensor * q    = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, n_embd, n_head, 1);
    ggml_tensor * rows = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, c.n_head_kv + 1);
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
        ggml_tensor * k_tail = ggml_permute(ctx.get(), new_kv(c.n_head_kv, n_kv), 0, 2, 1, 3);
        ggml_tensor * v_tail = ggml_permute(ctx.get(), new_kv(c.n_head_kv, n_kv), 0, 2, 1, 3);

        cur = ggml_headkv_attn(ctx.get(), ggml_permute(ctx.get(), cur, 0, 2, 1, 3), k_pool, v_pool, rows, k_tail,
                               v_tail, mask, nullptr, 1.0f / sqrtf(n_embd), 0.0f);
    }
    if (!ggml_backend_supports_op(backend, cur)) {
        printf("%s is not supported\n", ggml_type_name(c.type));
        return false;
    }

    ggml_cgraph * gf = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(gf, cur);

    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    if (!buffer) {
        printf("not enough memory\n");
        return false;
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
    const double bytes = 2.0 * ggml_row_size(c.type, n_embd) * (n_rows + c.n_head_kv * n_kv / 2);

    const int longest = table[c.n_head_kv / 2 + 1] - table[c.n_head_kv / 2];
    if (opt.json) {
        printf("{\"type\": \"%s\", \"n_head_kv\": %d, \"n_gqa\": %d, \"n_rows\": %d, \"longest\": %d, \"n_layer\": %d, "
               "\"bytes\": %.0f, \"us\": %.3f, \"bytes_per_s\": %.4g, \"copy_bytes_per_s\": %.4g}\n",
               ggml_type_name(c.type), c.n_head_kv, c.n_gqa, n_rows, longest, c.n_layer, bytes, t * 1e6, bytes / t,
               bandwidth);
    } else {
        printf("%-5s %8d %4d %9d %9d %9.2f %10.2f %8.1f %7.0f%%\n", ggml_type_name(c.type), c.n_head_kv, c.n_gqa,
               n_rows, longest, bytes / 1048576, t * 1e6, bytes / t / 1e9, 100.0 * bytes / t / bandwidth);
    }
    return true;
}

static std::vector<bench_case> all_cases(const options & opt) {
    std::vector<bench_case> res;
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        if (opt.smoke) {
            res.push_back({ type, 8, 4, 800, 4.0, 2 });
            continue;
        }
        const size_t row_size = ggml_row_size(type, n_embd);
        for (const int mib : { 32, 64, 128 }) {
            const int n_rows = (int) (mib * 1048576 / 2 / row_size);
            // as many layers as the caches of a GPU cannot hold
            const int n_layer = opt.cpu ? 2 : 512 / mib;
            res.push_back({ type, 32, 1, n_rows, 20.0, n_layer });
            res.push_back({ type, 8, 4, n_rows, 5.0, n_layer });
            res.push_back({ type, 8, 4, n_rows, 1.0, n_layer });
        }
        for (const int n_rows : { 8 * 32, 8 * 128, 8 * 512, 8 * 1024 }) {
            res.push_back({ type, 8, 4, n_rows, 4.0, 32 });
        }
    }
    return res;
}

int main(int argc, char ** argv) {
    options opt;
    for (int i = 1; i < argc; ++i) {
        opt.cpu   |= strcmp(argv[i], "--cpu") == 0;
        opt.json  |= strcmp(argv[i], "--json") == 0;
        opt.smoke |= strcmp(argv[i], "--smoke") == 0;
    }

    ggml_backend_dev_t dev = opt.cpu ? nullptr : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU);
    if (!dev) {
        opt.cpu = true;
        dev     = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    }
    const ggml_backend_ptr backend(ggml_backend_dev_init(dev, nullptr));

    const double bandwidth = copy_bandwidth(backend.get(), opt);
    if (!opt.json) {
        printf("%s, copies %.1f GB/s (read and written)\n", ggml_backend_dev_description(dev), bandwidth / 1e9);
        printf("type  kv heads  gqa      rows   longest MiB/layer   us/layer     GB/s  of copy\n");
    }

    bool ok = true;
    for (const auto & c : all_cases(opt)) {
        ok = run_case(backend.get(), c, bandwidth, opt) && ok;
    }
    return ok ? 0 : 1;
}
