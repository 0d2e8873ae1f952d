// The part of headkv.h that saves and opens sessions.

#include "session/headkv-session-parts.h"

static llama_kv_cache_headkv & require_mem(llama_context * ctx) {
    headkv_require_ok(headkv_supported(ctx));
    ctx->synchronize();
    return *llama_kv_cache_headkv::find(ctx->get_memory());
}

int32_t headkv_session_save(llama_context * ctx, const char * path, const headkv_session * session, size_t size) {
    return headkv_guard([&]() {
        headkv_require_pointer(path);
        headkv_require_pointer(session);
        headkv_require_size(size, sizeof(*session));
        headkv_require_pointer(session->model_path);
        headkv_save_session(ctx, require_mem(ctx), *session, path);
    });
}

int32_t headkv_session_open(llama_context * ctx, const char * path, const char * model_path, int32_t * tokens,
                            size_t * n_tokens) {
    return headkv_guard([&]() {
        headkv_require_pointer(path);
        headkv_require_pointer(model_path);
        headkv_require_pointer(tokens);
        headkv_require_pointer(n_tokens);
        headkv_open_session(ctx, require_mem(ctx), path, model_path, tokens, n_tokens);
    });
}
