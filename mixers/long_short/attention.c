/* The Long-Short attention: one softmax over several groups of columns, a few queries at a time.

   Zhu et al. (2021, "Long-Short Transformer", equation 5); the softmax as in Dao et al. (2022, "FlashAttention",
   section 3.1), in base 2.

   Built with REAL = float or double; bfloat16 is read and written as uint16_t, and reckoned with as float. */

#include "attention.h"

#define LEAST ((REAL)-1e30) /* below all scores; finite, so that a row that sees nothing gives 0 */
#define MANY 2048           /* columns that a cache holds no more */

/* What one thread works with. */
typedef struct {
    REAL *query, *mixed;  /* (D, LANES), (E of both kinds, LANES) */
    REAL *scores;         /* (COLUMNS, LANES) */
    REAL *rows, *columns; /* (LANES or COLUMNS, the largest of D and E), what is bfloat16 elsewhere */
    lanes largest, total;
} work;

static inline int64_t bytes_of(const call *c)
{
    return c->bfloat16 ? sizeof(uint16_t) : sizeof(REAL);
}

/* Has the cache bring rows that will be needed: where heads lie side by side, rows are too far apart for it to foresee.
   A function that only fetches would be left out as one that does nothing, unless it is INLINE. */
static INLINE void fetch(const call *c, const void *tokens, const int64_t strides[3], int64_t b, int64_t h, int64_t from,
                         int64_t to, int64_t size)
{
    for (int64_t t = from; t < to; t++) {
        const char *row = (const char *)tokens + place(strides, b, h, t) * bytes_of(c);
        for (int64_t at = 0; at < size * bytes_of(c); at += 64) __builtin_prefetch(row + at);
    }
}

/* Where the results of a tile go, and the queries of the next one. */
static INLINE void fetch_around(const call *c, const tile *tile, int64_t b, int64_t g)
{
    const int64_t first = tile->time[0], next = tile->time[LANES - 1] + 1, each = c->heads / c->kv_heads;
    for (int64_t h = g * each; h < (g + 1) * each; h++) {
        fetch(c, c->query, c->query_strides, b, h, next, least(next + next - first, c->queries), c->size);
        for (int n = 0; n < 2; n++) fetch(c, c->outs[n], c->out_strides[n], b, h, first, next, c->value_sizes[n]);
    }
}

/* Columns that the next tile sees after all of this one, or, of too many for a cache, those that this one sees next. */
static INLINE void fetch_columns(const call *c, const group *group, const sight *sight, int64_t b, int64_t g, int64_t from)
{
    if (from < sight->stop && sight->stop - sight->start < MANY) return;
    const int64_t to = least(from + (from < sight->stop ? COLUMNS : LANES), group->columns);
    fetch(c, group->key, group->key_strides, b, g, from, to, c->size);
    for (int n = 0; n < 2; n++)
        fetch(c, group->values[n], group->value_strides[n], b, g, from, to, c->value_sizes[n]);
}

/* Some columns of keys or values, and how far apart they are: where they lie, or widened. */
static const REAL *columns_from(const call *c, work *w, const void *tokens, const int64_t strides[3], int64_t b, int64_t g,
                                int64_t from, int64_t count, int64_t size, int64_t *stride)
{
    int64_t start = place(strides, b, g, from);
    if (!c->bfloat16) {
        *stride = strides[2];
        return (const REAL *)tokens + start;
    }
    for (int64_t j = 0; j < count; j++)
        for (int64_t d = 0; d < size; d++)
            w->columns[j * size + d] = widened(((const uint16_t *)tokens)[start + j * strides[2] + d]);
    *stride = size;
    return w->columns;
}

static void read_queries(const call *c, work *w, const tile *tile, int64_t b)
{
    const REAL *rows[LANES];
    for (int64_t l = 0; l < LANES; l++) {
        const int64_t start = place(c->query_strides, b, tile->head[l], tile->time[l]);
        rows[l] = c->bfloat16 ? w->rows + l * c->size : (const REAL *)c->query + start;
        for (int64_t d = 0; c->bfloat16 && d < c->size; d++)
            w->rows[l * c->size + d] = widened(((const uint16_t *)c->query)[start + d]);
    }
    to_lanes(rows, c->size, (REAL)c->scale * IN_BASE_2, w->query);
}

static void write_logarithms(const call *c, const work *w, const tile *tile, int64_t b)
{
    const REAL *total = (const REAL *)&w->total, *largest = (const REAL *)&w->largest;
    for (int64_t l = 0; l < tile->count; l++)
        c->logarithms[(b * c->heads + tile->head[l]) * c->queries + tile->time[l]] =
            total[l] == 0 ? -INFINITY : (largest[l] + (REAL)log2(total[l])) / IN_BASE_2;
}

