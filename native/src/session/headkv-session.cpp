// What a session holds of a context: the cells with kept rows, bounded layers, the archive.

#include "base/headkv-error.h"
#include "base/headkv-guard.h"
#include "base/headkv-io.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"
#include "session/headkv-session-parts.h"

static void require_all_read(llama_io_read_i & io, size_t size) {
    if (io.n_bytes() != size) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("%zu bytes are left over", size - io.n_bytes()));
    }
}

// what write(io) writes, whose length is not known before
template <typename F>
static std::vector<uint8_t> bytes_of(F && write) {
    headkv_io_fill counted(nullptr, 0);
    write(counted);
    std::vector<uint8_t> res(counted.n_bytes());
    headkv_io_fill io(res.data(), res.size());
    write(io);
    return res;
}

static constexpr uint32_t state_magic = 0xaf143cd8; // llama.cpp's, before the number of the sequence

std::vector<uint8_t> headkv_get_bounded_state(llama_context & ctx) {
    return bytes_of([&](headkv_io_fill & io) {
        const uint32_t begin[] = { state_magic, 0 };
        io.write(begin, sizeof(begin));
        ctx.get_memory()->state_write(io, 0, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
    });
}

void headkv_set_bounded_state(llama_context & ctx, const void * state, size_t size) {
    headkv_io_read io(state, size);
    uint32_t begin[2] = {};
    if (size > sizeof(begin)) {
        io.read(begin, sizeof(begin));
    }
    if (begin[0] != state_magic) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the state of a prompt's end is not one that llama.cpp has given");
    }
    ctx.get_memory()->state_read(io, 0, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
    require_all_read(io, size);
}

std::vector<uint8_t> llama_kv_cache_headkv::get_part(llama_context & ctx, part which) const {
    return bytes_of([&](headkv_io_fill & io) { write_part(ctx, which, io); });
}

void llama_kv_cache_headkv::write_part(llama_context & ctx, part which, llama_io_write_i & io) const {
    switch (which) {
    case part::cells:
        require_no_shift();
        require_sound();
        state_write(io);
        return;
    case part::bounded: {
        const headkv_bounded now(ctx.get_memory(), /*rows =*/true);
        if (!now.empty()) {
            now.write(io);
        }
        return;
    }
    case part::end:
        break;
    }
    if (archived.empty()) {
        throw headkv_error(HEADKV_ERR_STATE, "no prompt is in the archive");
    }
    const uint32_t n = archived.size();
    io.write(&n, sizeof(n));
    io.write(archived.data(), n * sizeof(archived[0]));
    if (archived_end && !archived_end->empty()) {
        archived_end->write(io);
    }
}

void llama_kv_cache_headkv::set_part(llama_context & ctx, part which, llama_io_read_i & io, size_t size) {
    if (which == part::cells) {
        set_cells(ctx, io, size);
    } else if (which == part::bounded) {
        headkv_bounded now(ctx.get_memory(), /*rows =*/false);
        if (!now.empty()) {
            now = headkv_bounded::read(ctx.get_memory(), io, seq_pos_max(0) + 1, ctx.get_model().vocab.n_tokens());
        }
        require_all_read(io, size);
        now.put_back();
        epoch++;
    } else {
        set_end(ctx, io, size);
    }
}

std::vector<uint8_t> llama_kv_cache_headkv::get_bounded_of(llama_context & ctx, const void * state, size_t n_state,
                                                           size_t n_prompt) {
    struct keeper {
        headkv_bounded now;
        ~keeper() { now.put_back(); }
    };

    const keeper kept_as_is{ headkv_bounded(ctx.get_memory(), /*rows =*/true) };
    if (kept_as_is.now.empty()) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the model has no layers that have a state at a prompt's end");
    }
    epoch++;
    headkv_set_bounded_state(ctx, state, n_state);
    const int64_t n_read = headkv_bounded(ctx.get_memory(), /*rows =*/false).last() + 1;
    if (n_read != (int64_t) n_prompt) {
        throw headkv_error(
            HEADKV_ERR_ARGUMENT,
            format("the state of a prompt's end is of one with %lld tokens, not %zu", (long long) n_read, n_prompt));
    }
    return get_part(ctx, part::bounded);
}

void llama_kv_cache_headkv::set_cells(llama_context & ctx, llama_io_read_i & io, size_t size) {
    ctx.get_memory()->clear(false);
    try {
        state_read(io);
        require_all_read(io, size);
        require_sound();
    } catch (...) {
        ctx.get_memory()->clear(false);
        throw;
    }
}

