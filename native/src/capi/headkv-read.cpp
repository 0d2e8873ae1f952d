// The choreography of a prompt: what asks, what each KV head may keep, what is not read again. Python's Llama calls it.

#include "base/headkv-error.h"
#include "base/headkv-guard.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"
#include "scores/headkv-caps.h"
#include "text/headkv-asking.h"
#include "text/headkv-infill.h"
#include "text/headkv-spelled.h"
#include "text/headkv-text.h"

#include <algorithm>

// Questions that a draft answers: the first tokens of an answer say where the first one looks.
static constexpr int32_t n_questions_max = 4;

// last tokens that may ask where there is no room to read the whole prompt once more
static constexpr int32_t observe_default = 128;

// A prompt that is read once more as a whole needs room for as many tokens at a time, else it looks at nothing in turn.
static constexpr int32_t n_room_least = 128;

namespace {

// what the C API says of a context
struct context_facts {
    explicit context_facts(llama_context * ctx) {
        headkv_require_ok(headkv_get_stats(ctx, &stats, sizeof(stats), nullptr, 0));
        layers.resize(stats.n_layer);
        headkv_require_ok(headkv_get_layers(ctx, layers.data(), layers.size()));

        std::vector<int64_t> bytes(ggml_backend_dev_count());
        headkv_require_ok(headkv_get_device_bytes(ctx, bytes.data(), bytes.size()));
        bounded_bytes = -(stats.bytes_cells + stats.bytes_kept + stats.bytes_record);
        for (const int64_t n : bytes) {
            bounded_bytes += n;
        }
        bounded         = !headkv_bounded(ctx->get_memory(), /*rows =*/false).empty();
        const auto & kv = *llama_kv_cache_headkv::find(ctx->get_memory());
        archives        = kv.has_archive();
        uncut           = kv.get_uncut();
    }

    headkv_stats stats;
    std::vector<headkv_layer> layers;
    int64_t bounded_bytes; // of the other layers
    bool bounded;          // are there layers that cannot go back
    bool archives;
    std::string uncut; // why the model is not read by layers, as far as it is known
};

// Progress that is told of once something is done: by then it is known that the graph can be cut, and so the order.
struct late_progress {
    const headkv_reading & reading;
    bool begun = false;

    static void tell(void * data, int32_t done, int32_t total) {
        auto & self = *(late_progress *) data;
        if (done > 0 && !self.begun) {
            self.begun = true;
            self.reading.progress(self.reading.data, 0, total);
        }
        if (self.begun) {
            self.reading.progress(self.reading.data, done, total);
        }
    }
};

} // namespace

static void require_reading(const llama_context & ctx, const headkv_reading & reading, const context_facts & facts) {
    headkv_require_pointer(reading.tokens);
    if (reading.n_tokens < 1 || reading.n_tokens > (size_t) facts.stats.n_ctx) {
        throw headkv_error(reading.n_tokens < 1 ? HEADKV_ERR_ARGUMENT : HEADKV_ERR_STATE,
                           format("a prompt of %zu tokens cannot be read in a context of %lld positions",
                                  reading.n_tokens, (long long) facts.stats.n_ctx));
    }
    const int32_t n_vocab = ctx.get_model().vocab.n_tokens();
    for (size_t i = 0; i < reading.n_tokens; ++i) {
        if (reading.tokens[i] < 0 || reading.tokens[i] >= n_vocab) {
            throw headkv_error(HEADKV_ERR_ARGUMENT,
                               format("token %d is none of the model's, which has %d", reading.tokens[i], n_vocab));
        }
    }
    if (reading.n_held < 0 || reading.n_held > facts.stats.n_tokens) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("the context does not hold %d tokens, it holds %lld",
                                                       reading.n_held, (long long) facts.stats.n_tokens));
    }
    if ((size_t) reading.n_held > reading.n_tokens) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("%d of %zu tokens cannot be held", reading.n_held, reading.n_tokens));
    }
    if (reading.n_new < 0 || (size_t) reading.n_new > reading.n_tokens) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("%d of %zu tokens cannot be new", reading.n_new, reading.n_tokens));
    }
    if (reading.n_question > 0) {
        headkv_require_pointer(reading.question);
    }
    if (reading.order < HEADKV_ORDER_TOKENS || reading.order > HEADKV_ORDER_ANY) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("there is no order %d", reading.order));
    }
}

