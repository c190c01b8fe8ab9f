/* SPDX-License-Identifier: Apache-2.0
 * Kernels for x86 with AVX2: products of unsigned codes and signed activations are summed in 16 bits. The codes' center
 * is taken out there, by beginning with -center times the sum of the activations. Sums may wrap around on the way; what
 * is left at the end is at most
 *
 *     bits of a code   columns   sum
 *     4, 5             16        16 * 16 * 127
 *     6                8         8 * 32 * 127    of half a group, which has a scale of its own
 *     8                16        16 * 15 * 127   as two codes of 4 bits, the upper one times 16
 */
#include <cpuid.h>
#include <immintrin.h>

#include "rows.h"

typedef __m256i Ints;
typedef __m256 Floats;

enum { TILE = 4 }; /* tokens of a tile, and lanes of its activations */

static bool runs_here(void) {
    unsigned a, b, c, d; /* older clangs have no name for F16C */
    bool has_f16c = __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c;
}

INLINE Ints load(const void *p) { return _mm256_loadu_si256(p); }

INLINE Ints quad(const int8_t *a) { /* four activations, in every lane */
    int32_t four;
    memcpy(&four, a, 4);
    return _mm256_set1_epi32(four);
}

INLINE Ints widened(Ints pairs, int times) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16((short)times)); }

/* pairs += codes of 2 × 8 rows times four activations. Written out, because compilers would make the products of a
 * whole group before they add the first, and have no registers to keep them in. */
INLINE void add_products(Ints pairs[2], Ints left, Ints right, const int8_t *a) {
    Ints four, products;
    __asm__("vpbroadcastd %6, %2\n\t"
            "vpmaddubsw %2, %4, %3\n\t"
            "vpaddw %3, %0, %0\n\t"
            "vpmaddubsw %2, %5, %2\n\t"
            "vpaddw %2, %1, %1"
            : "+x"(pairs[0]), "+x"(pairs[1]), "=&x"(four), "=&x"(products)
            : "x"(left), "x"(right), "m"(*(const int8_t(*)[4])a));
}

/* What the sums of a group begin with, or of one of its halves, in every lane. */
INLINE Ints start_at(const int16_t *starts, int part, int bits) {
    int32_t two;
    memcpy(&two, starts + (bits == 2 ? 2 + 2 * part : 0), 4);
    return _mm256_slli_epi16(_mm256_set1_epi32(two), bits == 1);
}

/* The codes of eight rows at quads 2i and 2i + 1; of 8-bit codes the upper half. */
INLINE void codes_at(const uint8_t *base, const uint8_t *extra, int bits, int i, Ints out[2]) {
    const Ints low = _mm256_set1_epi8(15);
    Ints v = load(base + i * VECTOR);
    out[0] = _mm256_and_si256(v, low);
    out[1] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
    UNROLL for (int j = 0; j < 2 && (bits == 1 || bits == 2); j++) {
        int at = (2 * i + j) * bits;
        Ints rest = _mm256_srli_epi16(load(extra + at / 8 * VECTOR), at % 8);
        rest = _mm256_and_si256(rest, _mm256_set1_epi8((char)((1 << bits) - 1)));
        out[j] = _mm256_or_si256(_mm256_slli_epi16(out[j], bits), rest);
    }
}

/* `times` the sums, over `quads` quads from 2 * first, of the codes of eight rows times activations. */
INLINE Ints dot(const uint8_t *base, const uint8_t *extra, int bits, int first, int quads, const int8_t *a, Ints pairs,
                int times) {
    Ints codes[2];
    UNROLL for (int q = 0; q < quads; q++) {
        if (q % 2 == 0) codes_at(base, extra, bits, first + q / 2, codes);
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes[q % 2], quad(a + 8 * first + 4 * q)));
    }
    return widened(pairs, times);
}

INLINE Floats halves_at(const uint8_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }

