/* SPDX-License-Identifier: Apache-2.0
 * Packed matrices: made from the blocks of a file exactly, 16 rows at a time; rows of them read back.
 *
 *     file                    code        scale   minimum       packed as
 *     Q4_0                    q           d                     f16
 *     Q5_0                    q           d                     f16, 1 bit extra
 *     Q8_0, F32, F16, BF16    q + 128     d                     f16, 4 bits extra
 *     Q4_1, Q5_1              q           d       center d + m  f16 and minimum
 *     Q4_K, Q5_K              q           d s     center d s - e t   super
 *     Q6_K                    q           d s                   halves, 2 bits extra
 *
 * Layouts of the files' blocks: formats/quantize.py.
 */
#include <math.h>

#include "internal.h"

typedef struct {
    gemmary_type type;
    uint16_t length, bytes; /* of a block in the file */
    Packing packing;
} Format;

static const Format FORMATS[] = {
    {GEMMARY_F32, 1, 4, {4, SCALE_F16, 32, 0}},     {GEMMARY_F16, 1, 2, {4, SCALE_F16, 32, 0}},
    {GEMMARY_BF16, 1, 2, {4, SCALE_F16, 32, 0}},    {GEMMARY_Q8_0, 32, 34, {4, SCALE_F16, 32, 0}},
    {GEMMARY_Q4_0, 32, 18, {0, SCALE_F16, 32, 0}},    {GEMMARY_Q5_0, 32, 22, {1, SCALE_F16, 32, 0}},
    {GEMMARY_Q4_1, 32, 20, {0, SCALE_F16_MIN, 64, 0}}, {GEMMARY_Q5_1, 32, 24, {1, SCALE_F16_MIN, 64, 0}},
    {GEMMARY_Q4_K, 256, 144, {0, SCALE_SUPER, 32, 64}}, {GEMMARY_Q5_K, 256, 176, {1, SCALE_SUPER, 32, 64}},
    {GEMMARY_Q6_K, 256, 210, {2, SCALE_HALVES, 32, 32}},
};

static const Format *format_of(gemmary_type type) {
    for (size_t i = 0; i < sizeof FORMATS / sizeof *FORMATS; i++)
        if (FORMATS[i].type == type) return &FORMATS[i];
    return NULL;
}

size_t gemmary_row_bytes(gemmary_type type, size_t columns) {
    const Format *format = format_of(type);
    return format && columns % format->length == 0 ? columns / format->length * format->bytes : 0;
}

bool gemmary_matrix_make(Matrix *m, gemmary_type type, size_t rows, size_t columns) {
    Packing p = format_of(type)->packing;
    *m = (Matrix){.packing = p, .type = type, .rows = rows, .columns = columns};
    m->blocks = (rows + BLOCK - 1) / BLOCK;
    m->groups = (columns + GROUP - 1) / GROUP;
    m->base_stride = m->groups * (p.scale_bytes + 4u * VECTOR) + m->groups / 8 * p.super_bytes;
    m->extra_stride = m->groups * p.extra_bits * VECTOR;
    m->base = gemmary_pages(m->blocks * m->base_stride, true);
    m->extra = m->extra_stride ? gemmary_pages(m->blocks * m->extra_stride, true) : NULL;
    m->is_declared = m->base && (m->extra || !m->extra_stride);
    return m->is_declared;
}

size_t gemmary_matrix_bytes(const Matrix *m) { return m->blocks * (m->base_stride + m->extra_stride); }

void gemmary_matrix_get_pages(const Matrix *m, size_t first, size_t rows, atomic_int *late) {
    size_t from = first / BLOCK, to = (first + rows + BLOCK - 1) / BLOCK, base = m->base_stride, extra = m->extra_stride;
    gemmary_pages_get(m->base, m->blocks * base, from * base, to * base, late);
    gemmary_pages_get(m->extra, m->blocks * extra, from * extra, to * extra, late);
}

static uint16_t to_f16(float x) { /* to the nearest, halves to even; x >= 0 */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (bits >= 0x47800000) return 0x7bff; /* the largest: a scale is never infinite */
    if (bits < 0x38800000) return (uint16_t)lrintf(x * 0x1p24f);
    uint32_t half = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
    return half > 0x7bff ? 0x7bff : (uint16_t)half;
}

static float float_at(gemmary_type type, const uint8_t *bytes, size_t i) {
    uint16_t half;
    float whole;
    if (type == GEMMARY_F32) return memcpy(&whole, bytes + 4 * i, 4), whole;
    memcpy(&half, bytes + 2 * i, 2);
    return type == GEMMARY_F16 ? from_f16(half) : from_bf16(half);
}

