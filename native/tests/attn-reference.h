#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

// Attention of one query in double precision: what every kernel is measured against.
class attn_reference {
public:
    // q: [d_k]; softcap: 0 for none; sink: one more logit without a value, or nullptr
    attn_reference(const float * q, int d_k, int d_v, float scale, float softcap, const float * sink)
        : q(q),
          d_k(d_k),
          d_v(d_v),
          scale(scale),
          softcap(softcap),
          sink(sink) {}

    // k: [d_k], v: [d_v]; they must live until finish()
    void add(const float * k, const float * v, float bias = 0.0f) {
        double dot = 0.0;
        for (int d = 0; d < d_k; ++d) {
            dot += (double) k[d] * q[d];
        }
        dot *= scale;
        logits.push_back((softcap == 0.0f ? dot : softcap * tanh(dot / softcap)) + bias);
        values.push_back(v);
    }

    // appends [d_v]; zeros where there was nothing to attend to
    void finish(std::vector<double> & res) const {
        double largest = sink ? *sink : -INFINITY;
        for (const double x : logits) {
            largest = std::max(largest, x);
        }

        double sum = sink ? exp(*sink - largest) : 0.0;
        std::vector<double> acc(d_v);
        for (size_t i = 0; i < logits.size(); ++i) {
            const double p  = exp(logits[i] - largest);
            sum            += p;
            for (int d = 0; d < d_v; ++d) {
                acc[d] += p * values[i][d];
            }
        }
        for (const double x : acc) {
            res.push_back(sum == 0.0 ? 0.0 : x / sum);
        }
    }

private:
    const float * q;
    const int d_k;
    const int d_v;
    const double scale;
    const double softcap;
    const float * sink;

    std::vector<double> logits;
    std::vector<const float *> values;
};