INLINE Floats bytes_at(const uint8_t *at, bool is_signed) {
    __m128i eight = _mm_loadl_epi64((const __m128i *)at);
    return _mm256_cvtepi32_ps(is_signed ? _mm256_cvtepi8_epi32(eight) : _mm256_cvtepu8_epi32(eight));
}

/* Scales and minima of eight rows; scales[1] are of the second half of the columns, with SCALE_HALVES only. */
INLINE Floats scales_at(const uint8_t *at, const uint8_t *super, int scaling, int bits, int h, Floats scales[2]) {
    const Floats center = _mm256_set1_ps((float)(8 << bits));
    if (scaling == SCALE_SUPER) {
        scales[0] = _mm256_mul_ps(halves_at(super + 16 * h), bytes_at(at + 8 * h, false));
        Floats m = _mm256_mul_ps(halves_at(super + 32 + 16 * h), bytes_at(at + 16 + 8 * h, false));
        return _mm256_fmsub_ps(scales[0], center, m);
    }
    if (scaling == SCALE_HALVES) {
        UNROLL for (int half = 0; half < 2; half++)
            scales[half] = _mm256_mul_ps(halves_at(super + 16 * h), bytes_at(at + 16 * half + 8 * h, true));
        return center;
    }
    scales[0] = halves_at(at + 16 * h);
    return scaling == SCALE_F16 ? center : _mm256_fmadd_ps(scales[0], center, halves_at(at + 32 + 16 * h));
}

INLINE Floats added(Floats y, Ints sums, Floats scale, Floats a_scale) {
    return _mm256_fmadd_ps(_mm256_mul_ps(scale, a_scale), _mm256_cvtepi32_ps(sums), y);
}

INLINE void matvec_of(const Matrix *w, size_t block, const Activations *x, size_t row, float *y, int bits, int scaling) {
    const int8_t *a = x->codes + row * x->columns;
    const float *a_scales = x->scales + row * x->groups, *a_sums = x->sums + row * x->groups;
    const int16_t *starts = x->starts + STARTS * row * x->groups;
    const uint8_t *super = matrix_super(w, block, 0), *extra = bits ? matrix_extra(w, block, 0) : super;
    const uint8_t *at = super;
    const size_t scale_bytes = scaling == SCALE_F16_MIN ? 64 : 32;
    const int parts = bits == 2 ? 2 : 1;
    Floats sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, scales[2];
    for (size_t g = 0; g < w->groups; g++) {
        if (g % 8 == 0) {
            super = at;
            at += w->packing.super_bytes;
        }
        Floats a_scale = _mm256_set1_ps(a_scales[g]);
        UNROLL for (int h = 0; h < 2; h++) {
            const uint8_t *base = at + scale_bytes + 32 * h, *rest = extra + 32 * h;
            Floats minimum = scales_at(at, super, scaling, bits, h, scales);
            UNROLL for (int part = 0; part < parts; part++) {
                Ints start = start_at(starts, part, bits);
                Ints dots = dot(base, rest, bits, part * 2, QUADS / parts, a, start, bits == 4 ? 16 : 1);
                if (bits == 4)
                    dots = _mm256_add_epi32(dots, dot(rest, rest, 0, 0, QUADS, a, _mm256_setzero_si256(), 1));
                sums[h] = added(sums[h], dots, scales[part], a_scale);
            }
            if (scaling == SCALE_F16_MIN || scaling == SCALE_SUPER)
                sums[h] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(a_sums[g]), sums[h]);
        }
        at += scale_bytes + 4 * VECTOR;
        extra += bits * VECTOR;
        a += GROUP;
        starts += STARTS;
    }
    UNROLL for (int h = 0; h < 2; h++) _mm256_storeu_ps(y + 8 * h, sums[h]);
}

