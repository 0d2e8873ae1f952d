#include "headkv.h"

#include "base/headkv-error.h"
#include "base/headkv-guard.h"
#include "base/headkv-io.h"
#include "cache/llama-kv-cache-headkv.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>

static llama_kv_cache_headkv & require_mem(const llama_context * ctx) {
    if (!ctx) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "the context is NULL");
    }
    const std::string reason = llama_kv_cache_headkv::unsupported(*ctx);
    if (!reason.empty()) {
        throw headkv_error(HEADKV_ERR_UNSUPPORTED, reason);
    }
    return *llama_kv_cache_headkv::find(ctx->get_memory());
}

// run f(memory) on a context that can be compacted, or could: a setting may forbid it for a while
template <typename F>
static int32_t guard_found(const llama_context * ctx, F && f) {
    return headkv_guard([&]() {
        auto * mem = ctx ? llama_kv_cache_headkv::find(ctx->get_memory()) : nullptr;
        f(mem && mem->get_retains() ? *mem : require_mem(ctx));
    });
}

// run f(memory) on a context that can be compacted
template <typename F>
static int32_t guard(const llama_context * ctx, F && f) {
    return headkv_guard([&]() { f(require_mem(ctx)); });
}

// run f(memory), which changes it
template <typename F>
static int32_t guard_change(llama_context * ctx, F && f) {
    return guard(ctx, [&](llama_kv_cache_headkv & mem) {
        mem.canceller.require_not_called_back();
        mem.belongs_to(*ctx);
        f(mem);
    });
}

int32_t headkv_abi_version(void) {
    return HEADKV_ABI_VERSION;
}

const char * headkv_last_error(void) {
    return headkv_error_text.c_str();
}

int32_t headkv_supported(const llama_context * ctx) {
    return guard(ctx, [](llama_kv_cache_headkv &) {});
}

int32_t headkv_reserve(llama_context * ctx, int32_t n) {
    return guard_change(ctx, [&](llama_kv_cache_headkv & mem) {
        ctx->synchronize();
        mem.expect(n);
    });
}

int32_t headkv_observe(llama_context * ctx, int32_t what, int32_t first, int32_t n, const float * weights,
                       const int32_t * again_at, size_t n_again) {
    return guard_change(ctx, [&](llama_kv_cache_headkv & mem) {
        if (n_again > 0) {
            headkv_require_pointer(again_at);
        }
        ctx->synchronize();
        mem.observe(what, first, n, weights, { again_at, again_at + n_again });
    });
}

int32_t headkv_get_observe_limit(const llama_context * ctx, int32_t n_tokens, int32_t * n) {
    return guard(ctx, [&](llama_kv_cache_headkv & mem) {
        headkv_require_pointer(n);
        *n = mem.get_observe_limit(std::max(n_tokens, 1));
    });
}

int32_t headkv_compact(llama_context * ctx, const headkv_plan * plan, size_t size) {
    return guard_change(ctx, [&](llama_kv_cache_headkv & mem) {
        headkv_require_pointer(plan);
        headkv_require_size(size, sizeof(*plan));
        ctx->synchronize();
        mem.compact(*plan, std::max(1, ctx->get_cparams().n_threads), ggml_time_us());
    });
}

int32_t headkv_set_archive(llama_context * ctx, int32_t where, const char * path) {
    return guard_change(ctx, [&](llama_kv_cache_headkv & mem) { mem.set_archive(where, path); });
}

int32_t headkv_prefill(llama_context * ctx, const headkv_prompt * prompt, size_t prompt_size, const headkv_plan * plan,
                       size_t plan_size) {
    return guard_change(ctx, [&](llama_kv_cache_headkv & mem) {
        headkv_require_pointer(prompt);
        headkv_require_size(prompt_size, sizeof(*prompt));
        if (plan) {
            headkv_require_size(plan_size, sizeof(*plan));
        }
        mem.prefill(*ctx, *prompt, plan);
    });
}

int32_t headkv_get_archived_end(llama_context * ctx, void * data, size_t * size) {
    return guard(ctx, [&](llama_kv_cache_headkv & mem) {
        headkv_require_pointer(size);
        ctx->synchronize();
        const auto end = mem.get_part(*ctx, llama_kv_cache_headkv::part::end);
        if (data) {
            headkv_require_size(*size, end.size());
            std::copy(end.begin(), end.end(), (uint8_t *) data);
        }
        *size = end.size();
    });
}

