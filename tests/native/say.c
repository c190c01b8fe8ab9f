/* SPDX-License-Identifier: Apache-2.0
 * Run a model without Python, for processors that are only emulated:
 *
 *     say model kernels > logits       ("" for the best kernels; their name goes to stderr)
 *
 * The model is a file of little-endian numbers, in the order in which they are needed:
 *
 *     gemmary_config up to its pointers | a window for each layer
 *     for every weight: int64 weight, layer, type, rows, columns, number of bytes | the bytes          (-1 ends them)
 *     for every prompt: int32 tokens, tokens to add greedily, tokens at a time | the tokens
 *
 * Writes V logits after each part of a prompt and each added token; ends with the status of what failed. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "gemmary.h"

static bool get(FILE *file, void *to, size_t bytes) { return fread(to, 1, bytes, file) == bytes; }

static int load(FILE *file, gemmary_model *model) {
    int64_t head[6]; /* weight, layer, type, rows, columns, bytes */
    while (get(file, head, sizeof *head) && head[0] >= 0) {
        if (!get(file, head + 1, sizeof head - sizeof *head)) return GEMMARY_BAD_ARGUMENT;
        void *bytes = malloc((size_t)head[5]);
        int status = bytes && get(file, bytes, (size_t)head[5]) ? GEMMARY_OK : GEMMARY_BAD_ARGUMENT;
        if (!status) status = gemmary_declare(model, (int)head[0], (int32_t)head[1], (int)head[2], head[3], head[4]);
        if (!status) status = gemmary_fill(model, (int)head[0], (int32_t)head[1], 0, head[3], bytes, (size_t)head[5]);
        free(bytes);
        if (status) return status;
    }
    return GEMMARY_OK;
}

static int say(FILE *file, gemmary_model *model, const gemmary_config *config) {
    int32_t size[3], vocab = config->vocab_size, status = GEMMARY_OK; /* tokens, more, at a time */
    int32_t *ids = calloc((size_t)config->max_length, sizeof *ids);
    float *logits = calloc((size_t)vocab, sizeof *logits);
    while (!status && ids && logits && get(file, size, sizeof size)) {
        bool fits = size[0] + size[1] <= config->max_length;
        if (!fits || !get(file, ids, (size_t)size[0] * sizeof *ids)) status = GEMMARY_BAD_ARGUMENT;
        for (int32_t at = 0, end = size[0]; !status && at < end;) {
            gemmary_chunk chunk = {0, at, end - at < size[2] ? end - at : size[2], 1};
            status = gemmary_forward(model, &chunk, 1, ids + at, logits);
            if (!status) fwrite(logits, sizeof *logits, (size_t)vocab, stdout);
            at += chunk.length;
            if (at < end || end == size[0] + size[1]) continue;
            ids[end] = 0;
            for (int32_t id = 1; id < vocab; id++)
                if (logits[id] > logits[ids[end]]) ids[end] = id;
            end++;
        }
    }
    free(ids);
    free(logits);
    return status;
}

int main(int count, char **arguments) {
    FILE *file = count == 3 ? fopen(arguments[1], "rb") : NULL;
    gemmary_config config = {0};
    if (!file || !get(file, &config, offsetof(gemmary_config, windows))) return GEMMARY_BAD_ARGUMENT;
    int32_t *windows = calloc((size_t)config.num_layers, sizeof *windows);
    gemmary_model *model = NULL;
    config.windows = windows;
    config.kernels = *arguments[2] ? arguments[2] : NULL;
    bool is_whole = windows && get(file, windows, (size_t)config.num_layers * sizeof *windows);
    int status = is_whole ? gemmary_open(&config, &model) : GEMMARY_BAD_ARGUMENT;
    if (!status) status = load(file, model);
    if (!status) fputs(gemmary_kernels_used(model), stderr);
    if (!status) status = say(file, model, &config);
    gemmary_close(model);
    free(windows);
    fclose(file);
    return status;
}
