// The op that records attention, and the same by single ops, on the CPU: against double precision, over shapes and
// types of K, with and without what models add to a softmax; and with any number of threads the same, bit by bit.
// And that recording adds as many nodes to a graph as llama.cpp is told of, and no more.

#include "llama-batch.h"
#include "observe/headkv-queries.h"
#include "observe/headkv-record.h"
#include "other-memory.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml-headkv.h"
#include "ggml-impl.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

struct test_case {
    ggml_type type;
    int d;
    int n_head_kv;
    int n_gqa;
    int n_tokens;
    int n_kv;
    int n_used; // cells in use: token i sees all but the last n_tokens - 1 - i of them
    int n_near;
    float softcap;
    bool sinks;
};

struct test_data {
    const test_case & c;
    const int n_head;
    std::mt19937 rng;

    std::vector<uint8_t> k; // [n_kv][n_head_kv] rows, as a cache has them
    std::vector<float> k32;
    std::vector<float> q; // [n_tokens][n_head][d], as a graph has them
    std::vector<ggml_fp16_t> mask;
    std::vector<float> sinks;
    std::vector<float> weights; // [n_tokens]
    std::vector<float> far;     // [n_tokens][n_near]
    std::vector<float> before;  // [n_head_kv][n_kv]

    std::vector<float> normal(size_t n, float scale) {
        std::normal_distribution<float> dist(0.0f, scale);
        std::vector<float> res(n);
        for (auto & x : res) {
            x = dist(rng);
        }
        return res;
    }

    test_data(const test_case & c, int seed) : c(c), n_head(c.n_head_kv * c.n_gqa), rng(seed) {
        const size_t n_rows = (size_t) c.n_kv * c.n_head_kv;

        const auto source = normal(n_rows * c.d, 1.0f);
        k.resize(n_rows * ggml_row_size(c.type, c.d));
        ggml_quantize_chunk(c.type, source.data(), k.data(), 0, n_rows, c.d, nullptr);
        k32 = source;
        if (c.type != GGML_TYPE_F32) {
            ggml_get_type_traits(c.type)->to_float(k.data(), k32.data(), n_rows * c.d);
        }

        q       = normal((size_t) c.n_tokens * n_head * c.d, 2.0f);
        sinks   = normal(n_head, 2.0f);
        weights = normal(c.n_tokens, 1.0f);
        for (auto & x : weights) {
            x = std::fabs(x);
        }
        far.resize((size_t) c.n_tokens * c.n_near);
        for (auto & x : far) {
            x = rng() % 2;
        }
        before = normal(n_rows, 1e-3f);
        mask.resize((size_t) c.n_tokens * c.n_kv);
        for (int t = 0; t < c.n_tokens; ++t) {
            for (int p = 0; p < c.n_kv; ++p) {
                mask[t * c.n_kv + p] = ggml_fp32_to_fp16(sees(t, p) ? 0.0f : -INFINITY);
            }
        }
    }

    bool sees(int t, int p) const { return p < c.n_used - (c.n_tokens - 1 - t); }

    // what is added to the record, [n_head_kv][n_kv]
    std::vector<double> expected() const {
        std::vector<double> res((size_t) c.n_head_kv * c.n_kv);
        std::vector<double> w(c.n_kv);
        for (int t = 0; t < c.n_tokens; ++t) {
            for (int h = 0; h < n_head; ++h) {
                const int h_kv = h / c.n_gqa;
                double largest = c.sinks ? sinks[h] : -INFINITY;
                for (int p = 0; p < c.n_kv; ++p) {
                    double dot = 0.0;
                    for (int e = 0; e < c.d; ++e) {
                        dot += (double) q[((size_t) t * n_head + h) * c.d + e] *
                               k32[((size_t) p * c.n_head_kv + h_kv) * c.d + e];
                    }
                    dot  *= scale();
                    w[p]  = !sees(t, p) ? -INFINITY : c.softcap != 0.0f ? c.softcap * std::tanh(dot / c.softcap) : dot;
                    largest = std::max(largest, w[p]);
                }
                double sum = c.sinks ? std::exp(sinks[h] - largest) : 0.0;
                for (double & x : w) {
                    x    = std::exp(x - largest);
                    sum += x;
                }
                for (int p = 0; p < c.n_kv; ++p) {
                    const int near = p - (c.n_kv - c.n_near);
                    res[(size_t) h_kv * c.n_kv + p] +=
                        weights[t] * (near < 0 ? 1.0 : far[t * c.n_near + near]) * std::pow(w[p] / sum, 4);
                }
            }
        }
        return res;
    }

    float scale() const { return 1.0f / std::sqrt((float) c.d); }
};

