#include "prefill/headkv-prefill.h"

#include "base/headkv-error.h"
#include "llama-batch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-memory-hybrid.h"
#include "llama-model.h"

#include <algorithm>
#include <numeric>

void llama_kv_cache_headkv::prefill(llama_context & ctx, const headkv_prompt & prompt, const headkv_plan * plan) {
    ctx.synchronize(); // what is set aside is no longer worked on
    reading(*this, ctx, prompt, plan).run();
}

bool llama_kv_cache_headkv::cut(llm_graph_result & res, const llama_ubatch & ubatch) const {
    return !read || read->cut(res, ubatch);
}

// Of a whole prompt that is read once more: so many tokens at a time, behind it. With a question all of it.
static constexpr uint32_t n_piece_max = 2048;

static uint32_t piece_of(uint32_t n_ctx, uint32_t n_prompt, const headkv_prompt & prompt) {
    const uint32_t n_room = n_ctx > n_prompt ? n_ctx - n_prompt : 0;
    return prompt.again_at ? prompt.n_again : std::min<size_t>({ prompt.n_again, n_room, n_piece_max });
}

llama_kv_cache_headkv::reading::reading(llama_kv_cache_headkv & kv, llama_context & ctx, const headkv_prompt & prompt,
                                        const headkv_plan * plan)
    : kv(kv),
      ctx(ctx),
      prompt(prompt),
      keeps_all(!plan),
      plan(plan ? *plan : headkv_plan{}),
      n_past(prompt.n_past),
      n_prompt(n_past + prompt.n_tokens),
      n_piece(piece_of(kv.n_ctx, n_prompt, prompt)),
      in_cells(keeps_all || (prompt.order == HEADKV_ORDER_TOKENS && !kv.archive && !kv.kept)),
      archive(kv.archive.get()),
      bounded(ctx.get_memory(), /*rows =*/!in_cells) {
    require_prompt();
    require_past();
    require_outputs();
    if (!keeps_all) {
        headkv_check(*plan, kv.shapes, n_prompt);
    }
    kv.require_no_shift();
    plan_draft();
    make_slices();
    if (!archive && !in_cells) {
        meanwhile = std::make_unique<headkv_archive>(kv.shapes, nullptr);
        archive   = meanwhile.get();
    }

    n_panel = in_cells           ? n_prompt + n_piece
              : prompt.panel > 0 ? prompt.panel
                                 : headkv_panel(kv.get_hidden_row(ctx), ctx.n_batch(), ctx.n_ubatch());
}

llama_kv_cache_headkv::reading::~reading() {
    kv.read = nullptr;
    rows.reset();
    if (archive) {
        archive->drop();
    }
    if (begun) {
        kv.wait(); // what did not come to its end may still use what goes now
        in_cells ? leave_cells() : put_back();
    }
    const std::lock_guard<std::mutex> lock(kv.mutex);
    kv.n_drafted = 0;
}

void llama_kv_cache_headkv::reading::put_back() {
    const std::lock_guard<std::mutex> lock(kv.mutex);
    if (cells) {
        kv.swap_cells(*cells);
    }
    kv.kept    = std::move(kept);
    kv.obs     = std::move(obs);
    kv.queries = std::move(queries);
    kv.n_cells = kv.n_used();
    bounded.put_back();
    kv.epoch++;
}

// One layer each. Several where layers read the K and V of another one: a window's are those of the panel's end once
// their own layer has been read. All of them in the order of tokens.
void llama_kv_cache_headkv::reading::make_slices() {
    // granite-switch caches one more than it counts: which adapter a token asked for, which all layers look up
    const int32_t n_layer  = std::max<int32_t>(ctx.get_model().hparams.n_layer(), kv.shapes.back().il + 1);
    const bool drops_masks = !dynamic_cast<llama_memory_hybrid *>(ctx.get_memory());

    for (int32_t il = 0; il < n_layer; ++il) {
        const int32_t of = std::max(kv.layer_read_by(il), bounded.layer_read_by(il));
        int32_t begin    = prompt.order == HEADKV_ORDER_TOKENS ? 0 : of < 0 ? il : std::min(il, of);
        while (!slices.empty() && slices.back().end > begin) {
            begin = std::min(begin, slices.back().begin);
            slices.pop_back();
        }
        slices.push_back({ begin, il + 1, n_layer, 0, 0, drops_masks, begin == il && kv.layer_read_by(il) == il });
    }
}

void llama_kv_cache_headkv::reading::tell(uint32_t n) const {
    if (prompt.progress) {
        headkv_call_back(kv.canceller, [&]() { prompt.progress(prompt.data, n, n_told()); });
    }
}

