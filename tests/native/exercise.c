/* SPDX-License-Identifier: Apache-2.0
 * Everything gemmary.h offers, with sizes that fill no block, for the sanitizers: opened, filled from several threads,
 * run on several threads, judged, refused, closed. Prints what went wrong and ends with 1. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gemmary.h"

enum { VOCAB = 70, LAYERS = 3, DIM = 256, HEADS = 6, KV_HEADS = 2, HEAD = 10, MLP = 1100, SLOTS = 3, LENGTH = 40, CHUNK = 7 };

static int failures = 0;

static void expect(const char *what, int got, int wanted) {
    if (got == wanted) return;
    printf("%s: expected %d, got %d\n", what, wanted, got);
    failures++;
}

static gemmary_config config_of(const int32_t *windows, const char *kernels) {
    return (gemmary_config){
        .abi = GEMMARY_ABI, .vocab_size = VOCAB, .num_layers = LAYERS, .model_dim = DIM, .num_heads = HEADS,
        .num_kv_heads = KV_HEADS, .head_dim = HEAD, .mlp_dim = MLP, .post_norm = 1, .qk_norm = 1, .norm_plus_one = 1,
        .norm_eps = 1e-6f, .query_scale = 0.3f, .rope_base = 1e6f, .rope_base_local = 1e4f, .rope_scale = 8,
        .attn_softcap = 50, .final_softcap = 30, .num_slots = SLOTS, .max_length = LENGTH, .chunk_length = CHUNK,
        .num_threads = 2, .windows = windows, .kernels = kernels};
}

typedef struct {
    gemmary_weight weight;
    int64_t rows, columns;
    int is_norm, of_layer;
} Shape;

static const Shape SHAPES[] = {
    {GEMMARY_EMBEDDING, VOCAB, DIM, 0, 0},        {GEMMARY_FINAL_NORM, 1, DIM, 1, 0},
    {GEMMARY_ATTENTION_NORM, 1, DIM, 1, 1},       {GEMMARY_QUERY, HEADS * HEAD, DIM, 0, 1},
    {GEMMARY_KEY, KV_HEADS * HEAD, DIM, 0, 1},    {GEMMARY_VALUE, KV_HEADS * HEAD, DIM, 0, 1},
    {GEMMARY_OUTPUT, DIM, HEADS * HEAD, 0, 1},    {GEMMARY_QUERY_NORM, 1, HEAD, 1, 1},
    {GEMMARY_KEY_NORM, 1, HEAD, 1, 1},            {GEMMARY_ATTENTION_POST_NORM, 1, DIM, 1, 1},
    {GEMMARY_MLP_NORM, 1, DIM, 1, 1},             {GEMMARY_GATE, MLP, DIM, 0, 1},
    {GEMMARY_UP, MLP, DIM, 0, 1},                 {GEMMARY_DOWN, DIM, MLP, 0, 1},
    {GEMMARY_MLP_POST_NORM, 1, DIM, 1, 1},
};
enum { NUM_SHAPES = sizeof SHAPES / sizeof *SHAPES };

typedef struct {
    gemmary_model *model;
    const Shape *shape;
    int32_t layer;
    gemmary_type type;
    size_t row_bytes;
    const float *all; /* what every F32 value is, or NULL for any */
} Job;

static void *fill(void *argument) { /* in two parts, so that two calls meet in one matrix */
    const Job *job = argument;
    unsigned seed = (unsigned)job->shape->weight + 1;
    size_t rows = (size_t)job->shape->rows, part = rows > 16 ? 16 : rows;
    for (size_t first = 0; first < rows; first += part, part = rows - first) {
        uint8_t *bytes = malloc(part * job->row_bytes);
        for (size_t i = 0; i < part * job->row_bytes; i++)
            bytes[i] = (uint8_t)(job->type == GEMMARY_F32 && i % 4 == 3 ? 0x3c : (seed = seed * 1103515245 + 12345) >> 26);
        for (size_t i = 0; job->all && job->type == GEMMARY_F32 && i < part * job->row_bytes; i += 4)
            memcpy(bytes + i, job->all, 4);
        int status = gemmary_fill(job->model, job->shape->weight, job->layer, (int64_t)first, (int64_t)part, bytes,
                                  part * job->row_bytes);
        expect("fill", status, GEMMARY_OK);
        free(bytes);
    }
    return NULL;
}

static void load(gemmary_model *model, gemmary_type type, size_t block, size_t block_bytes, const float *all) {
    Job jobs[NUM_SHAPES * LAYERS];
    pthread_t threads[NUM_SHAPES * LAYERS];
    size_t count = 0;
    for (size_t i = 0; i < NUM_SHAPES; i++)
        for (int32_t layer = 0; layer < (SHAPES[i].of_layer ? LAYERS : 1); layer++) {
            const Shape *s = &SHAPES[i];
            int whole = !s->is_norm && s->columns % (int64_t)block == 0;
            Job job = {model, s, s->of_layer ? layer : -1, whole ? type : GEMMARY_F32, 0, all};
            job.row_bytes = whole ? (size_t)s->columns / block * block_bytes : (size_t)s->columns * 4;
            expect("declare", gemmary_declare(model, s->weight, job.layer, job.type, s->rows, s->columns), GEMMARY_OK);
            jobs[count++] = job;
        }
    for (size_t i = 0; i < count; i++) pthread_create(&threads[i], NULL, fill, &jobs[i]);
    for (size_t i = 0; i < count; i++) pthread_join(threads[i], NULL);
}

