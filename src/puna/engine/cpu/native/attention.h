/* Attention over KV blocks of 16 tokens, stored as panels: the products of tile.h read them in place.
 *
 * A block of keys is a panel whose outputs are its tokens; a block of values has a panel for each 16 elements of a
 * head, whose inputs are its tokens. The queries of neighbouring tokens, and of the heads that share keys, are the
 * rows. The softmax runs over chunks of CHUNK keys (online softmax, arXiv 2205.14135), with the same boundaries for every
 * query.
 */
#include "product.h"

enum { CHUNK = 128, QUERIES = 32 };

typedef struct {
    int64_t kind, heads, kv_heads, size; /* kind: FLOAT or BF16; size: head_dim */
    int64_t blocks;
    void *store; /* of one layer: (2, kv_heads, blocks, PANEL * size) */
} Heads;

/* Queries first..first + count of one sequence, at positions from `start` on. */
typedef struct {
    int64_t first, count, start;
    const int64_t *table; /* the block table of the sequence */
} Queries;

INLINE void *block_of(const Heads *heads, int values, int64_t head, int64_t block) {
    const int64_t at = (values * heads->kv_heads + head) * heads->blocks + block;
    return (char *)heads->store + at * PANEL * heads->size * (heads->kind == FLOAT ? 4 : 2);
}

INLINE void rotate_pair(float *at, const float *rotation, float scale) {
    const float a = at[0], b = at[1];
    at[0] = (a * rotation[0] - b * rotation[1]) * scale;
    at[1] = (a * rotation[1] + b * rotation[0]) * scale;
}

/* Rotate and scale a token's queries in place, and write its keys and values to its block. qkv: (heads + 2 kv_heads,
 * size), the two elements of a pair adjacent; rotations: (size / 2, 2), cosine and sine. last: no later token of its
 * sequence is in the step. */
static void rotate(const Heads *heads, float *qkv, const float *rotations, int64_t block, int64_t slot, int last) {
    const int64_t size = heads->size;
    const float scale = 1 / sqrtf((float)size);
    for (int64_t h = 0; h < heads->heads; h++)
        for (int64_t i = 0; i < size; i += 2) rotate_pair(qkv + h * size + i, rotations + i, scale);
    for (int64_t h = 0; h < heads->kv_heads; h++) {
        float *key = qkv + (heads->heads + h) * size, *value = key + heads->kv_heads * size;
        void *keys = block_of(heads, 0, h, block), *values = block_of(heads, 1, h, block);
        for (int64_t i = 0; i < size; i += 2) rotate_pair(key + i, rotations + i, 1);
        if (heads->kind == FLOAT) {
            for (int64_t i = 0; i < size; i++) ((float *)keys)[i * PANEL + slot] = key[i];
            memcpy((float *)values + slot * size, value, (size_t)size * 4);
            continue;
        }
        for (int64_t i = 0; i < size; i++)
            ((bf16 *)keys)[i / 2 * 2 * PANEL + slot * 2 + i % 2] = narrow(key[i]);
        bf16 *to = (bf16 *)values + slot / 2 * 2 * size;
        for (int64_t i = 0; i < size; i++) to[2 * i + slot % 2] = narrow(value[i]);
        if (last && slot % 2 == 0) /* its neighbour is multiplied by 0, so it must be finite */
            for (int64_t i = 0; i < size; i++) to[2 * i + 1] = 0;
    }
}

/* The maximum of `largest` and the first `visible` scores; those after them, up to `all`, become -inf. */
static float find_largest(float *scores, int visible, int all, float largest) {
    float lanes[PANEL];
    for (int l = 0; l < PANEL; l++) lanes[l] = largest;
    for (int t = visible; t < all; t++) scores[t] = -INFINITY;
    for (int t = 0; t < all; t += PANEL)
        for (int l = 0; l < PANEL; l++) lanes[l] = scores[t + l] > lanes[l] ? scores[t + l] : lanes[l];
    for (int l = 0; l < PANEL; l++) largest = lanes[l] > largest ? lanes[l] : largest;
    return largest;
}

