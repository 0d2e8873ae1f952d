// Sessions that cannot be written, opened or loaded: each N-th C++ allocation, ggml buffer, write and read fails once,
// for N = 1, 2, ... until none is left to fail, or a cancel comes at that write or read. The code is right, the cause
// is one sentence, the file of before is whole and alone, the context that is saved goes on as if nothing had happened,
// and the one that is loaded holds what it held, or nothing.

#include "archive-turn.h"
#include "faults.h"

#include <dirent.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <functional>
#include <iterator>

static thread_local fault_counter objects("new"), buffers("buffer"), writes("write"), reads("read"), cancels("cancel");
static llama_context * cancelled = nullptr;

static void cancel_if_due() {
    if (cancels.now()) {
        headkv_cancel(cancelled);
    }
}

extern "C" size_t fwrite(const void * from, size_t size, size_t n, FILE * file) {
    static const auto next = libc<decltype(&fwrite)>("fwrite");
    cancel_if_due();
    if (writes.now()) {
        errno = ENOSPC;
        return 0;
    }
    return next(from, size, n, file);
}

extern "C" int fsync(int fd) {
    static const auto next = libc<decltype(&fsync)>("fsync");
    errno                  = EIO;
    return writes.now() ? -1 : next(fd);
}

extern "C" int rename(const char * from, const char * to) {
    static const auto next = libc<decltype(&rename)>("rename");
    errno                  = EACCES;
    return writes.now() ? -1 : next(from, to);
}

extern "C" size_t fread(void * to, size_t size, size_t n, FILE * file) {
    static const auto next = libc<decltype(&fread)>("fread");
    cancel_if_due();
    return reads.now() ? 0 : next(to, size, n, file);
}

extern "C" int posix_memalign(void ** ptr, size_t alignment, size_t size) {
    static const auto next = libc<decltype(&posix_memalign)>("posix_memalign");
    return is_buffer(size) && buffers.now() ? ENOMEM : next(ptr, alignment, size);
}

//
// the session
//

static constexpr int n_first = 90, n_held = 92;
static constexpr int n_each = 40; // the first ones, all of them; of the others some

static std::string folder, path;

static std::vector<uint8_t> at_prompt; // of recurrent layers, at its end

static int32_t save(llama_context * ctx, const std::vector<float> & logits,
                    const std::vector<uint8_t> & prompt_state = at_prompt) {
    static const auto tokens = turn_tokens(0, n_held);
    headkv_session of        = {};
    of.model_id              = "fnv1a-0123456789abcdef";
    of.model_path            = "model.gguf";
    of.header                = "{}";
    of.tokens                = tokens.data();
    of.n_tokens              = n_held;
    of.logits                = logits.data();
    of.prompt_logits         = logits.data();
    of.prompt_state          = prompt_state.data();
    of.n_prompt_state        = prompt_state.size();
    return headkv_session_save(ctx, path.c_str(), &of, sizeof(of));
}

static std::vector<uint8_t> bytes_of_state(llama_context * ctx) {
    const auto flags = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
    std::vector<uint8_t> res(llama_state_seq_get_size_ext(ctx, 0, flags));
    res.resize(llama_state_seq_get_data_ext(ctx, res.data(), res.size(), 0, flags));
    return res;
}

static int32_t load(llama_context * ctx) {
    headkv_session_file * file;
    int32_t rc = headkv_session_open(path.c_str(), &file);
    if (rc == HEADKV_OK) {
        rc = headkv_session_load(ctx, file, "fnv1a-0123456789abcdef");
        headkv_session_close(file);
    }
    return rc;
}

static std::string bytes() {
    std::ifstream file(path, std::ios::binary);
    return { std::istreambuf_iterator<char>(file), {} };
}

static int n_files() {
    int res    = 0;
    DIR * list = opendir(folder.c_str());
    while (readdir(list)) {
        res++;
    }
    closedir(list);
    return res - 2;
}

static bool hold(llama_context * ctx, int branch) {
    llama_memory_clear(llama_get_memory(ctx), true);
    archive_turn turn;
    turn.n_prompt = n_first;
    turn.branch   = branch;
    if (turn_prefill(ctx, turn) != HEADKV_OK) {
        return false;
    }
    if (branch == 0 && llama_model_is_hybrid(llama_get_model(ctx))) {
        at_prompt = bytes_of_state(ctx);
    }
    return turn_decode(ctx, n_first, n_held, branch, 1);
}

