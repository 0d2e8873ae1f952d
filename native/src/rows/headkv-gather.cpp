#include "rows/headkv-gather.h"

#include "base/headkv-error.h"
#include "llama-impl.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>

void headkv_gather::add(ggml_backend_buffer_type_t buft, int64_t n_rows) {
    if (path == STAGED || (path == AUTO && ggml_backend_buft_is_host(buft))) {
        return;
    }
    auto & dev = devices[buft];
    dev.n_rows = std::max(dev.n_rows, n_rows);
}

void headkv_gather::prepare() {
    bufs = std::make_unique<headkv_buffers>(devices.size());

    for (auto & [buft, dev] : devices) {
        ggml_backend_dev_t where = ggml_backend_buft_get_device(buft);

        // buffer types of no device of their own are the CPU's
        where = where ? where : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);

        dev.backend.reset(ggml_backend_dev_init(where, nullptr));
        if (!dev.backend) {
            throw headkv_error(HEADKV_ERR_MEMORY, format("no memory for a stream of work on %s to move rows with",
                                                         ggml_backend_dev_name(where)));
        }
        dev.index = bufs->new_tensor(buft, GGML_TYPE_I32, dev.n_rows, 1, "index", 0);
    }

    bufs->alloc();
}

// a tensor of another type and shape over the bytes of t
static void alias(ggml_tensor * dst, const ggml_tensor * t) {
    ggml_backend_tensor_alloc(t->buffer, dst, t->data);
}

// A row as 32-bit integers: get_rows copies those unchanged, for floats and blocks of any type alike.
// false: the backend cannot do it, and nothing was done.
bool headkv_gather::graph(device & dev, ggml_tensor * dst, const ggml_tensor * src, size_t row_size) {
    if (!dev.backend || row_size % sizeof(int32_t) != 0) {
        return false;
    }

    const int64_t n_words = row_size / sizeof(int32_t);
    const int64_t n_rows  = index.size();

    constexpr size_t n_tensors = 3;

    const ggml_init_params params = {
        /*.mem_size   =*/n_tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_tensors, false),
        /*.mem_buffer =*/nullptr,
        /*.no_alloc   =*/true,
    };
    ggml_context_ptr ctx_ptr(ggml_init(params));
    ggml_context * ctx = ctx_ptr.get();

    ggml_tensor * all  = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, n_words, ggml_nbytes(src) / row_size);
    ggml_tensor * head = ggml_view_1d(ctx, dev.index, n_rows, 0);
    ggml_tensor * kept = ggml_get_rows(ctx, all, head);

    alias(all, src);
    alias(kept, dst); // the node's result is the tensor of kept rows itself
    ggml_backend_view_init(head);

    if (!ggml_backend_supports_op(dev.backend.get(), kept)) {
        return false;
    }

    if (!dev.sent) {
        ggml_backend_tensor_set(dev.index, index.data(), 0, n_rows * sizeof(int32_t));
        dev.sent = true;
    }

    ggml_cgraph * gf = ggml_new_graph_custom(ctx, n_tensors, false);
    ggml_build_forward_expand(gf, kept);

    const ggml_status status = ggml_backend_graph_compute(dev.backend.get(), gf);
    if (status != GGML_STATUS_SUCCESS) {
        throw headkv_error(status == GGML_STATUS_ALLOC_FAILED ? HEADKV_ERR_MEMORY : HEADKV_ERR_INTERNAL,
                           format("rows could not be moved on %s: %s", ggml_backend_name(dev.backend.get()),
                                  ggml_status_to_string(status)));
    }
    return true;
}

void headkv_gather::set_index(std::vector<int32_t> next) {
    index = std::move(next);
    for (auto & [_, dev] : devices) {
        dev.sent = false;
    }
}

headkv_gather::path_t headkv_gather::rows(ggml_tensor * dst, const ggml_tensor * src, size_t row_size) {
    GGML_ASSERT(ggml_is_contiguous(dst) && ggml_is_contiguous(src));
    GGML_ASSERT(ggml_nbytes(dst) == index.size() * row_size && ggml_nbytes(src) % row_size == 0);

    const auto dev = devices.find(ggml_backend_buffer_get_type(src->buffer));
    if (dev != devices.end() && ggml_backend_buffer_get_type(dst->buffer) == dev->first &&
        graph(dev->second, dst, src, row_size)) {
        return GRAPH;
    }

    const bool host =
        path == AUTO && ggml_backend_buffer_is_host(src->buffer) && ggml_backend_buffer_is_host(dst->buffer);

    std::vector<uint8_t> from, to;
    if (!host) {
        from.resize(ggml_nbytes(src));
        to.resize(ggml_nbytes(dst));
        ggml_backend_tensor_get(src, from.data(), 0, from.size());
    }

    const uint8_t * rows_src = host ? (const uint8_t *) src->data : from.data();
    uint8_t * rows_dst       = host ? (uint8_t *) dst->data : to.data();
    for (size_t i = 0; i < index.size(); ++i) {
        memcpy(rows_dst + i * row_size, rows_src + (size_t) index[i] * row_size, row_size);
    }

    if (!host) {
        ggml_backend_tensor_set(dst, to.data(), 0, to.size());
    }

    return host ? AUTO : STAGED;
}
