// What headkv_prefill() and headkv_set_archive() refuse, each with its code and one sentence; the context stays as it
// is. Files that can be no archive, and those that something else happens to: a full disk, a file that is cut short or
// has another one in its place.

#include "archive-turn.h"
#include "headkv-plan.h"
#include "headkv-session.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <cmath>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <functional>
#include <tuple>

static constexpr int n_first = 300, n_more = 10, n_turn = 350;

// a prompt, and tokens after it
static bool set(llama_context * ctx) {
    archive_turn first;
    first.n_prompt = n_first;
    llama_memory_clear(llama_get_memory(ctx), true);
    return turn_prefill(ctx, first) == HEADKV_OK && turn_decode(ctx, n_first, n_first + n_more);
}

using change = std::function<void(headkv_prompt &, headkv_plan &)>;

// in a context that has n_first tokens in its archive, and n_more after them
static void test_prompts(llama_context * ctx) {
    static const int32_t beyond[]   = { 1, 96 };
    static const int32_t negative[] = { 1, -1 };
    static const int32_t places[]   = { 2, 2 };
    static const float heavy[] = { 1.5f }, nothing[] = { 0.0f }, nan[] = { NAN };

    const std::tuple<const char *, int32_t, const char *, change> cases[] = {
        { "more stay than are held", HEADKV_ERR_STATE, "the first 301 tokens cannot stay: 300 are held whole",
          [](auto & p, auto &) { p.n_past++, p.first++; } },
        { "less than none stay", HEADKV_ERR_ARGUMENT, "-1 tokens cannot stay",
          [](auto & p, auto &) { p.n_past                                 = -1; } },
        { "no token", HEADKV_ERR_ARGUMENT, "no new token", [](auto & p, auto &) { p.n_tokens = 0; } },
        { "NULL tokens", HEADKV_ERR_ARGUMENT, "NULL", [](auto & p, auto &) { p.tokens = nullptr; } },
        { "NULL weights", HEADKV_ERR_ARGUMENT, "NULL", [](auto & p, auto &) { p.weights = nullptr; } },
        { "NULL again", HEADKV_ERR_ARGUMENT, "NULL", [](auto & p, auto &) { p.n_again = 1; } },
        { "a token beyond the vocabulary", HEADKV_ERR_ARGUMENT, "token 96 is none of the model's",
          [](auto & p, auto &) { p.tokens                                 = beyond; } },
        { "a negative token", HEADKV_ERR_ARGUMENT, "token -1 is none of the model's",
          [](auto & p, auto &) { p.tokens                                 = negative; } },
        { "such a token once more", HEADKV_ERR_ARGUMENT, "token 96 is none of the model's",
          [](auto & p, auto &) { p.again                                  = p.again_at = beyond, p.n_again = 2, p.first += 2; } },
        { "tokens once more of nowhere", HEADKV_ERR_ARGUMENT, "NULL",
          [](auto & p, auto &) { p.again                                  = places, p.n_again = 2, p.first += 2; } },
        { "all tokens once more, but one", HEADKV_ERR_ARGUMENT, "NULL",
          [](auto & p, auto &) { p.again                                  = places, p.n_again = n_first + 1, p.first += 2; } },
        { "tokens once more in no order", HEADKV_ERR_ARGUMENT, "must ascend",
          [](auto & p, auto &) { p.again                                  = p.again_at = places, p.n_again = 2, p.first += 2; } },
        { "too many tokens", HEADKV_ERR_STATE, "context of 1024 positions is too small",
          [](auto & p, auto &) { p.n_tokens                               = 725; } },
        { "as many as overflow", HEADKV_ERR_STATE, "context of 1024 positions is too small",
          [](auto & p, auto &) { p.n_tokens                              += size_t(1) << 32; } },
        { "too many once more", HEADKV_ERR_STATE, "context of 1024 positions is too small",
          [](auto & p, auto &) { p.n_again                                = SIZE_MAX; } },
        { "weights of too few", HEADKV_ERR_ARGUMENT, "are not the last ones",
          [](auto & p, auto &) { p.n_weights                              = 0; } },
        { "weights of too many", HEADKV_ERR_ARGUMENT, "are not the last ones", [](auto & p, auto &) { p.first--; } },
        { "weights from beyond the prompt", HEADKV_ERR_ARGUMENT, "are not the last ones",
          [](auto & p, auto &) {
              p.first                                                     = p.n_past + p.n_tokens + p.n_again + 4;
              p.n_weights                                                 = (size_t) -4;
          } },
        { "weights from before the prompt", HEADKV_ERR_ARGUMENT, "are not the last ones",
          [](auto & p, auto &) { p.first                                  = p.n_past - 1, p.n_weights = p.n_tokens + 1; } },
        { "a heavy weight", HEADKV_ERR_ARGUMENT, "from 0 to 1", [](auto & p, auto &) { p.weights = heavy; } },
        { "no weight", HEADKV_ERR_ARGUMENT, "above 0", [](auto & p, auto &) { p.weights = nothing; } },
        { "a weight that is no number", HEADKV_ERR_ARGUMENT, "from 0 to 1", [](auto & p, auto &) { p.weights = nan; } },
        { "an order", HEADKV_ERR_ARGUMENT, "there is no order 2", [](auto & p, auto &) { p.order = 2; } },
        { "a panel", HEADKV_ERR_ARGUMENT, "a panel cannot have -1 tokens", [](auto & p, auto &) { p.panel = -1; } },
        { "a plan for other heads", HEADKV_ERR_ARGUMENT, "values", [](auto &, auto & q) { q.n_caps--; } },
        { "a plan for another prompt", HEADKV_ERR_ARGUMENT, "values", [](auto &, auto & q) { q.n_ends--; } },
        { "a plan with a window of 0", HEADKV_ERR_ARGUMENT, "window", [](auto &, auto & q) { q.window = 0; } },
    };
    const int32_t tokens[] = { 1, 2 };
    const float weights[]  = { 1.0f };
    for (const auto & [what, code, text, f] : cases) {
        const turn_plan all(ctx, n_first + 2);
        headkv_plan plan     = all;
        headkv_prompt prompt = {};
        prompt.tokens        = tokens;
        prompt.n_tokens      = 2;
        prompt.n_past        = n_first;
        prompt.order         = HEADKV_ORDER_LAYERS;
        prompt.first         = n_first + 1;
        prompt.weights       = weights;
        prompt.n_weights     = 1;
        f(prompt, plan);
        check_refused(ctx, what, code, text,
                      [&]() { return headkv_prefill(ctx, &prompt, sizeof(prompt), &plan, sizeof(plan)); });
    }
    const auto refused = [&](const headkv_prompt * prompt, size_t prompt_size, size_t plan_size) {
        const turn_plan plan(ctx, n_first);
        check_refused(ctx, "a size", HEADKV_ERR_ARGUMENT, prompt ? "the size must be" : "NULL",
                      [&]() { return headkv_prefill(ctx, prompt, prompt_size, &plan, plan_size); });
    };
    const headkv_prompt none = {};
    refused(nullptr, sizeof(headkv_prompt), sizeof(headkv_plan));
    refused(&none, sizeof(headkv_prompt) - 8, sizeof(headkv_plan));
    refused(&none, sizeof(headkv_prompt), sizeof(headkv_plan) + 8);
}

