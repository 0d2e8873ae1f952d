// GGML_OP_HEADKV_RECORD on the CPU, see ggml-headkv.h for the shapes.
//
// The queries of a KV head (tokens times the query heads of its group) are cut into blocks of 32, and the threads take
// (KV head, block) one after the other. A block goes over the cells three times, 64 at a time: for the largest logit of
// each query, for the softmax's sum, and for the powers. What it has computed of the first 8192 cells stays in a
// thread's buffer, which fits its cache; that of others is computed again. The sums of a block do not depend on the
// number of threads, and are added up in the order of the blocks.

#include "headkv-record.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-headkv.h"
#include "ggml-impl.h"
#include "headkv-rows.h"
#include "ops.h"
#include "vec.h"

#include "simd-gemm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace {

constexpr int64_t nq     = GGML_HEADKV_RECORD_QUERIES; // of a block
constexpr int64_t n_tile = 64;                         // cells that are looked at at once
constexpr int64_t n_kept = 8192;                       // cells whose logits are kept between the passes

// C[m][nq] += A[m][k] * B[k][nq]
void multiply(float * C, const float * A, const float * B, int m, int k) {
#if defined(GGML_SIMD) && !defined(__ARM_FEATURE_SVE) && !defined(__riscv_v_intrinsic)
#if defined(__AVX512F__) || defined(__ARM_NEON) // 32 registers
    constexpr int RM = 8;
    constexpr int RN = 2;
    constexpr int n  = RN * GGML_F32_EPR;
    static_assert(nq % n == 0, "no rest");
    for (; m >= RM; m -= RM, C += RM * nq, A += RM * k) {
        for (int j = 0; j < nq; j += n) {
            simd_gemm_ukernel<RM, RN>(C + j, A, B + j, k, nq);
        }
    }
#endif
    simd_gemm(C, A, B, m, k, nq);
#else
    for (int i = 0; i < m; ++i) {
        for (int e = 0; e < k; ++e) {
            for (int j = 0; j < nq; ++j) {
                C[i * nq + j] += A[i * k + e] * B[e * nq + j];
            }
        }
    }
#endif
}

struct headkv_record {
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * mask;
    const ggml_tensor * sinks;
    const ggml_tensor * weights;
    const ggml_tensor * far;
    ggml_tensor * record;

    int64_t d;
    int64_t n_tokens;
    int64_t n_kv;
    int64_t n_head_kv;
    int64_t n_gqa;
    int64_t n_blocks; // of a KV head

    float scale;
    float softcap;

    explicit headkv_record(const ggml_tensor * node)
        : q(node->src[0]),
          k(node->src[1]),
          mask(node->src[2]),
          sinks(node->src[3]),
          weights(node->src[4]),
          far(node->src[5]),
          record(const_cast<ggml_tensor *>(node)),
          d(q->ne[0]),
          n_tokens(q->ne[1]),
          n_kv(k->ne[1]),
          n_head_kv(k->ne[2]),
          n_gqa(q->ne[2] / k->ne[2]),
          n_blocks((n_tokens * n_gqa + nq - 1) / nq),
          scale(ggml_get_op_params_f32(node, 0)),
          softcap(ggml_get_op_params_f32(node, 1)) {}

    int64_t n_items() const { return n_head_kv * n_blocks; }

    int64_t n_cells_kept() const { return std::min(n_kept, n_kv); }

    // of a thread: queries, a tile of K, the logits that are kept, a tile of others
    size_t scratch_size() const { return d * nq + n_tile * d + (n_cells_kept() + n_tile) * nq + n_pad_f32; }
};

// one block of queries of one KV head
struct headkv_record_item {
    const headkv_record & a;

    const int64_t h;
    const int64_t q0;
    const int64_t n; // queries, the others up to nq are zero

    float * q;    // [d][nq]
    float * k;    // [n_tile][d]
    float * kept; // [n_cells_kept()][nq], and a tile more

    float largest[nq];
    float sum[nq];

