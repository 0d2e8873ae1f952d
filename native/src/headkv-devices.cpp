// The part of headkv.h that is about devices: what there is, and where a cache lies.

#include "headkv-error.h"
#include "headkv-guard.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-memory.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>

static ggml_backend_dev_t get_dev(int32_t i) {
    return i >= 0 && i < headkv_device_count() ? ggml_backend_dev_get(i) : nullptr;
}

// host memory is the CPU's, also where it is pinned for a device
static int32_t device_of(ggml_backend_buffer_type_t buft) {
    ggml_backend_dev_t dev = ggml_backend_buft_is_host(buft) ? nullptr : ggml_backend_buft_get_device(buft);
    dev                    = dev ? dev : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);

    for (int32_t i = 0; i < headkv_device_count(); ++i) {
        if (ggml_backend_dev_get(i) == dev) {
            return i;
        }
    }
    throw headkv_error(HEADKV_ERR_INTERNAL, format("no device is known for %s", ggml_backend_buft_name(buft)));
}

int32_t headkv_device_count(void) {
    return (int32_t) ggml_backend_dev_count();
}

const char * headkv_device_name(int32_t i) {
    return get_dev(i) ? ggml_backend_dev_name(get_dev(i)) : nullptr;
}

const char * headkv_device_description(int32_t i) {
    return get_dev(i) ? ggml_backend_dev_description(get_dev(i)) : nullptr;
}

int32_t headkv_get_device(int32_t i, headkv_device * device, size_t size) {
    return headkv_guard_plain(headkv_thread_error, [&]() {
        headkv_require_pointer(device);
        headkv_require_size(size, sizeof(*device));
        ggml_backend_dev_t dev = get_dev(i);
        if (!dev) {
            throw headkv_error(HEADKV_ERR_ARGUMENT,
                               format("there is no device %d, there are %d", i, headkv_device_count()));
        }

        size_t n_free  = 0;
        size_t n_total = 0;
        ggml_backend_dev_memory(dev, &n_free, &n_total);

        const auto type = ggml_backend_dev_type(dev);
        const bool gpu  = type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;

        *device = { gpu, (int64_t) n_free, (int64_t) n_total };
    });
}

const char * headkv_cuda_archs(void) {
    for (size_t i = 0; i < ggml_backend_reg_count(); ++i) {
        ggml_backend_reg_t reg = ggml_backend_reg_get(i);
        if (strcmp(ggml_backend_reg_name(reg), "CUDA") != 0) {
            continue;
        }
        const auto get_features =
            (ggml_backend_get_features_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features");
        for (const auto * f = get_features ? get_features(reg) : nullptr; f && f->name; ++f) {
            if (strcmp(f->name, "ARCHS") == 0) {
                return f->value;
            }
        }
    }
    return "";
}

int32_t headkv_get_device_bytes(const llama_context * ctx, int64_t * bytes, size_t n) {
    return headkv_guard_plain(headkv_thread_error, [&]() {
        headkv_require_pointer(ctx);
        headkv_require_pointer(bytes);
        headkv_require_size(n, headkv_device_count());

        std::fill(bytes, bytes + n, 0);
        if (const auto * mem = ctx->get_memory()) {
            for (const auto & [buft, size] : mem->memory_breakdown()) {
                bytes[device_of(buft)] += size;
            }
        }
    });
}
