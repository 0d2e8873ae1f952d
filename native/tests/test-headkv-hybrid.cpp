// Recurrent layers and full attention in one model, as llama_memory_hybrid holds them (--hybrid); and sliding windows,
// as llama_memory_hybrid_iswa does (--hybrid-windows).

#include "archive-turn.h"

#include <cmath>

static constexpr int n_prompt = 300, n_turn = 380, n_more = 10;

// logits of n tokens from position p0 on, one by one
static std::vector<float> answer(llama_context * ctx, int p0, int n = n_more) {
    std::vector<float> res;
    for (int p = p0; p < p0 + n; ++p) {
        check(turn_decode(ctx, p, p + 1), "decoding");
        const auto row = turn_logits(ctx);
        res.insert(res.end(), row.begin(), row.end());
    }
    return res;
}

static double nmse(const std::vector<float> & a, const std::vector<float> & b) {
    double num = 0.0, den = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
        num += ((double) a[i] - b[i]) * ((double) a[i] - b[i]);
        den += (double) b[i] * b[i];
    }
    return num / den;
}

static void test_dormant(llama_model * model) {
    where = "dormant";
    setenv("HEADKV_DISABLE", "1", 1);
    auto stock = turn_open(model);
    unsetenv("HEADKV_DISABLE");
    check(headkv_supported(stock.get()) == HEADKV_ERR_UNSUPPORTED, "stock");

    auto ctx = turn_open(model);
    check(headkv_supported(ctx.get()) == HEADKV_OK, "supported");
    check(turn_stats(ctx.get()).n_layer == 2, "two layers retain");
    check(turn_decode(stock.get(), 0, n_prompt) && turn_decode(ctx.get(), 0, n_prompt), "a prompt");
    check(same_bits(answer(ctx.get(), n_prompt), answer(stock.get(), n_prompt)), "stock's logits");
}

static void test_all_kept(llama_model * model) {
    where     = "all kept";
    auto full = turn_open(model);
    auto ctx  = turn_open(model);
    check(turn_decode(full.get(), 0, n_prompt), "full");
    check(headkv_observe(ctx.get(), HEADKV_OBSERVE_TOKENS, n_prompt - 20, 20, nullptr, nullptr, 0) == HEADKV_OK,
          "observing");
    check(turn_decode(ctx.get(), 0, n_prompt), "a prompt");
    check(same_bits(turn_logits(ctx.get()), turn_logits(full.get())), "logits under observation");

    turn_plan plan(ctx.get(), n_prompt);
    const std::vector<int32_t> caps(plan.n_caps, n_prompt);
    plan.caps = caps.data();
    check(headkv_compact(ctx.get(), &plan, sizeof(headkv_plan)) == HEADKV_OK, "compacted");
    const double distance = nmse(answer(ctx.get(), n_prompt), answer(full.get(), n_prompt));
    printf("%s: NMSE %.2g\n", where.c_str(), distance);
    check(distance < 1e-5, "logits close to the full cache's");
}

// what is refused, and a state that is read by another context, change nothing that is said after it
static void test_compacted(llama_model * model) {
    where    = "compacted";
    auto ctx = turn_open(model);
    check(turn_compact(ctx.get(), { 0, n_prompt }), "compacted");
    const auto stats = turn_stats(ctx.get());
    check(stats.n_prompt == n_prompt && stats.bytes_cells + stats.bytes_kept < stats.bytes_full / 2, "stats");

    check(!llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, n_prompt / 2, -1), "a cut of the prompt is refused");
    std::vector<uint8_t> state(llama_state_get_size(ctx.get()));
    check(llama_state_get_data(ctx.get(), state.data(), state.size()) == state.size(), "a state");

    auto other = turn_open(model);
    check(llama_state_set_data(other.get(), state.data(), state.size()) == state.size(), "read by another context");
    check(turn_mask(other.get()) == turn_mask(ctx.get()), "its mask");

    auto untouched = turn_open(model);
    check(turn_compact(untouched.get(), { 0, n_prompt }), "compacted");
    const auto wanted = answer(untouched.get(), n_prompt);
    check(same_bits(answer(ctx.get(), n_prompt), wanted), "an answer after a refusal");
    check(same_bits(answer(other.get(), n_prompt), wanted), "an answer after a state");
}

