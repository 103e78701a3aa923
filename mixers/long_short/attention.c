/* The Long-Short attention of a run of queries: one softmax over several groups of columns, a few queries at a time.

   Zhu et al. (2021, "Long-Short Transformer", equation 5); the softmax as in Dao et al. (2022, "FlashAttention",
   section 3.1), in base 2. Vectors run over queries, so that sums, maxima and masks need no exchange between lanes, and
   keys and values are read where they lie, number by number. What lies between fits into a core's own cache.

   Built with REAL = float or double; bfloat16 is read and written as uint16_t, and reckoned with as float. */

#include "../vectors.h"

#define LANES (2 * WIDE)    /* queries in a tile, those of all heads that read one key/value head */
#define COLUMNS 384         /* columns whose scores are made before they are used */
#define LEAST ((REAL)-1e30) /* below all scores; finite, so that a row that sees nothing gives 0 */


typedef struct {
    vector half[2];
} lanes; /* one number for each query of a tile */

/* Some columns. A query t of sample b sees those from low[b, t] to high[b, t] - 1; a null pointer adds nothing. */
typedef struct {
    const void *key, *value; /* (B, G, columns, D or E) */
    int64_t key_strides[3], value_strides[3];
    const int32_t *low, *high; /* (B, T) */
    int64_t low_stride, high_stride;
    const REAL *by_column; /* (B, columns), added to scores */
    int64_t by_column_stride;
    const REAL *by_query; /* (B, T), added to scores */
    int64_t by_query_stride;
    const REAL *by_head; /* (H), added to scores */
} group;

typedef struct {
    const void *query; /* (B, H, T, D) */
    void *out;         /* (B, H, T, E) */
    REAL *logarithms;  /* (B, H, T), of the sums of exponentials, or null */
    int64_t query_strides[3], out_strides[3];
    int64_t samples, heads, kv_heads, queries, size, value_size;
    double scale;
    int64_t bfloat16; /* whether query, keys, values and out are that, else REAL */
    int64_t threads;
    int64_t count;
    const group *groups;
} call;

/* What one thread works with. */
typedef struct {
    REAL *query, *mixed, *scores, *keys, *values;
    int64_t time[LANES], head[LANES];
    lanes largest, total;
} work;

