// Saving a session: what a context holds, and what the caller knows of it, in one file.

#include "base/headkv-io.h"
#include "base/headkv-utf8.h"
#include "scores/headkv-scores.h"
#include "session/headkv-session-io.h"
#include "session/headkv-session-parts.h"

#include <cstring>
#include <filesystem>

using part = llama_kv_cache_headkv::part;

// Links stay: what belongs to a model, parts of a split one and head scores, stands beside its link.
static std::string absolute(const char * path) {
    std::error_code error;
    const auto found = std::filesystem::absolute(path, error);
    return error ? path : found.string();
}

// how many tokens the prompt has that was read last; 0 where that is not known
static size_t require_what_is_told(const headkv_session & s, const headkv_stats & stats, int32_t n_vocab) {
    for (const void * needed : { (const void *) s.model_id, (const void *) s.model_path, (const void *) s.tokens }) {
        headkv_require_pointer(needed);
    }
    if (!headkv_is_model_id(s.model_id)) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the model_id is not one that headkv_model_id() gives");
    }
    if (s.n_tokens < 1 || (int64_t) s.n_tokens != stats.n_tokens) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("the context holds %lld tokens, not the %zu that were given",
                                                       (long long) stats.n_tokens, s.n_tokens));
    }
    for (size_t p = 0; p < s.n_tokens; ++p) {
        if (s.tokens[p] < 0 || s.tokens[p] >= n_vocab) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, format("token %d is none of the model's", s.tokens[p]));
        }
    }
    const bool fits = stats.n_prompt == 0 || s.n_prompt == 0 || (int64_t) s.n_prompt == stats.n_prompt;
    if (s.n_prompt > s.n_tokens || !fits) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("the prompt cannot have %zu of %zu tokens", s.n_prompt, s.n_tokens));
    }
    if (s.header && strlen(s.header) > headkv_session_n_header) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("a header of %zu bytes is longer than %zu", strlen(s.header),
                                                       headkv_session_n_header));
    }
    if (s.header && !headkv_is_utf8(s.header)) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the header is not UTF-8");
    }
    if (s.n_prompt_state > 0) {
        headkv_require_pointer(s.prompt_state);
    }
    return stats.n_prompt > 0 ? stats.n_prompt : s.n_prompt;
}

static void write_about(headkv_session_writer & file, const headkv_session_about & about, const headkv_session & s,
                        const std::string & model_name) {
    std::string text((const char *) &about, sizeof(about));
    for (const std::string & each : { std::string(s.model_id), model_name, absolute(s.model_path) }) {
        text.append(each.c_str(), each.size() + 1);
    }
    file.section("about", text.data(), text.size());
    if (s.header) {
        file.section("header", s.header, strlen(s.header));
    }
}

static void write_rows(headkv_session_writer & file, const llama_kv_cache_headkv & mem, int32_t n_archived) {
    std::vector<uint8_t> rows;
    file.begin("rows", headkv_n_bytes_rows(mem, n_archived));
    headkv_each_rows(mem, n_archived, [&](int32_t layer, int32_t first, int32_t n, size_t size) {
        rows.resize(size);
        mem.get_archived(layer, first, n, rows.data(), size);
        file.write(rows.data(), size);
    });
    file.end();
}

void headkv_save_session(llama_context & ctx, llama_kv_cache_headkv & mem, const headkv_session & s,
                         const char * path) {
    const headkv_stats stats = headkv_stats_of(&ctx);

    auto about       = headkv_about(ctx, mem);
    about.n_prompt   = require_what_is_told(s, stats, ctx.get_model().vocab.n_tokens());
    about.n_tokens   = s.n_tokens;
    about.n_archived = s.light ? 0 : stats.n_archived;
    if (!headkv_is_sound(about)) {
        throw headkv_error(HEADKV_ERR_UNSUPPORTED, "the context has RoPE settings that no session can hold");
    }

    const size_t n_logits      = (size_t) ctx.get_model().vocab.n_tokens() * sizeof(float);
    const bool at_prompt       = about.n_prompt == about.n_tokens;
    const float * const logits = !s.logits && at_prompt ? s.prompt_logits : s.logits;

    headkv_session_writer file(path, mem.canceller.cancelled);
    const auto write_part = [&](const char * name, part which) {
        headkv_io_fill counted(nullptr, 0);
        mem.write_part(ctx, which, counted);
        if (counted.n_bytes() > 0) {
            file.begin(name, counted.n_bytes());
            headkv_session_io_write io(file);
            mem.write_part(ctx, which, io);
            file.end();
        }
    };
    write_about(file, about, s, headkv_name_of(ctx.get_model()));
    file.section("tokens", s.tokens, s.n_tokens * sizeof(int32_t));
    if (logits) {
        file.section("logits", logits, n_logits);
    }
    write_part("cells", part::cells);
    write_part("bounded", part::bounded);
    if (!s.light && s.prompt_logits && !at_prompt) {
        file.section("prompt", s.prompt_logits, n_logits);
    }
    if (!s.light && s.n_prompt_state > 0) {
        const auto turn = mem.get_bounded_of(ctx, s.prompt_state, s.n_prompt_state, about.n_prompt);
        file.section("turn", turn.data(), turn.size());
    }
    if (about.n_archived > 0) {
        write_rows(file, mem, about.n_archived);
        write_part("end", part::end);
    }
    file.commit();
}
