// Opening sessions, which C or Python has saved.

#include "session/headkv-session-parts.h"

#include "nlohmann/json.hpp"

#include <cstdlib>
#include <cstring>
#include <utility>

using json = nlohmann::json;

static const std::vector<std::string> section_names = { "tokens", "logits", "cells", "bounded",
                                                        "prompt", "turn",   "rows",  "end" };

// Python writes halves of surrogate pairs as they are, which are no text: U+FFFD takes their place.
static std::string with_whole_pairs(std::string text) {
    const auto code_at = [&](size_t i) -> unsigned {
        const bool escaped = i + 6 <= text.size() && text[i] == '\\' && text[i + 1] == 'u';
        return escaped ? strtoul(text.substr(i + 2, 4).c_str(), nullptr, 16) : 0;
    };
    for (size_t i = text.find('\\'); i < text.size(); i = text.find('\\', i)) {
        const unsigned code = code_at(i);
        const unsigned next = code_at(i + 6);
        if (code >= 0xd800 && code < 0xdc00 && next >= 0xdc00 && next < 0xe000) {
            i += 12;
        } else {
            if (code >= 0xd800 && code < 0xe000) {
                text.replace(i + 2, 4, "fffd");
            }
            i += 2;
        }
    }
    return text;
}

// what is read, and checked, before anything that the context holds is given up
struct held_session {
    std::vector<int32_t> tokens;
    std::vector<float> logits; // of the last token; empty where they are not known
    int32_t n_archived = 0;
};

static int64_t number(const json & from, const char * key, int64_t none) {
    const auto it = from.find(key);
    return it != from.end() && it->is_number_integer() && it->is_number() ? it->get<int64_t>() : none;
}

static float real(const json & from, const char * key, float none) {
    const auto it    = from.find(key);
    const double res = it != from.end() && it->is_number() ? it->get<double>() : 0.0;
    return res == 0.0 ? none : (float) res; // as in Llama's arguments, 0 is the model's own
}

template <typename T>
static std::vector<T> numbers(headkv_session_reader & file, const char * name, size_t n) {
    const auto bytes = file.read(name);
    if (bytes.size() != n * sizeof(T)) {
        file.fail(format("is damaged: its section '%s' has not the %zu values that it should", name, n));
    }
    std::vector<T> res(n);
    memcpy(res.data(), bytes.data(), bytes.size());
    return res;
}

static held_session read_small(llama_context * ctx, const headkv_layer_shape & shape, headkv_session_reader & file,
                               const char * model_path) {
    const auto & cparams = ctx->get_cparams();
    const auto & hparams = ctx->get_model().hparams;
    const json header    = json::parse(with_whole_pairs(file.header()), nullptr, /*allow_exceptions =*/false);
    const auto inner     = [&](const char * key) -> json {
        const auto it = header.is_object() ? header.find(key) : header.end();
        return header.is_object() && it != header.end() && it->is_object() ? *it : json::object();
    };
    const json model = inner("model"), context = inner("context");
    if (!header.is_object() || !model.contains("id") || !model["id"].is_string()) {
        file.fail("has a header that is no JSON of ours");
    }
    if (model["id"].get<std::string>() != headkv_model_id(model_path)) {
        const json name = model.value("name", json(""));
        file.fail("is of the model " + (name.is_string() ? name.get<std::string>() : "") + ", not of " +
                  headkv_name_of(ctx->get_model(), model_path));
    }
    for (const auto & [key, mine] : { std::pair("type_k", shape.type_k), std::pair("type_v", shape.type_v) }) {
        const int64_t theirs = number(context, key, -1);
        if (theirs != (int64_t) mine) {
            file.fail(format("has rows of %s=%lld, and this context has %d", key, (long long) theirs, (int) mine));
        }
    }
    if (real(context, "rope_freq_base", hparams.rope_freq_base_train) != cparams.rope_freq_base ||
        real(context, "rope_freq_scale", hparams.rope_freq_scale_train) != cparams.rope_freq_scale) {
        file.fail("has rows of other RoPE settings than this context's");
    }
    const int64_t n = number(header, "n_tokens", 0), n_archived = number(header, "n_archived", 0);
    if (n < 1 || n_archived < 0 || n_archived > n || n > INT32_MAX) {
        file.fail("has a header that is no JSON of ours");
    }
    if (n > (int64_t) cparams.n_ctx) {
        file.fail(format("holds %lld tokens, and the context has room for %u", (long long) n, cparams.n_ctx));
    }
    file.verify();

    const size_t n_vocab = ctx->get_model().vocab.n_tokens();
    held_session res;
    res.tokens     = numbers<int32_t>(file, "tokens", n);
    res.n_archived = (int32_t) n_archived;
    if (std::any_of(res.tokens.begin(), res.tokens.end(), [&](int32_t t) { return t < 0 || t >= (int32_t) n_vocab; })) {
        file.fail("is damaged: a token is none of the model's");
    }
    if (file.has("logits")) {
        res.logits = numbers<float>(file, "logits", n_vocab);
    }
    return res;
}

