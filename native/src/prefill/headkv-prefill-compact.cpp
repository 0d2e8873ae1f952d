// A prompt that was read becomes kept rows and a tail.

#include "base/headkv-error.h"
#include "llama-context.h"
#include "prefill/headkv-prefill.h"

#include <algorithm>
#include <numeric>

std::vector<headkv_kept::positions> llama_kv_cache_headkv::reading::choose(const headkv_plan & plan) const {
    std::vector<uint32_t> cell(n_prompt);
    std::iota(cell.begin(), cell.end(), 0);

    if (!kv.has_record(n_prompt)) {
        throw headkv_error(HEADKV_ERR_INTERNAL, "not all observed tokens were recorded");
    }
    return headkv_choose(*kv.obs, kv.shapes, cell, plan, std::max(1, ctx.get_cparams().n_threads));
}

// of rows in the archive
std::unique_ptr<headkv_kept_prompt>
llama_kv_cache_headkv::reading::gather(std::vector<headkv_kept::positions> keep) const {
    auto res = kv.make_kept(std::move(keep), n_prompt, plan.window);
    for (size_t ikv = 0; ikv < res->layers.size(); ++ikv) {
        res->layers[ikv]->fill(*archive, ikv);
    }
    return res;
}

// cells of the prompt's window, which begins at p0, and of what comes behind it
std::unique_ptr<llama_kv_cache> llama_kv_cache_headkv::reading::make_tail(uint32_t p0, uint32_t n_cells) const {
    auto res = kv.make_cells(n_cells);
    for (size_t ikv = 0; ikv < kv.shapes.size(); ++ikv) {
        archive->get(ikv, kv.cells_in(*res, ikv).k, kv.cells_in(*res, ikv).v, 0, p0, plan.window);
    }
    set_places(*res, p0, { exts.begin() + p0, exts.end() });
    return res;
}

void llama_kv_cache_headkv::reading::compact() {
    const uint32_t n_threads = std::max(1, ctx.get_cparams().n_threads);

    if (in_cells) {
        if (!keeps_all) {
            kv.compact(plan, n_threads, t_select_us);
        }
        begun = false;
        return;
    }

    auto keep                     = choose(plan);
    const int64_t t_select_end_us = ggml_time_us();
    {
        const std::lock_guard<std::mutex> lock(kv.mutex);
        kv.obs.reset();
    }
    hidden.free(); // before kept rows come

    auto next = gather(std::move(keep));

    // the rows of the whole prompt go before cells for new ones come
    std::unique_ptr<llama_kv_cache> room;
    {
        const std::lock_guard<std::mutex> lock(kv.mutex);
        kv.update_peak(next->size() + n_bytes_aside());
        kv.swap_cells(*cells);
        room = std::move(cells);
    }
    room.reset();
    kv.epoch++;

    auto tail = make_tail(next->end, kv.tail_cells(plan.window, next->end));

    {
        const std::lock_guard<std::mutex> lock(kv.mutex);
        kv.update_peak(next->size() + size_of(*tail) + n_bytes_aside());
    }
    if (!kv.archive) {
        exts.clear();
        at_end.reset();
    }

    // nothing can fail from here on

    begun   = false;
    kv.read = nullptr;
    kept.reset();
    kv.commit(std::move(next), std::move(tail), std::move(exts), std::move(at_end), t_select_us, t_select_end_us);
}
