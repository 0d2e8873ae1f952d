#pragma once

#include "base/headkv-layer.h"

#include "ggml-cpp.h"

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

// The full K and V rows of a prompt, layer by layer, as raw bytes of the cache's types: in host memory or in a file. It
// grows with the prompt. Rows are those of a cell: of all KV heads of one position.
//
// What is put after fork() takes the place of other rows only with keep(): until then both are held, and drop() goes
// back.
//
// Rows of a device go through pinned memory, which it reads and writes by itself.
//
// A file is read and written, not mapped: one that is cut short is an error then, and not the end of the process; and
// what of it is in memory is the system's to drop.
class headkv_archive {
public:
    // path: of a file, which is made and goes with this object; nullptr for memory
    // throws headkv_error if there is another file, also an empty one, or an archive that is in use
    headkv_archive(const std::vector<headkv_layer_shape> & shapes, const char * path);
    ~headkv_archive();

    headkv_archive(const headkv_archive &)             = delete;
    headkv_archive & operator=(const headkv_archive &) = delete;

    // The first n_past positions of n_held stay; what is put from now on is of others.
    void fork(uint32_t n_past, uint32_t n_held);
    void keep(uint32_t n); // what was put, up to position n
    void drop();           // without a fork, nothing

    // forget all but what is held
    void clear();

    // Rows of the first n positions stay whatever comes, under a number that is new, and restore() puts them in place
    // of all others. Nothing is copied until others would be written over a block of them.
    void hold(int32_t id, uint32_t n);
    bool holds(int32_t id) const; // not in a file that was cut short
    void restore(int32_t id);
    void release(int32_t id);

    // of position p, whose rows are held
    std::vector<uint8_t> get_held(int32_t id, uint32_t ikv, uint32_t p) const;

    // Rows of positions from p0 on, n of them, of layer ikv: from and to rows of its cells from `cell` on.
    //   k: [d_k*n_head_kv, n_cells], v: [d_v*n_head_kv, n_cells], or nullptr to get K alone
    // throws headkv_error, std::bad_alloc
    void put(uint32_t ikv, const ggml_tensor * k, const ggml_tensor * v, uint32_t cell, uint32_t p0, uint32_t n);
    void get(uint32_t ikv, ggml_tensor * k, ggml_tensor * v, uint32_t cell, uint32_t p0, uint32_t n) const;

    // Rows of single KV heads: of head h those of positions keep[h], ascending; one head after the other.
    void get(uint32_t ikv, const std::vector<std::vector<int32_t>> & keep, uint8_t * k, uint8_t * v) const;

    // the same as the first two with rows in memory: K of all positions, then V; positions follow on those that are
    // there
    void put(uint32_t ikv, const uint8_t * rows, uint32_t p0, uint32_t n);
    void get(uint32_t ikv, uint8_t * rows, uint32_t p0, uint32_t n) const;

    size_t row_size(uint32_t ikv) const { return layers[ikv].row_k + layers[ikv].row_v; }

    // positions whose rows all layers were given since all was forgotten
    uint32_t n_rows() const;

    size_t size() const { return n_bytes; } // held; any thread may ask

private:
    // of so many positions, one layer's K rows, then its V rows
    static constexpr uint32_t n_block = 256;

    struct layer {
        size_t row_k;
        size_t row_v;
        size_t offset;              // of its block among those of the same positions
        uint32_t n_rows        = 0; // positions that it was given
        uint32_t n_rows_before = 0; // and before the fork

        size_t size() const { return n_block * (row_k + row_v); }
    };

    // copy(to or from in the archive, tensor or rows, offset there, bytes)
    template <typename K, typename F>
    void put_from(uint32_t ikv, const K * k, const K * v, uint32_t cell, uint32_t p0, uint32_t n, F && copy);
    template <typename K, typename F>
    void get_to(uint32_t ikv, K * k, K * v, uint32_t cell, uint32_t p0, uint32_t n, F && copy) const;

    // call f(tensor, its bytes from, offset in the block, bytes) for the parts of K and V in one block
    template <typename K, typename F>
    void each(uint32_t ikv, uint32_t b, K * k, K * v, uint32_t cell, uint32_t p0, uint32_t n, F && f) const;

    const std::vector<bool> & taken_slots(); // up to the last one
    uint32_t free_slot();
    bool is_held(uint32_t slot) const;
    void make_room(uint32_t b);
    void copy(uint32_t ikv, uint32_t from, uint32_t to, uint32_t n_rows);
    void free_slots();

    // through which the rows of a tensor go: nullptr for one in host memory
    uint8_t * pinned_for(const ggml_tensor * t) const;

    uint8_t * in_memory(uint32_t ikv, uint32_t slot) const { return slots[slot].get() + layers[ikv].offset; }
    size_t in_file(uint32_t ikv, uint32_t slot) const { return header_size + slot * stride + layers[ikv].offset; }

    void open_file();
    void remove_file() const;
    size_t file_size() const;
    void shorten(size_t size);
    void read(void * to, size_t size, size_t offset) const;
    void write(const void * from, size_t size, size_t offset);

    [[noreturn]] void fail(const char * what) const;
    [[noreturn]] void fail_short() const;

    static constexpr size_t header_size = 4096;

    const std::string path;
    int fd = -1;

    std::vector<layer> layers;
    size_t stride = 0; // bytes of the blocks of all layers

    ggml_backend_buffer_ptr pinned; // room for the K or V of a block; null where all layers are in host memory

    // The blocks of the same positions lie in one slot, which has its place in the file or in memory.
    std::vector<uint32_t> table;                   // the slot of each n_block positions
    std::vector<std::unique_ptr<uint8_t[]>> slots; // in memory
    std::vector<bool> taken;                       // of taken_slots(); has room for all slots that there are

    bool forked = false;
    std::vector<uint32_t> table_before;
    size_t n_bytes_before = 0;

    struct held_rows {
        std::vector<uint32_t> table;
        uint32_t n;
    };

    std::map<int32_t, held_rows> held;

    std::atomic<size_t> n_bytes = 0; // of slots in memory, or of the file
};
