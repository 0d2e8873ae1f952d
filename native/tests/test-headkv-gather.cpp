// headkv_gather: rows moved by a graph, on the CPU and on every GPU there is, against a plain copy byte by byte.
// headkv_fetch: rows that come to the host, in few copies where they lie elsewhere.
//
// --gpu: fails where there is no CUDA device

#include "base/headkv-error.h"
#include "options.h"
#include "other-memory.h"
#include "rows/headkv-fetch.h"
#include "rows/headkv-gather.h"

#include "ggml-backend.h"

#include <cstdio>
#include <cstring>
#include <random>

struct shape {
    ggml_type type;
    int64_t d_head;
    int64_t n_head_kv;
    int64_t n_cells;
    int64_t n_rows;
    bool words; // rows are whole 32-bit words, so a graph can move them
};

static int n_run  = 0;
static int n_fail = 0;

static void check(bool ok, const char * what, const char * where, const shape & s) {
    n_run++;
    if (!ok) {
        n_fail++;
        printf("FAIL %s on %s: %s, head %d, %d KV heads, %d cells, %d rows\n", what, where, ggml_type_name(s.type),
               (int) s.d_head, (int) s.n_head_kv, (int) s.n_cells, (int) s.n_rows);
    }
}

// two tensors like a layer's K and V, moved with the same index after another one was in use
static void test(const shape & s, ggml_backend_buffer_type_t buft, headkv_gather::path_t path, std::mt19937 & rng) {
    const char * where    = ggml_backend_buft_name(buft);
    const size_t row_size = ggml_row_size(s.type, s.d_head);

    headkv_buffers bufs(4);
    ggml_tensor * src[2];
    ggml_tensor * dst[2];
    for (int i = 0; i < 2; ++i) {
        src[i] = bufs.new_tensor(buft, s.type, s.d_head * s.n_head_kv, s.n_cells, "src", i);
        dst[i] = bufs.new_tensor(buft, s.type, s.d_head, s.n_rows, "dst", i);
    }
    bufs.alloc();

    // all bit patterns, also those that are no numbers
    std::vector<uint8_t> bytes[2];
    for (int i = 0; i < 2; ++i) {
        bytes[i].resize(ggml_nbytes(src[i]));
        for (auto & b : bytes[i]) {
            b = rng();
        }
        ggml_backend_tensor_set(src[i], bytes[i].data(), 0, bytes[i].size());
    }

    std::vector<int32_t> index(s.n_rows);
    for (auto & r : index) {
        r = rng() % (s.n_cells * s.n_head_kv);
    }
    index.front() = 0;
    index.back()  = s.n_cells * s.n_head_kv - 1;

    headkv_gather gather(path);
    gather.add(buft, s.n_rows / 2);
    gather.add(buft, s.n_rows);
    gather.prepare();

    gather.set_index(std::vector<int32_t>(s.n_rows, 0));
    gather.rows(dst[0], src[0], row_size);
    gather.set_index(index);

    for (int i = 0; i < 2; ++i) {
        const auto way = gather.rows(dst[i], src[i], row_size);

        const bool host  = ggml_backend_buft_is_host(buft);
        const bool graph = s.words && (path == headkv_gather::GRAPH || (path == headkv_gather::AUTO && !host));
        const bool plain = path == headkv_gather::AUTO && host;
        check(way == (graph   ? headkv_gather::GRAPH
                      : plain ? headkv_gather::AUTO
                              : headkv_gather::STAGED),
              "path", where, s);

        std::vector<uint8_t> wanted(ggml_nbytes(dst[i])), found(ggml_nbytes(dst[i]));
        for (size_t r = 0; r < index.size(); ++r) {
            memcpy(wanted.data() + r * row_size, bytes[i].data() + index[r] * row_size, row_size);
        }
        ggml_backend_tensor_get(dst[i], found.data(), 0, found.size());
        check(found == wanted, "bytes", where, s);

        std::vector<uint8_t> after(bytes[i].size());
        ggml_backend_tensor_get(src[i], after.data(), 0, after.size());
        check(after == bytes[i], "source", where, s);
    }
}

