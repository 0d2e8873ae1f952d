// What a context gives of a batch: contexts that were made for the logits of few tokens, and those with samplers in
// their graph, whose tokens take the place of logits. What these cannot do is refused, and nothing has changed.

#include "archive-turn.h"

#include <unistd.h>

static constexpr int n_prompt = 100, n_at_once = 16;

static llama_sampler_ptr greedy() {
    llama_sampler_ptr res(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    llama_sampler_chain_add(res.get(), llama_sampler_init_greedy());
    return res;
}

// n_outputs, n_sampled: most tokens with logits of all, and of those of a sampler; 0: as many as a batch has
static llama_context_ptr open(llama_model * model, uint32_t n_outputs, uint32_t n_sampled,
                              llama_sampler * sampler = nullptr) {
    llama_sampler_seq_config of  = { 0, sampler };
    llama_context_params params  = turn_params(GGML_TYPE_F16, n_at_once, 512);
    params.n_batch               = n_at_once;
    params.n_outputs_max         = n_outputs;
    params.n_outputs_max_per_seq = n_sampled;
    params.samplers              = sampler ? &of : nullptr;
    params.n_samplers            = sampler ? 1 : 0;
    return llama_context_ptr(llama_init_from_model(model, params));
}

static archive_turn turn_of(int order, bool logits) {
    archive_turn res;
    res.n_prompt = n_prompt;
    res.order    = order;
    res.logits   = logits;
    return res;
}

static void test_prefill(llama_context * ctx, const char * text) {
    check_refused(ctx, "logits of all", HEADKV_ERR_ARGUMENT, text,
                  [&]() { return turn_prefill(ctx, turn_of(HEADKV_ORDER_TOKENS, true)); });
    llama_set_embeddings(ctx, true);
    check(turn_prefill(ctx, turn_of(HEADKV_ORDER_TOKENS, false)) == HEADKV_ERR_ARGUMENT, "embeddings of all");
    llama_set_embeddings(ctx, false);
    for (const int order : { HEADKV_ORDER_TOKENS, HEADKV_ORDER_LAYERS }) {
        const bool by_layers = order == HEADKV_ORDER_LAYERS;
        check(turn_prefill(ctx, turn_of(order, by_layers)) == HEADKV_OK, "those of the last one");
        llama_memory_clear(llama_get_memory(ctx), true);
    }
}

static int32_t save(llama_context * ctx, const char * path, const std::vector<float> & logits) {
    const auto tokens = turn_tokens(0, n_prompt);
    headkv_session of = {};
    of.model_id       = "fnv1a-0123456789abcdef";
    of.model_path     = "model.gguf";
    of.tokens         = tokens.data();
    of.n_tokens       = n_prompt;
    of.logits         = logits.data();
    return headkv_session_save(ctx, path, &of, sizeof(of));
}

// The logits are the session's; the context has none, and no token that was sampled of others.
static void test_session(llama_model * model, llama_context * sampled) {
    const std::string path = turn_path("outputs");
    const auto plain       = open(model, 0, 0);
    check(turn_prefill(plain.get(), turn_of(HEADKV_ORDER_TOKENS, false)) == HEADKV_OK, "a prompt");
    const auto logits = turn_logits(plain.get());
    check(save(plain.get(), path.c_str(), logits) == HEADKV_OK, "saved");

    headkv_session_file * file = nullptr;
    headkv_session of          = {};
    check(headkv_session_open(path.c_str(), &file) == HEADKV_OK, "opened");
    check(headkv_session_load(sampled, file, "fnv1a-0123456789abcdef") == HEADKV_OK, "loaded");
    check(headkv_session_get(file, &of, sizeof(of)) == HEADKV_OK && of.logits, "its logits");
    check(same_bits({ of.logits, of.logits + 96 }, logits), "are those that were saved");
    check(llama_get_sampled_token_ith(sampled, -1) == LLAMA_TOKEN_NULL, "no token of others");
    headkv_session_close(file);
    unlink(path.c_str());

    check(turn_decode(sampled, n_prompt, n_prompt + 1) && turn_decode(plain.get(), n_prompt, n_prompt + 1), "goes on");
    const auto row = turn_logits(plain.get());
    check(llama_get_sampled_token_ith(sampled, -1) == std::max_element(row.begin(), row.end()) - row.begin(),
          "with the token that is to be sampled");
}

static archive_turn with_question_first(int order) {
    archive_turn res = turn_of(order, false);
    res.n_again      = 10;
    return res;
}

// A sampler would draw what follows the copied question.
static void test_again(llama_context * sampled) {
    check_refused(sampled, "tokens once more", HEADKV_ERR_ARGUMENT, "no tokens can be read once more",
                  [&]() { return turn_prefill(sampled, with_question_first(HEADKV_ORDER_TOKENS)); });

    const auto tokens          = turn_tokens(0, n_prompt);
    const headkv_part first    = { 5, 15, 1.0 };
    headkv_reading reading     = {};
    reading.tokens             = tokens.data();
    reading.n_tokens           = n_prompt;
    reading.question           = &first;
    reading.n_question         = 1;
    headkv_retention retention = {};
    headkv_init_retention(&retention, sizeof(retention), nullptr);
    retention.entries     = 20;
    headkv_read_info info = {};
    check(headkv_read(sampled, &reading, sizeof(reading), &retention, sizeof(retention), &info, sizeof(info)) ==
              HEADKV_OK,
          "read");
    check(info.compacts && info.n_again == 0 && info.n_left_out == 10, "left out");
}

// What is read behind a prompt leaves what the context says of its last token.
static void test_embeddings(llama_model * model) {
    std::vector<float> plain;
    for (int i = 0; i < 3; ++i) {
        const auto ctx = open(model, 0, 0);
        llama_set_embeddings(ctx.get(), true);
        archive_turn turn = i == 1 ? with_question_first(HEADKV_ORDER_TOKENS) : turn_of(HEADKV_ORDER_TOKENS, false);
        turn.n_draft      = i == 2 ? 4 : 0;
        check(turn_prefill(ctx.get(), turn) == HEADKV_OK, "with embeddings");
        const float * row = llama_get_embeddings_ith(ctx.get(), -1);
        check(row != nullptr, "there are some");
        const std::vector<float> found(row, row + llama_model_n_embd(model));
        plain = i == 0 ? found : plain;
        check(same_bits(found, plain), "of the prompt's last token");
    }
}

// Compute buffers are reserved again with what a context is for: a mean is one of all tokens.
static void test_pooling(llama_model * model) {
    for (const auto pooling :
         { LLAMA_POOLING_TYPE_NONE, LLAMA_POOLING_TYPE_MEAN, LLAMA_POOLING_TYPE_CLS, LLAMA_POOLING_TYPE_LAST }) {
        llama_context_params params = turn_params(GGML_TYPE_F16, n_prompt, 512);
        params.embeddings           = true;
        params.pooling_type         = pooling;
        const auto open_pooled      = [&]() { return llama_context_ptr(llama_init_from_model(model, params)); };
        int32_t n_panel             = 0;
        int64_t row                 = 0;
        check(headkv_get_panel(open_pooled().get(), &n_panel, &row) == HEADKV_OK && row > 0, "a panel");
        const auto ctx = open_pooled(), read = open_pooled(), late = open_pooled();
        check(turn_compact(ctx.get(), { 0, n_prompt }), "compacted");
        check(turn_decode(ctx.get(), n_prompt, n_prompt + 3), "and a turn");

        std::vector<uint8_t> state(llama_state_get_size(ctx.get()));
        check(llama_state_get_data(ctx.get(), state.data(), state.size()) == state.size() &&
                  llama_state_set_data(read.get(), state.data(), state.size()) == state.size() &&
                  turn_decode(read.get(), n_prompt + 3, n_prompt + 5),
              "a state goes on");

        llama_set_embeddings(late.get(), false);
        check(turn_compact(late.get(), { 0, n_prompt }), "compacted without");
        llama_set_embeddings(late.get(), true);
        check(turn_decode(late.get(), n_prompt, n_prompt + 50), "and with embeddings");
    }
}

// Where a slice is all of the model, layers still give the logits of the last token alone.
static void test_one_layer() {
    tiny_model_params shape;
    shape.n_layer    = 1;
    const auto model = tiny_model_load(shape);
    test_prefill(open(model.get(), 1, 0).get(), "logits of 16 tokens at once were asked for");
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const llama_model_ptr model = tiny_model_load();
    where                       = "few outputs";
    test_prefill(open(model.get(), 1, 0).get(), "logits of 16 tokens at once were asked for, and the context was made");
    where              = "a sampler";
    const auto sampler = greedy(), other = greedy();
    test_prefill(open(model.get(), 0, 1, sampler.get()).get(), "and the context's sampler takes 1");
    test_session(model.get(), open(model.get(), 0, 1, other.get()).get());
    const auto third = greedy();
    test_again(open(model.get(), 0, 1, third.get()).get());
    where = "embeddings";
    test_embeddings(model.get());
    where = "pooled embeddings";
    test_pooling(model.get());
    where = "one layer";
    test_one_layer();
    return checked();
}
