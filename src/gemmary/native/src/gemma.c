/* SPDX-License-Identifier: Apache-2.0
 * Gemma's forward pass. All threads walk through the same steps; the rows or blocks of each are shared among them.
 *
 *     ids ─► embed ─► [ x += norm(attention(norm x)), x += norm(mlp(norm x)) ] × L ─► norm ─► embedding ─► logits
 *
 *     step            shared by         reads                writes
 *     rotations       tokens            positions            angles
 *     (prepare        tokens            x                    plain: norm x as int8) twice a layer
 *     project         blocks            plain                wide: queries | keys | values
 *     turn            tokens            wide                 wide, the rings
 *     (narrow         one thread        x, wide              x, wide: the rows that go on) in the last layer
 *     attend          tiles × kv heads  wide, the rings      second
 *     quantize        tokens            second               plain: attention's output as int8
 *     gate            blocks            plain                gated: gelu(gate) * up as int8
 *     project         blocks            plain; gated         second: what is added to x
 */
#include <math.h>

#include "model.h"

enum { STREAM_ROWS = 16 };

/* y[row][blocks of w] = w times the activations, for a share of the blocks */
void gemmary_multiply(const Kernels *k, const Matrix *w, const Activations *x, size_t rows, size_t first, size_t count,
                      float *y, size_t stride) {
    if (rows <= FEW_ROWS) { /* a block stays in the first cache for all of them, and is not worth unpacking */
        for (size_t b = 0; b < count; b++)
            for (size_t row = 0; row < rows; row++) k->matvec(w, first + b, x, row, y + row * stride + b * BLOCK);
        return;
    }
    _Alignas(VECTOR) Panel panels[PANEL_BLOCKS];
    const size_t most = rows <= STREAM_ROWS ? 1 : PANEL_BLOCKS; /* for few rows blocks are read as they stand in memory */
    for (size_t from = 0, blocks; from < count; from += blocks) {
        blocks = count - from < most ? count - from : most;
        for (size_t group = 0; group < w->groups; group += PANEL_GROUPS) {
            size_t groups = w->groups - group < PANEL_GROUPS ? w->groups - group : PANEL_GROUPS;
            for (size_t b = 0; b < blocks; b++) k->unpack(w, first + from + b, group, groups, &panels[b]);
            for (size_t row = 0; row < rows; row += k->tile_rows) {
                size_t some = rows - row < k->tile_rows ? rows - row : k->tile_rows;
                for (size_t b = 0; b < blocks; b++)
                    k->tile(w, &panels[b], group, groups, x, row, some, y + row * stride + (from + b) * BLOCK, stride);
            }
        }
    }
}

/* The next share of a loop over blocks: few at a time when a panel holds them, more when one row is quickly done. It is
 * a number of groups of the matrix that takes the products as its columns. */
static size_t take_blocks(const Pass *p, size_t *first, size_t total) {
    size_t share = total / (8 * (size_t)gemmary_team_size(p->m->team));
    size_t count = p->rows > 1 ? PANEL_BLOCKS : share < 2 ? 2 : share > MOST_BLOCKS ? MOST_BLOCKS : share / 2 * 2;
    return gemmary_team_take(p->m->team, count, first, total);
}

/* The next share of a loop over rows: of many as many as share lines of the activations, or of a ring. */
size_t gemmary_take_rows(const Pass *p, size_t *first) {
    size_t count = p->rows < 2 * BLOCK * (size_t)gemmary_team_size(p->m->team) ? 1 : BLOCK;
    return gemmary_team_take(p->m->team, count, first, p->rows);
}

/* Activations of a pass laid out for a matrix. */
Activations gemmary_activations(const Pass *p, const Activations *made, const Matrix *w) {
    Activations x = *made;
    x.groups = w->groups;
    x.lanes = p->rows <= FEW_ROWS ? 1 : p->m->kernels->lanes;
    x.columns = (w->groups / 2 * 2 + 1) * GROUP; /* an odd number, so that rows share no set of a cache */
    return x;
}

