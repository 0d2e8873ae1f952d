#include "rows/headkv-archive.h"

#include "base/headkv-error.h"
#include "base/headkv-path.h"
#include "llama-impl.h"

#include "ggml-backend.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

headkv_archive::headkv_archive(const std::vector<headkv_layer_shape> & shapes, const char * path)
    : path(path ? headkv_place_of(path) : "") {
    ggml_backend_buffer_type_t buft = nullptr;
    size_t row                      = 0;
    for (const auto & shape : shapes) {
        layers.push_back({ ggml_row_size(shape.type_k, shape.d_k * shape.n_head_kv),
                           ggml_row_size(shape.type_v, shape.d_v * shape.n_head_kv), stride });
        stride += layers.back().size();

        row = std::max({ row, layers.back().row_k, layers.back().row_v });
        ggml_backend_dev_t dev =
            ggml_backend_buft_is_host(shape.buft) ? nullptr : ggml_backend_buft_get_device(shape.buft);
        buft = !buft && dev ? ggml_backend_dev_host_buffer_type(dev) : buft;
    }
    if (buft) {
        pinned.reset(ggml_backend_buft_alloc_buffer(buft, n_block * row));
    }
    if (path) {
        open_file();
    }
}

headkv_archive::~headkv_archive() {
    if (fd >= 0) {
        remove_file();
        close(fd);
    }
}

//
// slots
//

const std::vector<bool> & headkv_archive::taken_slots() {
    taken.clear();
    const auto add = [&](const std::vector<uint32_t> & of) {
        for (const uint32_t s : of) {
            taken.resize(std::max<size_t>(taken.size(), s + 1));
            taken[s] = true;
        }
    };
    add(table);
    add(table_before);
    for (const auto & [_, rows] : held) {
        add(rows.table);
    }
    return taken;
}

uint32_t headkv_archive::free_slot() {
    taken_slots();
    const uint32_t s = std::find(taken.begin(), taken.end(), false) - taken.begin();
    taken.reserve(s + 1); // slots are freed where nothing may fail
    return s;
}

bool headkv_archive::is_held(uint32_t slot) const {
    return std::any_of(held.begin(), held.end(), [&](const auto & entry) {
        const auto & of = entry.second.table;
        return std::find(of.begin(), of.end(), slot) != of.end();
    });
}

// The system gives memory as it is first written to, in small pages: most of the time that copying there takes.
static void want_large_pages(uint8_t * p, size_t size) {
#ifdef MADV_HUGEPAGE
    const size_t page = sysconf(_SC_PAGESIZE);
    const size_t skip = (page - (uintptr_t) p % page) % page;
    if (size > skip) {
        (void) madvise(p + skip, (size - skip) / page * page, MADV_HUGEPAGE); // it does without
    }
#endif
}

void headkv_archive::make_room(uint32_t b) {
    if (b >= table.size()) {
        table.push_back(free_slot());
    }
    if (fd >= 0) {
        return;
    }
    const uint32_t s = table[b];
    if (s >= slots.size()) {
        slots.resize(s + 1);
    }
    if (!slots[s]) {
        slots[s].reset(new uint8_t[stride]);
        n_bytes += stride;
        want_large_pages(slots[s].get(), stride);
    }
}

void headkv_archive::copy(uint32_t ikv, uint32_t from, uint32_t to, uint32_t n_rows) {
    const auto & l = layers[ikv];
    for (const auto & [offset, size] :
         { std::pair(size_t(0), n_rows * l.row_k), std::pair(n_block * l.row_k, n_rows * l.row_v) }) {
        if (fd < 0) {
            memcpy(in_memory(ikv, to) + offset, in_memory(ikv, from) + offset, size);
            continue;
        }
        std::vector<uint8_t> rows(size);
        read(rows.data(), size, in_file(ikv, from) + offset);
        write(rows.data(), size, in_file(ikv, to) + offset);
    }
}

// slots of no table go
void headkv_archive::free_slots() {
    const uint32_t n_used = taken_slots().size();
    if (fd >= 0) {
        shorten(n_used > 0 ? header_size + n_used * stride : 0);
        return;
    }
    slots.resize(std::min<size_t>(slots.size(), n_used));
    size_t n_held = 0;
    for (uint32_t s = 0; s < slots.size(); ++s) {
        if (!taken[s]) {
            slots[s].reset();
        }
        n_held += slots[s] != nullptr;
    }
    n_bytes = n_held * stride;
}

