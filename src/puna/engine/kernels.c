/* A layer's steps in bfloat16 on a CPU: products with few rows, norms, rotation and pages, attention, SwiGLU.
 *
 * A product with few rows takes the time of reading the matrix once, so rows of the matrix are read one after the other.
 * Between products one call each replaces some ten small operations, whose dispatch costs more than their arithmetic.
 * Attention reads pages where they lie. Sums are float. The compiler makes vector code of the plain loops; kernels.py has
 * it compiled where it runs.
 */
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float wide(bf16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

static inline bf16 narrow(float value) { /* to the nearest, ties to even; a NaN stays one */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bf16)((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16 | 64) : rounded);
}

/* e^x as a polynomial that loops can be made vectors of (libm's cannot): relative error below 1e-6. */
static inline float exponential(float x) {
    x = x < -87 ? -87 : x > 88 ? 88 : x;
    const float whole = floorf(x * 1.44269504f + 0.5f);
    const float part = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * part + 1.3981999507e-3f;
    sum = sum * part + 8.3334519073e-3f;
    sum = sum * part + 4.1665795894e-2f;
    sum = sum * part + 1.6666665459e-1f;
    sum = sum * part + 5.0000001201e-1f;
    sum = sum * part * part + part + 1;
    const int32_t bits = ((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return sum * power;
}

/* -- products ------------------------------------------------------------------------------------------------------ */

enum { LANES = 64 }; /* sums side by side, so that none waits for another */

static inline float total(const float *sums) {
    float all = 0;
    for (int l = 0; l < LANES; l++) all += sums[l];
    return all;
}

static inline float dot_bf16(const bf16 *w, const bf16 *x, int64_t columns) {
    int64_t i = 0;
    float rest = 0;
#ifdef __AVX512BF16__
    __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
    for (; i + 128 <= columns; i += 128) {
        a = _mm512_dpbf16_ps(a, (__m512bh)_mm512_loadu_si512(w + i), (__m512bh)_mm512_loadu_si512(x + i));
        b = _mm512_dpbf16_ps(b, (__m512bh)_mm512_loadu_si512(w + i + 32), (__m512bh)_mm512_loadu_si512(x + i + 32));
        c = _mm512_dpbf16_ps(c, (__m512bh)_mm512_loadu_si512(w + i + 64), (__m512bh)_mm512_loadu_si512(x + i + 64));
        d = _mm512_dpbf16_ps(d, (__m512bh)_mm512_loadu_si512(w + i + 96), (__m512bh)_mm512_loadu_si512(x + i + 96));
        __builtin_prefetch(w + i + 2048), __builtin_prefetch(w + i + 2080);
        __builtin_prefetch(w + i + 2112), __builtin_prefetch(w + i + 2144);
    }
    rest = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
#else
    float sums[LANES] = {0};
    for (; i + LANES <= columns; i += LANES)
        for (int l = 0; l < LANES; l++) sums[l] += wide(w[i + l]) * wide(x[i + l]);
    rest = total(sums);
#endif
    for (; i < columns; i++) rest += wide(w[i]) * wide(x[i]);
    return rest;
}

static inline float dot_int8(const int8_t *w, const float *x, int64_t columns) {
    int64_t i = 0;
    float sums[LANES] = {0};
    for (; i + LANES <= columns; i += LANES) {
        __builtin_prefetch(w + i + 2048);
        for (int l = 0; l < LANES; l++) sums[l] += (float)w[i + l] * x[i + l];
    }
    float rest = total(sums);
    for (; i < columns; i++) rest += (float)w[i] * x[i];
    return rest;
}

/* out (rows, outputs) = x (rows, columns) W^T. weight: (outputs, columns) bfloat16, or int8 where there are scales
 * (outputs); then room is for rows * columns floats. */
void product(
    const void *weight, const float *scales, const bf16 *x, int64_t rows, int64_t outputs, int64_t columns, float *room,
    bf16 *out, int threads) {
    if (scales)
        for (int64_t i = 0; i < rows * columns; i++) room[i] = wide(x[i]);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < outputs; n++)
        for (int64_t r = 0; r < rows; r++) {
            const int64_t row = n * columns, from = r * columns;
            const float sum = scales ? scales[n] * dot_int8((const int8_t *)weight + row, room + from, columns)
                                     : dot_bf16((const bf16 *)weight + row, x + from, columns);
            out[r * outputs + n] = narrow(sum);
        }
}

/* -- between products ---------------------------------------------------------------------------------------------- */

/* out = rms_norm(x) * weight. x, out: (rows, columns). */
void norm(const bf16 *x, const float *weight, float eps, int64_t rows, int64_t columns, bf16 *out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * columns > 32768)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *from = x + r * columns;
        bf16 *to = out + r * columns;
        float square = 0;
        for (int64_t i = 0; i < columns; i++) square += wide(from[i]) * wide(from[i]);
        const float by = 1 / sqrtf(square / (float)columns + eps);
        for (int64_t i = 0; i < columns; i++) to[i] = narrow(wide(from[i]) * by * weight[i]);
    }
}

