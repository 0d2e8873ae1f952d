#include "observe/headkv-observer.h"

#include "llama-batch.h"
#include "llama-kv-cells.h"

#include "ggml-backend.h"
#include "ggml-headkv.h"

#include <algorithm>
#include <numeric>

// What observing a ubatch's tokens writes is at most that large: memory should not grow for the end of the prompt by
// more. On a device, where it is written by single ops, CUDA multiplies no more columns by K without a copy of K in
// F32.
static constexpr size_t n_bytes_max   = 32u * 1024 * 1024;
static constexpr size_t n_columns_max = 16;

headkv_observer::headkv_observer(mode mode, const std::vector<headkv_layer_shape> & shapes, uint32_t n_cells,
                                 llama_pos first, std::vector<float> weights, std::vector<llama_pos> again)
    : what(mode),
      range_first(first),
      range_weights(std::move(weights)),
      again_at(std::move(again)) {
    records.reserve(shapes.size());
    for (const auto & shape : shapes) {
        on_device  = on_device || !ggml_backend_buft_is_host(shape.buft);
        n_head_max = std::max(n_head_max, shape.n_head);
        records.emplace_back(shape, n_cells, what == ROWS);
    }
}

uint32_t headkv_observer::at_once(size_t n_kv) const {
    const size_t n_at_once = on_device ? 1 : GGML_HEADKV_RECORD_QUERIES;
    const size_t n_rows    = again_at.empty() ? n_head_max : std::max<size_t>(n_head_max, n_at_once); // or `far`
    const size_t n_in_room = n_bytes_max * n_at_once / (sizeof(float) * n_kv * n_rows);

    return std::clamp<size_t>(n_in_room, 1, on_device ? n_columns_max : std::numeric_limits<int32_t>::max());
}

uint32_t headkv_observer::limit(llama_pos p0, uint32_t n_max, size_t n_kv) const {
    if (!on || what == ROWS || p0 >= range_end()) {
        return n_max;
    }
    return std::min<size_t>(n_max, (size_t) std::max(0, range_first - p0) + at_once(n_kv));
}

bool headkv_observer::aim(const llama_ubatch & ubatch, const llama_kv_cells & cells) {
    if (!on) {
        return true;
    }
    const view before = std::move(aimed);
    aimed             = {};

    if (what == ROWS) {
        aimed.i0 = ubatch.n_tokens - 1;
        aimed.n  = 1;
        last     = ubatch.pos[aimed.i0];
        valid    = std::numeric_limits<llama_pos>::max(); // the row takes the place of all before
        n_tokens++;
        return before.n > 0 && before.i0 == aimed.i0;
    }

    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        const llama_pos p = place_in_range(ubatch.pos[i]);
        if (p < range_first || p >= range_end()) {
            continue;
        }
        aimed.i0 = aimed.pos.empty() ? i : aimed.i0;
        aimed.pos.push_back(ubatch.pos[i]);
        aimed.weights.push_back(range_weights[p - range_first]);
        aimed.copies.push_back(is_copy(p));
        last = std::max(last, p);
    }
    aimed.n   = aimed.pos.size();
    n_tokens += aimed.n;
    if (aimed.n == 0) {
        return before.n == 0;
    }
    aim_at(cells);
    return false;
}

void headkv_observer::aim_beside(llama_pos p0, std::vector<float> weights, const llama_kv_cells & cells) {
    aimed         = {};
    aimed.n       = weights.size();
    aimed.weights = std::move(weights);
    aimed.copies.assign(aimed.n, false);
    aimed.pos.resize(aimed.n);
    std::iota(aimed.pos.begin(), aimed.pos.end(), p0);
    aim_at(cells);
}

