/* SPDX-License-Identifier: Apache-2.0
 * Operations on one row of numbers, in plain C that compilers turn into vectors: every kernels_*.c includes this file
 * and so gets them with its own instructions. All in float32.
 */
#include <math.h>

#include "internal.h"

#define REDUCE(...) _Pragma(#__VA_ARGS__)

static inline float exponential(float x) { /* relative error < 2e-7; 0 below -87 would be subnormal: 1.6e-38 */
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float rounded = x * 1.44269504f + 12582912.0f; /* the bits of 1.5 * 2^23 + n end in n */
    float n = rounded - 12582912.0f, r = x - n * 0.693145752f - n * 1.42860677e-6f;
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (0.166666657f + r * (0.0416666567f + r * (0.00833336115f + r * 0.00138888f)))));
    int32_t power;
    memcpy(&power, &rounded, 4);
    power = (int32_t)((uint32_t)power << 23) + 0x3f800000;
    float scale;
    memcpy(&scale, &power, 4);
    return p * scale;
}

static inline float capped(float x, float cap) { /* cap * tanh(x / cap) */
    return cap * (1.0f - 2.0f / (1.0f + exponential(2.0f / cap * x)));
}

static float inverse_rms(const float *x, size_t n, float eps) {
    float sum = 0;
    REDUCE(omp simd reduction(+ : sum))
    for (size_t i = 0; i < n; i++) sum += x[i] * x[i];
    return 1.0f / sqrtf(sum / (float)n + eps);
}

static void row_norm(float *out, const float *x, const float *scale, size_t n, float eps) {
    float factor = inverse_rms(x, n, eps);
    REDUCE(omp simd)
    for (size_t i = 0; i < n; i++) out[i] = x[i] * factor * scale[i];
}

static void row_norm_add(float *x, const float *y, const float *scale, size_t n, float eps) {
    if (!scale) {
        REDUCE(omp simd)
        for (size_t i = 0; i < n; i++) x[i] += y[i];
        return;
    }
    float factor = inverse_rms(y, n, eps);
    REDUCE(omp simd)
    for (size_t i = 0; i < n; i++) x[i] += y[i] * factor * scale[i];
}

static inline void row_quantize(const Activations *x, size_t row, size_t group, const float *values, size_t n) {
    for (size_t first = 0; first < n; first += GROUP, group++) {
        float v[GROUP] = {0}, most = 0;
        memcpy(v, values + first, (n - first < GROUP ? n - first : GROUP) * sizeof *v);
        REDUCE(omp simd reduction(max : most))
        for (int i = 0; i < GROUP; i++) most = fabsf(v[i]) > most ? fabsf(v[i]) : most;
        float inverse = most > 0 ? 127.0f / most : 0, scale = most / 127.0f;
        int8_t *to = activation_codes(x, row) + group * GROUP * x->lanes, codes[GROUP];
        int32_t whole[GROUP], sums[2][4] = {0}; /* by half and column of a quad */
        REDUCE(omp simd)
        for (int i = 0; i < GROUP; i++) {
            float rounded = v[i] * inverse + 12582912.0f; /* to the nearest: the low bits are the integer */
            int32_t bits;
            memcpy(&bits, &rounded, 4);
            whole[i] = (int32_t)((uint32_t)bits << 24) >> 24; /* never more, whatever was given */
        }
        for (int i = 0; i < GROUP; i++) codes[i] = (int8_t)whole[i];
        for (size_t quad = 0; quad < QUADS; quad++) memcpy(to + 4 * quad * x->lanes, codes + 4 * quad, 4);
        for (int half = 0; half < 2; half++)
            for (int quad = 0; quad < 4; quad++)
                for (int i = 0; i < 4; i++) sums[half][i] += whole[16 * half + 4 * quad + i];
        size_t at = activation_at(x, row, group);
        int16_t *starts = x->starts + STARTS * at; /* as kernels_avx2.c wants them: [3][2] of the group, its first and
                                                      second half; -8 or -32 times the sums at columns 4q and 4q + 1,
                                                      and at 4q + 2 and 4q + 3 */
        int32_t total = 0;
        for (int i = 0; i < 2; i++) {
            int32_t first = sums[0][2 * i] + sums[0][2 * i + 1], second = sums[1][2 * i] + sums[1][2 * i + 1];
            starts[i] = (int16_t)(-8 * (first + second));
            starts[2 + i] = (int16_t)(-32 * first);
            starts[4 + i] = (int16_t)(-32 * second);
            total += first + second;
        }
        x->scales[at] = scale;
        x->sums[at] = scale * (float)total;
    }
}

static void row_gelu_times(float *gate, const float *up, size_t n) { /* the tanh form: x times a sigmoid */
    REDUCE(omp simd)
    for (size_t i = 0; i < n; i++) {
        float x = gate[i], u = -1.59576912f * x * (1.0f + 0.044715f * x * x);
        gate[i] = x / (1.0f + exponential(u)) * up[i];
    }
}

static void row_rotate(float *head, const float *cosines, const float *sines, size_t half, float scale) {
    REDUCE(omp simd)
    for (size_t i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = (a * cosines[i] - b * sines[i]) * scale;
        head[i + half] = (b * cosines[i] + a * sines[i]) * scale;
    }
}

static float row_max(const float *x, size_t n) {
    float most = x[0];
    REDUCE(omp simd reduction(max : most))
    for (size_t i = 0; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

static void row_softcap(float *x, size_t n, float cap) {
    REDUCE(omp simd)
    for (size_t i = 0; i < n; i++) x[i] = capped(x[i], cap);
}

static float row_softmax(float *x, size_t n, float cap) {
    if (cap > 0) row_softcap(x, n, cap);
    float most = row_max(x, n), sum = 0;
    REDUCE(omp simd reduction(+ : sum))
    for (size_t i = 0; i < n; i++) {
        x[i] = exponential(x[i] - most);
        sum += x[i];
    }
    return sum;
}

static double row_exp_sum(const float *x, size_t n, float most) {
    float sum = 0;
    REDUCE(omp simd reduction(+ : sum))
    for (size_t i = 0; i < n; i++) sum += exponential(x[i] - most);
    return sum;
}

static void row_spread(const Matrix *w, size_t block, const float *means, const float *energies, float *mean,
                       float *root) {
    float firsts[BLOCK] = {0}, squares[BLOCK] = {0};
    for (size_t group = 0; group < w->groups; group++) {
        const uint8_t *at = matrix_group(w, block, group);
        REDUCE(omp simd)
        for (int r = 0; r < BLOCK; r++) {
            uint16_t half;
            memcpy(&half, at + 2 * r, 2);
            uint32_t bits = (uint32_t)(half & 0x8000) << 16 | (uint32_t)(half & 0x7fff) << 13; /* 2^-112 times the scale */
            float scale;
            memcpy(&scale, &bits, 4);
            scale *= 0x1p112f;
            firsts[r] += scale * means[group];
            squares[r] += scale * scale * energies[group];
        }
    }
    memcpy(mean, firsts, sizeof firsts);
    REDUCE(omp simd)
    for (int r = 0; r < BLOCK; r++) root[r] = sqrtf(squares[r]);
}

#define ROW_KERNELS                                                                                                \
    .norm = row_norm, .norm_add = row_norm_add, .gelu_times = row_gelu_times,                                      \
    .rotate = row_rotate, .softmax = row_softmax, .softcap = row_softcap, .exp_sum = row_exp_sum, .max = row_max, \
    .spread = row_spread
