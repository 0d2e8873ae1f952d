#pragma once

#include "ggml-cpp.h"

#include <map>
#include <vector>

// Tensors that live beside the KV cache, each in the buffer type of its layer: add them all, then alloc().
class headkv_buffers {
public:
    // n_tensors: how many will be added at most
    explicit headkv_buffers(size_t n_tensors) : n_tensors(n_tensors) {}

    // nothing is allocated yet; throws std::bad_alloc
    ggml_tensor * new_tensor(ggml_backend_buffer_type_t buft, ggml_type type, int64_t ne0, int64_t ne1,
                             const char * name, int il);

    // allocate and zero; throws headkv_error, and everything is freed with this object
    void alloc();

    size_t size() const; // bytes of the buffers

    void add_breakdown(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const;

private:
    struct group {
        ggml_backend_buffer_type_t buft;
        ggml_context_ptr ctx;
        ggml_backend_buffer_ptr buf;
    };

    const size_t n_tensors;

    std::vector<group> groups;
};
