/* The innermost loops: a few rows of activations times a few panels of a matrix, with sums in registers.
 *
 * A panel stores 16 adjacent outputs, so a product adds vectors and never sums within one. The weights of one input
 * (float), two (bfloat16) or four (int8, int4) are stored together:
 *
 *     float     [columns][16]                 bfloat16  [columns / 2][16][2]
 *     int8      [columns / 4][16][4]          int4      [columns / 32][4 x [16][4] bytes, then [16] scale and zero]
 *
 * Activations are float with float and bfloat16 weights (pairs of bfloat16 where the processor multiplies those), and
 * int8 with a scale per 32 elements with int8 and int4 weights. Each sum is added in the same order whatever other rows
 * and panels are computed with it, so a row's result does not depend on how many there are. rows and panels are
 * constants where these functions are inlined, so that loops over them are unrolled.
 */
#include "vector.h"

#ifdef __AVX512F__
enum { MOST_ROWS = 8, MOST_INTEGER_ROWS = 8, MOST_TILE = 16 };
#else
enum { MOST_ROWS = 6, MOST_INTEGER_ROWS = 4, MOST_TILE = 6 };
#endif
#define UNROLL _Pragma("GCC unroll 16")

/* Where a tile's operands are. next and step are in units of the weights: floats, or pairs of bfloat16. */
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

/* x: float, or pairs of bfloat16 where the processor multiplies those. */
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

/* -- integers ------------------------------------------------------------------------------------------------------ */

enum { GROUP = 32, GROUP_BYTES = GROUP * PANEL / 2 + PANEL * 4 }; /* inputs that share a scale; bytes of int4 per panel */

/* A row of activations in int8: the codes, then each group's scale, then each group's scale times its sum of codes. */
INLINE const float *scales_of(const void *row, int64_t columns) {
    return (const float *)((const int8_t *)row + columns);
}

/* Add to each of LANES sums 4 products of unsigned weights below 16 and x (4 int8, the same for all). At most 8 of
 * these may be added before `settled`. */
INLINE ints add_small(ints sum, ints w, int32_t x) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return (ints)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)w, _mm256_set1_epi32(x)));
#else
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 4; i++) sum[l] += (w[l] >> 8 * i & 255) * (int8_t)(x >> 8 * i);
    return sum;
#endif
}

INLINE ints settled(ints sum) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return (ints)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1));
#else
    return sum;
#endif
}

/* The same for int8 weights, without `settled`. With VNNI the weights are offset by 128: see tile_int8. */
INLINE ints add_signed(ints sum, ints w, int32_t x) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)(w ^ (int32_t)0x80808080), _mm512_set1_epi32(x));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i signs = _mm256_sign_epi8(_mm256_set1_epi32(x), (__m256i)w);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), signs);
    return sum + (ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 4; i++) sum[l] += (int8_t)(w[l] >> 8 * i) * (int8_t)(x >> 8 * i);
    return sum;
#endif
}

INLINE vec floats(ints values) { return __builtin_convertvector(values, vec); }

