/* What the Long-Short attention and its gradients share: tiles of queries, groups of columns, products of both.

   Vectors run over queries, so that sums, maxima and masks need no exchange between lanes, and keys and values are read
   where they lie, number by number. What lies between fits into a core's own cache. */

#include "../vectors.h"

#define LANES (2 * WIDE)    /* queries in a tile, those of all heads that read one key/value head */
#define COLUMNS 144         /* columns whose scores are made before they are used */

typedef struct {
    vector half[2];
} lanes; /* one number for each query of a tile */

/* Some columns. A query t of sample b sees those from low[b, t] to high[b, t] - 1; a null pointer adds nothing. */
typedef struct {
    const void *key, *values[2]; /* (B, G, columns, D or E); two kinds of values, both mixed by the same weights */
    int64_t key_strides[3], value_strides[2][3];
    const int32_t *low, *high; /* (B, T) */
    int64_t low_stride, high_stride;
    int64_t columns;
    const REAL *by_column; /* (B, columns), added to scores */
    int64_t by_column_stride;
    const REAL *by_query; /* (B, T), added to scores */
    int64_t by_query_stride;
    const REAL *by_head; /* (H), added to scores */
    /* For gradients only. Null pointers are not asked for. */
    REAL *of_key, *of_value; /* (parts, B, G, columns, D or E), added to */
    int64_t of_key_strides[4], of_value_strides[4];
    REAL *of_scores; /* (B, H, T), the sum over all columns */
} group;

typedef struct {
    const void *query; /* (B, H, T, D) */
    void *outs[2];     /* (B, H, T, E) */
    REAL *logarithms;  /* (B, H, T), of the sums of exponentials, or null */
    int64_t query_strides[3], out_strides[2][3];
    int64_t samples, heads, kv_heads, queries, size;
    int64_t value_sizes[2]; /* the second is 0 if there are no such values */
    double scale;
    int64_t bfloat16; /* whether query, keys, values and out are that, else REAL */
    int64_t threads;
    int64_t count;
    const group *groups;
    /* For gradients only, of the first kind of values. */
    const REAL *above; /* (B, H, T, E), the gradient of out */
    const REAL *delta; /* (B, H, T), the products of out and its gradient */
    REAL *of_query;    /* (B, H, T, D) */
    int64_t above_strides[3];
    int64_t parts; /* of each sequence, whose gradients of keys and values are apart */
} call;

/* A tile: a few queries, and the heads that they are of. The last one stands in for what is missing. */
typedef struct {
    int64_t time[LANES], head[LANES], count;
} tile;

/* What a tile sees of a group. */
typedef struct {
    union {
        INTEGER at[LANES];
        bits half[2];
    } low, high;
    union {
        REAL at[LANES];
        lanes as_lanes;
    } plus; /* added to the scores of a query, in base 2 */
    int64_t start, stop;     /* some queries see these columns */
    int64_t all_from, all_to; /* all queries see these */
} sight;

static inline int64_t place(const int64_t strides[3], int64_t b, int64_t h, int64_t t)
{
    return b * strides[0] + h * strides[1] + t * strides[2];
}

/* `multiply` for so many rows at once, whose sums stay in registers. */
#define PRODUCT(M)                                                                                                    \
    static inline void multiply_##M(lanes *out, const REAL *left, int64_t row_stride, int64_t stride,                  \
                                    const lanes *right, int64_t n, int add)                                            \
    {                                                                                                                  \
        lanes sums[M];                                                                                                 \
        _Pragma("GCC unroll 16") for (int m = 0; m < M; m++) sums[m] = (lanes){{{0}, {0}}};                            \
        for (int64_t k = 0; k < n; k++) {                                                                              \
            const vector first = right[k].half[0], second = right[k].half[1];                                          \
            _Pragma("GCC unroll 16") for (int m = 0; m < M; m++)                                                       \
            {                                                                                                          \
                const vector one = all(left[m * row_stride + k * stride]);                                             \
                sums[m].half[0] += one * first;                                                                        \
                sums[m].half[1] += one * second;                                                                       \
            }                                                                                                          \
        }                                                                                                              \
        _Pragma("GCC unroll 16") for (int m = 0; m < M; m++)                                                           \
        {                                                                                                              \
            if (add) sums[m].half[0] += out[m].half[0], sums[m].half[1] += out[m].half[1];                             \
            out[m] = sums[m];                                                                                          \
        }                                                                                                              \
    }
PRODUCT(1)
PRODUCT(2)
PRODUCT(4)
#if ROWS == 12
PRODUCT(8)
PRODUCT(12)
#else
PRODUCT(6)
#endif

/* out[m] = (or +=) sum over k < n of left[m * row_stride + k * stride] * right[k], m < rows. */
static inline void multiply(lanes *out, int64_t rows, const REAL *left, int64_t row_stride, int64_t stride,
                            const lanes *right, int64_t n, int add)
{
    int64_t m = 0;
#define STEP(M)                                                                                                        \
    for (; m + M <= rows; m += M) multiply_##M(out + m, left + m * row_stride, row_stride, stride, right, n, add);
#if ROWS == 12
    for (; m + 12 <= rows && rows - m != 16; m += 12)
        multiply_12(out + m, left + m * row_stride, row_stride, stride, right, n, add);
    STEP(8)
#else
    STEP(6)
#endif
    STEP(4)
    STEP(2)
    STEP(1)
}

