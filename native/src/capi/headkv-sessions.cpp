// The part of headkv.h that stands in headkv-session.h.

#include "session/headkv-session-parts.h"

static llama_kv_cache_headkv & require_mem(llama_context * ctx) {
    headkv_require_ok(headkv_supported(ctx));
    auto & mem = *llama_kv_cache_headkv::find(ctx->get_memory());
    mem.canceller.require_not_called_back();
    mem.belongs_to(*ctx);
    ctx->synchronize();
    return mem;
}

int32_t headkv_session_save(llama_context * ctx, const char * path, const headkv_session * session, size_t size) {
    return headkv_guard([&]() {
        headkv_require_pointer(path);
        headkv_require_pointer(session);
        headkv_require_size(size, sizeof(*session));
        auto & mem = require_mem(ctx);
        headkv_save_session(*ctx, mem, *session, path);
    });
}

int32_t headkv_session_open(const char * path, headkv_session_file ** file) {
    return headkv_guard([&]() {
        headkv_require_pointer(file);
        *file = nullptr;
        headkv_require_pointer(path);
        *file = new headkv_session_file(path);
    });
}

void headkv_session_close(headkv_session_file * file) {
    delete file;
}

template <typename T>
static const T * pointer_to(const std::vector<T> & values) {
    return values.empty() ? nullptr : values.data();
}

int32_t headkv_session_get(const headkv_session_file * file, headkv_session * session, size_t size) {
    return headkv_guard([&]() {
        headkv_require_pointer(file);
        headkv_require_pointer(session);
        headkv_require_size(size, sizeof(*session));
        const auto & about = file->about;

        *session                 = {};
        session->model_id        = file->model_id.c_str();
        session->model_path      = file->model_path.c_str();
        session->header          = file->header.c_str();
        session->tokens          = pointer_to(file->held.tokens);
        session->n_tokens        = about.n_tokens;
        session->n_prompt        = about.n_prompt;
        session->logits          = pointer_to(file->held.logits);
        session->prompt_logits   = pointer_to(file->held.prompt_logits);
        session->prompt_state    = pointer_to(file->held.prompt_state);
        session->n_prompt_state  = file->held.prompt_state.size();
        session->model_name      = file->model_name.c_str();
        session->n_archived      = about.n_archived;
        session->n_ctx           = about.n_ctx;
        session->n_batch         = about.n_batch;
        session->n_ubatch        = about.n_ubatch;
        session->type_k          = about.type_k;
        session->type_v          = about.type_v;
        session->rope_freq_base  = about.rope_freq_base;
        session->rope_freq_scale = about.rope_freq_scale;
    });
}

int32_t headkv_session_load(llama_context * ctx, headkv_session_file * file, const char * model_id) {
    return headkv_guard([&]() {
        headkv_require_pointer(file);
        headkv_require_pointer(model_id);
        auto & mem = require_mem(ctx);
        headkv_load_session(*ctx, mem, *file, model_id);
    });
}

int32_t headkv_get_rows_id(llama_context * ctx, uint64_t * id) {
    return headkv_guard([&]() {
        headkv_require_pointer(id);
        headkv_require_ok(headkv_supported(ctx)); // it only asks
        *id = headkv_rows_id(*ctx, *llama_kv_cache_headkv::find(ctx->get_memory()));
    });
}