static std::string content_of(const std::string & path) {
    std::ifstream in(path, std::ios::binary);
    return { std::istreambuf_iterator<char>(in), {} };
}

static void test_files(llama_model * model, llama_context * ctx) {
    const std::string path = turn_path("archive");
    const auto refused     = [&](llama_context * of, const char * what, const std::string & name, const char * text) {
        check_refused(of, what, HEADKV_ERR_ARCHIVE, text,
                          [&]() { return headkv_set_archive(of, HEADKV_ARCHIVE_FILE, name.c_str()); });
    };
    check_refused(ctx, "a kind", HEADKV_ERR_ARGUMENT, "no kind of archive 3",
                  [&]() { return headkv_set_archive(ctx, 3, path.c_str()); });
    check_refused(ctx, "no name", HEADKV_ERR_ARGUMENT, "NULL",
                  [&]() { return headkv_set_archive(ctx, HEADKV_ARCHIVE_FILE, nullptr); });
    check_refused(ctx, "an empty name", HEADKV_ERR_ARGUMENT, "has no name",
                  [&]() { return headkv_set_archive(ctx, HEADKV_ARCHIVE_FILE, ""); });
    refused(ctx, "a folder", "/tmp", "cannot be made");
    refused(ctx, "a folder that is not there", path + "/no/archive", "cannot be made");

    for (const std::string text : { "", "x", "headkv archiv", "a long story, and not one of ours" }) {
        std::ofstream(path) << text;
        refused(ctx, "another file", path, "is another file");
        check(content_of(path) == text, "it stays as it is");
    }
    remove(path.c_str());
    const std::string link = path + "-link";
    check(symlink(path.c_str(), link.c_str()) == 0, "a link to nothing");
    check(headkv_set_archive(ctx, HEADKV_ARCHIVE_FILE, link.c_str()) == HEADKV_OK, "an archive behind a link");
    check(access(path.c_str(), F_OK) == 0, "its file is where the link leads");
    check(remove(link.c_str()) == 0 && headkv_set_archive(ctx, HEADKV_ARCHIVE_NONE, nullptr) == HEADKV_OK,
          "no archive");
    check(access(path.c_str(), F_OK) != 0, "nothing stays where the link led");
    check(symlink(link.c_str(), link.c_str()) == 0, "a link to itself");
    refused(ctx, "a link to itself", link, "cannot be made");
    remove(link.c_str());
    check(mkfifo(path.c_str(), 0600) == 0, "a pipe");
    refused(ctx, "a pipe", path, "is another file");
    remove(path.c_str());

    // what a process that was killed has left; then it is in use
    std::ofstream(path) << std::string("headkv archive\n\0and rows", 25);
    check(headkv_set_archive(ctx, HEADKV_ARCHIVE_FILE, path.c_str()) == HEADKV_OK, "an archive");
    const auto other = turn_open(model);
    refused(other.get(), "another context's archive", path, "is in use");
    refused(ctx, "its own archive", path, "is in use");
    check(headkv_set_archive(ctx, HEADKV_ARCHIVE_NONE, nullptr) == HEADKV_OK &&
              headkv_set_archive(ctx, HEADKV_ARCHIVE_FILE, path.c_str()) == HEADKV_OK,
          "its own archive anew");

    // a disk that is full, an archive that was cut short
    archive_turn later;
    later.n_past   = n_first;
    later.n_prompt = n_turn;
    rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    const rlimit small = { 100 * 1024, limit.rlim_max };
    signal(SIGXFSZ, SIG_IGN);
    llama_memory_clear(llama_get_memory(ctx), true);
    check_refused(ctx, "a full disk", HEADKV_ERR_ARCHIVE, "cannot be written: File too large", [&]() {
        setrlimit(RLIMIT_FSIZE, &small);
        archive_turn first;
        first.n_prompt   = n_first;
        const int32_t rc = turn_prefill(ctx, first);
        setrlimit(RLIMIT_FSIZE, &limit);
        return rc;
    });
    check(set(ctx) && turn_prefill(ctx, later) == HEADKV_OK, "with room");
    const outcome right(ctx);
    const size_t size = turn_stats(ctx).bytes_archive;
    for (const size_t n : { size_t(0), size_t(5000), size / 2, size - 1 }) {
        check(set(ctx), "set");
        check_refused(ctx, "cut short", HEADKV_ERR_ARCHIVE, "has been cut short", [&]() {
            check(truncate(path.c_str(), std::min<size_t>(n, turn_stats(ctx).bytes_archive - 1)) == 0, "truncate");
            return turn_prefill(ctx, later);
        });
        check_refused(ctx, "cut short, once more", HEADKV_ERR_ARCHIVE, "has been cut short",
                      [&]() { return turn_prefill(ctx, later); });
        check(set(ctx) && turn_prefill(ctx, later) == HEADKV_OK && outcome(ctx) == right, "after clear()");
    }

    // another file that has the name by now
    check(remove(path.c_str()) == 0, "remove");
    std::ofstream(path) << "mine";
    check(set(ctx) && turn_prefill(ctx, later) == HEADKV_OK && outcome(ctx) == right, "without a name");
    check(headkv_set_archive(ctx, HEADKV_ARCHIVE_NONE, nullptr) == HEADKV_OK, "no archive");
    check(content_of(path) == "mine", "another file stays");
    remove(path.c_str());
}

