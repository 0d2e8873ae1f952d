#pragma once

// Turns of a conversation on a tiny model, read by headkv_prefill() or by what it takes the place of.

#include "cache/headkv-bounded.h"
#include "headkv.h"
#include "tiny-model.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

static constexpr int n_turn_batch = 128;

struct archive_turn {
    int n_past   = 0;
    int n_prompt = 0;
    int branch   = 0; // other tokens at the same positions
    int order    = HEADKV_ORDER_LAYERS;
    int panel    = 0;
    int n_again  = 0;
    int n_draft  = 0;
    bool logits  = false; // of all tokens

    void (*progress)(void *, int32_t, int32_t) = nullptr;
    void * data                                = nullptr;
};

static constexpr int n_turn_window   = 8;
static constexpr int n_turn_observed = 20;

inline llama_token turn_token_at(int pos, int branch = 0) {
    return (tiny_model_token_at(pos) + 31 * branch) % 90;
}

inline std::vector<int32_t> turn_tokens(int p0, int p1, int branch = 0) {
    std::vector<int32_t> res;
    for (int p = p0; p < p1; ++p) {
        res.push_back(turn_token_at(p, branch));
    }
    return res;
}

// batches of n_batch tokens from position p0 on, with the logits of the last one
inline bool turn_decode(llama_context * ctx, int p0, int p1, int branch = 0, int n_batch = n_turn_batch) {
    const auto token_at = [branch](int pos) { return turn_token_at(pos, branch); };
    for (int p = p0; p < p1; p += n_batch) {
        const int n     = std::min(n_batch, p1 - p);
        const auto last = p + n == p1 ? tiny_batch::LAST : tiny_batch::NONE;
        if (tiny_batch(p, n, token_at, last).decode(ctx) != 0) {
            return false;
        }
    }
    return true;
}

inline std::vector<float> turn_logits(llama_context * ctx) {
    const float * data = llama_get_logits_ith(ctx, -1);
    return data ? std::vector<float>(data, data + 96) : std::vector<float>();
}

inline bool same_bits(const std::vector<float> & a, const std::vector<float> & b) {
    return !a.empty() && a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// where a context is, to go back to; layers that cannot go back are copied
class turn_mark {
public:
    explicit turn_mark(llama_context * ctx)
        : memory(llama_get_memory(ctx)),
          n(llama_memory_seq_pos_max(memory, 0) + 1),
          bounded(memory, /*rows =*/true) {}

    bool go_back() { // once
        bounded.put_back();
        return llama_memory_seq_rm(memory, 0, n, -1);
    }

private:
    llama_memory_t memory;
    int n;
    headkv_bounded bounded;
};

inline headkv_stats turn_stats(const llama_context * ctx) {
    headkv_stats res = {};
    headkv_get_stats(ctx, &res, sizeof(res), nullptr, 0);
    return res;
}

inline std::vector<uint8_t> turn_mask(const llama_context * ctx) {
    const headkv_stats stats = turn_stats(ctx);
    std::vector<uint8_t> res(stats.n_head_kv * stats.n_prompt);
    return headkv_get_mask(ctx, res.data(), res.size()) == HEADKV_OK ? res : std::vector<uint8_t>();
}

// what to keep of it; heads differ, one keeps nothing but the window
class turn_plan : public headkv_plan {
public:
    turn_plan(const llama_context * ctx, int n_prompt) : ends_of(n_prompt) {
        const int all[] = { 20, 200, 8, 128, 64, 64 };
        for (int h = 0; h < turn_stats(ctx).n_head_kv; ++h) {
            caps_of.push_back(all[h % 6]);
        }
        for (int p = 19; p < n_prompt; p += 20) {
            ends_of[p] = 1;
        }
        (headkv_plan &) * this = {
            n_turn_window, 7, 4, caps_of.data(), caps_of.size(), ends_of.data(), ends_of.size()
        };
    }

private:
    std::vector<int32_t> caps_of;
    std::vector<uint8_t> ends_of;
};

// the last of the observed tokens count more
inline std::vector<float> turn_weights(int n) {
    std::vector<float> res(n, 1.0f);
    std::fill(res.begin(), res.begin() + n / 2, 0.25f);
    return res;
}

// positions of the tokens that are read once more
inline std::vector<int32_t> turn_again_at(int n) {
    std::vector<int32_t> res(n);
    std::iota(res.begin(), res.end(), 5);
    return res;
}

// what headkv_prefill() gets of a turn
class turn_call {
public:
    turn_call(llama_context * ctx, const archive_turn & turn)
        : ctx(ctx),
          tokens(turn_tokens(turn.n_past, turn.n_prompt, turn.branch)),
          again(turn_tokens(5, 5 + turn.n_again)),
          again_at(turn_again_at(turn.n_again)),
          weights(turn_weights(turn.n_again > 0 ? turn.n_again : n_turn_observed)),
          plan(ctx, turn.n_prompt) {
        prompt.tokens    = tokens.data();
        prompt.n_tokens  = tokens.size();
        prompt.n_past    = turn.n_past;
        prompt.order     = turn.order;
        prompt.panel     = turn.panel;
        prompt.first     = turn.n_prompt + turn.n_again - weights.size();
        prompt.weights   = weights.data();
        prompt.n_weights = weights.size();
        prompt.again     = again.data();
        prompt.again_at  = again_at.data();
        prompt.n_again   = again.size();
        prompt.n_draft   = turn.n_draft;
        prompt.logits    = turn.logits;
        prompt.progress  = turn.progress;
        prompt.data      = turn.data;
    }

    int32_t run() const { return headkv_prefill(ctx, &prompt, sizeof(prompt), &plan, sizeof(headkv_plan)); }

private:
    llama_context * ctx;
    const std::vector<int32_t> tokens, again, again_at;
    const std::vector<float> weights;
    const turn_plan plan;
    headkv_prompt prompt = {};
};

inline int32_t turn_prefill(llama_context * ctx, const archive_turn & turn) {
    return turn_call(ctx, turn).run();
}

// The same without an archive, on an empty context: p[i] to p[i + 1] in batches, the last part as the turn says.
inline bool turn_compact(llama_context * ctx, const std::vector<int> & p, int branch = 0, int n_again = 0) {
    const int n_prompt = p.back();
    const auto weights = turn_weights(n_again > 0 ? n_again : n_turn_observed);
    const auto again   = turn_again_at(n_again);
    if (headkv_observe(ctx, HEADKV_OBSERVE_TOKENS, n_prompt + n_again - weights.size(), weights.size(), weights.data(),
                       again.data(), again.size()) != HEADKV_OK) {
        return false;
    }
    for (size_t i = 0; i + 1 < p.size(); ++i) {
        if (!turn_decode(ctx, p[i], p[i + 1], i + 2 == p.size() ? branch : 0)) {
            return false;
        }
    }
    if (n_again > 0) {
        turn_mark end(ctx);
        const auto token_at = [n_prompt](int pos) { return turn_token_at(pos - n_prompt + 5); };
        const int rc        = tiny_batch(n_prompt, n_again, token_at, tiny_batch::NONE).decode(ctx);
        if (rc != 0 || !end.go_back()) {
            return false;
        }
    }
    const turn_plan plan(ctx, n_prompt);
    return headkv_compact(ctx, &plan, sizeof(headkv_plan)) == HEADKV_OK;
}

// Up to the compaction of p1 tokens, p0 of which the context holds: the last of them are observed.
//   what: HEADKV_OBSERVE_TOKENS, or HEADKV_OBSERVE_TAIL for a fold
inline bool turn_observe(llama_context * ctx, int what, int p0, int p1) {
    const int first = p1 - n_turn_observed;
    return turn_decode(ctx, p0, first) &&
           headkv_observe(ctx, what, first, n_turn_observed, nullptr, nullptr, 0) == HEADKV_OK &&
           turn_decode(ctx, first, p1);
}

inline llama_context_params turn_params(ggml_type type = GGML_TYPE_F16, uint32_t n_ubatch = 37, uint32_t n_ctx = 1024) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = n_ctx;
    params.n_batch              = n_turn_batch;
    params.n_ubatch             = n_ubatch;
    params.n_threads            = 1;
    params.n_threads_batch      = 1;
    params.flash_attn_type      = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.swa_full             = false;
    params.type_k               = type;
    params.type_v               = type;
    return params;
}

