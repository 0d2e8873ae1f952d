// Tensor cores, matrix loads, shuffles and 16 bit floats: fragment layouts as in the PTX ISA's description of
// mma.m16n8k16, ldmatrix and movmatrix.

#include "headkv-emulation-warp.h"
#include "headkv-emulation.h"

#include "ggml.h"

#include <cmath>
#include <numeric>
#include <vector>

static float bf16_to_f32(uint16_t x) {
    const uint32_t bits = (uint32_t) x << 16;
    float res;
    memcpy(&res, &bits, sizeof(res));
    return res;
}

float headkv_f16_to_f32(uint16_t x) {
    static const std::vector<float> table = [] {
        std::vector<float> res(1 << 16);
        for (size_t i = 0; i < res.size(); ++i) {
            res[i] = ggml_fp16_to_fp32((ggml_fp16_t) i);
        }
        return res;
    }();
    return table[x];
}

uint32_t headkv_pack_f16(float lo, float hi) {
    return ggml_fp32_to_fp16(lo) | (uint32_t) ggml_fp32_to_fp16(hi) << 16;
}

uint32_t headkv_pack_bf16(float lo, float hi) {
    return ggml_fp32_to_bf16(lo).bits | (uint32_t) ggml_fp32_to_bf16(hi).bits << 16;
}

// f(x, y) of two f16 each; float holds sums and products of f16 well enough that the second rounding is the only one
template <typename F>
static uint32_t map_f16(uint32_t x, uint32_t y, F && f) {
    const auto one = [&](uint32_t a, uint32_t b) -> uint32_t {
        return ggml_fp32_to_fp16(f(headkv_f16_to_f32((uint16_t) a), headkv_f16_to_f32((uint16_t) b)));
    };
    return one(x, y) | one(x >> 16, y >> 16) << 16;
}

uint32_t headkv_sub_f16(uint32_t a, uint32_t b) {
    return map_f16(a, b, [](float x, float y) { return x - y; });
}

uint32_t headkv_mul_f16(uint32_t a, uint32_t b) {
    return map_f16(a, b, [](float x, float y) { return x * y; });
}

uint32_t headkv_and_xor(uint32_t x, uint32_t mask, uint32_t bits) {
    return (x & mask) ^ bits;
}

uint32_t headkv_byte_perm(uint32_t x, uint32_t y, uint32_t sel) {
    const uint64_t bytes = (uint64_t) y << 32 | x;
    uint32_t res         = 0;
    for (int i = 0; i < 4; ++i) {
        res |= (uint32_t) (bytes >> (8 * (sel >> (4 * i) & 7)) & 0xFF) << (8 * i);
    }
    return res;
}

//
// what a warp does together
//

struct mma_args {
    float * c;
    const uint32_t * a;
    const uint32_t * b;
};

static double cut_off(double x, double unit) {
    return std::trunc(x / unit) * unit;
}

// sum + row*col of 8 values. Tensor cores add them all at once, and cut them off instead of rounding: Fasi et al.,
// "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science 2021, who measured V100, T4 and A100. Here they
// are cut off at the last of the 24 bits of the largest; that later ones keep no fewer bits is an assumption.
static float add_products(float sum, const float * row, const float * col) {
    float terms[9] = { sum };
    float largest  = std::fabs(sum);
    bool finite    = std::isfinite(sum);
    for (int k = 0; k < 8; ++k) {
        terms[k + 1] = row[k] * col[k]; // exact
        largest      = std::fmax(largest, std::fabs(terms[k + 1]));
        finite       = finite && std::isfinite(terms[k + 1]);
    }
    if (!finite || largest == 0.0f) {
        return std::accumulate(terms, terms + 9, 0.0f);
    }

    const double unit = std::ldexp(1.0, std::ilogb(largest) - 23);
    double res        = 0.0;
    for (const float x : terms) {
        res += cut_off(x, unit);
    }
    return res == 0.0 ? 0.0f : (float) cut_off(res, std::ldexp(1.0, std::ilogb(res) - 23));
}

