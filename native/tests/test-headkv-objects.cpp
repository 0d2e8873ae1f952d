// Every C++ object that cannot be had, the N-th for N = 1, 2, ..., where only some failures can be reported: those of
// llama_decode() itself are upstream's, and what it throws ends a test here. Each failure that was reported leaves the
// context as it was, and what comes next is right.
//
// --windows, --hybrid, --hybrid-windows: a model with such layers

#include "archive-turn.h"
#include "faults.h"

#include "ggml-alloc.h"

#include <cerrno>
#include <functional>

static thread_local fault_counter objects("new"), buffers("buffer");

extern "C" int posix_memalign(void ** ptr, size_t alignment, size_t size) {
    static const auto next = libc<decltype(&posix_memalign)>("posix_memalign");
    return is_buffer(size) && buffers.now() ? ENOMEM : next(ptr, alignment, size);
}

// f(n) with n objects before the one that fails, until none does; f tells whether there is more to see. Of the first
// n_each every step-th one fails, behind them the next one is a 16th further.
static void each_object(const char * what, int n_each, int step, const std::function<bool(int)> & f) {
    int n_failed = 0;
    for (int n = 0; f(n); n += n < n_each ? step : n / 16) {
        where = std::string(what) + ", object " + std::to_string(n);
        n_failed++;
    }
    printf("%s: %d allocations failed\n", what, n_failed);
    check(n_failed > 0, what); // else nothing was tested
}

//
// places of a batch that is computed in several ubatches
//

static constexpr int n_prompt = 300, n_more = 111;

static void test_places(llama_model * model, int step) {
    const auto ctx_ptr  = turn_open(model);
    llama_context * ctx = ctx_ptr.get();
    check(turn_compact(ctx, { 0, n_prompt }), "compacted");
    std::vector<uint8_t> state(llama_state_get_size(ctx));
    check(llama_state_get_data(ctx, state.data(), state.size()) == state.size(), "a state");
    const auto back = [&]() { return llama_state_set_data(ctx, state.data(), state.size()) == state.size(); };

    const tiny_batch batch(n_prompt, n_more, [](int pos) { return turn_token_at(pos); });
    check(back() && batch.decode(ctx) == 0, "a batch");
    const auto right = turn_logits(ctx);

    int n_reported = 0;
    each_object("places", 2000, step, [&](int n) {
        check(back(), "the state before");
        int rc = -1;
        objects.arm(n);
        try {
            rc = batch.decode(ctx);
        } catch (const std::bad_alloc &) {
            objects.disarm();
            return n_reported == 0; // upstream's, before and after
        }
        objects.disarm();
        n_reported++;
        if (rc != 0) {
            check(llama_memory_seq_pos_max(llama_get_memory(ctx), 0) == n_prompt - 1, "no token has a place");
            check(batch.decode(ctx) == 0, "the batch once more");
        }
        check(same_bits(turn_logits(ctx), right), "its logits");
        return true;
    });
    check(n_reported > n_more / step, "a place of each token");
}

//
// the size of a panel, which a graph tells that is made for it
//

static void test_panel(llama_model * model) {
    int32_t n_right   = 0;
    int64_t row_right = 0;
    check(headkv_get_panel(turn_open(model).get(), &n_right, &row_right) == HEADKV_OK, "a panel");
    each_object("a panel", 100, 1, [&](int n) {
        const auto ctx    = turn_open(model);
        int32_t n_tokens  = 0;
        int64_t row_bytes = 0;
        objects.arm(n);
        const int32_t rc = headkv_get_panel(ctx.get(), &n_tokens, &row_bytes);
        const bool more  = objects.disarm();
        check(rc == (more ? HEADKV_ERR_MEMORY : HEADKV_OK), "the failure");
        check(!more || headkv_get_panel(ctx.get(), &n_tokens, &row_bytes) == HEADKV_OK, "once more");
        check(n_tokens == n_right && row_bytes == row_right, "its size");
        return more;
    });
}

//
// a plan of buffers, two of one type
//

static void test_buffers() {
    where = "buffers";
    ggml_context_ptr ctx(ggml_init({ 16 * 1024, nullptr, /*no_alloc =*/true }));
    const auto graph_of = [&](int64_t n) {
        ggml_cgraph * res = ggml_new_graph_custom(ctx.get(), 4, false);
        ggml_build_forward_expand(res, ggml_neg(ctx.get(), ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, n)));
        return res;
    };
    ggml_backend_buffer_type_t types[] = { ggml_backend_cpu_buffer_type(), ggml_backend_cpu_buffer_type() };
    const int first[] = { 0 }, second[] = { 1 };

    ggml_gallocr_ptr plan(ggml_gallocr_new_n(types, 2));
    check(ggml_gallocr_reserve_n(plan.get(), graph_of(16 * 1024), second, first), "a small graph");
    ggml_cgraph * large = graph_of(64 * 1024);
    buffers.arm(0);
    check(!ggml_gallocr_reserve_n(plan.get(), large, second, first) && buffers.disarm(), "no memory");
    check(ggml_gallocr_get_buffer_size(plan.get(), 1) == 0, "nothing is left of the one that was freed");
    check(ggml_gallocr_reserve_n(plan.get(), large, second, first), "once more");
    buffers.arm(0);
    check(!ggml_gallocr_reserve_n(plan.get(), graph_of(256 * 1024), second, first) && buffers.disarm(), "no memory");
    plan.reset(); // which frees each once
}

//
// headkv_read(), up to where headkv_prefill() begins, and what it is made of
//

