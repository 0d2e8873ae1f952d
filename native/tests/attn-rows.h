#pragma once

// Random rows of K or V of one type, and how far results are from a reference.

#include "ggml.h"

#include <cstdint>
#include <random>
#include <vector>

struct rows_t {
    ggml_type type;
    int n_embd;
    std::vector<uint8_t> raw;
    std::vector<float> val; // what raw stands for

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

// normalized mean squared error of n values
static inline double nmse(const float * x, const double * ref, size_t n) {
    double err = 0.0;
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) {
        err += (x[i] - ref[i]) * (x[i] - ref[i]);
        sum += ref[i] * ref[i];
    }
    return err == 0.0 ? 0.0 : err / sum;
}
