// Prompts and turns that are read with an archive: logits are those of llama_decode() on a context that was never
// compacted, bit by bit; what is kept is what headkv_compact() keeps of the same tokens; what cannot be is refused.

#include "archive-turn.h"
#include "prefill/headkv-queue.h"
#include "slice/headkv-slice.h"

#include <sstream>

static void set_archive(llama_context * ctx, bool file) {
    check(headkv_set_archive(ctx, file ? HEADKV_ARCHIVE_FILE : HEADKV_ARCHIVE_MEMORY,
                             file ? turn_path("archive").c_str() : nullptr) == HEADKV_OK,
          "an archive");
}

// the right answers, for all orders, panels and archives: logits of a context that was never compacted, and the mask
// and what follows it of one that was, in one go
struct expected {
    static constexpr int n_prompt = 600, n_more = 10, n_turn = 700, n_cut = 450, n_other = 520;

    std::vector<float> prompt, turn, other, after;
    std::vector<uint8_t> prompt_mask, turn_mask, other_mask;

    expected(llama_model * model, ggml_type type) {
        auto full = turn_open(model, type);
        check(turn_decode(full.get(), 0, n_prompt), "full");
        prompt = turn_logits(full.get());
        check(turn_decode(full.get(), n_prompt, n_turn), "full");
        turn = turn_logits(full.get());

        // windows do not reach back to before a cut: read anew
        llama_memory_clear(llama_get_memory(full.get()), true);
        check(turn_decode(full.get(), 0, n_cut) && turn_decode(full.get(), n_cut, n_other, 1), "full");
        other = turn_logits(full.get());

        prompt_mask = compacted(model, type, { 0, n_prompt }, 0, &after);
        turn_mask   = compacted(model, type, { 0, n_prompt, n_turn }, 0, nullptr);
        other_mask  = compacted(model, type, { 0, n_cut, n_other }, 1, nullptr);
    }

    static std::vector<uint8_t> compacted(llama_model * model, ggml_type type, const std::vector<int> & p, int branch,
                                          std::vector<float> * after) {
        auto ctx = turn_open(model, type);
        check(turn_compact(ctx.get(), p, branch), "compacted in one go");
        auto res = ::turn_mask(ctx.get());
        if (after) {
            check(turn_decode(ctx.get(), n_prompt, n_prompt + n_more, 0, 1), "decoding after it");
            *after = turn_logits(ctx.get());
        }
        return res;
    }
};

static void test_turns(llama_model * model, const tiny_model_params & shape, const expected & want, ggml_type type,
                       bool file, int order, int panel) {
    std::ostringstream name;
    name << shape.name() << " " << ggml_type_name(type) << (file ? " file" : " memory")
         << (order == HEADKV_ORDER_LAYERS ? " layers" : " tokens") << " panel " << panel;
    where = name.str();

    auto ctx_ptr        = turn_open(model, type);
    llama_context * ctx = ctx_ptr.get();
    set_archive(ctx, file);

    archive_turn turn;
    turn.order    = order;
    turn.panel    = panel;
    turn.n_prompt = want.n_prompt;
    check(turn_prefill(ctx, turn) == HEADKV_OK, "a prompt");
    check(same_bits(turn_logits(ctx), want.prompt), "its logits");
    check(turn_mask(ctx) == want.prompt_mask, "its mask");

    std::vector<headkv_layer> layers(turn_stats(ctx).n_layer);
    headkv_get_layers(ctx, layers.data(), layers.size());
    int64_t n_bytes = 0;
    for (const auto & layer : layers) {
        n_bytes += (int64_t) layer.row_bytes * layer.n_head_kv * want.n_prompt;
    }
    const headkv_stats stats = turn_stats(ctx);
    check(stats.n_archived == want.n_prompt && stats.n_prompt == want.n_prompt && stats.n_tokens == want.n_prompt,
          "its stats");
    check(stats.bytes_archive >= n_bytes && stats.bytes_archive <= n_bytes * 768 / 600 + 4096, "the archive's bytes");

    check(turn_decode(ctx, want.n_prompt, want.n_prompt + want.n_more, 0, 1), "an answer");
    check(same_bits(turn_logits(ctx), want.after), "its logits");

    turn.n_past   = want.n_prompt;
    turn.n_prompt = want.n_turn;
    check(turn_prefill(ctx, turn) == HEADKV_OK, "a later turn");
    check(same_bits(turn_logits(ctx), want.turn), "the later turn's logits");
    check(turn_mask(ctx) == want.turn_mask, "the later turn's mask");
    check(turn_stats(ctx).n_archived == want.n_turn, "the later turn's archive");

    turn.n_past   = want.n_cut;
    turn.n_prompt = want.n_other;
    turn.branch   = 1;
    if (shape.bounded()) {
        check_refused(ctx, "a cut", HEADKV_ERR_STATE, "0 of them or all 700 can stay",
                      [&]() { return turn_prefill(ctx, turn); });
    } else {
        check(turn_prefill(ctx, turn) == HEADKV_OK, "a cut");
        check(same_bits(turn_logits(ctx), want.other), "the cut's logits");
        check(turn_mask(ctx) == want.other_mask, "the cut's mask");
        check(turn_stats(ctx).n_archived == want.n_other, "the cut's archive");
    }

    turn.n_past   = 0;
    turn.n_prompt = want.n_prompt;
    turn.branch   = 0;
    check(turn_prefill(ctx, turn) == HEADKV_OK, "the prompt in place of all");
    check(same_bits(turn_logits(ctx), want.prompt), "its logits, once more");
    check(turn_mask(ctx) == want.prompt_mask, "its mask, once more");

    ctx_ptr.reset();
    check(access(turn_path("archive").c_str(), F_OK) != 0, "the file goes with the context");
}

