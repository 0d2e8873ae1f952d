#pragma once

// What the CUDA kernels in native/ggml/cuda/ need, on the CPU: the same source runs with every thread as a fiber.
// Blocks run one after the other. What a warp does together waits for all of its 32 lanes. Memory that nothing was
// written to holds NaN, and asynchronous copies arrive as late as the program allows for, or as early: see
// headkv_emu_options.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __host__
#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
    unsigned x;
    unsigned y;
    unsigned z;

    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) float4 {
    float x;
    float y;
    float z;
    float w;
};

extern dim3 threadIdx;
extern dim3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

template <typename T>
static inline T min(T a, T b) {
    return b < a ? b : a;
}

template <typename T>
static inline T max(T a, T b) {
    return a < b ? b : a;
}

//
// the runtime
//

typedef int cudaError_t;
typedef void * cudaStream_t;

constexpr cudaError_t cudaSuccess           = 0;
constexpr cudaError_t cudaErrorInvalidValue = 1;

enum { cudaFuncAttributeMaxDynamicSharedMemorySize };

template <typename K>
static inline cudaError_t cudaFuncSetAttribute(K, int, int) {
    return cudaSuccess;
}

struct cudaFuncAttributes {};

template <typename K>
static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, K) {
    return cudaSuccess;
}

static inline cudaError_t cudaGetLastError() {
    return cudaSuccess;
}

struct headkv_emu_options {
    const char * name; // of what runs, for messages
    bool copy_early;   // asynchronous copies are made at once, not when they are waited for
    bool reverse;      // the last thread and the last block run first
    void * ranges[8];  // what asynchronous copies may read: begin, end, begin, end, ...
};

extern headkv_emu_options headkv_emu;

// runs body as every thread of every block
void headkv_emu_launch(dim3 grid, int n_threads, size_t smem, void (*body)(void *), void * arg);

template <typename K>
struct headkv_emu_launcher {
    K kernel;
    dim3 grid;
    int n_threads;
    size_t smem;

    template <typename P>
    void operator()(const P & params) const {
        struct call {
            K kernel;
            P params;
        } c = { kernel, params };
        headkv_emu_launch(
            grid, n_threads, smem,
            [](void * arg) {
                const call & c = *(const call *) arg;
                c.kernel(c.params);
            },
            &c);
    }
};

template <typename K>
static headkv_emu_launcher<K> headkv_emu_make_launcher(K kernel, dim3 grid, int n_threads, size_t smem) {
    return { kernel, grid, n_threads, smem };
}

#define HEADKV_LAUNCH(kernel, grid, block, smem, stream) headkv_emu_make_launcher(kernel, grid, block, smem)

//
// headkv-ptx.cuh
//

void headkv_emu_cp_async(void * dst, const void * src, int n, int size);
void headkv_emu_cp_async_wait(int n);
void headkv_cp_async_commit();

template <int size>
static inline void headkv_cp_async(void * dst, const void * src, int n) {
    headkv_emu_cp_async(dst, src, n, size);
}

template <int n>
static inline void headkv_cp_async_wait() {
    headkv_emu_cp_async_wait(n);
}

void headkv_ldmatrix_x2(uint32_t * x, const void * row);
void headkv_ldmatrix_x4(uint32_t * x, const void * row);
void headkv_ldmatrix_x4_trans(uint32_t * x, const void * row);
uint32_t headkv_movmatrix_trans(uint32_t x);

void headkv_mma_f16(float * c, const uint32_t * a, const uint32_t * b);
void headkv_mma_bf16(float * c, const uint32_t * a, const uint32_t * b);

uint32_t headkv_pack_f16(float lo, float hi);
uint32_t headkv_pack_bf16(float lo, float hi);
float headkv_f16_to_f32(uint16_t x);
uint32_t headkv_sub_f16(uint32_t a, uint32_t b);
uint32_t headkv_mul_f16(uint32_t a, uint32_t b);
uint32_t headkv_and_xor(uint32_t x, uint32_t mask, uint32_t bits);
uint32_t headkv_byte_perm(uint32_t x, uint32_t y, uint32_t sel);

float headkv_shfl_xor(float x, int mask);
int headkv_count(bool x);
void headkv_sync_warp();
void headkv_sync_block();

static inline bool headkv_any(bool x) {
    return headkv_count(x) > 0;
}
