#pragma once

// All that the kernels need from the hardware beyond C++: tensor cores, asynchronous copies, warp votes, 16 bit
// floats. native/tests/cuda-emulation/ has the same functions for the CPU.
// Fragments are 32 bit registers with two 16 bit values each, the lower one first.

#ifdef HEADKV_CUDA_EMULATION
#include "headkv-emulation.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#define HEADKV_LAUNCH(kernel, grid, block, smem, stream) kernel<<<grid, block, smem, stream>>>

static __device__ __forceinline__ uint32_t headkv_smem_address(const void * p) {
    return (uint32_t) __cvta_generic_to_shared(p);
}

// copies n of size bytes, which are 16, 8 or 4, and fills up with zeros; both pointers are aligned to size
template <int size>
static __device__ __forceinline__ void headkv_cp_async(void * dst, const void * src, int n) {
    if (size == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(headkv_smem_address(dst)), "l"(src), "r"(n)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(headkv_smem_address(dst)), "l"(src),
                     "n"(size), "r"(n)
                     : "memory");
    }
}

static __device__ __forceinline__ void headkv_cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// all but the n groups committed last have arrived; seen by this thread alone until the warp or block synchronizes
template <int n>
static __device__ __forceinline__ void headkv_cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// 8x8 matrices of 16 bit values: lane 8*i + j has the address of row j of matrix i; lane l gets the values 2*(l%4) and
// 2*(l%4) + 1 of row l/4 of each
static __device__ __forceinline__ void headkv_ldmatrix_x2(uint32_t * x, const void * row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(x[0]), "=r"(x[1])
                 : "r"(headkv_smem_address(row))
                 : "memory");
}

static __device__ __forceinline__ void headkv_ldmatrix_x4(uint32_t * x, const void * row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(headkv_smem_address(row))
                 : "memory");
}

// the same of the transposed matrices
static __device__ __forceinline__ void headkv_ldmatrix_x4_trans(uint32_t * x, const void * row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(headkv_smem_address(row))
                 : "memory");
}

// transposes an 8x8 matrix that is spread over the lanes
static __device__ __forceinline__ uint32_t headkv_movmatrix_trans(uint32_t x) {
    uint32_t res;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(res) : "r"(x));
    return res;
}

// c[16][8] += a[16][16]*b[16][8]
static __device__ __forceinline__ void headkv_mma_f16(float * c, const uint32_t * a, const uint32_t * b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ void headkv_mma_bf16(float * c, const uint32_t * a, const uint32_t * b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ uint32_t headkv_pack_f16(float lo, float hi) {
    const __half2 x = __floats2half2_rn(lo, hi);
    return *(const uint32_t *) &x;
}

static __device__ __forceinline__ uint32_t headkv_pack_bf16(float lo, float hi) {
    const __nv_bfloat162 x = __floats2bfloat162_rn(lo, hi);
    return *(const uint32_t *) &x;
}

static __device__ __forceinline__ float headkv_f16_to_f32(uint16_t x) {
    return __half2float(*(const __half *) &x);
}

// of two f16 each
static __device__ __forceinline__ uint32_t headkv_sub_f16(uint32_t a, uint32_t b) {
    const __half2 x = __hsub2(*(const __half2 *) &a, *(const __half2 *) &b);
    return *(const uint32_t *) &x;
}

static __device__ __forceinline__ uint32_t headkv_mul_f16(uint32_t a, uint32_t b) {
    const __half2 x = __hmul2(*(const __half2 *) &a, *(const __half2 *) &b);
    return *(const uint32_t *) &x;
}

// (x & mask) ^ bits, in one instruction
static __device__ __forceinline__ uint32_t headkv_and_xor(uint32_t x, uint32_t mask, uint32_t bits) {
    uint32_t res;
    asm("lop3.b32 %0, %1, %2, %3, 0x6A;" : "=r"(res) : "r"(x), "r"(mask), "r"(bits)); // (0xF0 & 0xCC) ^ 0xAA
    return res;
}

// byte i of the result is the byte of y:x that nibble i of sel names
static __device__ __forceinline__ uint32_t headkv_byte_perm(uint32_t x, uint32_t y, uint32_t sel) {
    return __byte_perm(x, y, sel);
}

static __device__ __forceinline__ float headkv_shfl_xor(float x, int mask) {
    return __shfl_xor_sync(0xFFFFFFFF, x, mask);
}

static __device__ __forceinline__ bool headkv_any(bool x) {
    return __any_sync(0xFFFFFFFF, x);
}

// how many lanes say yes
static __device__ __forceinline__ int headkv_count(bool x) {
    return __popc(__ballot_sync(0xFFFFFFFF, x));
}

static __device__ __forceinline__ void headkv_sync_warp() {
    __syncwarp();
}

static __device__ __forceinline__ void headkv_sync_block() {
    __syncthreads();
}

#endif
