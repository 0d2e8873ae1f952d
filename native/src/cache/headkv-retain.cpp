// What headkv.h asks of the cache: room, an archive, what to record, and compaction.

#include "base/headkv-error.h"
#include "base/headkv-guard.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-impl.h"

#include <algorithm>
#include <limits>

void llama_kv_cache_headkv::expect(int32_t n) {
    if (n < 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("a prompt cannot have %d tokens", n));
    }
    if (n > (int32_t) n_ctx) {
        throw headkv_error(HEADKV_ERR_STATE, format("the context has %u positions, not %d", n_ctx, n));
    }
    if (kept) {
        throw headkv_error(HEADKV_ERR_STATE, "the cache is compacted: clear it before it gets room for another prompt");
    }

    const uint32_t before = n_expected;
    n_expected            = n;
    try {
        grow(0);
    } catch (...) {
        n_expected = before;
        throw;
    }
}

void llama_kv_cache_headkv::set_archive(int32_t where, const char * path) {
    if (where < HEADKV_ARCHIVE_NONE || where > HEADKV_ARCHIVE_FILE) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("there is no kind of archive %d", where));
    }
    std::unique_ptr<headkv_archive> next;
    if (where == HEADKV_ARCHIVE_FILE) {
        headkv_require_pointer(path);
        if (!*path) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, "the archive's file has no name");
        }
        next = std::make_unique<headkv_archive>(shapes, path);
    } else if (where == HEADKV_ARCHIVE_MEMORY) {
        next = std::make_unique<headkv_archive>(shapes, nullptr);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    archive = std::move(next);
    archived.clear();
    archived_end.reset();
    held.clear();
}

void llama_kv_cache_headkv::observe(int32_t what, int32_t first, int32_t n, const float * weights,
                                    std::vector<llama_pos> again) {
    if (what < HEADKV_OBSERVE_OFF || what > HEADKV_OBSERVE_TAIL) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("there is no kind of observation %d", what));
    }
    const bool is_range = what == HEADKV_OBSERVE_TOKENS || what == HEADKV_OBSERVE_TAIL;
    if (is_range && (first < 0 || n < 1 || n > (int32_t) n_ctx - first)) {
        throw headkv_error(
            HEADKV_ERR_ARGUMENT,
            format("%d tokens from position %d on cannot be observed in a context of %u", n, first, n_ctx));
    }
    if (what == HEADKV_OBSERVE_TAIL) {
        if (weights || !again.empty()) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, "tokens of a tail have no weights, and are not read once more");
        }
        observe_tail(first, n);
        return;
    }
    std::vector<float> weigh(what == HEADKV_OBSERVE_TOKENS ? n : 0, 1.0f);
    if (weights) {
        std::copy(weights, weights + weigh.size(), weigh.begin());
    }
    if (what == HEADKV_OBSERVE_TOKENS) {
        headkv_check_weights(weigh);
        headkv_check_again(again, n);
    }

    if (what == HEADKV_OBSERVE_OFF) {
        if (obs) {
            obs->on = false;
        }
        epoch++;
    } else if (kept) {
        throw headkv_error(HEADKV_ERR_STATE, "the cache is compacted: clear it before its rows are recorded");
    } else {
        grow(0);
        record_by(std::make_unique<headkv_observer>(what == HEADKV_OBSERVE_ROWS ? headkv_observer::ROWS
                                                                                : headkv_observer::TOKENS,
                                                    shapes, n_ctx, first, std::move(weigh), std::move(again)));
    }
}

void llama_kv_cache_headkv::record_by(std::unique_ptr<headkv_observer> next) {
    const std::lock_guard<std::mutex> lock(mutex);
    update_peak(next->size());
    obs = std::move(next);
    queries.reset();
    epoch++;
}

uint32_t llama_kv_cache_headkv::get_observe_limit(uint32_t n_kv) const {
    if (!obs || obs->get_mode() != headkv_observer::TOKENS) {
        throw headkv_error(HEADKV_ERR_STATE, "no tokens are observed");
    }
    return obs->at_once(std::clamp(n_kv, 1u, n_ctx));
}

std::vector<uint32_t> llama_kv_cache_headkv::get_prompt_cells(uint32_t p0) const {
    if (kept && p0 < kept->end) {
        throw headkv_error(HEADKV_ERR_STATE, "the cache is compacted: what was recorded of the prompt is gone");
    }
    if (!has_one_sequence()) {
        throw headkv_error(HEADKV_ERR_STATE, "the cache holds a copy of the sequence: take it out first");
    }
    const auto & cells = get_cells(0);

    std::vector<uint32_t> res(p0 + cells.get_used(), std::numeric_limits<uint32_t>::max());
    if (res.size() == p0) {
        throw headkv_error(HEADKV_ERR_STATE, "there is no prompt in the cache");
    }

    for (uint32_t i = 0; i < cells.size(); ++i) {
        if (cells.is_empty(i)) {
            continue;
        }
        const llama_pos p = cells.pos_get(i);
        if (p < (llama_pos) p0 || p >= (llama_pos) res.size()) {
            throw headkv_error(HEADKV_ERR_STATE, "the positions in the cache have gaps");
        }
        res[p] = i;
    }
    if (std::find(res.begin() + p0, res.end(), std::numeric_limits<uint32_t>::max()) != res.end()) {
        throw headkv_error(HEADKV_ERR_STATE, "several tokens in the cache have the same position");
    }

    return res;
}