/* n <= 32 floats as codes around 128 and the float16 scale */
static void quantize_floats(gemmary_type type, const uint8_t *bytes, size_t n, uint8_t *codes, uint8_t *scale) {
    float values[GROUP] = {0}, most = 0, nothing = 0;
    for (size_t i = 0; i < n; i++) {
        values[i] = float_at(type, bytes, i);
        most = fmaxf(most, fabsf(values[i]));
        nothing += values[i] * 0; /* NaN if one of them is not finite */
    }
    uint16_t half = nothing == 0 ? to_f16(most / 127) : 0x7e00;
    if (from_f16(half) * 127.5f < most) half++; /* rounding down may put the largest value out of reach */
    float d = from_f16(half), inverse = d > 0 ? 1 / d : 0;
    for (size_t i = 0; i < GROUP; i++) codes[i] = (uint8_t)(128 + lrintf(fmaxf(-127, fminf(127, values[i] * inverse))));
    memcpy(scale, &half, 2);
}

static void nibbles(const uint8_t *q, uint8_t *codes) { /* 16 bytes: first the low halves, then the high ones */
    for (int i = 0; i < 16; i++) {
        codes[i] = q[i] & 15;
        codes[i + 16] = q[i] >> 4;
    }
}

static void fifth_bits(const uint8_t *high, uint8_t *codes) { /* bit i of four bytes is the fifth of code i */
    for (int i = 0; i < GROUP; i++) codes[i] |= (high[i / 8] >> (i % 8) & 1) << 4;
}

INLINE void codes_of_super(gemmary_type type, const uint8_t *block, size_t group, uint8_t *codes) {
    const uint8_t *high = type == GEMMARY_Q6_K ? block + 128 + group / 4 * 32 : block + 16;
    const uint8_t *q = type == GEMMARY_Q6_K ? block + group / 4 * 64 + group % 2 * 32
                                            : block + (type == GEMMARY_Q5_K ? 48 : 16) + group / 2 * 32;
    int shift = type == GEMMARY_Q6_K ? (group % 4 >= 2 ? 4 : 0) : (group % 2 ? 4 : 0);
    for (int i = 0; i < GROUP; i++) codes[i] = q[i] >> shift & 15;
    if (type == GEMMARY_Q5_K)
        for (int i = 0; i < GROUP; i++) codes[i] |= (high[i] >> group & 1) << 4;
    if (type == GEMMARY_Q6_K)
        for (int i = 0; i < GROUP; i++) codes[i] |= (high[i] >> (2 * (group % 4)) & 3) << 4;
}

static void scales_of_super(const uint8_t *packed, size_t group, uint8_t *s, uint8_t *t) { /* six bits each */
    const uint8_t *a = packed, *b = packed + 4, *c = packed + 8;
    size_t i = group % 4;
    *s = group < 4 ? a[i] & 63 : (c[i] & 15) | (a[i] >> 2 & 48);
    *t = group < 4 ? b[i] & 63 : (c[i] >> 4) | (b[i] >> 2 & 48);
}

/* The codes of one group of one row, from its block in the file, and its scales put at row r of the packed group; not
 * of Q4_0, whose groups pack_nibbles reads and packs at once. */
INLINE void read_group(const Matrix *m, gemmary_type type, const uint8_t *block, size_t group, size_t r, uint8_t *codes,
                       uint8_t *packed) {
    uint8_t *super = packed - m->packing.super_bytes; /* written with the first group of 8 */
    switch (type) {
    case GEMMARY_Q5_0:
    case GEMMARY_Q4_1:
    case GEMMARY_Q5_1: {
        size_t head = m->packing.scaling == SCALE_F16_MIN ? 4 : 2, high = m->packing.extra_bits ? 4 : 0;
        nibbles(block + head + high, codes);
        if (high) fifth_bits(block + head, codes);
        memcpy(packed + 2 * r, block, 2);
        if (head == 4) memcpy(packed + 32 + 2 * r, block + 2, 2);
        break;
    }
    case GEMMARY_Q8_0:
        for (int i = 0; i < GROUP; i++) codes[i] = block[2 + i] ^ 0x80;
        memcpy(packed + 2 * r, block, 2);
        break;
    case GEMMARY_Q4_K:
    case GEMMARY_Q5_K:
        codes_of_super(type, block, group % 8, codes);
        scales_of_super(block + 4, group % 8, packed + r, packed + 16 + r);
        if (group % 8 == 0) {
            memcpy(super + 2 * r, block, 2);
            memcpy(super + 32 + 2 * r, block + 2, 2);
        }
        break;
    case GEMMARY_Q6_K:
        codes_of_super(type, block, group % 8, codes);
        packed[r] = block[192 + group % 8 * 2];
        packed[16 + r] = block[192 + group % 8 * 2 + 1];
        if (group % 8 == 0) memcpy(super + 2 * r, block + 208, 2);
        break;
    default: { /* floats; the last group of a row may be short */
        size_t first = group * GROUP, n = m->columns - first < GROUP ? m->columns - first : GROUP;
        quantize_floats(type, block, n, codes, packed + 2 * r);
    }
    }
}

