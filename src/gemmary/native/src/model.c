/* SPDX-License-Identifier: Apache-2.0
 * Making and freeing a model. Everything that comes from outside is checked here, before it is used as a size. */
#include <math.h>
#include <stdlib.h>

#include "model.h"

static const Kernels *const KERNELS[] = {
#ifdef GEMMARY_AVX512BF16
    &gemmary_avx512bf16,
#endif
#ifdef GEMMARY_X86
    &gemmary_avx512, &gemmary_avx2,
#elif defined(GEMMARY_ARM)
    &gemmary_i8mm, &gemmary_dotprod, &gemmary_neon,
#endif
    &gemmary_portable,
};
enum { NUM_KERNELS = sizeof KERNELS / sizeof *KERNELS };

int32_t gemmary_abi(void) { return GEMMARY_ABI; }

const char *gemmary_kernels(int32_t i) { return i >= 0 && i < NUM_KERNELS ? KERNELS[i]->name : NULL; }

const Kernels *gemmary_find_kernels(const char *name) {
    for (size_t i = 0; i < NUM_KERNELS; i++)
        if ((!name || !strcmp(name, KERNELS[i]->name)) && KERNELS[i]->runs_here()) return KERNELS[i];
    return NULL;
}

static bool is_size(int32_t n, int32_t most) { return n > 0 && n <= most; }

static bool is_flag(int32_t n) { return n == 0 || n == 1; }

static bool is_positive(float x) { return x > 0 && x < 1e30f; }

static bool is_sound(const gemmary_config *c) {
    bool sizes = is_size(c->vocab_size, 1 << 24) && is_size(c->num_layers, 4096) && is_size(c->model_dim, 1 << 20) &&
                 is_size(c->num_heads, 4096) && is_size(c->num_kv_heads, 4096) && is_size(c->head_dim, 4096) &&
                 is_size(c->mlp_dim, 1 << 20) && is_size(c->num_slots, 4096) && is_size(c->max_length, 1 << 24) &&
                 is_size(c->chunk_length, 1 << 16) && is_size(c->num_threads, 256);
    bool reals = is_positive(c->norm_eps) && is_positive(c->query_scale) && is_positive(c->rope_base) &&
                 is_positive(c->rope_base_local) && is_positive(c->rope_scale) &&
                 (c->attn_softcap == 0 || is_positive(c->attn_softcap)) &&
                 (c->final_softcap == 0 || is_positive(c->final_softcap));
    bool flags = is_flag(c->post_norm) && is_flag(c->qk_norm) && is_flag(c->norm_plus_one);
    if (c->abi != GEMMARY_ABI || !sizes || !reals || !flags || !c->windows) return false;
    if (c->num_heads % c->num_kv_heads || c->head_dim % 2) return false;
    for (int32_t i = 0; i < c->num_layers; i++)
        if (c->windows[i] < 0) return false;
    return true;
}

static void *zeros(size_t count, size_t size) { return gemmary_pages(count * size, true); }

static size_t groups_of(const Activations *a, size_t rows) { return round_up(rows, MOST_LANES) * a->columns / GROUP; }

static bool activations_make(Activations *a, size_t rows, size_t columns) {
    a->columns = round_up(columns, GROUP) + GROUP;
    size_t groups = groups_of(a, rows);
    a->codes = zeros(groups, GROUP);
    a->scales = zeros(groups, ACTIVATION_BYTES);
    if (!a->scales) return false;
    a->sums = a->scales + groups;
    a->starts = (int16_t *)(a->sums + groups);
    return a->codes;
}

static void activations_free(Activations *a, size_t rows) {
    gemmary_pages_free(a->codes, groups_of(a, rows) * GROUP);
    gemmary_pages_free(a->scales, groups_of(a, rows) * ACTIVATION_BYTES);
}

