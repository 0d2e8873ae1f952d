// What other threads may ask the cache for.

#include "base/headkv-error.h"
#include "base/headkv-guard.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-impl.h"

#include <algorithm>

void llama_kv_cache_headkv::get_mask(uint8_t * mask, size_t n) const {
    const std::lock_guard<std::mutex> lock(mutex);

    const headkv_kept_prompt & shown = require_kept();
    headkv_require_length(n, n_heads * shown.n_prompt);

    std::fill(mask, mask + n, 0);
    for (const auto & layer : shown.layers) {
        for (const auto & positions : layer->get_keep()) {
            for (const int32_t p : positions) {
                mask[p] = 1;
            }
            std::fill(mask + shown.end, mask + shown.n_prompt, 1);
            mask += shown.n_prompt;
        }
    }
}

headkv_stats llama_kv_cache_headkv::get_stats(int32_t * per_head, size_t n) const {
    const std::lock_guard<std::mutex> lock(mutex);

    const headkv_kept_prompt * shown = get_shown();
    const uint32_t n_window          = shown ? shown->n_prompt - shown->end : 0;

    if (per_head) {
        headkv_require_length(n, n_heads);
        std::fill(per_head, per_head + n, 0);
    }
    if (per_head && shown) {
        for (const auto & layer : shown->layers) {
            for (const auto & positions : layer->get_keep()) {
                *per_head++ = positions.size() + n_window;
            }
        }
    }

    headkv_stats res;
    res.n_layer      = shapes.size();
    res.n_head_kv    = n_heads;
    res.n_ctx        = n_ctx;
    res.n_tokens     = n_drafted > 0 ? n_drafted : n_cells + (shown ? shown->end : 0);
    res.n_prompt     = shown ? shown->n_prompt : 0;
    res.n_kept       = shown ? shown->n_rows() + n_heads * n_window : 0;
    res.bytes_full   = bytes_full;
    res.bytes_cells  = size_of(*this);
    res.bytes_kept   = shown ? shown->size() : 0;
    res.bytes_record = n_bytes_recorded();
    res.bytes_peak   = bytes_peak;
    res.t_select_us  = t_select_us;
    res.t_compact_us = t_compact_us;
    res.n_splits     = n_splits;

    res.n_archived    = shown ? archived.size() : 0;
    res.bytes_archive = archive ? archive->size() : 0;
    return res;
}

const headkv_kept_prompt & llama_kv_cache_headkv::require_kept() const {
    const headkv_kept_prompt * shown = get_shown();
    if (!shown) {
        throw headkv_error(HEADKV_ERR_STATE, "the cache is not compacted");
    }
    return *shown;
}

void llama_kv_cache_headkv::count_cells() {
    const std::lock_guard<std::mutex> lock(mutex);
    n_cells = n_used();
}

size_t llama_kv_cache_headkv::n_bytes_recorded() const {
    return (obs ? obs->size() : 0) + (queries ? queries->get_buffers().size() : 0);
}

void llama_kv_cache_headkv::update_peak(size_t extra) {
    const size_t now = size_of(*this) + (kept ? kept->size() : 0) + n_bytes_recorded() + extra;

    bytes_peak = std::max(bytes_peak, now);
}

std::map<ggml_backend_buffer_type_t, size_t> llama_kv_cache_headkv::memory_breakdown() const {
    const std::lock_guard<std::mutex> lock(mutex);

    auto res = llama_kv_cache::memory_breakdown();
    if (kept) {
        kept->add_breakdown(res);
    }
    if (obs) {
        obs->add_breakdown(res);
    }
    if (queries) {
        queries->get_buffers().add_breakdown(res);
    }
    return res;
}