// rows at the places that were asked for, in any order, some twice
static void test_fetch(const shape & s, ggml_backend_buffer_type_t buft, std::mt19937 & rng) {
    const char * where      = ggml_backend_buft_name(buft);
    const size_t row_size   = ggml_row_size(s.type, s.d_head);
    const size_t n_in_src   = s.n_cells * s.n_head_kv;
    const size_t n_mebibyte = 1024 * 1024 / row_size;

    headkv_buffers bufs(1);
    ggml_tensor * src = bufs.new_tensor(buft, s.type, s.d_head * s.n_head_kv, s.n_cells, "src", 0);
    bufs.alloc();

    std::vector<uint8_t> bytes(ggml_nbytes(src));
    for (auto & b : bytes) {
        b = rng();
    }
    ggml_backend_tensor_set(src, bytes.data(), 0, bytes.size());

    std::vector<headkv_fetched> rows;
    std::vector<uint8_t> wanted(s.n_rows * row_size), found(wanted.size());
    for (size_t i = 0; i < (size_t) s.n_rows; ++i) {
        rows.push_back({ i == 1 ? n_in_src - 1 : rng() % n_in_src, i });
        memcpy(&wanted[i * row_size], &bytes[rows.back().from * row_size], row_size);
    }
    other_memory::n_copies = 0;
    headkv_fetch(src, row_size, rows,
                 [&](size_t to, const uint8_t * row) { memcpy(&found[to * row_size], row, row_size); });
    check(found == wanted, "fetched bytes", where, s);
    check(other_memory::n_copies <= (int) (n_in_src / n_mebibyte) + 1, "number of copies", where, s);

    headkv_fetch(src, row_size, {}, [&](size_t, const uint8_t *) { check(false, "no rows", where, s); });
}

// a device without room for the index tensor must say so, before anything was moved
static void test_no_memory(ggml_backend_buffer_type_t buft) {
    headkv_gather gather(headkv_gather::GRAPH);
    gather.add(buft, (int64_t) 1 << 50);

    int32_t code = HEADKV_OK;
    try {
        gather.prepare();
    } catch (const headkv_error & err) {
        code = err.code;
    }
    check(code == HEADKV_ERR_MEMORY, "no memory", ggml_backend_buft_name(buft), {});
}

int main(int argc, char ** argv) {
    has_gpu_option(argc, argv);

    std::mt19937 rng(1);

    std::vector<ggml_backend_buffer_type_t> bufts = { ggml_backend_cpu_buffer_type() };
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);
        if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_GPU) {
            bufts.push_back(ggml_backend_dev_buffer_type(dev));
        }
    }

    const std::vector<shape> shapes = {
        { GGML_TYPE_F16, 64, 3, 300, 133, true },
        { GGML_TYPE_F16, 80, 8, 300, 700, true },
        { GGML_TYPE_F16, 128, 8, 1000, 1024, true },
        { GGML_TYPE_F16, 128, 1, 2, 1, true },
        { GGML_TYPE_F32, 80, 2, 100, 50, true },
        { GGML_TYPE_BF16, 96, 2, 100, 50, true },
        { GGML_TYPE_Q8_0, 64, 3, 300, 133, true }, // rows of 68 bytes
        { GGML_TYPE_Q8_0, 128, 8, 1000, 1024, true },
        { GGML_TYPE_Q8_0, 96, 4, 300, 133, false }, // 102 bytes
        { GGML_TYPE_Q8_0, 32, 4, 300, 133, false }, // 34 bytes
        { GGML_TYPE_Q4_0, 64, 3, 300, 133, true },  // 36 bytes
        { GGML_TYPE_Q4_0, 128, 8, 1000, 1024, true },
        { GGML_TYPE_Q4_0, 96, 4, 300, 133, false }, // 54 bytes
        { GGML_TYPE_F16, 65, 4, 300, 133, false },  // 130 bytes
        { GGML_TYPE_Q5_1, 128, 8, 300, 133, true },
        { GGML_TYPE_Q4_0, 64, 8, 20000, 100000, true }, // more rows than 16 bits count
    };

    for (const auto & buft : bufts) {
        for (const auto & s : shapes) {
            for (const auto path : { headkv_gather::AUTO, headkv_gather::GRAPH, headkv_gather::STAGED }) {
                test(s, buft, path, rng);
            }
        }
        test_no_memory(buft);
    }

    const other_memory other;
    bufts.push_back((ggml_backend_buffer_type_t) &other.type);
    for (const auto & buft : bufts) {
        for (const auto & s : shapes) {
            test_fetch(s, buft, rng);
        }
    }

    printf("%zu buffer types, %d passed, %d failed\n", bufts.size(), n_run - n_fail, n_fail);
    return n_fail ? 1 : 0;
}