static void write_mixed(const call *c, const work *w, const tile *tile, int64_t b)
{
    const REAL *total = (const REAL *)&w->total;
    REAL *mixed = w->mixed, *rows[LANES], share[LANES];
    for (int64_t l = 0; l < LANES; l++) share[l] = total[l] == 0 ? 0 : 1 / total[l];
    for (int n = 0; n < 2 && c->value_sizes[n]; mixed += LANES * c->value_sizes[n++]) {
        const int64_t size = c->value_sizes[n];
        for (int64_t l = 0; l < LANES; l++)
            rows[l] = c->bfloat16 ? w->rows + l * size
                                  : (REAL *)c->outs[n] + place(c->out_strides[n], b, tile->head[l], tile->time[l]);
        for (int64_t e = 0; e < size; e++)
            for (int64_t l = 0; l < LANES; l++) mixed[e * LANES + l] *= share[l];
        from_lanes(mixed, size, rows);
        for (int64_t l = 0; c->bfloat16 && l < tile->count; l++) {
            uint16_t *out = (uint16_t *)c->outs[n] + place(c->out_strides[n], b, tile->head[l], tile->time[l]);
            for (int64_t e = 0; e < size; e++) out[e] = narrowed(rows[l][e]);
        }
    }
}

/* Adds the columns of a group to what the queries of a tile have seen so far. */
static void attend_to(const call *c, const group *group, const tile *tile, work *w, int64_t b, int64_t g)
{
    const sight sight = sight_of(group, tile, b);
    const int64_t all_values = c->value_sizes[0] + c->value_sizes[1];
    lanes *scores = (lanes *)w->scores;
    for (int64_t from = sight.start; from < sight.stop; from += COLUMNS) {
        int64_t count = least(COLUMNS, sight.stop - from), stride;
        const REAL *key = columns_from(c, w, group->key, group->key_strides, b, g, from, count, c->size, &stride);
        multiply(scores, count, key, stride, 1, (const lanes *)w->query, c->size, 0);
        const lanes largest = adjust(group, &sight, b, from, count, scores, w->largest);
        fetch_columns(c, group, &sight, b, g, from + count);
        lanes keep, total = {{{0}, {0}}}, *mixed = (lanes *)w->mixed;
        for (int i = 0; i < 2; i++) keep.half[i] = exp2_of(w->largest.half[i] - largest.half[i]);
        for (int64_t j = 0; j < count; j++)
            for (int i = 0; i < 2; i++)
                total.half[i] += scores[j].half[i] = exp2_of(scores[j].half[i] - largest.half[i]);
        for (int64_t e = 0; e < all_values; e++)
            for (int i = 0; i < 2; i++) mixed[e].half[i] *= keep.half[i];
        for (int n = 0; n < 2 && c->value_sizes[n]; mixed += c->value_sizes[n++]) {
            const REAL *value = columns_from(c, w, group->values[n], group->value_strides[n], b, g, from, count,
                                             c->value_sizes[n], &stride);
            multiply(mixed, c->value_sizes[n], value, 1, stride, scores, count, 1);
        }
        for (int i = 0; i < 2; i++) w->total.half[i] = w->total.half[i] * keep.half[i] + total.half[i];
        w->largest = largest;
    }
}

/* Returns 0, or 1 if there is no memory. */
int attend(const call *c)
{
    const int64_t rows = c->queries * (c->heads / c->kv_heads), tiles = (rows + LANES - 1) / LANES;
    const int64_t jobs = c->samples * c->kv_heads * tiles, chunk = least(8, 1 + jobs / (8 * c->threads));
    const int64_t all_values = c->value_sizes[0] + c->value_sizes[1];
    const int64_t room = c->bfloat16 ? most(c->size, most(c->value_sizes[0], c->value_sizes[1])) : 0;
    int failed = 0;
#pragma omp parallel num_threads(c->threads)
    {
        int64_t numbers = LANES * (c->size + all_values + COLUMNS) + (LANES + COLUMNS) * room;
        work w;
        w.query = aligned_alloc(64, (numbers * sizeof(REAL) + 63) / 64 * 64);
        w.mixed = w.query + LANES * c->size;
        w.scores = w.mixed + LANES * all_values;
        w.rows = w.scores + LANES * COLUMNS;
        w.columns = w.rows + LANES * room;
        if (!w.query) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, chunk)
        for (int64_t job = 0; job < jobs; job++) {
            if (!w.query) continue;
            int64_t b = job / (c->kv_heads * tiles), g = job / tiles % c->kv_heads, first = job % tiles * LANES;
            const tile tile = tile_of(c, g, first, rows);
            read_queries(c, &w, &tile, b);
            fetch_around(c, &tile, b, g);
            memset(w.mixed, 0, sizeof(REAL) * LANES * all_values);
            w.total = (lanes){{{0}, {0}}};
            w.largest = (lanes){{all(LEAST), all(LEAST)}};
            for (int64_t n = 0; n < c->count; n++) attend_to(c, c->groups + n, &tile, &w, b, g);
            if (c->logarithms) write_logarithms(c, &w, &tile, b);
            write_mixed(c, &w, &tile, b);
        }
        free(w.query);
    }
    return failed;
}
