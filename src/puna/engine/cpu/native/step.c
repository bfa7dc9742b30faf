/* An engine step on a CPU in one call: tokens in, logits out, keys and values into their blocks.
 *
 * All threads go through all layers together and wait for each other where one needs the others' results. A token then
 * costs one read of the weights; calls and small operations in between would cost as much again. Activations are float.
 * kernels.py compiles this on the machine that runs it.
 */
#include "attention.h"

typedef struct {
    const float *attention_norm, *ffn_norm;
    Matrix qkv, out, gate_up, down;
} Layer;

typedef struct {
    int64_t layers, hidden, ffn, heads, kv_heads, head_dim;
    float eps;
    const Layer *layer;
    const float *norm;
    Matrix head;
    int64_t kind; /* of the embedding and of KV blocks: FLOAT or BF16 */
    const void *embedding;
    const float *rotations; /* (positions, head_dim / 2, 2), cosine and sine */
} Model;

typedef struct {
    int64_t rows;
    const int64_t *ids;
    int64_t sequences;
    const int64_t *starts, *counts;         /* of each sequence: position of its first new token; number of them */
    const int64_t *tables, *table_starts;   /* block tables of all sequences, end to end; where each begins */
    int64_t outputs;
    const int64_t *output_rows;             /* rows whose logits are needed, ascending */
    int64_t blocks;
    void *store;                            /* (layers, 2, kv_heads, blocks, PANEL * head_dim) */
    float *logits;                          /* (outputs, logits_stride) */
    int64_t logits_stride;
    void *workspace;                        /* step_workspace bytes */
    int64_t threads;
} Step;

typedef struct {
    int64_t position, block, slot;
    int last;
} Place;

typedef struct {
    int64_t x_stride, wide_stride, scratch_stride, packed_stride; /* the last in bytes, the others in floats */
    float *x, *wide, *scratch;
    char *packed;
    Queries *queries;
    int64_t query_groups;
    Place *places;
    Phase *phases;
} Workspace;

enum { PHASES = 10 };

