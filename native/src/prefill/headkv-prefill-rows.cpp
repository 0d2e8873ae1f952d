// Cells for the slices of layers, and their rows on the way to the archive and back.

#include "prefill/headkv-prefill.h"

#include <algorithm>

// with places for the tokens whose rows are in the archive
std::unique_ptr<llama_kv_cache> llama_kv_cache_headkv::reading::make_room() const {
    const uint32_t n_cells = std::min<uint32_t>(kv.n_ctx, GGML_PAD(n_prompt + n_piece, 256));

    auto res =
        prompt.order == HEADKV_ORDER_LAYERS ? kv.make_cells_by(n_cells, slices, n_rooms) : kv.make_cells(n_cells);
    set_places(*res, 0, exts);
    return res;
}

void llama_kv_cache_headkv::reading::load(size_t i, uint32_t n, bool with_v) {
    if (i >= slices.size()) {
        return;
    }
    loaded[i] = rows->add([this, i, n, with_v]() {
        for (size_t ikv = 0; ikv < kv.shapes.size(); ++ikv) {
            const auto & layer = kv.cells_in(kv, ikv);
            if (!slices[i].holds(layer.il)) {
                continue;
            }
            ggml_tensor * v = with_v ? layer.v : nullptr;
            if (n > 0) {
                archive->get(ikv, layer.k, v, 0, 0, n);
            }
            for (ggml_tensor * t : { layer.k, v }) { // what other layers have left in cells to come is masked,
                if (t && !slices[i].is_whole()) {    // but need not be numbers of this one's type
                    const size_t held = n * t->nb[1];
                    ggml_backend_tensor_memset(t, 0, held, ggml_nbytes(t) - held);
                }
            }
        }
    });
}

void llama_kv_cache_headkv::reading::store(size_t i, const panel & p) {
    if (!p.keep && p.output) { // the last ones of what is read once more: nothing looks at them
        return;
    }
    rows->add([this, i, p]() {
        for (size_t ikv = 0; ikv < kv.shapes.size(); ++ikv) {
            const auto & layer = kv.cells_in(kv, ikv);
            if (slices[i].holds(layer.il)) {
                archive->put(ikv, layer.k, layer.v, p.p0, p.p0, p.n);
            }
        }
    });
}
