#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

// bytes of params->wdata that ggml_compute_forward_headkv_record() needs
size_t ggml_headkv_record_work_size(const struct ggml_tensor * dst, int n_tasks);

void ggml_compute_forward_headkv_record(const struct ggml_compute_params * params, struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