/* All that a pass needs, in one place each, so that a pass allocates nothing. */
static bool room_make(gemmary_model *m) {
    Room *room = &m->room;
    const gemmary_config *c = &m->config;
    size_t heads = (size_t)c->num_heads * (size_t)c->head_dim, keys = (size_t)c->num_kv_heads * (size_t)c->head_dim;
    size_t dim = round_up((size_t)c->model_dim, BLOCK);
    size_t all = (size_t)c->chunk_length * (size_t)c->num_slots, tasks = 4 * (size_t)c->num_slots;
    room->rows = (size_t)c->chunk_length > 512 ? (size_t)c->chunk_length : all < 512 ? all : 512;
    room->width = round_up(heads, BLOCK) + 2 * round_up(keys, BLOCK);
    if (room->width < dim) room->width = dim;
    room->width = room->width / 32 * 32 + BLOCK + 32; /* an odd number of lines, so that rows share no set of a cache */
    room->own_floats = gemmary_attend_floats(m);
    size_t blocks = 2 * PANEL_BLOCKS * room->rows, few = 2 * MOST_BLOCKS; /* of gates and ups; fewer of logits */
    size_t products = BLOCK * (blocks > few ? blocks : few) + 4 * round_up(room->rows, 4);
    room->own_floats = round_up(room->own_floats > products ? room->own_floats : products, BLOCK);
    room->num_tiles = 2 * room->rows * m->group_heads + tasks;
    room->x = zeros(room->rows * dim, sizeof(float));
    room->wide = zeros(room->rows * room->width, sizeof(float));
    room->second = zeros(room->rows * room->width, sizeof(float));
    room->angles = zeros(room->rows * 2 * (size_t)c->head_dim, sizeof(float));
    room->tiles = zeros(room->num_tiles, sizeof(Tile));
    room->ends = zeros((size_t)c->num_slots, sizeof(gemmary_chunk));
    room->own = zeros((size_t)c->num_threads * room->own_floats, sizeof(float));
    bool has_plain = activations_make(&room->plain, room->rows, heads > dim ? heads : dim);
    bool has_gated = activations_make(&room->gated, room->rows, (size_t)c->mlp_dim);
    return has_plain && has_gated && room->x && room->wide && room->second && room->angles && room->tiles &&
           room->ends && room->own;
}

static void room_free(gemmary_model *m) {
    Room *room = &m->room;
    size_t dim = round_up((size_t)m->config.model_dim, BLOCK), threads = (size_t)m->config.num_threads;
    gemmary_pages_free(room->x, room->rows * dim * sizeof(float));
    gemmary_pages_free(room->wide, room->rows * room->width * sizeof(float));
    gemmary_pages_free(room->second, room->rows * room->width * sizeof(float));
    gemmary_pages_free(room->angles, room->rows * 2 * (size_t)m->config.head_dim * sizeof(float));
    gemmary_pages_free(room->tiles, room->num_tiles * sizeof(Tile));
    gemmary_pages_free(room->ends, (size_t)m->config.num_slots * sizeof(gemmary_chunk));
    gemmary_pages_free(room->own, threads * room->own_floats * sizeof(float));
    activations_free(&room->plain, room->rows);
    activations_free(&room->gated, room->rows);
}

static bool layers_make(gemmary_model *m, const int32_t *windows) {
    size_t length = (size_t)m->config.max_length, chunk = (size_t)m->config.chunk_length;
    m->layers = calloc((size_t)m->config.num_layers, sizeof(Layer));
    for (int32_t i = 0; m->layers && i < m->config.num_layers; i++) {
        Layer *layer = &m->layers[i];
        layer->is_local = windows[i] > 0;
        layer->window = windows[i] > 0 && (size_t)windows[i] < length ? (size_t)windows[i] : length;
        size_t ring = layer->window + chunk; /* a chunk is written before its first token looks back a window */
        if (!gemmary_ring_make(m, &layer->ring, ring < length ? ring : length)) return false;
    }
    return m->layers;
}

gemmary_status gemmary_open(const gemmary_config *config, gemmary_model **out) {
    if (!config || !out || !is_sound(config)) return GEMMARY_BAD_CONFIG;
    const Kernels *kernels = gemmary_find_kernels(config->kernels);
    if (!kernels) return GEMMARY_NO_KERNELS;
    gemmary_model *m = calloc(1, sizeof *m);
    if (!m) return GEMMARY_NO_MEMORY;
    m->config = *config;
    m->config.windows = NULL;
    m->config.kernels = NULL;
    m->kernels = kernels;
    m->head_width = round_up((size_t)config->head_dim, BLOCK);
    m->group_heads = (size_t)(config->num_heads / config->num_kv_heads);
    if (layers_make(m, config->windows) && room_make(m)) m->team = gemmary_team_open(config->num_threads);
    if (!m->team) {
        gemmary_close(m);
        return GEMMARY_NO_MEMORY;
    }
    *out = m;
    return GEMMARY_OK;
}

