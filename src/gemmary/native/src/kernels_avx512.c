/* SPDX-License-Identifier: Apache-2.0
 * Kernels for x86 with AVX-512 and VNNI, built twice from this text, with GEMMARY_HALVES for processors that multiply
 * bfloat16 too. One register holds four codes of each of 16 rows, one instruction multiplies them by four activations
 * and adds. */
#include <immintrin.h>

#include "rows.h"

typedef __m512i Ints;
typedef __m512 Floats;

enum { TOKENS = 8 }; /* of a tile, and lanes of its activations: one address and constants lead to all of them */

static bool runs_here(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni")
#ifdef GEMMARY_HALVES
           && __builtin_cpu_supports("avx512bf16")
#endif
        ;
}

INLINE Ints load(const void *p) { return _mm512_loadu_si512(p); }

INLINE Ints quad(const int8_t *a) { /* four activations, in every lane */
    int32_t four;
    memcpy(&four, a, 4);
    return _mm512_set1_epi32(four);
}

/* The codes of 16 rows at quads 2i and 2i + 1. */
INLINE void codes_at(const uint8_t *base, const uint8_t *extra, int bits, int i, Ints out[2]) {
    const Ints low = _mm512_set1_epi8(15);
    Ints v = load(base + i * VECTOR);
    if (bits == 4) {
        Ints rest = load(extra + i * VECTOR), high = _mm512_set1_epi8((char)0xf0);
        out[0] = _mm512_or_si512(_mm512_and_si512(_mm512_slli_epi16(v, 4), high), _mm512_and_si512(rest, low));
        out[1] = _mm512_or_si512(_mm512_and_si512(v, high), _mm512_and_si512(_mm512_srli_epi16(rest, 4), low));
        return;
    }
    out[0] = _mm512_and_si512(v, low);
    out[1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
    UNROLL for (int j = 0; j < 2; j++) {
        if (!bits) continue;
        int at = (2 * i + j) * bits;
        Ints rest = _mm512_srli_epi16(load(extra + at / 8 * VECTOR), (unsigned)at % 8);
        rest = _mm512_and_si512(rest, _mm512_set1_epi8((char)((1 << bits) - 1)));
        out[j] = _mm512_or_si512(_mm512_slli_epi16(out[j], (unsigned)bits), rest);
    }
}

/* What the sums of a group begin with, or of one of its halves, in every lane: -center times those of the activations,
 * from -8 times them, or -32 times for a half. */
INLINE Ints start_at(const int16_t *starts, int part, int bits) {
    int32_t start;
    memcpy(&start, starts + (bits == 2 ? 2 + 2 * part : 0), 4);
    return _mm512_slli_epi32(_mm512_set1_epi32(start), bits == 2 ? 0 : (unsigned)bits);
}

/* A group's codes, quads 4 * lanes apart, and at its place the numbers that go with them. */
INLINE void quantize_group(const Activations *x, size_t at, const float *values, __mmask32 is_given, int8_t *codes) {
    const size_t lanes = x->lanes;
    const __mmask16 lower = (__mmask16)is_given, upper = (__mmask16)(is_given >> 16);
    Floats left = _mm512_maskz_loadu_ps(lower, values), right = _mm512_maskz_loadu_ps(upper, values + 16);
    float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(left), _mm512_abs_ps(right)));
    const Floats inverse = _mm512_set1_ps(most > 0 ? 127.0f / most : 0);
    __m128i halves[2] = {_mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(left, inverse))),
                         _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(right, inverse)))};
    int32_t starts[3];
    UNROLL for (int half = 0; half < 2; half++) {
        __m128i sums = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), halves[half]);
        sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
        starts[1 + half] = -32 * _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xb1)));
        for (size_t quad = 0; quad < 4; quad++)
            memcpy(codes + (4 * (size_t)half + quad) * 4 * lanes, (const char *)&halves[half] + 4 * quad, 4);
    }
    starts[0] = (starts[1] + starts[2]) / 4;
    memcpy(x->starts + STARTS * at, starts, sizeof starts);
    x->scales[at] = most / 127.0f;
    x->sums[at] = most / 127.0f * (float)(starts[0] / -8);
}

static void quantize(const Activations *x, size_t row, size_t group, const float *values, size_t n) {
    int8_t *codes = activation_codes(x, row) + group * GROUP * x->lanes;
    size_t at = activation_at(x, row, group);
    for (size_t i = 0; i < n; i += GROUP, at += x->lanes, codes += GROUP * x->lanes)
        quantize_group(x, at, values + i, n - i < GROUP ? ((__mmask32)1 << (n - i)) - 1 : ~(__mmask32)0, codes);
}

/* Sums from `start` on over `quads` quads from 2 * first of the codes of 16 rows times activations. */
INLINE Ints dot(const uint8_t *base, const uint8_t *extra, int bits, int first, int quads, const int8_t *a, Ints start) {
    Ints even = start, odd = _mm512_setzero_si512(), codes[2];
    UNROLL for (int i = first; i < first + quads / 2; i++) {
        codes_at(base, extra, bits, i, codes);
        even = _mm512_dpbusd_epi32(even, codes[0], quad(a + 8 * i));
        odd = _mm512_dpbusd_epi32(odd, codes[1], quad(a + 8 * i + 4));
    }
    return _mm512_add_epi32(even, odd);
}