// tokens that are read once more, in panels that are shorter than they are, too
static void test_again(llama_model * model, const tiny_model_params & shape) {
    static constexpr int n_prompt = 300, n_again = 40;

    auto full = turn_open(model);
    check(turn_decode(full.get(), 0, n_prompt), "full");
    const auto logits = turn_logits(full.get());

    auto observed = turn_open(model);
    check(turn_compact(observed.get(), { 0, n_prompt }, 0, n_again), "compacted");
    const auto mask = turn_mask(observed.get());

    for (const int order : { HEADKV_ORDER_TOKENS, HEADKV_ORDER_LAYERS }) {
        for (const int panel : { 0, n_turn_batch, 16 }) {
            where = std::string(shape.name()) + ", again, order " + std::to_string(order) + " panel " +
                    std::to_string(panel);
            auto ctx = turn_open(model);
            set_archive(ctx.get(), order == HEADKV_ORDER_TOKENS);
            archive_turn turn;
            turn.n_prompt = n_prompt;
            turn.order    = order;
            turn.panel    = panel;
            turn.n_again  = n_again;
            check(turn_prefill(ctx.get(), turn) == HEADKV_OK, "a prompt");
            if (panel != 16) { // other batches
                check(same_bits(turn_logits(ctx.get()), logits), "logits of the prompt's last token");
                check(turn_mask(ctx.get()) == mask, "mask");
            }
            check(turn_stats(ctx.get()).n_archived == n_prompt && turn_stats(ctx.get()).n_tokens == n_prompt, "stats");
            check(turn_decode(ctx.get(), n_prompt, n_prompt + 5), "an answer");
            const auto after = turn_logits(ctx.get());
            if (panel != 16) {
                turn_mark end(observed.get());
                check(turn_decode(observed.get(), n_prompt, n_prompt + 5), "an answer");
                check(same_bits(after, turn_logits(observed.get())), "logits after it");
                check(end.go_back(), "taken back");
            }
            turn.n_past   = n_prompt;
            turn.n_prompt = n_prompt + 60;
            turn.n_again  = 0;
            check(turn_prefill(ctx.get(), turn) == HEADKV_OK, "a later turn");
        }
    }
}

// the tokens before are in ordinary cells
static void test_from_cells(llama_model * model, const tiny_model_params & shape) {
    static constexpr int n_past = 300, n_prompt = 400, n_cut = 270;
    for (const int order : { HEADKV_ORDER_TOKENS, HEADKV_ORDER_LAYERS }) {
        where     = std::string(shape.name()) + ", from cells, order " + std::to_string(order);
        auto full = turn_open(model);
        check(turn_decode(full.get(), 0, n_past) && turn_decode(full.get(), n_past, n_prompt), "full");
        auto ctx = turn_open(model);
        set_archive(ctx.get(), true);
        check(turn_decode(ctx.get(), 0, n_past), "cells");
        archive_turn turn;
        turn.order    = order;
        turn.n_past   = n_past;
        turn.n_prompt = n_prompt;
        check(turn_prefill(ctx.get(), turn) == HEADKV_OK, "a turn");
        check(same_bits(turn_logits(ctx.get()), turn_logits(full.get())), "its logits");
        check(turn_mask(ctx.get()) == expected::compacted(model, GGML_TYPE_F16, { 0, n_past, n_prompt }, 0, nullptr),
              "its mask");

        llama_memory_clear(llama_get_memory(ctx.get()), true);
        check(turn_stats(ctx.get()).n_archived == 0 && turn_stats(ctx.get()).bytes_archive < 4096, "nothing stays");
        check(turn_decode(ctx.get(), 0, n_past), "cells");
        turn.n_past   = n_cut;
        turn.n_prompt = n_cut + 30;
        turn.branch   = 1;
        if (shape.bounded()) {
            check_refused(ctx.get(), "a cut", HEADKV_ERR_STATE, "0 of them or all 300 can stay",
                          [&]() { return turn_prefill(ctx.get(), turn); });
            continue;
        }
        check(turn_prefill(ctx.get(), turn) == HEADKV_OK, "a cut");
        llama_memory_clear(llama_get_memory(full.get()), true);
        check(turn_decode(full.get(), 0, n_past) && llama_memory_seq_rm(llama_get_memory(full.get()), 0, n_cut, -1) &&
                  turn_decode(full.get(), n_cut, n_cut + 30, 1),
              "full");
        check(same_bits(turn_logits(ctx.get()), turn_logits(full.get())), "the cut's logits");
    }
}