// The context goes on in the other order.
static void test_embeddings(llama_context * ctx) {
    archive_turn turn;
    turn.n_prompt = n_first;
    llama_memory_clear(llama_get_memory(ctx), true);
    llama_set_embeddings(ctx, true);
    check(turn_prefill(ctx, turn) == HEADKV_ERR_UNSUPPORTED, "by layers, with embeddings");
    check(strstr(headkv_last_error(), "asked for embeddings") != nullptr, "a sentence");
    turn.order = HEADKV_ORDER_TOKENS;
    check(turn_prefill(ctx, turn) == HEADKV_OK, "in the order of tokens");
    llama_set_embeddings(ctx, false);
    llama_memory_clear(llama_get_memory(ctx), true);
}

// Rows that a prompt had stored before it was cancelled are none of the prompt that is there.
static void test_rows_of_a_cancelled_prompt(llama_context * ctx) {
    check(set(ctx), "a prompt");
    std::vector<uint8_t> state(llama_state_seq_get_size(ctx, 0));
    check(llama_state_seq_get_data(ctx, state.data(), state.size(), 0) == state.size(), "its state");
    llama_memory_clear(llama_get_memory(ctx), true);
    check(llama_state_seq_set_data(ctx, state.data(), state.size(), 0) == state.size(), "the state is back");
    archive_turn turn;
    turn.n_prompt = n_first;
    turn.data     = ctx;
    turn.progress = [](void * data, int32_t, int32_t) { headkv_cancel((llama_context *) data); };
    check(headkv_cancel_enable(ctx) == HEADKV_OK, "cancel");
    check(turn_prefill(ctx, turn) == HEADKV_ERR_CANCELLED, "cancelled");
    check(headkv_cancel_clear(ctx) == HEADKV_OK, "no cancel");

    const std::vector<uint8_t> rows((n_first - 256) * 512); // of two heads of 64, K and V in f16
    check_refused(ctx, "rows behind none", HEADKV_ERR_STATE, "",
                  [&]() { return headkv_set_archived(ctx, 0, 256, n_first - 256, rows.data(), rows.size()); });
    llama_memory_clear(llama_get_memory(ctx), true);
}

