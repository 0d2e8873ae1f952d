#include "slice/headkv-hidden.h"

#include "base/headkv-error.h"
#include "llama-impl.h"

#include "ggml-backend.h"

void headkv_hidden::alloc(ggml_backend_buffer_type_t buft, uint32_t n_tokens, size_t row) {
    buf.reset();
    buf.reset(ggml_backend_buft_alloc_buffer(buft, n_tokens * row));
    if (!buf) {
        throw headkv_error(HEADKV_ERR_MEMORY,
                           format("no memory for %.2f MiB of hidden states", n_tokens * row / 1024.0 / 1024.0));
    }
    this->row = row;
}

size_t headkv_hidden::size() const {
    return buf ? ggml_backend_buffer_get_size(buf.get()) : 0;
}

void headkv_hidden::place(ggml_tensor * t, uint32_t i) const {
    t->buffer = buf.get();
    t->data   = (char *) ggml_backend_buffer_get_base(buf.get()) + i * row;
}

ggml_tensor * headkv_hidden::view(ggml_context * ctx, const ggml_tensor * t, uint32_t i) const {
    ggml_tensor * res = ggml_dup_tensor(ctx, t);
    place(res, i);
    return res;
}