template <float (*to_f32)(uint16_t)>
static void mma(void ** args) {
    float a[16][16];
    float b[8][16]; // by column
    for (int l = 0; l < 32; ++l) {
        const mma_args & arg = *(const mma_args *) args[l];
        const int g          = l / 4;
        const int t          = l % 4;
        for (int half = 0; half < 2; ++half) {
            for (int r = 0; r < 4; ++r) {
                a[g + r % 2 * 8][2 * t + half + r / 2 * 8] = to_f32((uint16_t) (arg.a[r] >> (16 * half)));
            }
            for (int r = 0; r < 2; ++r) {
                b[g][2 * t + half + r * 8] = to_f32((uint16_t) (arg.b[r] >> (16 * half)));
            }
        }
    }
    for (int l = 0; l < 32; ++l) {
        const mma_args & arg = *(const mma_args *) args[l];
        for (int r = 0; r < 4; ++r) {
            const float * row = a[l / 4 + r / 2 * 8];
            const float * col = b[l % 4 * 2 + r % 2];
            arg.c[r]          = add_products(add_products(arg.c[r], row, col), row + 8, col + 8);
        }
    }
}

void headkv_mma_f16(float * c, const uint32_t * a, const uint32_t * b) {
    mma_args arg = { c, a, b };
    headkv_emu_together(mma<headkv_f16_to_f32>, &arg);
}

void headkv_mma_bf16(float * c, const uint32_t * a, const uint32_t * b) {
    mma_args arg = { c, a, b };
    headkv_emu_together(mma<bf16_to_f32>, &arg);
}

struct ldmatrix_args {
    uint32_t * x;
    const void * row;
};

template <int n, bool trans>
static void ldmatrix(void ** args) {
    for (int i = 0; i < n; ++i) {
        uint16_t m[8][8];
        for (int j = 0; j < 8; ++j) {
            memcpy(m[j], headkv_emu_shared(((const ldmatrix_args *) args[8 * i + j])->row, 16, 16), 16);
        }
        for (int l = 0; l < 32; ++l) {
            const int r = l / 4;
            const int c = l % 4 * 2;

            ((const ldmatrix_args *) args[l])->x[i] =
                trans ? m[c][r] | (uint32_t) m[c + 1][r] << 16 : m[r][c] | (uint32_t) m[r][c + 1] << 16;
        }
    }
}

void headkv_ldmatrix_x2(uint32_t * x, const void * row) {
    ldmatrix_args arg = { x, row };
    headkv_emu_together(ldmatrix<2, false>, &arg);
}

void headkv_ldmatrix_x4(uint32_t * x, const void * row) {
    ldmatrix_args arg = { x, row };
    headkv_emu_together(ldmatrix<4, false>, &arg);
}

void headkv_ldmatrix_x4_trans(uint32_t * x, const void * row) {
    ldmatrix_args arg = { x, row };
    headkv_emu_together(ldmatrix<4, true>, &arg);
}

static void movmatrix(void ** args) {
    uint16_t m[8][8];
    for (int l = 0; l < 32; ++l) {
        memcpy(&m[l / 4][l % 4 * 2], args[l], 4);
    }
    for (int l = 0; l < 32; ++l) {
        const uint16_t x[2] = { m[l % 4 * 2][l / 4], m[l % 4 * 2 + 1][l / 4] };
        memcpy(args[l], x, 4);
    }
}

uint32_t headkv_movmatrix_trans(uint32_t x) {
    headkv_emu_together(movmatrix, &x);
    return x;
}

struct shfl_args {
    float x;
    int mask;
};

static void shfl_xor(void ** args) {
    float x[32];
    for (int l = 0; l < 32; ++l) {
        x[l] = ((const shfl_args *) args[l])->x;
    }
    for (int l = 0; l < 32; ++l) {
        shfl_args & arg = *(shfl_args *) args[l];
        arg.x           = x[l ^ arg.mask];
    }
}

float headkv_shfl_xor(float x, int mask) {
    shfl_args arg = { x, mask };
    headkv_emu_together(shfl_xor, &arg);
    return arg.x;
}

static void count(void ** args) {
    int n = 0;
    for (int l = 0; l < 32; ++l) {
        n += *(const int *) args[l];
    }
    for (int l = 0; l < 32; ++l) {
        *(int *) args[l] = n;
    }
}

int headkv_count(bool x) {
    int n = x;
    headkv_emu_together(count, &n);
    return n;
}