static char *reserve(char **end, int64_t bytes) {
    char *at = *end;
    *end += (bytes + 63) / 64 * 64;
    return at;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Lay out a step's buffers from `from` on; returns where they end. Strides are not powers of two: such rows would
 * compete for the same cache lines. */
static char *lay_out(const Model *m, int64_t rows, char *from, Workspace *ws) {
    const int64_t qkv = (m->heads + 2 * m->kv_heads) * m->head_dim;
    const int64_t widest = larger(larger(m->hidden, m->heads * m->head_dim), m->ffn);
    ws->x_stride = m->hidden + PANEL;
    ws->wide_stride = larger(qkv, 2 * m->ffn) + PANEL;
    ws->scratch_stride = widest + PANEL;
    ws->packed_stride = packed_bytes(widest);
    ws->phases = (Phase *)reserve(&from, (m->layers + 1) * PHASES * (int64_t)sizeof(Phase));
    ws->queries = (Queries *)reserve(&from, rows * (int64_t)sizeof(Queries));
    ws->places = (Place *)reserve(&from, rows * (int64_t)sizeof(Place));
    ws->x = (float *)reserve(&from, rows * ws->x_stride * 4);
    ws->wide = (float *)reserve(&from, rows * ws->wide_stride * 4);
    ws->scratch = (float *)reserve(&from, rows * ws->scratch_stride * 4);
    ws->packed = reserve(&from, rows * ws->packed_stride);
    return from;
}

int64_t step_workspace(const Model *m, int64_t rows) {
    Workspace ws;
    return lay_out(m, rows, NULL, &ws) - (char *)NULL;
}

/* Where each token is stored, and which queries are computed together. */
static void find_places(const Model *m, const Step *s, Workspace *ws) {
    const int64_t most = larger(1, QUERIES / (m->heads / m->kv_heads));
    ws->query_groups = 0;
    for (int64_t sequence = 0, row = 0; sequence < s->sequences; sequence++) {
        const int64_t *table = s->tables + s->table_starts[sequence];
        const int64_t start = s->starts[sequence], count = s->counts[sequence];
        for (int64_t i = 0; i < count; i++) {
            const int64_t position = start + i;
            if (i % most == 0)
                ws->queries[ws->query_groups++] = (Queries){row + i, least(most, count - i), position, table};
            ws->places[row + i] = (Place){position, table[position / PANEL], position % PANEL, i + 1 == count};
        }
        row += count;
    }
}

INLINE float *row_of(const Workspace *ws, int64_t r) { return ws->x + r * ws->x_stride; }

static void norm(const float *x, const float *weight, float eps, int64_t columns, float *out) {
    float lanes[PANEL] = {0}, square = 0;
    for (int64_t i = 0; i < columns; i += PANEL)
        for (int64_t l = 0; l < PANEL; l++) lanes[l] += x[i + l] * x[i + l];
    for (int64_t l = 0; l < PANEL; l++) square += lanes[l];
    const float by = 1 / sqrtf(square / (float)columns + eps);
    for (int64_t i = 0; i < columns; i++) out[i] = x[i] * by * weight[i];
}

/* Norms of all rows of x, packed for matrices of this kind. */
static void norm_rows(
    Team *team, const Model *m, const Workspace *ws, int64_t rows, const float *weight, int64_t kind) {
    for (int64_t r; (r = take(team)) < rows; finish(team)) {
        float *out = ws->scratch + r * ws->scratch_stride;
        norm(row_of(ws, r), weight, m->eps, m->hidden, out);
        pack(kind, out, m->hidden, 0, m->hidden, ws->packed + r * ws->packed_stride);
    }
    barrier(team, rows);
}

static void multiply(
    Team *team, const Matrix *matrix, const Workspace *ws, int64_t rows, float *out, int64_t stride, int add) {
    product(team, matrix, ws->packed, ws->packed_stride, rows, out, stride, add);
}

static void embed(Team *team, const Model *m, const Step *s, const Workspace *ws) {
    for (int64_t r; (r = take(team)) < s->rows; finish(team)) {
        float *x = row_of(ws, r);
        const int64_t at = s->ids[r] * m->hidden;
        for (int64_t i = 0; i < m->hidden; i++)
            x[i] = m->kind == FLOAT ? ((const float *)m->embedding)[at + i]
                                    : wide(((const bf16 *)m->embedding)[at + i]);
    }
    barrier(team, s->rows);
}

static void rotate_rows(Team *team, const Model *m, const Step *s, const Workspace *ws, const Heads *heads) {
    for (int64_t r; (r = take(team)) < s->rows; finish(team)) {
        const Place *place = ws->places + r;
        const float *rotations = m->rotations + place->position * m->head_dim;
        rotate(heads, ws->wide + r * ws->wide_stride, rotations, place->block, place->slot, place->last);
    }
    barrier(team, s->rows);
}

/* Attention of all rows. In the last layer only the output rows of x are still needed: they move to the front. */
static void attend_rows(Team *team, const Model *m, const Step *s, const Workspace *ws, const Heads *heads, int last) {
    const int64_t parts = ws->query_groups * heads->kv_heads + last;
    for (int64_t part; (part = take(team)) < parts; finish(team)) {
        if (part == ws->query_groups * heads->kv_heads) {
            for (int64_t r = 0; r < s->outputs; r++)
                memmove(row_of(ws, r), row_of(ws, s->output_rows[r]), (size_t)m->hidden * 4);
            continue;
        }
        const Queries *queries = ws->queries + part / heads->kv_heads;
        attend(heads, queries, part % heads->kv_heads, ws->wide, ws->wide_stride, ws->scratch, ws->scratch_stride);
    }
    barrier(team, parts);
}

/* silu(gate) * up of all rows, packed; both are in `wide`, gates first. */
static void swiglu(Team *team, const Model *m, const Workspace *ws, int64_t rows, int64_t kind) {
    enum { BLOCK = 512 };
    const int64_t blocks = parts_of(m->ffn, BLOCK);
    for (int64_t part; (part = take(team)) < rows * blocks; finish(team)) {
        const int64_t r = part / blocks, from = part % blocks * BLOCK, to = least(from + BLOCK, m->ffn);
        const float *gate = ws->wide + r * ws->wide_stride, *up = gate + m->ffn;
        float *out = ws->scratch + r * ws->scratch_stride;
        for (int64_t i = from; i < to; i++) out[i] = gate[i] / (1 + exponential(-gate[i])) * up[i];
        pack(kind, out, m->ffn, from, to, ws->packed + r * ws->packed_stride);
    }
    barrier(team, rows * blocks);
}

static void forward(Team *team, const Model *m, const Step *s, const Workspace *ws) {
    const int64_t layer_bytes = 2 * m->kv_heads * s->blocks * PANEL * m->head_dim * (m->kind == FLOAT ? 4 : 2);
    const int64_t attended_columns = m->heads * m->head_dim;
    int64_t rows = s->rows;
    embed(team, m, s, ws);
    for (int64_t l = 0; l < m->layers; l++) {
        const Layer *layer = m->layer + l;
        const Heads heads = {m->kind, m->heads, m->kv_heads, m->head_dim, s->blocks, (char *)s->store + l * layer_bytes};
        norm_rows(team, m, ws, rows, layer->attention_norm, layer->qkv.kind);
        multiply(team, &layer->qkv, ws, rows, ws->wide, ws->wide_stride, 0);
        rotate_rows(team, m, s, ws, &heads);
        const int last = l + 1 == m->layers; /* from here on only output rows */
        if (last) rows = s->outputs;
        if (!rows) return;
        attend_rows(team, m, s, ws, &heads, last);
        for (int64_t r; (r = take(team)) < rows; finish(team)) {
            const float *attended = ws->scratch + (last ? s->output_rows[r] : r) * ws->scratch_stride;
            pack(layer->out.kind, attended, attended_columns, 0, attended_columns, ws->packed + r * ws->packed_stride);
        }
        barrier(team, rows);
        multiply(team, &layer->out, ws, rows, ws->x, ws->x_stride, 1);
        norm_rows(team, m, ws, rows, layer->ffn_norm, layer->gate_up.kind);
        multiply(team, &layer->gate_up, ws, rows, ws->wide, ws->wide_stride, 0);
        swiglu(team, m, ws, rows, layer->down.kind);
        multiply(team, &layer->down, ws, rows, ws->x, ws->x_stride, 1);
    }
    norm_rows(team, m, ws, rows, m->norm, m->head.kind);
    multiply(team, &m->head, ws, rows, s->logits, s->logits_stride, 0);
}

void step(const Model *m, const Step *s) {
    Workspace ws;
    lay_out(m, s->rows, s->workspace, &ws);
    find_places(m, s, &ws);
    memset(ws.phases, 0, (size_t)((m->layers + 1) * PHASES) * sizeof(Phase));
#pragma omp parallel num_threads((int)s->threads)
    {
        Team team = {(int)s->threads, ws.phases};
        forward(&team, m, s, &ws);
    }
}

/* out (rows, stride) = x (rows, columns) W^T. workspace: rows * packed_bytes(columns). */
void matrix_product(
    const Matrix *m, const float *x, int64_t columns, int64_t rows, float *out, int64_t stride, char *workspace,
    int64_t threads) {
    Phase phases[3] = {{0, 0}};
#pragma omp parallel num_threads((int)threads)
    {
        Team team = {(int)threads, phases};
        for (int64_t r; (r = take(&team)) < rows; finish(&team)) {
            pack(m->kind, x + r * columns, columns, 0, columns, workspace + r * packed_bytes(columns));
        }
        barrier(&team, rows);
        product(&team, m, workspace, packed_bytes(columns), rows, out, stride, 0);
    }
}

int64_t row_workspace(int64_t columns) { return packed_bytes(columns); }
