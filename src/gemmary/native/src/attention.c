/* SPDX-License-Identifier: Apache-2.0
 * Attention over the rings. Both of its products are a few rows of float32 times bfloat16 rows of 16, each two of them
 * interleaved; where an instruction multiplies bfloat16 (Kernels.halve) the few rows are rounded to it too:
 *
 *     scores [row][16 positions] = query [row][H] · keys [H][16 positions]      a block of 16 positions at a time
 *     out    [row][16 numbers]   = shares [row][S] · values [S][16 numbers]     a strip of 16 numbers at a time
 *
 * Positions are counted, never stored: block b of 16 positions stands at block b % (length / 16) of the ring.
 */
#include "model.h"

static size_t ring_numbers(const gemmary_model *m, size_t length) { /* of one kv head's keys, or values */
    return length * m->head_width;
}

bool gemmary_ring_make(gemmary_model *m, Ring *ring, size_t length) {
    ring->length = round_up(length, BLOCK);
    size_t heads = (size_t)m->config.num_slots * (size_t)m->config.num_kv_heads;
    size_t bytes = heads * ring_numbers(m, ring->length) * sizeof(uint16_t);
    m->cache_bytes += 2 * bytes;
    ring->keys = gemmary_pages(bytes, false); /* a short text uses a little of every head's */
    ring->values = gemmary_pages(bytes, false);
    return ring->keys && ring->values;
}

void gemmary_ring_free(const gemmary_model *m, Ring *ring) {
    size_t heads = (size_t)m->config.num_slots * (size_t)m->config.num_kv_heads;
    size_t bytes = heads * ring_numbers(m, ring->length) * sizeof(uint16_t);
    gemmary_pages_free(ring->keys, bytes);
    gemmary_pages_free(ring->values, bytes);
}

void gemmary_store(const gemmary_model *m, const Ring *ring, size_t slot, size_t position, const float *keys,
                   const float *values) {
    size_t kv_heads = (size_t)m->config.num_kv_heads, head_dim = (size_t)m->config.head_dim;
    size_t place = position % ring->length;
    for (size_t head = 0; head < kv_heads; head++) {
        size_t start = (slot * kv_heads + head) * ring_numbers(m, ring->length);
        uint16_t *k = ring->keys + start + place / BLOCK * BLOCK * m->head_width + place % BLOCK * 2;
        uint16_t *v = ring->values + start + place / 2 * 2 * BLOCK + place % 2;
        for (size_t h = 0; h < head_dim; h++) k[h / 2 * 2 * BLOCK + h % 2] = to_bf16(keys[head * head_dim + h]);
        for (size_t h = 0; h < head_dim; h += BLOCK)
            for (size_t i = 0; i < BLOCK && h + i < head_dim; i++)
                v[h * ring->length + 2 * i] = to_bf16(values[head * head_dim + h + i]);
    }
}

size_t gemmary_attend_floats(const gemmary_model *m) {
    size_t longest = 0;
    for (int32_t i = 0; i < m->config.num_layers; i++)
        if (m->layers[i].ring.length > longest) longest = m->layers[i].ring.length;
    return TILE_ROWS * (2 * m->head_width + longest + BLOCK);
}

/* Rows r of a tile in the token-major arrays of all heads. */
static size_t row_start(const gemmary_model *m, size_t row, size_t kv_head, size_t stride) {
    size_t head = kv_head * m->group_heads + row % m->group_heads;
    return row / m->group_heads * stride + head * (size_t)m->config.head_dim;
}

/* Scores of positions outside a row's window become 0, the others shares that sum to the returned number. */
static float shares(const gemmary_model *m, size_t window, size_t position, size_t base, float *scores, size_t width) {
    size_t first = position + 1 > window ? position + 1 - window : 0, end = position + 1 - base;
    first -= base;
    memset(scores, 0, first * sizeof *scores);
    memset(scores + end, 0, (width - end) * sizeof *scores);
    return m->kernels->softmax(scores + first, end - first, m->config.attn_softcap);
}

void gemmary_attend(const gemmary_model *m, const Layer *layer, const gemmary_chunk *chunk, const Tile *tile,
                    size_t kv_head, const float *queries, size_t query_stride, float *out, size_t out_stride,
                    float *own) {
    const Ring *ring = &layer->ring;
    size_t dim = (size_t)m->config.head_dim, width = m->head_width, rows = tile->rows, start = (size_t)chunk->start;
    size_t first_token = start + tile->first / m->group_heads;
    size_t last_token = start + (tile->first + rows - 1) / m->group_heads;
    size_t lowest = first_token + 1 > layer->window ? first_token + 1 - layer->window : 0;
    size_t block = lowest / BLOCK, blocks = last_token / BLOCK - block + 1, ring_blocks = ring->length / BLOCK;
    size_t stride = blocks * BLOCK;
    float *q = own, *o = q + TILE_ROWS * width, *scores = o + TILE_ROWS * width;
    size_t head = ((size_t)chunk->slot * (size_t)m->config.num_kv_heads + kv_head) * ring_numbers(m, ring->length);

    for (size_t i = 0; i < rows; i++) {
        memcpy(q + i * dim, queries + row_start(m, tile->first + i, kv_head, query_stride), dim * sizeof *q);
        if (m->kernels->halve) m->kernels->halve(q + i * dim, dim);
    }
    for (size_t b = 0; b < blocks; b++) {
        const uint16_t *keys = ring->keys + head + (block + b) % ring_blocks * BLOCK * width;
        m->kernels->mix(scores + b * BLOCK, stride, q, dim, keys, rows, dim, false);
    }
    float sums[TILE_ROWS];
    for (size_t i = 0; i < rows; i++) {
        size_t position = start + (tile->first + i) / m->group_heads;
        sums[i] = shares(m, layer->window, position, block * BLOCK, scores + i * stride, stride);
        if (m->kernels->halve) m->kernels->halve(scores + i * stride, stride);
    }
    for (size_t b = 0, count; b < blocks; b += count) { /* runs of the ring: to its end, and on from its beginning */
        size_t place = (block + b) % ring_blocks;
        count = ring_blocks - place < blocks - b ? ring_blocks - place : blocks - b;
        for (size_t strip = 0; strip < width / BLOCK; strip++) {
            const uint16_t *values = ring->values + head + (strip * ring->length + place * BLOCK) * BLOCK;
            m->kernels->mix(o + strip * BLOCK, width, scores + b * BLOCK, stride, values, rows, count * BLOCK, b > 0);
        }
    }
    for (size_t i = 0; i < rows; i++) {
        float *to = out + row_start(m, tile->first + i, kv_head, out_stride);
        for (size_t h = 0; h < dim; h++) to[h] = o[i * width + h] / sums[i];
    }
}
