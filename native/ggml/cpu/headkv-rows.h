#pragma once

// What the ops of the CPU share.

#include "ggml-cpu.h"
#include "ggml.h"

#include <cstddef>
#include <cstdint>

// floats behind each thread's part of the work buffer, against false sharing
constexpr size_t n_pad_f32 = 256 / sizeof(float);

// n rows of n_embd values as F32: a pointer to them, or to their widened copy in buf; nb is the stride of the
// rows and becomes that of the result
inline const float * rows_f32(ggml_type type, const char * rows, size_t & nb, int64_t n, int64_t n_embd, float * buf) {
    if (type == GGML_TYPE_F32) {
        return (const float *) rows;
    }

    // rows of the pool lie side by side: one long row converts faster than many short ones
    const bool dense     = nb == ggml_row_size(type, n_embd);
    const int64_t n_conv = dense ? 1 : n;
    const int64_t n_each = dense ? n * n_embd : n_embd;

    for (int64_t j = 0; j < n_conv; ++j) {
        const char * src = rows + j * nb;
        float * dst      = buf + j * n_embd;
        switch (type) {
        case GGML_TYPE_F16:
            ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) src, dst, n_each);
            break;
        case GGML_TYPE_BF16:
            ggml_cpu_bf16_to_fp32((const ggml_bf16_t *) src, dst, n_each);
            break;
        default:
            ggml_get_type_traits(type)->to_float(src, dst, n_each);
            break;
        }
    }

    nb = n_embd * sizeof(float);
    return buf;
}
