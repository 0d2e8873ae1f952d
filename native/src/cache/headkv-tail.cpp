// The tail after a prompt: which of its tokens' queries are recorded, and how it becomes a part of the prompt.

#include "base/headkv-error.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "select/headkv-fold.h"

void llama_kv_cache_headkv::observe_tail(int32_t first, int32_t n) {
    if (first < (int32_t) (kept_end() + n_used())) {
        throw headkv_error(HEADKV_ERR_STATE, format("the token at position %d is decoded already: what it asks for can "
                                                    "be recorded of those to come only",
                                                    first));
    }
    auto next = make_queries(first, n);
    {
        const std::lock_guard<std::mutex> lock(mutex);
        queries = std::move(next);
    }
    epoch++;
}

std::unique_ptr<headkv_queries> llama_kv_cache_headkv::make_queries(llama_pos first, uint32_t n) const {
    std::map<int32_t, headkv_layer_shape> asked;
    for (const auto & [il, ikv] : readers) {
        asked.emplace(il, shapes[ikv]);
    }
    return std::make_unique<headkv_queries>(asked, first, n);
}

// what heads have kept where nothing is compacted
static std::vector<headkv_kept::positions> nothing_kept(const std::vector<headkv_layer_shape> & shapes) {
    std::vector<headkv_kept::positions> res;
    for (const auto & shape : shapes) {
        res.emplace_back(shape.n_head_kv);
    }
    return res;
}

void llama_kv_cache_headkv::fold(const headkv_plan & plan, uint32_t n_threads) {
    const uint32_t n_all = kept_end() + n_used();

    require_no_shift();
    headkv_check(plan, shapes, n_all);
    if (plan.window > (int32_t) n_used()) { // rows before these are not of all heads
        throw headkv_error(HEADKV_ERR_STATE,
                           format("the last %u tokens are whole, fewer than the window of %d", n_used(), plan.window));
    }
    if (!queries || !queries->covers(n_all, plan.window)) {
        throw headkv_error(HEADKV_ERR_STATE, kept
                                                 ? "the cache is compacted already, and the queries of the last tokens "
                                                   "after it are not recorded"
                                                 : "the queries of the last tokens are not recorded");
    }

    const int64_t t_start_us = ggml_time_us();

    // a prompt that is whole has all of it in cells
    const auto whole = kept ? nullptr : make_kept(nothing_kept(shapes), 0, 0);
    const auto & now = kept ? *kept : *whole;
    const auto cell  = get_prompt_cells(now.end);

    std::vector<headkv_fold_layer> from;
    for (size_t ikv = 0; ikv < shapes.size(); ++ikv) {
        from.push_back({ shapes[ikv], *now.layers[ikv], cells_in(*this, ikv).k, cells_in(*this, ikv).v, {} });
    }
    for (const auto & [il, ikv] : readers) {
        const auto & layer = queries->get_layers().at(il);
        from[ikv].readers.push_back(&layer);
    }
    const headkv_fold_prompt prompt = { now.end, cell, queries->get_first(), queries->get_n() };

    auto keep = headkv_choose_again(from, prompt, plan, n_threads);

    const int64_t t_select_end_us = ggml_time_us();

    auto next = make_kept(std::move(keep), n_all, plan.window);
    for (size_t ikv = 0; ikv < shapes.size(); ++ikv) {
        headkv_fill_again(*next->layers[ikv], from[ikv], prompt);
    }
    auto tail = make_cells(tail_cells(plan.window, next->end));
    copy_cells(*tail, cell, next->end);

    {
        const std::lock_guard<std::mutex> lock(mutex);
        update_peak(next->size() + size_of(*tail));
    }

    // what the archive gets is what was computed: over the entries that were kept
    std::vector<llama_kv_cell_ext> exts;
    auto at_end = archive_behind(cell, exts);

    commit(std::move(next), std::move(tail), std::move(exts), std::move(at_end), t_start_us, t_select_end_us);
}