// last tokens that observe in any case
static int32_t n_least_of(const headkv_retention & retention, const context_facts & facts) {
    return 2 * (int32_t) std::min<int64_t>(retention.window, facts.stats.n_ctx);
}

static std::vector<headkv_part> question_of(const llama_vocab & vocab, const headkv_reading & reading,
                                            const headkv_retention & retention, const context_facts & facts,
                                            const headkv_text_view & text) {
    if (reading.n_question > 0) {
        return { reading.question, reading.question + reading.n_question };
    }
    const int32_t observe = retention.observe > 0 ? retention.observe : observe_default;
    if (reading.message_start != 0 || reading.message_stop != 0) {
        return text.question(reading.message_start, reading.message_stop, observe);
    }
    const int32_t n_prompt = reading.n_tokens;
    const auto around_gap  = headkv_infill_question(vocab, reading.tokens, n_prompt, observe);
    if (!around_gap.empty()) {
        return around_gap;
    }

    // Tokens that came before do not ask, unless they are told, or of the message that is. Where the prompt is the
    // compacted one, or goes on otherwise within it, a turn is read again, and where that began is not known.
    const bool goes_on  = facts.stats.n_prompt <= reading.n_held && facts.stats.n_prompt < n_prompt;
    const int32_t n_new = reading.n_new > 0 ? reading.n_new : n_prompt - (goes_on ? (int32_t) facts.stats.n_prompt : 0);
    return text.question(-1, n_prompt, std::min(observe, std::max(n_new, n_least_of(retention, facts))));
}

// Tokens that stay of those that the context holds; whoever observes is read.
static int32_t past_of(llama_context * ctx, const headkv_reading & reading, const context_facts & facts, bool in_cells,
                       headkv_asking & asking) {
    const int32_t n_prompt = reading.n_tokens;
    const int32_t n_whole  = facts.stats.n_prompt > 0 ? facts.stats.n_archived : facts.stats.n_tokens;
    const int32_t n_past   = std::min({ n_whole, reading.n_held, asking.first, n_prompt - 1 });
    if (!facts.bounded) {
        return n_past;
    }
    const headkv_bounded bounded(ctx->get_memory(), /*rows =*/false);
    if (in_cells) {
        return bounded.reaches(n_past) ? n_past : 0;
    }
    // all of them, and those do not observe; or none
    const bool reaches = facts.stats.n_prompt > 0 || bounded.reaches(n_whole);
    asking.stay_at(reaches && n_whole <= reading.n_held && n_whole < n_prompt ? n_whole : 0);
    return asking.n_stay;
}

