// Every allocation of observation, compaction and tail growth fails once: the N-th of each kind, for
// N = 1, 2, ... until none is left to fail; of the hundreds that llama.cpp makes to reserve compute buffers,
// some. Each failure must be reported, and the cache must go on as if the call had not been made: the mask
// and the logits that follow are those of a run without failures.
//
// Three kinds: ggml buffers (posix_memalign), C++ objects (operator new), and of those the ones that stand for a
// buffer, alone.
//
// --windows, --hybrid, --hybrid-windows: a model with such layers
// --archive: prompts and turns that are read in one call, with an archive and without
// --gpu: with the model on the GPU; the buffers are the device's (cudaMalloc). With --archive not of a model with
//        windows, with which llama.cpp's own code ends the process there

#include "archive-turn.h"
#include "faults.h"
#include "options.h"

#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

static thread_local fault_counter buffers("buffer"), objects("new"), handles("new of a buffer");
static thread_local bool had_buffer = false; // the next object stands for it

static bool on_device = false; // a driver's host memory is no buffer

extern "C" int posix_memalign(void ** ptr, size_t alignment, size_t size) {
    static const auto next = libc<decltype(&posix_memalign)>("posix_memalign");
    const bool buffer      = !on_device && is_buffer(size);
    if (buffer && buffers.now()) {
        return ENOMEM;
    }
    had_buffer = buffer;
    return next(ptr, alignment, size);
}

extern "C" int cudaMalloc(void ** ptr, size_t size) {
    static const auto next = libc<decltype(&cudaMalloc)>("cudaMalloc");
    if (is_buffer(size) && buffers.now()) {
        return 2; // cudaErrorMemoryAllocation
    }
    const int res = next(ptr, size);
    had_buffer    = is_buffer(size);
    return res;
}

static bool object_fails() {
    const bool handle = had_buffer;
    had_buffer        = false;
    return objects.now() || (handle && handles.now());
}

//
// the prompt and what a run without failures makes of it
//

static constexpr int n_prompt = 600;
static constexpr int n_window = n_turn_window;
static constexpr int n_more   = 150; // outgrows the first tail
static int n_each             = 200; // each of the first allocations of a step fails, which are this project's own,
static int n_last             = 100; // and of the last, where what was made takes its place;
static int n_part             = 16;  // of those between, the next one that fails is a 16th further

// up to where the step that is tested begins
static bool prefill(llama_context * ctx) {
    llama_memory_clear(llama_get_memory(ctx), true);
    return tiny_model_decode(ctx, 0, n_prompt - n_window) == 0;
}

static bool observe(llama_context * ctx) {
    return headkv_observe(ctx, HEADKV_OBSERVE_TOKENS, n_prompt - n_window, n_window, nullptr, nullptr, 0) ==
               HEADKV_OK &&
           tiny_model_decode(ctx, n_prompt - n_window, n_window) == 0 &&
           headkv_observe(ctx, HEADKV_OBSERVE_OFF, 0, 0, nullptr, nullptr, 0) == HEADKV_OK;
}

// run step() with its N-th allocation failing, N = 1, 2, ...; true from reported() means that the failure was
static void torture(const char * what, fault_counter & faults, const std::function<bool()> & step,
                    const std::function<bool()> & reported, const std::function<bool()> & before,
                    const std::function<bool()> & after, bool rest = false) {
    constexpr int n_many = 1 << 30;
    check(before(), what);
    faults.arm(n_many);
    check(step(), what);
    faults.disarm();
    const int n_all = faults.n_calls(n_many);

    const auto after_n = [&](int n) {
        return n < n_each || n >= n_all - n_last ? n + 1 : std::min(n + n / n_part, n_all - n_last);
    };
    int n_failed = 0;
    for (int n = 1;; n = after_n(n)) {
        where = std::string(faults.name) + " " + std::to_string(n);
        check(before(), what);

        faults.arm(n - 1, rest);
        const bool ok = step();
        if (!faults.disarm()) {
            check(ok && after(), what);
            printf("%s, %s: %d allocations failed\n", what, faults.name, n_failed);
            check(n_failed > 0, what); // else nothing was tested
            where = "without failures";
            return;
        }
        n_failed++;
        // either the failure was reported and a second try works, or the step could do without
        check(ok || (reported() && step()), what);
        check(after(), what);
    }
}