static headkv_retention retention_of(size_t n_layer) {
    static const float losses[] = { 3, 2, 1, 3, 1, 0, 5, 4, 0, 2, 1, 1, 3, 2, 1, 6, 2, 1 }, shares[] = { 0, 0.5f, 1 };
    headkv_retention res;
    check(headkv_init_retention(&res, sizeof(res), nullptr) == HEADKV_OK, "a retention");
    res.entries  = 60;
    res.draft    = 0;
    res.losses   = losses;
    res.shares   = shares;
    res.n_rows   = n_layer;
    res.n_cols   = 2;
    res.n_points = 3;
    return res;
}

static void test_read(llama_model * model, int where_rows) {
    const auto ctx_ptr  = turn_open(model);
    llama_context * ctx = ctx_ptr.get();
    check(headkv_set_archive(ctx, where_rows, nullptr) == HEADKV_OK, "an archive");

    const headkv_retention keep = retention_of(turn_stats(ctx).n_layer);

    const auto tokens        = turn_tokens(0, n_prompt + n_more);
    const headkv_part asks[] = { { 20, 30, 1.0 }, { n_prompt - 20, n_prompt, 1.0 } };
    headkv_reading reading   = {};
    reading.tokens           = tokens.data();
    reading.n_tokens         = n_prompt;
    reading.question         = asks;
    reading.n_question       = 2;
    reading.order            = HEADKV_ORDER_ANY;
    const auto read = [&]() { return headkv_read(ctx, &reading, sizeof(reading), &keep, sizeof(keep), nullptr, 0); };
    const auto test = [&](const char * what) {
        each_object(what, 100, 1, [&](int n) {
            const turn_state before(ctx);
            bool begun       = false;
            reading.data     = &begun;
            reading.progress = [](void * data, int32_t, int32_t) {
                *(bool *) data = true;
                objects.disarm();
                throw 0; // from here on test-headkv-alloc looks
            };
            objects.arm(n);
            const int32_t rc = read();
            const bool more  = objects.disarm();
            reading.progress = nullptr;
            check(rc == (begun ? HEADKV_ERR_INTERNAL : HEADKV_ERR_MEMORY), "reported, or done without");
            check(turn_state(ctx) == before, "nothing has changed");
            return more;
        });
    };
    test("a prompt");
    llama_memory_clear(llama_get_memory(ctx), true);
    check(read() == HEADKV_OK, "a prompt");
    check(turn_decode(ctx, n_prompt, n_prompt + 5), "an answer");
    reading.n_tokens   = n_prompt + n_more;
    reading.n_held     = n_prompt;
    reading.n_question = 0;
    test("a turn");
    check(read() == HEADKV_OK, "a turn");
}

// f fills what it is given, and allocates nothing else
static void test_plan(const char * what, const std::function<int32_t(std::vector<double> &)> & f) {
    std::vector<double> right(64), out(64);
    check(f(right) == HEADKV_OK, what);
    each_object(what, 100, 1, [&](int n) {
        objects.arm(n);
        const int32_t rc  = f(out);
        const bool failed = objects.disarm();
        check(rc == HEADKV_OK ? out == right : failed && rc == HEADKV_ERR_MEMORY, "reported, or done without");
        check(f(out) == HEADKV_OK && out == right, "once more");
        return failed;
    });
}

static void test_plans(llama_model * model) {
    const auto ctx = turn_open(model);
    std::vector<headkv_layer> layers(turn_stats(ctx.get()).n_layer);
    check(headkv_get_layers(ctx.get(), layers.data(), layers.size()) == HEADKV_OK, "layers");
    const headkv_retention keep = retention_of(layers.size());

    std::string bytes;
    std::vector<int64_t> ends;
    for (int i = 0; i < 60; ++i) {
        bytes += i == 40 ? "\n\nWhat was it? " : i % 9 == 8 ? "end of a sentence. " : "a word ";
        ends.push_back(bytes.size());
    }
    const headkv_text text = { bytes.data(), bytes.size(), ends.data(), ends.size() };

    test_plan("caps", [&](std::vector<double> & out) {
        int32_t caps[6]  = {};
        const int32_t rc = headkv_get_caps(&keep, sizeof(keep), layers.data(), layers.size(), 0, n_prompt, caps, 6);
        std::copy(caps, caps + 6, out.begin());
        return rc;
    });
    test_plan("a question", [&](std::vector<double> & out) {
        headkv_part parts[8] = {};
        size_t n             = 8;
        const int32_t rc     = headkv_get_question(&text, sizeof(text), 0, 60, 20, parts, &n);
        for (size_t i = 0; i < 8; ++i) {
            out[2 * i]     = parts[i].start;
            out[2 * i + 1] = parts[i].stop;
        }
        return rc;
    });
    test_plan("observers", [&](std::vector<double> & out) {
        const headkv_part asks[] = { { 20, 30, 1.0 }, { 280, 300, 0.5 } };
        headkv_observers res     = {};
        const int32_t rc         = headkv_get_observers(asks, 2, n_prompt, 16, 100, 0, &res, sizeof(res));
        out[0]                   = res.first;
        out[1]                   = res.n_again;
        out[2]                   = res.n_weights;
        return rc;
    });
}

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    new_fails                     = []() { return objects.now(); };
    const tiny_model_params shape = tiny_model_asked(argc, argv);
    const llama_model_ptr model   = tiny_model_load(shape);

    test_places(model.get(), shape.bounded() ? 7 : 1);
    test_panel(model.get());
    if (!shape.bounded()) {
        test_buffers();
        test_plans(model.get());
    }
    test_read(model.get(), HEADKV_ARCHIVE_MEMORY);
    test_read(model.get(), HEADKV_ARCHIVE_NONE);
    return checked();
}