void headkv_observer::aim_at(const llama_kv_cells & cells) {
    const uint32_t n_used = cells.used_max_p1();
    const bool copies     = aimed.copies.back();
    const auto is_copied  = [&](llama_pos p) { return std::binary_search(again_at.begin(), again_at.end(), p); };
    const auto counts     = [&](uint32_t c) {
        return cells.is_empty(c) ||
               (cells.pos_get(c) <= aimed.pos.front() - headkv_gap && !(copies && is_copied(cells.pos_get(c))));
    };
    while (aimed.first + 1 < n_used && counts(aimed.first)) { // one is left: ops take no tensor without cells
        aimed.first++;
    }
    for (uint32_t c = aimed.first; c < n_used; ++c) {
        const llama_pos p = cells.is_empty(c) ? std::numeric_limits<llama_pos>::max() : cells.pos_get(c);
        aimed.cells.push_back(p);
        aimed.copied.push_back(copies && is_copied(p));
    }
}

headkv_record_inputs headkv_observer::build_inputs(ggml_context * ctx, uint32_t n_kv) {
    in = {};
    if (what == TOKENS && aims()) {
        in.weights = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, aimed.n * n_head_max);
        in.far     = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_kv - aimed.first, aimed.n);
        ggml_set_input(in.weights);
        ggml_set_input(in.far);
    }
    return in;
}

void headkv_observer::set_inputs(const headkv_record_inputs & in) const {
    if (!in.far || !in.far->buffer) { // not asked for, or no layer's attention passed by here
        return;
    }
    std::vector<float> weights(ggml_nelements(in.weights));
    for (size_t i = 0; i < weights.size(); ++i) {
        weights[i] = aimed.weights[i % aimed.n];
    }
    ggml_backend_tensor_set(in.weights, weights.data(), 0, ggml_nbytes(in.weights));

    const size_t n_cells = in.far->ne[0]; // with what of the cache is not in use, and not looked at

    std::vector<float> far(n_cells * aimed.n, 0.0f);
    for (uint32_t i = 0; i < aimed.n; ++i) {
        const llama_pos p = aimed.pos[i];
        std::transform(aimed.cells.begin(), aimed.cells.end(), aimed.copied.begin(), &far[i * n_cells],
                       [p, copy = (bool) aimed.copies[i]](llama_pos at, bool copied) {
                           const float weight = copy && copied ? headkv_copied : 1.0f;
                           return at <= p - headkv_gap ? weight : 0.0f;
                       });
    }
    ggml_backend_tensor_set(in.far, far.data(), 0, ggml_nbytes(in.far));
}

void headkv_observer::remove(llama_pos p0) {
    if (p0 <= last) {
        valid = std::min(valid, p0);
    }
}

bool headkv_observer::covers(uint32_t n_prompt) const {
    return n_tokens == range_weights.size() && last == range_end() - 1 && range_end() >= (llama_pos) n_prompt &&
           (llama_pos) n_prompt <= valid;
}

bool headkv_observer::counts() const {
    const size_t n_near = std::max(0, headkv_gap - range_first);

    return std::any_of(range_weights.begin() + std::min(n_near, range_weights.size()), range_weights.end(),
                       [](float weight) { return weight > 0.0f; });
}

std::vector<float> headkv_observer::read(uint32_t ikv, const std::vector<uint32_t> & cell) const {
    const size_t n_cells = 1 + *std::max_element(cell.begin(), cell.end());

    std::vector<float> record;
    records[ikv].read(n_cells, record);

    std::vector<float> res(record.size() / n_cells * cell.size());
    float * to = res.data();
    for (size_t row = 0; row < record.size(); row += n_cells) {
        to = std::transform(cell.begin(), cell.end(), to, [&](uint32_t c) { return record[row + c]; });
    }
    return res;
}

size_t headkv_observer::size() const {
    size_t res = 0;
    for (const auto & record : records) {
        res += record.get_buffers().size();
    }
    return res;
}

void headkv_observer::add_breakdown(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const {
    for (const auto & record : records) {
        record.get_buffers().add_breakdown(sizes);
    }
}
