#pragma once

// Instructions that are no plain expression of vectors. .approx and .ftz are not imitated: results are more exact.

#include "ptx-warp.h"

// x, y, z: the operands in a lane
#define PTX_MAP_1(name, V, expression)                                                                                 \
    PTX_CALL V name(V a) {                                                                                             \
        V res;                                                                                                         \
        PTX_EACH {                                                                                                     \
            const auto x = a[l];                                                                                       \
            res[l]       = expression;                                                                                 \
        }                                                                                                              \
        return res;                                                                                                    \
    }

#define PTX_MAP_2(name, V, expression)                                                                                 \
    PTX_CALL V name(V a, V b) {                                                                                        \
        V res;                                                                                                         \
        PTX_EACH {                                                                                                     \
            const auto x = a[l];                                                                                       \
            const auto y = b[l];                                                                                       \
            res[l]       = expression;                                                                                 \
        }                                                                                                              \
        return res;                                                                                                    \
    }

#define PTX_FLOAT_1(name, expression)                                                                                  \
    PTX_CALL u32v name(u32v a) {                                                                                       \
        u32v res;                                                                                                      \
        PTX_EACH {                                                                                                     \
            const float x = bits_to_f32(a[l]);                                                                         \
            res[l]        = f32_to_bits(expression);                                                                   \
        }                                                                                                              \
        return res;                                                                                                    \
    }

#define PTX_FLOAT_2(name, expression)                                                                                  \
    PTX_CALL u32v name(u32v a, u32v b) {                                                                               \
        u32v res;                                                                                                      \
        PTX_EACH {                                                                                                     \
            const float x = bits_to_f32(a[l]);                                                                         \
            const float y = bits_to_f32(b[l]);                                                                         \
            res[l]        = f32_to_bits(expression);                                                                   \
        }                                                                                                              \
        return res;                                                                                                    \
    }

PTX_FLOAT_1(f32_ex2, exp2f(x))
PTX_FLOAT_1(f32_lg2, log2f(x))
PTX_FLOAT_1(f32_sin, sinf(x))
PTX_FLOAT_1(f32_cos, cosf(x))
PTX_FLOAT_1(f32_tanh, tanhf(x))
PTX_FLOAT_1(f32_sqrt, sqrtf(x))
PTX_FLOAT_1(f32_rsqrt, 1.0f / sqrtf(x))
PTX_FLOAT_1(f32_rcp, 1.0f / x)
PTX_FLOAT_1(f32_rmi, floorf(x))
PTX_FLOAT_1(f32_rpi, ceilf(x))
PTX_FLOAT_1(f32_rzi, truncf(x))
PTX_FLOAT_1(f32_rni, rintf(x))
PTX_FLOAT_2(f32_copysign, copysignf(y, x))
PTX_FLOAT_2(f32_min, fminf(x, y))
PTX_FLOAT_2(f32_max, fmaxf(x, y))

PTX_INLINE u32v f32_abs(u32v a) {
    return a & 0x7FFFFFFFu;
}

PTX_INLINE u32v f32_neg(u32v a) {
    return a ^ 0x80000000u;
}

PTX_INLINE u32v f32_add(u32v a, u32v b) {
    return as_bits(as_float(a) + as_float(b));
}

PTX_INLINE u32v f32_sub(u32v a, u32v b) {
    return as_bits(as_float(a) - as_float(b));
}

PTX_INLINE u32v f32_mul(u32v a, u32v b) {
    return as_bits(as_float(a) * as_float(b));
}

PTX_INLINE u32v f32_div(u32v a, u32v b) {
    return as_bits(as_float(a) / as_float(b));
}

PTX_CALL u32v f32_fma(u32v a, u32v b, u32v c) {
    u32v res;
    PTX_EACH {
        res[l] = f32_to_bits(fmaf(bits_to_f32(a[l]), bits_to_f32(b[l]), bits_to_f32(c[l])));
    }
    return res;
}

