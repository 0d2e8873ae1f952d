// The rows of a slice of layers between its cells and the archive.

#include "prefill/headkv-prefill.h"

void llama_kv_cache_headkv::reading::load(size_t i, uint32_t n) {
    if (i >= slices.size()) {
        return;
    }
    loaded[i] = rows->add([this, i, n]() {
        for (size_t ikv = 0; ikv < kv.layers.size(); ++ikv) {
            const auto & layer = kv.layers[ikv];
            if (!slices[i].holds(layer.il)) {
                continue;
            }
            if (n > 0) {
                archive->get(ikv, layer.k, layer.v, 0, 0, n);
            }
            for (ggml_tensor * t : { layer.k, layer.v }) { // what other layers have left in cells to come is masked,
                const size_t held = n * t->nb[1];          // but need not be numbers of this one's type
                if (!slices[i].is_whole()) {
                    ggml_backend_tensor_memset(t, 0, held, ggml_nbytes(t) - held);
                }
            }
        }
    });
}

void llama_kv_cache_headkv::reading::store(size_t i, const panel & p) {
    rows->add([this, i, p]() {
        for (size_t ikv = 0; ikv < kv.layers.size(); ++ikv) {
            const auto & layer = kv.layers[ikv];
            if (slices[i].holds(layer.il)) {
                archive->put(ikv, layer.k, layer.v, p.p0, p.p0, p.n);
            }
        }
    });
}
