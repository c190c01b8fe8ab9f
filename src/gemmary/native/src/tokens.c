/* SPDX-License-Identifier: Apache-2.0
 * Text to ids: cut into words, each looked up among those met before; a new one is merged.
 *
 *     text ──cut──► words ──known──► ids
 *                     └─ new ──► user-defined pieces, longest first ──► merges ──► bytes for what is in no piece
 *
 * A text may be cut between two characters that are neighbours in no piece: merging only ever makes pieces, and
 * user-defined ones are found whole, so neither reaches over such a cut. All characters past ASCII count as one.
 */
#include <stdlib.h>

#include "internal.h"
#include "tokens.h"

enum { MERGED = 1, TAKEN_WHOLE = 4, MOST_PIECES = 1 << 26, MOST_BYTES = UINT16_MAX };
enum { PAST_ASCII = 128, CLASSES };
enum { ADJACENT = 1, BEGINS = 2 }; /* two characters: neighbours in a piece; how a user-defined one begins */
enum { SHORT = 64 }; /* symbols; from here on a heap is faster than looking at every pair */
enum { SLOTS = 1 << 17, WORD = 24, KEPT = 9 }; /* words kept, and how many bytes and ids those have at most */

typedef struct { /* length 0 is a free place */
    uint32_t offset;
    int32_t id;
    float score;
    uint16_t length, tag;
} Piece;

typedef struct {
    const uint8_t *text;
    size_t length;
    int32_t id, prefix; /* the longest other user-defined piece that this one begins with, or -1 */
} Whole;

struct gemmary_vocabulary {
    uint8_t *text;
    Piece *table; /* hashed by text */
    Whole *wholes; /* sorted by text */
    size_t mask, num_wholes, longest;
    int32_t byte_ids[256], unknown_id;
    bool has_bytes;
    uint8_t pairs[CLASSES * CLASSES];
};

typedef struct { /* length 0 is free; a word has one of two places, from which the older of two others goes */
    uint64_t text[WORD / 8];
    uint16_t length, count;
    int32_t ids[KEPT];
} Slot;

struct gemmary_encoder {
    Slot *slots; /* hashed by text */
    const gemmary_vocabulary *v;
    int32_t *ids; /* of the call that runs */
    size_t count, room;
    gemmary_status status;
};

static inline uint64_t load(const uint8_t *text, size_t n) { /* 1 to 8 bytes as a number, unlike for unlike texts */
    uint64_t whole;
    uint32_t first, last;
    if (n == 8) return memcpy(&whole, text, 8), whole;
    if (n < 4) return text[0] | (uint64_t)text[n / 2] << 8 | (uint64_t)text[n - 1] << 16;
    memcpy(&first, text, 4);
    memcpy(&last, text + n - 4, 4);
    return first | (uint64_t)last << 32;
}

static inline uint64_t mixed(uint64_t h) {
    h *= 0x9E3779B97F4A7C15u;
    return h ^ h >> 32;
}

static inline size_t class_of(uint8_t byte) { return byte < PAST_ASCII ? byte : PAST_ASCII; }

static inline uint64_t hash_of(const uint8_t *text, size_t n) {
    uint64_t h = n;
    for (; n > 8; text += 8, n -= 8) h = mixed(h ^ load(text, 8));
    return mixed(mixed(h ^ load(text, n)));
}

static const Piece *find(const gemmary_vocabulary *v, const uint8_t *text, size_t n) {
    if (n > v->longest) return NULL;
    uint64_t hash = hash_of(text, n);
    for (size_t i = hash & v->mask; v->table[i].length; i = (i + 1) & v->mask) {
        const Piece *p = &v->table[i];
        if (p->tag == hash >> 48 && p->length == n && !memcmp(v->text + p->offset, text, n)) return p;
    }
    return NULL;
}

