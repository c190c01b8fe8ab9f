/* SPDX-License-Identifier: Apache-2.0
 * Kernels for Arm, built three times from this text: for every AArch64 (neon), with the dot product (GEMMARY_DOTPROD),
 * and with the matrix product too (GEMMARY_I8MM). All three compute the same bits. Codes become signed bytes around 0.
 * A register holds four codes of each of four rows; in a panel for the matrix product, eight of each of two rows. */
#include <arm_neon.h>

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "rows.h"

typedef int32x4_t Ints;
typedef float32x4_t Floats;

enum { TILE = 4, STEP = 16 }; /* tokens of a tile; columns whose activations fill a register */

#if defined(GEMMARY_I8MM)
#define KERNELS gemmary_i8mm
#define NAME "i8mm"
#define NEEDS "I8MM"
enum { FIRST_BITS = 1 << 20, SECOND_BITS = 1 << 13 }; /* of Linux's arch/arm64/include/uapi/asm/hwcap.h */
#elif defined(GEMMARY_DOTPROD)
#define KERNELS gemmary_dotprod
#define NAME "dotprod"
#define NEEDS "DotProd"
enum { FIRST_BITS = 1 << 20, SECOND_BITS = 0 };
#else
#define KERNELS gemmary_neon
#define NAME "neon"
#endif

static bool runs_here(void) {
#if !defined(NEEDS)
    return true;
#elif defined(__linux__)
    return !(FIRST_BITS & ~getauxval(AT_HWCAP)) && !(SECOND_BITS & ~getauxval(AT_HWCAP2));
#elif defined(__APPLE__)
    int value = 0;
    size_t size = sizeof value;
    return !sysctlbyname("hw.optional.arm.FEAT_" NEEDS, &value, &size, NULL, 0) && value;
#else
    return false;
#endif
}

/* sums[r] += four codes of row r times activations 4 lane .. 4 lane + 3 */
#if defined(NEEDS)
#define ADD_QUAD(sums, codes, a, lane) vdotq_laneq_s32(sums, codes, a, lane)
#else
#define ADD_QUAD(sums, codes, a, lane) \
    add_quad(sums, codes, vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(a), lane)))

INLINE Ints add_quad(Ints sums, int8x16_t codes, int8x16_t a) { /* 2 * 128 * 127 fits in 16 bits */
    int16x8_t left = vmull_s8(vget_low_s8(codes), vget_low_s8(a)), right = vmull_high_s8(codes, a);
    return vpadalq_s16(sums, vpaddq_s16(left, right));
}
#endif

INLINE Ints add_quads(Ints sums, const int8x16_t codes[4], int8x16_t a) {
    sums = ADD_QUAD(ADD_QUAD(sums, codes[0], a, 0), codes[1], a, 1);
    return ADD_QUAD(ADD_QUAD(sums, codes[2], a, 2), codes[3], a, 3);
}

/* The codes of four rows at quads 2i and 2i + 1. */
INLINE void codes_at(const uint8_t *base, const uint8_t *extra, int bits, int i, int8x16_t out[2]) {
    uint8x16_t v = vld1q_u8(base + i * VECTOR), codes[2] = {vandq_u8(v, vdupq_n_u8(15)), vshrq_n_u8(v, 4)};
    UNROLL for (int j = 0; j < 2; j++) {
        int at = (2 * i + j) * bits;
        if (bits) {
            uint8x16_t rest = vshlq_u8(vld1q_u8(extra + at / 8 * VECTOR), vdupq_n_s8((int8_t)(-(at % 8))));
            rest = vandq_u8(rest, vdupq_n_u8((uint8_t)((1 << bits) - 1)));
            codes[j] = vorrq_u8(vshlq_u8(codes[j], vdupq_n_s8((int8_t)bits)), rest);
        }
        out[j] = vreinterpretq_s8_u8(vsubq_u8(codes[j], vdupq_n_u8(8 << bits)));
    }
}

/* Scales and minima of 16 rows; scales[1] are of the second half of the columns, with SCALE_HALVES only. */
INLINE void scales_at(const uint8_t *at, const uint8_t *super, int scaling, int bits, float scales[2][BLOCK],
                      float minima[BLOCK]) {
    const bool is_plain = scaling == SCALE_F16 || scaling == SCALE_F16_MIN;
    const __fp16 *d = (const __fp16 *)(is_plain ? at : super), *e = d + BLOCK;
    const float center = (float)(8 << bits);
    for (int half = 0; half < (scaling == SCALE_HALVES ? 2 : 1); half++) {
        const uint8_t *s = at + half * BLOCK;
        REDUCE(omp simd)
        for (int r = 0; r < BLOCK; r++)
            scales[half][r] = scaling == SCALE_SUPER ? d[r] * (float)s[r] : is_plain ? d[r] : d[r] * (float)(int8_t)s[r];
    }
    if (scaling != SCALE_F16_MIN && scaling != SCALE_SUPER) return;
    REDUCE(omp simd)
    for (int r = 0; r < BLOCK; r++)
        minima[r] = center * scales[0][r] + (is_plain ? e[r] : -e[r] * (float)at[BLOCK + r]);
}