static size_t chunk_of(const Pass *p, size_t row, size_t *before) {
    size_t chunk = 0;
    for (*before = 0; row >= *before + (size_t)p->chunks[chunk].length; chunk++)
        *before += (size_t)p->chunks[chunk].length;
    return chunk;
}

static size_t position_of(const Pass *p, size_t row, size_t *slot) {
    size_t before, chunk = chunk_of(p, row, &before);
    *slot = (size_t)p->chunks[chunk].slot;
    return (size_t)p->chunks[chunk].start + row - before;
}

/* Cosines and sines of one position; angles are element-wise float32 products, as in the reference. */
static void angles_of(const gemmary_config *c, float position, float *out) {
    size_t half = (size_t)c->head_dim / 2;
    for (size_t i = 0; i < half; i++) {
        float exponent = -(float)i * (2.0f / (float)c->head_dim);
        float local = position * powf(c->rope_base_local, exponent);
        float global = position * (powf(c->rope_base, exponent) / c->rope_scale);
        out[i] = cosf(local);
        out[half + i] = sinf(local);
        out[2 * half + i] = cosf(global);
        out[3 * half + i] = sinf(global);
    }
}

static void embed(const Pass *p) {
    gemmary_model *m = p->m;
    size_t dim = (size_t)m->config.model_dim, row, slot;
    float root = sqrtf((float)dim);
    while (gemmary_team_take(m->team, 1, &row, p->rows)) {
        float *x = m->room.x + row * dim;
        gemmary_matrix_row(&m->embedding, (size_t)p->ids[row], x);
        for (size_t i = 0; i < dim; i++) x[i] *= root;
        angles_of(&m->config, (float)position_of(p, row, &slot), m->room.angles + row * 2 * (size_t)m->config.head_dim);
    }
    gemmary_team_wait(m->team);
}

/* x += norm(second) if `adds`, or as it is without a post_norm; activations = norm(x) */
static void prepare(const Pass *p, bool adds, const float *post_norm, const float *norm, const Matrix *next) {
    gemmary_model *m = p->m;
    Room *room = &m->room;
    Activations out = gemmary_activations(p, &room->plain, next);
    size_t dim = (size_t)m->config.model_dim, row, count;
    while ((count = gemmary_take_rows(p, &row)))
        for (; count; count--, row++) {
            float *x = room->x + row * dim, *normed = room->second + row * room->width;
            if (adds) m->kernels->norm_add(x, normed, post_norm, dim, m->config.norm_eps);
            m->kernels->norm(normed, x, norm, dim, m->config.norm_eps);
            m->kernels->quantize(&out, row, 0, normed, dim);
        }
    gemmary_team_wait(m->team);
}

/* activations = attention's output */
static void quantize(const Pass *p, const Matrix *next) {
    gemmary_model *m = p->m;
    Activations out = gemmary_activations(p, &m->room.plain, next);
    size_t row, count;
    while ((count = gemmary_take_rows(p, &row)))
        for (; count; count--, row++)
            m->kernels->quantize(&out, row, 0, m->room.second + row * m->room.width, next->columns);
    gemmary_team_wait(m->team);
}

/* Each matrix times the activations, its rows side by side in y from a multiple of 16 on. */
static void project(const Pass *p, const Activations *made, const Matrix *const *matrices, size_t num_matrices, float *y) {
    gemmary_model *m = p->m;
    Activations x = gemmary_activations(p, made, matrices[0]);
    size_t total = 0, first, count;
    for (size_t i = 0; i < num_matrices; i++) total += matrices[i]->blocks;
    while ((count = take_blocks(p, &first, total))) {
        for (size_t i = 0, start = 0; i < num_matrices; start += matrices[i++]->blocks) {
            size_t end = start + matrices[i]->blocks, from = first > start ? first : start;
            size_t to = first + count < end ? first + count : end;
            if (from < to)
                gemmary_multiply(m->kernels, matrices[i], &x, p->rows, from - start, to - from, y + from * BLOCK, m->room.width);
        }
    }
    gemmary_team_wait(m->team);
}