/* What a weight of this model must be: rows 0 when the model has none such. */
static void shape_of(const gemmary_config *c, gemmary_weight weight, int64_t *rows, int64_t *columns) {
    int64_t heads = (int64_t)c->num_heads * c->head_dim, keys = (int64_t)c->num_kv_heads * c->head_dim;
    int64_t dim = c->model_dim, mlp = c->mlp_dim, post = c->post_norm, qk = c->qk_norm;
    const int64_t shapes[GEMMARY_NUM_WEIGHTS][2] = {
        [GEMMARY_EMBEDDING] = {c->vocab_size, dim}, [GEMMARY_FINAL_NORM] = {1, dim},
        [GEMMARY_ATTENTION_NORM] = {1, dim},        [GEMMARY_QUERY] = {heads, dim},
        [GEMMARY_KEY] = {keys, dim},                [GEMMARY_VALUE] = {keys, dim},
        [GEMMARY_OUTPUT] = {dim, heads},            [GEMMARY_QUERY_NORM] = {qk, c->head_dim},
        [GEMMARY_KEY_NORM] = {qk, c->head_dim},     [GEMMARY_ATTENTION_POST_NORM] = {post, dim},
        [GEMMARY_MLP_NORM] = {1, dim},              [GEMMARY_GATE] = {mlp, dim},
        [GEMMARY_UP] = {mlp, dim},                  [GEMMARY_DOWN] = {dim, mlp},
        [GEMMARY_MLP_POST_NORM] = {post, dim},
    };
    *rows = shapes[weight][0];
    *columns = shapes[weight][1];
}

static bool is_of_layer(gemmary_weight weight) { return weight != GEMMARY_EMBEDDING && weight != GEMMARY_FINAL_NORM; }

static Matrix *matrix_of(gemmary_model *m, gemmary_weight weight, int32_t layer) {
    Layer *l = layer < 0 ? NULL : &m->layers[layer];
    switch (weight) {
    case GEMMARY_EMBEDDING: return &m->embedding;
    case GEMMARY_QUERY: return &l->query;
    case GEMMARY_KEY: return &l->key;
    case GEMMARY_VALUE: return &l->value;
    case GEMMARY_OUTPUT: return &l->output;
    case GEMMARY_GATE: return &l->gate;
    case GEMMARY_UP: return &l->up;
    case GEMMARY_DOWN: return &l->down;
    default: return NULL;
    }
}

static float **norm_of(gemmary_model *m, gemmary_weight weight, int32_t layer) {
    Layer *l = layer < 0 ? NULL : &m->layers[layer];
    switch (weight) {
    case GEMMARY_FINAL_NORM: return &m->final_norm;
    case GEMMARY_ATTENTION_NORM: return &l->attention_norm;
    case GEMMARY_QUERY_NORM: return &l->query_norm;
    case GEMMARY_KEY_NORM: return &l->key_norm;
    case GEMMARY_ATTENTION_POST_NORM: return &l->attention_post_norm;
    case GEMMARY_MLP_NORM: return &l->mlp_norm;
    case GEMMARY_MLP_POST_NORM: return &l->mlp_post_norm;
    default: return NULL;
    }
}

static bool exists(const gemmary_model *m, gemmary_weight weight, int32_t layer) {
    if (!m || (int)weight < 0 || weight >= GEMMARY_NUM_WEIGHTS) return false;
    return is_of_layer(weight) ? layer >= 0 && layer < m->config.num_layers : layer == -1;
}

static bool is_complete(gemmary_model *m) {
    int64_t rows, columns;
    for (int w = 0; w < GEMMARY_NUM_WEIGHTS; w++)
        for (int32_t layer = is_of_layer(w) ? 0 : -1; layer < (is_of_layer(w) ? m->config.num_layers : 0); layer++) {
            Matrix *matrix = matrix_of(m, w, layer);
            shape_of(&m->config, w, &rows, &columns);
            if (rows && !(matrix ? matrix->is_declared : *norm_of(m, w, layer) != NULL)) return false;
        }
    return true;
}

static void matrix_free(Matrix *m) {
    gemmary_pages_free(m->base, m->blocks * m->base_stride);
    gemmary_pages_free(m->extra, m->blocks * m->extra_stride);
    *m = (Matrix){0};
}

