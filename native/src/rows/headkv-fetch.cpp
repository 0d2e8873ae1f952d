#include "rows/headkv-fetch.h"

#include <algorithm>

static constexpr size_t n_block_bytes = 1024 * 1024;

void headkv_fetch(const ggml_tensor * t, size_t row_size, const std::vector<headkv_fetched> & wanted,
                  const std::function<void(size_t to, const uint8_t * row)> & take) {
    GGML_ASSERT(ggml_is_contiguous(t) && ggml_nbytes(t) % row_size == 0);

    if (ggml_backend_buffer_is_host(t->buffer)) {
        for (const auto & row : wanted) {
            take(row.to, (const uint8_t *) t->data + row.from * row_size);
        }
        return;
    }

    std::vector<headkv_fetched> rows = wanted;
    std::sort(rows.begin(), rows.end(), [](const auto & a, const auto & b) { return a.from < b.from; });

    const size_t n_block = std::max<size_t>(1, n_block_bytes / row_size);
    std::vector<uint8_t> block;
    for (auto first = rows.begin(), end = first; first != rows.end(); first = end) {
        end = std::find_if(first, rows.end(), [&](const auto & row) { return row.from - first->from >= n_block; });
        block.resize((std::prev(end)->from - first->from + 1) * row_size);
        ggml_backend_tensor_get(t, block.data(), first->from * row_size, block.size());
        for (auto row = first; row != end; ++row) {
            take(row->to, block.data() + (row->from - first->from) * row_size);
        }
    }
}
