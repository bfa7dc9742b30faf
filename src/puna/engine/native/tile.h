/* The innermost loops: a few rows of activations times a few panels of a matrix, sums in registers.
 *
 * A panel holds 16 outputs side by side, so a product adds vectors and never sums up within one. Weights of one input
 * (float), two (bfloat16) or four (int8, int4) lie together:
 *
 *     float     [columns][16]                 bfloat16  [columns / 2][16][2]
 *     int8      [columns / 4][16][4]          int4      [columns / 32][4 x [16][4] bytes, then [16] scale and zero]
 *
 * Activations are float beside float and bfloat16 weights (pairs of bfloat16 where the processor multiplies those), and
 * int8 with a scale for each 32 beside int8 and int4. Each sum is added up in the same order whatever the rows and panels beside it, so a row's result does not depend on
 * how many there are. rows and panels are constants where these are inlined, so that loops over them are unrolled.
 */
#include "vector.h"

#ifdef __AVX512F__
enum { MOST_ROWS = 8, MOST_TILE = 16 };
#else
enum { MOST_ROWS = 6, MOST_TILE = 6 };
#endif
#define UNROLL _Pragma("GCC unroll 16")

/* Where a tile's operands lie. Units of next and step are the weights' own: floats, or pairs of bfloat16. */
typedef struct {
    const void *w;
    int64_t next, step; /* from one panel to the next; from one input (or pair) to the next */
    const void *x;
    int64_t stride;  /* from one row to the next, bytes */
    int64_t columns; /* inputs */
} Operands;

INLINE void tile_float(const Operands *o, const int rows, const int panels, float *sums) {
    vec sum[MOST_TILE * PARTS] = {0};
    const int parts = panels * PARTS;
    const float *w = o->w;
    for (int64_t k = 0; k < o->columns; k++, w += o->step) {
        vec weight[4 * PARTS];
        UNROLL for (int i = 0; i < parts; i++) weight[i] = load(w + i / PARTS * o->next + i % PARTS * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            const float x = ((const float *)((const char *)o->x + r * o->stride))[k];
            UNROLL for (int i = 0; i < parts; i++) sum[r * parts + i] += weight[i] * x;
        }
    }
    UNROLL for (int i = 0; i < rows * parts; i++) store(sums + i * LANES, sum[i]);
}

/* x: float, or where the processor multiplies bfloat16 pairs of it. */
INLINE void tile_bf16(const Operands *o, const int rows, const int panels, float *sums) {
    vec sum[MOST_TILE * PARTS] = {0};
    const int parts = panels * PARTS;
    const uint32_t *w = o->w;
    for (int64_t k = 0; k < o->columns / 2; k++, w += o->step) {
        ints both[4 * PARTS];
        UNROLL for (int i = 0; i < parts; i++) both[i] = load_ints(w + i / PARTS * o->next + i % PARTS * LANES);
#ifdef __AVX512BF16__
        UNROLL for (int r = 0; r < rows; r++) {
            const __m512bh x = (__m512bh)_mm512_set1_epi32(((const int32_t *)((const char *)o->x + r * o->stride))[k]);
            UNROLL for (int i = 0; i < parts; i++)
                sum[r * parts + i] = (vec)_mm512_dpbf16_ps((__m512)sum[r * parts + i], (__m512bh)both[i], x);
        }
#else
        UNROLL for (int second = 0; second < 2; second++) { /* of the pair */
            vec weight[4 * PARTS];
            UNROLL for (int i = 0; i < parts; i++)
                weight[i] = (vec)(second ? both[i] & (int32_t)0xffff0000 : both[i] << 16);
            UNROLL for (int r = 0; r < rows; r++) {
                const float x = ((const float *)((const char *)o->x + r * o->stride))[2 * k + second];
                UNROLL for (int i = 0; i < parts; i++) sum[r * parts + i] += weight[i] * x;
            }
        }
#endif
    }
    UNROLL for (int i = 0; i < rows * parts; i++) store(sums + i * LANES, sum[i]);
}

/* How many panels a tile of so many rows takes at once: enough sums that none waits for another. */
INLINE int tile_width(int64_t rows) {
    static const int8_t widths[] = {1, 4, 2, 2, 1, 1, 1, 1, 1};
    return MOST_TILE > 6 && rows > 3 ? 2 : widths[rows];
}

#define BOTH(TILE, R)                                    \
    case R:                                              \
        if (panels > 1)                                  \
            TILE(o, R, R < 2 ? 4 : 2, sums);             \
        else                                             \
            TILE(o, R, 1, sums);                         \
        break;
#define ONE(TILE, R) \
    case R: TILE(o, R, 1, sums); break;
#ifdef __AVX512F__
#define ROWS(TILE) BOTH(TILE, 4) BOTH(TILE, 5) BOTH(TILE, 6) BOTH(TILE, 7) BOTH(TILE, 8)
#else
#define ROWS(TILE) ONE(TILE, 4) ONE(TILE, 5) ONE(TILE, 6)
#endif
#define CHOOSE(NAME, TILE)                                                                                        \
    static __attribute__((noinline)) void NAME(const Operands *o, int64_t rows, int panels, float *sums) {        \
        switch (rows) { BOTH(TILE, 1) BOTH(TILE, 2) BOTH(TILE, 3) ROWS(TILE) }                                     \
    }

/* sums: (rows, panels, PANEL). rows: 1 to MOST_ROWS; panels: 1, or tile_width(rows). */
CHOOSE(multiply_float, tile_float)
CHOOSE(multiply_bf16, tile_bf16)