/* y[r] += scale[r] * a_scale * sums[r], for four rows */
INLINE Floats added(Floats y, Ints sums, const float *scale, float a_scale) {
    return vfmaq_f32(y, vmulq_n_f32(vld1q_f32(scale), a_scale), vcvtq_f32_s32(sums));
}

INLINE void matvec_of(const Matrix *w, size_t block, const Activations *x, size_t row, float *y, int bits, int scaling) {
    const int8_t *a = x->codes + row * x->columns;
    const float *a_scales = x->scales + row * x->groups, *a_sums = x->sums + row * x->groups;
    const uint8_t *super = matrix_super(w, block, 0), *extra = bits ? matrix_extra(w, block, 0) : super, *at = super;
    const size_t scale_bytes = scaling == SCALE_F16_MIN ? 64 : 32;
    const bool halves = scaling == SCALE_HALVES;
    Floats total[4] = {0};
    float scales[2][BLOCK], minima[BLOCK];
    for (size_t g = 0; g < w->groups; g++, at += scale_bytes + 4 * VECTOR, extra += bits * VECTOR, a += GROUP) {
        if (g % 8 == 0) {
            super = at;
            at += w->packing.super_bytes;
        }
        scales_at(at, super, scaling, bits, scales, minima);
        UNROLL for (int four = 0; four < 4; four++) {
            Ints sums = vdupq_n_s32(0);
            UNROLL for (int part = 0; part < 2; part++) {
                int8x16_t codes[4];
                UNROLL for (int i = 0; i < 2; i++)
                    codes_at(at + scale_bytes + 16 * four, extra + 16 * four, bits, 2 * part + i, codes + 2 * i);
                sums = add_quads(sums, codes, vld1q_s8(a + STEP * part));
                if (!halves && part == 0) continue;
                total[four] = added(total[four], sums, scales[halves * part] + 4 * four, a_scales[g]);
                sums = vdupq_n_s32(0);
            }
            if (scaling == SCALE_F16_MIN || scaling == SCALE_SUPER)
                total[four] = vfmaq_n_f32(total[four], vld1q_f32(minima + 4 * four), a_sums[g]);
        }
    }
    UNROLL for (int four = 0; four < 4; four++) vst1q_f32(y + 4 * four, total[four]);
}

INLINE void unpack_of(const Matrix *w, size_t block, size_t group, size_t count, Panel *panel, int bits, int scaling) {
    for (size_t g = 0; g < count; g++) {
        const uint8_t *at = matrix_group(w, block, group + g), *base = at + w->packing.scale_bytes;
        const uint8_t *extra = bits ? matrix_extra(w, block, group + g) : base;
        UNROLL for (int i = 0; i < 4; i++)
            UNROLL for (int four = 0; four < 4; four++) {
                int8x16_t codes[2];
                int8_t *to = (int8_t *)panel->codes[0][g] + 2 * i * VECTOR;
                codes_at(base + 16 * four, extra + 16 * four, bits, i, codes);
#if defined(GEMMARY_I8MM)
                Ints left = vreinterpretq_s32_s8(codes[0]), right = vreinterpretq_s32_s8(codes[1]);
                vst1q_s8(to + 32 * four, vreinterpretq_s8_s32(vzip1q_s32(left, right)));
                vst1q_s8(to + 32 * four + 16, vreinterpretq_s8_s32(vzip2q_s32(left, right)));
#else
                vst1q_s8(to + 16 * four, codes[0]);
                vst1q_s8(to + VECTOR + 16 * four, codes[1]);
#endif
            }
        const uint8_t *super = matrix_super(w, block, group + g);
        scales_at(at, super, scaling, bits, panel->scales[g], panel->minima[g]);
    }
}

#include "formats.h"

/* sums[t][i] = unpacked codes of rows 4i .. 4i+3 times activations of token t, over 16 columns, `steps` times */
INLINE void dots(const int8_t *codes, const int8_t *const a[TILE], int steps, int tokens, Ints sums[TILE][4]) {
#if defined(GEMMARY_I8MM)
    Ints squares[TILE / 2][8] = {0}; /* two rows times two tokens */
    UNROLL for (int i = 0; i < 2 * steps; i++) {
        int8x16_t both[TILE / 2];
        UNROLL for (int t = 0; t < tokens; t += 2)
            both[t / 2] = vcombine_s8(vld1_s8(a[t] + 8 * i), vld1_s8(a[t + 1] + 8 * i));
        UNROLL for (int two = 0; two < 8; two++) {
            int8x16_t rows = vld1q_s8(codes + 2 * i * VECTOR + 16 * two);
            UNROLL for (int t = 0; t < tokens; t += 2)
                squares[t / 2][two] = vmmlaq_s32(squares[t / 2][two], rows, both[t / 2]);
        }
    }
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int i = 0; i < 4; i++) {
            Ints upper = squares[t / 2][2 * i], lower = squares[t / 2][2 * i + 1];
            sums[t][i] = t % 2 ? vuzp2q_s32(upper, lower) : vuzp1q_s32(upper, lower);
        }