/* Norm and rotate queries and keys by position, and put keys and values into their rings. */
static void turn(const Pass *p, const Layer *layer) {
    gemmary_model *m = p->m;
    const gemmary_config *c = &m->config;
    const Kernels *k = m->kernels;
    size_t dim = (size_t)c->head_dim, heads = (size_t)c->num_heads, kv_heads = (size_t)c->num_kv_heads, row, slot, count;
    while ((count = gemmary_take_rows(p, &row))) for (; count; count--, row++) {
        float *queries = m->room.wide + row * m->room.width, *keys = queries + layer->query.blocks * BLOCK;
        const float *angles = m->room.angles + row * 4 * (dim / 2) + (layer->is_local ? 0 : dim);
        for (size_t i = 0; i < heads + kv_heads; i++) {
            float *head = i < heads ? queries + i * dim : keys + (i - heads) * dim;
            const float *norm = i < heads ? layer->query_norm : layer->key_norm;
            if (norm) k->norm(head, head, norm, dim, c->norm_eps);
            k->rotate(head, angles, angles + dim / 2, dim / 2, i < heads ? c->query_scale : 1.0f);
        }
        size_t position = position_of(p, row, &slot);
        gemmary_store(m, &layer->ring, slot, position, keys, keys + layer->key.blocks * BLOCK);
    }
    gemmary_team_wait(m->team);
}

static void attend(const Pass *p, const Layer *layer, float *own) {
    gemmary_model *m = p->m;
    size_t kv_heads = (size_t)m->config.num_kv_heads, width = m->room.width, task;
    while (gemmary_team_take(m->team, 1, &task, p->num_tiles * kv_heads)) {
        const Tile *tile = &p->tiles[task / kv_heads];
        size_t start = tile->row * width;
        gemmary_attend(m, layer, &p->chunks[tile->chunk], tile, task % kv_heads, m->room.wide + start, width,
                       m->room.second + start, width, own);
    }
    gemmary_team_wait(m->team);
}

/* gated = gelu(gate) * up, a thread's columns at a time in its own room */
static void gate(const Pass *p, const Layer *layer, float *own) {
    gemmary_model *m = p->m;
    Activations x = gemmary_activations(p, &m->room.plain, &layer->gate);
    Activations out = gemmary_activations(p, &m->room.gated, &layer->down);
    size_t first, count;
    while ((count = take_blocks(p, &first, layer->gate.blocks))) {
        size_t n = count * BLOCK, given = layer->down.columns - first * BLOCK;
        float *ups = own + p->rows * n;
        gemmary_multiply(m->kernels, &layer->gate, &x, p->rows, first, count, own, n);
        gemmary_multiply(m->kernels, &layer->up, &x, p->rows, first, count, ups, n);
        m->kernels->gelu_times(own, ups, p->rows * n);
        for (size_t row = 0; row < p->rows; row++)
            m->kernels->quantize(&out, row, first * BLOCK / GROUP, own + row * n, n < given ? n : given);
    }
    gemmary_team_wait(m->team);
}

/* Keep the queries and x of the rows that logits are wanted of, from the first row on. */
static void narrow(const Pass *p) {
    gemmary_model *m = p->m;
    size_t dim = (size_t)m->config.model_dim, heads = (size_t)m->config.num_heads * (size_t)m->config.head_dim;
    size_t width = m->room.width, from = 0, to = 0, share;
    if (gemmary_team_take(m->team, 1, &share, 1))
        for (size_t i = 0; i < p->num_chunks; i++) {
            from += (size_t)(p->chunks[i].length - p->chunks[i].num_logits);
            for (int32_t j = 0; j < p->chunks[i].num_logits; j++, from++, to++) {
                memmove(m->room.x + to * dim, m->room.x + from * dim, dim * sizeof(float));
                memmove(m->room.wide + to * width, m->room.wide + from * width, heads * sizeof(float));
            }
        }
    gemmary_team_wait(m->team);
}