INLINE void unpack_of(const Matrix *w, size_t block, size_t group, size_t count, Panel *panel, int bits, int scaling) {
    const int parts = bits == 2 ? 2 : 1;
    for (size_t g = 0; g < count; g++) {
        const uint8_t *at = matrix_group(w, block, group + g), *super = matrix_super(w, block, group + g);
        const uint8_t *base = at + w->packing.scale_bytes, *extra = bits ? matrix_extra(w, block, group + g) : at;
        UNROLL for (int h = 0; h < 2; h++) {
            Ints codes[2];
            UNROLL for (int i = 0; i < 4 * (bits == 4 ? 2 : 1); i++) {
                if (i < 4) codes_at(base + 32 * h, extra + 32 * h, bits, i, codes);
                else codes_at(extra + 32 * h, extra, 0, i - 4, codes);
                UNROLL for (int j = 0; j < 2; j++)
                    _mm256_store_si256((Ints *)(panel->codes[i / 4][g] + (i % 4 * 2 + j) * VECTOR + 32 * h), codes[j]);
            }
            Floats scales[2];
            _mm256_store_ps(panel->minima[g] + 8 * h, scales_at(at, super, scaling, bits, h, scales));
            UNROLL for (int part = 0; part < parts; part++)
                _mm256_store_ps(panel->scales[g][part] + 8 * h, scales[part]);
        }
    }
}

#include "formats.h"

/* sums[t][h] = unpacked codes of 16 rows times activations of so many tokens, from starts[t] on */
INLINE void dots(const uint8_t *codes, const int8_t *a, int tokens, int quads, const Ints starts[TILE],
                 Ints sums[TILE][2]) {
    UNROLL for (int t = 0; t < tokens; t++) sums[t][0] = sums[t][1] = starts[t];
    UNROLL for (int q = 0; q < quads; q++) {
        Ints left = load(codes + q * VECTOR), right = load(codes + q * VECTOR + 32);
        UNROLL for (int t = 0; t < tokens; t++) add_products(sums[t], left, right, a + 4 * (TILE * q + t));
    }
}

INLINE void tile_of(const Matrix *w, const Panel *panel, size_t group, size_t count, const Activations *x, size_t row,
                    float *y, size_t stride, int tokens, int bits) {
    const int8_t *a = activation_codes(x, row) + group * GROUP * TILE;
    size_t at = activation_at(x, row, group);
    const int parts = bits == 2 ? 2 : 1, quads = QUADS / parts;
    const bool has_min = has_minimum(&w->packing);
    Floats out[TILE][2];
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int h = 0; h < 2; h++)
            out[t][h] = group ? _mm256_loadu_ps(y + (size_t)t * stride + 8 * h) : _mm256_setzero_ps();
    for (size_t g = 0; g < count; g++, a += GROUP * TILE, at += TILE) {
        UNROLL for (int part = 0; part < parts; part++) {
            Ints starts[TILE], sums[TILE][2], lower[TILE][2];
            UNROLL for (int t = 0; t < tokens; t++)
                starts[t] = start_at(x->starts + STARTS * (at + (size_t)t), part, bits);
            dots(panel->codes[0][g] + part * quads * VECTOR, a + part * 16 * TILE, tokens, quads, starts, sums);
            UNROLL for (int t = 0; t < tokens; t++)
                UNROLL for (int h = 0; h < 2; h++) sums[t][h] = widened(sums[t][h], bits == 4 ? 16 : 1);
            if (bits == 4) {
                UNROLL for (int t = 0; t < tokens; t++) starts[t] = _mm256_setzero_si256();
                dots(panel->codes[1][g], a, tokens, quads, starts, lower);
                UNROLL for (int t = 0; t < tokens; t++)
                    UNROLL for (int h = 0; h < 2; h++) sums[t][h] = _mm256_add_epi32(sums[t][h], widened(lower[t][h], 1));
            }
            UNROLL for (int t = 0; t < tokens; t++) {
                Floats a_scale = _mm256_broadcast_ss(x->scales + at + t);
                UNROLL for (int h = 0; h < 2; h++)
                    out[t][h] = added(out[t][h], sums[t][h], _mm256_load_ps(panel->scales[g][part] + 8 * h), a_scale);
            }
        }
        UNROLL for (int t = 0; t < tokens && has_min; t++) {
            Floats a_sum = _mm256_broadcast_ss(x->sums + at + t);
            UNROLL for (int h = 0; h < 2; h++)
                out[t][h] = _mm256_fmadd_ps(_mm256_load_ps(panel->minima[g] + 8 * h), a_sum, out[t][h]);
        }
    }
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int h = 0; h < 2; h++) _mm256_storeu_ps(y + (size_t)t * stride + 8 * h, out[t][h]);
}

