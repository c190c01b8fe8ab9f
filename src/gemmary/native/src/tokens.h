/* SPDX-License-Identifier: Apache-2.0
 * Text to token ids with SentencePiece's byte-pair merging. Explicit state, no globals, no abort.
 *
 *     gemmary_vocabulary_open ─► gemmary_encoder_open ─► gemmary_encode for every text ─► both closed
 *
 * A space is a space in texts and in pieces: who has U+2581 there replaces it before. A vocabulary never changes and may
 * be used by any number of threads; an encoder, which remembers words, by one at a time.
 */
#ifndef GEMMARY_TOKENS_H
#define GEMMARY_TOKENS_H

#include "gemmary.h"

typedef struct gemmary_pieces {
    const uint8_t *text;     /* all pieces in UTF-8, one after the other */
    const uint32_t *offsets; /* count + 1: where each piece begins, and where the last ends */
    const float *scores;     /* the pair whose piece has the highest score is merged first, the leftmost of equals */
    const int8_t *kinds;     /* 1 is merged, 4 is taken out whole before; others are never found in a text */
    const int32_t *byte_ids; /* 256 ids for what is in no piece, or NULL: then one unknown_id for a run of it */
    int32_t count, unknown_id;
} gemmary_pieces;

typedef struct gemmary_vocabulary gemmary_vocabulary;
typedef struct gemmary_encoder gemmary_encoder;

/* Make a vocabulary of pieces of 1 to 65535 bytes, which are copied; *out is set on success only. */
GEMMARY_API gemmary_status gemmary_vocabulary_open(const gemmary_pieces *pieces, gemmary_vocabulary **out);

/* Make an encoder, which keeps up to 8 MiB of words it has met; *out is set on success only. */
GEMMARY_API gemmary_status gemmary_encoder_open(const gemmary_vocabulary *vocabulary, gemmary_encoder **out);

/* Write the ids of a text to `ids` and their number to *count. One id for each byte is always room enough, or three
 * where no piece of kind 1 or 4 is the space; GEMMARY_BAD_ARGUMENT when there is too little. Bytes that are not UTF-8
 * give some ids. GEMMARY_NO_MEMORY as well for a word, which is cut nowhere, of 4 GiB. */
GEMMARY_API gemmary_status gemmary_encode(gemmary_encoder *encoder, const uint8_t *text, size_t size, int32_t *ids,
                                          size_t room, size_t *count);

/* Free everything; NULL is fine. */
GEMMARY_API void gemmary_encoder_close(gemmary_encoder *encoder);
GEMMARY_API void gemmary_vocabulary_close(gemmary_vocabulary *vocabulary);

#endif