INLINE Floats halves_at(const uint8_t *at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at)); }

INLINE Floats bytes_at(const uint8_t *at, bool is_signed) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)at);
    return _mm512_cvtepi32_ps(is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
}

/* Scales and minima of 16 rows; scales[1] are of the second half of the columns, with SCALE_HALVES only. */
INLINE Floats scales_at(const uint8_t *at, const uint8_t *super, int scaling, int bits, Floats scales[2]) {
    const Floats center = _mm512_set1_ps((float)(8 << bits));
    if (scaling == SCALE_SUPER) {
        scales[0] = _mm512_mul_ps(halves_at(super), bytes_at(at, false));
        return _mm512_fmsub_ps(scales[0], center, _mm512_mul_ps(halves_at(super + 32), bytes_at(at + 16, false)));
    }
    if (scaling == SCALE_HALVES) {
        UNROLL for (int half = 0; half < 2; half++)
            scales[half] = _mm512_mul_ps(halves_at(super), bytes_at(at + 16 * half, true));
        return center;
    }
    scales[0] = halves_at(at);
    return scaling == SCALE_F16 ? center : _mm512_fmadd_ps(scales[0], center, halves_at(at + 32));
}

INLINE Floats added(Floats y, Ints sums, Floats scale, float a_scale) {
    return _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(a_scale)), _mm512_cvtepi32_ps(sums), y);
}

INLINE void matvec_of(const Matrix *w, size_t block, const Activations *x, size_t row, float *y, int bits, int scaling) {
    const int8_t *a = x->codes + row * x->columns;
    const float *a_scales = x->scales + row * x->groups, *a_sums = x->sums + row * x->groups;
    const int16_t *starts = x->starts + STARTS * row * x->groups;
    const uint8_t *super = matrix_super(w, block, 0), *extra = bits ? matrix_extra(w, block, 0) : super;
    const uint8_t *at = super;
    const size_t scale_bytes = scaling == SCALE_F16_MIN ? 64 : 32;
    const int parts = bits == 2 ? 2 : 1;
    Floats sum = _mm512_setzero_ps(), scales[2];
    for (size_t g = 0; g < w->groups; g++) {
        if (g % 8 == 0) {
            super = at;
            at += w->packing.super_bytes;
        }
        Floats minimum = scales_at(at, super, scaling, bits, scales);
        UNROLL for (int part = 0; part < parts; part++) {
            Ints start = start_at(starts, part, bits);
            Ints dots = dot(at + scale_bytes, extra, bits, 2 * part, QUADS / parts, a, start);
            sum = added(sum, dots, scales[part], a_scales[g]);
        }
        if (scaling == SCALE_F16_MIN || scaling == SCALE_SUPER)
            sum = _mm512_fmadd_ps(minimum, _mm512_set1_ps(a_sums[g]), sum);
        at += scale_bytes + 4 * VECTOR;
        extra += bits * VECTOR;
        a += GROUP;
        starts += STARTS;
    }
    _mm512_storeu_ps(y, sum);
}

INLINE void unpack_of(const Matrix *w, size_t block, size_t group, size_t count, Panel *panel, int bits, int scaling) {
    for (size_t g = 0; g < count; g++) {
        const uint8_t *at = matrix_group(w, block, group + g), *super = matrix_super(w, block, group + g);
        const uint8_t *base = at + w->packing.scale_bytes, *extra = bits ? matrix_extra(w, block, group + g) : at;
        Ints codes[2];
        UNROLL for (int i = 0; i < 4; i++) {
            codes_at(base, extra, bits, i, codes);
            _mm512_store_si512(panel->codes[0][g] + 2 * i * VECTOR, codes[0]);
            _mm512_store_si512(panel->codes[0][g] + (2 * i + 1) * VECTOR, codes[1]);
        }
        Floats scales[2];
        _mm512_store_ps(panel->minima[g], scales_at(at, super, scaling, bits, scales));
        UNROLL for (int part = 0; part < (bits == 2 ? 2 : 1); part++) _mm512_store_ps(panel->scales[g][part], scales[part]);
    }
}

#include "formats.h"

