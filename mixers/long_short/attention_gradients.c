/* The gradients of the Long-Short attention, from its result and the logarithms of its sums.

   Dao et al. (2022, "FlashAttention", appendix B.4), a few queries at a time. Threads take parts of a sequence, of which
   each adds up gradients of keys and values by itself.

   Built with REAL = float or double. */

#include "attention.h"

/* What one thread works with. Rows are (blocks, LANES, LANES): of each block of entries, those of all queries. */
typedef struct {
    REAL *query, *above;           /* (D or E, LANES), the query scaled */
    REAL *query_rows, *above_rows; /* the query scaled, in base e */
    REAL *of_query;                /* (D, LANES) */
    REAL *scores, *of_scores, *products; /* (COLUMNS, LANES) */
    lanes logarithms, delta;
} work;

static inline int64_t blocks_of(int64_t size)
{
    return (size + LANES - 1) / LANES;
}

/* A row times something, to its place in the first of (blocks, LANES, LANES). */
static inline void to_blocks(const REAL *row, int64_t size, REAL factor, REAL *blocks)
{
    for (int64_t first = 0; first < size; first += LANES)
        for (int64_t d = 0; d < least(LANES, size - first); d++) blocks[first * LANES + d] = row[first + d] * factor;
}

static void read_tile(const call *c, work *w, const tile *tile, int64_t b)
{
    memset(w->query_rows, 0, sizeof(REAL) * blocks_of(c->size) * LANES * LANES);
    memset(w->above_rows, 0, sizeof(REAL) * blocks_of(c->value_sizes[0]) * LANES * LANES);
    const REAL *queries[LANES], *aboves[LANES];
    for (int64_t l = 0; l < LANES; l++) {
        const int64_t h = tile->head[l], t = tile->time[l], row = (b * c->heads + h) * c->queries + t;
        const REAL there = l < tile->count ? 1 : 0; /* what stands in for a missing query counts nothing */
        queries[l] = (const REAL *)c->query + place(c->query_strides, b, h, t);
        aboves[l] = c->above + place(c->above_strides, b, h, t);
        to_blocks(queries[l], c->size, (REAL)c->scale * there, w->query_rows + l * LANES);
        to_blocks(aboves[l], c->value_sizes[0], there, w->above_rows + l * LANES);
        /* All weights of a row that sees nothing are 0. */
        ((REAL *)&w->logarithms)[l] = c->logarithms[row] == -INFINITY ? INFINITY : c->logarithms[row] * IN_BASE_2;
        ((REAL *)&w->delta)[l] = c->delta[row];
    }
    to_lanes(queries, c->size, (REAL)c->scale * IN_BASE_2, w->query);
    to_lanes(aboves, c->value_sizes[0], 1, w->above);
}

/* to[j] += sum over lanes l of weights[j, l] * rows[l], for vectors of some size. */
static void add_products(const lanes *weights, int64_t count, const REAL *rows, int64_t size, lanes *products, REAL *to,
                         int64_t stride)
{
    for (int64_t block = 0; block < blocks_of(size); block++) {
        multiply(products, count, (const REAL *)weights, LANES, 1, (const lanes *)(rows + block * LANES * LANES), LANES, 0);
        const int64_t first = block * LANES, entries = least(LANES, size - first);
        for (int64_t j = 0; j < count; j++)
            for (int64_t e = 0; e < entries; e++) to[j * stride + first + e] += ((const REAL *)(products + j))[e];
    }
}