gemmary_status gemmary_declare(gemmary_model *m, gemmary_weight weight, int32_t layer, gemmary_type type, int64_t rows,
                               int64_t columns) {
    int64_t wanted_rows, wanted_columns;
    if (!exists(m, weight, layer)) return GEMMARY_BAD_WEIGHT;
    shape_of(&m->config, weight, &wanted_rows, &wanted_columns);
    if (!wanted_rows || rows != wanted_rows || columns != wanted_columns) return GEMMARY_BAD_WEIGHT;
    if (!gemmary_row_bytes(type, (size_t)columns)) return GEMMARY_BAD_WEIGHT;
    Matrix *matrix = matrix_of(m, weight, layer);
    if (matrix) {
        if (matrix->is_declared) return GEMMARY_BAD_WEIGHT;
        if (!gemmary_matrix_make(matrix, type, (size_t)rows, (size_t)columns)) {
            matrix_free(matrix);
            return GEMMARY_NO_MEMORY;
        }
    } else {
        float **norm = norm_of(m, weight, layer);
        if (type != GEMMARY_F32 || *norm) return GEMMARY_BAD_WEIGHT;
        if (!(*norm = calloc((size_t)columns, sizeof(float)))) return GEMMARY_NO_MEMORY;
    }
    m->is_ready = is_complete(m);
    return GEMMARY_OK;
}

gemmary_status gemmary_fill(gemmary_model *m, gemmary_weight weight, int32_t layer, int64_t first, int64_t rows,
                            const void *bytes, size_t num_bytes) {
    if (!exists(m, weight, layer) || !bytes || first < 0 || rows <= 0) return GEMMARY_BAD_WEIGHT;
    Matrix *matrix = matrix_of(m, weight, layer);
    if (matrix) {
        size_t row_bytes = matrix->is_declared ? gemmary_row_bytes(matrix->type, matrix->columns) : 0;
        bool fits = (size_t)first < matrix->rows && (size_t)rows <= matrix->rows - (size_t)first;
        if (!row_bytes || !fits || first % BLOCK || num_bytes != (size_t)rows * row_bytes) return GEMMARY_BAD_WEIGHT;
        gemmary_matrix_get_pages(matrix, (size_t)first, (size_t)rows, &m->late_pages);
        return gemmary_matrix_fill(matrix, (size_t)first, (size_t)rows, bytes) ? GEMMARY_OK : GEMMARY_NOT_FINITE;
    }
    int64_t num_rows, columns;
    shape_of(&m->config, weight, &num_rows, &columns);
    float *norm = *norm_of(m, weight, layer);
    if (!norm || first || rows != 1 || num_bytes != (size_t)columns * sizeof(float)) return GEMMARY_BAD_WEIGHT;
    memcpy(norm, bytes, num_bytes);
    for (int64_t i = 0; i < columns; i++) {
        if (!isfinite(norm[i])) return GEMMARY_NOT_FINITE;
        norm[i] += (float)m->config.norm_plus_one;
    }
    return GEMMARY_OK;
}

void gemmary_close(gemmary_model *m) {
    if (!m) return;
    gemmary_team_close(m->team);
    for (int w = 0; w < GEMMARY_NUM_WEIGHTS; w++)
        for (int32_t layer = is_of_layer(w) ? 0 : -1; layer < (is_of_layer(w) ? m->config.num_layers : 0); layer++) {
            if (layer >= 0 && !m->layers) continue;
            Matrix *matrix = matrix_of(m, w, layer);
            if (matrix) matrix_free(matrix);
            else free(*norm_of(m, w, layer));
        }
    for (int32_t i = 0; m->layers && i < m->config.num_layers; i++) gemmary_ring_free(m, &m->layers[i].ring);
    room_free(m);
    free(m->layers);
    free(m);
}

size_t gemmary_screened_bytes(const gemmary_model *m) {
    return m && gemmary_can_screen(&m->embedding) ? m->embedding.blocks * m->embedding.extra_stride : 0;
}

size_t gemmary_weight_bytes(const gemmary_model *m) {
    size_t sum = gemmary_matrix_bytes(&m->embedding);
    for (int32_t i = 0; i < m->config.num_layers; i++) {
        const Layer *l = &m->layers[i];
        const Matrix *all[] = {&l->query, &l->key, &l->value, &l->output, &l->gate, &l->up, &l->down};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++) sum += gemmary_matrix_bytes(all[j]);
    }
    return sum;
}

size_t gemmary_cache_bytes(const gemmary_model *m) { return m->cache_bytes; }

const char *gemmary_kernels_used(const gemmary_model *m) { return m->kernels->name; }
