/* A step of the engine on a CPU in one call: tokens in, logits out, keys and values into their pages.
 *
 * All threads go through all layers together and meet where one needs what the others made. What one token costs is
 * then what reading the weights once costs; calls and small operations in between would cost as much again. Activations
 * are float. kernels.py has this compiled where it runs.
 */
#include "attention.h"

typedef struct {
    const float *before_attention, *before_ffn; /* weights of the norms */
    Matrix qkv, out, gate_up, down;
} Layer;

typedef struct {
    int64_t layers, hidden, ffn, heads, kv_heads, size;
    float eps;
    const Layer *layer;
    const float *norm;
    Matrix head;
    int64_t kind; /* of the embedding and of pages: FLOAT or BF16 */
    const void *embedding;
    const float *angles; /* (positions, size / 2, 2), cosine and sine */
} Model;

typedef struct {
    int64_t rows;
    const int64_t *ids;
    int64_t texts;
    const int64_t *starts, *counts;   /* of each text: position of its first new token; how many it brings */
    const int64_t *tables, *begins;   /* pages of all texts, end to end; where each text's begin */
    int64_t wanted;
    const int64_t *wanted_rows;       /* ascending */
    int64_t pages;
    void *store;                      /* (layers, 2, kv_heads, pages, PANEL * size) */
    float *logits;                    /* (wanted, logits_stride) */
    int64_t logits_stride;
    void *room;                       /* step_room bytes */
    int64_t threads;
} Step;

typedef struct {
    int64_t position, page, slot;
    int last;
} Place;

typedef struct {
    int64_t x_stride, wide_stride, some_stride, ready_stride; /* the last in bytes, the others in floats */
    float *x, *wide, *some;
    char *ready;
    Queries *queries;
    int64_t blocks;
    Place *places;
    Phase *phases;
} Room;

enum { PHASES = 10 };