// what the graph has added, [n_head_kv][n_kv]
static std::vector<float> run(const test_data & data, bool by_ops, int n_threads) {
    const test_case & c = data.c;

    ggml_backend_ptr backend(ggml_backend_cpu_init());
    ggml_backend_cpu_set_n_threads(backend.get(), n_threads);

    const ggml_init_params params = { ggml_tensor_overhead() * 64 + ggml_graph_overhead(), nullptr, true };
    ggml_context_ptr ctx_ptr(ggml_init(params));
    ggml_context * ctx = ctx_ptr.get();

    const int n_rows = c.n_tokens * c.n_gqa;

    ggml_tensor * q       = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, c.d, data.n_head, c.n_tokens);
    ggml_tensor * k       = ggml_new_tensor_3d(ctx, c.type, c.d, c.n_head_kv, c.n_kv);
    ggml_tensor * mask    = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, c.n_kv, c.n_tokens);
    ggml_tensor * sinks   = c.sinks ? ggml_new_tensor_1d(ctx, GGML_TYPE_F32, data.n_head) : nullptr;
    ggml_tensor * weights = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 1, n_rows, c.n_head_kv);
    ggml_tensor * far     = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, c.n_near, c.n_tokens);
    ggml_tensor * room    = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, c.n_kv + 5, c.n_head_kv);
    ggml_tensor * record  = ggml_view_2d(ctx, room, c.n_kv, c.n_head_kv, room->nb[1], 0);

    ggml_tensor * qp = ggml_permute(ctx, q, 0, 2, 1, 3);
    ggml_tensor * kp = ggml_permute(ctx, k, 0, 2, 1, 3);

    ggml_cgraph * gf = ggml_new_graph(ctx);
    if (by_ops) {
        ggml_headkv_record_by_ops(ctx, gf, record, qp, kp, mask, sinks, weights, far, data.scale(), c.softcap);
    } else {
        ggml_build_forward_expand(
            gf, ggml_headkv_record(ctx, record, qp, kp, mask, sinks, weights, far, data.scale(), c.softcap));
    }
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx, backend.get()));

    std::vector<float> repeated((size_t) n_rows * c.n_head_kv);
    for (size_t i = 0; i < repeated.size(); ++i) {
        repeated[i] = data.weights[i % c.n_tokens];
    }
    ggml_backend_tensor_set(q, data.q.data(), 0, ggml_nbytes(q));
    ggml_backend_tensor_set(k, data.k.data(), 0, ggml_nbytes(k));
    ggml_backend_tensor_set(mask, data.mask.data(), 0, ggml_nbytes(mask));
    ggml_backend_tensor_set(weights, repeated.data(), 0, ggml_nbytes(weights));
    ggml_backend_tensor_set(far, data.far.data(), 0, ggml_nbytes(far));
    if (sinks) {
        ggml_backend_tensor_set(sinks, data.sinks.data(), 0, ggml_nbytes(sinks));
    }
    const size_t row = c.n_kv * sizeof(float);
    ggml_backend_tensor_set_2d(record, data.before.data(), 0, row, c.n_head_kv, record->nb[1], row);

    if (ggml_backend_graph_compute(backend.get(), gf) != GGML_STATUS_SUCCESS) {
        return {};
    }
    std::vector<float> res(data.before.size());
    ggml_backend_tensor_get_2d(record, res.data(), 0, row, c.n_head_kv, record->nb[1], row);
    return res;
}

static double nmse(const std::vector<float> & found, const std::vector<float> & before,
                   const std::vector<double> & expected) {
    if (found.size() != expected.size()) {
        return INFINITY;
    }
    double error = 0.0;
    double all   = 0.0;
    for (size_t i = 0; i < found.size(); ++i) {
        const double wanted  = before[i] + expected[i];
        error               += (found[i] - wanted) * (found[i] - wanted);
        all                 += wanted * wanted;
    }
    return error / all;
}

// What a graph takes for recording a layer, by the op of the CPU or by single ops as on a device: in its context, and
// where a scheduler plans it, that is nodes and leafs together. What is there without it is taken off.
static uint32_t n_nodes_of(const std::function<void(ggml_context *, ggml_cgraph *, const headkv_attention &)> & build,
                           const headkv_layer_shape & shape, float softcap) {
    headkv_buffers bufs(4);
    ggml_tensor * k    = bufs.new_tensor(shape.buft, shape.type_k, shape.d_k * shape.n_head_kv, 64, "k", 0);
    ggml_tensor * q    = bufs.new_tensor(shape.buft, GGML_TYPE_F32, shape.d_k * shape.n_head, 8, "q", 0);
    ggml_tensor * mask = bufs.new_tensor(shape.buft, GGML_TYPE_F16, 64, 8, "mask", 0);
    bufs.alloc();

    const ggml_init_params params = { ggml_tensor_overhead() * 128 + ggml_graph_overhead(), nullptr, true };
    ggml_context_ptr ctx(ggml_init(params));
    ggml_cgraph * gf = ggml_new_graph(ctx.get());

    const size_t row = ggml_row_size(shape.type_k, shape.d_k);
    headkv_attention attn;
    attn.k       = ggml_view_3d(ctx.get(), k, shape.d_k, shape.n_head_kv, 64, row, row * shape.n_head_kv, 0);
    attn.q       = ggml_reshape_3d(ctx.get(), q, shape.d_k, shape.n_head, 8);
    attn.mask    = mask;
    attn.sinks   = nullptr;
    attn.scale   = 1.0f;
    attn.softcap = softcap;
    for (ggml_tensor * t : { attn.k, attn.q, attn.mask }) {
        ggml_build_forward_expand(gf, t);
    }
    const auto count = [&]() {
        uint32_t res = 0;
        for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
            res++;
        }
        return std::max<uint32_t>(res, gf->n_nodes + gf->n_leafs);
    };
    const uint32_t before = count();
    build(ctx.get(), gf, attn);
    return count() - before;
}