#else
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int i = 0; i < 4; i++) sums[t][i] = vdupq_n_s32(0);
    UNROLL for (int step = 0; step < steps; step++)
        UNROLL for (int i = 0; i < 4; i++) {
            int8x16_t four[4];
            UNROLL for (int q = 0; q < 4; q++) four[q] = vld1q_s8(codes + (4 * step + q) * VECTOR + 16 * i);
            UNROLL for (int t = 0; t < tokens; t++)
                sums[t][i] = add_quads(sums[t][i], four, vld1q_s8(a[t] + STEP * step));
        }
#endif
}

/* `parts` of a group have scales of their own; tokens beyond `num_rows` repeat the last and are not written. */
INLINE void tile_of(const Matrix *w, const Panel *panel, size_t group, size_t count, const Activations *x, size_t row,
                    size_t num_rows, float *y, size_t stride, int tokens, int parts) {
    const bool has_min = has_minimum(&w->packing);
    const int8_t *a[TILE];
    UNROLL for (int t = 0; t < tokens; t++) {
        size_t token = row + ((size_t)t < num_rows ? (size_t)t : num_rows - 1);
        a[t] = x->codes + token * x->columns + group * GROUP;
    }
    for (size_t g = 0; g < count; g++)
        UNROLL for (int part = 0; part < parts; part++) {
            const float *scale = panel->scales[g][part], *minimum = panel->minima[g];
            Ints sums[TILE][4];
            dots((const int8_t *)panel->codes[0][g] + part * 4 * VECTOR, a, 2 / parts, tokens, sums);
            UNROLL for (int t = 0; t < tokens; t++) {
                a[t] += GROUP / parts;
                if ((size_t)t >= num_rows) continue;
                size_t at = (row + (size_t)t) * x->groups + group + g;
                UNROLL for (int i = 0; i < 4; i++) {
                    float *to = y + (size_t)t * stride + 4 * i;
                    Floats before = group + g + (size_t)part ? vld1q_f32(to) : vdupq_n_f32(0);
                    Floats after = added(before, sums[t][i], scale + 4 * i, x->scales[at]);
                    if (has_min) after = vfmaq_n_f32(after, vld1q_f32(minimum + 4 * i), x->sums[at]);
                    vst1q_f32(to, after);
                }
            }
        }
}

static void tile(const Matrix *w, const Panel *panel, size_t group, size_t count, const Activations *x, size_t row,
                 size_t num_rows, float *y, size_t stride) {
    switch ((w->packing.scaling == SCALE_HALVES) * 2 + (num_rows > 2)) {
    case 0: tile_of(w, panel, group, count, x, row, num_rows, y, stride, 2, 1); break;
    case 1: tile_of(w, panel, group, count, x, row, num_rows, y, stride, 4, 1); break;
    case 2: tile_of(w, panel, group, count, x, row, num_rows, y, stride, 2, 2); break;
    default: tile_of(w, panel, group, count, x, row, num_rows, y, stride, 4, 2);
    }
}

INLINE void mix_of(float *c, size_t ldc, const float *a, size_t lda, const uint16_t *b, int m, size_t k, bool adds) {
    Floats sums[4][4];
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int j = 0; j < 4; j++) sums[i][j] = adds ? vld1q_f32(c + (size_t)i * ldc + 4 * j) : vdupq_n_f32(0);
    for (size_t at = 0; at < k; at += 2)
        UNROLL for (int j = 0; j < 4; j++) { /* a bfloat16 is the upper half of a float */
            uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(b + at * BLOCK + 8 * j));
            Floats first = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
            Floats second = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000)));
            UNROLL for (int i = 0; i < m; i++) {
                const float *pair = a + (size_t)i * lda + at;
                sums[i][j] = vfmaq_n_f32(vfmaq_n_f32(sums[i][j], first, pair[0]), second, pair[1]);
            }
        }
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int j = 0; j < 4; j++) vst1q_f32(c + (size_t)i * ldc + 4 * j, sums[i][j]);
}

static void mix(float *c, size_t ldc, const float *a, size_t lda, const uint16_t *b, size_t m, size_t k, bool adds) {
    for (; m >= 4; m -= 4, c += 4 * ldc, a += 4 * lda) mix_of(c, ldc, a, lda, b, 4, k, adds);
    for (; m; m--, c += ldc, a += lda) mix_of(c, ldc, a, lda, b, 1, k, adds);
}

const Kernels KERNELS = {
    .name = NAME, .runs_here = runs_here, .tile_rows = TILE, .lanes = 1, .matvec = matvec, .unpack = unpack,
    .tile = tile, .mix = mix, .quantize = row_quantize, ROW_KERNELS};