// a full cache that is never there
static void test_small(tiny_model_params shape) {
    where                         = std::string(shape.name()) + ", small";
    static constexpr int n_prompt = 3000, n_ctx = 4096, n_small = 8;

    shape.n_layer               = 16;
    const llama_model_ptr model = tiny_model_load(shape);
    headkv_begin_small(1);
    auto ctx = turn_open(model.get(), GGML_TYPE_F16, 512, n_ctx);
    headkv_begin_small(0);
    auto full = turn_open(model.get(), GGML_TYPE_F16, 512, n_ctx);

    headkv_stats stats = turn_stats(ctx.get());
    check(stats.bytes_cells == stats.bytes_full / (n_ctx / n_small), "a few cells");
    check(turn_stats(full.get()).bytes_cells == stats.bytes_full, "all cells");

    set_archive(ctx.get(), false);
    archive_turn turn;
    turn.n_prompt = n_prompt;
    check(turn_prefill(ctx.get(), turn) == HEADKV_OK, "a prompt");
    check(turn_decode(full.get(), 0, n_prompt), "full");
    check(same_bits(turn_logits(ctx.get()), turn_logits(full.get())), "its logits");

    stats                 = turn_stats(ctx.get());
    const int64_t layer   = stats.bytes_full / stats.n_layer;
    const int64_t small   = stats.bytes_full / (n_ctx / n_small);
    const int64_t record  = (int64_t) stats.n_head_kv * n_ctx * sizeof(float);
    const int64_t rooms   = headkv_queue::always_beside ? 2 : 1;
    const int64_t allowed = rooms * layer + small + record + stats.bytes_kept;
    printf("%s: peak %.2f MiB: a layer of %.2f, kept %.2f; full cache %.2f\n", where.c_str(),
           stats.bytes_peak / 1048576.0, layer / 1048576.0, stats.bytes_kept / 1048576.0, stats.bytes_full / 1048576.0);
    check(stats.bytes_peak <= allowed && allowed < stats.bytes_full / 2, "peak");

    // without an archive it grows to what it would have been
    headkv_begin_small(1);
    ctx = turn_open(model.get(), GGML_TYPE_F16, 512, n_ctx);
    headkv_begin_small(0);
    check(turn_decode(ctx.get(), 0, n_prompt), "decoded");
    check(same_bits(turn_logits(ctx.get()), turn_logits(full.get())), "its logits");
    check(turn_stats(ctx.get()).bytes_cells == stats.bytes_full, "all cells");
}

// hidden states of a panel: never more than a quarter GiB, in whole batches or ubatches if these fit
static void test_panel(llama_model * model) {
    where = "panel";
    check(headkv_panel(2048, 1000, 500) == 131000, "whole batches");
    check(headkv_panel(4 * 4096, 32768, 500) == 16000, "whole ubatches");
    check(headkv_panel(4 * 4096, 32768, 32768) == 16384, "a part of one");
    check(headkv_panel(size_t(1) << 40, 1, 1) == 1, "a token");

    const auto ctx    = turn_open(model);
    int32_t n_tokens  = 0;
    int64_t row_bytes = 0;
    check(headkv_get_panel(ctx.get(), &n_tokens, &row_bytes) == HEADKV_OK, "a panel");
    check(row_bytes == 4 * llama_model_n_embd(model), "a row");
    check(n_tokens == (int32_t) headkv_panel(row_bytes, n_turn_batch, 37), "tokens");
    check(headkv_get_panel(ctx.get(), nullptr, &row_bytes) == HEADKV_ERR_ARGUMENT, "nowhere");
}

// --windows, --hybrid, --hybrid-windows: a model with such layers; --beside: rows are moved beside what is computed
int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    headkv_queue::always_beside = has_option(argc, argv, "--beside"); // as on a GPU

    const tiny_model_params shape = tiny_model_asked(argc, argv);
    const llama_model_ptr model   = tiny_model_load(shape);
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        if (shape.hybrid && type != GGML_TYPE_F16) {
            continue; // the attention half of a hybrid memory is a plain one, or one with windows
        }
        where = "expected";
        const expected want(model.get(), type);
        for (const bool file : { false, true }) {
            test_turns(model.get(), shape, want, type, file, HEADKV_ORDER_TOKENS, 0);
            for (const int panel : { 0, n_turn_batch, 3 * n_turn_batch }) {
                test_turns(model.get(), shape, want, type, file, HEADKV_ORDER_LAYERS, panel);
            }
        }
    }
    test_panel(model.get());
    test_again(model.get(), shape);
    test_from_cells(model.get(), shape);
    if (!shape.hybrid) {
        test_small(shape);
    }

    return checked();
}