/* Replace scores by e^(score - largest), 0 for -inf; returns their sum. */
static float weigh(float *scores, int all, float largest) {
    float lanes[PANEL] = {0}, total = 0;
    for (int t = 0; t < all; t += PANEL)
        for (int l = 0; l < PANEL; l++) {
            const float score = scores[t + l], weight = exponential(score - largest);
            scores[t + l] = score == -INFINITY ? 0 : weight;
            lanes[l] += scores[t + l];
        }
    for (int l = 0; l < PANEL; l++) total += lanes[l];
    return total;
}

/* Let the queries of one key-value head attend to all tokens of their sequence up to themselves. qkv: all rows of the
 * step, rotated; out: (rows, out_stride) floats. */
static void attend(
    const Heads *heads, const Queries *queries, int64_t head, const float *qkv, int64_t qkv_stride, float *out,
    int64_t out_stride) {
    const int64_t size = heads->size, group = heads->heads / heads->kv_heads, rows = queries->count * group;
    const int64_t length = queries->start + queries->count, wide_panels = size / PANEL;
    void (*multiply)(const Operands *, int64_t, int, float *) = heads->kind == FLOAT ? multiply_float : multiply_bf16;
    float query[rows * size], scores[rows * CHUNK], sums[rows * size], highest[rows], totals[rows];
    float tile[MOST_TILE * PANEL] __attribute__((aligned(64)));
    for (int64_t r = 0; r < rows; r++) {
        const float *from = qkv + (queries->first + r / group) * qkv_stride + (head * group + r % group) * size;
        if (takes_float(heads->kind))
            memcpy(query + r * size, from, (size_t)size * 4);
        else
            pack(BF16, from, size, 0, size, query + r * size);
        highest[r] = -INFINITY, totals[r] = 0;
    }
    memset(sums, 0, sizeof(sums));
    for (int64_t begin = 0; begin < length; begin += CHUNK) {
        const int64_t keys = least(length - begin, CHUNK), blocks = parts_of(keys, PANEL);
        const int64_t *table = queries->table + begin / PANEL;
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t first = 0, count; first < rows; first += count) {
                count = least(rows - first, MOST_ROWS);
                const void *block_keys = block_of(heads, 0, head, table[block]);
                const Operands o = {block_keys, 0, PANEL, query + first * size, size * 4, size};
                multiply(&o, count, 1, tile);
                for (int64_t r = 0; r < count; r++)
                    memcpy(scores + (first + r) * CHUNK + block * PANEL, tile + r * PANEL, PANEL * 4);
            }
        for (int64_t r = 0; r < rows; r++) {
            float *score = scores + r * CHUNK, *sum = sums + r * size;
            const int64_t visible = least(keys, queries->start + r / group + 1 - begin);
            const float top = find_largest(score, visible < 0 ? 0 : (int)visible, (int)blocks * PANEL, highest[r]);
            const float weight = weigh(score, (int)blocks * PANEL, top);
            const float kept = begin ? exponential(highest[r] - top) : 1;
            totals[r] = totals[r] * kept + weight, highest[r] = top;
            for (int64_t i = 0; i < size; i++) sum[i] *= kept;
            if (!takes_float(heads->kind)) pack(BF16, score, CHUNK, 0, blocks * PANEL, score);
        }
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t tokens = least(keys - block * PANEL, PANEL);
            const char *values = block_of(heads, 1, head, table[block]);
            for (int64_t first = 0, count; first < rows; first += count) {
                count = least(rows - first, MOST_ROWS);
                const int most = tile_width(count);
                for (int64_t panel = 0, width; panel < wide_panels; panel += width) {
                    width = panel + most <= wide_panels ? most : 1;
                    const Operands o = {
                        .w = values + panel * PANEL * 4,
                        .next = PANEL,
                        .step = size,
                        .x = (const char *)(scores + first * CHUNK) + block * PANEL * (takes_float(heads->kind) ? 4 : 2),
                        .stride = CHUNK * 4,
                        .columns = heads->kind == FLOAT ? tokens : (tokens + 1) / 2 * 2,
                    };
                    multiply(&o, count, (int)width, tile);
                    for (int64_t r = 0; r < count; r++)
                        for (int64_t i = 0; i < width * PANEL; i++)
                            sums[(first + r) * size + panel * PANEL + i] += tile[r * width * PANEL + i];
                }
            }
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        float *to = out + (queries->first + r / group) * out_stride + (head * group + r % group) * size;
        for (int64_t i = 0; i < size; i++) to[i] = sums[r * size + i] / totals[r];
    }
}
