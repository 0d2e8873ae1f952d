#pragma once

#include "ggml-backend.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

// One row of a tensor, and the place that it is fetched for.
struct headkv_fetched {
    size_t from;
    size_t to;
};

// Gives rows of a contiguous tensor to take(), in any order, as raw bytes. Those of a device come to the host in blocks
// of bounded size, with what lies between them: each copy from there waits for the device, however short it is.
void headkv_fetch(const ggml_tensor * t, size_t row_size, const std::vector<headkv_fetched> & wanted,
                  const std::function<void(size_t to, const uint8_t * row)> & take);
