#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <new>

// llama.cpp makes schedulers with its contexts and now and then later, and ends the process where it gets no memory for
// one. std::bad_alloc where there is none for one of so many nodes: tensors for 30 inputs of as many splits, twice, and
// numbers beside these; and a little for what else is made then.
inline void headkv_require_scheduler(size_t n_nodes) {
    const size_t n_bytes = n_nodes * 64 * (sizeof(ggml_tensor) + 4 * sizeof(int32_t)) + (4u << 20);
    ::operator delete(::operator new(n_bytes));
}
