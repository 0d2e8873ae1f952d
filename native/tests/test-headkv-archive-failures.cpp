// Prompts and turns that fail while they are read with an archive, and compactions: each N-th write to its file and
// read from it, and a cancel at every step. The code is right, the cause is one sentence, and the context goes on as
// one to which it did not happen: its tokens, its mask, what is in its archive.

#include "archive-turn.h"
#include "faults.h"
#include "prefill/headkv-queue.h"

#include <sys/file.h>

#include <atomic>
#include <cerrno>
#include <functional>

// of all threads: rows are written and read by another one with --beside
static fault_counter writes("write"), reads("read"), ends("end of file");

extern "C" ssize_t pwrite(int fd, const void * from, size_t size, off_t offset) {
    static const auto next = libc<decltype(&pwrite)>("pwrite");
    if (writes.now()) {
        if (size > 1 && next(fd, from, size / 2, offset) > 0) { // a disk takes what it has room for
            writes.arm(0);
            return size / 2;
        }
        errno = ENOSPC;
        return -1;
    }
    return next(fd, from, size, offset);
}

static std::atomic<size_t> n_bytes_read = 0;

extern "C" ssize_t pread(int fd, void * to, size_t size, off_t offset) {
    static const auto next = libc<decltype(&pread)>("pread");
    if (reads.now()) {
        errno = EIO;
        return -1;
    }
    n_bytes_read += size;
    return ends.now() ? 0 : next(fd, to, size, offset);
}

static int lock_error = 0; // of all locks

extern "C" int flock(int fd, int what) {
    static const auto next = libc<decltype(&flock)>("flock");
    errno                  = lock_error;
    return lock_error ? -1 : next(fd, what);
}

//
// states of a conversation, and a turn that fails in it
//

static constexpr int n_first = 300, n_more = 10, n_turn = 350, n_short = n_first + n_turn_observed;

struct scene {
    const char * name;
    int n_read;    // of the prompt, by headkv_prefill(); 0: nothing
    int n_decoded; // after it, or in an empty context
    archive_turn turn;
    int n_draft = 4;
};

static std::vector<scene> scenes(const tiny_model_params & shape) {
    std::vector<scene> res = {
        { "a prompt", 0, 0, { 0, n_first } },
        { "a turn after cells", 0, n_first, { n_first, n_turn } },
        { "a later turn", n_first, n_first + n_more, { n_first, n_turn } },
        { "another prompt", n_first, n_first + n_more, { 0, n_turn, 1 } },
        // the draft's hidden states need room where the turn's were
        { "a turn shorter than its draft", n_first, n_first + n_more, { n_first, n_short }, n_short - n_first + 12 },
    };
    if (shape.hybrid) { // some of them, to be quick
        res.erase(res.begin() + 3, res.end());
    } else if (!shape.windows) {
        res.push_back({ "another turn", n_first, n_first + n_more, { 100, 280, 1 } });
        res.push_back({ "another turn from a block's begin on", n_first, n_first + n_more, { 256, n_turn, 1 } });
    }
    for (auto & s : res) {
        s.turn.panel   = 2 * n_turn_batch;
        s.turn.n_draft = s.n_draft;
    }
    return res;
}

static bool set(llama_context * ctx, const scene & s) {
    archive_turn first;
    first.n_prompt = s.n_read;
    llama_memory_clear(llama_get_memory(ctx), true);
    return headkv_cancel_clear(ctx) == HEADKV_OK && (s.n_read == 0 || turn_prefill(ctx, first) == HEADKV_OK) &&
           turn_decode(ctx, s.n_read, s.n_decoded, 0, s.n_read > 0 ? 1 : n_turn_batch);
}

static int n_stride = 1; // each step fails, or each so many

// prepares that the turn fails at step n, from 0 on
using fail_fn = std::function<void(int, archive_turn &)>;
// takes that back; false if nothing failed
using undo_fn = std::function<bool()>;