// two f16 in a register
#define PTX_F16X2(name, expression)                                                                                    \
    PTX_CALL u32v name(u32v a, u32v b) {                                                                               \
        u32v res;                                                                                                      \
        PTX_EACH {                                                                                                     \
            uint32_t bits = 0;                                                                                         \
            for (int i = 0; i < 32; i += 16) {                                                                         \
                const float x  = f16_to_f32(a[l] >> i);                                                                \
                const float y  = f16_to_f32(b[l] >> i);                                                                \
                bits          |= (uint32_t) f32_to_f16(expression) << i;                                               \
            }                                                                                                          \
            res[l] = bits;                                                                                             \
        }                                                                                                              \
        return res;                                                                                                    \
    }

PTX_F16X2(f16x2_add, x + y)
PTX_F16X2(f16x2_sub, x - y)
PTX_F16X2(f16x2_mul, x * y)
PTX_F16X2(f16x2_min, fminf(x, y))
PTX_F16X2(f16x2_max, fmaxf(x, y))

PTX_CALL u32v f16x2_fma(u32v a, u32v b, u32v c) {
    u32v res;
    PTX_EACH {
        uint32_t bits = 0;
        for (int i = 0; i < 32; i += 16) {
            const float x  = fmaf(f16_to_f32(a[l] >> i), f16_to_f32(b[l] >> i), f16_to_f32(c[l] >> i));
            bits          |= (uint32_t) f32_to_f16(x) << i;
        }
        res[l] = bits;
    }
    return res;
}

// integers; nobody looks at what is divided by zero
PTX_MAP_2(div_s32, s32v, y == 0 ? -1 : y == -1 ? (int32_t) (0u - (uint32_t) x) : x / y)
PTX_MAP_2(rem_s32, s32v, y == 0 || y == -1 ? 0 : x % y)
PTX_MAP_2(div_u32, u32v, y == 0 ? ~0u : x / y)
PTX_MAP_2(rem_u32, u32v, y == 0 ? 0 : x % y)
PTX_MAP_2(div_s64, s64v, y == 0 ? -1 : y == -1 ? (int64_t) (0ull - (uint64_t) x) : x / y)
PTX_MAP_2(rem_s64, s64v, y == 0 || y == -1 ? 0 : x % y)
PTX_MAP_2(div_u64, u64v, y == 0 ? ~0ull : x / y)
PTX_MAP_2(rem_u64, u64v, y == 0 ? 0 : x % y)
PTX_MAP_2(mul_hi_u64, u64v, (uint64_t) (((unsigned __int128) x * y) >> 64))
PTX_MAP_1(popc_b32, u32v, (uint32_t) __builtin_popcount(x))
PTX_MAP_1(clz_b32, u32v, x ? (uint32_t) __builtin_clz(x) : 32u)

// n bits of a, put into b at pos
PTX_CALL u32v bfi_b32(u32v a, u32v b, u32v pos, u32v n) {
    u32v res;
    PTX_EACH {
        const uint64_t mask = pos[l] > 31 ? 0 : ((n[l] > 31 ? ~0ull : (1ull << n[l]) - 1) << pos[l]);
        res[l]              = (uint32_t) ((b[l] & ~mask) | (((uint64_t) a[l] << (pos[l] & 31)) & mask));
    }
    return res;
}

PTX_CALL u64v bfi_b64(u64v a, u64v b, u32v pos, u32v n) {
    u64v res;
    PTX_EACH {
        const uint64_t mask = pos[l] > 63 ? 0 : ((n[l] > 63 ? ~0ull : (1ull << n[l]) - 1) << pos[l]);
        res[l]              = (b[l] & ~mask) | ((a[l] << (pos[l] & 63)) & mask);
    }
    return res;
}

PTX_CALL u32v bfe_u32(u32v a, u32v pos, u32v n) {
    u32v res;
    PTX_EACH {
        res[l] = pos[l] > 31 ? 0 : (a[l] >> pos[l]) & (n[l] > 31 ? ~0u : (1u << n[l]) - 1);
    }
    return res;
}

PTX_CALL u32v prmt_b32(u32v a, u32v b, u32v selector) {
    u32v res;
    PTX_EACH {
        const uint64_t bytes = a[l] | (uint64_t) b[l] << 32;
        uint32_t bits        = 0;
        for (int i = 0; i < 4; ++i) {
            const uint32_t s = selector[l] >> (4 * i) & 15;
            uint32_t byte    = bytes >> (8 * (s & 7)) & 255;
            if (s & 8) {
                byte = byte & 128 ? 255 : 0; // its sign
            }
            bits |= byte << (8 * i);
        }
        res[l] = bits;
    }
    return res;
}