// a prompt that is read into cells, without an archive: whole batches stay, and it goes on behind them
static void torture_cells(llama_model * model, fault_counter & faults) {
    const auto ctx_ptr  = turn_open(model, GGML_TYPE_F16, 64);
    llama_context * ctx = ctx_ptr.get();

    archive_turn turn = { 0, 300 };
    turn.order        = HEADKV_ORDER_TOKENS;
    turn.n_draft      = 4;
    check(turn_prefill(ctx, turn) == HEADKV_OK, "a prompt into cells");
    const outcome right(ctx);
    int32_t rc = HEADKV_OK;

    std::map<int, std::unique_ptr<turn_call>> calls; // by how many tokens there are
    for (int n = 0; n < turn.n_prompt; n += n_turn_batch) {
        archive_turn now = turn;
        now.n_past       = n;
        calls[n]         = std::make_unique<turn_call>(ctx, now);
    }
    const auto before = [&]() {
        llama_memory_clear(llama_get_memory(ctx), true);
        return true;
    };
    const auto step = [&]() {
        if (turn_stats(ctx).n_tokens == turn.n_prompt) { // read, but not compacted
            before();
        }
        rc = calls.at(turn_stats(ctx).n_tokens)->run();
        return rc == HEADKV_OK;
    };
    const auto reported = [&]() {
        const int n = turn_stats(ctx).n_tokens;
        return rc == HEADKV_ERR_MEMORY && strlen(headkv_last_error()) > 0 &&
               (n == turn.n_prompt || n % n_turn_batch == 0) &&
               llama_memory_seq_pos_max(llama_get_memory(ctx), 0) == n - 1;
    };
    torture("a prompt into cells", faults, step, reported, before, [&]() { return outcome(ctx) == right; });
}

// a first prompt, a later turn, and another prompt in place of all of that; compactions
static void torture_archive(llama_model * model, bool bounded, fault_counter & faults) {
    const auto ctx_ptr  = turn_open(model, GGML_TYPE_F16, 64);
    llama_context * ctx = ctx_ptr.get();
    check(headkv_set_archive(ctx, HEADKV_ARCHIVE_MEMORY, nullptr) == HEADKV_OK, "archive");

    const archive_turn first = { 0, 120 }, later = { 120, 150 }, other = { 0, 130, 1 };
    const auto set = [&](const archive_turn & turn) {
        llama_memory_clear(llama_get_memory(ctx), true);
        return turn.n_prompt == first.n_prompt ||
               (turn_prefill(ctx, first) == HEADKV_OK && turn_decode(ctx, first.n_prompt, first.n_prompt + 5));
    };
    for (const auto & [what, turn] :
         { std::pair("a prompt", first), std::pair("a later turn", later), std::pair("another prompt", other) }) {
        archive_turn now = turn;
        now.n_draft      = 4;
        check(set(now) && turn_prefill(ctx, now) == HEADKV_OK, what);
        const outcome right(ctx);

        const turn_call call(ctx, now);
        int32_t rc = HEADKV_OK;
        std::optional<turn_state> was;
        torture(
            what, faults,
            [&]() {
                rc = call.run();
                return rc == HEADKV_OK;
            },
            [&]() { return rc == HEADKV_ERR_MEMORY && strlen(headkv_last_error()) > 0 && turn_state(ctx) == *was; },
            [&]() {
                const bool ok = set(now);
                was.emplace(ctx);
                return ok;
            },
            [&]() { return outcome(ctx) == right; });
    }

    // what is compacted where it is: cells, cells with a tail, a tail behind what is kept
    for (const auto & [what, observed, n_read] : { std::tuple("a compaction of cells", HEADKV_OBSERVE_TOKENS, 0),
                                                   std::tuple("a fold of all", HEADKV_OBSERVE_TAIL, 0),
                                                   std::tuple("a fold", HEADKV_OBSERVE_TAIL, first.n_prompt) }) {
        const auto before = [&, observed = observed, n_read = n_read]() {
            llama_memory_clear(llama_get_memory(ctx), true);
            return (n_read == 0 || turn_prefill(ctx, first) == HEADKV_OK) &&
                   turn_observe(ctx, observed, n_read, later.n_prompt);
        };
        const turn_plan plan(ctx, later.n_prompt);
        const auto step      = [&]() { return headkv_compact(ctx, &plan, sizeof(headkv_plan)) == HEADKV_OK; };
        const int n_archived = n_read > 0 && bounded ? n_read : later.n_prompt;
        check(before() && step() && turn_stats(ctx).n_archived == n_archived, what);
        const outcome right(ctx);
        torture(
            what, faults, step, []() { return strlen(headkv_last_error()) > 0; }, before,
            [&]() { return outcome(ctx) == right; });
    }
}

