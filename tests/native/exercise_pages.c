/* SPDX-License-Identifier: Apache-2.0
 * Weights on small pages, in part or all, as where huge ones come late: the same to the last bit. Prints what went wrong
 * and ends with 1. */
#include <stdio.h>
#include <stdlib.h>

#include "model.h"

enum { VOCAB = 20000, DIM = 256, ROW_BYTES = DIM / 32 * 34, THREADS = 2 };

static int failures = 0;

static void expect(const char *what, long got, long wanted) {
    if (got == wanted) return;
    printf("%s: expected %ld, got %ld\n", what, wanted, got);
    failures++;
}

/* A model whose embedding takes more than two huge pages, of bytes that look random; its pages come late from the n-th on. */
static gemmary_model *model_of(int n) {
    const int32_t windows[] = {0};
    const gemmary_config config = {
        .abi = GEMMARY_ABI, .vocab_size = VOCAB, .num_layers = 1, .model_dim = DIM, .num_heads = 1, .num_kv_heads = 1,
        .head_dim = 32, .mlp_dim = 32, .norm_eps = 1e-6f, .query_scale = 1, .rope_base = 1e4f, .rope_base_local = 1e4f,
        .rope_scale = 1, .num_slots = 1, .max_length = 4, .chunk_length = 4, .num_threads = THREADS, .windows = windows};
    const struct { gemmary_weight weight; int32_t layer; int64_t rows, columns; } rest[] = {
        {GEMMARY_FINAL_NORM, -1, 1, DIM}, {GEMMARY_ATTENTION_NORM, 0, 1, DIM}, {GEMMARY_QUERY, 0, 32, DIM},
        {GEMMARY_KEY, 0, 32, DIM},        {GEMMARY_VALUE, 0, 32, DIM},         {GEMMARY_OUTPUT, 0, DIM, 32},
        {GEMMARY_MLP_NORM, 0, 1, DIM},    {GEMMARY_GATE, 0, 32, DIM},          {GEMMARY_UP, 0, 32, DIM},
        {GEMMARY_DOWN, 0, DIM, 32}};
    gemmary_model *model = NULL;
    unsigned seed = 1;
    expect("open", gemmary_open(&config, &model), GEMMARY_OK);
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) {
        size_t count = (size_t)(rest[i].rows * rest[i].columns);
        float *values = malloc(count * sizeof *values);
        for (size_t j = 0; j < count; j++) values[j] = (float)((seed = seed * 1103515245 + 12345) >> 16) / 65536 - 0.5f;
        gemmary_declare(model, rest[i].weight, rest[i].layer, GEMMARY_F32, rest[i].rows, rest[i].columns);
        expect("fill", gemmary_fill(model, rest[i].weight, rest[i].layer, 0, rest[i].rows, values, count * 4), GEMMARY_OK);
        free(values);
    }
    gemmary_declare(model, GEMMARY_EMBEDDING, -1, GEMMARY_Q8_0, VOCAB, DIM);
    uint8_t bytes[16 * ROW_BYTES];
    for (int64_t row = 0; row < VOCAB; row += 16) {
        if (row / 16 == n) atomic_store(&model->late_pages, 1 << 20);
        for (size_t i = 0; i < sizeof bytes; i++) /* every scale is 2^-7 */
            bytes[i] = i % 34 == 0 ? 0 : i % 34 == 1 ? 0x20 : (uint8_t)((seed = seed * 1103515245 + 12345) >> 24);
        expect("fill", gemmary_fill(model, GEMMARY_EMBEDDING, -1, row, 16, bytes, sizeof bytes), GEMMARY_OK);
    }
    return model;
}

int main(void) {
    static float first[VOCAB], logits[VOCAB];
    const int32_t ids[] = {2, VOCAB - 1};
    const gemmary_chunk chunk = {0, 0, 2, 1};
    const int lates[] = {VOCAB, VOCAB / 32, 0}; /* none, half, all of them */
    for (int i = 0; i < 3; i++) {
        gemmary_model *model = model_of(lates[i]);
        expect("forward", gemmary_forward(model, &chunk, 1, ids, i ? logits : first), GEMMARY_OK);
        if (i) expect("the same logits", memcmp(logits, first, sizeof logits), 0);
        gemmary_close(model);
    }
    return failures != 0;
}