static int32_t read_another(llama_context * ctx) {
    const int32_t token        = 1;
    headkv_reading reading     = {};
    reading.tokens             = &token;
    reading.n_tokens           = 1;
    headkv_retention retention = {};
    headkv_init_retention(&retention, sizeof(retention), nullptr);
    return headkv_read(ctx, &reading, sizeof(reading), &retention, sizeof(retention), nullptr, 0);
}

static std::vector<uint8_t> held_state; // of such a context

// all that would change the context, in each call of progress
static void meddle(void * data, int32_t done, int32_t) {
    auto * ctx            = (llama_context *) data;
    const headkv_plan p   = {};
    const auto path       = turn_path("meddled");
    headkv_session about  = {};
    int32_t id            = 0;
    const int32_t codes[] = {
        headkv_reserve(ctx, 5),
        headkv_observe(ctx, HEADKV_OBSERVE_OFF, 0, 0, nullptr, nullptr, 0),
        headkv_compact(ctx, &p, sizeof(p)),
        headkv_set_archive(ctx, HEADKV_ARCHIVE_NONE, nullptr),
        turn_prefill(ctx, { 0, 30 }),
        read_another(ctx),
        headkv_set_archived_end(ctx, &id, sizeof(id)),
        headkv_set_archived(ctx, 0, 0, 1, &id, sizeof(id)),
        headkv_hold_archived(ctx, &id),
        headkv_restore_archived(ctx, 1),
        headkv_release_archived(ctx, 1),
        headkv_session_save(ctx, path.c_str(), &about, sizeof(about)),
    };
    for (const int32_t code : codes) {
        check(code == HEADKV_ERR_STATE, "refused in a callback");
    }
    check(!turn_decode(ctx, 0, 1), "no decode in a callback");
    llama_memory_t mem = llama_get_memory(ctx);
    check(!llama_memory_seq_rm(mem, 0, 0, -1), "nothing is taken out in a callback");
    llama_memory_seq_cp(mem, 0, 1, -1, -1);
    llama_memory_seq_add(mem, 0, 0, -1, 5);
    llama_memory_seq_div(mem, 0, 0, -1, 2);
    const std::vector<uint8_t> state(1000);
    check(llama_state_seq_set_data(ctx, state.data(), state.size(), 0) == 0, "no state is read in a callback");
    check(llama_state_set_data(ctx, held_state.data(), held_state.size()) == 0, "nor one of this context");
    check((llama_state_seq_get_size(ctx, 0) > 0) == (done == 0), "no state of a part of the layers");
    uint64_t rows_id = 0;
    check(headkv_get_rows_id(ctx, &rows_id) == HEADKV_OK && rows_id != 0, "what rows depend on in a callback");
    check(turn_stats(ctx).n_ctx == 1024, "statistics in a callback");
}

static void test_callbacks(llama_context * ctx) {
    for (const int order : { HEADKV_ORDER_TOKENS, HEADKV_ORDER_LAYERS }) {
        archive_turn turn;
        turn.n_prompt = n_first;
        turn.order    = order;
        turn.n_draft  = 3;
        turn.data     = ctx;
        llama_memory_clear(llama_get_memory(ctx), true);
        check(turn_prefill(ctx, turn) == HEADKV_OK, "a prompt");
        const outcome alone(ctx);
        held_state.resize(llama_state_get_size(ctx));
        check(llama_state_get_data(ctx, held_state.data(), held_state.size()) > 0, "its state");
        llama_memory_clear(llama_get_memory(ctx), true);
        turn.progress = meddle;
        check(turn_prefill(ctx, turn) == HEADKV_OK, "a prompt with a callback that meddles");
        check(outcome(ctx) == alone, "as without it");
    }
    llama_memory_clear(llama_get_memory(ctx), true);
}

