/* SPDX-License-Identifier: Apache-2.0
 * Gemmary's native engine: the forward pass of Gemma 1, 2 and 3 on a CPU. Explicit state, no globals, no abort.
 *
 *     gemmary_open ─► gemmary_declare, gemmary_fill for every weight ─► gemmary_forward / _score / _embed ─► gemmary_close
 *
 * Letters as in gemmary/base/dims.py: V vocabulary, L layers, D model, N heads, K key-value heads, H head, F mlp.
 * A model may be used by one thread at a time; filling different rows may be done by several threads at once.
 */
#ifndef GEMMARY_H
#define GEMMARY_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define GEMMARY_API __attribute__((visibility("default")))
#else
#define GEMMARY_API
#endif

#define GEMMARY_ABI 5 /* changes with every change of this file that a caller must know of */

typedef enum gemmary_status {
    GEMMARY_OK = 0,
    GEMMARY_BAD_CONFIG = 1,    /* a size or feature out of range, or sizes that do not fit together */
    GEMMARY_BAD_WEIGHT = 2,    /* a weight that does not exist, of a wrong type, shape or number of bytes, or twice */
    GEMMARY_BAD_ARGUMENT = 3,  /* a slot, position, token, target or pointer out of range */
    GEMMARY_NOT_READY = 4,     /* a weight is missing */
    GEMMARY_NO_MEMORY = 5,     /* memory or threads are exhausted */
    GEMMARY_NOT_FINITE = 7,    /* a weight holds NaN or infinity */
    GEMMARY_NO_KERNELS = 6,    /* kernels of that name were not built, or this processor lacks their instructions */
} gemmary_status;

typedef enum gemmary_type { /* how the bytes given to gemmary_fill are read; the numbers are ggml's */
    GEMMARY_F32 = 0,
    GEMMARY_F16 = 1,
    GEMMARY_Q4_0 = 2,
    GEMMARY_Q4_1 = 3,
    GEMMARY_Q5_0 = 6,
    GEMMARY_Q5_1 = 7,
    GEMMARY_Q8_0 = 8,
    GEMMARY_Q4_K = 12,
    GEMMARY_Q5_K = 13,
    GEMMARY_Q6_K = 14,
    GEMMARY_BF16 = 30,
} gemmary_type;

typedef enum gemmary_weight {
    GEMMARY_EMBEDDING,           /* V D, also the output head */
    GEMMARY_FINAL_NORM,          /* D; this and the first belong to no layer: pass layer -1 */
    GEMMARY_ATTENTION_NORM,      /* D */
    GEMMARY_QUERY,               /* (N H) D */
    GEMMARY_KEY,                 /* (K H) D */
    GEMMARY_VALUE,               /* (K H) D */
    GEMMARY_OUTPUT,              /* D (N H) */
    GEMMARY_QUERY_NORM,          /* H, with qk_norm */
    GEMMARY_KEY_NORM,            /* H, with qk_norm */
    GEMMARY_ATTENTION_POST_NORM, /* D, with post_norm */
    GEMMARY_MLP_NORM,            /* D */
    GEMMARY_GATE,                /* F D */
    GEMMARY_UP,                  /* F D */
    GEMMARY_DOWN,                /* D F */
    GEMMARY_MLP_POST_NORM,       /* D, with post_norm */
    GEMMARY_NUM_WEIGHTS,
} gemmary_weight;

typedef struct gemmary_config {
    int32_t abi; /* GEMMARY_ABI */
    int32_t vocab_size, num_layers, model_dim, num_heads, num_kv_heads, head_dim, mlp_dim;
    int32_t post_norm, qk_norm, norm_plus_one; /* 0 or 1 */
    float norm_eps, query_scale, rope_base, rope_base_local, rope_scale;
    float attn_softcap, final_softcap; /* 0 is none */
    int32_t num_slots;                 /* sequences in flight */
    int32_t max_length;                /* positions of a slot */
    int32_t chunk_length;              /* most tokens of one slot in one call */
    int32_t num_threads;               /* the caller's included */
    const int32_t *windows;            /* L windows; 0 attends to everything */
    const char *kernels;               /* a name that gemmary_kernels lists, or NULL for the best that runs here */
} gemmary_config;

typedef struct gemmary_chunk { /* tokens of one slot, which stand at positions start, start + 1, ... */
    int32_t slot, start, length;
    int32_t num_logits; /* how many of the last tokens gemmary_forward gives logits after, 0 to length */
} gemmary_chunk;

typedef struct gemmary_model gemmary_model;

/* Make a model without weights; *out is set on success only. */
GEMMARY_API gemmary_status gemmary_open(const gemmary_config *config, gemmary_model **out);

/* Say how a weight will be given, and make room for it. Norms must be F32. */
GEMMARY_API gemmary_status gemmary_declare(gemmary_model *model, gemmary_weight weight, int32_t layer,
                                           gemmary_type type, int64_t rows, int64_t columns);

/* Give `rows` rows of a declared weight from `first`, a multiple of 16, each row once; they are repacked, not kept.
 * Matrices given as floats become int8 in groups of 32. */
GEMMARY_API gemmary_status gemmary_fill(gemmary_model *model, gemmary_weight weight, int32_t layer, int64_t first,
                                        int64_t rows, const void *bytes, size_t num_bytes);

/* Run chunks of distinct slots; `ids` holds their tokens one chunk after another. Writes the V logits after each
 * chunk's last num_logits tokens to `logits`. */
GEMMARY_API gemmary_status gemmary_forward(gemmary_model *model, const gemmary_chunk *chunks, int32_t num_chunks,
                                           const int32_t *ids, float *logits);

/* The same, but tokens that are not the most probable may have -INFINITY. An embedding of eight bits is read in two
 * stages, the lower halves of its codes for the few tokens that the upper ones leave possible. That the most probable
 * one is missed has a probability below 1e-9: see head.c. */
GEMMARY_API gemmary_status gemmary_candidates(gemmary_model *model, const gemmary_chunk *chunks, int32_t num_chunks,
                                              const int32_t *ids, float *logits);

/* Run chunks and judge for every token the target said to follow it: its log-probability, and whether it is the most
 * probable one (the lowest id of equals). */
GEMMARY_API gemmary_status gemmary_score(gemmary_model *model, const gemmary_chunk *chunks, int32_t num_chunks,
                                         const int32_t *ids, const int32_t *targets, float *log_probs,
                                         uint8_t *is_greedy);

/* Run chunks; of each the sum over its tokens of what the head is given after them, normed: D numbers to `sums`. */
GEMMARY_API gemmary_status gemmary_embed(gemmary_model *model, const gemmary_chunk *chunks, int32_t num_chunks,
                                         const int32_t *ids, float *sums);

/* Free everything; NULL is fine. */
GEMMARY_API void gemmary_close(gemmary_model *model);

/* Bytes a model holds: of weights, of those that gemmary_candidates hardly reads, and of the key-value cache. */
GEMMARY_API size_t gemmary_weight_bytes(const gemmary_model *model);
GEMMARY_API size_t gemmary_screened_bytes(const gemmary_model *model);
GEMMARY_API size_t gemmary_cache_bytes(const gemmary_model *model);

/* GEMMARY_ABI of the library that was loaded. */
GEMMARY_API int32_t gemmary_abi(void);

/* The kernels a model uses; and the name of the i-th set that was built (NULL after the last), best first. */
GEMMARY_API const char *gemmary_kernels_used(const gemmary_model *model);
GEMMARY_API const char *gemmary_kernels(int32_t i);

#endif