/* Rows of some length, times a factor, as the lanes of columns: (LANES, size) to (size, LANES). */
static inline void to_lanes(const REAL *const rows[LANES], int64_t size, REAL factor, REAL *columns)
{
    for (int64_t l = 0; l < LANES; l += 4) {
        int64_t d = 0;
        for (; d + 4 <= size; d += 4) {
            quad block[4];
            for (int i = 0; i < 4; i++) block[i] = *(const quad *)(rows[l + i] + d);
            transpose(block);
            for (int i = 0; i < 4; i++) *(quad *)(columns + (d + i) * LANES + l) = block[i] * factor;
        }
        for (; d < size; d++)
            for (int i = 0; i < 4; i++) columns[d * LANES + l + i] = rows[l + i][d] * factor;
    }
}

/* The other way round. */
static inline void from_lanes(const REAL *columns, int64_t size, REAL *const rows[LANES])
{
    for (int64_t l = 0; l < LANES; l += 4) {
        int64_t d = 0;
        for (; d + 4 <= size; d += 4) {
            quad block[4];
            for (int i = 0; i < 4; i++) block[i] = *(const quad *)(columns + (d + i) * LANES + l);
            transpose(block);
            for (int i = 0; i < 4; i++) *(quad *)(rows[l + i] + d) = block[i];
        }
        for (; d < size; d++)
            for (int i = 0; i < 4; i++) rows[l + i][d] = columns[d * LANES + l + i];
    }
}

static inline tile tile_of(const call *c, int64_t g, int64_t first, int64_t rows)
{
    const int64_t each = c->heads / c->kv_heads;
    tile found = {.count = least(LANES, rows - first)};
    for (int64_t l = 0; l < LANES; l++) {
        const int64_t row = first + least(l, found.count - 1);
        found.time[l] = row / each;
        found.head[l] = g * each + row % each;
    }
    return found;
}

static inline sight sight_of(const group *group, const tile *tile, int64_t b)
{
    sight found = {.start = INT64_MAX, .all_to = INT64_MAX};
    for (int64_t l = 0; l < LANES; l++) {
        const int64_t from = group->low[b * group->low_stride + tile->time[l]];
        const int64_t to = group->high[b * group->high_stride + tile->time[l]];
        found.low.at[l] = from;
        found.high.at[l] = to;
        if (from < to) found.start = least(found.start, from), found.stop = most(found.stop, to);
        found.all_from = most(found.all_from, from);
        found.all_to = least(found.all_to, to);
        found.plus.at[l] = 0;
        if (group->by_query) found.plus.at[l] += group->by_query[b * group->by_query_stride + tile->time[l]] * IN_BASE_2;
        if (group->by_head) found.plus.at[l] += group->by_head[tile->head[l]] * IN_BASE_2;
    }
    return found;
}

/* The largest of some scores and of what is given, by several at once: one would wait for the one before. */
static inline lanes largest_of(const lanes *scores, int64_t count, lanes largest)
{
    lanes apart[4] = {largest, largest, largest, largest};
    int64_t j = 0;
    for (; j + 4 <= count; j += 4)
        for (int n = 0; n < 4; n++)
            for (int i = 0; i < 2; i++) apart[n].half[i] = larger(apart[n].half[i], scores[j + n].half[i]);
    for (; j < count; j++)
        for (int i = 0; i < 2; i++) apart[0].half[i] = larger(apart[0].half[i], scores[j].half[i]);
    for (int i = 0; i < 2; i++)
        largest.half[i] = larger(larger(apart[0].half[i], apart[1].half[i]), larger(apart[2].half[i], apart[3].half[i]));
    return largest;
}

/* Hides the scores of columns from..to - 1 that a query doesn't see. */
static inline void hide(const sight *sight, int64_t from, int64_t to, lanes *scores)
{
    for (int64_t column = from; column < to; column++) {
        const bits at = (bits){0} + (INTEGER)column;
        for (int i = 0; i < 2; i++) {
            vector *score = &scores[column - from].half[i];
            *score = either((at >= sight->low.half[i]) & (at < sight->high.half[i]), *score, all(-INFINITY));
        }
    }
}

/* Adds what is added to scores of columns, and hides those that a query doesn't see; returns the largest. */
static inline lanes adjust(const group *group, const sight *sight, int64_t b, int64_t from, int64_t count, lanes *scores,
                           lanes largest)
{
    const int adds = group->by_query || group->by_head || group->by_column;
    for (int64_t j = 0; adds && j < count; j++) {
        const REAL more = group->by_column ? group->by_column[b * group->by_column_stride + from + j] * IN_BASE_2 : 0;
        for (int i = 0; i < 2; i++) scores[j].half[i] += sight->plus.as_lanes.half[i] + more;
    }
    const int64_t to = from + count, start = least(to, most(from, sight->all_from));
    const int64_t stop = most(start, least(to, sight->all_to));
    hide(sight, from, start, scores);
    hide(sight, stop, to, scores + (stop - from));
    return largest_of(scores, count, largest);
}
