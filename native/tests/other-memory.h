#pragma once

#include "ggml-backend-impl.h"

// The host's memory as a device's looks to those who ask: nobody reads it but by copies, which are counted.
struct other_memory {
    ggml_backend_buffer_type type = *ggml_backend_cpu_buffer_type();

    static inline int n_copies = 0;

    other_memory() {
        type.iface.is_host      = nullptr;
        type.iface.alloc_buffer = [](ggml_backend_buffer_type_t self, size_t size) {
            ggml_backend_buffer_t res = ggml_backend_cpu_buffer_type()->iface.alloc_buffer(self, size);
            static const auto get     = res->iface.get_tensor;
            res->iface.get_tensor = [](ggml_backend_buffer_t buffer, const ggml_tensor * t, void * data, size_t offset,
                                       size_t n) {
                n_copies++;
                get(buffer, t, data, offset, n);
            };
            return res;
        };
    }
};
