#include "headkv-pool.h"

#include "headkv-error.h"
#include "llama-impl.h"
#include "llama-io.h"

#include "ggml-backend.h"

// row starts of the heads, and the number of rows behind the last: [n_head_kv + 1]
static std::vector<int32_t> row_table(const std::vector<std::vector<int32_t>> & keep) {
    std::vector<int32_t> res = { 0 };
    for (const auto & k : keep) {
        res.push_back(res.back() + (int32_t) k.size());
    }
    return res;
}

headkv_pool::headkv_pool(const std::vector<headkv_layer_shape> & shapes, uint32_t n_prompt, headkv_keep keep)
    : shapes(shapes),
      n_prompt(n_prompt),
      keep(std::move(keep)),
      bufs(3 * shapes.size()) {
    for (size_t ikv = 0; ikv < shapes.size(); ++ikv) {
        const auto & s = shapes[ikv];

        const int64_t n_head_kv = this->keep[ikv].size();
        const int64_t n_rows    = row_table(this->keep[ikv]).back();

        layers.push_back({
            bufs.new_tensor(s.buft, s.type_k, s.d_k, n_rows, "k", s.il),
            bufs.new_tensor(s.buft, s.type_v, s.d_v, n_rows, "v", s.il),
            bufs.new_tensor(s.buft, GGML_TYPE_I32, n_head_kv + 1, 1, "rows", s.il),
        });
    }

    bufs.alloc();

    for (size_t ikv = 0; ikv < shapes.size(); ++ikv) {
        const auto table = row_table(this->keep[ikv]);
        ggml_backend_tensor_set(layers[ikv].rows, table.data(), 0, table.size() * sizeof(int32_t));
    }
}

void headkv_pool::add_to(headkv_gather & gather) const {
    for (size_t ikv = 0; ikv < shapes.size(); ++ikv) {
        gather.add(shapes[ikv].buft, layers[ikv].k->ne[1]);
    }
}

void headkv_pool::fill(headkv_gather & gather, uint32_t ikv, const ggml_tensor * k, const ggml_tensor * v,
                       const std::vector<uint32_t> & cell) {
    const auto & s = shapes[ikv];

    // a cell holds one row for each KV head
    const size_t n_head_kv = keep[ikv].size();

    std::vector<int32_t> index;
    index.reserve(layers[ikv].k->ne[1]);
    for (size_t h = 0; h < n_head_kv; ++h) {
        for (const int32_t p : keep[ikv][h]) {
            index.push_back(cell[p] * n_head_kv + h);
        }
    }

    gather.set_index(std::move(index));
    gather.rows(layers[ikv].k, k, ggml_row_size(s.type_k, s.d_k));
    gather.rows(layers[ikv].v, v, ggml_row_size(s.type_v, s.d_v));
}

uint64_t headkv_pool::get_n_rows() const {
    uint64_t res = 0;
    for (const auto & l : layers) {
        res += l.k->ne[1];
    }
    return res;
}

//
// state: n_layer, n_head_kv, n_prompt; per layer: types and widths, the positions of each head, K, V
//

void headkv_pool::state_write(llama_io_write_i & io) const {
    const auto write_u32 = [&](uint32_t x) { io.write(&x, sizeof(x)); };

    write_u32(layers.size());
    write_u32(keep[0].size());
    write_u32(n_prompt);

    for (size_t ikv = 0; ikv < layers.size(); ++ikv) {
        const auto & s = shapes[ikv];

        write_u32(s.type_k);
        write_u32(s.type_v);
        write_u32(s.d_k);
        write_u32(s.d_v);

        for (const auto & k : keep[ikv]) {
            write_u32(k.size());
            io.write(k.data(), k.size() * sizeof(int32_t));
        }
    }
    for (const auto & l : layers) {
        io.write_tensor(l.k, 0, ggml_nbytes(l.k));
        io.write_tensor(l.v, 0, ggml_nbytes(l.v));
    }
}

std::unique_ptr<headkv_pool> headkv_pool::state_read(llama_io_read_i & io,
                                                     const std::vector<headkv_layer_shape> & shapes, uint32_t n_head_kv,
                                                     uint32_t n_ctx) {
    const auto read_u32 = [&]() {
        uint32_t x;
        io.read(&x, sizeof(x));
        return x;
    };
    const auto require = [](bool ok, const char * what) {
        if (!ok) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, format("the state's pool does not fit this context: %s", what));
        }
    };

    require(read_u32() == shapes.size(), "number of layers");
    require(read_u32() == n_head_kv, "number of KV heads");

    const uint32_t n_prompt = read_u32();
    require(n_prompt > 0 && n_prompt <= n_ctx, "prompt length");

    headkv_keep keep(shapes.size());
    for (size_t ikv = 0; ikv < shapes.size(); ++ikv) {
        const auto & s = shapes[ikv];

        require(read_u32() == (uint32_t) s.type_k, "type of K");
        require(read_u32() == (uint32_t) s.type_v, "type of V");
        require(read_u32() == s.d_k, "head size of K");
        require(read_u32() == s.d_v, "head size of V");

        keep[ikv].resize(n_head_kv);
        for (auto & k : keep[ikv]) {
            const uint32_t n = read_u32();
            require(n > 0 && n <= n_prompt, "number of kept entries");
            k.resize(n);
            io.read(k.data(), n * sizeof(int32_t));

            int32_t prev = -1;
            for (const int32_t p : k) {
                require(p > prev && p < (int32_t) n_prompt, "kept positions");
                prev = p;
            }
        }
    }

    auto res = std::make_unique<headkv_pool>(shapes, n_prompt, std::move(keep));
    for (const auto & l : res->layers) {
        io.read_tensor(l.k, 0, ggml_nbytes(l.k));
        io.read_tensor(l.v, 0, ggml_nbytes(l.v));
    }
    return res;
}