inline llama_context_ptr turn_open(llama_model * model, ggml_type type = GGML_TYPE_F16, uint32_t n_ubatch = 37,
                                   uint32_t n_ctx = 1024) {
    return llama_context_ptr(llama_init_from_model(model, turn_params(type, n_ubatch, n_ctx)));
}

inline std::string turn_path(const char * name) {
    const char * folder = getenv("TMPDIR");
    return std::string(folder ? folder : "/tmp") + "/headkv-" + name + "-" + std::to_string(getpid());
}

// All that a caller can see of a context, its next three tokens too: what must be the same after a call that failed.
struct turn_state {
    headkv_stats stats;
    std::vector<uint8_t> mask;
    std::vector<float> logits;

    explicit turn_state(llama_context * ctx) {
        if (turn_stats(ctx).n_tokens == 0) {
            headkv_reserve(ctx, 0); // as its next token would
        }
        stats = turn_stats(ctx);
        mask  = turn_mask(ctx);

        // a call that failed did need memory, and computed; times differ
        stats.bytes_peak = stats.n_splits = stats.t_select_us = stats.t_compact_us = 0;

        const int n = stats.n_tokens;
        turn_mark here(ctx);
        for (int i = 0; i < 3; ++i) {
            turn_decode(ctx, n + i, n + i + 1);
            const auto row = turn_logits(ctx);
            logits.insert(logits.end(), row.begin(), row.end());
        }
        if (!here.go_back()) {
            logits.clear();
        }
    }

    bool operator==(const turn_state & o) const {
        return memcmp(&stats, &o.stats, sizeof(stats)) == 0 && mask == o.mask && same_bits(logits, o.logits);
    }
};

// what the turn has to say, and what comes after it
struct outcome {
    std::vector<float> logits;
    turn_state state;

    explicit outcome(llama_context * ctx) : logits(turn_logits(ctx)), state(ctx) {}

    bool operator==(const outcome & o) const { return same_bits(logits, o.logits) && state == o.state; }
};

//
// checks
//

inline int n_run  = 0;
inline int n_fail = 0;
inline std::string where; // which case runs

inline void check(bool ok, const char * what) {
    n_run++;
    if (!ok) {
        n_fail++;
        printf("FAIL %s: %s [%s]\n", where.c_str(), what, headkv_last_error());
    }
}

// refused with this code and a sentence that has this in it, and nothing has changed
template <typename F>
inline void check_refused(llama_context * ctx, const char * what, int32_t code, const char * text, F && f) {
    const turn_state before(ctx);
    const int32_t rc       = f();
    const std::string said = headkv_last_error();
    n_run++;
    if (rc != code || said.find(text) == std::string::npos) {
        n_fail++;
        printf("FAIL %s: %s is %d [%s]\n", where.c_str(), what, rc, said.c_str());
    }
    check(turn_state(ctx) == before, what);
}

inline int checked() {
    printf("%d passed, %d failed\n", n_run - n_fail, n_fail);
    return n_fail ? 1 : 0;
}
