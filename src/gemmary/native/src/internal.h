/* SPDX-License-Identifier: Apache-2.0
 * What the files of the engine share: the packed matrix, quantised activations, the table of kernels, threads.
 *
 * A packed matrix, by blocks of 16 rows; quad q of a group of 32 columns is columns 4q .. 4q+3:
 *
 *     base    [block][group]  scales of 16 rows | 4 × 64 bytes: byte 4r+j of vector i holds the upper four bits of the
 *                             codes of row r at quads 2i (low half) and 2i+1 (high half), column j of the quad
 *     extra   [block][group]  the lower bits of the codes, where they have more than four: 1, 2 or 4 bits each,
 *                             quad q at bit q * bits of the byte string that byte 4r+j of the 64-byte vectors make
 *
 * A weight is scale * (code - center) + minimum, the center in the middle of the codes; most formats have no minimum.
 * One vector of 64 bytes is one AVX-512 register, two of AVX2, four of NEON.
 */
#ifndef GEMMARY_INTERNAL_H
#define GEMMARY_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "gemmary.h"

enum { BLOCK = 16, GROUP = 32, QUADS = 8, VECTOR = 64, PANEL_GROUPS = 32, PANEL_BLOCKS = 2, STARTS = 6, MOST_LANES = 8 };

typedef enum {
    SCALE_F16,     /* 16 × f16 scales */
    SCALE_F16_MIN, /* 16 × f16 scales, 16 × f16 m: minimum = center * scale + m */
    SCALE_SUPER,   /* 16 × u8 s, 16 × u8 t; before every 8 groups 16 × f16 d, 16 × f16 e: scale d s, m = -e t */
    SCALE_HALVES,  /* 2 × 16 × i8 s, one for each 16 columns; before every 8 groups 16 × f16 d: scale d s */
} Scaling;

typedef struct {
    uint8_t extra_bits; /* 0, 1, 2, 4 below the upper four */
    uint8_t scaling;
    uint8_t scale_bytes; /* of a group of 16 rows */
    uint8_t super_bytes; /* before every 8 groups of 16 rows */
} Packing;

typedef struct {
    Packing packing;
    gemmary_type type;    /* of the bytes given */
    size_t rows, columns; /* as declared */
    size_t blocks, groups;
    size_t base_stride, extra_stride; /* bytes of a block */
    uint8_t *base, *extra;
    bool is_declared;
} Matrix;

enum { ACTIVATION_BYTES = 2 * sizeof(float) + STARTS * sizeof(int16_t) }; /* of a group, besides its codes */

typedef struct { /* int8 activations, a scale for every 32; quads of `lanes` rows stand side by side */
    size_t columns, groups, lanes;
    int8_t *codes;   /* [row / lanes][columns / 4][row % lanes][4] */
    float *scales;   /* [row / lanes][groups][row % lanes] */
    float *sums;     /* the same, scale * sum of the codes */
    int16_t *starts; /* the same, [STARTS]: what a kernel begins the sums of a group with, or of either half of it */
} Activations;

static inline int8_t *activation_codes(const Activations *x, size_t row) { /* quads are 4 * lanes apart */
    return x->codes + row / x->lanes * x->lanes * x->columns + row % x->lanes * 4;
}

static inline size_t activation_at(const Activations *x, size_t row, size_t group) {
    return (row / x->lanes * x->groups + group) * x->lanes + row % x->lanes;
}

typedef struct { /* 16 rows of some groups, one byte a code */
    uint8_t codes[2][PANEL_GROUPS][QUADS * VECTOR]; /* [1] only where a kernel splits codes in two */
    float scales[PANEL_GROUPS][2][BLOCK];           /* [1] only with SCALE_HALVES */
    float minima[PANEL_GROUPS][BLOCK];              /* only with has_minimum */
} Panel;

typedef struct {
    const char *name;
    bool (*runs_here)(void);
    size_t tile_rows;
    size_t lanes; /* of the activations that tile takes; divides tile_rows and MOST_LANES. matvec takes 1 */
    /* y[16] = 16 rows of w times one row of x */
    void (*matvec)(const Matrix *w, size_t block, const Activations *x, size_t row, float *y);
    /* panel = groups [group, group + count) of a block; group and PANEL_GROUPS divide */
    void (*unpack)(const Matrix *w, size_t block, size_t group, size_t count, Panel *panel);
    /* y[t * stride + 0..15] += panel times rows [row, row + num_rows) of x at those groups, = where they are the first;
     * num_rows <= tile_rows, lanes divides row */
    void (*tile)(const Matrix *w, const Panel *panel, size_t group, size_t count, const Activations *x, size_t row,
                 size_t num_rows, float *y, size_t stride);
    /* c[m][16] (+)= a[m][k] * b[k][16], k even, a as `halve` leaves it, b in bfloat16 as [k / 2][16][2]; ldc and lda in
     * elements */
    void (*mix)(float *c, size_t ldc, const float *a, size_t lda, const uint16_t *b, size_t m, size_t k, bool adds);
    void (*halve)(float *a, size_t n); /* a row of a for mix: pairs of bfloat16, each where its first was; or NULL */
    /* row operations on n numbers */
    void (*norm)(float *out, const float *x, const float *scale, size_t n, float eps);
    void (*norm_add)(float *x, const float *y, const float *scale, size_t n, float eps); /* scale may be NULL: x += y */
    void (*quantize)(const Activations *x, size_t row, size_t group, const float *values, size_t n); /* from a group on */
    void (*gelu_times)(float *gate, const float *up, size_t n);
    void (*rotate)(float *head, const float *cosines, const float *sines, size_t half, float scale);
    float (*softmax)(float *scores, size_t n, float cap); /* exponentials in place, returns their sum */
    void (*softcap)(float *x, size_t n, float cap);
    double (*exp_sum)(const float *x, size_t n, float max);
    float (*max)(const float *x, size_t n);
    /* of 16 rows with SCALE_F16, over groups: sums of scale times mean, roots of the sums of scale squared times energy */
    void (*spread)(const Matrix *w, size_t block, const float *means, const float *energies, float *mean, float *root);
} Kernels;

