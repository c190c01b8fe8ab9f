/* SPDX-License-Identifier: Apache-2.0
 * Kernels in portable C: what all others are compared with, and what runs where none of them does. */
#include "rows.h"

static bool runs_here(void) { return true; }

/* y[r] += 16 rows of codes times 32 activations, as float */
static void add_group(const uint8_t codes[QUADS][BLOCK][4], const float scales[2][BLOCK], const float minima[BLOCK],
                      const Packing *p, const Activations *x, size_t row, size_t group, float *y) {
    size_t at = row * x->groups + group;
    const int8_t *a = x->codes + row * x->columns + group * GROUP;
    float scale = x->scales[at];
    for (size_t r = 0; r < BLOCK; r++) {
        int32_t sums[2] = {0, 0};
        for (size_t k = 0; k < GROUP; k++) sums[k / 16] += (codes[k / 4][r][k % 4] - center_of(p)) * a[k];
        if (p->scaling == SCALE_HALVES)
            for (size_t h = 0; h < 2; h++) y[r] += scales[h][r] * scale * (float)sums[h];
        else
            y[r] += scales[0][r] * scale * (float)(sums[0] + sums[1]);
        if (has_minimum(p)) y[r] += minima[r] * x->sums[at];
    }
}

static void unpack_codes(const Matrix *w, size_t block, size_t group, uint8_t codes[QUADS][BLOCK][4]) {
    const uint8_t *base = matrix_group(w, block, group) + w->packing.scale_bytes;
    const uint8_t *extra = w->packing.extra_bits ? matrix_extra(w, block, group) : base;
    for (size_t k = 0; k < GROUP; k++)
        for (size_t r = 0; r < BLOCK; r++)
            codes[k / 4][r][k % 4] = (uint8_t)packed_code(base, extra, w->packing.extra_bits, r, k);
}

static void matvec(const Matrix *w, size_t block, const Activations *x, size_t row, float *y) {
    uint8_t codes[QUADS][BLOCK][4];
    float scales[2][BLOCK], minima[BLOCK];
    memset(y, 0, BLOCK * sizeof *y);
    for (size_t group = 0; group < w->groups; group++) {
        unpack_codes(w, block, group, codes);
        matrix_scales(w, block, group, scales, minima);
        add_group(codes, scales, minima, &w->packing, x, row, group, y);
    }
}

static void unpack(const Matrix *w, size_t block, size_t group, size_t count, Panel *panel) {
    for (size_t g = 0; g < count; g++) {
        unpack_codes(w, block, group + g, (uint8_t(*)[BLOCK][4])panel->codes[0][g]);
        matrix_scales(w, block, group + g, panel->scales[g], panel->minima[g]);
    }
}

static void tile(const Matrix *w, const Panel *panel, size_t group, size_t count, const Activations *x, size_t row,
                 size_t num_rows, float *y, size_t stride) {
    for (size_t t = 0; t < num_rows; t++) {
        if (group == 0) memset(y + t * stride, 0, BLOCK * sizeof *y);
        for (size_t g = 0; g < count; g++)
            add_group((const uint8_t(*)[BLOCK][4])panel->codes[0][g], panel->scales[g], panel->minima[g], &w->packing, x,
                      row + t, group + g, y + t * stride);
    }
}

static void mix(float *c, size_t ldc, const float *a, size_t lda, const uint16_t *b, size_t m, size_t k, bool adds) {
    for (size_t i = 0; i < m; i++) {
        float sums[BLOCK] = {0};
        if (adds) memcpy(sums, c + i * ldc, sizeof sums);
        for (size_t j = 0; j < k; j++)
            for (size_t r = 0; r < BLOCK; r++)
                sums[r] += a[i * lda + j] * from_bf16(b[j / 2 * 2 * BLOCK + 2 * r + j % 2]);
        memcpy(c + i * ldc, sums, sizeof sums);
    }
}

const Kernels gemmary_portable = {
    .name = "portable", .runs_here = runs_here, .tile_rows = 8, .lanes = 1, .matvec = matvec, .unpack = unpack,
    .tile = tile, .mix = mix, .quantize = row_quantize, ROW_KERNELS};