static void insert(gemmary_vocabulary *v, Piece piece) {
    uint64_t hash = hash_of(v->text + piece.offset, piece.length);
    size_t i = hash & v->mask;
    while (v->table[i].length) i = (i + 1) & v->mask;
    piece.tag = (uint16_t)(hash >> 48);
    v->table[i] = piece;
    if (piece.length > v->longest) v->longest = piece.length;
}

static int in_order(const void *left, const void *right) {
    const Whole *a = left, *b = right;
    int order = memcmp(a->text, b->text, a->length < b->length ? a->length : b->length);
    return order ? order : (a->length > b->length) - (a->length < b->length);
}

static bool is_prefix(const Whole *w, const uint8_t *text, size_t n) {
    return w->length <= n && !memcmp(w->text, text, w->length);
}

static const Whole *find_whole(const gemmary_vocabulary *v, const uint8_t *text, size_t n) {
    Whole wanted = {text, n, 0, -1};
    size_t first = 0, end = v->num_wholes; /* what begins the text sorts before it, and begins all that lies between */
    while (first < end) {
        size_t middle = first + (end - first) / 2;
        if (in_order(&v->wholes[middle], &wanted) <= 0) first = middle + 1;
        else end = middle;
    }
    int32_t at = (int32_t)first - 1;
    while (at >= 0 && !is_prefix(&v->wholes[at], text, n)) at = v->wholes[at].prefix;
    return at < 0 ? NULL : &v->wholes[at];
}

static void sort_wholes(gemmary_vocabulary *v) {
    if (!v->num_wholes) return;
    qsort(v->wholes, v->num_wholes, sizeof *v->wholes, in_order);
    for (size_t i = 1; i < v->num_wholes; i++) {
        int32_t at = (int32_t)i - 1;
        while (at >= 0 && !is_prefix(&v->wholes[at], v->wholes[i].text, v->wholes[i].length)) at = v->wholes[at].prefix;
        v->wholes[i].prefix = at;
    }
}

static void add_pairs(gemmary_vocabulary *v, const uint8_t *text, size_t n, bool is_whole) {
    for (size_t i = 1; i < n; i++) v->pairs[class_of(text[i - 1]) * CLASSES + class_of(text[i])] |= ADJACENT;
    if (!is_whole) return;
    uint8_t *row = v->pairs + class_of(text[0]) * CLASSES;
    if (n > 1) row[class_of(text[1])] |= BEGINS;
    else for (size_t next = 0; next < CLASSES; next++) row[next] |= BEGINS;
}

static void fill(gemmary_vocabulary *v, const gemmary_pieces *p) {
    for (int32_t i = 0; i < p->count; i++) {
        size_t offset = p->offsets[i], length = p->offsets[i + 1] - offset;
        if (p->kinds[i] == MERGED) {
            insert(v, (Piece){(uint32_t)offset, i, p->scores[i], (uint16_t)length, 0});
        } else if (p->kinds[i] == TAKEN_WHOLE) {
            v->wholes[v->num_wholes++] = (Whole){v->text + offset, length, i, -1};
        } else continue;
        add_pairs(v, v->text + offset, length, p->kinds[i] == TAKEN_WHOLE);
    }
    sort_wholes(v);
    for (size_t next = 0; next < CLASSES; next++) v->pairs[' ' * CLASSES + next] |= ADJACENT; /* so words begin so */
    v->has_bytes = p->byte_ids;
    if (p->byte_ids) memcpy(v->byte_ids, p->byte_ids, sizeof v->byte_ids);
    v->unknown_id = p->unknown_id;
}

