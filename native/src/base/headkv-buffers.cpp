#include "base/headkv-buffers.h"

#include "base/headkv-error.h"
#include "llama-impl.h"

#include "ggml-backend.h"

ggml_tensor * headkv_buffers::new_tensor(ggml_backend_buffer_type_t buft, ggml_type type, int64_t ne0, int64_t ne1,
                                         const char * name, int il) {
    ggml_context * ctx = nullptr;
    for (const auto & g : groups) {
        if (g.buft == buft) {
            ctx = g.ctx.get();
        }
    }
    if (!ctx) {
        const ggml_init_params params = {
            /*.mem_size   =*/n_tensors * ggml_tensor_overhead(),
            /*.mem_buffer =*/nullptr,
            /*.no_alloc   =*/true,
        };
        groups.push_back({ buft, ggml_context_ptr(ggml_init(params)), nullptr });
        ctx = groups.back().ctx.get();
    }

    ggml_tensor * t = ggml_new_tensor_2d(ctx, type, ne0, ne1);
    ggml_format_name(t, "headkv_%s_l%d", name, il);

    return t;
}

void headkv_buffers::alloc() {
    for (auto & g : groups) {
        g.buf.reset(ggml_backend_alloc_ctx_tensors_from_buft(g.ctx.get(), g.buft));
        if (!g.buf) {
            const size_t size = ggml_backend_alloc_ctx_tensors_from_buft_size(g.ctx.get(), g.buft);
            throw headkv_error(HEADKV_ERR_MEMORY, format("no memory for %.2f MiB in %s", size / 1024.0 / 1024.0,
                                                         ggml_backend_buft_name(g.buft)));
        }
        ggml_backend_buffer_clear(g.buf.get(), 0);
    }
}

size_t headkv_buffers::size() const {
    size_t res = 0;
    for (const auto & g : groups) {
        res += ggml_backend_buffer_get_size(g.buf.get());
    }
    return res;
}

void headkv_buffers::add_breakdown(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const {
    for (const auto & g : groups) {
        sizes[g.buft] += ggml_backend_buffer_get_size(g.buf.get());
    }
}