static void differentiate(const call *c, const group *group, const tile *tile, work *w, int64_t b, int64_t g, int64_t part)
{
    const sight sight = sight_of(group, tile, b);
    lanes *scores = (lanes *)w->scores, *of_scores = (lanes *)w->of_scores, *products = (lanes *)w->products;
    lanes sums = {{{0}, {0}}};
    const lanes none = {{all(-INFINITY), all(-INFINITY)}};
    const int64_t *ks = group->key_strides, *vs = group->value_strides[0];
    const int64_t *oks = group->of_key_strides, *ovs = group->of_value_strides;
    for (int64_t from = sight.start; from < sight.stop; from += COLUMNS) {
        const int64_t count = least(COLUMNS, sight.stop - from);
        const REAL *key = (const REAL *)group->key + place(ks, b, g, from);
        const REAL *value = (const REAL *)group->values[0] + place(vs, b, g, from);
        multiply(scores, count, key, ks[2], 1, (const lanes *)w->query, c->size, 0);
        adjust(group, &sight, b, from, count, scores, none);
        multiply(of_scores, count, value, vs[2], 1, (const lanes *)w->above, c->value_sizes[0], 0);
        for (int64_t j = 0; j < count; j++)
            for (int i = 0; i < 2; i++) {
                const vector weight = exp2_of(scores[j].half[i] - w->logarithms.half[i]);
                scores[j].half[i] = weight;
                of_scores[j].half[i] = weight * (of_scores[j].half[i] - w->delta.half[i]);
                sums.half[i] += of_scores[j].half[i];
            }
        if (c->of_query)
            multiply((lanes *)w->of_query, c->size, key, 1, ks[2], of_scores, count, 1);
        if (group->of_value)
            add_products(scores, count, w->above_rows, c->value_sizes[0], products,
                         group->of_value + part * ovs[0] + b * ovs[1] + g * ovs[2] + from * ovs[3], ovs[3]);
        if (group->of_key)
            add_products(of_scores, count, w->query_rows, c->size, products,
                         group->of_key + part * oks[0] + b * oks[1] + g * oks[2] + from * oks[3], oks[3]);
    }
    if (group->of_scores)
        for (int64_t l = 0; l < tile->count; l++)
            group->of_scores[(b * c->heads + tile->head[l]) * c->queries + tile->time[l]] += ((const REAL *)&sums)[l];
}

/* Returns 0, or 1 if there is no memory. */
int attend_backward(const call *c)
{
    const int64_t rows = c->queries * (c->heads / c->kv_heads), tiles = (rows + LANES - 1) / LANES;
    const int64_t of_part = (tiles + c->parts - 1) / c->parts, of_rows = blocks_of(c->size) + blocks_of(c->value_sizes[0]);
    int failed = 0;
#pragma omp parallel num_threads(c->threads)
    {
        const int64_t numbers = (2 * c->size + c->value_sizes[0] + 3 * COLUMNS + of_rows * LANES) * LANES;
        work w;
        w.query = aligned_alloc(64, (numbers * sizeof(REAL) + 63) / 64 * 64);
        w.above = w.query + LANES * c->size;
        w.of_query = w.above + LANES * c->value_sizes[0];
        w.scores = w.of_query + LANES * c->size;
        w.of_scores = w.scores + LANES * COLUMNS;
        w.products = w.of_scores + LANES * COLUMNS;
        w.query_rows = w.products + LANES * COLUMNS;
        w.above_rows = w.query_rows + blocks_of(c->size) * LANES * LANES;
        if (!w.query) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < c->samples * c->kv_heads * c->parts; job++) {
            if (!w.query) continue;
            const int64_t part = job % c->parts, g = job / c->parts % c->kv_heads, b = job / c->parts / c->kv_heads;
            for (int64_t n = part * of_part; n < least(tiles, (part + 1) * of_part); n++) {
                const tile tile = tile_of(c, g, n * LANES, rows);
                read_tile(c, &w, &tile, b);
                memset(w.of_query, 0, sizeof(REAL) * LANES * c->size);
                for (int64_t m = 0; m < c->count; m++) differentiate(c, c->groups + m, &tile, &w, b, g, part);
                for (int64_t l = 0; c->of_query && l < tile.count; l++) {
                    REAL *to = c->of_query + ((b * c->heads + tile.head[l]) * c->queries + tile.time[l]) * c->size;
                    for (int64_t d = 0; d < c->size; d++) to[d] = w.of_query[d * LANES + l] * (REAL)c->scale;
                }
            }
        }
        free(w.query);
    }
    return failed;
}
