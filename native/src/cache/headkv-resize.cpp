// The same cache with another number of cells.

#include "base/headkv-error.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "rows/headkv-fetch.h"

#include <algorithm>
#include <cstring>

// a dormant cache has a multiple of so many cells, as long as the context has: the stock cache attends to as many at
// once
static constexpr uint32_t n_dormant_pad = 256;

// cells right after compaction; they double when they are full
static constexpr uint32_t n_tail_min = 128;

// The filters that this cache was made with may be gone; what they said is known.
std::unique_ptr<llama_kv_cache> llama_kv_cache_headkv::make_cells(uint32_t n_cells, const llama_hparams & hp) const {
    const auto holds = [&](int32_t il) { return map_layer_ids.count(il) > 0; };
    const auto reads = [&](int32_t il) {
        const int32_t of = holds(il) ? layer_read_by(il) : il;
        return of == il ? -1 : of;
    };
    if (is_shared()) {
        throw headkv_error(HEADKV_ERR_STATE,
                           "a draft model's context looks into this cache: its cells stay as they are");
    }
    try {
        return std::make_unique<llama_kv_cache>(model, hp, type_of_k, type_of_v, v_trans, offload,
                                                /*unified =*/true, n_cells, n_seq_max, n_pad, n_swa, swa_type, nullptr,
                                                holds, reads, nullptr);
    } catch (const std::exception &) {
        throw headkv_error(HEADKV_ERR_MEMORY, format("no memory for a KV cache of %u cells", n_cells));
    }
}

std::unique_ptr<llama_kv_cache> llama_kv_cache_headkv::make_cells(uint32_t n_cells) const {
    return make_cells(n_cells, hparams);
}

std::unique_ptr<llama_kv_cache>
llama_kv_cache_headkv::make_cells_by(uint32_t n_cells, const std::vector<headkv_slice> & slices, size_t n_rooms) const {
    if (!hparams_unallocated) {
        hparams_unallocated = std::make_unique<llama_hparams>(hparams);
    }
    hparams_unallocated->no_alloc = true;
    auto res                      = make_cells(n_cells, *hparams_unallocated);
    hparams_unallocated->no_alloc = false; // from here on its tensors are where they are

    for (auto & [ctx, buf] : res->ctxs_bufs) {
        ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(buf.get());
        const size_t alignment          = ggml_backend_buft_get_alignment(buft);

        // where the tensors of a layer begin, among those of its slice; at 0 those that no slice reads
        std::map<const ggml_tensor *, size_t> offsets;
        size_t size = 0;
        for (size_t room = 0; room < n_rooms; ++room) {
            size_t room_end = size;
            for (size_t i = room; i < slices.size(); i += n_rooms) {
                size_t end = size;
                for (const auto & layer : res->layers) {
                    if (!slices[i].holds(layer.il) || layer.k->buffer != buf.get()) {
                        continue;
                    }
                    for (const ggml_tensor * t : { layer.k, layer.v }) {
                        offsets[t]  = end;
                        end        += GGML_PAD(ggml_backend_buft_get_alloc_size(buft, t), alignment);
                    }
                }
                room_end = std::max(room_end, end);
            }
            size = room_end;
        }
        for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
            size = std::max(size, ggml_backend_buft_get_alloc_size(buft, t));
        }

        ggml_backend_buffer_ptr room(ggml_backend_buft_alloc_buffer(buft, size));
        if (!room) {
            throw headkv_error(HEADKV_ERR_MEMORY, format("no memory for %u cells of a layer", n_cells));
        }
        ggml_backend_buffer_clear(room.get(), 0);

        uint8_t * base = (uint8_t *) ggml_backend_buffer_get_base(room.get());
        for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
            t->buffer = nullptr;
            if (t->view_src) {
                ggml_backend_view_init(t);
            } else if (ggml_backend_tensor_alloc(room.get(), t, base + offsets[t]) != GGML_STATUS_SUCCESS) {
                throw headkv_error(HEADKV_ERR_MEMORY, "no memory for a layer's cells");
            }
        }
        buf = std::move(room);
    }
    return res;
}

void llama_kv_cache_headkv::swap_cells(llama_kv_cache & other) {
    GGML_ASSERT(map_layer_ids == other.map_layer_ids);

    std::swap(ctxs_bufs, other.ctxs_bufs);
    std::swap(v_heads, other.v_heads);
    std::swap(v_cells, other.v_cells); // a reference: what it refers to is exchanged
    std::swap(layers, other.layers);
}

// Rows of some cells, one after the other, into the first ones of other tensors of their shape.
static void copy_rows(const ggml_tensor * src, ggml_tensor * dst, const std::vector<uint32_t> & from) {
    const size_t size = src->nb[1];
    if (size == 0 || from.empty()) {
        return;
    }
    std::vector<headkv_fetched> rows;
    for (const uint32_t i : from) {
        rows.push_back({ i, rows.size() });
    }
    std::vector<uint8_t> all(rows.size() * size);
    headkv_fetch(src, size, rows, [&](size_t i, const uint8_t * row) { memcpy(&all[i * size], row, size); });
    ggml_backend_tensor_set(dst, all.data(), 0, all.size());
}