gemmary_status gemmary_vocabulary_open(const gemmary_pieces *p, gemmary_vocabulary **out) {
    if (!p || !out || p->count < 0 || p->count > MOST_PIECES) return GEMMARY_BAD_ARGUMENT;
    if (!p->offsets || p->offsets[0]) return GEMMARY_BAD_ARGUMENT;
    if (p->count && !(p->text && p->scores && p->kinds)) return GEMMARY_BAD_ARGUMENT;
    size_t wholes = 0, places = 2;
    for (int32_t i = 0; i < p->count; i++) {
        uint32_t first = p->offsets[i], end = p->offsets[i + 1];
        if (end <= first || end - first > MOST_BYTES) return GEMMARY_BAD_ARGUMENT;
        wholes += p->kinds[i] == TAKEN_WHOLE;
    }
    while (places < 2 * (size_t)p->count + 2) places *= 2;
    size_t bytes = p->offsets[p->count];
    gemmary_vocabulary *v = calloc(1, sizeof *v);
    if (!v) return GEMMARY_NO_MEMORY;
    v->mask = places - 1;
    v->text = malloc(bytes + 1);
    v->table = gemmary_pages(places * sizeof *v->table, true);
    v->wholes = malloc((wholes + 1) * sizeof *v->wholes);
    if (!v->text || !v->table || !v->wholes) {
        gemmary_vocabulary_close(v);
        return GEMMARY_NO_MEMORY;
    }
    if (bytes) memcpy(v->text, p->text, bytes);
    fill(v, p);
    *out = v;
    return GEMMARY_OK;
}

void gemmary_vocabulary_close(gemmary_vocabulary *v) {
    if (!v) return;
    gemmary_pages_free(v->table, (v->mask + 1) * sizeof *v->table);
    free(v->wholes);
    free(v->text);
    free(v);
}

gemmary_status gemmary_encoder_open(const gemmary_vocabulary *v, gemmary_encoder **out) {
    if (!v || !out) return GEMMARY_BAD_ARGUMENT;
    gemmary_encoder *e = calloc(1, sizeof *e);
    Slot *slots = e ? gemmary_pages(SLOTS * sizeof *slots, true) : NULL;
    if (!slots) {
        free(e);
        return GEMMARY_NO_MEMORY;
    }
    e->slots = slots;
    e->v = v;
    *out = e;
    return GEMMARY_OK;
}

void gemmary_encoder_close(gemmary_encoder *e) {
    if (!e) return;
    gemmary_pages_free(e->slots, SLOTS * sizeof *e->slots);
    free(e);
}

static inline void append(gemmary_encoder *e, int32_t id) {
    if (e->count < e->room) e->ids[e->count++] = id;
    else e->status = GEMMARY_BAD_ARGUMENT;
}

static void append_symbol(gemmary_encoder *e, const Piece *piece, const uint8_t *text, size_t n) {
    if (piece) append(e, piece->id);
    else if (!e->v->has_bytes) append(e, e->v->unknown_id);
    else if (*text == ' ') /* as SentencePiece writes it: U+2581 */
        for (size_t i = 0; i < 3; i++) append(e, e->v->byte_ids[(uint8_t)"\xE2\x96\x81"[i]]);
    else
        for (size_t i = 0; i < n; i++) append(e, e->v->byte_ids[text[i]]);
}

static inline size_t char_bytes(const uint8_t *text, size_t left) {
    size_t n = *text < 0xC0 ? 1 : *text < 0xE0 ? 2 : *text < 0xF0 ? 3 : 4;
    return n < left ? n : left;
}

typedef struct { /* two neighbours that join to a piece */
    float score;
    uint32_t left, length;
} Pair;

static inline bool goes_first(Pair a, Pair b) { return a.score > b.score || (a.score == b.score && a.left < b.left); }

typedef struct { /* symbols by where they begin; length 0: merged into one before */
    const uint8_t *text;
    uint32_t size, *length, *previous;
    Pair *heap;
    size_t pairs;
} Line;

static void push(const gemmary_vocabulary *v, Line *l, uint32_t left) {
    uint32_t right = left + l->length[left];
    if (right == l->size) return;
    uint32_t length = l->length[left] + l->length[right];
    const Piece *piece = find(v, l->text + left, length);
    if (!piece) return;
    Pair pair = {piece->score, left, length};
    size_t i = l->pairs++;
    for (; i && goes_first(pair, l->heap[(i - 1) / 2]); i = (i - 1) / 2) l->heap[i] = l->heap[(i - 1) / 2];
    l->heap[i] = pair;
}