// in a scene, until nothing fails any more
static void torture(llama_context * ctx, const scene & s, const char * what, int32_t code, const fail_fn & fail,
                    const undo_fn & undo) {
    // what is right, with the turn that asks the archive for all that was read before
    archive_turn later;
    later.n_past   = n_first;
    later.n_prompt = n_turn;
    where          = std::string(what) + ", " + s.name;
    check(set(ctx, s), "set");
    const turn_state before(ctx);
    check(turn_prefill(ctx, s.turn) == HEADKV_OK, "a turn");
    const outcome right(ctx);
    check(set(ctx, s) && (s.n_read == 0 || turn_prefill(ctx, later) == HEADKV_OK), "the later turn");
    const outcome right_later(ctx);

    int n = 0;
    for (;; n += n_stride) {
        where = std::string(what) + " " + std::to_string(n) + ", " + s.name;
        check(set(ctx, s), "set");
        archive_turn turn = s.turn;
        fail(n, turn);
        const int32_t rc       = turn_prefill(ctx, turn);
        const std::string said = headkv_last_error();
        if (!undo()) {
            check(rc == HEADKV_OK, "nothing failed");
            break;
        }
        check(rc == code, "code");
        check(!said.empty() && said.find('\n') == std::string::npos, "sentence");
        check(turn_state(ctx) == before, "as it was");
        if (n % 2 == 0 && s.n_read > 0) { // what the archive has of before
            check(turn_prefill(ctx, later) == HEADKV_OK, "the later turn");
            check(outcome(ctx) == right_later, "the later turn is right");
        } else {
            check(turn_prefill(ctx, s.turn) == HEADKV_OK, "once more");
            check(outcome(ctx) == right, "once more is right");
        }
    }
    printf("%s, %s: failed at %d steps\n", what, s.name, n);
    check(n > 0, "something failed");
}

// in the order of tokens, into cells, without an archive: whole batches stay, and the prompt goes on behind them
static void torture_cells(llama_context * ctx, const char * what, int32_t code, const fail_fn & fail,
                          const undo_fn & undo) {
    archive_turn turn  = { 0, n_first };
    turn.order         = HEADKV_ORDER_TOKENS;
    turn.n_draft       = 4;
    where              = std::string(what) + ", into cells";
    llama_memory_t mem = llama_get_memory(ctx);
    llama_memory_clear(mem, true);
    check(turn_prefill(ctx, turn) == HEADKV_OK, "a prompt");
    const outcome right(ctx);

    int n = 0;
    for (;; n += n_stride) {
        where = std::string(what) + " " + std::to_string(n) + ", into cells";
        llama_memory_clear(mem, true);
        archive_turn now = turn;
        fail(n, now);
        const int32_t rc = turn_prefill(ctx, now);
        if (!undo()) {
            check(rc == HEADKV_OK, "nothing failed");
            break;
        }
        check(rc == code, "code");
        turn.n_past = turn_stats(ctx).n_tokens;
        check(turn.n_past % n_turn_batch == 0 || turn.n_past == n_first, "whole batches");
        check(llama_memory_seq_pos_max(mem, 0) == turn.n_past - 1, "of all layers");
        if (turn.n_past == n_first) { // then it was not compacted
            llama_memory_clear(mem, true);
            turn.n_past = 0;
        }
        check(turn_prefill(ctx, turn) == HEADKV_OK && outcome(ctx) == right, "the rest of it");
        turn.n_past = 0;
    }
    printf("%s, into cells: failed at %d steps\n", what, n);
    check(n > 0, "something failed");
}

static void test_faults(llama_context * ctx, const scene & s) {
    for (fault_counter * faults : { &writes, &reads, &ends }) {
        torture(
            ctx, s, faults->name, HEADKV_ERR_ARCHIVE, [=](int n, archive_turn &) { faults->arm(n); },
            [=]() { return faults->disarm(); });
    }
}

