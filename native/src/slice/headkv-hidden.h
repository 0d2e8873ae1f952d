#pragma once

#include "ggml-cpp.h"

#include <cstddef>
#include <cstdint>

// Hidden states of a panel of tokens between two layers: one block for each ubatch, as the model's graph lays it out. A
// layer's output takes the place of its input. They lie where the layers do: through host memory each ubatch would wait
// for the one before.
class headkv_hidden {
public:
    // room in memory of that type for n_tokens of `row` bytes each; throws headkv_error
    void alloc(ggml_backend_buffer_type_t buft, uint32_t n_tokens, size_t row);

    void free() { buf.reset(); }

    size_t row_size() const { return buf ? row : 0; }
    size_t size() const;

    // let a tensor lie where token i of the panel begins
    void place(ggml_tensor * t, uint32_t i) const;

    // a tensor like t that lies there
    ggml_tensor * view(ggml_context * ctx, const ggml_tensor * t, uint32_t i) const;

private:
    size_t row = 0;
    ggml_backend_buffer_ptr buf;
};
