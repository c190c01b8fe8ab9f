/* SPDX-License-Identifier: Apache-2.0
 * The output head: the embedding times the last layer's output. A few blocks of rows at a time are computed into a
 * thread's own room, then copied out as logits, or folded into what a judgement needs so that no logits are stored. */
#include <math.h>

#include "model.h"

/* second, and as int8 activations = norm(x + norm(second)) of every row */
static void finish(const Pass *p) {
    gemmary_model *m = p->m;
    Room *room = &m->room;
    Activations out = gemmary_activations(p, &room->plain, &m->embedding);
    const float *post_norm = m->layers[m->config.num_layers - 1].mlp_post_norm;
    size_t dim = (size_t)m->config.model_dim, row, count;
    while ((count = gemmary_take_rows(p, &row)))
        for (; count; count--, row++) {
            float *x = room->x + row * dim, *y = room->second + row * room->width;
            m->kernels->norm_add(x, y, post_norm, dim, m->config.norm_eps);
            m->kernels->norm(y, x, m->final_norm, dim, m->config.norm_eps);
            m->kernels->quantize(&out, row, 0, y, dim);
        }
    gemmary_team_wait(m->team);
}

/* The next blocks of logits, soft-capped, [row][*stride] in the thread's own room: 0 at the end. */
static size_t next_logits(const Pass *p, const Activations *x, float *own, size_t *first, size_t *stride) {
    gemmary_model *m = p->m;
    size_t start, vocab = (size_t)m->config.vocab_size, rows = p->rows;
    size_t count = gemmary_team_take(m->team, rows > 1 ? PANEL_BLOCKS : HEAD_BLOCKS, &start, m->embedding.blocks);
    if (!count) return 0;
    *stride = rows > 1 ? PANEL_BLOCKS * BLOCK : HEAD_BLOCKS * BLOCK;
    *first = start * BLOCK;
    gemmary_multiply(m->kernels, &m->embedding, x, rows, start, count, own, *stride);
    size_t numbers = vocab - *first < count * BLOCK ? vocab - *first : count * BLOCK;
    if (m->config.final_softcap > 0)
        for (size_t row = 0; row < rows; row++) m->kernels->softcap(own + row * *stride, numbers, m->config.final_softcap);
    return numbers;
}

void gemmary_head(const Pass *p, float *own) {
    finish(p);
    Activations x = gemmary_activations(p, &p->m->room.plain, &p->m->embedding);
    size_t first, count, stride, vocab = (size_t)p->m->config.vocab_size;
    while ((count = next_logits(p, &x, own, &first, &stride)))
        for (size_t row = 0; row < p->rows; row++)
            memcpy(p->logits + row * vocab + first, own + row * stride, count * sizeof *own);
}

typedef struct { /* what is known of one row's logits so far; sums in double, so that their order does not show */
    double sum;       /* of exp(logit - most) */
    float most, best; /* the largest logit, and its id (exact: V <= 2^24) */
} Judgement;

static void join(Judgement *j, float most, float best, double sum) {
    float top = most > j->most ? most : j->most;
    if (most > j->most || (most == j->most && best < j->best)) j->best = best;
    j->sum = j->sum * exp((double)j->most - top) + sum * exp((double)most - top);
    j->most = top;
}

static void fold(const Kernels *k, Judgement *j, const float *logits, size_t count, size_t first) {
    float most = k->max(logits, count);
    size_t best = 0;
    while (most > j->most && logits[best] != most && best + 1 < count) best++;
    join(j, most, (float)(first + best), k->exp_sum(logits, count, most));
}

static void conclude(const Pass *p, size_t row, Judgement *const *all, int num_threads) {
    Judgement total = {0, -INFINITY, 0};
    for (int t = 0; t < num_threads; t++)
        if (all[t][row].sum > 0) join(&total, all[t][row].most, all[t][row].best, all[t][row].sum);
    p->log_probs[row] -= total.most + (float)log(total.sum);
    p->is_greedy[row] = (int32_t)total.best == p->targets[row];
}

static Judgement *judgements(const Room *room, const float *own) {
    return (Judgement *)(own + room->own_floats - 4 * room->rows);
}

void gemmary_judge(const Pass *p, float *own) {
    gemmary_model *m = p->m;
    Activations x = gemmary_activations(p, &m->room.plain, &m->embedding);
    Judgement *mine = judgements(&m->room, own), *all[256];
    size_t first, count, stride, row;
    for (row = 0; row < p->rows; row++) mine[row] = (Judgement){0, -INFINITY, 0};
    finish(p);
    while ((count = next_logits(p, &x, own, &first, &stride)))
        for (row = 0; row < p->rows; row++) {
            fold(m->kernels, &mine[row], own + row * stride, count, first);
            size_t target = (size_t)p->targets[row] - first; /* wraps around below it */
            if (target < count) p->log_probs[row] = own[row * stride + target];
        }
    gemmary_team_wait(m->team);
    int threads = gemmary_team_size(m->team);
    for (int t = 0; t < threads; t++) all[t] = judgements(&m->room, m->room.own + (size_t)t * m->room.own_floats);
    while (gemmary_team_take(m->team, 1, &row, p->rows)) conclude(p, row, all, threads);
}

