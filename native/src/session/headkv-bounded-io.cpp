// What sliding-window and recurrent layers hold, in a session.
//
// which of the two there are; of a window: cells, where the next token goes, the used cells; of recurrent layers: their
// cells; then of each tensor its type, its row size, and rows: of a window those of the used cells, else all

#include "base/headkv-error.h"
#include "cache/headkv-bounded.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-impl.h"
#include "llama-io.h"

#include <algorithm>

static constexpr uint32_t has_window    = 1;
static constexpr uint32_t has_recurrent = 2;

static void require(bool ok, const char * what) {
    if (!ok) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("what is saved of layers with a window or a recurrent state does not fit: %s", what));
    }
}

// Does a window that holds these positions, ascending, hold all that the token after them sees?
static bool sees_all(const std::vector<llama_pos> & positions, const llama_kv_cache & window) {
    if (positions.empty()) {
        return false;
    }
    const llama_pos next = positions.back() + 1;
    auto held            = positions.rbegin();
    for (llama_pos p = next - 1; p >= 0 && !llama_kv_cache_headkv::hides(window, p, next); --p) {
        if (held == positions.rend() || *held++ != p) {
            return false;
        }
    }
    return true;
}

template <typename T>
static T take(llama_io_read_i & io) {
    T x;
    io.read(&x, sizeof(x));
    return x;
}

template <typename T>
static void give(llama_io_write_i & io, T x) {
    io.write(&x, sizeof(x));
}

void headkv_bounded::write(llama_io_write_i & io) const {
    give<uint32_t>(io, (window ? has_window : 0) | (recurrent ? has_recurrent : 0));

    std::vector<uint32_t> in_use;
    if (window) {
        const auto & held = window_cells[0];
        std::vector<llama_pos> positions;
        for (uint32_t i = 0; i < held.size(); ++i) {
            if (!held.is_empty(i)) {
                in_use.push_back(i);
                positions.push_back(held.pos_get(i));
            }
        }
        std::sort(positions.begin(), positions.end());
        if (!sees_all(positions, *window)) {
            throw headkv_error(HEADKV_ERR_STATE,
                               "layers with a sliding window have forgotten what the next token looks at");
        }
        give<uint32_t>(io, held.size());
        give<uint32_t>(io, window_heads[0]);
        give<uint32_t>(io, in_use.size());
        for (const uint32_t i : in_use) {
            give<uint32_t>(io, i);
            give<llama_pos>(io, held.pos_get(i));
            give(io, held.ext_get(i));
        }
    }
    if (recurrent) {
        for (const uint32_t x : { (uint32_t) cells.size(), (uint32_t) rs_idx.size(), head, used, n, (uint32_t) rs_z }) {
            give(io, x);
        }
        for (const uint32_t x : rs_idx) {
            give(io, x);
        }
        for (const auto & cell : cells) {
            for (const int32_t x : { cell.pos, cell.src, cell.src0, cell.tail, (int32_t) cell.has_seq_id(0) }) {
                give(io, x);
            }
        }
    }

    size_t n_window;
    const auto all       = tensors(n_window);
    const uint8_t * from = bytes->data();
    for (size_t j = 0; j < all.size(); ++j) {
        const ggml_tensor * t = all[j];
        give<uint32_t>(io, t->type);
        give<uint64_t>(io, t->nb[1]);
        if (j < n_window) {
            for (const uint32_t i : in_use) {
                io.write(from + i * t->nb[1], t->nb[1]);
            }
        } else {
            io.write(from, ggml_nbytes(t));
        }
        from += ggml_nbytes(t);
    }
}

int32_t headkv_bounded::last() const {
    if (window) {
        return window_cells[0].seq_pos_max(0);
    }
    return recurrent && cells[0].tail >= 0 ? cells[cells[0].tail].pos : -1;
}

headkv_bounded headkv_bounded::read(llama_memory_i * mem, llama_io_read_i & io, int32_t n_tokens, int32_t n_vocab) {
    headkv_bounded res(mem, /*rows =*/false);

    require(take<uint32_t>(io) == ((res.window ? has_window : 0) | (res.recurrent ? has_recurrent : 0)), "kinds");

    std::vector<int64_t> places;
    if (res.window) {
        places = res.read_window(io, n_tokens, n_vocab);
    }
    if (res.recurrent) {
        res.read_recurrent(io, n_tokens);
    }

    size_t n_window;
    const auto all = res.tensors(n_window);
    size_t size    = 0;
    for (const ggml_tensor * t : all) {
        size += ggml_nbytes(t);
    }
    auto held = std::make_shared<std::vector<uint8_t>>(size);

    std::vector<uint8_t> dropped;
    uint8_t * to = held->data();
    for (size_t j = 0; j < all.size(); ++j) {
        const ggml_tensor * t = all[j];
        require(take<uint32_t>(io) == (uint32_t) t->type, "type");
        require(take<uint64_t>(io) == t->nb[1], "size of a row");
        if (j < n_window) {
            dropped.resize(t->nb[1]);
            for (const int64_t i : places) {
                io.read(i < 0 ? dropped.data() : to + i * t->nb[1], t->nb[1]);
            }
        } else {
            io.read(to, ggml_nbytes(t));
        }
        to += ggml_nbytes(t);
    }
    res.bytes = std::move(held);
    return res;
}

