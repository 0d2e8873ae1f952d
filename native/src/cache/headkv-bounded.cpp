#include "cache/headkv-bounded.h"

#include "cache/llama-kv-cache-headkv.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"

#include "ggml-backend.h"

#include <utility>

headkv_bounded::headkv_bounded(llama_memory_i * mem, bool rows) {
    if (auto * iswa = dynamic_cast<llama_kv_cache_iswa *>(mem)) {
        window = iswa->get_swa();
    } else if (auto * hybrid = dynamic_cast<llama_memory_hybrid *>(mem)) {
        recurrent = hybrid->get_mem_recr();
    } else if (auto * hybrid = dynamic_cast<llama_memory_hybrid_iswa *>(mem)) {
        window    = hybrid->get_mem_attn()->get_swa();
        recurrent = hybrid->get_mem_recr();
    }
    if (window) {
        window_cells = llama_kv_cache_headkv::cells_of(*window);
        window_heads = llama_kv_cache_headkv::heads_of(*window);
    }
    if (recurrent) {
        cells  = recurrent->cells;
        rs_idx = recurrent->rs_idx;
        head   = recurrent->head;
        used   = recurrent->used;
        n      = recurrent->n;
        rs_z   = recurrent->rs_z;
    }
    if (!rows) {
        return;
    }
    size_t size = 0;
    each_tensor([&](const ggml_tensor * t) { size += ggml_nbytes(t); });
    auto held    = std::make_shared<std::vector<uint8_t>>(size);
    uint8_t * to = held->data();
    each_tensor([&](const ggml_tensor * t) {
        ggml_backend_tensor_get(t, to, 0, ggml_nbytes(t));
        to += ggml_nbytes(t);
    });
    bytes = std::move(held);
}

template <typename F>
void headkv_bounded::each_tensor(F && f) const {
    if (window) {
        llama_kv_cache_headkv::each_tensor_of(*window, f);
    }
    if (recurrent) {
        for (const auto * tensors : { &recurrent->r_l, &recurrent->s_l, &recurrent->p_l }) {
            for (ggml_tensor * t : *tensors) {
                if (t) {
                    f(t);
                }
            }
        }
    }
}

std::vector<ggml_tensor *> headkv_bounded::tensors(size_t & n_window) const {
    std::vector<ggml_tensor *> res;
    each_tensor([&](ggml_tensor * t) { res.push_back(t); });
    n_window = 0;
    if (window) {
        llama_kv_cache_headkv::each_tensor_of(*window, [&](ggml_tensor *) { n_window++; });
    }
    return res;
}

void headkv_bounded::put_back_places() const {
    headkv_bounded places = *this; // what can fail, first
    places.bytes.reset();
    places.put_back();
}

void headkv_bounded::put_back() noexcept {
    if (window) {
        std::swap(llama_kv_cache_headkv::cells_of(*window), window_cells);
        std::swap(llama_kv_cache_headkv::heads_of(*window), window_heads);
    }
    if (recurrent) {
        std::swap(recurrent->cells, cells);
        std::swap(recurrent->rs_idx, rs_idx);
        recurrent->head = head;
        recurrent->used = used;
        recurrent->n    = n;
        recurrent->rs_z = rs_z;
    }
    if (bytes) {
        const uint8_t * from = bytes->data();
        each_tensor([&](ggml_tensor * t) {
            ggml_backend_tensor_set(t, from, 0, ggml_nbytes(t));
            from += ggml_nbytes(t);
        });
    }
}

void headkv_bounded::clear() const {
    if (window) {
        window->clear(false);
    }
    if (recurrent) {
        recurrent->clear(false);
    }
}

void headkv_bounded::free_lost() const {
    if (window) {
        llama_kv_cache_headkv::free_lost(*window);
    }
}

int32_t headkv_bounded::layer_read_by(int32_t il) const {
    return window ? llama_kv_cache_headkv::layer_read_in(*window, il) : -1;
}

bool headkv_bounded::reaches(llama_pos n) const {
    if (recurrent && recurrent->seq_pos_max(0) >= n) {
        return false;
    }
    if (!window || n <= 0) {
        return true;
    }
    const llama_pos first = window->seq_pos_min(0); // -1 where all was taken back
    return first == 0 || (first > 0 && llama_kv_cache_headkv::hides(*window, first - 1, n));
}

//
// of what stands beside the cache
//

void llama_kv_cache_headkv::free_lost(llama_kv_cache & kv) {
    for (auto & cells : kv.v_cells) {
        for (uint32_t i = 0; i < cells.size(); ++i) {
            if (!cells.is_empty(i) && cells.seq_count(i) == 0) {
                cells.rm(i);
            }
        }
    }
}

bool llama_kv_cache_headkv::put_back_end(llama_pos p0) {
    const bool is_end = kept && archived_end && archived.size() == kept->n_prompt && p0 == (llama_pos) archived.size();
    if (!is_end || seq_pos_max(0) < p0) {
        return true;
    }
    try {
        headkv_bounded end = *archived_end; // a copy, since it may be asked for again
        wait();
        end.put_back();
        epoch++;
        return true;
    } catch (const std::bad_alloc &) {
        return false;
    }
}

int32_t llama_kv_cache_headkv::layer_read_in(const llama_kv_cache & kv, int32_t il) {
    const auto it = kv.map_layer_ids.find(il);
    return it == kv.map_layer_ids.end() ? -1 : (int32_t) kv.layers[it->second].il;
}