static void quiet(ggml_log_level, const char *, void *) {}

int main(int argc, char ** argv) {
    on_device = has_gpu_option(argc, argv);

    where     = "without failures";
    new_fails = object_fails;
    llama_log_set(quiet, nullptr);

    tiny_model_params shape = tiny_model_asked(argc, argv);
    llama_model_ptr model   = tiny_model_load(shape, on_device);
    if (shape.bounded()) { // quick: what does not differ fails on the plain model
        n_each = 20;
        n_last = 10;
        n_part = 4;
    }

    if (has_option(argc, argv, "--archive")) {
        for (fault_counter * faults : { &buffers, &objects }) {
            torture_cells(model.get(), *faults);
            torture_archive(model.get(), shape.bounded(), *faults);
        }
        return checked();
    }

    llama_context_ptr ctx_ptr;
    llama_context * ctx = nullptr;

    const auto open = [&](uint32_t n_ubatch) {
        llama_context_params params = turn_params(GGML_TYPE_F16, n_ubatch, 4096);
        params.n_batch              = 2048;
        ctx_ptr.reset(llama_init_from_model(model.get(), params));
        ctx = ctx_ptr.get();
    };
    open(512);

    const turn_plan plan(ctx, n_prompt);
    const auto compact = [&]() { return headkv_compact(ctx, &plan, sizeof(headkv_plan)) == HEADKV_OK; };

    // without failures
    check(prefill(ctx) && observe(ctx) && compact(), "plain run");
    if (on_device) {
        std::vector<int64_t> bytes(ggml_backend_dev_count());
        check(headkv_get_device_bytes(ctx, bytes.data(), bytes.size()) == HEADKV_OK, "plain run");
        for (size_t i = 0; i < bytes.size(); ++i) {
            const char * name = ggml_backend_dev_name(ggml_backend_dev_get(i));
            check((bytes[i] > 0) == (strncmp(name, "CUDA", 4) == 0), "cache on the GPU");
        }
    }
    auto mask_ref = turn_mask(ctx);
    check(!mask_ref.empty(), "plain run");
    check(tiny_model_decode(ctx, n_prompt, n_more) == 0, "plain run");
    auto logits_ref = turn_logits(ctx);

    const auto goes_on = [&]() {
        return turn_mask(ctx) == mask_ref && tiny_model_decode(ctx, n_prompt, n_more) == 0 &&
               turn_logits(ctx) == logits_ref;
    };
    const auto from_memory = [&]() { return strlen(headkv_last_error()) > 0; };

    for (fault_counter * faults : { &buffers, &objects }) {
        torture(
            "observe", *faults,
            [&]() {
                return headkv_observe(ctx, HEADKV_OBSERVE_TOKENS, n_prompt - n_window, n_window, nullptr, nullptr, 0) ==
                       HEADKV_OK;
            },
            from_memory, [&]() { return prefill(ctx); }, [&]() { return observe(ctx) && compact() && goes_on(); });

        torture(
            "compact", *faults, compact,
            [&]() {
                headkv_stats stats;
                return headkv_get_stats(ctx, &stats, sizeof(stats), nullptr, 0) == HEADKV_OK &&
                       stats.n_tokens == n_prompt && stats.bytes_kept == 0 && stats.bytes_cells == stats.bytes_full &&
                       from_memory();
            },
            [&]() { return prefill(ctx) && observe(ctx); }, goes_on);
    }

    // the tail becomes a part of the prompt
    constexpr int n_tail = 60, n_asking = 10;
    const auto observe_tail = [&]() {
        return headkv_observe(ctx, HEADKV_OBSERVE_TAIL, n_prompt + n_tail, n_asking, nullptr, nullptr, 0) == HEADKV_OK;
    };
    const auto with_tail = [&]() {
        return prefill(ctx) && observe(ctx) && compact() && tiny_model_decode(ctx, n_prompt, n_tail) == 0;
    };
    const auto ask  = [&]() { return tiny_model_decode(ctx, n_prompt + n_tail, n_asking) == 0; };
    headkv_plan all = plan;
    all.ends        = nullptr;
    all.n_ends      = 0;
    const auto fold = [&]() { return headkv_compact(ctx, &all, sizeof(headkv_plan)) == HEADKV_OK; };

    check(with_tail() && observe_tail() && ask() && fold(), "plain run, folded");
    const auto folded_ref = turn_mask(ctx);
    check(tiny_model_decode(ctx, n_prompt + n_tail + n_asking, n_more) == 0, "plain run, folded");
    const auto folded_logits_ref = turn_logits(ctx);

    const auto goes_on_folded = [&]() {
        return turn_mask(ctx) == folded_ref && tiny_model_decode(ctx, n_prompt + n_tail + n_asking, n_more) == 0 &&
               turn_logits(ctx) == folded_logits_ref;
    };
    const auto is_as_before = [&]() { return turn_mask(ctx) == mask_ref && from_memory(); };
    for (fault_counter * faults : { &buffers, &objects }) {
        torture("observe the tail", *faults, observe_tail, is_as_before, with_tail,
                [&]() { return ask() && fold() && goes_on_folded(); });
        torture(
            "fold", *faults, fold, is_as_before, [&]() { return with_tail() && observe_tail() && ask(); },
            goes_on_folded);
    }

    // C++ allocations of llama_decode() itself are upstream's
    torture(
        "tail growth", buffers, [&]() { return tiny_model_decode(ctx, n_prompt, n_more) == 0; },
        [&]() { return turn_mask(ctx) == mask_ref && from_memory(); },
        [&]() { return prefill(ctx) && observe(ctx) && compact(); }, [&]() { return turn_logits(ctx) == logits_ref; });

    torture(
        "full size after clear", buffers, [&]() { return tiny_model_decode(ctx, 0, n_prompt - n_window) == 0; },
        from_memory,
        [&]() {
            bool ok = prefill(ctx) && observe(ctx) && compact();
            llama_memory_clear(llama_get_memory(ctx), true);
            return ok;
        },
        [&]() { return observe(ctx) && compact() && goes_on(); });

    torture(
        "room for a prompt", buffers, [&]() { return headkv_reserve(ctx, n_prompt) == HEADKV_OK; },
        [&]() {
            headkv_stats stats;
            return headkv_get_stats(ctx, &stats, sizeof(stats), nullptr, 0) == HEADKV_OK &&
                   stats.bytes_cells < stats.bytes_full && from_memory();
        },
        [&]() {
            bool ok = prefill(ctx) && observe(ctx) && compact();
            llama_memory_clear(llama_get_memory(ctx), true);
            return ok;
        },
        [&]() { return prefill(ctx) && observe(ctx) && compact() && goes_on(); });

    // the compute buffers of a prompt that has room, without which its batches get some by themselves
    torture(
        "compute buffers", handles, [&]() { return tiny_model_decode(ctx, 0, n_prompt - n_window) == 0; },
        [&]() { return false; },
        [&]() {
            bool ok = prefill(ctx) && observe(ctx) && compact();
            llama_memory_clear(llama_get_memory(ctx), true);
            return ok && headkv_reserve(ctx, n_prompt) == HEADKV_OK;
        },
        [&]() { return observe(ctx) && compact() && goes_on(); });

    // The memory that observing computes in. It is kept until the cache is compacted, so each time with a new context;
    // its ubatches are small, so that what it has from the beginning does not do.
    std::optional<turn_mark> mark;
    const auto fresh = [&]() {
        mark.reset();
        open(n_window);
        const bool ok = prefill(ctx);
        mark.emplace(ctx);
        return ok;
    };
    for (const int d_head : shape.hybrid
                                ? std::vector<int>{ 64 }
                                : std::vector<int>{ 64, 96 }) { // CUDA multiplies by K of 96 in F32, and copies it
        ctx_ptr.reset();
        shape.d_head = d_head;
        model        = tiny_model_load(shape, on_device);

        check(fresh() && observe(ctx) && compact(), "plain run, small ubatches");
        mask_ref = turn_mask(ctx);
        check(tiny_model_decode(ctx, n_prompt, n_more) == 0, "plain run, small ubatches");
        logits_ref = turn_logits(ctx);

        torture(
            "decode under observation", buffers, [&]() { return observe(ctx); },
            [&]() {
                // a smaller batch fits what was planned for the one that failed
                return headkv_observe(ctx, HEADKV_OBSERVE_TOKENS, n_prompt - n_window, n_window, nullptr, nullptr, 0) ==
                           HEADKV_OK &&
                       tiny_model_decode(ctx, n_prompt - n_window, n_window - 1) == 0 && mark->go_back();
            },
            fresh, [&]() { return compact() && goes_on(); }, /*rest =*/true); // ggml tries twice
    }

    return checked();
}
