// Saving and reading the cache's state.

#include "base/headkv-error.h"
#include "base/headkv-io.h"
#include "cache/headkv-hooks.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-impl.h"
#include "llama-memory.h"
#include "llama-model.h"

// first word of a compacted state, where the stock format has the number of streams
static constexpr uint32_t state_magic = 0x324b4448; // "HDK2"

// word before what follows the cells: the queries of a tail that is to be folded
static constexpr uint32_t queries_magic = 0x514b4448; // "HDKQ"

void llama_kv_cache_headkv::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    if (read) { // rows of all layers are not in cells at once, and kept rows are set aside
        throw headkv_error(HEADKV_ERR_STATE, "a prompt is being read: there is no state before that is done");
    }
    const bool asks = queries && queries->get_n() <= headkv_queries::n_most && seq_id <= 0;
    if (asks) {
        io.write(&queries_magic, sizeof(queries_magic));
    }
    if (kept && seq_id <= 0) {
        const uint32_t n_in_cells = n_used();

        io.write(&state_magic, sizeof(state_magic));
        io.write(&n_in_cells, sizeof(n_in_cells));
        kept->state_write(io);
    }
    llama_kv_cache::state_write(io, seq_id, flags);
    if (asks) {
        queries->state_write(io);
    }
}

// Its parts are read one after the other: what one has read must not stay where another one failed. A state of bounded
// layers alone leaves the others; where there are none, it is of all.
void headkv_state_read(llama_memory_i & mem, llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    const auto * kv = llama_kv_cache_headkv::find(&mem);
    if (kv && kv->canceller.refuses("llama_state_set_data")) {
        throw std::runtime_error("a state cannot be read in a callback of the call that computes");
    }
    try {
        mem.state_read(io, seq_id, flags);
    } catch (...) {
        const bool is_whole = (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) == 0 || kv == &mem;
        if (kv && kv->get_retains() && seq_id <= 0 && is_whole) {
            mem.clear(true);
        }
        throw;
    }
}

// Are cells those of one sequence, of tokens of the model, from position p0 on, each position before p1 once?
static bool is_sound(const llama_kv_cells & cells, llama_pos p0, llama_pos p1, llama_token n_vocab) {
    const auto & held = cells.seq_pos_get(0);

    llama_pos next = p0;
    bool ok        = held.size() == cells.get_used();
    for (const auto & [pos, cell] : held) {
        const llama_token token = cells.ext_get(cell).tok;
        ok = ok && (next < p1 ? pos == next++ : pos >= p1) && cells.seq_count(cell) == 1 && token >= LLAMA_TOKEN_NULL &&
             token < n_vocab;
    }
    return ok && next == p1;
}

void llama_kv_cache_headkv::require_sound() const {
    const uint32_t end = kept_end() + n_used();
    if (end > n_ctx || (kept && end < kept->n_prompt) ||
        !is_sound(get_cells(0), kept_end(), end, model.vocab.n_tokens())) {
        throw headkv_error(HEADKV_ERR_STATE, "the cells are not those of one sequence without gaps");
    }
}

void llama_kv_cache_headkv::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    if (!retains || seq_id > 0) {
        llama_kv_cache::state_read(io, seq_id, flags);
        return;
    }

    // what is here is replaced, whatever comes
    clear(false);
    {
        const std::lock_guard<std::mutex> lock(mutex);
        n_expected = 0; // also where the cache was empty
        obs.reset();
    }

    uint32_t word;
    io.read(&word, sizeof(word));
    const bool asks = word == queries_magic;
    if (asks) {
        io.read(&word, sizeof(word));
    }
    if (word == state_magic) {
        state_read_kept(io, seq_id, flags);
    } else {
        // of the stock format: streams, cells. There is room for these then, and not for the whole context.
        uint32_t begin[] = { word, 0 };
        io.read(&begin[1], sizeof(begin[1]));
        n_expected = word == n_stream ? std::min(begin[1], n_ctx) : 0;
        grow(0);
        headkv_io_unread unread(io, begin, sizeof(begin));
        placing = true; // what is read is not computed
        try {
            llama_kv_cache::state_read(unread, seq_id, flags);
        } catch (...) {
            placing = false;
            count_cells();
            throw;
        }
        placing = false;
        count_cells();
    }
    if (asks) {
        const auto make  = [&](llama_pos first, uint32_t n) { return make_queries(first, n); };
        const auto sinks = [&](int32_t il) { return model.layers[il].attn_sinks; };
        auto next        = headkv_queries::state_read(io, make, sinks, kept_end() + n_used(), n_ctx);
        const std::lock_guard<std::mutex> lock(mutex);
        queries = std::move(next);
        epoch++;
    }
}

void llama_kv_cache_headkv::state_read_kept(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    uint32_t n_in_cells;
    io.read(&n_in_cells, sizeof(n_in_cells));

    auto next = headkv_kept_prompt::state_read(io, shapes, n_ctx);
    if (n_in_cells > n_ctx - next->end) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the state's cells do not fit this context");
    }

    auto tail = make_cells(tail_cells(n_in_cells, next->end));
    tail->state_read(io, seq_id, flags);
    if (!is_sound(cells_of(*tail)[0], next->end, next->n_prompt, model.vocab.n_tokens())) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the state's cells are not those of its prompt and what came after it");
    }

    const std::lock_guard<std::mutex> lock(mutex);

    update_peak(next->size() + size_of(*tail));
    kept = std::move(next);
    swap_cells(*tail);
    n_cells = n_used();
}
