// GGML_OP_HEADKV_ATTN on the CPU, see ggml-headkv.h for the shapes.
//
// The rows of a KV head are its pool rows followed by all tail cells. The work is cut into items of
// (KV head, tile of tokens, chunk of rows) that the threads take one after the other. Few tokens
// (decode): the rows are cut into short chunks so that a head with many rows keeps all threads busy, and
// the chunks' partial softmax results are combined in a second pass. Many tokens (prefill of a later
// turn): the tokens are cut into tiles instead, and each item sees all rows of its head.
// The cuts depend on shapes only, so the result does not depend on the number of threads.

#include "headkv-attn.h"

#include "ggml-cpu-impl.h"
#include "headkv-attn-cut.h"
#include "headkv-attn-item.h"

#include <algorithm>

size_t ggml_headkv_attn_work_size(const ggml_tensor * dst, int n_tasks) {
    const headkv_attn a(dst);

    size_t n = n_tasks * a.scratch_size();
    if (a.split) {
        n += a.n_chunks_max() * a.n_queries() * a.partial_size();
    }
    return n * sizeof(float);
}

void ggml_compute_forward_headkv_attn(const ggml_compute_params * params, ggml_tensor * dst) {
    const headkv_attn a(dst);

    const int ith = params->ith;
    const int nth = params->nth;

    float * scratch  = (float *) params->wdata + ith * a.scratch_size();
    float * partials = (float *) params->wdata + nth * a.scratch_size();

    const int64_t n_tiles = (a.n_tokens + a.n_tile - 1) / a.n_tile;

    if (ith == 0) {
        // every thread starts with the item of its own index
        ggml_threadpool_chunk_set(params->threadpool, nth);
    }
    ggml_barrier(params->threadpool);

    int64_t item  = ith; // item to do next
    int64_t first = 0;   // first item of head h
    int64_t chunk = 0;   // first chunk of head h

    for (int64_t h = 0; h < a.n_head_kv; ++h) {
        const int64_t n_chunks = a.n_chunks(h);
        const int64_t n_items  = n_chunks * n_tiles;

        for (; item < first + n_items; item = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            const int64_t ic = (item - first) / n_tiles;
            const int64_t it = (item - first) % n_tiles;
            const int64_t r0 = a.split ? ic * chunk_size : 0;
            const int64_t r1 = a.split ? std::min(r0 + chunk_size, a.n_rows(h)) : a.n_rows(h);

            headkv_attn_item work(a, h, it * a.n_tile, std::min((it + 1) * a.n_tile, a.n_tokens), scratch);
            work.run(r0, r1);

            if (a.split) {
                work.write_partials(partials + (chunk + ic) * a.n_queries() * a.partial_size());
            } else {
                work.write_result();
            }
        }

        first += n_items;
        chunk += n_chunks;
    }

    if (!a.split) {
        return;
    }

    ggml_barrier(params->threadpool);

    chunk = 0;
    for (int64_t h = 0; h < a.n_head_kv; ++h) {
        if (h % nth == ith) {
            headkv_attn_item work(a, h, 0, a.n_tokens, scratch);
            work.merge_partials(partials + chunk * a.n_queries() * a.partial_size(), a.n_chunks(h));
            work.write_result();
        }
        chunk += a.n_chunks(h);
    }
}
