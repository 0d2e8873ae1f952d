// Opening a session, and going on from it.

#include "session/headkv-session-io.h"
#include "session/headkv-session-parts.h"

#include <cstring>

using part = llama_kv_cache_headkv::part;

static const std::vector<std::string> section_names = { "about",   "header", "tokens", "logits", "cells",
                                                        "bounded", "prompt", "turn",   "rows",   "end" };

headkv_session_file::headkv_session_file(const char * path) : file(path, section_names) {
    static const char * const bad = "is damaged: its section 'about' is not what it should be";
    if (file.size("about") < sizeof(about) || file.size("about") > headkv_session_n_header) {
        file.fail(bad);
    }
    const auto bytes = file.read("about");
    const char * at  = (const char *) bytes.data() + sizeof(about);
    const char * end = (const char *) bytes.data() + bytes.size();
    if (std::count(at, end, '\0') != 3 || end[-1] != '\0') {
        file.fail(bad);
    }
    memcpy(&about, bytes.data(), sizeof(about));
    for (std::string * text : { &model_id, &model_name, &model_path }) {
        *text  = at;
        at    += text->size() + 1;
    }
    if (!headkv_is_sound(about)) {
        file.fail("is damaged: its section 'about' says what cannot be");
    }
    if (file.size("header") > headkv_session_n_header) {
        file.fail("is damaged: its header is too long");
    }
    const auto text = file.read("header");
    if (std::find(text.begin(), text.end(), 0) != text.end()) {
        file.fail("is damaged: its header is no text");
    }
    header.assign(text.begin(), text.end());
}

static void require_fitting(llama_context & ctx, const llama_kv_cache_headkv & mem, const headkv_session_file & s,
                            const char * model_id) {
    const auto mine     = headkv_about(ctx, mem);
    const auto & theirs = s.about;
    if (s.model_id != model_id) {
        const std::string name = s.model_path.substr(s.model_path.find_last_of('/') + 1);
        s.file.fail("is of the model " + s.model_name + " (" + name + "), not of " + headkv_name_of(ctx.get_model()) +
                    ": their weights differ");
    }
    const auto require_type = [&](const char * name, uint32_t found, uint32_t wanted) {
        if (found != wanted) {
            s.file.fail(format("has rows of %s=%s, and this context has %s", name, ggml_type_name((ggml_type) found),
                               ggml_type_name((ggml_type) wanted)));
        }
    };
    require_type("type_k", theirs.type_k, mine.type_k);
    require_type("type_v", theirs.type_v, mine.type_v);
    if (!headkv_same_rope(theirs, mine)) {
        s.file.fail(
            "has rows that are rotated otherwise than this context's: other RoPE settings, or LLAMA_ATTN_ROT_DISABLE");
    }
    if (theirs.n_tokens > mine.n_ctx) {
        s.file.fail(format("holds %u tokens, and the context has room for %u", theirs.n_tokens, mine.n_ctx));
    }
}

template <typename T>
static std::vector<T> values(headkv_session_file & s, const char * name, size_t n) {
    if (s.file.size(name) != n * sizeof(T)) {
        s.file.fail(format("is damaged: its section '%s' has not the %zu values that it should", name, n));
    }
    const auto bytes = s.file.read(name);
    std::vector<T> res(n);
    memcpy(res.data(), bytes.data(), bytes.size());
    return res;
}

// before anything that the context holds is given up
static headkv_session_held read_small(headkv_session_file & s, size_t n_vocab) {
    headkv_session_held res;
    res.tokens       = values<int32_t>(s, "tokens", s.about.n_tokens);
    const auto known = [&](int32_t token) { return token >= 0 && token < (int32_t) n_vocab; };
    if (!std::all_of(res.tokens.begin(), res.tokens.end(), known)) {
        s.file.fail("is damaged: a token is none of the model's");
    }
    res.logits        = s.file.has("logits") ? values<float>(s, "logits", n_vocab) : std::vector<float>();
    res.prompt_logits = s.file.has("prompt") ? values<float>(s, "prompt", n_vocab) : std::vector<float>();
    if (res.prompt_logits.empty() && s.about.n_prompt == s.about.n_tokens) {
        res.prompt_logits = res.logits;
    }
    return res;
}

// llama.cpp has a place for logits once it has computed some
static void make_room_for_logits(llama_context & ctx) {
    ctx.get_memory()->clear(false);
    headkv_require_ok(headkv_reserve(&ctx, 1));
    llama_token token  = 0;
    const int32_t code = llama_decode(&ctx, llama_batch_get_one(&token, 1));
    ctx.synchronize();
    if (code == 2) {
        throw headkv_error(HEADKV_ERR_CANCELLED, "cancelled");
    }
    if (code != 0) {
        throw headkv_error(HEADKV_ERR_MEMORY, "llama.cpp could not make room for logits");
    }
}

