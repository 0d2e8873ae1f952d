// States that llama_state_set_data() and llama_state_seq_set_data() refuse: cut short anywhere, or of what no context
// holds. All parts of a memory are empty then, and the next prompt is right.
//
// --windows, --hybrid, --hybrid-windows: a model with such layers

#include "archive-turn.h"

#include <functional>

static constexpr int n_prompt = 100, n_more = 30;

using bytes = std::vector<uint8_t>;

// by one of llama.h's two ways
struct way {
    const char * name;
    size_t n_before; // bytes before the memory's own

    bytes get(llama_context * ctx) const {
        bytes res(of_sequence() ? llama_state_seq_get_size(ctx, 0) : llama_state_get_size(ctx));
        const size_t n = of_sequence() ? llama_state_seq_get_data(ctx, res.data(), res.size(), 0)
                                       : llama_state_get_data(ctx, res.data(), res.size());
        check(n == res.size(), "a state");
        return res;
    }

    bool set(llama_context * ctx, const bytes & state, size_t n) const {
        return (of_sequence() ? llama_state_seq_set_data(ctx, state.data(), n, 0)
                              : llama_state_set_data(ctx, state.data(), n)) == n;
    }

    bool set(llama_context * ctx, const bytes & state) const { return set(ctx, state, state.size()); }

    bool of_sequence() const { return n_before == 8; } // no architecture's is as long
};

// the architecture's name and its length, or llama.cpp's word and a sequence
static std::vector<way> ways(const llama_model & model) {
    return { { "the context's", 4 + strlen(llm_arch_name(model.arch)) }, { "the sequence's", 8 } };
}

// nothing is held, and a prompt that comes next is that of a new context
static bool is_as_new(llama_context * ctx, const std::vector<float> & right) {
    const headkv_stats stats = turn_stats(ctx);
    llama_memory_t mem       = llama_get_memory(ctx);
    return stats.n_tokens == 0 && stats.n_prompt == 0 && llama_memory_seq_pos_max(mem, 0) == -1 &&
           turn_decode(ctx, 0, n_more) && same_bits(turn_logits(ctx), right);
}

static void test_cut(llama_context * ctx, const way & by, const bytes & state, const std::vector<float> & right) {
    const auto cut = [&](size_t n) {
        llama_memory_clear(llama_get_memory(ctx), true);
        check(turn_decode(ctx, 0, n_more + 5), "what was there before");
        check(!by.set(ctx, state, n), "a state that is cut short is refused");
        if (!is_as_new(ctx, right)) {
            check(false, (std::string(by.name) + ", cut at " + std::to_string(n)).c_str());
        }
    };
    const size_t n_all = state.size();
    for (size_t n = by.n_before; n < n_all; n += n < 600 ? 53 : n_all / 31) {
        cut(n);
    }
    cut(n_all - 1);
    check(by.set(ctx, state), "the whole state");
}

//
// what no context holds
//

// at any address
struct word {
    uint8_t * at;

    void operator=(uint32_t value) const { memcpy(at, &value, sizeof(value)); }

    void operator+=(uint32_t n) const {
        uint32_t value;
        memcpy(&value, at, sizeof(value));
        *this = value + n;
    }

    void operator-=(uint32_t n) const { *this += 0 - n; }
};

static word word_at(bytes & state, size_t i) {
    return { state.data() + i };
}

static constexpr uint32_t n_tail = 15; // the window, and tokens after the prompt

// where the cells of the tail begin: one stream, their number, the first one's position and its number of sequences
static size_t tail_of(const bytes & state) {
    const uint32_t begin[] = { 1, n_tail, n_prompt - n_turn_window, 1 };
    const auto it =
        std::search(state.begin(), state.end(), (const uint8_t *) begin, (const uint8_t *) begin + sizeof(begin));
    check(it != state.end(), "the tail's cells");
    return it - state.begin() + 2 * sizeof(uint32_t);
}

static void test_unsound(llama_context * ctx, const way & by, const bytes & state, const std::vector<float> & right) {
    const size_t kept = by.n_before + 2 * sizeof(uint32_t), tail = tail_of(state);
    const size_t size = 3 * sizeof(uint32_t); // of a cell: position, sequences, the sequence

    const std::pair<const char *, std::function<void(bytes &)>> cases[] = {
        { "more cells than there are", [&](bytes & s) { word_at(s, kept - 4)     += 1000; } },
        { "cells without end", [&](bytes & s) { word_at(s, kept - 4)    = UINT32_MAX; } },
        { "a longer prompt", [&](bytes & s) { word_at(s, kept + 4)      = 2 * n_prompt; } },
        { "a longer prompt than the tail", [&](bytes & s) { word_at(s, kept + 4) += n_tail; } },
        { "kept rows that end later", [&](bytes & s) { word_at(s, kept + 8) += 2; } },
        { "kept rows that end before", [&](bytes & s) { word_at(s, kept + 8) -= 1; } },
        { "a gap in the window", [&](bytes & s) { word_at(s, tail + 3 * size) = n_prompt + n_tail; } },
        { "a position twice", [&](bytes & s) { word_at(s, tail + 3 * size) -= 1; } },
        { "a position before the window", [&](bytes & s) { word_at(s, tail + (n_tail - 1) * size) = 3; } },
    };
    for (const auto & [what, f] : cases) {
        bytes damaged = state;
        f(damaged);
        check(!by.set(ctx, damaged), what);
        check(is_as_new(ctx, right), what);
    }
    // cells that it does not say right it has all the same
    bytes other              = state;
    word_at(other, kept - 4) = 3;
    check(by.set(ctx, other) && turn_stats(ctx).n_tokens == n_prompt + (int) n_tail - n_turn_window, "fewer cells");

    check(by.set(ctx, state), "the state itself");
}

