/* SPDX-License-Identifier: Apache-2.0
 * The model as the engine holds it: packed weights, rings of keys and values, and room for one pass. */
#ifndef GEMMARY_MODEL_H
#define GEMMARY_MODEL_H

#include "internal.h"

typedef struct { /* keys and values of one layer, bfloat16, laid out so that 16 positions or numbers are one vector */
    size_t length;    /* positions, a multiple of 16; position p stands at p % length */
    uint16_t *keys;   /* [slot][kv head][length / 16][H / 2][16 positions][2] */
    uint16_t *values; /* [slot][kv head][H / 16][length / 2][16 numbers][2] */
} Ring;

typedef struct {
    size_t window; /* max_length where there is none */
    bool is_local;
    Ring ring;
    Matrix query, key, value, output, gate, up, down;
    float *attention_norm, *query_norm, *key_norm, *attention_post_norm, *mlp_norm, *mlp_post_norm; /* 1 + w */
} Layer;

typedef struct { /* query rows r = token * G + head of one chunk that attend together */
    size_t chunk, row; /* the chunk, and the row of its first token */
    size_t first, rows;
} Tile;

enum { TILE_ROWS = 24, FEW_ROWS = 3 };
enum { HEAD_BLOCKS = 16, MOST_BLOCKS = 32 }; /* at a time where rows are few, of the head and of any matrix */

typedef struct { /* room for `rows` tokens, and what each thread needs of its own */
    size_t rows, width; /* width: floats of the widest row */
    float *x;           /* [row][D] */
    float *wide;        /* [row][width] queries, keys, values */
    float *second;      /* [row][width] attention's output; then what is added to x */
    float *angles;      /* [row][4][H / 2] cosines and sines, local and global */
    Activations plain, gated; /* gated: gelu(gate) * up, made while plain is read */
    Tile *tiles;
    size_t num_tiles;
    gemmary_chunk *ends; /* [slot] what is left of the chunks in the last layer */
    float *own; /* [thread][own_floats] */
    size_t own_floats;
} Room;

struct gemmary_model {
    gemmary_config config; /* its pointers are not kept */
    size_t head_width;     /* H rounded up to 16 */
    size_t group_heads;    /* G */
    const Kernels *kernels;
    Team *team;
    Matrix embedding;
    float *final_norm;
    Layer *layers;
    Room room;
    size_t cache_bytes;
    bool is_ready; /* every weight was declared */
    atomic_int late_pages; /* see gemmary_pages_get */
};

typedef struct { /* one pass over at most room.rows tokens: logits where chunks want them, judgements, or sums */
    gemmary_model *m;
    const gemmary_chunk *chunks;
    const Tile *tiles;
    size_t num_chunks, rows, num_logits, num_tiles;
    const int32_t *ids, *targets;
    float *logits, *log_probs, *sums;
    uint8_t *is_greedy;
    bool screens; /* logits of those tokens alone that may be the most probable */
} Pass;

static inline size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

/* attention.c: queries and out begin with the chunk's first token, each token's heads side by side */
void gemmary_store(const gemmary_model *m, const Ring *ring, size_t slot, size_t position, const float *keys,
                   const float *values);
void gemmary_attend(const gemmary_model *m, const Layer *layer, const gemmary_chunk *chunk, const Tile *tile,
                    size_t kv_head, const float *queries, size_t query_stride, float *out, size_t out_stride,
                    float *own);
size_t gemmary_attend_floats(const gemmary_model *m);
bool gemmary_ring_make(gemmary_model *m, Ring *ring, size_t length);
void gemmary_ring_free(const gemmary_model *m, Ring *ring);

/* gemma.c */
void gemmary_multiply(const Kernels *k, const Matrix *w, const Activations *x, size_t rows, size_t first, size_t count,
                      float *y, size_t stride);
size_t gemmary_take_rows(const Pass *p, size_t *first);
Activations gemmary_activations(const Pass *p, const Activations *made, const Matrix *w);

/* head.c */
void gemmary_head(const Pass *p, float *own);
void gemmary_judge(const Pass *p, float *own);
void gemmary_screen(const Pass *p, float *own);
void gemmary_sum(const Pass *p);
bool gemmary_can_screen(const Matrix *w);

#endif
