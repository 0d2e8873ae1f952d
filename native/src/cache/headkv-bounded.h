#pragma once

#include "llama-kv-cache.h"
#include "llama-memory-recurrent.h"

#include <cstdint>
#include <memory>
#include <vector>

class llama_io_write_i;
class llama_io_read_i;

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

    // whether they can go back to the first n tokens: windows hold what the next one looks at, recurrent states nothing
    // that came after
    bool reaches(llama_pos n) const;

    bool empty() const { return !recurrent && !window; }
    size_t size() const { return bytes ? bytes->size() : 0; }

    // as if no token had come
    void clear() const;

    // as in the cache that retains
    void free_lost() const;

    // All of it, for a session; needs rows. Read into a memory whose window has another number of cells, its tokens are
    // in other places.
    //   n_tokens: it holds some of the first of them; n_vocab: tokens of the model
    // write() throws headkv_error where a window has forgotten what the next token sees, read() for what cannot be;
    // both std::bad_alloc, and what io throws
    void write(llama_io_write_i & io) const;
    static headkv_bounded read(llama_memory_i * mem, llama_io_read_i & io, int32_t n_tokens, int32_t n_vocab);

    // position of the last token, -1 for none
    int32_t last() const;

private:
    // f(tensor) for each tensor of the bounded layers, always in the same order
    template <typename F>
    void each_tensor(F && f) const;

    // all of them, the window's first, n_window of them
    std::vector<ggml_tensor *> tensors(size_t & n_window) const;

    struct saved_cell {
        uint32_t i;
        llama_pos pos;
        llama_kv_cell_ext ext;
    };

    // where each of the saved cells goes: -1 for nowhere
    std::vector<int64_t> place(const std::vector<saved_cell> & saved, uint32_t size, uint32_t head);

    std::vector<int64_t> read_window(llama_io_read_i & io, int32_t n_tokens, int32_t n_vocab);
    void read_recurrent(llama_io_read_i & io, int32_t n_tokens);

    llama_kv_cache * window            = nullptr;
    llama_memory_recurrent * recurrent = nullptr;

    llama_kv_cells_vec window_cells;
    std::vector<uint32_t> window_heads;

    std::vector<llama_memory_recurrent::mem_cell> cells;
    std::vector<uint32_t> rs_idx;
    uint32_t head = 0, used = 0, n = 0;
    int32_t rs_z = -1;

    std::shared_ptr<const std::vector<uint8_t>> bytes; // copies share them
};