static Pair pop(Line *l) {
    Pair best = l->heap[0], last = l->heap[--l->pairs];
    size_t i = 0, child;
    for (; (child = 2 * i + 1) < l->pairs; i = child) {
        if (child + 1 < l->pairs && goes_first(l->heap[child + 1], l->heap[child])) child++;
        if (!goes_first(l->heap[child], last)) break;
        l->heap[i] = l->heap[child];
    }
    l->heap[i] = last;
    return best;
}

static void merge_long(gemmary_encoder *e, const uint8_t *text, size_t size) {
    /* at most a pair for each symbol, and one more for each merge, which takes one out and puts two in */
    Line l = {text, (uint32_t)size, NULL, NULL, NULL, 0};
    uint8_t *memory = size < UINT32_MAX && size < SIZE_MAX / 64 ? malloc(size * (2 * sizeof(Pair) + 8)) : NULL;
    if (!memory) {
        e->status = GEMMARY_NO_MEMORY;
        return;
    }
    l.heap = (Pair *)memory;
    l.length = (uint32_t *)(l.heap + 2 * size);
    l.previous = l.length + size;
    for (uint32_t at = 0, before = 0; at < l.size; before = at, at += l.length[at]) {
        l.length[at] = (uint32_t)char_bytes(text + at, size - at);
        l.previous[at] = before;
    }
    for (uint32_t at = 0; at < l.size; at += l.length[at]) push(e->v, &l, at);
    while (l.pairs) {
        Pair best = pop(&l);
        uint32_t right = best.left + l.length[best.left];
        if (right == best.left || right == l.size || l.length[best.left] + l.length[right] != best.length) continue;
        l.length[right] = 0;
        l.length[best.left] = best.length;
        uint32_t after = best.left + best.length;
        if (after < l.size) l.previous[after] = best.left;
        if (best.left) push(e->v, &l, l.previous[best.left]);
        push(e->v, &l, best.left);
    }
    for (uint32_t at = 0; at < l.size; at += l.length[at])
        append_symbol(e, find(e->v, text + at, l.length[at]), text + at, l.length[at]);
    free(memory);
}

static void merge(gemmary_encoder *e, const uint8_t *text, size_t size) {
    const Piece *symbols[SHORT], *pairs[SHORT];
    const gemmary_vocabulary *v = e->v;
    size_t starts[SHORT + 1] = {0}, n = 0;
    for (size_t at = 0; at < size; starts[++n] = at) {
        if (n == SHORT) {
            merge_long(e, text, size);
            return;
        }
        at += char_bytes(text + at, size - at);
        symbols[n] = NULL; /* a character is looked up when it is known to stay */
    }
    for (size_t i = 0; i + 1 < n; i++) /* they lie far apart: fetch all of them at once */
        __builtin_prefetch(&v->table[hash_of(text + starts[i], starts[i + 2] - starts[i]) & v->mask]);
    for (size_t i = 0; i + 1 < n; i++) pairs[i] = find(v, text + starts[i], starts[i + 2] - starts[i]);
    for (;;) {
        const Piece *best = NULL;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++)
            if (pairs[i] && (!best || pairs[i]->score > best->score)) best = pairs[at = i];
        if (!best) break;
        n--;
        symbols[at] = best;
        for (size_t i = at + 1; i < n; i++) symbols[i] = symbols[i + 1], pairs[i - 1] = pairs[i];
        memmove(starts + at + 1, starts + at + 2, (n - at) * sizeof *starts);
        if (at) pairs[at - 1] = find(v, text + starts[at - 1], starts[at + 1] - starts[at - 1]);
        if (at + 1 < n) pairs[at] = find(v, text + starts[at], starts[at + 2] - starts[at]);
    }
    for (size_t i = 0; i < n; i++) {
        size_t length = starts[i + 1] - starts[i];
        append_symbol(e, symbols[i] ? symbols[i] : find(v, text + starts[i], length), text + starts[i], length);
    }
}

