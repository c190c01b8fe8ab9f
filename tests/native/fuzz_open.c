/* SPDX-License-Identifier: Apache-2.0
 * A fuzzer of gemmary.h: the bytes say a configuration, then calls in any order with sizes that fit or do not, on
 * buffers of exactly the size that the header promises. For libFuzzer; CONTRIBUTING.md says how to run it. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "gemmary.h"

enum { LAYERS = 3, SLOTS = 3, MOST = 1 << 20 }; /* MOST: bytes or numbers that are worth the time */

typedef struct { /* what is left of the input; zeros after its end */
    const uint8_t *at, *end;
} Input;

static int32_t byte(Input *in) { return in->at < in->end ? *in->at++ : 0; }

static int32_t word(Input *in) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) value = value << 8 | (uint32_t)byte(in);
    return (int32_t)value;
}

static int32_t size(Input *in, int32_t most) { return 1 + byte(in) % most; }

/* A number that fits, or one in eight times any. */
static int64_t or_any(Input *in, int64_t fits) {
    if (byte(in) % 8) return fits;
    return byte(in) % 2 ? word(in) : (int64_t)((uint64_t)word(in) << 32 | (uint32_t)word(in));
}

static gemmary_config config_of(Input *in, int32_t windows[LAYERS]) {
    static const char *const kernels[] = {NULL,         "portable", "avx2",    "avx512",
                                          "avx512bf16", "i8mm",     "dotprod", "neon",   "none"};
    static const int32_t dims[] = {256, 20, 512, 32};
    gemmary_config c = {
        .abi = GEMMARY_ABI, .vocab_size = size(in, 70), .num_layers = size(in, LAYERS), .model_dim = dims[byte(in) % 4],
        .num_kv_heads = size(in, 2), .head_dim = 2 * size(in, 20), .mlp_dim = byte(in) % 2 ? 256 : size(in, 100),
        .post_norm = byte(in) % 2, .qk_norm = byte(in) % 2, .norm_plus_one = byte(in) % 2, .norm_eps = 1e-6f,
        .query_scale = 0.3f, .rope_base = 1e6f, .rope_base_local = 1e4f, .rope_scale = 8,
        .attn_softcap = byte(in) % 2 ? 50 : 0, .final_softcap = byte(in) % 2 ? 30 : 0, .num_slots = size(in, SLOTS),
        .max_length = size(in, 60), .chunk_length = size(in, 20), .num_threads = size(in, 2), .windows = windows,
        .kernels = kernels[byte(in) % (sizeof kernels / sizeof *kernels)]};
    c.num_heads = c.num_kv_heads * size(in, 3);
    for (int i = 0; i < LAYERS; i++) windows[i] = (int32_t)or_any(in, byte(in) % 20);
    size_t field = (size_t)byte(in); /* of the numbers, which stand before the pointers: one becomes anything */
    int32_t value = word(in);
    if (field < offsetof(gemmary_config, windows) / 4) memcpy((char *)&c + 4 * field, &value, 4);
    if (c.num_layers > LAYERS) c.windows = calloc(4096, sizeof *c.windows); /* the most layers that are let in */
    return c;
}

typedef struct {
    int32_t weight, layer, type;
    int64_t rows, columns, row_bytes;
} Shape;

static Shape shape_of(Input *in, const gemmary_config *c, int32_t weight, int32_t layer) {
    static const struct { int32_t type, length, bytes; } types[] = {
        {GEMMARY_F32, 1, 4},     {GEMMARY_F16, 1, 2},     {GEMMARY_BF16, 1, 2},      {GEMMARY_Q8_0, 32, 34},
        {GEMMARY_Q4_0, 32, 18},  {GEMMARY_Q4_1, 32, 20},  {GEMMARY_Q5_0, 32, 22},    {GEMMARY_Q5_1, 32, 24},
        {GEMMARY_Q4_K, 256, 144}, {GEMMARY_Q5_K, 256, 176}, {GEMMARY_Q6_K, 256, 210}};
    int64_t dim = c->model_dim, heads = (int64_t)c->num_heads * c->head_dim, keys = (int64_t)c->num_kv_heads * c->head_dim;
    int64_t rows[] = {c->vocab_size, 1, 1, heads, keys, keys, dim, 1, 1, 1, 1, c->mlp_dim, c->mlp_dim, dim, 1};
    int64_t columns[] = {dim, dim, dim, dim, dim, dim, heads, c->head_dim, c->head_dim, dim, dim, dim, dim, c->mlp_dim, dim};
    size_t kind = (size_t)byte(in) % (sizeof types / sizeof *types);
    if (rows[weight] == 1 || columns[weight] % types[kind].length) kind = 0;
    int32_t of = weight == GEMMARY_EMBEDDING || weight == GEMMARY_FINAL_NORM ? -1 : layer;
    return (Shape){weight, of, types[kind].type, rows[weight], columns[weight],
                   columns[weight] / types[kind].length * types[kind].bytes};
}

static void fill(Input *in, gemmary_model *m, const Shape *s, int64_t first, int64_t rows, int64_t bytes) {
    if (bytes < 0 || bytes > MOST) return;
    uint8_t *buffer = malloc((size_t)bytes), kind = (uint8_t)byte(in);
    for (int64_t i = 0; buffer && i < bytes; i++) buffer[i] = kind % 4 && i % 4 == 3 ? 0x3c : (uint8_t)byte(in);
    gemmary_fill(m, (gemmary_weight)s->weight, s->layer, first, rows, buffer, (size_t)bytes);
    free(buffer);
}