void llama_kv_cache_headkv::compact(const headkv_plan & plan, uint32_t n_threads, int64_t t_start_us) {
    if (kept || queries) {
        fold(plan, n_threads);
        return;
    }

    auto next = make_compacted(plan, n_threads);
    {
        const std::lock_guard<std::mutex> lock(mutex);
        update_peak(next.kept->size() + size_of(*next.tail));
    }
    std::vector<llama_kv_cell_ext> exts;
    auto at_end = archive_behind(get_prompt_cells(), exts);
    commit(std::move(next.kept), std::move(next.tail), std::move(exts), std::move(at_end), t_start_us,
           next.t_select_end_us);
}

llama_kv_cache_headkv::compacted llama_kv_cache_headkv::make_compacted(const headkv_plan & plan,
                                                                       uint32_t n_threads) const {
    require_no_shift();

    const auto cell = get_prompt_cells();

    const uint32_t n_prompt = cell.size();
    const uint32_t n_window = plan.window;

    headkv_check(plan, shapes, n_prompt);
    if (!has_record(n_prompt)) {
        throw headkv_error(HEADKV_ERR_STATE,
                           "all tokens that are to be observed must be decoded, the prompt's last one "
                           "among them or after it, and none of the prompt be taken back since");
    }

    // select

    auto keep = headkv_choose(*obs, shapes, cell, plan, n_threads);

    // allocate

    const int64_t t_select_end_us = ggml_time_us();

    auto next = make_kept(std::move(keep), n_prompt, n_window);
    headkv_gather gather;
    for (const auto & layer : next->layers) {
        layer->add_to(gather);
    }
    gather.prepare();
    auto tail = make_cells(tail_cells(n_window, next->end));

    // copy

    for (size_t ikv = 0; ikv < shapes.size(); ++ikv) {
        next->layers[ikv]->fill(gather, cells_in(*this, ikv).k, cells_in(*this, ikv).v, cell);
    }
    copy_cells(*tail, cell, next->end);

    return { std::move(next), std::move(tail), t_select_end_us };
}

void llama_kv_cache_headkv::commit(std::unique_ptr<headkv_kept_prompt> next, std::unique_ptr<llama_kv_cache> tail,
                                   std::vector<llama_kv_cell_ext> exts, std::shared_ptr<const headkv_bounded> at_end,
                                   int64_t t_start_us, int64_t t_select_end_us) {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        n_cells = next->n_prompt - next->end;
        std::swap(kept, next);
        swap_cells(*tail);
        std::swap(archived, exts);
        archived_end = std::move(at_end);
        if (!archived.empty()) {
            archive->keep(archived.size());
        }
        obs.reset();
        queries.reset();
        t_select_us  = t_select_end_us - t_start_us;
        t_compact_us = ggml_time_us() - t_select_end_us;
    }
    epoch++;

    next.reset();
    tail.reset(); // by now what was there before
    fit_compute();

    const std::lock_guard<std::mutex> lock(mutex);
    t_compact_us = ggml_time_us() - t_select_end_us;
}

std::unique_ptr<headkv_kept_prompt> llama_kv_cache_headkv::make_kept(std::vector<headkv_kept::positions> keep,
                                                                     uint32_t n_prompt, uint32_t n_window) const {
    auto res      = std::make_unique<headkv_kept_prompt>();
    res->n_prompt = n_prompt;
    res->end      = n_prompt - n_window;
    for (size_t ikv = 0; ikv < shapes.size(); ++ikv) {
        for (auto & positions : keep[ikv]) {
            positions.resize(positions.size() - n_window); // the window stays in cells
        }
        res->layers.push_back(std::make_unique<headkv_kept>(shapes[ikv], std::move(keep[ikv])));
    }
    return res;
}

void llama_kv_cache_headkv::get_attention(float * w, size_t n) const {
    const auto cell = get_prompt_cells();
    if (!has_record(cell.size())) {
        throw headkv_error(HEADKV_ERR_STATE, "there is no complete record of the observed tokens' attention");
    }
    headkv_require_length(n, n_heads * cell.size());

    for (uint32_t ikv = 0; ikv < shapes.size(); ++ikv) {
        const std::vector<float> layer = headkv_read_attention(*obs, shapes, ikv, cell);
        w                              = std::copy(layer.begin(), layer.end(), w);
    }
}

void llama_kv_cache_headkv::get_rows(int32_t layer, float * w, size_t n) const {
    const auto cell = get_prompt_cells();
    if (!obs || obs->get_mode() != headkv_observer::ROWS || !obs->has_seen((llama_pos) cell.size() - 1)) {
        throw headkv_error(HEADKV_ERR_STATE, "the attention of the last token is not recorded");
    }
    if (layer < 0 || layer >= (int32_t) shapes.size()) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("there is no layer %d, there are %zu", layer, shapes.size()));
    }
    headkv_require_length(n, shapes[layer].n_head * cell.size());

    const std::vector<float> rows = obs->read(layer, cell);
    std::copy(rows.begin(), rows.end(), w);
}

bool llama_kv_cache_headkv::has_record(size_t n_prompt) const {
    return obs && obs->get_mode() == headkv_observer::TOKENS && obs->covers(n_prompt);
}