static void encode_new(gemmary_encoder *e, const uint8_t *word, size_t size) {
    size_t start = 0;
    for (size_t at = 0; e->v->num_wholes && at < size;) {
        size_t next = at + 1 < size ? class_of(word[at + 1]) : 0; /* nothing follows: a row's 0 tells as well */
        bool may_begin = e->v->pairs[class_of(word[at]) * CLASSES + next] & BEGINS;
        const Whole *found = may_begin ? find_whole(e->v, word + at, size - at) : NULL;
        if (found) {
            merge(e, word + start, at - start);
            append(e, found->id);
            start = at + found->length;
        }
        at += found ? found->length : 1;
    }
    merge(e, word + start, size - start);
}

static inline bool is_word(const Slot *slot, const uint64_t *text, size_t size) {
    return slot->length == size && slot->text[0] == text[0] && slot->text[1] == text[1] && slot->text[2] == text[2];
}

static void encode_word(gemmary_encoder *e, const uint8_t *word, size_t size) {
    if (size > WORD) {
        encode_new(e, word, size);
        return;
    }
    uint64_t text[WORD / 8] = {load(word, size < 8 ? size : 8)};
    if (size > 8) text[1] = load(word + (size < 16 ? size - 8 : 8), 8);
    if (size > 16) text[2] = load(word + size - 8, 8);
    uint64_t hash = mixed(mixed(mixed(mixed(text[0] ^ size) ^ text[1]) ^ text[2]));
    Slot *slots = &e->slots[hash % (SLOTS / 2) * 2];
    const Slot *known = is_word(&slots[0], text, size) ? &slots[0] : is_word(&slots[1], text, size) ? &slots[1] : NULL;
    if (known) {
        for (size_t i = 0; i < known->count; i++) append(e, known->ids[i]);
        return;
    }
    size_t first = e->count;
    encode_new(e, word, size);
    if (e->count - first > KEPT || e->status != GEMMARY_OK) return;
    slots[1] = slots[0];
    slots[0] = (Slot){{text[0], text[1], text[2]}, (uint16_t)size, (uint16_t)(e->count - first), {0}};
    memcpy(slots->ids, e->ids + first, slots->count * sizeof *slots->ids);
}

static size_t word_end(const gemmary_vocabulary *v, const uint8_t *text, size_t at, size_t size) {
    size_t last = class_of(text[at]);
    while (++at < size) {
        size_t next = class_of(text[at]);
        bool is_inside = (text[at] & 0xC0) == 0x80; /* a character */
        if (!(v->pairs[last * CLASSES + next] & ADJACENT) && !is_inside) break;
        last = next;
    }
    return at;
}

gemmary_status gemmary_encode(gemmary_encoder *e, const uint8_t *text, size_t size, int32_t *ids, size_t room,
                              size_t *count) {
    if (!e || !count || (size && !text) || (room && !ids)) return GEMMARY_BAD_ARGUMENT;
    const gemmary_vocabulary *v = e->v;
    e->ids = ids, e->room = room, e->count = 0, e->status = GEMMARY_OK;
    for (size_t at = 0, end; at < size && e->status == GEMMARY_OK; at = end) {
        end = word_end(v, text, at, size);
        encode_word(e, text + at, end - at);
    }
    size_t kept = 0;
    for (size_t i = 0; !v->has_bytes && i < e->count; i++)
        if (!kept || ids[i] != v->unknown_id || ids[kept - 1] != v->unknown_id) ids[kept++] = ids[i];
    *count = v->has_bytes ? e->count : kept;
    return e->status;
}