// Where an answer was taken back, a window need not hold what the next token looks at: llama.cpp does not ask.
static void test_forgotten(llama_model * model) {
    static constexpr int n_held = 600, n_past = 200;
    where = "forgotten";
    for (const int where : { HEADKV_ARCHIVE_NONE, HEADKV_ARCHIVE_MEMORY }) {
        const auto ctx = turn_open(model, GGML_TYPE_F16, 128);
        check(headkv_set_archive(ctx.get(), where, nullptr) == HEADKV_OK, "an archive");
        check(turn_decode(ctx.get(), 0, n_held), "decoded");
        check(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, n_past, -1), "taken back");
        for (const int order : { HEADKV_ORDER_TOKENS, HEADKV_ORDER_LAYERS }) {
            for (const int n : { n_past, n_past - 50 }) {
                archive_turn turn = { n, n + 50 };
                turn.order        = order;
                check(turn_prefill(ctx.get(), turn) == HEADKV_ERR_STATE, "refused");
                check(strstr(headkv_last_error(), n == n_past ? "have forgotten" : "cannot go back"), "why");
            }
        }
        const auto tokens          = turn_tokens(0, n_past + 50);
        headkv_reading reading     = {};
        reading.tokens             = tokens.data();
        reading.n_tokens           = tokens.size();
        reading.n_held             = n_past;
        reading.order              = HEADKV_ORDER_ANY;
        headkv_retention retention = {};
        headkv_read_info info      = {};
        headkv_init_retention(&retention, sizeof(retention), nullptr);
        check(headkv_read(ctx.get(), &reading, sizeof(reading), &retention, sizeof(retention), &info, sizeof(info)) ==
                      HEADKV_OK &&
                  info.n_past == 0,
              "all is read");
    }
}

// A model that was loaded to ask what it takes: it has no weights to read a prompt with.
static void test_without_weights(const tiny_model_params & p) {
    where                       = "without weights";
    const llama_model_ptr model = tiny_model_load(p, /*gpu =*/false, /*no_alloc =*/true);
    const auto ctx              = turn_open(model.get());
    check(headkv_supported(ctx.get()) == HEADKV_OK, "another one of its kind can be compacted");
    check(headkv_set_archive(ctx.get(), HEADKV_ARCHIVE_MEMORY, nullptr) == HEADKV_ERR_UNSUPPORTED, "no archive");
    for (const int order : { HEADKV_ORDER_TOKENS, HEADKV_ORDER_LAYERS }) {
        archive_turn turn;
        turn.n_prompt = n_first;
        turn.order    = order;
        check(turn_prefill(ctx.get(), turn) == HEADKV_ERR_UNSUPPORTED && strstr(headkv_last_error(), "no_alloc"),
              "no prompt");
    }
}

static void test_refused(llama_model * model, llama_context * ctx) {
    where = "refused";
    archive_turn turn;
    turn.n_prompt = n_first;
    check(headkv_set_archive(ctx, HEADKV_ARCHIVE_NONE, nullptr) == HEADKV_OK, "no archive");
    llama_memory_clear(llama_get_memory(ctx), true);
    check(turn_prefill(ctx, turn) == HEADKV_OK, "a prompt without an archive");
    archive_turn later = turn;
    later.n_past       = n_first;
    later.n_prompt     = n_first + 30;
    check_refused(ctx, "a turn without an archive", HEADKV_ERR_STATE, "0 are held whole",
                  [&]() { return turn_prefill(ctx, later); });
    llama_memory_clear(llama_get_memory(ctx), true);

    check(headkv_set_archive(ctx, HEADKV_ARCHIVE_MEMORY, nullptr) == HEADKV_OK, "an archive");
    check(turn_prefill(ctx, turn) == HEADKV_OK && turn_decode(ctx, n_first, n_first + n_more), "a prompt");
    test_prompts(ctx);
    test_embeddings(ctx);
    test_rows_of_a_cancelled_prompt(ctx);
    test_callbacks(ctx);
    test_files(model, ctx);
}

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const llama_model_ptr model = tiny_model_load(tiny_model_asked(argc, argv));
    const auto ctx              = turn_open(model.get(), GGML_TYPE_F16, 128);
    test_refused(model.get(), ctx.get());
    if (tiny_model_asked(argc, argv).windows && !tiny_model_asked(argc, argv).hybrid) {
        test_forgotten(model.get());
    }
    test_without_weights(tiny_model_asked(argc, argv));
    return checked();
}