/* All rows but those of `last` are done with when their keys and values are in the last ring. */
static void layers(const Pass *p, const Pass *last, float *own) {
    gemmary_model *m = p->m;
    const float *post_norm = NULL;
    for (int32_t i = 0; i < m->config.num_layers; i++) {
        const Layer *l = &m->layers[i];
        prepare(p, i > 0, post_norm, l->attention_norm, &l->query);
        project(p, &m->room.plain, (const Matrix *[]){&l->query, &l->key, &l->value}, 3, m->room.wide);
        turn(p, l);
        if (i + 1 == m->config.num_layers && last->rows < p->rows) {
            narrow(p);
            p = last;
        }
        if (!p->rows) return;
        attend(p, l, own);
        quantize(p, &l->output);
        project(p, &m->room.plain, (const Matrix *[]){&l->output}, 1, m->room.second);
        prepare(p, true, l->attention_post_norm, l->mlp_norm, &l->gate);
        gate(p, l, own);
        project(p, &m->room.gated, (const Matrix *[]){&l->down}, 1, m->room.second);
        post_norm = l->mlp_post_norm;
    }
}

static void work(void *context, int thread) {
    const Pass *passes = context, *p = &passes[1];
    float *own = p->m->room.own + (size_t)thread * p->m->room.own_floats;
    embed(&passes[0]);
    layers(&passes[0], p, own);
    if (!p->rows) return;
    if (p->sums) gemmary_sum(p);
    else if (p->targets) gemmary_judge(p, own);
    else if (p->screens && p->rows <= FEW_ROWS) gemmary_screen(p, own); /* more are bound by arithmetic */
    else gemmary_head(p, own);
}

/* Query rows by tiles: as many as share a block of keys well, but enough tiles for all threads. */
static void make_tiles(Pass *p, Tile *tiles) {
    gemmary_model *m = p->m;
    size_t before = 0, heads = m->group_heads;
    size_t share = p->rows * heads * (size_t)m->config.num_kv_heads / (size_t)gemmary_team_size(m->team);
    size_t size = share > TILE_ROWS ? TILE_ROWS : share < 1 ? 1 : share;
    p->tiles = tiles;
    for (size_t i = 0; i < p->num_chunks; before += (size_t)p->chunks[i++].length) {
        size_t end = (size_t)p->chunks[i].length * heads;
        for (size_t first = 0; first < end; first += size)
            *tiles++ = (Tile){i, before, first, end - first < size ? end - first : size};
    }
    p->num_tiles = (size_t)(tiles - p->tiles);
}

/* The same pass over those tokens alone that something is wanted of after the last layer. */
static Pass last_of(const Pass *p) {
    Pass last = *p;
    if (!p->targets && !p->sums) {
        last.chunks = p->m->room.ends;
        last.rows = p->num_logits;
        for (size_t i = 0; i < p->num_chunks; i++) {
            const gemmary_chunk *c = &p->chunks[i];
            p->m->room.ends[i] = (gemmary_chunk){c->slot, c->start + c->length - c->num_logits, c->num_logits, c->num_logits};
        }
    }
    make_tiles(&last, p->m->room.tiles + p->num_tiles);
    return last;
}

static bool are_sound(const gemmary_model *m, const gemmary_chunk *chunks, int32_t num_chunks, const int32_t *ids) {
    if (!chunks || num_chunks < 1 || num_chunks > m->config.num_slots || !ids) return false;
    for (int32_t i = 0; i < num_chunks; i++) {
        const gemmary_chunk *c = &chunks[i];
        if (c->slot < 0 || c->slot >= m->config.num_slots || c->start < 0 || c->length < 1) return false;
        if (c->length > m->config.chunk_length || c->start > m->config.max_length - c->length) return false;
        if (c->num_logits < 0 || c->num_logits > c->length) return false;
        for (int32_t j = 0; j < i; j++)
            if (chunks[j].slot == c->slot) return false;
        for (int32_t t = 0; t < c->length; t++, ids++)
            if (*ids < 0 || *ids >= m->config.vocab_size) return false;
    }
    return true;
}