extern const Kernels gemmary_portable, gemmary_avx2, gemmary_avx512, gemmary_avx512bf16;
extern const Kernels gemmary_neon, gemmary_dotprod, gemmary_i8mm;
const Kernels *gemmary_find_kernels(const char *name); /* NULL finds the best; returns NULL when there is none */

/* weights.c */
bool gemmary_matrix_make(Matrix *m, gemmary_type type, size_t rows, size_t columns);
size_t gemmary_row_bytes(gemmary_type type, size_t columns);
bool gemmary_matrix_fill(const Matrix *m, size_t first, size_t rows, const uint8_t *bytes); /* false: not finite */
void gemmary_matrix_row(const Matrix *m, size_t row, float *out);
size_t gemmary_matrix_bytes(const Matrix *m);
void gemmary_matrix_get_pages(const Matrix *m, size_t first, size_t rows, atomic_int *late); /* before rows are filled */

/* memory.c */
void *gemmary_pages(size_t bytes, bool is_whole); /* zeroed, huge unless a part may do; NULL: no memory */
void gemmary_pages_free(void *pages, size_t bytes);
/* Those that begin in a range, before it is written: huge ones unless too many have come late, which it counts. */
void gemmary_pages_get(void *pages, size_t bytes, size_t first, size_t end, atomic_int *late);

/* threads.c */
typedef struct Team Team;
typedef void Work(void *context, int thread);
Team *gemmary_team_open(int num_threads);
void gemmary_team_close(Team *team);
int gemmary_team_size(const Team *team);
void gemmary_team_run(Team *team, Work *work, void *context); /* the caller is thread 0 */
void gemmary_team_wait(Team *team);                           /* until all threads of a run are here */
size_t gemmary_team_take(Team *team, size_t count, size_t *index, size_t total); /* next share of a loop, 0 at its end */

#define INLINE static inline __attribute__((always_inline))

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16") /* loops of a few steps over registers: an array of them must not be memory */
#else
#define UNROLL
#endif

static inline float from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff, bits;
    if (rest < 0x400) { /* zero or subnormal: rest * 2^-24 */
        float value = (float)rest * 0x1p-24f;
        memcpy(&bits, &value, 4);
        bits |= sign;
    } else {
        bits = sign | (rest >= 0x7c00 ? 0x7f800000 | (rest & 0x3ff) << 13 : (rest << 13) + ((127 - 15) << 23));
    }
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

static inline uint16_t to_bf16(float x) { /* to the nearest, halves to even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float from_bf16(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

static inline const uint8_t *matrix_group(const Matrix *m, size_t block, size_t group) {
    return m->base + block * m->base_stride + group * (m->packing.scale_bytes + 4 * VECTOR) +
           (group / 8 + 1) * m->packing.super_bytes;
}

static inline const uint8_t *matrix_super(const Matrix *m, size_t block, size_t group) {
    return matrix_group(m, block, group / 8 * 8) - m->packing.super_bytes;
}

static inline const uint8_t *matrix_extra(const Matrix *m, size_t block, size_t group) { /* NULL where there is none */
    return !m->extra ? NULL : m->extra + block * m->extra_stride + group * m->packing.extra_bits * VECTOR;
}

static inline int center_of(const Packing *p) { return 8 << p->extra_bits; }

static inline bool has_minimum(const Packing *p) { return p->scaling == SCALE_F16_MIN || p->scaling == SCALE_SUPER; }

/* Code of row r at column k of a group. */
static inline unsigned packed_code(const uint8_t *base, const uint8_t *extra, size_t bits, size_t r, size_t k) {
    size_t quad = k / 4, byte = 4 * r + k % 4;
    unsigned code = base[quad / 2 * VECTOR + byte] >> (quad % 2 * 4) & 15;
    if (!bits) return code;
    return code << bits | (extra[quad * bits / 8 * VECTOR + byte] >> (quad * bits % 8) & ((1u << bits) - 1));
}

/* Scales and minima of the 16 rows of a group; scales[1] are of the second half of its columns, with SCALE_HALVES. */
static inline void matrix_scales(const Matrix *m, size_t block, size_t group, float scales[2][BLOCK],
                                 float minima[BLOCK]) {
    const uint8_t *at = matrix_group(m, block, group), *super = matrix_super(m, block, group);
    const bool is_plain = m->packing.scaling == SCALE_F16 || m->packing.scaling == SCALE_F16_MIN;
    const float center = (float)center_of(&m->packing);
    uint16_t d[BLOCK], e[BLOCK];
    memcpy(d, is_plain ? at : super, sizeof d);
    if (has_minimum(&m->packing)) memcpy(e, (is_plain ? at : super) + 32, sizeof e);
    for (size_t r = 0; r < BLOCK; r++) {
        float scale = from_f16(d[r]);
        switch (m->packing.scaling) {
        case SCALE_F16: scales[0][r] = scale; break;
        case SCALE_F16_MIN:
            scales[0][r] = scale;
            minima[r] = center * scale + from_f16(e[r]);
            break;
        case SCALE_SUPER:
            scales[0][r] = scale * at[r];
            minima[r] = center * scales[0][r] - from_f16(e[r]) * at[BLOCK + r];
            break;
        default:
            for (size_t half = 0; half < 2; half++) scales[half][r] = scale * (int8_t)at[half * BLOCK + r];
        }
    }
}

#endif