    headkv_record_item(const headkv_record & a, int64_t h, int64_t block, float * wdata)
        : a(a),
          h(h),
          q0(block * nq),
          n(std::min(nq, a.n_tokens * a.n_gqa - q0)),
          q(wdata),
          k(q + a.d * nq),
          kept(k + n_tile * a.d) {
        const float scale = a.softcap != 0.0f ? a.scale / a.softcap : a.scale;

        memset(q, 0, a.d * nq * sizeof(float));
        for (int64_t i = 0; i < n; ++i) {
            const float * src =
                (const float *) ((const char *) a.q->data + token(i) * a.q->nb[1] + head(i) * a.q->nb[2]);
            for (int64_t e = 0; e < a.d; ++e) {
                q[e * nq + i] = scale * src[e];
            }
        }
    }

    // the heads of a group one after the other, each with all tokens
    int64_t token(int64_t i) const { return (q0 + i) % a.n_tokens; }
    int64_t head(int64_t i) const { return h * a.n_gqa + (q0 + i) / a.n_tokens; }

    const ggml_fp16_t * mask_row(int64_t i) const {
        return (const ggml_fp16_t *) ((const char *) a.mask->data + token(i) * a.mask->nb[1]);
    }

    // the m cells from c on, row by row -> k
    void read_k(int64_t c, int64_t m) {
        const char * src   = (const char *) a.k->data + c * a.k->nb[1] + h * a.k->nb[2];
        size_t nb          = a.k->nb[1];
        const float * rows = rows_f32(a.k->type, src, nb, m, a.d, k);
        for (int64_t j = 0; rows != k && j < m; ++j) {
            memcpy(k + j * a.d, (const char *) rows + j * nb, a.d * sizeof(float));
        }
    }

    // Does any query see any of the m cells from c on; masked: is any of them hidden from any.
    bool sees(int64_t c, int64_t m, bool & masked) const {
        uint16_t any = 0; // bits of the mask: +0 is seen, -infinity is not
        uint16_t all = 0xffff;
        for (int64_t i = 0; i < std::min(n, a.n_tokens); ++i) {
            const ggml_fp16_t * row = mask_row(i) + c;
            for (int64_t j = 0; j < m; ++j) {
                any |= row[j];
                all &= row[j];
            }
        }
        masked = any != 0;
        return all != 0xfc00;
    }

    void compute(int64_t c, int64_t m, bool masked, float * tile) {
        static const float zero[nq] = {};

        read_k(c, m);
        for (int64_t j = 0; j < m; ++j) {
            memcpy(tile + j * nq, zero, sizeof(zero));
        }
        multiply(tile, k, q, m, a.d);
        if (a.softcap != 0.0f) {
            for (int64_t i = 0; i < m * nq; ++i) {
                tile[i] = a.softcap * std::tanh(tile[i]);
            }
        }
        if (masked) {
            for (int64_t i = 0; i < n; ++i) {
                const ggml_fp16_t * row = mask_row(i) + c;
                for (int64_t j = 0; j < m; ++j) {
                    tile[j * nq + i] += GGML_CPU_FP16_TO_FP32(row[j]);
                }
            }
        }
    }

    void exponentiate(int64_t m, float * tile) const {
        for (int64_t j = 0; j < m; ++j) {
            for (int64_t i = 0; i < nq; ++i) {
                tile[j * nq + i] -= largest[i];
            }
        }
        ggml_vec_soft_max_f32(m * nq, tile, tile, 0.0f);
    }

    // pass(c, m, tile, is_kept) where any query sees any cell, else unseen(c, m). The tile holds logits where
    // again(is_kept), else what the pass before has left there.
    template <typename P, typename A, typename U>
    void for_tiles(const P & pass, const A & again, const U & unseen) {
        for (int64_t c = 0; c < a.n_kv; c += n_tile) {
            const int64_t m = std::min(n_tile, a.n_kv - c);

            bool masked;
            if (!sees(c, m, masked)) {
                unseen(c, m);
                continue;
            }
            const bool is_kept = c + m <= a.n_cells_kept();
            float * tile       = kept + (is_kept ? c : a.n_cells_kept()) * nq;
            if (again(is_kept)) {
                compute(c, m, masked, tile);
            }
            pass(c, m, tile, is_kept);
        }
    }

