// A draft of the answer is made with what would be kept without it, and a little more. The queries that its tokens have
// there are recorded; what they look at of the whole prompt selects. (Lookahead Q-Cache, arXiv 2505.20334.)

#include "base/headkv-error.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"
#include "prefill/headkv-prefill.h"
#include "text/headkv-characters.h"

#include <algorithm>
#include <cmath>
#include <string>

// Weight of other observed tokens beside a draft, as if they paid two fifths of the attention.
static constexpr float beside_draft = 0.03f;

// Weight of its tokens behind the first third, as if they paid a little more than half of the attention: an answer that
// says once more what was asked comes to the point there, one that is short is over.
static constexpr float late_in_draft = 0.1f;

// So many entries more has each KV head while a draft is made: with few, a draft goes wrong. A layer's room takes
// as much, which a long prompt that is read by layers does without meanwhile.
static constexpr int32_t more_entries = 64;

// As many tokens as there is room for. None where all is kept: nothing is to be selected.
void llama_kv_cache_headkv::reading::plan_draft() {
    const auto keeps_all = [&](int32_t cap) { return cap >= (int64_t) n_prompt; };
    if (std::all_of(plan.caps, plan.caps + plan.n_caps, keeps_all)) {
        return;
    }
    const size_t n_taken = n_past + prompt.n_tokens;
    n_draft              = std::clamp<int64_t>(prompt.n_draft, 0, kv.n_ctx - std::min<size_t>(n_taken, kv.n_ctx));

    draft_plan = plan;
    for (size_t i = 0; i < plan.n_caps; ++i) {
        draft_caps.push_back(std::min<int64_t>(plan.caps[i], n_prompt) + more_entries);
    }
    draft_plan.caps = draft_caps.data();
}

// of the token that was decoded last: samplers in the graph take them
bool llama_kv_cache_headkv::reading::has_logits() const {
    return ctx.get_logits_ith(-1) && ctx.get_sampled_token_ith(-1) == LLAMA_TOKEN_NULL &&
           !ctx.get_sampled_logits_ith(-1) && !ctx.get_sampled_probs_ith(-1);
}

uint32_t llama_kv_cache_headkv::reading::n_early() const {
    return std::max(prompt.n_draft / 3, 1);
}

std::vector<float> llama_kv_cache_headkv::reading::weights() const {
    std::vector<float> res(prompt.weights, prompt.weights + prompt.n_weights);
    if (n_draft > 0) {
        std::transform(res.begin(), res.end(), res.begin(), [](float w) { return w * beside_draft; });
    }
    return res;
}

void llama_kv_cache_headkv::reading::observe_draft() {
    {
        const std::lock_guard<std::mutex> lock(kv.mutex);
        kv.n_drafted = n_prompt;
    }
    const auto asked = in_cells ? draft_beside_cells() : draft_without_room();

    if (in_cells) {
        look(*asked, slice);
        return;
    }
    for (size_t i = 0; i < n_rooms; ++i) {
        load(i, n_prompt, /*with_v =*/false);
    }
    for (size_t i = 0; i < slices.size(); ++i) {
        rows->wait(loaded[i]);
        look(*asked, slices[i]);
        load(i + n_rooms, n_prompt, /*with_v =*/false);
    }
}

// With kept rows in place of the prompt's cells; then these are there again.
std::unique_ptr<headkv_queries> llama_kv_cache_headkv::reading::draft_beside_cells() {
    compacted there = kv.make_compacted(draft_plan, std::max(1, ctx.get_cparams().n_threads));
    auto asked      = kv.make_queries(n_prompt, n_draft);

    {
        const std::lock_guard<std::mutex> lock(kv.mutex);
        kv.update_peak(there.kept->size() + size_of(*there.tail) + asked->get_buffers().size());
    }

    std::unique_ptr<headkv_observer> obs_there;
    const auto exchange = [&](compacted *) { // cannot fail
        kv.wait();
        const std::lock_guard<std::mutex> lock(kv.mutex);
        kv.swap_cells(*there.tail);
        std::swap(kv.kept, there.kept);
        std::swap(kv.obs, obs_there);
        kv.n_cells = kv.n_used();
        kv.epoch++;
    };
    exchange(&there);
    {
        const std::unique_ptr<compacted, decltype(exchange)> back(&there, exchange);
        decode_draft(asked);
    }
    return asked;
}

