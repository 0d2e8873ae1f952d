#pragma once

#include <cstddef>
#include <cstdint>

// FNV-1a, 64 bits
static constexpr uint64_t headkv_hash_begin = 0xcbf29ce484222325;

inline uint64_t headkv_hash(uint64_t hash, const void * data, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        hash = (hash ^ ((const uint8_t *) data)[i]) * 0x100000001b3;
    }
    return hash;
}