INLINE void tile_bits(const Matrix *w, const Panel *panel, size_t group, size_t count, const Activations *x, size_t row,
                      float *y, size_t stride, int tokens) {
    switch (w->packing.extra_bits) {
    case 0: tile_of(w, panel, group, count, x, row, y, stride, tokens, 0); break;
    case 1: tile_of(w, panel, group, count, x, row, y, stride, tokens, 1); break;
    case 2: tile_of(w, panel, group, count, x, row, y, stride, tokens, 2); break;
    default: tile_of(w, panel, group, count, x, row, y, stride, tokens, 4);
    }
}

static void tile(const Matrix *w, const Panel *panel, size_t group, size_t count, const Activations *x, size_t row,
                 size_t num_rows, float *y, size_t stride) {
    switch (num_rows) {
    case 1: tile_bits(w, panel, group, count, x, row, y, stride, 1); break;
    case 2: tile_bits(w, panel, group, count, x, row, y, stride, 2); break;
    case 3: tile_bits(w, panel, group, count, x, row, y, stride, 3); break;
    default: tile_bits(w, panel, group, count, x, row, y, stride, 4);
    }
}

/* The first or the second of each pair of bfloat16, which are the upper halves of floats. */
INLINE Floats one_of(Ints pairs, int i) {
    const Ints upper = _mm256_set1_epi32((int)0xffff0000);
    return _mm256_castsi256_ps(i ? _mm256_and_si256(pairs, upper) : _mm256_slli_epi32(pairs, 16));
}

INLINE void mix_of(float *c, size_t ldc, const float *a, size_t lda, const uint16_t *b, int m, size_t k, bool adds) {
    Floats sums[6][2];
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int h = 0; h < 2; h++) sums[i][h] = adds ? _mm256_loadu_ps(c + i * ldc + 8 * h) : _mm256_setzero_ps();
    for (size_t j = 0; j < k; j += 2, b += 2 * BLOCK) {
        Ints left = load(b), right = load(b + BLOCK);
        UNROLL for (int second = 0; second < 2; second++) {
            Floats row[2] = {one_of(left, second), one_of(right, second)};
            UNROLL for (int i = 0; i < m; i++)
                UNROLL for (int h = 0; h < 2; h++)
                    sums[i][h] = _mm256_fmadd_ps(_mm256_broadcast_ss(a + i * lda + j + second), row[h], sums[i][h]);
        }
    }
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int h = 0; h < 2; h++) _mm256_storeu_ps(c + i * ldc + 8 * h, sums[i][h]);
}

static void mix(float *c, size_t ldc, const float *a, size_t lda, const uint16_t *b, size_t m, size_t k, bool adds) {
    for (; m >= 6; m -= 6, c += 6 * ldc, a += 6 * lda) mix_of(c, ldc, a, lda, b, 6, k, adds);
    switch (m) {
    case 1: mix_of(c, ldc, a, lda, b, 1, k, adds); break;
    case 2: mix_of(c, ldc, a, lda, b, 2, k, adds); break;
    case 3: mix_of(c, ldc, a, lda, b, 3, k, adds); break;
    case 4: mix_of(c, ldc, a, lda, b, 4, k, adds); break;
    case 5: mix_of(c, ldc, a, lda, b, 5, k, adds); break;
    default: break;
    }
}

const Kernels gemmary_avx2 = {
    .name = "avx2", .runs_here = runs_here, .tile_rows = TILE, .lanes = TILE, .matvec = matvec, .unpack = unpack,
    .tile = tile, .mix = mix, .quantize = row_quantize, ROW_KERNELS};
