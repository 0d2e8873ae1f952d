// GGML_OP_HEADKV_ATTN against attention in double precision over the stored rows. On the CPU also against
// ggml_flash_attn_ext() with one mask per head on the same data; on CUDA devices, where there are any, with longer
// heads and a graph that is replayed.
//
//   test-headkv-attn            all cases
//   test-headkv-attn --quick    some of them, for slow tools
//   test-headkv-attn CASE       one case, as a failing one is printed
//   --gpu                       fails where there is no CUDA device

#include "attn-cases.h"
#include "options.h"

#include "ggml-cpu.h"

#include <cstring>

static const ggml_type all_types[] = {
    GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0,   GGML_TYPE_Q5_0,
    GGML_TYPE_Q5_1, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL,
};

static std::vector<float> run_headkv(const test_data & td, ggml_backend_t backend) {
    headkv_graph g(td);
    g.init(backend, g.out);
    return g.compute();
}

static std::vector<float> run_stock(const test_data & td, ggml_backend_t backend) {
    const auto & c = td.c;
    graph g;

    std::vector<ggml_fp16_t> m;
    for (int hq = 0; hq < td.n_head; ++hq) {
        const auto & keep = td.keep[hq / c.n_gqa];
        for (int t = 0; t < c.n_tokens; ++t) {
            for (int i = 0; i < td.n_all; ++i) {
                const bool seen =
                    i < c.n_prompt ? std::binary_search(keep.begin(), keep.end(), i) : td.tail_seen(t, i - c.n_prompt);
                m.push_back(ggml_fp32_to_fp16(seen ? 0.0f : -INFINITY));
            }
        }
    }
    ggml_tensor * mask = g.new_tensor(GGML_TYPE_F16, td.n_all, c.n_tokens, td.n_head, m.data());

    ggml_tensor * out =
        ggml_flash_attn_ext(g.ctx.get(), g.new_q(td), g.new_cells(td.k, c.n_head_kv, 0, td.n_all),
                            g.new_cells(td.v, c.n_head_kv, 0, td.n_all), mask, td.scale(), 0.0f, c.softcap);
    ggml_flash_attn_ext_add_sinks(out, g.new_sinks(td));
    g.init(backend, out);
    return g.compute();
}