void headkv_archive::fork(uint32_t n_past, uint32_t n_held) {
    drop();
    table_before   = table;
    n_bytes_before = n_bytes;
    forked         = true;
    for (auto & layer : layers) {
        layer.n_rows_before = layer.n_rows;
        layer.n_rows        = std::min(layer.n_rows, n_past);
    }

    // a block of which some rows stay: what is put after all that is held does them no harm
    const uint32_t b      = n_past / n_block;
    const uint32_t n_rows = n_past % n_block;
    if (n_rows == 0 || (n_past >= n_held && !is_held(table[b]))) {
        table.resize(b + (n_rows > 0));
        return;
    }
    table.resize(b);
    make_room(b);
    for (uint32_t ikv = 0; ikv < layers.size(); ++ikv) {
        copy(ikv, table_before[b], table[b], n_rows);
    }
}

void headkv_archive::keep(uint32_t n) {
    forked = false;
    table_before.clear();
    table.resize((n + n_block - 1) / n_block);
    free_slots();
}

void headkv_archive::drop() {
    if (!forked) {
        return;
    }
    forked = false;
    table.swap(table_before);
    table_before.clear();
    for (auto & layer : layers) {
        layer.n_rows = layer.n_rows_before;
    }
    if (fd >= 0) {
        shorten(n_bytes_before);
    } else {
        free_slots();
    }
}

void headkv_archive::clear() {
    if (fd >= 0 && file_size() < n_bytes) { // it was cut short, and will be longer again
        held.clear();
    }
    forked = false;
    table_before.clear();
    table.clear();
    for (auto & layer : layers) {
        layer.n_rows = 0;
    }
    free_slots();
    if (fd >= 0) {
        n_bytes = std::min<size_t>(n_bytes, file_size()); // nothing is missed of a file that was cut short
    }
}

void headkv_archive::hold(int32_t id, uint32_t n) {
    held[id] = { table, n };
}

bool headkv_archive::holds(int32_t id) const {
    return held.count(id) > 0 && (fd < 0 || file_size() >= n_bytes);
}

void headkv_archive::restore(int32_t id) {
    auto rows = held.at(id);
    clear();
    if (!holds(id)) { // the file was cut short since it was asked for
        throw headkv_error(HEADKV_ERR_STATE, "the archive does not hold the rows of that prompt any more");
    }
    table.swap(rows.table);
    for (auto & layer : layers) {
        layer.n_rows = rows.n;
    }
}

void headkv_archive::release(int32_t id) {
    if (held.erase(id) > 0) {
        free_slots();
    }
}

//
// rows
//

template <typename K, typename F>
void headkv_archive::each(uint32_t ikv, uint32_t b, K * k, K * v, uint32_t cell, uint32_t p0, uint32_t n,
                          F && f) const {
    const auto & l       = layers[ikv];
    const uint32_t first = std::max(p0, b * n_block);
    const uint32_t last  = std::min(p0 + n, (b + 1) * n_block);
    const size_t i       = first - b * n_block; // in the block
    const size_t row     = cell + (first - p0);

    f(k, row * l.row_k, i * l.row_k, (last - first) * l.row_k);
    if (v) {
        f(v, row * l.row_v, n_block * l.row_k + i * l.row_v, (last - first) * l.row_v);
    }
}

std::vector<uint8_t> headkv_archive::get_held(int32_t id, uint32_t ikv, uint32_t p) const {
    const uint32_t b    = p / n_block;
    const uint32_t slot = held.at(id).table[b];
    std::vector<uint8_t> res(row_size(ikv));
    each(ikv, b, res.data(), res.data() + layers[ikv].row_k, 0, p, 1,
         [&](uint8_t * to, size_t, size_t offset, size_t size) {
             if (fd < 0) {
                 memcpy(to, in_memory(ikv, slot) + offset, size);
             } else {
                 read(to, size, in_file(ikv, slot) + offset);
             }
         });
    return res;
}

template <typename K, typename F>
void headkv_archive::put_from(uint32_t ikv, const K * k, const K * v, uint32_t cell, uint32_t p0, uint32_t n,
                              F && copy) {
    std::vector<uint8_t> rows;
    for (uint32_t b = p0 / n_block; b * n_block < p0 + n; ++b) {
        make_room(b);
        each(ikv, b, k, v, cell, p0, n, [&](const K * from, size_t from_offset, size_t offset, size_t size) {
            if (fd < 0) {
                copy(in_memory(ikv, table[b]) + offset, from, from_offset, size);
                return;
            }
            rows.resize(size);
            copy(rows.data(), from, from_offset, size);
            write(rows.data(), size, in_file(ikv, table[b]) + offset);
        });
    }
    layers[ikv].n_rows = std::max(layers[ikv].n_rows, p0 + n);
}

template <typename K, typename F>
void headkv_archive::get_to(uint32_t ikv, K * k, K * v, uint32_t cell, uint32_t p0, uint32_t n, F && copy) const {
    std::vector<uint8_t> rows;
    for (uint32_t b = p0 / n_block; b * n_block < p0 + n; ++b) {
        each(ikv, b, k, v, cell, p0, n, [&](K * to, size_t to_offset, size_t offset, size_t size) {
            if (fd < 0) {
                copy(in_memory(ikv, table[b]) + offset, to, to_offset, size);
                return;
            }
            rows.resize(size);
            read(rows.data(), size, in_file(ikv, table[b]) + offset);
            copy(rows.data(), to, to_offset, size);
        });
    }
}

