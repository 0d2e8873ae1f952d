// The part of headkv.h that tells where memory lies, and how much.

#include "base/headkv-error.h"
#include "base/headkv-guard.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-context.h"
#include "llama-ext.h"
#include "llama-impl.h"
#include "llama-memory.h"
#include "slice/headkv-slice.h"

#include "ggml-backend.h"

#include <algorithm>

// host memory is the CPU's, also where it is pinned for a device
static size_t device_of(ggml_backend_buffer_type_t buft) {
    ggml_backend_dev_t dev = ggml_backend_buft_is_host(buft) ? nullptr : ggml_backend_buft_get_device(buft);
    dev                    = dev ? dev : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);

    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        if (ggml_backend_dev_get(i) == dev) {
            return i;
        }
    }
    throw headkv_error(HEADKV_ERR_INTERNAL, format("no device is known for %s", ggml_backend_buft_name(buft)));
}

int32_t headkv_get_device_bytes(const llama_context * ctx, int64_t * bytes, size_t n) {
    return headkv_guard([&]() {
        headkv_require_pointer(ctx);
        headkv_require_pointer(bytes);
        headkv_require_size(n, ggml_backend_dev_count());

        std::fill(bytes, bytes + n, 0);
        if (const auto * mem = ctx->get_memory()) {
            for (const auto & [buft, size] : mem->memory_breakdown()) {
                bytes[device_of(buft)] += size;
            }
        }
    });
}

int32_t headkv_get_layer_devices(const llama_context * ctx, int32_t * devices, size_t n) {
    return headkv_guard([&]() {
        headkv_require_pointer(ctx);
        headkv_require_pointer(devices);
        const auto * mem = llama_kv_cache_headkv::find(ctx->get_memory());
        if (!mem) {
            throw headkv_error(HEADKV_ERR_UNSUPPORTED, "the context has no KV cache of full attention");
        }
        headkv_require_length(n, mem->get_shapes().size());
        for (const auto & shape : mem->get_shapes()) {
            *devices++ = device_of(shape.buft);
        }
    });
}

int32_t headkv_get_panel(llama_context * ctx, int32_t * n_tokens, int64_t * row_bytes) {
    return headkv_guard([&]() {
        headkv_require_pointer(ctx);
        headkv_require_pointer(n_tokens);
        headkv_require_pointer(row_bytes);
        auto * kv = ctx->get_memory() ? llama_kv_cache_headkv::find(ctx->get_memory()) : nullptr;
        if (!kv) {
            throw headkv_error(HEADKV_ERR_UNSUPPORTED, "the context has no KV cache of full attention");
        }
        const size_t row = kv->get_hidden_row(*ctx);
        *n_tokens        = headkv_panel(row, ctx->n_batch(), ctx->n_ubatch());
        *row_bytes       = row;
    });
}

// weights that the CPU has its own form for
static bool is_packed(ggml_backend_buffer_type_t buft) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return ggml_backend_buft_get_device(buft) == cpu && buft != ggml_backend_dev_buffer_type(cpu);
}

int32_t headkv_get_memory(const llama_context * ctx, headkv_memory * memory, size_t size, size_t n) {
    return headkv_guard([&]() {
        headkv_require_pointer(ctx);
        headkv_require_pointer(memory);
        headkv_require_size(size, sizeof(*memory));
        headkv_require_length(n, ggml_backend_dev_count());

        std::fill(memory, memory + n, headkv_memory{});
        for (const auto & [buft, data] : llama_get_memory_breakdown(ctx)) {
            auto & to         = memory[device_of(buft)];
            to.bytes_weights += data.model;
            to.bytes_packed  += is_packed(buft) ? data.model : 0;
            to.bytes_cache   += data.context;
            to.bytes_compute += data.compute;
        }
    });
}