void llama_kv_cache_headkv::set_end(llama_context & ctx, llama_io_read_i & io, size_t size) {
    require_kept();
    const int32_t n_vocab = model.vocab.n_tokens();

    uint32_t n;
    io.read(&n, sizeof(n));
    auto end = std::make_shared<headkv_bounded>(ctx.get_memory(), /*rows =*/false);
    if (n != kept->n_prompt && (end->empty() || n == 0 || n > kept->n_prompt)) { // an answer that was folded
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("%u archived tokens are not the prompt's %u", n, kept->n_prompt));
    }
    if (!archive || !archived.empty() || archive->n_rows() < n) {
        throw headkv_error(HEADKV_ERR_STATE, "the rows of the prompt are not in the archive, or are archived already");
    }
    std::vector<llama_kv_cell_ext> exts(n);
    io.read(exts.data(), n * sizeof(exts[0]));
    for (const auto & ext : exts) {
        if (ext.tok < LLAMA_TOKEN_NULL || ext.tok >= n_vocab) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, "an archived token is none of the model's");
        }
    }
    if (!end->empty()) {
        *end = headkv_bounded::read(ctx.get_memory(), io, n, n_vocab);
        if (end->last() + 1 != (int32_t) n) {
            throw headkv_error(HEADKV_ERR_ARGUMENT,
                               "layers with a window or a recurrent state are not at the prompt's end");
        }
    }
    require_all_read(io, size);

    const std::lock_guard<std::mutex> lock(mutex);
    archived     = std::move(exts);
    archived_end = std::move(end);
    archive->keep(n);
}

uint32_t llama_kv_cache_headkv::require_rows(int32_t layer, int32_t first, int32_t n, const void * rows,
                                             size_t size) const {
    require_kept();
    headkv_require_pointer(rows);
    if (!archive) {
        throw headkv_error(HEADKV_ERR_STATE, "there is no archive");
    }
    if (layer < 0 || layer >= (int32_t) shapes.size()) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("there is no layer %d, there are %zu", layer, shapes.size()));
    }
    if (first < 0 || n < 0 || n > (int32_t) kept->n_prompt - first) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("%d tokens from %d on are not of the prompt of %u", n, first, kept->n_prompt));
    }
    headkv_require_size(size, n * archive->row_size(layer));
    return layer;
}

void llama_kv_cache_headkv::get_archived(int32_t layer, int32_t first, int32_t n, void * rows, size_t size) const {
    const uint32_t ikv = require_rows(layer, first, n, rows, size);
    if (archived.empty()) {
        throw headkv_error(HEADKV_ERR_STATE, "no prompt is in the archive");
    }
    if (first + n > (int32_t) archived.size()) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("%d tokens from %d on are not in the archive, which has %zu", n,
                                                       first, archived.size()));
    }
    archive->get(ikv, (uint8_t *) rows, first, n);
}

void llama_kv_cache_headkv::set_archived(int32_t layer, int32_t first, int32_t n, const void * rows, size_t size) {
    const uint32_t ikv = require_rows(layer, first, n, rows, size);
    if (!archived.empty()) {
        throw headkv_error(HEADKV_ERR_STATE, "the prompt is in the archive already");
    }
    const std::lock_guard<std::mutex> lock(mutex); // for its size
    archive->put(ikv, (const uint8_t *) rows, first, n);
}

int32_t llama_kv_cache_headkv::hold_archived() {
    require_kept();
    if (archived.empty()) {
        return 0;
    }
    const int32_t id = last_held + 1;
    held[id]         = { archived, archived_end };
    try {
        archive->hold(id, archived.size());
    } catch (...) {
        held.erase(id);
        throw;
    }
    return last_held = id;
}

void llama_kv_cache_headkv::restore_archived(int32_t id) {
    require_kept();
    const auto prompt = held.find(id);
    if (prompt == held.end() || !archive->holds(id)) {
        throw headkv_error(HEADKV_ERR_STATE, "the archive does not hold the rows of that prompt any more");
    }
    const auto & [rows, end] = prompt->second;
    const bool may_be_fewer  = end && !end->empty(); // of a prompt with an answer that was folded
    if (!archived.empty() || rows.size() > kept->n_prompt || (rows.size() < kept->n_prompt && !may_be_fewer) ||
        !is_held_as(id, rows.size() - 1)) {
        throw headkv_error(HEADKV_ERR_STATE, "the rows that the archive holds are not of the compacted prompt");
    }
    auto exts = rows;

    const std::lock_guard<std::mutex> lock(mutex);
    archive->restore(id);
    archived     = std::move(exts);
    archived_end = end;
}

// A layer's rows are made of all tokens up to theirs: the last one tells one prompt from another.
bool llama_kv_cache_headkv::is_held_as(int32_t id, uint32_t p) const {
    if (p < kept->end) {
        return true;
    }
    const auto & layer  = cells_in(*this, shapes.size() - 1);
    const uint32_t cell = get_prompt_cells(kept->end)[p];
    std::vector<uint8_t> row(layer.k->nb[1] + layer.v->nb[1]);
    ggml_backend_tensor_get(layer.k, row.data(), cell * layer.k->nb[1], layer.k->nb[1]);
    ggml_backend_tensor_get(layer.v, row.data() + layer.k->nb[1], cell * layer.v->nb[1], layer.v->nb[1]);
    return archive->get_held(id, shapes.size() - 1, p) == row;
}

void llama_kv_cache_headkv::release_archived(int32_t id) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (held.erase(id) > 0) {
        archive->release(id);
    }
}