// a prompt in cells, and one with the tail after it, whose rows are written as they are compacted
static void test_compact(llama_context * ctx, int what, int n_read) {
    const auto set = [&]() {
        archive_turn first;
        first.n_prompt = n_read;
        llama_memory_clear(llama_get_memory(ctx), true);
        return (n_read == 0 || turn_prefill(ctx, first) == HEADKV_OK) && turn_observe(ctx, what, n_read, n_turn);
    };
    const auto run = [&]() {
        const turn_plan plan(ctx, n_turn);
        return headkv_compact(ctx, &plan, sizeof(headkv_plan));
    };
    archive_turn later;
    later.n_past   = n_turn;
    later.n_prompt = n_turn + n_turn_observed;

    where = what == HEADKV_OBSERVE_TOKENS ? "a compaction of cells" : n_read > 0 ? "a fold" : "a fold of all";
    check(set() && run() == HEADKV_OK, "compact");
    const turn_state right(ctx);
    check(turn_stats(ctx).n_archived == n_turn, "archived");
    check(turn_prefill(ctx, later) == HEADKV_OK, "the later turn");
    const outcome right_later(ctx);

    int n = 0;
    for (;; ++n) {
        check(set(), "set");
        const turn_state before(ctx);
        writes.arm(n);
        const int32_t rc = run();
        if (!writes.disarm()) {
            check(rc == HEADKV_OK, "nothing failed");
            break;
        }
        check(rc == HEADKV_ERR_ARCHIVE, "code");
        check(turn_state(ctx) == before, "as it was");
        check(run() == HEADKV_OK, "once more");
        check(turn_state(ctx) == right, "once more is right");
        check(turn_prefill(ctx, later) == HEADKV_OK && outcome(ctx) == right_later, "the later turn is right");
    }
    printf("%s: failed at %d steps\n", where.c_str(), n);
    check(n > 0, "something failed");
}

// how it is tortured, with all that is failing
using torturer = std::function<void(const char *, int32_t, const fail_fn &, const undo_fn &)>;

static void test_cancel(llama_context * ctx, const torturer & torture) {
    struct cancel {
        llama_context * ctx;
        int left;
        bool came;
    } data;
    torture(
        "cancel", HEADKV_ERR_CANCELLED,
        [&](int n, archive_turn & turn) {
            data          = { ctx, n, false };
            turn.data     = &data;
            turn.progress = [](void * data, int32_t done, int32_t total) {
                auto & c = *(cancel *) data;
                if (done < 0 || done > total) {
                    check(false, "progress");
                }
                if (c.left-- == 0) {
                    c.came = true;
                    headkv_cancel(c.ctx);
                }
            };
        },
        [&]() {
            headkv_cancel_clear(ctx);
            return data.came;
        });
}

// from within a batch: the abort callback looks at the canceller, which says so after some nodes
static void test_abort(llama_context * ctx, const torturer & torture) {
    struct abort_data {
        int left;
        bool came;
    } data;
    llama_set_abort_callback(
        ctx,
        [](void * data) {
            auto & a = *(abort_data *) data;
            a.came   = a.came || a.left-- <= 0;
            return a.came;
        },
        &data);
    data = { 1 << 30, false };
    torture(
        "abort", HEADKV_ERR_CANCELLED, [&](int n, archive_turn &) { data = { n * 23, false }; },
        [&]() {
            const bool came = data.came;
            data            = { 1 << 30, false };
            return came;
        });
    headkv_cancel_enable(ctx);
}

// a file system without locks: a new file is nobody else's, and of one that is there nothing is known
static void test_locks(llama_context * ctx, const std::string & path) {
    where         = "locks";
    const auto of = [&](const std::string & name) {
        return headkv_set_archive(ctx, HEADKV_ARCHIVE_FILE, name.c_str());
    };
    lock_error = EOPNOTSUPP;
    check(of(path) == HEADKV_OK && access(path.c_str(), F_OK) == 0, "a new file");
    check(headkv_set_archive(ctx, HEADKV_ARCHIVE_NONE, nullptr) == HEADKV_OK, "no archive");
    check(access(path.c_str(), F_OK) != 0, "it is gone");
    lock_error = 0;
    check(of(path) == HEADKV_OK, "an archive");
    lock_error = ENOLCK;
    check(of(path) == HEADKV_ERR_ARCHIVE && strstr(headkv_last_error(), "no locks that tell"), "one that is there");
    lock_error = 0;
    check(of(path) == HEADKV_ERR_ARCHIVE && strstr(headkv_last_error(), "is in use"), "one that is locked");
    check(headkv_set_archive(ctx, HEADKV_ARCHIVE_NONE, nullptr) == HEADKV_OK, "no archive");
}