static void read_part(llama_context & ctx, llama_kv_cache_headkv & mem, headkv_session_file & s, part which,
                      const char * name) {
    const bool is_there = s.file.has(name);
    if (is_there) {
        s.file.verify(name); // before any of it is taken
        s.file.begin(name);
    }
    const size_t size = s.file.size(name);
    headkv_session_io_read io(s.file, size);
    const int32_t code = headkv_guard([&]() { mem.set_part(ctx, which, io, size); });
    if (code == HEADKV_ERR_MEMORY || code == HEADKV_ERR_ARCHIVE || code == HEADKV_ERR_SESSION) {
        headkv_require_ok(code);
    }
    if (code != HEADKV_OK) {
        s.file.require_not_cancelled(); // llama.cpp does not say why it stopped
        s.file.fail(std::string("is damaged, or does not fit this context: ") + headkv_last_error());
    }
    if (is_there) {
        s.file.end();
    }
}

static std::vector<uint8_t> read_prompt_state(llama_context & ctx, llama_kv_cache_headkv & mem,
                                              headkv_session_file & s) {
    read_part(ctx, mem, s, part::bounded, "turn");
    if (headkv_bounded(ctx.get_memory(), /*rows =*/false).last() + 1 != (int64_t) s.about.n_prompt) {
        s.file.fail("is damaged: a recurrent state is not of the prompt's end");
    }
    return headkv_get_bounded_state(ctx);
}

static void read_archive(llama_context & ctx, llama_kv_cache_headkv & mem, headkv_session_file & s) {
    const int32_t n = s.about.n_archived;
    if (s.file.size("rows") != headkv_n_bytes_rows(mem, n) || !s.file.has("end")) {
        s.file.fail("is damaged: its archive is not complete");
    }
    std::vector<uint8_t> rows;
    s.file.begin("rows");
    headkv_each_rows(mem, n, [&](int32_t layer, int32_t first, int32_t n_rows, size_t size) {
        rows.resize(size);
        s.file.fill(rows.data(), size);
        mem.set_archived(layer, first, n_rows, rows.data(), size);
    });
    s.file.end();
    read_part(ctx, mem, s, part::end, "end");
}

static void read_into(llama_context & ctx, llama_kv_cache_headkv & mem, headkv_session_file & s,
                      headkv_session_held & held) {
    read_part(ctx, mem, s, part::cells, "cells");
    if (s.file.has("turn")) {
        held.prompt_state = read_prompt_state(ctx, mem, s);
    }
    if (s.file.has("bounded") || !headkv_bounded(ctx.get_memory(), /*rows =*/false).empty()) {
        read_part(ctx, mem, s, part::bounded, "bounded");
    }
    const headkv_stats stats = headkv_stats_of(&ctx);
    const int64_t n          = s.about.n_tokens;
    if (stats.n_tokens != n || ctx.get_memory()->seq_pos_max(0) + 1 != n ||
        (stats.n_prompt > 0 && stats.n_prompt != s.about.n_prompt)) {
        s.file.fail("is damaged: its parts are of different lengths");
    }
    if (s.about.n_archived > 0 && mem.has_archive()) {
        if (s.about.n_archived > stats.n_prompt) {
            s.file.fail("is damaged: what it has archived is not the prompt");
        }
        read_archive(ctx, mem, s);
    }
}

namespace {

// a file may outlive the context that it is loaded into
struct watching {
    watching(headkv_session_reader & file, const std::atomic<bool> & cancelled) : file(file) { file.watch(&cancelled); }
    ~watching() { file.watch(nullptr); }

    headkv_session_reader & file;
};

} // namespace

void headkv_load_session(llama_context & ctx, llama_kv_cache_headkv & mem, headkv_session_file & s,
                         const char * model_id) {
    const watching of(s.file, mem.canceller.cancelled);
    require_fitting(ctx, mem, s, model_id);
    if (headkv_stats_of(&ctx).n_tokens > 0) { // nothing is given up for a damaged file
        s.file.verify();
    }
    headkv_session_held held = read_small(s, ctx.get_model().vocab.n_tokens());
    const bool has_logits    = !held.logits.empty() && !ctx.headkv_samples(); // a sampler's token is in no session
    try {
        if (has_logits) {
            make_room_for_logits(ctx);
        }
        ctx.get_memory()->clear(false);
        read_into(ctx, mem, s, held);
        if (has_logits) {
            std::copy(held.logits.begin(), held.logits.end(), ctx.get_logits_ith(-1));
        }
    } catch (...) {
        ctx.get_memory()->clear(false);
        throw;
    }
    if (s.held.tokens.empty()) { // loaded again it is the same, and callers point into what is there
        s.held = std::move(held);
    }
}
