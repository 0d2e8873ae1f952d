#pragma once

// What the kernels of GGML_OP_HEADKV_ATTN are given: plain numbers and pointers into device memory, and how the
// work is cut. Knows nothing of ggml, so that the kernels compile without it.
//
// The rows of a KV head are its pool rows followed by all tail cells. The rows of all heads, one head after the
// other, are cut into equal ranges, one per block: a long head is spread over many blocks, and short heads share
// one. A block leaves one partial softmax result for every head that its range touches (a segment). The grid depends
// on shapes and on the device; the cuts are computed by the kernels from the head table in device memory, so a
// captured graph stays valid while the table changes.

#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define HEADKV_HOST_DEVICE __host__ __device__
#else
#define HEADKV_HOST_DEVICE
#endif

enum headkv_type { HEADKV_F16, HEADKV_BF16, HEADKV_Q8_0, HEADKV_Q4_0 };

struct headkv_attn_params {
    const char * q; // F32
    int64_t nb_q_token;
    int64_t nb_q_head;

    const char * k_pool; // rows side by side
    const char * v_pool;
    const int32_t * rows; // [n_head_kv + 1]

    const char * k_tail;
    const char * v_tail;
    int64_t nb_k_cell;
    int64_t nb_k_head;
    int64_t nb_v_cell;
    int64_t nb_v_head;

    const char * mask; // F16
    int64_t nb_mask;

    const float * sinks; // [n_head] or NULL
    float * dst;         // [n_tokens][n_head][n_embd]

    float * partial_acc; // [n_col_tiles][n_partials][n_cols_tile][n_embd]
    float * partial_ms;  // [n_col_tiles][n_partials][n_cols_tile][2], maximum and sum

    int n_head_kv;
    int n_gqa;
    int n_tokens;
    int n_kv;

    int n_blocks;     // that share the rows; the grid's x
    int n_cols_tile;  // columns of a tile; a column is a query: token c/n_gqa, head c%n_gqa of its KV head
    int n_col_tiles;  // the grid's y
    int k_tail_width; // bytes that one copy from the tail may take: 16, 8, 4 or 2
    int v_tail_width;

    float scale;
    float softcap;
};

constexpr int headkv_rows_tile  = 16; // rows that a warp takes at once
constexpr int headkv_rows_block = 64; // the fewest rows that are worth a block

// columns of a tile: 8 as long as they suffice (decode), else as many as the registers hold
constexpr int headkv_cols_narrow = 8;

HEADKV_HOST_DEVICE constexpr int headkv_cols_wide(int n_embd) {
    return n_embd <= 128 ? 32 : n_embd <= 256 ? 16 : headkv_cols_narrow;
}

HEADKV_HOST_DEVICE constexpr int headkv_n_warps(int n_embd) {
    return n_embd <= 128 ? 4 : n_embd <= 256 ? 2 : 1;
}

// blocks that the registers of a multiprocessor are shared by
HEADKV_HOST_DEVICE constexpr int headkv_blocks_per_sm(int n_embd, int n_cols) {
    return n_cols > headkv_cols_narrow && n_embd <= 128 ? 2 : n_embd == 96 || n_embd == 128 ? 3 : 4;
}

// 32 values share a scale; the other types are 16 bits a value
HEADKV_HOST_DEVICE constexpr bool headkv_has_blocks(headkv_type type) {
    return type == HEADKV_Q8_0 || type == HEADKV_Q4_0;
}

HEADKV_HOST_DEVICE constexpr size_t headkv_row_size(headkv_type type, int n_embd) {
    return type == HEADKV_Q8_0 ? n_embd / 32 * 34 : type == HEADKV_Q4_0 ? n_embd / 32 * 18 : n_embd * 2;
}

// distance of rows in shared memory: float rows are spread over the banks, those of blocks are copied as they lie
HEADKV_HOST_DEVICE constexpr size_t headkv_pitch(headkv_type type, int n_embd) {
    return headkv_row_size(type, n_embd) + (headkv_has_blocks(type) ? 0 : 16);
}

// a tile of rows of K or V; a copy of whole 16 byte words begins up to 15 bytes before the first row
HEADKV_HOST_DEVICE constexpr size_t headkv_tile_size(headkv_type type, int n_embd) {
    return headkv_rows_tile * headkv_pitch(type, n_embd) + (headkv_has_blocks(type) ? 16 : 0);
}

// tiles of K and V that a warp has in shared memory: the one it works on, and those on their way
HEADKV_HOST_DEVICE constexpr int headkv_n_stages(headkv_type type, int n_embd) {
    const size_t stage = 2 * headkv_tile_size(type, n_embd) * headkv_n_warps(n_embd);
    return stage * 4 <= 48 * 1024 ? 4 : stage * 3 <= 56 * 1024 ? 3 : 2;
}

HEADKV_HOST_DEVICE constexpr size_t headkv_q_pitch(int n_embd) {
    return n_embd * 2 + 16;
}

// queries, maxima and sums of the warps, tiles; the accumulators are summed up where the tiles were
HEADKV_HOST_DEVICE constexpr size_t headkv_smem_size(headkv_type type, int n_embd, int n_cols) {
    return n_cols * headkv_q_pitch(n_embd) + 2 * headkv_n_warps(n_embd) * n_cols * sizeof(float) +
           headkv_n_stages(type, n_embd) * headkv_n_warps(n_embd) * 2 * headkv_tile_size(type, n_embd);
}

HEADKV_HOST_DEVICE constexpr bool headkv_n_embd_supported(headkv_type type, int64_t n_embd) {
    return n_embd == 64 || n_embd == 96 || n_embd == 128 || n_embd == 256 ||
           // 80 is no multiple of a block, and beside the sums of 512 registers hold no scales
           ((n_embd == 80 || n_embd == 512) && !headkv_has_blocks(type));
}

// every step from one segment to the next is to the next block, the next head or both: block + head numbers them
HEADKV_HOST_DEVICE inline int headkv_n_partials(const headkv_attn_params & p) {
    return p.n_blocks + p.n_head_kv;
}

// floats of scratch
inline size_t headkv_scratch_size(const headkv_attn_params & p, int n_embd) {
    return (size_t) p.n_col_tiles * headkv_n_partials(p) * p.n_cols_tile * (n_embd + 2);
}

// cuts the work; p has the shapes, scratch may be NULL where only the size is asked for
inline void headkv_attn_plan(headkv_attn_params & p, headkv_type type, int n_embd, int n_sm, size_t smem_per_sm,
                             float * scratch) {
    const int n_cols = p.n_tokens * p.n_gqa;

    p.n_cols_tile = n_cols <= headkv_cols_narrow ? headkv_cols_narrow : headkv_cols_wide(n_embd);
    p.n_col_tiles = (n_cols + p.n_cols_tile - 1) / p.n_cols_tile;

    // one KiB of every block's shared memory is the system's
    const int fit = (int) ((smem_per_sm + 1024) / (headkv_smem_size(type, n_embd, p.n_cols_tile) + 1024));
    const int max = headkv_blocks_per_sm(n_embd, p.n_cols_tile);

    const int n_resident = n_sm * (fit < 1 ? 1 : fit > max ? max : fit);

    p.n_blocks = n_resident / p.n_col_tiles;
    if (p.n_blocks < 1) {
        p.n_blocks = 1;
    }

    p.partial_acc = scratch;
    p.partial_ms  = scratch + (size_t) p.n_col_tiles * headkv_n_partials(p) * p.n_cols_tile * n_embd;
}