// All rows come once for what is kept while the draft is made, and K once to be looked at.
static void test_draft(llama_context * ctx) {
    where              = "a draft";
    const auto read_of = [&](int n_draft) {
        archive_turn turn = { 0, n_first };
        turn.n_draft      = n_draft;
        n_bytes_read      = 0;
        check(turn_prefill(ctx, turn) == HEADKV_OK, "a prompt");
        return n_bytes_read.load();
    };
    const size_t n_more = read_of(4) - read_of(0);

    std::vector<headkv_layer> layers(turn_stats(ctx).n_layer);
    headkv_get_layers(ctx, layers.data(), layers.size());
    size_t row = 0;
    for (const auto & layer : layers) {
        row += layer.row_bytes * layer.n_head_kv;
    }
    check(n_more > row * n_first && n_more <= row * (n_first + n_turn_window) + row / 2 * n_first, "K alone");
}

// In the order of tokens all rows are in cells once they are there, so more panels read no more.
static void test_panels(llama_context * ctx) {
    where              = "panels";
    const auto read_of = [&](int n_past, int panel) {
        archive_turn turn = { n_past, n_past + n_first };
        turn.order        = HEADKV_ORDER_TOKENS;
        turn.panel        = panel;
        n_bytes_read      = 0;
        check(turn_prefill(ctx, turn) == HEADKV_OK, "a turn");
        return n_bytes_read.load();
    };
    for (const int n_past : { 0, n_first }) {
        const size_t n = read_of(n_past, 0);
        if (n_past > 0) {
            check(read_of(0, 0) > 0, "the prompt again");
        }
        check(n > 0 && read_of(n_past, 50) == n, "no more");
    }
}

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    headkv_queue::always_beside = has_option(argc, argv, "--beside"); // as on a GPU

    const tiny_model_params shape = tiny_model_asked(argc, argv);
    const llama_model_ptr model   = tiny_model_load(shape);
    n_stride            = shape.bounded() || headkv_queue::always_beside ? 5 : 1; // what is common fails once in full
    const auto ctx_ptr  = turn_open(model.get(), GGML_TYPE_F16, 128);
    llama_context * ctx = ctx_ptr.get();
    const std::string path = turn_path("archive");

    check(headkv_cancel_enable(ctx) == HEADKV_OK, "cancel");
    test_locks(ctx, path);
    const auto into_cells = [&](const auto &... how) { torture_cells(ctx, how...); };
    test_cancel(ctx, into_cells);
    test_abort(ctx, into_cells);
    for (const auto & s : scenes(shape)) {
        const auto in_scene = [&](const auto &... how) { torture(ctx, s, how...); };
        check(headkv_set_archive(ctx, HEADKV_ARCHIVE_FILE, path.c_str()) == HEADKV_OK, "an archive");
        test_faults(ctx, s);
        check(headkv_set_archive(ctx, HEADKV_ARCHIVE_MEMORY, nullptr) == HEADKV_OK, "an archive");
        test_cancel(ctx, in_scene);
        test_abort(ctx, in_scene);
    }
    check(headkv_set_archive(ctx, HEADKV_ARCHIVE_FILE, path.c_str()) == HEADKV_OK, "an archive");
    test_draft(ctx);
    test_panels(ctx);
    test_compact(ctx, HEADKV_OBSERVE_TOKENS, 0);
    test_compact(ctx, HEADKV_OBSERVE_TAIL, 0);
    if (!shape.bounded()) { // a later fold writes nothing where layers cannot go back
        test_compact(ctx, HEADKV_OBSERVE_TAIL, n_first);
    }
    return checked();
}