void llama_kv_cache_headkv::reading::run() {
    tell(0);
    require_not_cancelled(); // before anything is touched
    begin();
    read_panels(prompt.tokens, prompt.n_tokens, n_past, /*keep =*/true);
    if (!bounded.empty() && (!in_cells || reads_behind())) {
        at_end = std::make_shared<headkv_bounded>(ctx.get_memory(), /*rows =*/true);
    }
    if (prompt.n_again > 0) {
        behind([&]() { read_again(); });
    }
    t_select_us = ggml_time_us();
    if (n_draft > 0 && has_logits()) { // without them nothing says which token is the likeliest
        behind([&]() { observe_draft(); });
    }
    compact();
}

void llama_kv_cache_headkv::reading::read_panels(const int32_t * tokens, uint32_t n, uint32_t p0, bool keep) {
    for (uint32_t i = 0, n_now; i < n; i += n_now) {
        n_now = std::min(n_panel, n - i);
        read_panel({ tokens + i, n_now, p0 + i, keep, i + n_now == n });
        n_done += n_now;
    }
}

// held beside what the cache holds now
size_t llama_kv_cache_headkv::reading::n_bytes_aside() const {
    return (cells ? size_of(*cells) : 0) + (kept ? kept->size() : 0) + (obs ? obs->size() : 0);
}

void llama_kv_cache_headkv::reading::take_over() {
    archive->fork(kv.kept ? n_past : 0, kv.archived.size());
    if (kv.kept) {
        exts.assign(kv.archived.begin(), kv.archived.begin() + n_past);
        return;
    }
    if (n_past > 0) {
        auto cell = kv.get_prompt_cells();
        cell.resize(n_past);
        kv.archive_cells(*archive, cell, 0, exts);
    }
}

void llama_kv_cache_headkv::reading::begin() {
    if (in_cells) {
        begin_in_cells();
        return;
    }
    take_over();

    const bool beside = prompt.order == HEADKV_ORDER_LAYERS && (kv.is_on_device() || headkv_queue::always_beside);

    n_rooms = beside ? 2 : 1;
    rows    = std::make_unique<headkv_queue>(beside);
    loaded.resize(slices.size());

    auto room              = make_room();
    const uint32_t n_cells = room->get_size();
    for (auto & s : slices) {
        s.n_cells = beside ? n_cells : 0;
    }

    auto next = std::make_unique<headkv_observer>(headkv_observer::TOKENS, kv.shapes, n_cells, prompt.first, weights(),
                                                  again_at());

    // what stays of the bounded layers; a copy, since it may have to stay again
    headkv_bounded past = kv.kept && n_past > 0 && kv.archived_end ? *kv.archived_end : headkv_bounded(nullptr, false);

    // nothing can fail from here on

    {
        const std::lock_guard<std::mutex> lock(kv.mutex);
        begun = true;
        cells = std::move(room);
        kv.swap_cells(*cells);
        kept       = std::move(kv.kept);
        obs        = std::move(kv.obs);
        queries    = std::move(kv.queries);
        kv.obs     = std::move(next);
        kv.n_cells = n_past;
        kv.update_peak(n_bytes_aside());
    }
    past.put_back();
    if (n_past == 0) {
        bounded.clear();
    }
    slice   = slices.front();
    kv.read = this;
    kv.epoch++;
}

void llama_kv_cache_headkv::reading::read_panel(const panel & p) {
    if (in_cells) {
        read_batches(p);
        return;
    }
    const headkv_bounded before(ctx.get_memory(), /*rows =*/false);
    const auto seen = kv.obs->get_seen();

    for (size_t i = 0; i < n_rooms; ++i) {
        if (p.p0 == n_past || !slices[i].is_whole()) { // all layers at once stay in their cells
            load(i, p.p0);
        }
    }
    for (i_slice = 0; i_slice < slices.size(); ++i_slice) {
        kv.llama_kv_cache::seq_rm(0, p.p0, -1);
        kv.v_heads[0] = p.p0;
        if (i_slice > 0) {
            before.put_back_places();
        }
        kv.obs->set_seen(seen);
        slice    = slices[i_slice];
        slice.p0 = p.p0;
        read_slice(p);
    }
    rows->wait();
    const auto cell = kv.get_prompt_cells();
    for (uint32_t i = p.p0; p.keep && i < p.p0 + p.n; ++i) {
        exts.push_back(kv.v_cells[0].ext_get(i));
    }
    for (uint32_t i = 0; i < cell.size(); ++i) {
        if (cell[i] != i) {
            throw headkv_error(HEADKV_ERR_INTERNAL, "the prompt's cells are not in order");
        }
    }
}

void llama_kv_cache_headkv::reading::read_slice(const panel & p) {
    rows->wait(loaded[i_slice]);
    read_batches(p);
    store(i_slice, p);
    load(i_slice + n_rooms, p.p0);
}