static char *cut(char **room, int64_t bytes) {
    char *at = *room;
    *room += (bytes + 63) / 64 * 64;
    return at;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Lay a step's buffers out from `from` on; returns where they end. Strides are no powers of two: such rows would share
 * lines of the cache. */
static char *lay_out(const Model *m, int64_t rows, char *from, Room *room) {
    const int64_t qkv = (m->heads + 2 * m->kv_heads) * m->size;
    const int64_t widest = larger(larger(m->hidden, m->heads * m->size), m->ffn);
    room->x_stride = m->hidden + PANEL;
    room->wide_stride = larger(qkv, 2 * m->ffn) + PANEL;
    room->some_stride = widest + PANEL;
    room->ready_stride = ready_bytes(widest);
    room->phases = (Phase *)cut(&from, (m->layers + 1) * PHASES * (int64_t)sizeof(Phase));
    room->queries = (Queries *)cut(&from, rows * (int64_t)sizeof(Queries));
    room->places = (Place *)cut(&from, rows * (int64_t)sizeof(Place));
    room->x = (float *)cut(&from, rows * room->x_stride * 4);
    room->wide = (float *)cut(&from, rows * room->wide_stride * 4);
    room->some = (float *)cut(&from, rows * room->some_stride * 4);
    room->ready = cut(&from, rows * room->ready_stride);
    return from;
}

int64_t step_room(const Model *m, int64_t rows) {
    Room room;
    return lay_out(m, rows, NULL, &room) - (char *)NULL;
}

/* Where each token goes, and which queries are computed together. */
static void find_places(const Model *m, const Step *s, Room *room) {
    const int64_t most = larger(1, QUERIES / (m->heads / m->kv_heads));
    room->blocks = 0;
    for (int64_t text = 0, row = 0; text < s->texts; text++) {
        const int64_t *table = s->tables + s->begins[text], start = s->starts[text], count = s->counts[text];
        for (int64_t i = 0; i < count; i++) {
            const int64_t position = start + i;
            if (i % most == 0)
                room->queries[room->blocks++] = (Queries){row + i, least(most, count - i), position, table};
            room->places[row + i] = (Place){position, table[position / PANEL], position % PANEL, i + 1 == count};
        }
        row += count;
    }
}

INLINE float *row_of(const Room *room, int64_t r) { return room->x + r * room->x_stride; }

static void norm(const float *x, const float *weight, float eps, int64_t columns, float *out) {
    float lanes[PANEL] = {0}, square = 0;
    for (int64_t i = 0; i < columns; i += PANEL)
        for (int64_t l = 0; l < PANEL; l++) lanes[l] += x[i + l] * x[i + l];
    for (int64_t l = 0; l < PANEL; l++) square += lanes[l];
    const float by = 1 / sqrtf(square / (float)columns + eps);
    for (int64_t i = 0; i < columns; i++) out[i] = x[i] * by * weight[i];
}

/* Norms of all rows of x, ready for matrices of this kind. */
static void norm_rows(Team *team, const Model *m, const Room *room, int64_t rows, const float *weight, int64_t kind) {
    for (int64_t r; (r = take(team)) < rows; finish(team)) {
        float *out = room->some + r * room->some_stride;
        norm(row_of(room, r), weight, m->eps, m->hidden, out);
        get_ready(kind, out, m->hidden, 0, m->hidden, room->ready + r * room->ready_stride);
    }
    meet(team, rows);
}

static void multiply(
    Team *team, const Matrix *matrix, const Room *room, int64_t rows, float *out, int64_t stride, int add) {
    product(team, matrix, room->ready, room->ready_stride, rows, out, stride, add);
}

static void embed(Team *team, const Model *m, const Step *s, const Room *room) {
    for (int64_t r; (r = take(team)) < s->rows; finish(team)) {
        float *x = row_of(room, r);
        const int64_t at = s->ids[r] * m->hidden;
        for (int64_t i = 0; i < m->hidden; i++)
            x[i] = m->kind == FLOAT ? ((const float *)m->embedding)[at + i]
                                    : wide(((const bf16 *)m->embedding)[at + i]);
    }
    meet(team, s->rows);
}

static void turn_rows(Team *team, const Model *m, const Step *s, const Room *room, const Heads *heads) {
    for (int64_t r; (r = take(team)) < s->rows; finish(team)) {
        const Place *place = room->places + r;
        const float *angles = m->angles + place->position * m->size;
        turn(heads, room->wide + r * room->wide_stride, angles, place->page, place->slot, place->last);
    }
    meet(team, s->rows);
}

/* Attention of all rows. After the last layer's only the wanted rows of x go on: they move to the front meanwhile. */
static void attend_rows(Team *team, const Model *m, const Step *s, const Room *room, const Heads *heads, int last) {
    const int64_t parts = room->blocks * heads->kv_heads + last;
    for (int64_t part; (part = take(team)) < parts; finish(team)) {
        if (part == room->blocks * heads->kv_heads) {
            for (int64_t r = 0; r < s->wanted; r++)
                memmove(row_of(room, r), row_of(room, s->wanted_rows[r]), (size_t)m->hidden * 4);
            continue;
        }
        const Queries *queries = room->queries + part / heads->kv_heads;
        attend(heads, queries, part % heads->kv_heads, room->wide, room->wide_stride, room->some, room->some_stride);
    }
    meet(team, parts);
}

/* silu(gate) * up of all rows, ready; both lie in `wide`, gates first. */
static void swiglu(Team *team, const Model *m, const Room *room, int64_t rows, int64_t kind) {
    enum { BLOCK = 512 };
    const int64_t blocks = parts_of(m->ffn, BLOCK);
    for (int64_t part; (part = take(team)) < rows * blocks; finish(team)) {
        const int64_t r = part / blocks, from = part % blocks * BLOCK, to = least(from + BLOCK, m->ffn);
        const float *gate = room->wide + r * room->wide_stride, *up = gate + m->ffn;
        float *out = room->some + r * room->some_stride;
        for (int64_t i = from; i < to; i++) out[i] = gate[i] / (1 + exponential(-gate[i])) * up[i];
        get_ready(kind, out, m->ffn, from, to, room->ready + r * room->ready_stride);
    }
    meet(team, rows * blocks);
}

static void go_through(Team *team, const Model *m, const Step *s, const Room *room) {
    const int64_t layer_bytes = 2 * m->kv_heads * s->pages * PANEL * m->size * (m->kind == FLOAT ? 4 : 2);
    const int64_t seen_columns = m->heads * m->size;
    int64_t rows = s->rows;
    embed(team, m, s, room);
    for (int64_t l = 0; l < m->layers; l++) {
        const Layer *layer = m->layer + l;
        const Heads heads = {m->kind, m->heads, m->kv_heads, m->size, s->pages, (char *)s->store + l * layer_bytes};
        norm_rows(team, m, room, rows, layer->before_attention, layer->qkv.kind);
        multiply(team, &layer->qkv, room, rows, room->wide, room->wide_stride, 0);
        turn_rows(team, m, s, room, &heads);
        const int last = l + 1 == m->layers; /* from here on only what is wanted */
        if (last) rows = s->wanted;
        if (!rows) return;
        attend_rows(team, m, s, room, &heads, last);
        for (int64_t r; (r = take(team)) < rows; finish(team)) {
            const float *seen = room->some + (last ? s->wanted_rows[r] : r) * room->some_stride;
            get_ready(layer->out.kind, seen, seen_columns, 0, seen_columns, room->ready + r * room->ready_stride);
        }
        meet(team, rows);
        multiply(team, &layer->out, room, rows, room->x, room->x_stride, 1);
        norm_rows(team, m, room, rows, layer->before_ffn, layer->gate_up.kind);
        multiply(team, &layer->gate_up, room, rows, room->wide, room->wide_stride, 0);
        swiglu(team, m, room, rows, layer->down.kind);
        multiply(team, &layer->down, room, rows, room->x, room->x_stride, 1);
    }
    norm_rows(team, m, room, rows, m->norm, m->head.kind);
    multiply(team, &m->head, room, rows, s->logits, s->logits_stride, 0);
}

void step(const Model *m, const Step *s) {
    Room room;
    lay_out(m, s->rows, s->room, &room);
    find_places(m, s, &room);
    memset(room.phases, 0, (size_t)((m->layers + 1) * PHASES) * sizeof(Phase));
#pragma omp parallel num_threads((int)s->threads)
    {
        Team team = {(int)s->threads, room.phases};
        go_through(&team, m, s, &room);
    }
}

/* out (rows, stride) = x (rows, columns) W^T. room: rows * ready_bytes(columns). */
void matrix_product(
    const Matrix *m, const float *x, int64_t columns, int64_t rows, float *out, int64_t stride, char *room,
    int64_t threads) {
    Phase phases[3] = {{0, 0}};
#pragma omp parallel num_threads((int)threads)
    {
        Team team = {(int)threads, phases};
        for (int64_t r; (r = take(&team)) < rows; finish(&team)) {
            get_ready(m->kind, x + r * columns, columns, 0, columns, room + r * ready_bytes(columns));
        }
        meet(&team, rows);
        product(&team, m, room, ready_bytes(columns), rows, out, stride, 0);
    }
}

int64_t row_room(int64_t columns) { return ready_bytes(columns); }
