/* Matrix products: rows of activations times a matrix in panels, divided among the threads of a team. */
#include "tile.h"
#include <sched.h>

enum { FLOAT = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

/* A matrix (outputs, columns) in panels (see tile.h); scales: for int8, one per output, padded to whole panels. */
typedef struct {
    int64_t kind, outputs, columns;
    const void *codes;
    const float *scales;
} Matrix;

/* Threads that go through the same phases. The parts of a phase are handed out by a counter of its own, and it is over
 * when all are done: no thread waits for another that was delayed elsewhere and has taken none. */
typedef struct {
    int64_t taken, done;
} Phase;

typedef struct {
    int threads;
    Phase *phase; /* the current one */
} Team;

INLINE int64_t take(const Team *team) { return __atomic_fetch_add(&team->phase->taken, 1, __ATOMIC_RELAXED); }

INLINE void finish(const Team *team) { __atomic_fetch_add(&team->phase->done, 1, __ATOMIC_RELEASE); }

/* Enter the next phase when all parts of this one are done. */
static void barrier(Team *team, int64_t parts) {
    for (int64_t turns = 0; __atomic_load_n(&team->phase->done, __ATOMIC_ACQUIRE) < parts; turns++) {
        if (turns > 2000)
            sched_yield(); /* the thread with the last part may be waiting for this core */
#ifdef __SSE2__
        else
            _mm_pause();
#endif
    }
    team->phase++;
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t parts_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

INLINE int takes_float(int64_t kind) {
#ifdef __AVX512BF16__
    return kind == FLOAT;
#else
    return kind <= BF16;
#endif
}

INLINE int64_t panel_bytes(const Matrix *m) {
    if (m->kind == INT4) return m->columns / GROUP * GROUP_BYTES;
    return PANEL * m->columns * (m->kind == FLOAT ? 4 : m->kind == BF16 ? 2 : 1);
}

/* -- activations in the form a kind of matrix needs ---------------------------------------------------------------- */

/* Bytes of a packed row. */
INLINE int64_t packed_bytes(int64_t columns) { return 4 * columns + 128; }

/* Quantize a group of a row, `count` numbers and then zeros, to int8. A non-finite value makes the scale non-finite. */
static void quantize_group(const float *x, int64_t count, int8_t *codes, float *scale, float *sum) {
    float group[GROUP] = {0}, largest = 0, not_finite = 0;
    memcpy(group, x, (size_t)count * 4);
    for (int i = 0; i < GROUP; i++) largest = fabsf(group[i]) > largest ? fabsf(group[i]) : largest;
    for (int i = 0; i < GROUP; i++) not_finite += group[i] * 0;
    const float by = largest > 0 ? 127 / largest : 0;
    int32_t all = 0;
    for (int i = 0; i < GROUP; i++) {
        const int32_t code = (int32_t)floorf(group[i] * by + 0.5f);
        codes[i] = (int8_t)code;
        all += (int8_t)code;
    }
    *scale = largest / 127 + not_finite;
    *sum = *scale * (float)all;
}

/* Convert columns from..to of a row of `columns` floats to the form the kind needs. `from` is a multiple of GROUP; so
 * is `to`, unless the row ends there. */
static void pack(int64_t kind, const float *row, int64_t columns, int64_t from, int64_t to, void *out) {
    if (takes_float(kind)) {
        memcpy((float *)out + from, row + from, (size_t)(to - from) * 4);
    } else if (kind == BF16) {
        for (int64_t i = from; i < to; i++) ((bf16 *)out)[i] = narrow(row[i]);
    } else {
        const int64_t groups = parts_of(columns, GROUP);
        float *scales = (float *)((int8_t *)out + groups * GROUP);
        for (int64_t i = from; i < to; i += GROUP)
            quantize_group(
                row + i, least(GROUP, to - i), (int8_t *)out + i, scales + i / GROUP, scales + groups + i / GROUP);
    }
}

/* -- the product --------------------------------------------------------------------------------------------------- */

/* out (+)= x W^T for all rows. x: packed rows, `stride` bytes apart; out: rows of floats, `out_stride` floats apart,
 * with space for whole panels. */
static void product(
    Team *team, const Matrix *m, const void *x, int64_t stride, int64_t rows, float *out, int64_t out_stride,
    int add) {
    static void (*const multiply[])(const Operands *, int64_t, int, float *) = {
        multiply_float, multiply_bf16, multiply_int8, multiply_int4};
    if (!rows) return;
    const int64_t panels = parts_of(m->outputs, PANEL), bytes = panel_bytes(m);
    const int integers = m->kind >= INT8;
    const int64_t blocks = parts_of(rows, integers ? MOST_INTEGER_ROWS : MOST_ROWS); /* of about equal size */
    const int64_t share = parts_of(parts_of(panels, 4 * team->threads), 4) * 4, parts = parts_of(panels, share);
    const int most = integers ? 1 : tile_width(parts_of(rows, blocks));
    float sums[MOST_TILE * PANEL] __attribute__((aligned(64)));
    for (int64_t part; (part = take(team)) < parts; finish(team)) {
        const int64_t end = least((part + 1) * share, panels);
        for (int64_t panel = part * share, width; panel < end; panel += width) {
            width = panel + most <= end ? most : 1;
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t first = rows * block / blocks, count = rows * (block + 1) / blocks - first;
                const Operands o = {
                    .w = (const char *)m->codes + panel * bytes,
                    .next = bytes / 4,
                    .step = PANEL,
                    .x = (const char *)x + first * stride,
                    .stride = stride,
                    .columns = m->columns,
                };
                multiply[m->kind](&o, count, (int)width, sums);
                if (m->kind == INT8)
                    for (int64_t i = 0; i < count * PANEL; i++) sums[i] *= m->scales[panel * PANEL + i % PANEL];
                for (int64_t r = 0; r < count; r++) {
                    float *to = out + (first + r) * out_stride + panel * PANEL;
                    for (int64_t i = 0; i < width * PANEL; i++)
                        to[i] = sums[r * width * PANEL + i] + (add ? to[i] : 0);
                }
            }
        }
    }
    barrier(team, parts);
}