/* Run a pass over as many chunks at a time as there is room for. */
static void run(gemmary_model *m, Pass pass, size_t num_chunks) {
    const gemmary_chunk *end = pass.chunks + num_chunks;
    while (pass.chunks < end) {
        pass.rows = pass.num_chunks = pass.num_logits = 0;
        while (pass.chunks + pass.num_chunks < end &&
               pass.rows + (size_t)pass.chunks[pass.num_chunks].length <= m->room.rows) {
            pass.num_logits += (size_t)pass.chunks[pass.num_chunks].num_logits;
            pass.rows += (size_t)pass.chunks[pass.num_chunks++].length;
        }
        make_tiles(&pass, m->room.tiles);
        Pass passes[] = {pass, last_of(&pass)};
        gemmary_team_run(m->team, work, passes);
        pass.chunks += pass.num_chunks;
        pass.ids += pass.rows;
        if (pass.targets) {
            pass.targets += pass.rows;
            pass.log_probs += pass.rows;
            pass.is_greedy += pass.rows;
        } else if (pass.sums) {
            pass.sums += pass.num_chunks * (size_t)m->config.model_dim;
        } else {
            pass.logits += pass.num_logits * (size_t)m->config.vocab_size;
        }
    }
}

gemmary_status gemmary_forward(gemmary_model *m, const gemmary_chunk *chunks, int32_t num_chunks, const int32_t *ids,
                               float *logits) {
    if (!m || !logits || !are_sound(m, chunks, num_chunks, ids)) return GEMMARY_BAD_ARGUMENT;
    if (!m->is_ready) return GEMMARY_NOT_READY;
    run(m, (Pass){.m = m, .chunks = chunks, .ids = ids, .logits = logits}, (size_t)num_chunks);
    return GEMMARY_OK;
}

gemmary_status gemmary_candidates(gemmary_model *m, const gemmary_chunk *chunks, int32_t num_chunks, const int32_t *ids,
                                  float *logits) {
    if (!m || !logits || !are_sound(m, chunks, num_chunks, ids)) return GEMMARY_BAD_ARGUMENT;
    if (!m->is_ready) return GEMMARY_NOT_READY;
    bool screens = gemmary_can_screen(&m->embedding);
    run(m, (Pass){.m = m, .chunks = chunks, .ids = ids, .logits = logits, .screens = screens}, (size_t)num_chunks);
    return GEMMARY_OK;
}

gemmary_status gemmary_score(gemmary_model *m, const gemmary_chunk *chunks, int32_t num_chunks, const int32_t *ids,
                             const int32_t *targets, float *log_probs, uint8_t *is_greedy) {
    bool is_given = targets && log_probs && is_greedy;
    if (!m || !is_given || !are_sound(m, chunks, num_chunks, ids)) return GEMMARY_BAD_ARGUMENT;
    if (!are_sound(m, chunks, num_chunks, targets)) return GEMMARY_BAD_ARGUMENT;
    if (!m->is_ready) return GEMMARY_NOT_READY;
    Pass pass = {.m = m, .chunks = chunks, .ids = ids, .targets = targets, .log_probs = log_probs, .is_greedy = is_greedy};
    run(m, pass, (size_t)num_chunks);
    return GEMMARY_OK;
}

gemmary_status gemmary_embed(gemmary_model *m, const gemmary_chunk *chunks, int32_t num_chunks, const int32_t *ids,
                             float *sums) {
    if (!m || !sums || !are_sound(m, chunks, num_chunks, ids)) return GEMMARY_BAD_ARGUMENT;
    if (!m->is_ready) return GEMMARY_NOT_READY;
    run(m, (Pass){.m = m, .chunks = chunks, .ids = ids, .sums = sums}, (size_t)num_chunks);
    return GEMMARY_OK;
}