// llama.cpp has a place for logits once it has computed some
static void make_room_for_logits(llama_context * ctx) {
    ctx->get_memory()->clear(false);
    headkv_require_ok(headkv_reserve(ctx, 1));
    llama_token token = 0;
    if (llama_decode(ctx, llama_batch_get_one(&token, 1)) != 0) {
        throw headkv_error(HEADKV_ERR_MEMORY, "llama.cpp could not make room for logits");
    }
    ctx->synchronize();
}

static void require_part(llama_context * ctx, headkv_session_reader & file, int32_t part, const char * name) {
    auto data = file.read(name);
    data.reserve(1); // a pointer that is not NULL
    const int32_t code = headkv_set_part(ctx, part, data.data(), data.size());
    if (code == HEADKV_ERR_MEMORY || code == HEADKV_ERR_ARCHIVE) {
        headkv_require_ok(code);
    }
    if (code != HEADKV_OK) {
        file.fail(std::string("is damaged, or does not fit this context: ") + headkv_last_error());
    }
}

static void read_into(llama_context * ctx, llama_kv_cache_headkv & mem, headkv_session_reader & file,
                      const held_session & held) {
    require_part(ctx, file, HEADKV_PART_CELLS, "cells");
    if (file.has("bounded") || !headkv_part_of(ctx, HEADKV_PART_BOUNDED).empty()) {
        require_part(ctx, file, HEADKV_PART_BOUNDED, "bounded");
    }
    const headkv_stats stats = headkv_stats_of(ctx);
    const int64_t n          = held.tokens.size();
    if (stats.n_tokens != n || ctx->get_memory()->seq_pos_max(0) + 1 != n) {
        file.fail("is damaged: its parts are of different lengths");
    }
    if (held.n_archived == 0 || !mem.has_archive()) {
        return;
    }
    const auto layers = headkv_layers_of(ctx, stats.n_layer);
    if (held.n_archived != stats.n_prompt || file.size("rows") != headkv_n_bytes_rows(layers, held.n_archived)) {
        file.fail("is damaged: its archive is not complete");
    }
    std::vector<uint8_t> rows;
    file.begin("rows");
    headkv_each_rows(layers, held.n_archived, [&](int32_t layer, int32_t first, int32_t n_rows, size_t size) {
        rows.resize(size);
        file.fill(rows.data(), size);
        headkv_require_ok(headkv_set_archived(ctx, layer, first, n_rows, rows.data(), size));
    });
    file.end();
    require_part(ctx, file, HEADKV_PART_END, "end");
}

void headkv_open_session(llama_context * ctx, llama_kv_cache_headkv & mem, const char * path, const char * model_path,
                         int32_t * tokens, size_t * n_tokens) {
    headkv_session_reader file(path, section_names);
    const held_session held = read_small(ctx, mem.get_shapes()[0], file, model_path);
    if (held.tokens.size() > *n_tokens) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("the session holds %zu tokens, and there is room for %zu",
                                                       held.tokens.size(), *n_tokens));
    }
    try {
        if (!held.logits.empty()) {
            make_room_for_logits(ctx);
        }
        ctx->get_memory()->clear(false);
        read_into(ctx, mem, file, held);
        if (!held.logits.empty()) {
            std::copy(held.logits.begin(), held.logits.end(), ctx->get_logits_ith(-1));
        }
    } catch (...) {
        ctx->get_memory()->clear(false);
        throw;
    }
    std::copy(held.tokens.begin(), held.tokens.end(), tokens);
    *n_tokens = held.tokens.size();
}
