// Sessions of C programs: all that a context holds in one file, which Python's open_session() reads too.

#include "session/headkv-session-parts.h"

#include "nlohmann/json.hpp"

#include <cstdlib>

using json = nlohmann::json;

// arguments of Python's Llama that rows depend on; RoPE only where it is not the model's own
static json context_to_json(const llama_context & ctx, const headkv_layer_shape & shape) {
    const auto & cparams = ctx.get_cparams();
    const auto & hparams = ctx.get_model().hparams;

    json res = { { "n_ctx", cparams.n_ctx },       { "n_batch", cparams.n_batch },   { "n_ubatch", cparams.n_ubatch },
                 { "type_k", (int) shape.type_k }, { "type_v", (int) shape.type_v }, { "flash_attn", true } };
    if (cparams.rope_freq_base != hparams.rope_freq_base_train) {
        res["rope_freq_base"] = cparams.rope_freq_base;
    }
    if (cparams.rope_freq_scale != hparams.rope_freq_scale_train) {
        res["rope_freq_scale"] = cparams.rope_freq_scale;
    }
    return res;
}

static json retention_to_json(const headkv_retention & r, bool archived) {
    json res = { { "beta", r.beta },   { "window", r.window },   { "kernel", r.kernel },
                 { "sinks", r.sinks }, { "observe", r.observe }, { "draft", r.draft }, { "caps", nullptr } };
    if (r.budget) {
        res["budget"] = r.budget;
    } else {
        res["budget"] = r.entries;
    }
    res["archive"] = archived ? json("memory") : json(nullptr);
    res["scores"]  = "uniform";

    json rows = json::array();
    if (r.scores) {
        for (size_t i = 0; i < r.n_rows; ++i) {
            rows.push_back(std::vector<double>(r.scores + i * r.n_cols, r.scores + (i + 1) * r.n_cols));
        }
        res["scores"] = rows;
    } else if (r.file) {
        const headkv_scores & f = *r.file;
        for (size_t i = 0; i < f.n_layer; ++i) {
            rows.push_back(std::vector<float>(f.scores.begin() + i * f.n_head, f.scores.begin() + (i + 1) * f.n_head));
        }
        res["scores"] = { { "scores", rows },
                          { "n_head_kv", f.n_head_kv },
                          { "method", f.texts.empty() ? "" : f.texts[0].second },
                          { "layers", f.layers },
                          { "source", json::object() } };
    }
    return res;
}

static std::string absolute(const char * path) {
    char * found          = realpath(path, nullptr);
    const std::string res = found ? found : path;
    free(found);
    return res;
}

void headkv_save_session(llama_context * ctx, llama_kv_cache_headkv & mem, const headkv_session & s,
                         const char * path) {
    const headkv_stats stats = headkv_stats_of(ctx);
    if (s.n_tokens < 1 || (int64_t) s.n_tokens != stats.n_tokens) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("the context holds %lld tokens, not the %zu that were given",
                                                       (long long) stats.n_tokens, s.n_tokens));
    }
    headkv_require_pointer(s.tokens);
    const auto layers        = headkv_layers_of(ctx, stats.n_layer);
    const int32_t n_archived = s.light ? 0 : stats.n_archived;

    json header = {
        { "model",
          { { "id", headkv_model_id(s.model_path) },
            { "name", headkv_name_of(ctx->get_model(), s.model_path) },
            { "path", absolute(s.model_path) } } },
        { "context", context_to_json(*ctx, mem.get_shapes()[0]) },
        { "retention", s.retention ? retention_to_json(*s.retention, stats.n_archived > 0) : json(nullptr) },
        { "seed", 0xffffffffu },
        { "n_tokens", s.n_tokens },
        { "n_archived", n_archived },
        { "prompt",
          { { "n_tokens", stats.n_prompt > 0 ? json(stats.n_prompt) : json(nullptr) },
            { "policy", s.retention && (s.retention->scores || s.retention->file) ? "scores" : "uniform" },
            { "scores_from", nullptr },
            { "prefill_seconds", 0.0 } } },
        { "messages", json::array() },
    };
    const std::string text = header.dump(-1, ' ', /*ensure_ascii =*/true, json::error_handler_t::replace);

    headkv_session_writer file(path, text);
    file.section("tokens", s.tokens, s.n_tokens * sizeof(int32_t));
    if (s.logits) {
        file.section("logits", s.logits, (size_t) ctx->get_model().vocab.n_tokens() * sizeof(float));
    }
    const auto cells = headkv_part_of(ctx, HEADKV_PART_CELLS);
    file.section("cells", cells.data(), cells.size());
    const auto bounded = headkv_part_of(ctx, HEADKV_PART_BOUNDED);
    if (!bounded.empty()) {
        file.section("bounded", bounded.data(), bounded.size());
    }
    if (n_archived > 0) {
        std::vector<uint8_t> rows;
        file.begin("rows", headkv_n_bytes_rows(layers, n_archived));
        headkv_each_rows(layers, n_archived, [&](int32_t layer, int32_t first, int32_t n, size_t size) {
            rows.resize(size);
            headkv_require_ok(headkv_get_archived(ctx, layer, first, n, rows.data(), size));
            file.write(rows.data(), size);
        });
        file.end();
        const auto end = headkv_part_of(ctx, HEADKV_PART_END);
        file.section("end", end.data(), end.size());
    }
    file.commit();
}
