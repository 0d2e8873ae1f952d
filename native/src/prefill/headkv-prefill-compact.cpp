// A prompt that was read becomes kept rows and a tail.

#include "base/headkv-error.h"
#include "llama-context.h"
#include "prefill/headkv-prefill.h"

#include <algorithm>
#include <numeric>

void llama_kv_cache_headkv::reading::compact() {
    const int64_t t_start_us = ggml_time_us();

    const uint32_t n_threads = std::max(1, ctx.get_cparams().n_threads);

    if (in_cells) {
        kv.compact(plan, n_threads);
        begun = false;
        return;
    }

    std::vector<uint32_t> cell(n_prompt);
    std::iota(cell.begin(), cell.end(), 0);

    if (!kv.has_record(n_prompt)) {
        throw headkv_error(HEADKV_ERR_INTERNAL, "not all observed tokens were recorded");
    }
    auto keep = headkv_choose(*kv.obs, kv.shapes, cell, plan, n_threads);
    {
        const std::lock_guard<std::mutex> lock(kv.mutex);
        kv.obs.reset();
    }
    hidden.free();

    const int64_t t_select_end_us = ggml_time_us();

    auto next = kv.make_kept(std::move(keep), n_prompt, plan.window);
    for (size_t ikv = 0; ikv < next->layers.size(); ++ikv) {
        next->layers[ikv]->fill(*archive, ikv);
    }

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

    auto tail = kv.make_cells(kv.tail_cells(plan.window, next->end));
    for (size_t ikv = 0; ikv < kv.layers.size(); ++ikv) {
        archive->get(ikv, tail->layers[ikv].k, tail->layers[ikv].v, 0, next->end, plan.window);
    }
    set_places(*tail, next->end, { exts.begin() + next->end, exts.end() });

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
    kv.commit(std::move(next), std::move(tail), std::move(exts), std::move(at_end), t_start_us, t_select_end_us);
}