// bit 4*a + 2*b + c of the table, for every bit of a, b and c
PTX_CALL u32v lop3_b32(u32v a, u32v b, u32v c, u32v table) {
    u32v res = all32(0);
    for (int i = 0; i < 8; ++i) {
        const u32v x  = i & 4 ? a : ~a;
        const u32v y  = i & 2 ? b : ~b;
        const u32v z  = i & 1 ? c : ~c;
        res          |= x & y & z & -(table >> i & 1);
    }
    return res;
}

PTX_CALL u32v dp4a_s32(u32v a, u32v b, u32v c) {
    u32v res;
    PTX_EACH {
        int32_t sum = (int32_t) c[l];
        for (int i = 0; i < 32; i += 8) {
            sum += (int8_t) (a[l] >> i) * (int8_t) (b[l] >> i);
        }
        res[l] = (uint32_t) sum;
    }
    return res;
}

// conversions
PTX_CALL u32v f32_from_f16(u16v a) {
    u32v res;
    PTX_EACH {
        res[l] = f32_to_bits(f16_to_f32(a[l]));
    }
    return res;
}

PTX_CALL u16v f16_from_f32(u32v a) {
    u16v res;
    PTX_EACH {
        res[l] = f32_to_f16(bits_to_f32(a[l]));
    }
    return res;
}

PTX_INLINE u32v f32_from_bf16(u16v a) {
    return convert(a, u32v) << 16;
}

PTX_CALL u16v bf16_from_f32(u32v a) {
    u16v res;
    PTX_EACH {
        res[l] = f32_to_bf16(bits_to_f32(a[l]));
    }
    return res;
}

PTX_CALL u32v f16x2_from_f32(u32v high, u32v low) {
    return convert(f16_from_f32(high), u32v) << 16 | convert(f16_from_f32(low), u32v);
}

PTX_CALL u32v bf16x2_from_f32(u32v high, u32v low) {
    return convert(bf16_from_f32(high), u32v) << 16 | convert(bf16_from_f32(low), u32v);
}

// of a whole number; what does not fit becomes the nearest that does, NaN becomes 0
PTX_CALL u32v s32_from_f32(u32v a) {
    u32v res;
    PTX_EACH {
        const float x = bits_to_f32(a[l]);
        res[l]        = x != x          ? 0
                        : x <= -0x1p31f ? (uint32_t) INT32_MIN
                        : x >= 0x1p31f  ? (uint32_t) INT32_MAX
                                        : (uint32_t) (int32_t) x;
    }
    return res;
}

PTX_CALL u32v u32_from_f32(u32v a) {
    u32v res;
    PTX_EACH {
        const float x = bits_to_f32(a[l]);
        res[l]        = !(x > 0.0f) ? 0 : x >= 0x1p32f ? UINT32_MAX : (uint32_t) x;
    }
    return res;
}

// shuffles; c has the mask of the segments in bits 8 to 12
PTX_CALL u32v shfl_bfly(u32v a, u32v b, u32v) {
    u32v res;
    PTX_EACH {
        res[l] = a[(l ^ b[l]) & 31];
    }
    return res;
}

PTX_CALL u32v shfl_idx(u32v a, u32v b, u32v c) {
    u32v res;
    PTX_EACH {
        const uint32_t segment = c[l] >> 8 & 31;
        res[l]                 = a[(b[l] & ~segment & 31) | (l & segment)];
    }
    return res;
}

PTX_CALL u32v shfl_down(u32v a, u32v b, u32v c) {
    u32v res;
    PTX_EACH {
        const uint32_t segment = c[l] >> 8 & 31;
        const uint32_t from    = l + (b[l] & 31);
        res[l]                 = a[from <= ((l & segment) | (31 & ~segment)) ? from : l];
    }
    return res;
}

PTX_CALL u32v shfl_up(u32v a, u32v b, u32v c) {
    u32v res;
    PTX_EACH {
        const int from = l - (int) (b[l] & 31);
        res[l]         = a[from >= (int) (l & (c[l] >> 8 & 31)) ? from : l];
    }
    return res;
}