static void test_archive(llama_model * model, int order) {
    where     = order == HEADKV_ORDER_LAYERS ? "archive, layers" : "archive, tokens";
    auto full = turn_open(model);
    check(turn_decode(full.get(), 0, n_prompt), "full");
    const auto prompt_logits = turn_logits(full.get());
    check(turn_decode(full.get(), n_prompt, n_turn), "full");

    auto once = turn_open(model);
    check(turn_compact(once.get(), { 0, n_prompt }), "compacted in one go");

    auto ctx = turn_open(model);
    check(headkv_set_archive(ctx.get(), HEADKV_ARCHIVE_MEMORY, nullptr) == HEADKV_OK, "an archive");
    archive_turn turn;
    turn.order    = order;
    turn.n_prompt = n_prompt;
    check(turn_prefill(ctx.get(), turn) == HEADKV_OK, "a prompt");
    check(same_bits(turn_logits(ctx.get()), prompt_logits), "its logits");
    check(turn_mask(ctx.get()) == turn_mask(once.get()), "its mask");

    turn.n_past   = n_prompt;
    turn.n_prompt = n_turn;
    check(turn_prefill(ctx.get(), turn) == HEADKV_OK, "a later turn");
    check(same_bits(turn_logits(ctx.get()), turn_logits(full.get())), "its logits");

    turn.n_past = n_prompt;
    check(turn_prefill(ctx.get(), turn) == HEADKV_ERR_STATE, "going back is refused");
    auto anew = turn_open(model);
    check(headkv_set_archive(anew.get(), HEADKV_ARCHIVE_MEMORY, nullptr) == HEADKV_OK, "an archive");
    turn.n_past = 0;
    check(turn_prefill(anew.get(), turn) == HEADKV_OK, "all of it anew");
    check(turn_mask(anew.get()) == turn_mask(ctx.get()), "the later turn's mask");
    check(same_bits(answer(ctx.get(), n_turn), answer(anew.get(), n_turn)), "an answer");
}

// Of all parts of the memory, or of none: also where the sequence is any, of which recurrent layers refuse a part.
static void test_answer_taken_back(llama_model * model, llama_seq_id seq) {
    where    = "an answer taken back";
    auto ctx = turn_open(model);
    check(headkv_set_archive(ctx.get(), HEADKV_ARCHIVE_MEMORY, nullptr) == HEADKV_OK, "an archive");
    archive_turn turn;
    turn.n_prompt = n_prompt;
    check(turn_prefill(ctx.get(), turn) == HEADKV_OK, "a prompt");
    const auto first = answer(ctx.get(), n_prompt);
    check(llama_memory_seq_rm(llama_get_memory(ctx.get()), seq, n_prompt, -1), "taken back");
    check(turn_stats(ctx.get()).n_tokens == n_prompt, "the tokens of the prompt are left");
    check(same_bits(answer(ctx.get(), n_prompt), first), "the same answer again");
    check(!llama_memory_seq_rm(llama_get_memory(ctx.get()), seq, n_prompt + 3, -1), "no way back into it");
    check(turn_stats(ctx.get()).n_tokens == n_prompt + n_more, "all of it is left");
}

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const llama_model_ptr model = tiny_model_load(tiny_model_asked(argc, argv));
    test_dormant(model.get());
    test_all_kept(model.get());
    test_compacted(model.get());
    for (const int order : { HEADKV_ORDER_TOKENS, HEADKV_ORDER_LAYERS }) {
        test_archive(model.get(), order);
    }
    for (const llama_seq_id seq : { 0, -1 }) {
        test_answer_taken_back(model.get(), seq);
    }
    return checked();
}