/* Put the codes of row r into the planes; four codes are worked on at once as the bytes of one number. */
INLINE void pack_group(unsigned bits, size_t r, const uint8_t *codes, uint8_t *base, uint8_t *extra) {
    uint32_t quads[QUADS], low, high, rest[4] = {0};
    memcpy(quads, codes, GROUP);
    for (size_t i = 0; i < 4; i++) {
        low = quads[2 * i] >> bits & 0x0f0f0f0f;
        high = quads[2 * i + 1] >> bits & 0x0f0f0f0f;
        low |= high << 4;
        memcpy(base + i * VECTOR + 4 * r, &low, 4);
    }
    uint32_t mask = ((1u << bits) - 1) * 0x01010101u;
    for (size_t q = 0; q < QUADS && bits; q++) rest[q * bits / 8] |= (quads[q] & mask) << (q * bits % 8);
    for (size_t i = 0; i < bits; i++) memcpy(extra + i * VECTOR + 4 * r, &rest[i], 4);
}

/* Both for a block of Q4_0, whose nibbles need not be codes on the way: a scale, then 16 bytes. */
static inline void pack_nibbles(const uint8_t *block, size_t r, uint8_t *packed) {
    const uint32_t low = 0x0f0f0f0f;
    uint32_t quads[4], out[4];
    memcpy(packed + 2 * r, block, 2);
    memcpy(quads, block + 2, sizeof quads);
    for (size_t i = 0; i < 2; i++) {
        out[i] = (quads[2 * i] & low) | (quads[2 * i + 1] & low) << 4;
        out[2 + i] = (quads[2 * i] >> 4 & low) | (quads[2 * i + 1] & ~low);
    }
    for (size_t i = 0; i < 4; i++) memcpy(packed + 32 + i * VECTOR + 4 * r, &out[i], 4);
}

static bool is_finite(const uint8_t *half) { return (half[1] & 0x7c) != 0x7c; }

/* One row of a file's bytes; the type and its extra bits are constants. False: not finite */
INLINE bool fill_row(const Matrix *m, gemmary_type type, unsigned bits, size_t block, size_t r, const uint8_t *source) {
    const Format *format = format_of(type);
    const size_t steps = format->length > GROUP ? format->length / GROUP : 1; /* groups of a block in the file */
    const size_t step = format->length > GROUP ? format->bytes : GROUP / format->length * format->bytes;
    const size_t scale_bytes = m->packing.scale_bytes, super_bytes = m->packing.super_bytes;
    uint8_t codes[GROUP], *packed = (uint8_t *)matrix_group(m, block, 0), *extra = (uint8_t *)matrix_extra(m, block, 0);
    bool sound = true;
    for (size_t group = 0, left = steps; group < m->groups; group++) {
        if (type == GEMMARY_Q4_0) {
            pack_nibbles(source, r, packed);
        } else {
            read_group(m, type, source, group, r, codes, packed);
            pack_group(bits, r, codes, packed + scale_bytes, bits ? extra + group * bits * VECTOR : NULL);
        }
        if (group % 8 == 0 || !super_bytes) { /* the factors; the codes are always finite */
            const uint8_t *factors = packed - super_bytes + 2 * r;
            sound = is_finite(factors) && (!has_minimum(&m->packing) || is_finite(factors + 2 * BLOCK)) && sound;
        }
        packed += scale_bytes + 4 * VECTOR + (group % 8 == 7 ? super_bytes : 0);
        if (!--left && group + 1 < m->groups) {
            source += step;
            left = steps;
        }
    }
    return sound;
}

bool gemmary_matrix_fill(const Matrix *m, size_t first, size_t rows, const uint8_t *bytes) {
    const size_t row_bytes = gemmary_row_bytes(m->type, m->columns);
    bool sound = true;
    for (size_t row = first; row < first + rows; row++, bytes += row_bytes) {
        bool is_sound_row;
#define FILL(type, bits) \
    case type: is_sound_row = fill_row(m, type, bits, row / BLOCK, row % BLOCK, bytes); break;
        switch (m->type) {
            FILL(GEMMARY_Q4_0, 0)
            FILL(GEMMARY_Q4_1, 0)
            FILL(GEMMARY_Q5_0, 1)
            FILL(GEMMARY_Q5_1, 1)
            FILL(GEMMARY_Q8_0, 4)
            FILL(GEMMARY_Q4_K, 0)
            FILL(GEMMARY_Q5_K, 1)
            FILL(GEMMARY_Q6_K, 2)
        default: is_sound_row = fill_row(m, m->type, 4, row / BLOCK, row % BLOCK, bytes);
        }
        sound = is_sound_row && sound;
    }
    return sound;
}

void gemmary_matrix_row(const Matrix *m, size_t row, float *out) {
    size_t block = row / BLOCK, r = row % BLOCK, bits = m->packing.extra_bits;
    float scales[2][BLOCK], minima[BLOCK] = {0};
    for (size_t group = 0; group < m->groups; group++) {
        const uint8_t *base = matrix_group(m, block, group) + m->packing.scale_bytes;
        const uint8_t *extra = bits ? matrix_extra(m, block, group) : base;
        matrix_scales(m, block, group, scales, minima);
        for (size_t k = 0; k < GROUP && group * GROUP + k < m->columns; k++) {
            size_t half = m->packing.scaling == SCALE_HALVES && k >= 16;
            int code = (int)packed_code(base, extra, bits, r, k) - center_of(&m->packing);
            out[group * GROUP + k] = scales[half][r] * (float)code + minima[r];
        }
    }
}