/* out = silu(gate) * up. both: (rows, 2 * columns), gates first; out: (rows, columns). */
void swiglu(const bf16 *both, int64_t rows, int64_t columns, bf16 *out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * columns > 32768)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *gate = both + 2 * r * columns, *up = gate + columns;
        for (int64_t i = 0; i < columns; i++)
            out[r * columns + i] = narrow(wide(gate[i]) / (1 + exponential(-wide(gate[i]))) * wide(up[i]));
    }
}

/* Rotate queries and keys, and write keys and values to their places.
 *
 * qkv: (rows, heads + 2 * kv_heads, size), the two of a pair side by side. angles: (rows, size / 2, 2), cosine and sine.
 * keys, values: of one layer, (kv_heads, places, size). slots: (rows), each row's place. query: (rows, heads, size). */
void turn(
    const bf16 *qkv, const float *angles, const int64_t *slots, int64_t rows, int64_t heads, int64_t kv_heads,
    int64_t size, int64_t places, bf16 *query, bf16 *keys, bf16 *values, int threads) {
    const int64_t all = heads + 2 * kv_heads;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > 8)
    for (int64_t r = 0; r < rows; r++) {
        const float *angle = angles + r * size;
        for (int64_t h = 0; h < all; h++) {
            const bf16 *from = qkv + (r * all + h) * size;
            if (h >= heads + kv_heads) {
                memcpy(values + ((h - heads - kv_heads) * places + slots[r]) * size, from, (size_t)size * sizeof(bf16));
                continue;
            }
            bf16 *to = h < heads ? query + (r * heads + h) * size : keys + ((h - heads) * places + slots[r]) * size;
            for (int64_t i = 0; i < size; i += 2) {
                const float a = wide(from[i]), b = wide(from[i + 1]);
                to[i] = narrow(a * angle[i] - b * angle[i + 1]);
                to[i + 1] = narrow(a * angle[i + 1] + b * angle[i]);
            }
        }
    }
}

/* Let each row's queries see all tokens of its own text.
 *
 * query, out: (rows, heads, size). keys, values: of one layer, (kv_heads, pages, page_size, size). tables: (rows, width),
 * the pages of each text; lengths: (rows), its tokens. room: rows * heads * (longest + size) floats. */
void attend(
    const bf16 *query, const bf16 *keys, const bf16 *values, const int64_t *tables, const int64_t *lengths,
    int64_t rows, int64_t heads, int64_t kv_heads, int64_t size, int64_t pages, int64_t page_size, int64_t width,
    int64_t longest, float *room, bf16 *out, int threads) {
    const int64_t group = heads / kv_heads;
    const float scale = 1 / sqrtf((float)size);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t at = 0; at < rows * kv_heads; at++) {
        const int64_t r = at / kv_heads, h = at % kv_heads, length = lengths[r], first = r * heads + h * group;
        const bf16 *own_keys = keys + h * pages * page_size * size, *own_values = values + h * pages * page_size * size;
        const int64_t *table = tables + r * width;
        float *scores = room + first * (longest + size), *sums = scores + group * longest;
        for (int64_t g = 0; g < group; g++)
            for (int64_t i = 0; i < size; i++) sums[g * size + i] = wide(query[(first + g) * size + i]) * scale;
        for (int64_t t = 0; t < length; t++) {
            const bf16 *key = own_keys + (table[t / page_size] * page_size + t % page_size) * size;
            for (int64_t g = 0; g < group; g++) {
                float sum = 0;
                for (int64_t i = 0; i < size; i++) sum += wide(key[i]) * sums[g * size + i];
                scores[g * longest + t] = sum;
            }
        }
        for (int64_t g = 0; g < group; g++) {
            float *score = scores + g * longest, highest = score[0], total = 0;
            for (int64_t t = 1; t < length; t++) highest = score[t] > highest ? score[t] : highest;
            for (int64_t t = 0; t < length; t++) total += score[t] = exponential(score[t] - highest);
            for (int64_t t = 0; t < length; t++) score[t] /= total;
        }
        memset(sums, 0, (size_t)(group * size) * sizeof(float));
        for (int64_t t = 0; t < length; t++) {
            const bf16 *value = own_values + (table[t / page_size] * page_size + t % page_size) * size;
            for (int64_t g = 0; g < group; g++) {
                const float weight = scores[g * longest + t];
                for (int64_t i = 0; i < size; i++) sums[g * size + i] += weight * wide(value[i]);
            }
        }
        for (int64_t i = 0; i < group * size; i++) out[first * size + i] = narrow(sums[i]);
    }
}