static int best(const float *logits) {
    int at = 0;
    for (int i = 1; i < VOCAB; i++)
        if (logits[i] > logits[at]) at = i;
    return at;
}

static void run(gemmary_model *model, int is_finite) {
    int32_t ids[SLOTS * CHUNK], targets[SLOTS * CHUNK];
    float logits[SLOTS * CHUNK * VOCAB], found[SLOTS * CHUNK * VOCAB], log_probs[SLOTS * CHUNK], sums[SLOTS * DIM];
    uint8_t is_greedy[SLOTS * CHUNK];
    for (int i = 0; i < SLOTS * CHUNK; i++) targets[i] = (ids[i] = i * 37 % VOCAB) / 2;
    for (int start = 0; start + CHUNK <= LENGTH; start += CHUNK - 1) {
        gemmary_chunk chunks[] = {{2, start, CHUNK, 3}, {0, start / 2, 1, 1}, {1, start, CHUNK - 3, 0}};
        expect("forward", gemmary_forward(model, chunks, SLOTS, ids, logits), GEMMARY_OK);
        expect("candidates", gemmary_candidates(model, chunks, SLOTS, ids, found), GEMMARY_OK);
        for (int row = 0; row < 4 && is_finite; row++)
            expect("best", best(found + row * VOCAB), best(logits + row * VOCAB));
        expect("forward one", gemmary_forward(model, chunks + 1, 1, ids, logits), GEMMARY_OK);
        expect("forward none", gemmary_forward(model, chunks + 2, 1, ids, logits), GEMMARY_OK);
        expect("score", gemmary_score(model, chunks, SLOTS, ids, targets, log_probs, is_greedy), GEMMARY_OK);
        for (int i = 0; i < VOCAB && is_finite; i++) expect("finite", logits[i] - logits[i] == 0, 1);
        if (is_finite) expect("probable", log_probs[0] <= 0, 1);
        expect("embed", gemmary_embed(model, chunks, SLOTS, ids, sums), GEMMARY_OK);
        for (int i = 0; i < SLOTS * DIM && is_finite; i++) expect("finite sum", sums[i] - sums[i] == 0, 1);
    }
    gemmary_chunk wrong[] = {{SLOTS, 0, 1, 1}, {0, -1, 1, 1}, {0, LENGTH, 1, 1}, {0, 0, CHUNK + 1, 1}, {0, 0, 0, 0},
                             {0, INT32_MAX, 1, 1}, {0, 0, 2, 3}, {0, 0, 2, -1}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        expect("wrong chunk", gemmary_forward(model, &wrong[i], 1, ids, logits), GEMMARY_BAD_ARGUMENT);
    expect("embed wrong", gemmary_embed(model, wrong, 1, ids, sums), GEMMARY_BAD_ARGUMENT);
    ids[0] = VOCAB;
    expect("wrong id", gemmary_forward(model, &(gemmary_chunk){0, 0, 1, 1}, 1, ids, logits), GEMMARY_BAD_ARGUMENT);
}

int main(void) {
    const int32_t windows[LAYERS] = {5, 0, 17};
    const struct { gemmary_type type; size_t block, bytes; } formats[] = {
        {GEMMARY_F32, 1, 4},     {GEMMARY_BF16, 1, 2},   {GEMMARY_Q8_0, 32, 34},   {GEMMARY_Q4_0, 32, 18},
        {GEMMARY_Q5_1, 32, 24},  {GEMMARY_Q4_K, 256, 144}, {GEMMARY_Q5_K, 256, 176}, {GEMMARY_Q6_K, 256, 210},
    };
    const char *name;
    for (int32_t k = 0; (name = gemmary_kernels(k)); k++)
        for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
            gemmary_config config = config_of(windows, name);
            gemmary_model *model = NULL;
            gemmary_status status = gemmary_open(&config, &model);
            if (status == GEMMARY_NO_KERNELS) break;
            expect("open", status, GEMMARY_OK);
            load(model, formats[i].type, formats[i].block, formats[i].bytes, NULL);
            run(model, 1);
            gemmary_close(model);
        }
    const float extremes[] = {8e6f, -8e6f, 1e-40f}; /* activations become infinite, NaN, too small to divide by */
    for (int32_t k = 0; (name = gemmary_kernels(k)); k++)
        for (size_t i = 0; i < sizeof extremes / sizeof *extremes; i++) {
            gemmary_config config = config_of(windows, name);
            gemmary_model *model = NULL;
            if (gemmary_open(&config, &model)) break;
            load(model, GEMMARY_F32, 1, 4, &extremes[i]);
            run(model, 0);
            gemmary_close(model);
        }
    gemmary_config config = config_of(windows, NULL);
    gemmary_model *model = NULL;
    for (size_t at = 0; at < offsetof(gemmary_config, windows); at += 4) { /* each number in turn replaced */
        gemmary_config bad = config;
        memset((char *)&bad + at, 0xff, 4);
        expect("bad config", gemmary_open(&bad, &model), GEMMARY_BAD_CONFIG);
    }
    expect("open", gemmary_open(&config, &model), GEMMARY_OK);
    int32_t id = 2;
    float logits[VOCAB];
    expect("early", gemmary_forward(model, &(gemmary_chunk){0, 0, 1, 1}, 1, &id, logits), GEMMARY_NOT_READY);
    gemmary_close(model);
    return failures != 0;
}