std::vector<int64_t> headkv_bounded::read_window(llama_io_read_i & io, int32_t n_tokens, int32_t n_vocab) {
    const uint32_t size  = take<uint32_t>(io);
    const uint32_t first = take<uint32_t>(io);
    const uint32_t n_use = take<uint32_t>(io);
    require(n_use > 0 && n_use <= size && first <= size, "cells");

    std::vector<saved_cell> saved;
    std::vector<llama_pos> positions;
    for (uint32_t j = 0; j < n_use; ++j) {
        const auto i   = take<uint32_t>(io);
        const auto pos = take<llama_pos>(io);
        const auto ext = take<llama_kv_cell_ext>(io);
        require(i < size && (saved.empty() || i > saved.back().i), "cells");
        require(pos >= 0 && pos < n_tokens && ext.tok >= -1 && ext.tok < n_vocab, "positions and tokens");
        saved.push_back({ i, pos, ext });
        positions.push_back(pos);
    }
    std::sort(positions.begin(), positions.end());
    require(std::adjacent_find(positions.begin(), positions.end()) == positions.end(), "positions");
    require(sees_all(positions, *window), "positions");

    return place(saved, size, first);
}

std::vector<int64_t> headkv_bounded::place(const std::vector<saved_cell> & saved, uint32_t size, uint32_t head) {
    auto & held          = window_cells[0];
    const uint32_t n_now = held.size();

    std::vector<int64_t> res;
    if (size == n_now) {
        for (const auto & cell : saved) {
            res.push_back(cell.i);
        }
        window_heads[0] = head;
    } else { // the newest, in the order of their positions
        std::vector<llama_pos> positions;
        for (const auto & cell : saved) {
            positions.push_back(cell.pos);
        }
        std::sort(positions.begin(), positions.end());
        const int64_t n_old = std::max<int64_t>(0, (int64_t) saved.size() - n_now);
        for (const auto & cell : saved) {
            const int64_t rank = std::lower_bound(positions.begin(), positions.end(), cell.pos) - positions.begin();
            res.push_back(std::max<int64_t>(rank - n_old, -1));
        }
        window_heads[0] = (saved.size() - n_old) % n_now;
    }
    held.reset();
    for (size_t j = 0; j < saved.size(); ++j) {
        if (res[j] >= 0) {
            held.pos_set(res[j], saved[j].pos);
            held.ext_set(res[j], saved[j].ext);
            held.seq_add(res[j], 0);
        }
    }
    return res;
}

void headkv_bounded::read_recurrent(llama_io_read_i & io, int32_t n_tokens) {
    const int32_t size = cells.size();
    require(take<uint32_t>(io) == cells.size() && take<uint32_t>(io) == rs_idx.size(), "cells");

    head = take<uint32_t>(io);
    used = take<uint32_t>(io);
    n    = take<uint32_t>(io);
    rs_z = take<int32_t>(io);
    require(head <= cells.size() && n <= cells.size() - head && used <= cells.size() && rs_z >= -1 && rs_z < size,
            "cells");
    for (auto & i : rs_idx) {
        i = take<uint32_t>(io);
        require(i <= recurrent->n_rs_seq, "snapshots");
    }
    for (auto & cell : cells) {
        cell.pos  = take<llama_pos>(io);
        cell.src  = take<int32_t>(io);
        cell.src0 = take<int32_t>(io);
        cell.tail = take<int32_t>(io);
        require(cell.pos >= -1 && cell.pos < n_tokens, "positions");
        for (const int32_t i : { cell.src, cell.src0, cell.tail }) {
            require(i >= -1 && i < size, "cells");
        }
        const auto has = take<int32_t>(io);
        require(has == 0 || has == 1, "cells");
        cell.seq_id.clear();
        if (has == 1) {
            cell.seq_id.insert(0);
        }
    }
    const int32_t tail = cells[0].tail;
    require(tail >= 0 && cells[tail].pos >= 0, "cells");
    for (int32_t i = 0; i < size; ++i) {
        require(cells[i].has_seq_id(0) == (i == tail), "cells");
    }
    require(!window || cells[tail].pos == window_cells[0].seq_pos_max(0), "positions");
}