static bool run_case(const test_case & c, ggml_backend_t cpu, double & worst_float, double & worst_quant) {
    const test_data td(c);

    const auto ref = td.reference();

    ggml_backend_cpu_set_n_threads(cpu, 1);
    const auto res   = run_headkv(td, cpu);
    const auto stock = run_stock(td, cpu);

    const bool quantized = c.max_nmse() > 1e-6;

    const double err       = nmse(res.data(), ref.data(), ref.size());
    const double err_stock = nmse(stock.data(), ref.data(), ref.size());

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
        ggml_backend_cpu_set_n_threads(cpu, n_threads);
        const auto other = run_headkv(td, cpu);
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
        for (const int d : { 64, 80, 96, 128, 256, 512 }) {
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

//
// CUDA
//

static bool cuda_takes(const test_case & c) {
    const bool type = c.type_k == GGML_TYPE_F16 || c.type_k == GGML_TYPE_BF16 || c.type_k == GGML_TYPE_Q8_0 ||
                      c.type_k == GGML_TYPE_Q4_0;
    const bool width = !ggml_is_quantized(c.type_k) || (c.d_k != 80 && c.d_k != 512);
    return type && width && c.type_v == c.type_k && c.d_k == c.d_v;
}

static double max_nmse_cuda(ggml_type type) {
    return type == GGML_TYPE_BF16 ? 1e-4 : 5e-6;
}

struct cuda_worst {
    double err[GGML_TYPE_COUNT] = {};
};

static bool run_case_cuda(const test_case & c, ggml_backend_t cuda, cuda_worst & worst) {
    const test_data td(c);
    headkv_graph g(td);

    const char * failure = nullptr;
    double err           = 0.0;

    const bool taken = ggml_backend_supports_op(cuda, g.out);
    if (taken != cuda_takes(c)) {
        failure = taken ? "taken" : "refused";
    } else if (taken) {
        const auto ref = td.reference();

        g.init(cuda, g.out);
        const auto res = g.compute();
        for (size_t i = 0; i < ref.size(); i += c.d_v) {
            const double e = nmse(res.data() + i, ref.data() + i, c.d_v);
            err            = e <= err ? err : e; // NaN stays
        }
        if (!(err <= max_nmse_cuda(c.type_k))) {
            failure = "too far from the reference";
        }
        // also replays the captured graph, where the backend makes one
        for (int i = 0; i < 4; ++i) {
            if (g.compute() != res) {
                failure = "another result when computed again";
            }
        }
        worst.err[c.type_k] = std::max(worst.err[c.type_k], err);
    }

    if (failure) {
        printf("FAIL test-headkv-attn %s: %s by %s (NMSE of the worst query %.3g)\n", c.str().c_str(), failure,
               ggml_backend_name(cuda), err);
    }
    return !failure;
}

// a graph stays valid while the head table changes: the same pool, shared out among the heads in another way
static bool run_replay_cuda(ggml_backend_t cuda, ggml_backend_t cpu) {
    const test_case c = { GGML_TYPE_F16, GGML_TYPE_F16, 128, 128, 4, 4, 1, 5000, 64, 10, 0.0f, false, 1 };
    const test_data td(c);

    headkv_graph on_cuda(td);
    headkv_graph on_cpu(td);
    on_cuda.init(cuda, on_cuda.out);
    on_cpu.init(cpu, on_cpu.out);

    for (int i = 0; i < 4; ++i) {
        on_cuda.compute();
    }

    const int32_t n           = (int32_t) on_cuda.out->src[1]->ne[1];
    const int32_t tables[][5] = { { 0, n, n, n, n }, { 0, 0, n / 2, n / 2 + 1, n }, { 0, 5, 10, 15, n } };

    bool res = true;
    for (const auto & table : tables) {
        ggml_backend_tensor_set(on_cuda.rows, table, 0, sizeof(table));
        ggml_backend_tensor_set(on_cpu.rows, table, 0, sizeof(table));

        const auto y   = on_cuda.compute();
        const auto ref = on_cpu.compute();
        const std::vector<double> ref64(ref.begin(), ref.end());

        const double err = nmse(y.data(), ref64.data(), y.size());
        if (!(err <= max_nmse_cuda(c.type_k))) {
            printf("FAIL test-headkv-attn: replayed with another head table, %s is off (NMSE %.3g)\n",
                   ggml_backend_name(cuda), err);
            res = false;
        }
    }
    return res;
}

static std::vector<test_case> long_cases() {
    std::vector<test_case> res;

    int i = 1000;
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        res.push_back({ type, type, 128, 128, 8, 4, 1, 10000, 256, 100, 0.0f, false, i++ });
        res.push_back({ type, type, 128, 128, 2, 8, 3, 50000, 256, 100, 0.0f, true, i++ });
        res.push_back({ type, type, 64, 64, 32, 1, 1, 3000, 128, 17, 0.0f, false, i++ });
        res.push_back({ type, type, 256, 256, 2, 8, 1, 20000, 64, 64, 0.0f, false, i++ });
        res.push_back({ type, type, 128, 128, 2, 4, 200, 3000, 512, 512, 0.0f, false, i++ });
    }
    return res;
}

// whose case is run
struct filter {
    std::string only;
    bool quick = false;

    std::vector<test_case> operator()(const std::vector<test_case> & cases) const {
        std::vector<test_case> res;
        for (size_t i = 0; i < cases.size(); ++i) {
            if (only.empty() ? !quick || i % 11 == 0 : cases[i].str() == only) {
                res.push_back(cases[i]);
            }
        }
        return res;
    }
};

int main(int argc, char ** argv) {
    filter wanted;
    has_gpu_option(argc, argv);
    wanted.quick = has_option(argc, argv, "--quick");
    if (argc > 1 && argv[argc - 1][0] != '-') {
        wanted.only = argv[argc - 1];
    }

    const ggml_backend_ptr cpu(ggml_backend_cpu_init());

    int n_run  = 0;
    int n_fail = 0;

    double worst_float = 0.0;
    double worst_quant = 0.0;

    for (const auto & c : wanted(all_cases())) {
        n_run++;
        n_fail += !run_case(c, cpu.get(), worst_float, worst_quant);
    }
    printf("CPU: worst NMSE %.3g with float K/V, %.3g with quantized K/V\n", worst_float, worst_quant);

    int n_cuda = 0;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);
        if (strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)), "CUDA") != 0) {
            continue;
        }
        n_cuda++;
        printf("%s: %s\n", ggml_backend_dev_name(dev), ggml_backend_dev_description(dev));

        const ggml_backend_ptr cuda(ggml_backend_dev_init(dev, nullptr));

        auto cases = all_cases();
        for (const auto & c : long_cases()) {
            cases.push_back(c);
        }
        cuda_worst worst;
        for (const auto & c : wanted(cases)) {
            n_run++;
            n_fail += !run_case_cuda(c, cuda.get(), worst);
        }
        if (wanted.only.empty()) {
            n_run++;
            n_fail += !run_replay_cuda(cuda.get(), cpu.get());
        }
        for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
            if (worst.err[type] > 0.0) {
                printf("%s: worst NMSE of a query %.3g with %s\n", ggml_backend_dev_name(dev), worst.err[type],
                       ggml_type_name((ggml_type) type));
            }
        }
    }
    if (n_cuda == 0) {
        printf("no CUDA device: the CUDA kernels were not run\n");
    }

    printf("%d passed, %d failed\n", n_run - n_fail, n_fail);

    return n_run > 0 && n_fail == 0 ? 0 : 1;
}
