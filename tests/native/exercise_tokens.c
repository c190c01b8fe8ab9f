/* SPDX-License-Identifier: Apache-2.0
 * Everything tokens.h offers, with random vocabularies and texts, valid UTF-8 and not, in memory of just their sizes, for
 * the sanitizers: one vocabulary in several threads, too little room, refused arguments. Ends with 1 after a failure. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokens.h"

enum { VOCABULARIES = 150, TEXTS = 40, THREADS = 3, MOST_PIECES = 90 };

static void expect(const char *what, long got, long wanted) {
    if (got == wanted) return;
    printf("%s: expected %ld, got %ld\n", what, wanted, got);
    exit(1);
}

static unsigned draw(unsigned *seed, unsigned below) {
    *seed = *seed * 1664525 + 1013904223;
    return (*seed >> 8) % below;
}

/* Random signs of an alphabet in which pieces come again; one in 16 texts of any bytes. */
static size_t spell(unsigned *seed, uint8_t *out, size_t room) {
    static const char *const signs[] = {"a", "b", " ", " ", "1", "\n", "", "\xC3\xA9", "\xE5\xA5\xBD", "\xF0\x9F\x99\x82"};
    size_t size = 0, any = draw(seed, 16) == 0;
    for (;;) {
        uint8_t byte = (uint8_t)draw(seed, 256);
        const char *sign = signs[draw(seed, 10)];
        size_t n = any || !*sign ? 1 : strlen(sign); /* the empty one is NUL */
        if (size + n > room) return size;
        memcpy(out + size, any ? (const char *)&byte : sign, n);
        size += n;
    }
}

typedef struct {
    const gemmary_vocabulary *vocabulary;
    unsigned seed;
    uint64_t sum;
} Job;

static void *encode(void *argument) {
    Job *job = argument;
    unsigned seed = job->seed;
    gemmary_encoder *encoder = NULL;
    expect("encoder", gemmary_encoder_open(job->vocabulary, &encoder), GEMMARY_OK);
    for (int i = 0; i < TEXTS; i++) {
        uint8_t letters[800];
        size_t size = spell(&seed, letters, draw(&seed, 8) ? draw(&seed, 30) : draw(&seed, sizeof letters));
        uint8_t *text = malloc(size);
        if (size) memcpy(text, letters, size);
        int32_t *ids = malloc(3 * size * sizeof *ids);
        size_t count = 0, again = 0;
        expect("encode", gemmary_encode(encoder, text, size, ids, 3 * size, &count), GEMMARY_OK);
        expect("some ids", count > 0, size > 0);
        for (size_t k = 0; k < count; k++) job->sum = job->sum * 31 + (uint64_t)ids[k];
        int32_t *exact = malloc(count * sizeof *exact);
        gemmary_status status = gemmary_encode(encoder, text, size, exact, count, &again);
        if (status == GEMMARY_OK) expect("the same ids", again == count && !memcmp(ids, exact, count * sizeof *ids), 1);
        else expect("too little room", status, GEMMARY_BAD_ARGUMENT); /* for unknown ids not joined yet */
        if (count) expect("less room", gemmary_encode(encoder, text, size, exact, count - 1, &again), GEMMARY_BAD_ARGUMENT);
        free(exact);
        free(ids);
        free(text);
    }
    gemmary_encoder_close(encoder);
    return NULL;
}

static void exercise(unsigned seed) {
    uint8_t letters[MOST_PIECES * 12];
    uint32_t offsets[MOST_PIECES + 1] = {0};
    float scores[MOST_PIECES];
    int8_t kinds[MOST_PIECES];
    int32_t byte_ids[256], count = 0, wanted = (int32_t)draw(&seed, MOST_PIECES);
    while (count < wanted) {
        size_t size = spell(&seed, letters + offsets[count], 1 + draw(&seed, 12));
        if (!size) continue;
        offsets[count + 1] = offsets[count] + (uint32_t)size;
        scores[count] = -(float)draw(&seed, 20);
        kinds[count++] = (int8_t)(draw(&seed, 4) ? 1 : draw(&seed, 7));
    }
    for (int32_t i = 0; i < 256; i++) byte_ids[i] = 1000 + i;
    uint8_t *text = malloc(offsets[count]);
    if (count) memcpy(text, letters, offsets[count]);
    gemmary_pieces pieces = {text, offsets, scores, kinds, draw(&seed, 2) ? byte_ids : NULL, count, 2000};
    gemmary_vocabulary *vocabulary = NULL;
    expect("open", gemmary_vocabulary_open(&pieces, &vocabulary), GEMMARY_OK);
    free(text);
    Job jobs[THREADS];
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        jobs[i] = (Job){vocabulary, seed, 0};
        pthread_create(&threads[i], NULL, encode, &jobs[i]);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (int i = 1; i < THREADS; i++) expect("all threads agree", jobs[i].sum == jobs[0].sum, 1);
    gemmary_vocabulary_close(vocabulary);
}

static void refuse(void) {
    uint32_t offsets[] = {0, 1, 2}, backward[] = {0, 2, 1}, empty[] = {0, 0, 2}, later[] = {1, 2, 3};
    float scores[2] = {0};
    int8_t kinds[] = {1, 4};
    gemmary_pieces good = {(const uint8_t *)"ab", offsets, scores, kinds, NULL, 2, 0}, bad[8];
    gemmary_vocabulary *vocabulary = NULL;
    for (int i = 0; i < 8; i++) bad[i] = good;
    bad[0].text = NULL, bad[1].offsets = NULL, bad[2].scores = NULL, bad[3].kinds = NULL;
    bad[4].count = -1, bad[5].offsets = backward, bad[6].offsets = empty, bad[7].offsets = later;
    for (int i = 0; i < 8; i++) expect("bad pieces", gemmary_vocabulary_open(&bad[i], &vocabulary), GEMMARY_BAD_ARGUMENT);
    expect("nothing", gemmary_vocabulary_open(NULL, &vocabulary), GEMMARY_BAD_ARGUMENT);
    expect("nowhere", gemmary_vocabulary_open(&good, NULL), GEMMARY_BAD_ARGUMENT);
    expect("open", gemmary_vocabulary_open(&good, &vocabulary), GEMMARY_OK);
    gemmary_encoder *encoder = NULL;
    size_t count = 0;
    int32_t id;
    expect("no vocabulary", gemmary_encoder_open(NULL, &encoder), GEMMARY_BAD_ARGUMENT);
    expect("encoder", gemmary_encoder_open(vocabulary, &encoder), GEMMARY_OK);
    expect("no encoder", gemmary_encode(NULL, NULL, 0, NULL, 0, &count), GEMMARY_BAD_ARGUMENT);
    expect("no text", gemmary_encode(encoder, NULL, 1, &id, 1, &count), GEMMARY_BAD_ARGUMENT);
    expect("no ids", gemmary_encode(encoder, good.text, 1, NULL, 1, &count), GEMMARY_BAD_ARGUMENT);
    expect("no count", gemmary_encode(encoder, good.text, 1, &id, 1, NULL), GEMMARY_BAD_ARGUMENT);
    expect("empty", gemmary_encode(encoder, NULL, 0, NULL, 0, &count), GEMMARY_OK);
    gemmary_encoder_close(encoder);
    gemmary_vocabulary_close(vocabulary);
    gemmary_encoder_close(NULL);
    gemmary_vocabulary_close(NULL);
}

int main(void) {
    refuse();
    for (unsigned seed = 0; seed < VOCABULARIES; seed++) exercise(seed);
    return 0;
}