/* One panel of int8. Its scales, one per output, are applied by the caller. */
INLINE void tile_int8(const Operands *o, const int rows, float *sums) {
    vec total[MOST_INTEGER_ROWS * PARTS] = {0};
    const int64_t groups = o->columns / GROUP;
    const char *w = o->w;
    for (int64_t g = 0; g < groups; g++) {
        ints sum[MOST_INTEGER_ROWS * PARTS] = {0};
        _Pragma("GCC unroll 1") for (int k = 0; k < GROUP / 4; k++, w += PANEL * 4) {
            ints weight[PARTS];
            UNROLL for (int i = 0; i < PARTS; i++) weight[i] = load_ints(w + i * LANES * 4);
            UNROLL for (int r = 0; r < rows; r++) {
                const int32_t x = ((const int32_t *)((const char *)o->x + r * o->stride))[g * (GROUP / 4) + k];
                UNROLL for (int i = 0; i < PARTS; i++)
                    sum[r * PARTS + i] = add_signed(sum[r * PARTS + i], weight[i], x);
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            const float *scales = scales_of((const char *)o->x + r * o->stride, o->columns);
            UNROLL for (int i = 0; i < PARTS; i++) {
                total[r * PARTS + i] += floats(sum[r * PARTS + i]) * scales[g];
#ifdef __AVX512VNNI__
                total[r * PARTS + i] -= 128 * scales[groups + g];
#endif
            }
        }
    }
    UNROLL for (int i = 0; i < rows * PARTS; i++) store(sums + i * LANES, total[i]);
}

/* One panel of int4: w = (code - 8) * scale + zero. */
INLINE void tile_int4(const Operands *o, const int rows, float *sums) {
    vec total[MOST_INTEGER_ROWS * PARTS] = {0};
    const int64_t groups = o->columns / GROUP;
    const char *w = o->w;
    for (int64_t g = 0; g < groups; g++, w += GROUP_BYTES) {
        ints sum[MOST_INTEGER_ROWS * PARTS] = {0};
        _Pragma("GCC unroll 1") for (int k = 0; k < GROUP / 8; k++) UNROLL for (int high = 0; high < 2; high++) {
            ints weight[PARTS];
            UNROLL for (int i = 0; i < PARTS; i++)
                weight[i] = load_ints(w + (k * PANEL + i * LANES) * 4) >> 4 * high & 0x0f0f0f0f;
            UNROLL for (int r = 0; r < rows; r++) {
                const int32_t *x = (const int32_t *)((const char *)o->x + r * o->stride) + g * (GROUP / 4);
                UNROLL for (int i = 0; i < PARTS; i++)
                    sum[r * PARTS + i] = add_small(sum[r * PARTS + i], weight[i], x[2 * k + high]);
            }
        }
        UNROLL for (int i = 0; i < PARTS; i++) {
            const ints both = load_ints(w + GROUP * PANEL / 2 + i * LANES * 4);
            const vec scale = (vec)(both << 16), zero = (vec)(both & (int32_t)0xffff0000) - 8 * scale;
            UNROLL for (int r = 0; r < rows; r++) {
                const float *scales = scales_of((const char *)o->x + r * o->stride, o->columns);
                total[r * PARTS + i] += floats(settled(sum[r * PARTS + i])) * (scale * scales[g]);
                total[r * PARTS + i] += zero * scales[groups + g];
            }
        }
    }
    UNROLL for (int i = 0; i < rows * PARTS; i++) store(sums + i * LANES, total[i]);
}

/* -- by number of rows --------------------------------------------------------------------------------------------- */

/* How many panels a tile of so many rows takes at once: enough sums that no addition waits for another. */
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

#define ALONE(TILE, R) \
    case R: TILE(o, R, sums); break;
#ifdef __AVX512F__
#define MORE(TILE) ALONE(TILE, 5) ALONE(TILE, 6) ALONE(TILE, 7) ALONE(TILE, 8)
#else
#define MORE(TILE)
#endif
#define CHOOSE_ALONE(NAME, TILE)                                                                                  \
    static __attribute__((noinline)) void NAME(const Operands *o, int64_t rows, int panels, float *sums) {        \
        (void)panels;                                                                                             \
        switch (rows) { ALONE(TILE, 1) ALONE(TILE, 2) ALONE(TILE, 3) ALONE(TILE, 4) MORE(TILE) }                   \
    }

/* sums: (rows, panels, PANEL). rows: 1 to MOST_ROWS; panels: 1, or tile_width(rows). Integers: one panel, and at most
 * MOST_INTEGER_ROWS. */
CHOOSE(multiply_float, tile_float)
CHOOSE(multiply_bf16, tile_bf16)
CHOOSE_ALONE(multiply_int8, tile_int8)
CHOOSE_ALONE(multiply_int4, tile_int4)