    // weighted fourth powers, summed over the queries: res[n_kv]
    void run(float * res) {
        for (int64_t i = 0; i < nq; ++i) {
            // every query sees a cell; the smallest number keeps the difference of two of them finite
            largest[i] =
                a.sinks && i < n ? ((const float *) a.sinks->data)[head(i)] : std::numeric_limits<float>::lowest();
        }
        const auto always  = [](bool) { return true; };
        const auto if_lost = [](bool is_kept) { return !is_kept; };
        const auto nothing = [](int64_t, int64_t) {};

        for_tiles(
            [&](int64_t, int64_t m, const float * tile, bool) {
                for (int64_t j = 0; j < m; ++j) {
                    for (int64_t i = 0; i < nq; ++i) {
                        largest[i] = std::max(largest[i], tile[j * nq + i]);
                    }
                }
            },
            always, nothing);

        for (int64_t i = 0; i < nq; ++i) {
            sum[i] = a.sinks && i < n ? std::exp(((const float *) a.sinks->data)[head(i)] - largest[i]) : 0.0f;
        }
        for_tiles(
            [&](int64_t, int64_t m, float * tile, bool) {
                exponentiate(m, tile);
                for (int64_t j = 0; j < m; ++j) {
                    for (int64_t i = 0; i < nq; ++i) {
                        sum[i] += tile[j * nq + i];
                    }
                }
            },
            if_lost, nothing);

        float weight[nq] = {};
        for (int64_t i = 0; i < n; ++i) {
            weight[i] = ((const float *) a.weights->data)[token(i)];
            sum[i]    = 1.0f / sum[i];
        }
        std::fill(sum + n, sum + nq, 0.0f);

        const int64_t near = a.n_kv - a.far->ne[0]; // from this cell on
        for_tiles(
            [&](int64_t c, int64_t m, float * tile, bool is_kept) {
                if (!is_kept) {
                    exponentiate(m, tile);
                }
                for (int64_t j = 0; j < m; ++j) {
                    float x[nq];
                    for (int64_t i = 0; i < nq; ++i) {
                        const float p = tile[j * nq + i] * sum[i];
                        x[i]          = weight[i] * (p * p) * (p * p);
                    }
                    if (c + j >= near) {
                        for (int64_t i = 0; i < n; ++i) {
                            x[i] *=
                                ((const float *) ((const char *) a.far->data + token(i) * a.far->nb[1]))[c + j - near];
                        }
                    }
                    for (int64_t step = nq / 2; step > 0; step /= 2) {
                        for (int64_t i = 0; i < step; ++i) {
                            x[i] += x[i + step];
                        }
                    }
                    res[c + j] = x[0];
                }
            },
            if_lost, [&](int64_t c, int64_t m) { std::fill(res + c, res + c + m, 0.0f); });
    }
};

} // namespace

size_t ggml_headkv_record_work_size(const ggml_tensor * dst, int n_tasks) {
    const headkv_record a(dst);
    return (n_tasks * a.scratch_size() + a.n_items() * a.n_kv) * sizeof(float);
}

void ggml_compute_forward_headkv_record(const ggml_compute_params * params, ggml_tensor * dst) {
    const headkv_record a(dst);

    float * scratch = (float *) params->wdata + params->ith * a.scratch_size();
    float * sums    = (float *) params->wdata + params->nth * a.scratch_size(); // [n_items][n_kv]

    for (int64_t i = params->ith; i < a.n_items(); i += params->nth) {
        headkv_record_item(a, i / a.n_blocks, i % a.n_blocks, scratch).run(sums + i * a.n_kv);
    }
    ggml_barrier(params->threadpool);

    const int64_t n_each = (a.n_kv + params->nth - 1) / params->nth;
    const int64_t first  = std::min(a.n_kv, params->ith * n_each);
    const int64_t n      = std::min(n_each, a.n_kv - first);
    for (int64_t i = 0; i < a.n_items() && n > 0; ++i) {
        float * record = (float *) ((char *) a.record->data + i / a.n_blocks * a.record->nb[1]) + first;
        ggml_vec_acc_f32(n, record, sums + i * a.n_kv + first);
    }
}
