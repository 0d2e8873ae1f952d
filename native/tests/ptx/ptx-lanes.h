#pragma once

// A warp's 32 lanes as vectors. Registers hold bits, as in PTX: what they mean is the instruction's business.

#include <math.h>
#include <stdint.h>
#include <string.h>

#define PTX_VECTOR(type, name) typedef type name __attribute__((vector_size(32 * sizeof(type))))
PTX_VECTOR(uint16_t, u16v);
PTX_VECTOR(int16_t, s16v);
PTX_VECTOR(uint32_t, u32v);
PTX_VECTOR(int32_t, s32v);
PTX_VECTOR(uint64_t, u64v);
PTX_VECTOR(int64_t, s64v);
PTX_VECTOR(float, f32v);
PTX_VECTOR(double, f64v);

#define PTX_INLINE static inline __attribute__((always_inline))
#define PTX_CALL   static __attribute__((noinline, unused)) // what is long: kernels have thousands of instructions
#define PTX_EACH   for (int l = 0; l < 32; ++l)

#define convert(x, type) __builtin_convertvector(x, type)

// the same value in every lane
PTX_INLINE u16v all16(uint16_t x) {
    return u16v{} + x;
}

PTX_INLINE u32v all32(uint32_t x) {
    return u32v{} + x;
}

PTX_INLINE u64v all64(uint64_t x) {
    return u64v{} + x;
}

PTX_INLINE u32v lane_numbers() {
    u32v res = {};
    PTX_EACH {
        res[l] = l;
    }
    return res;
}

// predicates and masks have all bits of a lane set, or none; bit l of an integer is lane l
PTX_INLINE uint32_t to_bits(u32v mask) {
    const u32v in_place = (mask & 1u) << lane_numbers();
    uint32_t res        = 0;
    PTX_EACH {
        res |= in_place[l];
    }
    return res;
}

PTX_INLINE u32v from_bits(uint32_t bits) {
    return -((all32(bits) >> lane_numbers()) & 1u);
}

PTX_INLINE u16v select16(u32v mask, u16v a, u16v b) {
    const u16v m = convert(mask, u16v);
    return (a & m) | (b & ~m);
}

PTX_INLINE u32v select32(u32v mask, u32v a, u32v b) {
    return (a & mask) | (b & ~mask);
}

PTX_INLINE u64v select64(u32v mask, u64v a, u64v b) {
    const u64v m = (u64v) convert((s32v) mask, s64v);
    return (a & m) | (b & ~m);
}

PTX_INLINE f32v as_float(u32v x) {
    return (f32v) x;
}

PTX_INLINE u32v as_bits(f32v x) {
    return (u32v) x;
}

PTX_INLINE float f16_to_f32(uint16_t x) {
    _Float16 h;
    memcpy(&h, &x, sizeof(h));
    return (float) h;
}

PTX_INLINE uint16_t f32_to_f16(float x) {
    const _Float16 h = (_Float16) x;
    uint16_t res;
    memcpy(&res, &h, sizeof(res));
    return res;
}

PTX_INLINE float bits_to_f32(uint32_t x) {
    float res;
    memcpy(&res, &x, sizeof(res));
    return res;
}

PTX_INLINE uint32_t f32_to_bits(float x) {
    uint32_t res;
    memcpy(&res, &x, sizeof(res));
    return res;
}

PTX_INLINE float bf16_to_f32(uint16_t x) {
    return bits_to_f32((uint32_t) x << 16);
}

PTX_INLINE uint16_t f32_to_bf16(float x) {
    const uint32_t bits = f32_to_bits(x);
    return x != x ? 0x7FFF : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}
