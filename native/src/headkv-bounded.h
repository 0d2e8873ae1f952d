#pragma once

#include "llama-kv-cache.h"
#include "llama-memory-recurrent.h"

#include <cstdint>
#include <vector>

// What a memory holds beside the cache that retains: sliding-window and recurrent layers, which cannot go back by
// themselves. Taken at one moment, it is put back after a prompt that was not read to its end, and without its rows
// before each slice of layers: all of them see the same tokens come.
class headkv_bounded {
public:
    // mem: a context's memory; rows: with the bytes of all bounded layers
    // throws std::bad_alloc
    headkv_bounded(llama_memory_i * mem, bool rows);

    // where tokens are, but not what the layers hold of them; throws std::bad_alloc
    void put_back_places() const;

    // all of it, once; needs rows
    void put_back() noexcept;

    // the layer whose K and V a layer with a window reads, -1 for other layers
    int32_t layer_read_by(int32_t il) const;

    bool empty() const { return !recurrent && !window; }
    size_t size() const { return bytes.size(); }

    // as if no token had come
    void clear() const;

private:
    // f(tensor) for each tensor of the bounded layers, always in the same order
    template <typename F>
    void each_tensor(F && f) const;

    llama_kv_cache * window            = nullptr;
    llama_memory_recurrent * recurrent = nullptr;

    llama_kv_cells_vec window_cells;
    std::vector<uint32_t> window_heads;

    std::vector<llama_memory_recurrent::mem_cell> cells;
    std::vector<uint32_t> rs_idx;
    uint32_t head = 0, used = 0, n = 0;
    int32_t rs_z = -1;

    std::vector<uint8_t> bytes;
};