static void load(Input *in, gemmary_model *m, const gemmary_config *c) {
    for (int32_t weight = 0; weight < GEMMARY_NUM_WEIGHTS; weight++)
        for (int32_t layer = 0; layer < c->num_layers && layer < LAYERS; layer++) {
            Shape s = shape_of(in, c, weight, layer);
            if (s.rows > MOST || s.row_bytes > MOST) return;
            gemmary_declare(m, (gemmary_weight)weight, s.layer, (gemmary_type)s.type, s.rows, s.columns);
            fill(in, m, &s, 0, s.rows, s.rows * s.row_bytes);
        }
}

static void declare_or_fill(Input *in, gemmary_model *m, const gemmary_config *c, int fills) {
    Shape s = shape_of(in, c, byte(in) % GEMMARY_NUM_WEIGHTS, byte(in) % LAYERS);
    s.weight = (int32_t)or_any(in, s.weight);
    s.layer = (int32_t)or_any(in, s.layer);
    s.rows = or_any(in, s.rows);
    if (fills) {
        int64_t first = or_any(in, byte(in) % 3 * 16), rows = or_any(in, size(in, 40));
        bool is_small = rows >= 0 && rows <= MOST && s.row_bytes <= MOST;
        fill(in, m, &s, first, rows, or_any(in, is_small ? rows * s.row_bytes : 0));
    } else {
        gemmary_declare(m, (gemmary_weight)s.weight, s.layer, (gemmary_type)or_any(in, s.type), s.rows, or_any(in, s.columns));
    }
}

static void run(Input *in, gemmary_model *m, const gemmary_config *c, int scores) {
    gemmary_chunk chunks[SLOTS + 1];
    int32_t count = (int32_t)or_any(in, size(in, SLOTS + 1)), given = count < 0 || count > SLOTS + 1 ? SLOTS + 1 : count;
    size_t tokens = 0, wanted = 0;
    for (int32_t i = 0; i < given; i++) {
        chunks[i] = (gemmary_chunk){(int32_t)or_any(in, i), (int32_t)or_any(in, byte(in) % 60), (int32_t)or_any(in, size(in, 20)), 0};
        chunks[i].num_logits = (int32_t)or_any(in, byte(in) % 3);
        if (chunks[i].length < 1 || chunks[i].length > c->chunk_length) continue;
        tokens += (size_t)chunks[i].length;
        if (chunks[i].num_logits > 0 && chunks[i].num_logits <= chunks[i].length) wanted += (size_t)chunks[i].num_logits;
    }
    if (tokens > MOST || c->vocab_size > MOST || c->model_dim > 4096 || c->mlp_dim > 4096 || c->max_length > MOST) return;
    int32_t *ids = malloc(tokens * sizeof *ids), *targets = malloc(tokens * sizeof *targets);
    float *logits = malloc(wanted * (size_t)c->vocab_size * sizeof *logits), *log_probs = malloc(tokens * sizeof *log_probs);
    uint8_t *is_greedy = malloc(tokens);
    for (size_t i = 0; i < tokens; i++) {
        ids[i] = (int32_t)(byte(in) % 64 ? i % (size_t)c->vocab_size : (size_t)word(in));
        targets[i] = byte(in) % 64 ? 0 : word(in);
    }
    if (scores) gemmary_score(m, chunks, count, ids, targets, log_probs, is_greedy);
    else if (gemmary_forward(m, chunks, count, ids, logits) == GEMMARY_OK) gemmary_candidates(m, chunks, count, ids, logits);
    free(ids), free(targets), free(logits), free(log_probs), free(is_greedy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t num_bytes) {
    Input in = {data, data + num_bytes};
    int32_t windows[LAYERS];
    gemmary_config c = config_of(&in, windows);
    gemmary_model *m = NULL;
    if (c.windows && gemmary_open(&c, &m) == GEMMARY_OK) {
        while (in.at < in.end) switch (byte(&in) % 5) {
            case 0: declare_or_fill(&in, m, &c, 0); break;
            case 1: declare_or_fill(&in, m, &c, 1); break;
            case 2: load(&in, m, &c); break;
            case 3: run(&in, m, &c, 0); break;
            default: run(&in, m, &c, 1);
            }
        if (gemmary_weight_bytes(m) + gemmary_cache_bytes(m) < 1 || !gemmary_kernels_used(m)) abort();
    }
    gemmary_close(m);
    if (c.windows != windows) free((void *)c.windows);
    return 0;
}

#ifdef RANDOM_INPUTS /* as many, without a fuzzer: that the sanitizers' test may run this too */
int main(void) {
    uint8_t data[512];
    uint32_t seed = 1;
    for (int i = 0; i < RANDOM_INPUTS; i++) {
        for (size_t at = 0; at < sizeof data; at++) data[at] = (uint8_t)((seed = seed * 1103515245 + 12345) >> 24);
        LLVMFuzzerTestOneInput(data, sizeof data);
    }
    return 0;
}
#endif