// step() fails at its N-th call of a kind; after(rc) says whether all is as it should be then
static void torture(const char * what, fault_counter & faults, const std::function<int32_t()> & step,
                    const std::function<void(int32_t)> & after) {
    int n = 0;
    for (bool more = true; more; n += n < n_each ? 1 : n / 4) {
        where = std::string(what) + ", " + faults.name + " " + std::to_string(n + 1);
        faults.arm(n);
        const int32_t rc = step();
        more             = faults.disarm();
        headkv_cancel_clear(cancelled);
        if (!more) {
            check(rc == HEADKV_OK, "without failures");
        } else if (rc != HEADKV_OK) { // else it could do without
            const bool memory      = &faults == &objects || &faults == &buffers;
            const std::string said = headkv_last_error();
            const bool unsaid = memory && said.find("failed to restore kv cache") != std::string::npos; // by llama.cpp
            const int32_t its = &faults == &cancels ? HEADKV_ERR_CANCELLED
                                : memory            ? HEADKV_ERR_MEMORY
                                                    : HEADKV_ERR_SESSION;
            check(unsaid || rc == its, "its code");
            check(strlen(headkv_last_error()) > 0, "a sentence");
        }
        after(rc);
    }
    check(n > (&faults == &buffers ? 1 : 5), "something was to fail");
}

static void run(const tiny_model_params & shape) {
    const auto model     = tiny_model_load(shape);
    const auto saved_ptr = turn_open(model.get()), loaded_ptr = turn_open(model.get());
    llama_context *saved = saved_ptr.get(), *loaded = loaded_ptr.get();
    for (llama_context * ctx : { saved, loaded }) {
        check(headkv_set_archive(ctx, HEADKV_ARCHIVE_MEMORY, nullptr) == HEADKV_OK, "archive");
    }
    where = shape.name();
    check(hold(saved, 0), "a prompt");
    const auto logits = turn_logits(saved);
    check(save(saved, logits) == HEADKV_OK, "saved");
    std::string before = bytes();
    const outcome right(saved);
    check(load(loaded) == HEADKV_OK && outcome(loaded) == right, "loaded");

    if (!shape.bounded()) {
        check(save(saved, logits, bytes_of_state(saved)) == HEADKV_ERR_ARGUMENT, "a state of no layers");
        check(bytes() == before && n_files() == 1 && turn_state(saved) == right.state, "all is as it was");
    }

    cancelled = saved;
    for (fault_counter * faults : { &objects, &writes, &cancels }) {
        torture(
            "save", *faults, [&]() { return save(saved, logits); },
            [&](int32_t rc) {
                before = rc == HEADKV_OK ? bytes() : before; // its cells may lie in another order by now
                check(bytes() == before && n_files() == 1, "the file of before, alone");
                check(turn_state(saved) == right.state, "the context");
            });
    }
    check(hold(loaded, 1), "another prompt");
    const turn_state other(loaded);
    cancelled = loaded;
    for (fault_counter * faults : { &objects, &buffers, &reads, &cancels }) {
        torture(
            "load", *faults, [&]() { return load(loaded); },
            [&](int32_t rc) {
                if (rc == HEADKV_OK) {
                    check(outcome(loaded) == right, "loaded");
                } else {
                    check(turn_stats(loaded).n_tokens == 0 || turn_state(loaded) == other, "nothing or what it held");
                }
                check(load(loaded) == HEADKV_OK && outcome(loaded) == right, "the next try");
                check(hold(loaded, 1), "another prompt");
            });
    }
}

// Of a conversation that is not compacted, the cells are all that it holds.
static void test_pieces(const tiny_model_params & shape) {
    const auto model = tiny_model_load(shape);
    const auto ctx   = turn_open(model.get());
    where            = "cells in pieces";
    check(turn_decode(ctx.get(), 0, n_held), "tokens");
    const auto logits = turn_logits(ctx.get());
    largest_new       = 0;
    check(save(ctx.get(), logits, {}) == HEADKV_OK, "saved");
    check(largest_new < llama_state_seq_get_size(ctx.get(), 0) / 2, "never as many bytes as the cells have");
}

static void quiet(ggml_log_level, const char *, void *) {}

int main(int argc, char ** argv) {
    setbuf(stdout, nullptr);
    new_fails = []() { return objects.now(); };
    llama_log_set(quiet, nullptr);
    std::string name = turn_path("sessions") + "-XXXXXX";
    folder           = mkdtemp(name.data());
    path             = folder + "/a.session";
    const auto shape = tiny_model_asked(argc, argv);
    run(shape);
    if (!shape.bounded()) {
        test_pieces(shape);
    }
    unlink(path.c_str());
    rmdir(folder.c_str());
    return checked();
}
