#pragma once

#include "base/headkv-buffers.h"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

// Copies rows of one tensor into another as raw bytes, in the device's memory where they lie.
//
// For one compaction: what it needs of a device (a backend, index tensors) is allocated before the first row
// is copied and freed with this object.
class headkv_gather {
public:
    enum path_t {
        AUTO,   // host memory: memcpy; a device: GRAPH where it can be, else STAGED
        GRAPH,  // a get_rows node over the bytes, computed where the buffer is; for tests also on the host
        STAGED, // through host memory, the whole source tensor at once
    };

    explicit headkv_gather(path_t path = AUTO) : path(path) {}

    // up to n_rows rows at once will be copied between buffers of this type; call before prepare()
    void add(ggml_backend_buffer_type_t buft, int64_t n_rows);

    // allocates; throws headkv_error
    void prepare();

    // the rows to copy from now on: dst row i = src row index[i]; sent to a device when it is first used there
    void set_index(std::vector<int32_t> next);

    // copy rows of row_size bytes; returns how they went
    //   dst: contiguous, index.size() rows; undefined on failure
    //   src: contiguous
    // throws headkv_error, std::bad_alloc
    path_t rows(ggml_tensor * dst, const ggml_tensor * src, size_t row_size);

private:
    struct device {
        int64_t n_rows = 0;
        ggml_backend_ptr backend;      // null: rows are staged
        ggml_tensor * index = nullptr; // [n_rows] I32
        bool sent           = false;   // whether it holds the index
    };

    bool graph(device & dev, ggml_tensor * dst, const ggml_tensor * src, size_t row_size);

    const path_t path;

    std::vector<int32_t> index;

    std::map<ggml_backend_buffer_type_t, device> devices;
    std::unique_ptr<headkv_buffers> bufs; // of the index tensors
};
