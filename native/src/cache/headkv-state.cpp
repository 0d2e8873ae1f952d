// Saving and reading the cache's state.

#include "base/headkv-error.h"
#include "base/headkv-io.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-impl.h"

// first word of a compacted state, where the stock format has the number of streams
static constexpr uint32_t state_magic = 0x324b4448; // "HDK2"

void llama_kv_cache_headkv::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    if (kept && seq_id <= 0) {
        const uint32_t n_in_cells = n_used();

        io.write(&state_magic, sizeof(state_magic));
        io.write(&n_in_cells, sizeof(n_in_cells));
        kept->state_write(io);
    }
    llama_kv_cache::state_write(io, seq_id, flags);
}

void llama_kv_cache_headkv::state_clear(llama_seq_id seq_id) {
    if (kept && seq_id <= 0) {
        clear(true);
    }
    llama_kv_cache::state_clear(seq_id);
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

    if (word != state_magic) {
        n_expected = n_in_state;
        grow(0);
        headkv_io_unread unread(io, word);
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
        return;
    }

    uint32_t n_in_cells;
    io.read(&n_in_cells, sizeof(n_in_cells));

    auto next = headkv_kept_prompt::state_read(io, shapes, n_ctx);
    if (n_in_cells > n_ctx - next->end) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the state's cells do not fit this context");
    }

    auto tail = make_cells(tail_cells(n_in_cells, next->end));
    tail->state_read(io, seq_id, flags);

    const std::lock_guard<std::mutex> lock(mutex);

    update_peak(next->size() + size_of(*tail));
    kept = std::move(next);
    swap_cells(*tail);
    n_cells = n_in_cells;
}