static bool has_room_for_nodes() {
    const other_memory other;
    const auto device = (ggml_backend_buffer_type_t) &other.type;

    uint32_t most = 0;
    bool ok       = true;
    for (const auto & [buft, rows] :
         { std::pair(ggml_backend_cpu_buffer_type(), false), std::pair(ggml_backend_cpu_buffer_type(), true),
           std::pair(device, false), std::pair(device, true) }) {
        const headkv_layer_shape shape = { 0, buft, GGML_TYPE_F16, GGML_TYPE_F16, 80, 80, 4, 2, 1 };
        const headkv_record record(shape, 64, rows);
        const uint32_t n = n_nodes_of(
            [&, rows = rows](ggml_context * ctx, ggml_cgraph * gf, const headkv_attention & attn) {
                headkv_record_inputs in;
                in.weights = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 8 * shape.n_head);
                in.far     = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 20, 8);
                record.build(ctx, gf, attn, rows ? 7 : 0, rows ? 1 : 8, in);
            },
            shape, /*softcap =*/20.0f);
        printf("recording %s by %s: %u nodes\n", rows ? "rows" : "tokens", buft == device ? "single ops" : "the op", n);
        ok   = ok && n <= headkv_record_inputs::n_nodes + headkv_record::n_nodes_max;
        most = std::max(most, n);
    }

    const headkv_layer_shape shape = { 0, device, GGML_TYPE_F16, GGML_TYPE_F16, 80, 80, 4, 2, 1 };
    headkv_queries queries({ { 0, shape } }, 0, 8);
    llama_pos pos[8];
    std::iota(pos, pos + 8, 0);
    llama_ubatch ubatch = {};
    ubatch.n_tokens     = 8;
    ubatch.pos          = pos;
    queries.aim(ubatch);
    const uint32_t n = n_nodes_of(
        [&](ggml_context * ctx, ggml_cgraph * gf, const headkv_attention & attn) { queries.build(ctx, gf, 0, attn); },
        shape, 0.0f);
    printf("recording queries: %u nodes\n", n);

    return ok && most == headkv_record_inputs::n_nodes + headkv_record::n_nodes_max && n == headkv_queries::n_nodes_max;
}

int main() {
    std::vector<test_case> cases;
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        for (const int d : { 64, 96, 128, 256 }) {
            cases.push_back({ type, d, 2, 3, 20, 300, 290, 40, 0.0f, false });
        }
        cases.push_back({ type, 64, 3, 1, 1, 64, 64, 1, 0.0f, false });
        cases.push_back({ type, 64, 1, 4, 33, 129, 33, 129, 0.0f, true }); // all near, half of the cells empty
        cases.push_back({ type, 64, 2, 2, 64, 200, 199, 90, 20.0f, false });
        cases.push_back({ type, 128, 4, 8, 17, 513, 400, 20, 30.0f, true });
    }

    int n_fail = 0;
    int n_run  = 0;
    for (const auto & c : cases) {
        const test_data data(c, n_run);
        const auto expected = data.expected();
        const auto one      = run(data, false, 1);
        const double by_op  = nmse(one, data.before, expected);
        const double by_ops = nmse(run(data, true, 2), data.before, expected);
        const double limit  = ggml_is_quantized(c.type) ? 2e-2 : 1e-4; // single ops round or quantize q, too
        n_run++;
        if (!(by_op <= 1e-8) || !(by_ops <= limit) || one != run(data, false, 2) || one != run(data, false, 5)) {
            printf("FAIL: K %s, heads of %d, %d KV heads by %d, %d tokens, %d cells: NMSE %.1e, by single ops %.1e\n",
                   ggml_type_name(c.type), c.d, c.n_head_kv, c.n_gqa, c.n_tokens, c.n_kv, by_op, by_ops);
            n_fail++;
        }
    }
    n_run++;
    if (!has_room_for_nodes()) {
        printf("FAIL: recording takes another number of nodes than graphs have room for\n");
        n_fail++;
    }
    printf("%d passed, %d failed\n", n_run - n_fail, n_fail);
    return n_fail ? 1 : 0;
}