INLINE void tile_of(const Matrix *w, const Panel *panel, size_t group, size_t count, const Activations *x, size_t row,
                    float *y, size_t stride, int tokens, int bits) {
    const int8_t *a = activation_codes(x, row) + group * GROUP * TOKENS;
    const size_t at = activation_at(x, row, group);
    const float *a_scales = x->scales + at, *a_sums = x->sums + at;
    const int16_t *starts = x->starts + STARTS * at;
    const int parts = bits == 2 ? 2 : 1, quads = QUADS / parts;
    const bool has_min = has_minimum(&w->packing);
    Floats sums[TOKENS];
    UNROLL for (int t = 0; t < tokens; t++)
        sums[t] = group ? _mm512_loadu_ps(y + (size_t)t * stride) : _mm512_setzero_ps();
    for (size_t g = 0; g < count; g++) {
        UNROLL for (int part = 0; part < parts; part++) {
            Ints dots[TOKENS];
            UNROLL for (int t = 0; t < tokens; t++) dots[t] = start_at(starts + STARTS * t, part, bits);
            UNROLL for (int q = part * quads; q < (part + 1) * quads; q++) {
                Ints codes = load(panel->codes[0][g] + q * VECTOR);
                UNROLL for (int t = 0; t < tokens; t++)
                    dots[t] = _mm512_dpbusd_epi32(dots[t], codes, quad(a + 4 * (TOKENS * q + t)));
            }
            Floats scale = _mm512_load_ps(panel->scales[g][part]);
            UNROLL for (int t = 0; t < tokens; t++) sums[t] = added(sums[t], dots[t], scale, a_scales[t]);
        }
        if (has_min) {
            Floats minimum = _mm512_load_ps(panel->minima[g]);
            UNROLL for (int t = 0; t < tokens; t++)
                sums[t] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(a_sums[t]), sums[t]);
        }
        a += GROUP * TOKENS;
        a_scales += TOKENS;
        a_sums += TOKENS;
        starts += STARTS * TOKENS;
    }
    UNROLL for (int t = 0; t < tokens; t++) _mm512_storeu_ps(y + (size_t)t * stride, sums[t]);
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
    while (num_rows) {
        size_t some = num_rows >= 8 ? 8 : num_rows >= 4 ? 4 : num_rows >= 2 ? 2 : 1;
        switch (some) {
        case 8: tile_bits(w, panel, group, count, x, row, y, stride, 8); break;
        case 4: tile_bits(w, panel, group, count, x, row, y, stride, 4); break;
        case 2: tile_bits(w, panel, group, count, x, row, y, stride, 2); break;
        default: tile_bits(w, panel, group, count, x, row, y, stride, 1);
        }
        row += some;
        y += some * stride;
        num_rows -= some;
    }
}

#ifdef GEMMARY_HALVES

static void halve(float *a, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 is_given = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : (__mmask16)0xffff;
        Ints pairs = _mm512_cvtepu32_epi64((__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(is_given, a + i)));
        _mm512_mask_storeu_epi32(a + i, is_given, pairs);
    }
}

/* sum + a[0] * b[..][0] + a[1] * b[..][1], for 16 pairs of bfloat16 in b and one where a begins */
INLINE Floats added_pair(Floats sum, const float *a, Ints b) {
    int32_t pair;
    memcpy(&pair, a, 4);
    return _mm512_dpbf16_ps(sum, (__m512bh)b, (__m512bh)_mm512_set1_epi32(pair));
}

#else

INLINE Floats added_pair(Floats sum, const float *a, Ints b) { /* the same, two float32 in a */
    Floats first = _mm512_castsi512_ps(_mm512_slli_epi32(b, 16));
    Floats second = _mm512_castsi512_ps(_mm512_and_si512(b, _mm512_set1_epi32((int)0xffff0000)));
    return _mm512_fmadd_ps(_mm512_set1_ps(a[1]), second, _mm512_fmadd_ps(_mm512_set1_ps(a[0]), first, sum));
}

#endif

INLINE void mix_of(float *c, size_t ldc, const float *a, size_t lda, const uint16_t *b, int m, size_t k, bool adds) {
    Floats sums[12];
    UNROLL for (int i = 0; i < m; i++) sums[i] = adds ? _mm512_loadu_ps(c + (size_t)i * ldc) : _mm512_setzero_ps();
    for (size_t j = 0; j < k; j += 2) {
        Ints pairs = load(b + j * BLOCK);
        UNROLL for (int i = 0; i < m; i++) sums[i] = added_pair(sums[i], a + (size_t)i * lda + j, pairs);
    }
    UNROLL for (int i = 0; i < m; i++) _mm512_storeu_ps(c + (size_t)i * ldc, sums[i]);
}

static void mix(float *c, size_t ldc, const float *a, size_t lda, const uint16_t *b, size_t m, size_t k, bool adds) {
    while (m) {
        size_t some = m >= 12 ? 12 : m >= 8 ? 8 : m >= 4 ? 4 : m >= 2 ? 2 : 1;
        switch (some) {
        case 12: mix_of(c, ldc, a, lda, b, 12, k, adds); break;
        case 8: mix_of(c, ldc, a, lda, b, 8, k, adds); break;
        case 4: mix_of(c, ldc, a, lda, b, 4, k, adds); break;
        case 2: mix_of(c, ldc, a, lda, b, 2, k, adds); break;
        default: mix_of(c, ldc, a, lda, b, 1, k, adds);
        }
        c += some * ldc;
        a += some * lda;
        m -= some;
    }
}

#ifdef GEMMARY_HALVES
const Kernels gemmary_avx512bf16 = {
    .name = "avx512bf16", .halve = halve,
#else
const Kernels gemmary_avx512 = {
    .name = "avx512",
#endif
    .runs_here = runs_here, .tile_rows = TOKENS, .lanes = TOKENS, .matvec = matvec, .unpack = unpack, .tile = tile,
    .mix = mix, .quantize = quantize, ROW_KERNELS};