// Rows are in the archive: a layer needs no room meanwhile, and gets it again. What fails is put back by the
// destructor.
std::unique_ptr<headkv_queries> llama_kv_cache_headkv::reading::draft_without_room() {
    std::unique_ptr<headkv_kept_prompt> next;
    std::unique_ptr<headkv_observer> seen;
    std::unique_ptr<headkv_queries> asked;

    const auto go_to = [&](std::unique_ptr<llama_kv_cache> there) {
        const std::lock_guard<std::mutex> lock(kv.mutex);
        kv.swap_cells(*there);
        kv.n_cells = kv.n_used();
        kv.update_peak(n_bytes_aside() + size_of(*there) + (asked ? asked->get_buffers().size() : 0));
        kv.epoch++;
    };
    const auto exchange = [&]() {
        kv.wait();
        const std::lock_guard<std::mutex> lock(kv.mutex);
        std::swap(kv.kept, next);
        std::swap(kv.obs, seen);
        kv.update_peak(n_bytes_aside() + (seen ? seen->size() : 0) + asked->get_buffers().size());
    };
    go_to(make_tail(n_prompt - plan.window, plan.window + n_draft));
    asked = kv.make_queries(n_prompt, n_draft);
    next  = gather(choose(draft_plan));
    exchange();
    kv.read = nullptr;

    decode_draft(asked);

    exchange();
    next.reset();
    kv.read = this;
    go_to(make_room());
    return asked;
}

static bool holds_sentence_end(const std::string & text) {
    const auto * begin = (const uint8_t *) text.data();
    const auto * end   = begin + text.size();
    return headkv_find_sentence_end(begin, begin, end, end) != nullptr;
}

// At most n_draft tokens, each the likeliest one, up to one that ends the answer, or the first sentence that ends in
// the last two thirds of them: many answers say once more what was asked before they tell. Then all once more, as a
// batch: what llama.cpp sums for a single token depends on the number of threads, and so would what is kept. (As it may
// where the draft is one token.) Over many cells of a sliding window also which token is the likeliest: a token beside
// it, which is taken back, makes a batch of it. Recurrent layers take none back.
void llama_kv_cache_headkv::reading::decode_draft(std::unique_ptr<headkv_queries> & asked) {
    const llama_vocab & vocab = ctx.get_model().vocab;
    const uint32_t n_beside   = !bounded.empty() && !llama_model_is_hybrid(&ctx.get_model()) && ctx.n_batch() > 1;
    std::vector<int32_t> draft;
    while (true) {
        ctx.synchronize(); // a decode returns while a device is still at it
        const float * logits = ctx.get_logits_ith(-1);
        draft.push_back(std::max_element(logits, logits + vocab.n_tokens()) - logits);
        const auto late = draft.begin() + std::min<size_t>(draft.size(), n_early() - 1);
        if (draft.size() == n_draft || vocab.is_eog(draft.back()) ||
            holds_sentence_end(vocab.detokenize({ late, draft.end() }, false))) {
            break;
        }
        const uint32_t p      = n_prompt + draft.size() - 1;
        const int32_t both[2] = { draft.back(), draft.back() };
        decode({ both, 1 + n_beside, p, /*keep =*/false, /*output =*/true, n_beside }, 0, 1 + n_beside);
        if (n_beside > 0) {
            ctx.get_memory()->seq_rm(0, p + 1, -1);
        }
    }
    take_back();

    const auto exchange = [&](std::unique_ptr<headkv_queries> *) {
        kv.wait();
        const std::lock_guard<std::mutex> lock(kv.mutex);
        std::swap(kv.queries, asked);
        kv.epoch++;
    };
    exchange(&asked);
    const std::unique_ptr<std::unique_ptr<headkv_queries>, decltype(exchange)> back(&asked, exchange);

    const panel all = { draft.data(), (uint32_t) draft.size(), n_prompt, /*keep =*/false, /*output =*/true };
    for (uint32_t i = 0; i < all.n; i += ctx.n_batch()) {
        decode(all, i, std::min(ctx.n_batch(), all.n - i));
    }
    ctx.synchronize();
}