// A part of a memory's state that is all of it, since there are no bounded layers: it is cut where the queries of a
// tail are, behind the cells.
static void test_partial(llama_context * ctx, const std::vector<float> & right) {
    where = "partial";
    llama_memory_clear(llama_get_memory(ctx), true);
    check(turn_compact(ctx, { 0, n_prompt }) &&
              headkv_observe(ctx, HEADKV_OBSERVE_TAIL, n_prompt, n_more, nullptr, nullptr, 0) == HEADKV_OK &&
              turn_decode(ctx, n_prompt, n_prompt + n_more),
          "a tail that is observed");
    const auto flags = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
    bytes state(llama_state_seq_get_size_ext(ctx, 0, flags));
    check(llama_state_seq_get_data_ext(ctx, state.data(), state.size(), 0, flags) == state.size(), "a state");
    check(llama_state_seq_set_data_ext(ctx, state.data(), state.size() - 1, 0, flags) == 0, "it is refused");
    check(is_as_new(ctx, right), "nothing is held");
}

// Cells become more where a sequence has a copy.
static void test_copied(llama_model * model) {
    where = "copied";
    headkv_begin_small(1);
    const auto ctx = turn_open(model);
    headkv_begin_small(0);
    llama_memory_t mem = llama_get_memory(ctx.get());
    check(headkv_reserve(ctx.get(), n_more + 1) == HEADKV_OK && turn_decode(ctx.get(), 0, n_more), "few cells");
    llama_memory_seq_cp(mem, 0, 1, -1, -1);
    check(turn_decode(ctx.get(), n_more, n_more + 1), "a token");
    const auto right = turn_logits(ctx.get());
    check(headkv_reserve(ctx.get(), 0) == HEADKV_OK, "more cells");
    check(llama_memory_seq_rm(mem, 0, -1, -1), "taken out");
    llama_memory_seq_cp(mem, 1, 0, -1, -1);
    check(turn_decode(ctx.get(), n_more, n_more + 1) && same_bits(turn_logits(ctx.get()), right), "the copy is whole");
}

// Compaction frees the cells, a copy's too.
static void test_copy_compacted(llama_model * model) {
    where              = "copied, compacted";
    const auto ctx     = turn_open(model);
    llama_memory_t mem = llama_get_memory(ctx.get());
    check(turn_observe(ctx.get(), HEADKV_OBSERVE_TOKENS, 0, n_prompt), "an observed prompt");
    llama_memory_seq_cp(mem, 0, 1, -1, -1);
    const turn_plan plan(ctx.get(), n_prompt);
    check(headkv_compact(ctx.get(), &plan, sizeof(headkv_plan)) == HEADKV_ERR_STATE, "refused");
    check(llama_memory_seq_pos_max(mem, 1) == n_prompt - 1, "the copy is whole");
    check(llama_memory_seq_rm(mem, 1, -1, -1), "taken out");
    check(headkv_compact(ctx.get(), &plan, sizeof(headkv_plan)) == HEADKV_OK, "compacted");
}

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const llama_model_ptr model = tiny_model_load(tiny_model_asked(argc, argv));

    const auto fresh = turn_open(model.get());
    check(turn_decode(fresh.get(), 0, n_more), "a prompt");
    const auto right = turn_logits(fresh.get());

    const auto compacted = turn_open(model.get()), dormant = turn_open(model.get());
    check(turn_compact(compacted.get(), { 0, n_prompt }), "compacted");
    check(turn_decode(compacted.get(), n_prompt, n_prompt + n_tail - n_turn_window), "its tail");
    check(turn_decode(dormant.get(), 0, n_prompt), "dormant");

    const auto ctx = turn_open(model.get());
    for (const auto & by : ways(*model)) {
        where = std::string("dormant, ") + by.name;
        test_cut(ctx.get(), by, by.get(dormant.get()), right);
        where = std::string("compacted, ") + by.name;
        test_cut(ctx.get(), by, by.get(compacted.get()), right);
        test_unsound(ctx.get(), by, by.get(compacted.get()), right);
    }
    if (!tiny_model_asked(argc, argv).bounded()) {
        test_partial(ctx.get(), right);
    }
    if (!tiny_model_asked(argc, argv).hybrid) { // recurrent layers copy none
        test_copied(model.get());
        test_copy_compacted(model.get());
    }
    return checked();
}