/* sums[m] += sum over k < n of left[m * row_stride + k * stride] * right[k], for so many rows at once. */
#define PRODUCT(M)                                                                                                    \
    static inline void product_##M(lanes sums[M], const REAL *left, int64_t row_stride, int64_t stride,                \
                                   const lanes *right, int64_t n)                                                      \
    {                                                                                                                  \
        for (int64_t k = 0; k < n; k++) {                                                                              \
            const vector first = right[k].half[0], second = right[k].half[1];                                          \
            _Pragma("GCC unroll 16") for (int m = 0; m < M; m++)                                                       \
            {                                                                                                          \
                const vector one = all(left[m * row_stride + k * stride]);                                             \
                sums[m].half[0] += one * first;                                                                        \
                sums[m].half[1] += one * second;                                                                       \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    static inline void multiply_##M(lanes *out, const REAL *left, int64_t row_stride, int64_t stride,                  \
                                    const lanes *right, int64_t n, int add)                                            \
    {                                                                                                                  \
        lanes sums[M];                                                                                                 \
        _Pragma("GCC unroll 16") for (int m = 0; m < M; m++) sums[m] = (lanes){{{0}, {0}}};                            \
        product_##M(sums, left, row_stride, stride, right, n);                                                         \
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

/* Rows of keys or values, and how far apart they are: where they lie, or widened. */
static const REAL *rows_of(const void *tokens, const int64_t strides[3], int64_t b, int64_t g, int64_t from,
                           int64_t rows, int64_t size, int bfloat16, REAL *space, int64_t *stride)
{
    int64_t start = b * strides[0] + g * strides[1] + from * strides[2];
    if (!bfloat16) {
        *stride = strides[2];
        return (const REAL *)tokens + start;
    }
    const uint16_t *narrow = (const uint16_t *)tokens + start;
    for (int64_t j = 0; j < rows; j++)
        for (int64_t d = 0; d < size; d++) space[j * size + d] = widened(narrow[j * strides[2] + d]);
    *stride = size;
    return space;
}

/* Which queries a tile holds, and they themselves, scaled: (D, LANES). The last one stands in for what is missing. */
static void read_queries(const call *c, work *w, int64_t b, int64_t g, int64_t first, int64_t count)
{
    const int64_t each = c->heads / c->kv_heads;
    const REAL scale = (REAL)c->scale * IN_BASE_2;
    for (int64_t l = 0; l < LANES; l++) {
        int64_t row = first + least(l, count - 1);
        w->time[l] = row / each;
        w->head[l] = g * each + row % each;
        int64_t start = b * c->query_strides[0] + w->head[l] * c->query_strides[1] + w->time[l] * c->query_strides[2];
        if (c->bfloat16) {
            const uint16_t *query = (const uint16_t *)c->query + start;
            for (int64_t d = 0; d < c->size; d++) w->query[d * LANES + l] = widened(query[d]) * scale;
        } else {
            const REAL *query = (const REAL *)c->query + start;
            for (int64_t d = 0; d < c->size; d++) w->query[d * LANES + l] = query[d] * scale;
        }
    }
}

static void write_mixed(const call *c, const work *w, int64_t b, int64_t count)
{
    const REAL *total = (const REAL *)&w->total, *largest = (const REAL *)&w->largest;
    for (int64_t l = 0; l < count; l++) {
        REAL share = total[l] == 0 ? 0 : 1 / total[l];
        if (c->logarithms)
            c->logarithms[(b * c->heads + w->head[l]) * c->queries + w->time[l]] =
                total[l] == 0 ? -INFINITY : (largest[l] + (REAL)log2(total[l])) / IN_BASE_2;
        int64_t start = b * c->out_strides[0] + w->head[l] * c->out_strides[1] + w->time[l] * c->out_strides[2];
        if (c->bfloat16) {
            uint16_t *out = (uint16_t *)c->out + start;
            for (int64_t e = 0; e < c->value_size; e++) out[e] = narrowed(w->mixed[e * LANES + l] * share);
        } else {
            REAL *out = (REAL *)c->out + start;
            for (int64_t e = 0; e < c->value_size; e++) out[e] = w->mixed[e * LANES + l] * share;
        }
    }
}

/* Adds the columns of a group to what the queries of a tile have seen so far. */
static void attend_to(const call *c, const group *group, work *w, int64_t b, int64_t g)
{
    union {
        INTEGER at[LANES];
        bits half[2];
    } low, high;
    union {
        REAL at[LANES];
        lanes as_lanes;
    } plus;
    int64_t start = INT64_MAX, stop = 0, all_from = 0, all_to = INT64_MAX; /* some, and all queries see these */
    for (int64_t l = 0; l < LANES; l++) {
        int64_t from = group->low[b * group->low_stride + w->time[l]];
        int64_t to = group->high[b * group->high_stride + w->time[l]];
        low.at[l] = from;
        high.at[l] = to;
        if (from < to) start = least(start, from), stop = -least(-stop, -to);
        all_from = -least(-all_from, -from);
        all_to = least(all_to, to);
        plus.at[l] = 0;
        if (group->by_query) plus.at[l] += group->by_query[b * group->by_query_stride + w->time[l]] * IN_BASE_2;
        if (group->by_head) plus.at[l] += group->by_head[w->head[l]] * IN_BASE_2;
    }
    lanes *scores = (lanes *)w->scores, *mixed = (lanes *)w->mixed;
    for (int64_t from = start; from < stop; from += COLUMNS) {
        int64_t count = least(COLUMNS, stop - from), key_stride, value_stride;
        const REAL *key = rows_of(group->key, group->key_strides, b, g, from, count, c->size, c->bfloat16, w->keys,
                                  &key_stride);
        const REAL *value = rows_of(group->value, group->value_strides, b, g, from, count, c->value_size, c->bfloat16,
                                    w->values, &value_stride);
        multiply(scores, count, key, key_stride, 1, (const lanes *)w->query, c->size, 0);
        lanes largest = w->largest;
        for (int64_t j = 0; j < count; j++) {
            const int64_t column = from + j;
            const REAL more = group->by_column ? group->by_column[b * group->by_column_stride + column] * IN_BASE_2 : 0;
            for (int i = 0; i < 2; i++) {
                vector score = scores[j].half[i];
                if (group->by_query || group->by_head || group->by_column) score += plus.as_lanes.half[i] + more;
                if (column < all_from || column >= all_to) {
                    const bits at = (bits){0} + (INTEGER)column;
                    score = either((at >= low.half[i]) & (at < high.half[i]), score, all(-INFINITY));
                }
                largest.half[i] = larger(largest.half[i], score);
                scores[j].half[i] = score;
            }
        }
        lanes keep, total = {{{0}, {0}}};
        for (int i = 0; i < 2; i++) keep.half[i] = exp2_of(w->largest.half[i] - largest.half[i]);
        for (int64_t j = 0; j < count; j++)
            for (int i = 0; i < 2; i++)
                total.half[i] += scores[j].half[i] = exp2_of(scores[j].half[i] - largest.half[i]);
        for (int64_t e = 0; e < c->value_size; e++)
            for (int i = 0; i < 2; i++) mixed[e].half[i] *= keep.half[i];
        multiply(mixed, c->value_size, value, 1, value_stride, scores, count, 1);
        for (int i = 0; i < 2; i++) w->total.half[i] = w->total.half[i] * keep.half[i] + total.half[i];
        w->largest = largest;
    }
}

/* Returns 0, or 1 if there is no memory. */
int attend(const call *c)
{
    const int64_t rows = c->queries * (c->heads / c->kv_heads), tiles = (rows + LANES - 1) / LANES;
    const int64_t jobs = c->samples * c->kv_heads * tiles, chunk = least(8, 1 + jobs / (8 * c->threads));
    const int64_t widened_rows = c->bfloat16 ? COLUMNS : 0;
    int failed = 0;
#pragma omp parallel num_threads(c->threads)
    {
        int64_t numbers = (LANES + widened_rows) * (c->size + c->value_size) + LANES * COLUMNS;
        work w;
        w.query = aligned_alloc(64, (numbers * sizeof(REAL) + 63) / 64 * 64);
        w.mixed = w.query + LANES * c->size;
        w.scores = w.mixed + LANES * c->value_size;
        w.keys = w.scores + LANES * COLUMNS;
        w.values = w.keys + widened_rows * c->size;
        if (!w.query) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, chunk)
        for (int64_t job = 0; job < jobs; job++) {
            if (!w.query) continue;
            int64_t b = job / (c->kv_heads * tiles), g = job / tiles % c->kv_heads, first = job % tiles * LANES;
            int64_t count = least(LANES, rows - first);
            read_queries(c, &w, b, g, first, count);
            memset(w.mixed, 0, sizeof(REAL) * LANES * c->value_size);
            w.total = (lanes){{{0}, {0}}};
            w.largest = (lanes){{all(LEAST), all(LEAST)}};
            for (int64_t n = 0; n < c->count; n++) attend_to(c, c->groups + n, &w, b, g);
            write_mixed(c, &w, b, count);
        }
        free(w.query);
    }
    return failed;
}