// What the draft's tokens look at in the layers of a slice, whose rows are there.
void llama_kv_cache_headkv::reading::look(const headkv_queries & asked, const headkv_slice & s) {
    std::vector<int32_t> readers;
    for (const auto & [il, layer] : asked.get_layers()) {
        if (s.holds(kv.layer_read_by(il))) {
            readers.push_back(il);
        }
    }
    if (readers.empty()) {
        return;
    }
    const slot_info all        = { 0, 0, { 0 }, {} };
    const uint32_t n_kv        = kv.get_n_kv(all);
    const auto & cells         = kv.get_cells(0);
    const size_t n_nodes       = 64 * readers.size();
    ggml_backend_sched_t sched = ctx.get_sched();

    // ggml ends the process where it gets no memory for this by itself
    std::vector<uint8_t> meta(n_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false));
    const ggml_init_params params = { meta.size(), meta.data(), /*.no_alloc =*/true };

    kv.n_reserved = 0; // its buffers may become as large as the prompt wants them
    kv.epoch++;        // no graph is in them any more
    for (uint32_t i = 0, n; i < asked.get_n_seen(); i += n) {
        n = std::min(kv.obs->at_once(n_kv), asked.get_n_seen() - i);
        std::vector<float> weights(n, late_in_draft);
        std::fill_n(weights.begin(), std::clamp<int64_t>((int64_t) n_early() - i, 0, n), 1.0f);
        kv.obs->aim_beside(n_prompt + i, std::move(weights), cells);

        const ggml_context_ptr owner(ggml_init(params));
        ggml_context * graph = owner.get();
        ggml_cgraph * gf     = ggml_new_graph_custom(graph, n_nodes, false);
        ggml_tensor * mask   = ggml_new_tensor_2d(graph, GGML_TYPE_F16, n_kv, n);
        ggml_set_input(mask);
        const headkv_record_inputs in = kv.obs->build_inputs(graph, n_kv);

        for (const int32_t il : readers) {
            const uint32_t ikv  = kv.ikv_of(il);
            const auto & shape  = kv.shapes[ikv];
            headkv_attention at = asked.get_layers().at(il);
            const size_t row    = at.q->nb[1];
            at.q    = ggml_view_3d(graph, at.q, shape.d_k, shape.n_head, n, shape.d_k * sizeof(float), row, i * row);
            at.k    = kv.get_k(graph, il, n_kv, all);
            at.mask = mask;
            kv.obs->build(graph, gf, ikv, at);
        }
        ggml_backend_sched_reset(sched);
        if (!ggml_backend_sched_alloc_graph(sched, gf)) {
            throw headkv_error(HEADKV_ERR_MEMORY, "no memory to look at a prompt for a draft of its answer");
        }
        std::vector<ggml_fp16_t> seen(n_kv * n);
        for (size_t j = 0; j < seen.size(); ++j) {
            seen[j] = ggml_fp32_to_fp16(cells.is_empty(j % n_kv) ? -INFINITY : 0.0f);
        }
        ggml_backend_tensor_set(mask, seen.data(), 0, ggml_nbytes(mask));
        kv.obs->set_inputs(in);

        const ggml_status status = ctx.graph_compute(gf, /*batched =*/true);
        ggml_backend_sched_synchronize(sched);
        if (status == GGML_STATUS_ABORTED) {
            throw headkv_error(HEADKV_ERR_CANCELLED, "cancelled");
        }
        if (status != GGML_STATUS_SUCCESS) {
            throw headkv_error(HEADKV_ERR_INTERNAL, format("looking at a prompt failed with %d", (int) status));
        }
        require_not_cancelled(); // a device does not ask by itself
    }
}