static void read_prompt(llama_context * ctx, const headkv_reading & reading, const headkv_retention & retention,
                        headkv_read_info & info) {
    const context_facts facts(ctx);
    require_reading(*ctx, reading, facts);

    const int32_t n_prompt = reading.n_tokens;
    headkv_check_retention(retention);
    std::vector<int32_t> caps;
    if (retention.caps) {
        headkv_require_length(retention.n_caps, facts.stats.n_head_kv);
        caps.assign(retention.caps, retention.caps + retention.n_caps);
    } else {
        caps = headkv_make_caps(retention, facts.layers.data(), facts.layers.size(), facts.bounded_bytes, n_prompt);
    }
    const bool fits     = std::all_of(caps.begin(), caps.end(), [&](int32_t cap) { return cap >= n_prompt; });
    const bool compacts = facts.stats.n_prompt > 0 || !fits;

    const headkv_spelled spelled(ctx->get_model().vocab, reading.tokens, n_prompt);
    const headkv_text_view text(spelled.text());
    std::vector<uint8_t> ends(n_prompt);
    text.sentence_ends(ends.data());
    const int32_t n_least = n_least_of(retention, facts);
    const int32_t n_room  = ctx->headkv_samples() ? 0 : facts.stats.n_ctx - n_prompt; // for what is read once more
    const bool whole      = compacts && retention.observe == 0;
    const bool rereads    = whole && n_room >= std::min(n_room_least, n_prompt);
    const auto question   = question_of(ctx->get_model().vocab, reading, retention, facts, text);
    headkv_asking asking(question.data(), question.size(), n_prompt, n_least, n_room); // refuses parts that cannot be
    if (rereads) {
        asking = headkv_asking(n_prompt, n_least);
    } else if (whole) {
        asking.n_left_out = n_prompt;
    }
    if (!compacts) {
        asking.first      = n_prompt; // nobody observes
        asking.n_left_out = 0;
        asking.again.clear();
    }
    const bool any = reading.order == HEADKV_ORDER_ANY;
    const bool layers =
        compacts && (any ? facts.archives && facts.uncut.empty() : reading.order == HEADKV_ORDER_LAYERS);
    const bool cells = !layers && (!compacts || (!facts.archives && facts.stats.n_prompt == 0));
    info.n_past      = past_of(ctx, reading, facts, cells, asking);
    info.n_again     = asking.again.size();
    info.n_left_out  = asking.n_left_out;
    info.order       = layers ? HEADKV_ORDER_LAYERS : HEADKV_ORDER_TOKENS;
    info.compacts    = compacts;

    std::vector<int32_t> again;
    for (const int32_t i : asking.again) {
        again.push_back(reading.tokens[i]);
    }
    const int32_t n_asked  = std::min(text.n_questions(question), n_questions_max);
    const headkv_plan plan = { std::min(retention.window, n_prompt),
                               retention.kernel,
                               retention.sinks,
                               caps.data(),
                               caps.size(),
                               ends.data(),
                               ends.size(),
                               rereads };
    headkv_prompt prompt   = {};
    prompt.tokens          = reading.tokens + info.n_past;
    prompt.n_tokens        = n_prompt - info.n_past;
    prompt.n_past          = info.n_past;
    prompt.order           = info.order;
    prompt.panel           = reading.panel;
    prompt.first           = asking.first;
    prompt.weights         = asking.weights.data();
    prompt.n_weights       = asking.weights.size();
    prompt.again           = again.data();
    prompt.again_at        = rereads ? nullptr : asking.again.data();
    prompt.n_again         = again.size();
    prompt.n_draft         = rereads ? 0 : std::min<int64_t>((int64_t) retention.draft * n_asked, facts.stats.n_ctx);
    prompt.logits          = reading.logits;
    prompt.progress        = reading.progress;
    prompt.data            = reading.data;

    late_progress late = { reading };
    std::string uncut  = any && compacts && facts.archives ? facts.uncut : "";
    if (any && layers && reading.progress) {
        prompt.progress = late_progress::tell;
        prompt.data     = &late;
    }
    int32_t code = headkv_prefill(ctx, &prompt, sizeof(prompt), compacts ? &plan : nullptr, sizeof(plan));
    if (code == HEADKV_ERR_UNSUPPORTED && any && layers) {
        uncut        = headkv_last_error();
        prompt.order = info.order = HEADKV_ORDER_TOKENS;
        code                      = headkv_prefill(ctx, &prompt, sizeof(prompt), &plan, sizeof(plan));
    }
    headkv_require_ok(code);
    if (!uncut.empty()) {
        headkv_set_error(uncut.c_str());
    }
}

int32_t headkv_read(llama_context * ctx, const headkv_reading * reading, size_t reading_size,
                    const headkv_retention * retention, size_t retention_size, headkv_read_info * info,
                    size_t info_size) {
    return headkv_guard([&]() {
        headkv_require_pointer(reading);
        headkv_require_size(reading_size, sizeof(*reading));
        headkv_require_pointer(retention);
        headkv_require_size(retention_size, sizeof(*retention));
        headkv_read_info found;
        if (info) {
            headkv_require_size(info_size, sizeof(*info));
        }
        read_prompt(ctx, *reading, *retention, info ? *info : found);
    });
}