int32_t headkv_set_archived_end(llama_context * ctx, const void * data, size_t size) {
    return guard_change(ctx, [&](llama_kv_cache_headkv & mem) {
        headkv_require_pointer(data);
        ctx->synchronize();
        headkv_io_read io(data, size);
        mem.set_part(*ctx, llama_kv_cache_headkv::part::end, io, size);
    });
}

int32_t headkv_get_archived(llama_context * ctx, int32_t layer, int32_t first, int32_t n, void * rows, size_t size) {
    return guard(ctx, [&](llama_kv_cache_headkv & mem) { mem.get_archived(layer, first, n, rows, size); });
}

int32_t headkv_set_archived(llama_context * ctx, int32_t layer, int32_t first, int32_t n, const void * rows,
                            size_t size) {
    return guard_change(ctx, [&](llama_kv_cache_headkv & mem) { mem.set_archived(layer, first, n, rows, size); });
}

int32_t headkv_hold_archived(llama_context * ctx, int32_t * id) {
    return guard_found(ctx, [&](llama_kv_cache_headkv & mem) {
        headkv_require_pointer(id);
        mem.canceller.require_not_called_back();
        *id = mem.hold_archived();
    });
}

int32_t headkv_restore_archived(llama_context * ctx, int32_t id) {
    return guard_found(ctx, [&](llama_kv_cache_headkv & mem) {
        mem.canceller.require_not_called_back();
        mem.restore_archived(id);
    });
}

int32_t headkv_release_archived(llama_context * ctx, int32_t id) {
    return guard_found(ctx, [&](llama_kv_cache_headkv & mem) {
        mem.canceller.require_not_called_back();
        mem.release_archived(id);
    });
}

int32_t headkv_begin_small(int32_t on) {
    llama_kv_cache_headkv::begin_small = on != 0;
    return HEADKV_OK;
}

int32_t headkv_get_attention(const llama_context * ctx, float * w, size_t n) {
    return guard(ctx, [&](llama_kv_cache_headkv & mem) {
        headkv_require_pointer(w);
        const_cast<llama_context *>(ctx)->synchronize();
        mem.get_attention(w, n);
    });
}

int32_t headkv_get_rows(const llama_context * ctx, int32_t layer, float * w, size_t n) {
    return guard(ctx, [&](llama_kv_cache_headkv & mem) {
        headkv_require_pointer(w);
        const_cast<llama_context *>(ctx)->synchronize();
        mem.get_rows(layer, w, n);
    });
}

int32_t headkv_get_layers(const llama_context * ctx, headkv_layer * layers, size_t n) {
    return guard_found(ctx, [&](llama_kv_cache_headkv & mem) {
        headkv_require_pointer(layers);
        const auto & shapes = mem.get_shapes();
        headkv_require_length(n, shapes.size());
        std::transform(shapes.begin(), shapes.end(), layers, [](const headkv_layer_shape & s) {
            return headkv_layer{ s.il, (int32_t) s.n_head, (int32_t) s.n_head_kv, (int32_t) s.row_bytes() };
        });
    });
}

int32_t headkv_get_mask(const llama_context * ctx, uint8_t * mask, size_t n) {
    return guard_found(ctx, [&](llama_kv_cache_headkv & mem) {
        headkv_require_pointer(mask);
        mem.get_mask(mask, n);
    });
}

int32_t headkv_get_stats(const llama_context * ctx, headkv_stats * stats, size_t size, int32_t * kept, size_t n) {
    return guard_found(ctx, [&](llama_kv_cache_headkv & mem) {
        headkv_require_pointer(stats);
        headkv_require_size(size, sizeof(*stats));
        *stats = mem.get_stats(kept, n);
    });
}

int32_t headkv_cancel_enable(llama_context * ctx) {
    return guard(ctx, [&](llama_kv_cache_headkv & mem) {
        ctx->synchronize();
        ctx->set_abort_callback(headkv_canceller::poll, &mem.canceller);
    });
}

int32_t headkv_cancel(llama_context * ctx) {
    return guard_found(ctx, [](llama_kv_cache_headkv & mem) { mem.canceller.cancelled = true; });
}

int32_t headkv_cancel_clear(llama_context * ctx) {
    return guard_found(ctx, [](llama_kv_cache_headkv & mem) { mem.canceller.cancelled = false; });
}