void gemmary_sum(const Pass *p) {
    const Room *room = &p->m->room;
    size_t dim = (size_t)p->m->config.model_dim, chunk;
    finish(p);
    while (gemmary_team_take(p->m->team, 1, &chunk, p->num_chunks)) {
        const float *row = room->second;
        for (size_t before = 0; before < chunk; before++) row += (size_t)p->chunks[before].length * room->width;
        memset(p->sums + chunk * dim, 0, dim * sizeof *row);
        for (int32_t t = 0; t < p->chunks[chunk].length; t++, row += room->width)
            for (size_t i = 0; i < dim; i++) p->sums[chunk * dim + i] += row[i];
    }
}

/* The most probable token without reading every code: a weight of eight bits is d (16 u + l - 128), with u from 0 to 15
 * in the matrix's base and l in its extra plane. With 7.5 for l a logit is off by e, the sum of d x (l - 7.5), and
 * s^2, the sum of d^2 x^2, is known from the scales and the activations alone. If the signs of l - 7.5 are independent
 * and its mean square is m, then P(e > t s) <= exp(-t^2 / 2m) (Hoeffding). With t = 44 and m <= 28 (18.6 to 25.8 in the
 * rows of Gemma 3 270M) any of 262,144 tokens is off by more with a probability of 5e-10; the largest of 10^7 seen was
 * 5.7 sqrt(m) s, where a normal distribution has 5.3. */
static const float SURE = 44;
enum { MOST_GROUPS = 1024 };

bool gemmary_can_screen(const Matrix *w) {
    return w->packing.extra_bits == 4 && w->packing.scaling == SCALE_F16 && w->groups <= MOST_GROUPS;
}

/* Of each group of a row of activations the sum of their squares. */
static void measure(const Activations *x, size_t row, float *energies) {
    for (size_t group = 0; group < x->groups; group++) {
        const int8_t *codes = x->codes + row * x->columns + group * GROUP;
        int32_t sum = 0;
        for (int i = 0; i < GROUP; i++) sum += codes[i] * codes[i];
        float scale = x->scales[row * x->groups + group];
        energies[group] = scale * scale * (float)sum;
    }
}

/* The most that each logit may be, in its place; mine[row].most = the least that the largest is. */
static void bound(const Pass *p, const Activations *x, Judgement *mine, float *own) {
    gemmary_model *m = p->m;
    Matrix upper = m->embedding;
    upper.packing.extra_bits = 0;
    upper.extra = NULL;
    size_t rows = p->rows, vocab = (size_t)m->config.vocab_size, start, count;
    float energies[MOST_GROUPS], mean[BLOCK], radius[BLOCK];
    for (size_t row = 0; row < rows; row++) mine[row].most = -INFINITY;
    while ((count = gemmary_team_take(m->team, HEAD_BLOCKS, &start, upper.blocks))) {
        const size_t stride = HEAD_BLOCKS * BLOCK;
        gemmary_multiply(m->kernels, &upper, x, rows, start, count, own, stride);
        for (size_t row = 0; row < rows; row++) {
            measure(x, row, energies);
            for (size_t block = 0; block < count; block++) {
                float *about = own + row * stride + block * BLOCK;
                size_t first = (start + block) * BLOCK, some = vocab - first < BLOCK ? vocab - first : BLOCK;
                m->kernels->spread(&upper, start + block, x->sums + row * x->groups, energies, mean, radius);
                for (size_t i = 0; i < BLOCK; i++) {
                    float middle = 16 * about[i] + 7.5f * mean[i];
                    about[i] = middle + SURE * radius[i];
                    radius[i] = middle - SURE * radius[i];
                }
                if (m->config.final_softcap > 0) { /* what is equal only after it may be equal here too */
                    m->kernels->softcap(about, BLOCK, m->config.final_softcap);
                    m->kernels->softcap(radius, BLOCK, m->config.final_softcap);
                }
                float most = m->kernels->max(radius, some);
                if (most > mine[row].most) mine[row].most = most;
                memcpy(p->logits + row * vocab + first, about, some * sizeof *about);
            }
        }
    }
}

/* The logits of the 16 tokens from `first` on, or of none of them when none may reach `least`. */
static void decide(const Pass *p, const Activations *x, size_t row, size_t first, float least) {
    gemmary_model *m = p->m;
    size_t vocab = (size_t)m->config.vocab_size, count = vocab - first < BLOCK ? vocab - first : BLOCK;
    float *logits = p->logits + row * vocab + first, exact[BLOCK];
    bool is_possible = false;
    for (size_t i = 0; i < count; i++) is_possible |= logits[i] >= least;
    for (int i = 0; i < BLOCK; i++) exact[i] = -INFINITY;
    if (is_possible) m->kernels->matvec(&m->embedding, first / BLOCK, x, row, exact);
    if (is_possible && m->config.final_softcap > 0) m->kernels->softcap(exact, BLOCK, m->config.final_softcap);
    memcpy(logits, exact, count * sizeof *exact);
}

void gemmary_screen(const Pass *p, float *own) {
    gemmary_model *m = p->m;
    Activations x = gemmary_activations(p, &m->room.plain, &m->embedding);
    finish(p);
    bound(p, &x, judgements(&m->room, own), own);
    gemmary_team_wait(m->team);
    size_t start, count;
    while ((count = gemmary_team_take(m->team, 64, &start, m->embedding.blocks)))
        for (size_t row = 0; row < p->rows; row++) {
            float least = -INFINITY;
            for (int t = 0; t < gemmary_team_size(m->team); t++) {
                float most = judgements(&m->room, m->room.own + (size_t)t * m->room.own_floats)[row].most;
                if (most > least) least = most;
            }
            for (size_t block = start; block < start + count; block++) decide(p, &x, row, block * BLOCK, least);
        }
}