void llama_kv_cache_headkv::reading::read_batches(const panel & p) {
    for (uint32_t i = 0, end; i < p.n; i = end) {
        end = batch_end(p, i);
        decode(p, i, end - i);
        if (prompt.progress) {
            tell(n_done + ((uint64_t) p.n * i_slice + end) / slices.size());
            require_not_cancelled(); // also after the last one
        }
    }
    ctx.synchronize();
}

// As a caller of llama_decode() would cut it; in models with bounded layers, which split batches themselves, with few
// enough observed tokens in each.
uint32_t llama_kv_cache_headkv::reading::batch_end(const panel & p, uint32_t i) const {
    const uint32_t end = std::min(i + ctx.n_batch(), p.n);
    if (bounded.empty() || keeps_all) {
        return end;
    }
    const uint32_t first   = std::clamp((int64_t) prompt.first - p.p0, (int64_t) 0, (int64_t) p.n);
    const uint32_t at_once = kv.get_observe_limit(p.p0 + p.n);
    if (p.n - first <= at_once) {
        return end;
    }
    return i < first ? std::min(end, first) : std::min(end, i + at_once);
}

void llama_kv_cache_headkv::reading::require_not_cancelled() const {
    if (kv.canceller.cancelled) {
        throw headkv_error(HEADKV_ERR_CANCELLED, "cancelled");
    }
}

void llama_kv_cache_headkv::reading::decode(const panel & p, uint32_t i, uint32_t n) {
    require_not_cancelled();
    if (in_cells && !at_end) { // what is read behind the prompt is taken back as a whole
        begin_batch(p.p0 + i);
    }
    std::vector<llama_token> tokens(p.tokens + i, p.tokens + i + n);
    std::vector<llama_pos> pos(n);
    std::iota(pos.begin(), pos.end(), p.p0 + i);
    std::vector<int32_t> n_seq_id(n, 1);
    llama_seq_id seq = 0;
    std::vector<llama_seq_id *> seq_id(n, &seq);
    std::vector<int8_t> output(n, prompt.logits && p.keep && prompt.order == HEADKV_ORDER_TOKENS);
    output[n - 1 - p.n_beside] |= p.output && slice.end == slice.n_layer && i + n == p.n;

    failure      = nullptr;
    kv.refusal   = nullptr;
    const int rc = llama_decode(
        &ctx, { (int32_t) n, tokens.data(), nullptr, pos.data(), n_seq_id.data(), seq_id.data(), output.data() });
    for (const auto & cause : { failure, kv.refusal }) {
        if (cause) {
            std::rethrow_exception(cause);
        }
    }
    switch (rc) {
    case 0:
        unfinished.reset();
        p_batch = -1;
        return;
    case 2:
        throw headkv_error(HEADKV_ERR_CANCELLED, "cancelled");
    case -2:
        throw headkv_error(HEADKV_ERR_MEMORY, "no memory to compute a batch");
    case -1:
        throw headkv_error(HEADKV_ERR_INTERNAL, "llama.cpp refused the batch");
    default:
        throw headkv_error(HEADKV_ERR_INTERNAL,
                           headkv_error_text.empty() ? format("decoding failed with %d", rc) : headkv_error_text);
    }
}

bool llama_kv_cache_headkv::reading::cut(llm_graph_result & res, const llama_ubatch & ubatch) {
    if (slice.is_whole()) {
        return true;
    }
    try {
        if (!checked) { // all of it, before anything is computed
            const auto & asked = ctx.get_cparams();
            const auto & inp   = asked.embeddings_layer_inp;
            if (asked.embeddings || asked.embeddings_nextn || std::find(inp.begin(), inp.end(), true) != inp.end()) {
                throw headkv_error(HEADKV_ERR_UNSUPPORTED,
                                   "the model cannot be read layer by layer: the context is asked for embeddings");
            }
            size_t most = 0;
            for (const auto & s : slices) {
                size_t row                = 0;
                const std::string problem = headkv_check_slice(res, s, ubatch.n_tokens, row);
                if (!problem.empty()) {
                    kv.uncut = "the model cannot be read layer by layer: " + problem;
                    throw headkv_error(HEADKV_ERR_UNSUPPORTED, kv.uncut);
                }
                most = std::max(most, row);
            }
            hidden.alloc(kv.is_on_device() ? kv.shapes[0].buft : ggml_backend_cpu_buffer_type(),
                         std::min<size_t>(n_panel, std::max<size_t>(prompt.n_tokens, n_piece)), most);
            checked = true;
        }
        headkv_cut(res, slice, ubatch, hidden);
        return true;
    } catch (...) { // llama.cpp goes on to clean up
        failure = std::current_exception();
        return false;
    }
}
