/* The Long-Short attention: one softmax over several groups of columns, a few queries at a time.

   Zhu et al. (2021, "Long-Short Transformer", equation 5); the softmax as in Dao et al. (2022, "FlashAttention",
   section 3.1), in base 2.

   Built with REAL = float or double; bfloat16 is read and written as uint16_t, and reckoned with as float. */

#include "attention.h"

#define LEAST ((REAL)-1e30) /* below all scores; finite, so that a row that sees nothing gives 0 */

/* What one thread works with. */
typedef struct {
    REAL *query, *mixed, *scores, *keys, *values;
    lanes largest, total;
} work;

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

/* The queries of a tile, scaled: (D, LANES). */
static void read_queries(const call *c, work *w, const tile *tile, int64_t b)
{
    const REAL scale = (REAL)c->scale * IN_BASE_2;
    for (int64_t l = 0; l < LANES; l++) {
        int64_t start = b * c->query_strides[0] + tile->head[l] * c->query_strides[1] + tile->time[l] * c->query_strides[2];
        if (c->bfloat16) {
            const uint16_t *query = (const uint16_t *)c->query + start;
            for (int64_t d = 0; d < c->size; d++) w->query[d * LANES + l] = widened(query[d]) * scale;
        } else {
            const REAL *query = (const REAL *)c->query + start;
            for (int64_t d = 0; d < c->size; d++) w->query[d * LANES + l] = query[d] * scale;
        }
    }
}

static void write_mixed(const call *c, const work *w, const tile *tile, int64_t b)
{
    const REAL *total = (const REAL *)&w->total, *largest = (const REAL *)&w->largest;
    for (int64_t l = 0; l < tile->count; l++) {
        REAL share = total[l] == 0 ? 0 : 1 / total[l];
        if (c->logarithms)
            c->logarithms[(b * c->heads + tile->head[l]) * c->queries + tile->time[l]] =
                total[l] == 0 ? -INFINITY : (largest[l] + (REAL)log2(total[l])) / IN_BASE_2;
        int64_t start = b * c->out_strides[0] + tile->head[l] * c->out_strides[1] + tile->time[l] * c->out_strides[2];
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
static void attend_to(const call *c, const group *group, const tile *tile, work *w, int64_t b, int64_t g)
{
    const sight sight = sight_of(group, tile, b);
    lanes *scores = (lanes *)w->scores, *mixed = (lanes *)w->mixed;
    for (int64_t from = sight.start; from < sight.stop; from += COLUMNS) {
        int64_t count = least(COLUMNS, sight.stop - from), key_stride, value_stride;
        const REAL *key = rows_of(group->key, group->key_strides, b, g, from, count, c->size, c->bfloat16, w->keys,
                                  &key_stride);
        const REAL *value = rows_of(group->value, group->value_strides, b, g, from, count, c->value_size, c->bfloat16,
                                    w->values, &value_stride);
        multiply(scores, count, key, key_stride, 1, (const lanes *)w->query, c->size, 0);
        const lanes largest = adjust(group, &sight, b, from, count, scores, w->largest);
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
            const tile tile = tile_of(c, g, first, rows);
            read_queries(c, &w, &tile, b);
            memset(w.mixed, 0, sizeof(REAL) * LANES * c->value_size);
            w.total = (lanes){{{0}, {0}}};
            w.largest = (lanes){{all(LEAST), all(LEAST)}};
            for (int64_t n = 0; n < c->count; n++) attend_to(c, c->groups + n, &tile, &w, b, g);
            write_mixed(c, &w, &tile, b);
        }
        free(w.query);
    }
    return failed;
}
