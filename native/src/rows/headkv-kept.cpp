#include "rows/headkv-kept.h"

#include "base/headkv-error.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "rows/headkv-archive.h"

#include "ggml-backend.h"

#include <algorithm>

// row starts of the heads, and the number of rows after the last: [n_head_kv + 1]
static std::vector<int32_t> row_table(const headkv_kept::positions & keep) {
    std::vector<int32_t> res = { 0 };
    for (const auto & k : keep) {
        res.push_back(res.back() + (int32_t) k.size());
    }
    return res;
}

headkv_kept::headkv_kept(const headkv_layer_shape & shape, positions keep)
    : shape(shape),
      keep(std::move(keep)),
      n_rows(row_table(this->keep).back()),
      bufs(3) {
    // no tensor is empty: a layer may keep nothing but the window
    const int64_t n_alloc = std::max(1u, n_rows);

    k    = bufs.new_tensor(shape.buft, shape.type_k, shape.d_k, n_alloc, "k", shape.il);
    v    = bufs.new_tensor(shape.buft, shape.type_v, shape.d_v, n_alloc, "v", shape.il);
    rows = bufs.new_tensor(shape.buft, GGML_TYPE_I32, shape.n_head_kv + 1, 1, "rows", shape.il);
    bufs.alloc();

    const auto table = row_table(this->keep);
    ggml_backend_tensor_set(rows, table.data(), 0, table.size() * sizeof(int32_t));
}

void headkv_kept::fill(const headkv_archive & archive, uint32_t ikv) {
    if (n_rows == 0) {
        return;
    }
    std::vector<uint8_t> rows_k(ggml_nbytes(k)), rows_v(ggml_nbytes(v));
    archive.get(ikv, keep, rows_k.data(), rows_v.data());
    ggml_backend_tensor_set(k, rows_k.data(), 0, rows_k.size());
    ggml_backend_tensor_set(v, rows_v.data(), 0, rows_v.size());
}

void headkv_kept::add_to(headkv_gather & gather) const {
    if (n_rows > 0) {
        gather.add(shape.buft, n_rows);
    }
}

void headkv_kept::fill(headkv_gather & gather, const ggml_tensor * from_k, const ggml_tensor * from_v,
                       const std::vector<uint32_t> & cell) {
    if (n_rows == 0) {
        return;
    }

    // a cell holds one row for each KV head
    std::vector<int32_t> index;
    index.reserve(n_rows);
    for (size_t h = 0; h < keep.size(); ++h) {
        for (const int32_t p : keep[h]) {
            index.push_back(cell[p] * keep.size() + h);
        }
    }

    gather.set_index(std::move(index));
    gather.rows(k, from_k, ggml_row_size(shape.type_k, shape.d_k));
    gather.rows(v, from_v, ggml_row_size(shape.type_v, shape.d_v));
}

//
// state: n_layer, n_prompt, end; per layer: types and widths, the positions of each head, K, V
//

static void require(bool ok, const char * what) {
    if (!ok) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("the state's kept rows do not fit this context: %s", what));
    }
}

static uint32_t read_u32(llama_io_read_i & io) {
    uint32_t x;
    io.read(&x, sizeof(x));
    return x;
}

static void write_u32(llama_io_write_i & io, uint32_t x) {
    io.write(&x, sizeof(x));
}

void headkv_kept::state_write(llama_io_write_i & io) const {
    write_u32(io, shape.type_k);
    write_u32(io, shape.type_v);
    write_u32(io, shape.d_k);
    write_u32(io, shape.d_v);
    write_u32(io, shape.n_head_kv);

    for (const auto & positions : keep) {
        write_u32(io, positions.size());
        if (!positions.empty()) { // memcpy() takes no nullptr, not even for nothing
            io.write(positions.data(), positions.size() * sizeof(int32_t));
        }
    }
    if (n_rows > 0) {
        io.write_tensor(k, 0, ggml_nbytes(k));
        io.write_tensor(v, 0, ggml_nbytes(v));
    }
}

std::unique_ptr<headkv_kept> headkv_kept::state_read(llama_io_read_i & io, const headkv_layer_shape & shape,
                                                     uint32_t end) {
    require(read_u32(io) == (uint32_t) shape.type_k, "type of K");
    require(read_u32(io) == (uint32_t) shape.type_v, "type of V");
    require(read_u32(io) == shape.d_k, "head size of K");
    require(read_u32(io) == shape.d_v, "head size of V");
    require(read_u32(io) == shape.n_head_kv, "number of KV heads");

    positions keep(shape.n_head_kv);
    for (auto & head : keep) {
        const uint32_t n = read_u32(io);
        require(n <= end, "number of kept entries");
        head.resize(n);
        if (n > 0) {
            io.read(head.data(), n * sizeof(int32_t));
        }

        int32_t prev = -1;
        for (const int32_t p : head) {
            require(p > prev && p < (int32_t) end, "kept positions");
            prev = p;
        }
    }

    auto res = std::make_unique<headkv_kept>(shape, std::move(keep));
    if (res->n_rows > 0) {
        io.read_tensor(res->k, 0, ggml_nbytes(res->k));
        io.read_tensor(res->v, 0, ggml_nbytes(res->v));
    }
    return res;
}

size_t headkv_kept_prompt::size() const {
    size_t res = 0;
    for (const auto & layer : layers) {
        res += layer->get_buffers().size();
    }
    return res;
}

uint64_t headkv_kept_prompt::n_rows() const {
    uint64_t res = 0;
    for (const auto & layer : layers) {
        res += layer->get_n_rows();
    }
    return res;
}

void headkv_kept_prompt::add_breakdown(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const {
    for (const auto & layer : layers) {
        layer->get_buffers().add_breakdown(sizes);
    }
}

void headkv_kept_prompt::state_write(llama_io_write_i & io) const {
    write_u32(io, layers.size());
    write_u32(io, n_prompt);
    write_u32(io, end);
    for (const auto & layer : layers) {
        layer->state_write(io);
    }
}

std::unique_ptr<headkv_kept_prompt>
headkv_kept_prompt::state_read(llama_io_read_i & io, const std::vector<headkv_layer_shape> & shapes, uint32_t n_ctx) {
    auto res = std::make_unique<headkv_kept_prompt>();

    require(read_u32(io) == shapes.size(), "number of layers");

    res->n_prompt = read_u32(io);
    require(res->n_prompt > 0 && res->n_prompt <= n_ctx, "prompt length");
    res->end = read_u32(io);
    require(res->end < res->n_prompt, "end of the kept rows");

    for (const auto & shape : shapes) {
        res->layers.push_back(headkv_kept::state_read(io, shape, res->end));
    }
    return res;
}