void headkv_archive::put(uint32_t ikv, const ggml_tensor * k, const ggml_tensor * v, uint32_t cell, uint32_t p0,
                         uint32_t n) {
    put_from(ikv, k, v, cell, p0, n, [this](uint8_t * to, const ggml_tensor * from, size_t offset, size_t size) {
        uint8_t * between = pinned_for(from);
        ggml_backend_tensor_get(from, between ? between : to, offset, size);
        if (between) {
            memcpy(to, between, size);
        }
    });
}

void headkv_archive::get(uint32_t ikv, ggml_tensor * k, ggml_tensor * v, uint32_t cell, uint32_t p0, uint32_t n) const {
    get_to(ikv, k, v, cell, p0, n, [this](const uint8_t * from, ggml_tensor * to, size_t offset, size_t size) {
        uint8_t * between = pinned_for(to);
        if (between) {
            memcpy(between, from, size);
        }
        ggml_backend_tensor_set(to, between ? between : from, offset, size);
    });
}

uint8_t * headkv_archive::pinned_for(const ggml_tensor * t) const {
    return pinned && !ggml_backend_buffer_is_host(t->buffer) ? (uint8_t *) ggml_backend_buffer_get_base(pinned.get())
                                                             : nullptr;
}

void headkv_archive::get(uint32_t ikv, const std::vector<std::vector<int32_t>> & keep, uint8_t * k, uint8_t * v) const {
    const auto & l   = layers[ikv];
    const size_t d_k = l.row_k / keep.size();
    const size_t d_v = l.row_v / keep.size();

    std::vector<size_t> first; // of each head: where its rows go to
    size_t n_all = 0;
    for (const auto & head : keep) {
        first.push_back(n_all);
        n_all += head.size();
    }

    std::vector<uint8_t> rows;
    std::vector<size_t> n_taken(keep.size());
    for (uint32_t b = 0; b < table.size(); ++b) {
        // the part of each head that lies in this block, and how much of the block they need
        std::vector<size_t> end(keep.size());
        uint32_t n_rows = 0;
        for (size_t h = 0; h < keep.size(); ++h) {
            const auto from = keep[h].begin() + n_taken[h];
            const auto to   = std::lower_bound(from, keep[h].end(), (int32_t) ((b + 1) * n_block));
            end[h]          = to - keep[h].begin();
            n_rows          = to > from ? std::max(n_rows, *(to - 1) + 1 - b * n_block) : n_rows;
        }
        if (n_rows == 0) {
            continue;
        }
        if (fd >= 0) {
            rows.resize(l.size());
            read(rows.data(), n_rows * l.row_k, in_file(ikv, table[b]));
            read(rows.data() + n_block * l.row_k, n_rows * l.row_v, in_file(ikv, table[b]) + n_block * l.row_k);
        }
        const uint8_t * block = fd < 0 ? in_memory(ikv, table[b]) : rows.data();
        for (size_t h = 0; h < keep.size(); ++h) {
            for (size_t & i = n_taken[h]; i < end[h]; ++i) {
                const size_t row = keep[h][i] - b * n_block;
                memcpy(k + (first[h] + i) * d_k, block + row * l.row_k + h * d_k, d_k);
                memcpy(v + (first[h] + i) * d_v, block + n_block * l.row_k + row * l.row_v + h * d_v, d_v);
            }
        }
    }
}

void headkv_archive::put(uint32_t ikv, const uint8_t * rows, uint32_t p0, uint32_t n) {
    if (p0 > layers[ikv].n_rows) {
        throw headkv_error(HEADKV_ERR_STATE, format("rows from position %u on do not follow on the archive's %u", p0,
                                                    layers[ikv].n_rows));
    }
    put_from(ikv, rows, rows + n * layers[ikv].row_k, 0, p0, n,
             [](uint8_t * to, const uint8_t * from, size_t offset, size_t size) { memcpy(to, from + offset, size); });
}

void headkv_archive::get(uint32_t ikv, uint8_t * rows, uint32_t p0, uint32_t n) const {
    get_to(ikv, rows, rows + n * layers[ikv].row_k, 0, p0, n,
           [](const uint8_t * from, uint8_t * to, size_t offset, size_t size) { memcpy(to + offset, from, size); });
}

uint32_t headkv_archive::n_rows() const {
    uint32_t res = UINT32_MAX;
    for (const auto & layer : layers) {
        res = std::min(res, layer.n_rows);
    }
    return res;
}