void llama_kv_cache_headkv::copy_cells(llama_kv_cache & to, const std::vector<uint32_t> & cell, uint32_t p0) const {
    const std::vector<uint32_t> from(cell.begin() + p0, cell.end());
    for (size_t ikv = 0; ikv < shapes.size(); ++ikv) {
        copy_rows(cells_in(*this, ikv).k, cells_in(to, ikv).k, from);
        copy_rows(cells_in(*this, ikv).v, cells_in(to, ikv).v, from);
    }
    std::vector<llama_kv_cell_ext> exts;
    for (const uint32_t i : from) {
        exts.push_back(v_cells[0].ext_get(i));
    }
    set_places(to, p0, exts);
}

void llama_kv_cache_headkv::set_places(llama_kv_cache & cells, uint32_t p0,
                                       const std::vector<llama_kv_cell_ext> & exts) {
    for (uint32_t i = 0; i < exts.size(); ++i) {
        cells.v_cells[0].pos_set(i, p0 + i);
        cells.v_cells[0].ext_set(i, exts[i]);
        cells.v_cells[0].seq_add(i, 0);
    }
    cells.v_heads[0] = exts.size();
}

void llama_kv_cache_headkv::archive_cells(headkv_archive & to, const std::vector<uint32_t> & cell, uint32_t p0,
                                          std::vector<llama_kv_cell_ext> & exts) const {
    for (uint32_t p = p0, n; p < cell.size(); p += n) { // cells one after the other at once
        for (n = 1; p + n < cell.size() && cell[p + n] == cell[p] + n; ++n) {}
        for (size_t ikv = 0; ikv < shapes.size(); ++ikv) {
            to.put(ikv, cells_in(*this, ikv).k, cells_in(*this, ikv).v, cell[p], p, n);
        }
    }
    for (uint32_t p = p0; p < cell.size(); ++p) {
        exts.push_back(v_cells[0].ext_get(cell[p]));
    }
}

std::shared_ptr<const headkv_bounded> llama_kv_cache_headkv::archive_behind(const std::vector<uint32_t> & cell,
                                                                            std::vector<llama_kv_cell_ext> & exts) {
    if (!archive || (kept && archived.empty())) {
        return nullptr;
    }
    if (kept) {
        exts = archived;
        if (archived_end && !archived_end->empty()) { // the next prompt can go on from there only, and may leave out
            return archived_end;                      // what came behind it, as thoughts are
        }
    }
    auto at_end = std::make_shared<headkv_bounded>(lctx->get_memory(), /*rows =*/true);
    if (!at_end->reaches(cell.size())) {
        throw headkv_error(HEADKV_ERR_STATE, "layers with a sliding window and recurrent ones have forgotten what the "
                                             "next token looks at: too much behind the prompt was taken back");
    }
    try {
        archive->fork(exts.size(), archived.size());
        archive_cells(*archive, cell, exts.size(), exts);
    } catch (...) {
        archive->drop();
        throw;
    }
    return at_end;
}

uint32_t llama_kv_cache_headkv::tail_cells(uint32_t n_needed, uint32_t end) const {
    uint32_t n_cells = n_tail_min;
    while (n_cells < n_needed) {
        n_cells *= 2;
    }
    return std::min(n_cells, n_ctx - end);
}

void llama_kv_cache_headkv::require_no_shift() const {
    if (get_has_shift()) {
        throw headkv_error(HEADKV_ERR_STATE, "positions were shifted, and the next batch is to rotate their keys: "
                                             "decode it first");
    }
}

void llama_kv_cache_headkv::grow(uint32_t n_new) {
    const uint32_t n_limit  = n_ctx - kept_end();
    const uint32_t n_before = n_used();
    const uint32_t n_needed = n_before + n_new;
    if (n_needed > n_limit) {
        throw headkv_error(HEADKV_ERR_STATE,
                           format("the context of %u positions is full: %u are taken, %u more were asked for", n_ctx,
                                  kept_end() + n_before, n_new));
    }
    // a prompt gets room for all of it, if it is known how long it is, else for the whole context
    const uint32_t n_room = kept ? n_needed : std::max(n_needed, n_expected > 0 ? n_expected : n_ctx);
    const uint32_t n_now  = get_size();
    if (n_room <= n_now && (kept || n_now == n_ctx || n_now % n_dormant_pad == 0)) {
        return;
    }

    uint32_t n_next = GGML_PAD(n_room, n_dormant_pad);
    if (kept) {
        n_next = tail_cells(n_room, kept->end);
    } else if (n_before > 0) { // rows have to move, but not each time
        for (n_next = n_dormant_pad; n_next < n_room; n_next *= 2) {}
    }
    n_next = std::min(n_next, n_limit);

    require_no_shift(); // is not carried over
    wait();

    auto next = make_cells(n_next);
    std::vector<uint32_t> from; // the cells in use, of whatever sequences
    for (uint32_t i = 0; i < n_now; ++i) {
        if (!v_cells[0].is_empty(i) && v_cells[0].seq_count(i) > 0) {
            from.push_back(i);
        }
    }
    for (size_t i = 0; i < layers.size(); ++i) { // those that do not retain too
        copy_rows(layers[i].k, next->layers[i].k, from);
        copy_rows(layers[i].v, next->layers[i].v, from);
    }
    next->v_cells[0].set(0, v_cells[0].cp(from));
    next->v_heads[0] = from.size();

    {
        const std::lock_guard<std::mutex> lock(mutex);
        update_peak(size_of(*next));
        swap_cells(*next);
    }
    if (obs) {
        obs->remove(0); // the cells may have moved
    }
    epoch++;
}
