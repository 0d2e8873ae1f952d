// What is read behind a prompt to see what it looks at, and taken back: a question that stood before what it asks
// about, and a draft of the answer, which is made with what would be kept without it.

#include "base/headkv-error.h"
#include "llama-context.h"
#include "llama-model.h"
#include "prefill/headkv-prefill.h"

#include <algorithm>

// Weight of other observed tokens beside a draft, as if they paid two fifths of the attention.
static constexpr float beside_draft = 0.03f;

std::vector<float> llama_kv_cache_headkv::reading::weights() const {
    std::vector<float> res(prompt.weights, prompt.weights + prompt.n_weights);
    if (n_draft > 0) {
        std::transform(res.begin(), res.end(), res.begin(), [](float w) { return w * beside_draft; });
    }
    return res;
}

void llama_kv_cache_headkv::reading::read_behind() {
    const size_t n_vocab = ctx.get_model().vocab.n_tokens();
    const float * last   = ctx.get_logits_ith(-1);
    if (!last) { // samplers in the graph took its place: nothing says which token is the likeliest
        n_draft = 0;
    }
    const std::vector<float> logits(last, last ? last + n_vocab : nullptr);

    const auto go_back = [&]() {
        take_back();
        if (last) {
            std::copy(logits.begin(), logits.end(), ctx.get_logits_ith(-1));
        }
    };
    if (prompt.n_again > 0) {
        read_panels(prompt.again, prompt.n_again, n_prompt, /*keep =*/false);
        go_back();
    }
    t_select_us = ggml_time_us(); // re-reading a question is prefill
    if (n_draft > 0) {
        {
            const std::lock_guard<std::mutex> lock(kv.mutex);
            kv.n_drafted = n_prompt;
        }
        const std::vector<int32_t> draft = make_draft();
        n_draft                          = draft.size();
        take_back();
        kv.obs->record_more(n_prompt, n_draft);
        read_panels(draft.data(), n_draft, n_prompt, /*keep =*/false);
        go_back();
    }
}

void llama_kv_cache_headkv::reading::take_back() {
    if (at_end) {
        headkv_bounded(*at_end).put_back();
    }
    if (in_cells) {
        kv.seq_rm(0, n_prompt, -1);
    }
}

// With what would be kept of the prompt in place of its cells; then these are there again.
std::vector<int32_t> llama_kv_cache_headkv::reading::make_draft() {
    return in_cells ? draft_beside_cells() : draft_without_room();
}

std::vector<int32_t> llama_kv_cache_headkv::reading::draft_beside_cells() {
    compacted there = kv.make_compacted(plan, std::max(1, ctx.get_cparams().n_threads));

    {
        const std::lock_guard<std::mutex> lock(kv.mutex);
        kv.update_peak(there.kept->size() + size_of(*there.tail));
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
    const std::unique_ptr<compacted, decltype(exchange)> back(&there, exchange);

    return decode_draft();
}

// Rows are in the archive: a layer needs no room meanwhile, and gets it again. What fails is put back by the
// destructor.
std::vector<int32_t> llama_kv_cache_headkv::reading::draft_without_room() {
    std::unique_ptr<headkv_kept_prompt> next;
    std::unique_ptr<headkv_observer> seen;

    const auto go_to = [&](std::unique_ptr<llama_kv_cache> there) {
        const std::lock_guard<std::mutex> lock(kv.mutex);
        kv.swap_cells(*there);
        kv.n_cells = kv.n_used();
        kv.update_peak(n_bytes_aside());
        kv.epoch++;
    };
    go_to(make_tail(n_prompt - plan.window, plan.window + n_draft));
    next = gather(choose());
    {
        const std::lock_guard<std::mutex> lock(kv.mutex);
        std::swap(kv.kept, next);
        std::swap(kv.obs, seen);
        kv.update_peak(n_bytes_aside() + seen->size());
    }
    kv.read = nullptr;

    const std::vector<int32_t> res = decode_draft();

    kv.wait();
    {
        const std::lock_guard<std::mutex> lock(kv.mutex);
        std::swap(kv.kept, next);
        std::swap(kv.obs, seen);
    }
    next.reset();
    kv.read = this;
    go_to(make_room());
    return res;
}

// At most n_draft tokens, each the likeliest one, up to one that ends the answer.
std::vector<int32_t> llama_kv_cache_headkv::reading::decode_draft() {
    const llama_vocab & vocab = ctx.get_model().vocab;
    const auto likeliest      = [&]() {
        ctx.synchronize(); // a decode returns while a device is still at it
        const float * logits = ctx.get_logits_ith(-1);
        return (int32_t) (std::max_element(logits, logits + vocab.n_tokens()) - logits);
    };
    std::vector<int32_t> res = { likeliest() };
    while (res.size() < n_draft && !vocab.is_eog(res.back())) {
        decode({ &res.back(), 1, n_prompt + (uint32_t) res.size() - 1, /*keep =*/false, /*output =*/true }, 0, 1);
        res.push_back(likeliest());
    }
    return res;
}
