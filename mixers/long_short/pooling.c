/* Summaries of segments: of each few tokens, a softmax of given logits, and the sums of keys and values that it weighs.

   Zhu et al. (2021, "Long-Short Transformer", equation 4), inside segments. */

#include "../vectors.h"

typedef struct {
    const REAL *logits;       /* (B, G, rank, S) */
    const uint8_t *exist;     /* (B, S), or null where all tokens do */
    const void *key, *value;  /* (B, G, S, D or E) */
    void *far_key, *far_value; /* (B, G, segments, rank, D or E) */
    REAL *mass;               /* (B, G, segments, rank), the logarithm of what each softmax was divided by */
    int64_t key_strides[3], value_strides[3];
    int64_t samples, heads, rank, tokens, segment, size, value_size;
    int64_t bfloat16; /* whether keys, values and their sums are that, else REAL */
    int64_t threads;
} call;

/* out = sum over j of weights[j] * rows[j]. */
static void weigh(const call *c, const REAL *weights, int64_t count, const void *rows, int64_t stride, int64_t size,
                  REAL *space, void *out)
{
    REAL *sum = c->bfloat16 ? space : (REAL *)out;
    memset(sum, 0, size * sizeof(REAL));
    for (int64_t j = 0; j < count; j++) {
        const REAL weight = weights[j];
        if (c->bfloat16) {
            const uint16_t *row = (const uint16_t *)rows + j * stride;
            for (int64_t d = 0; d < size; d++) sum[d] += weight * widened(row[d]);
        } else {
            const REAL *row = (const REAL *)rows + j * stride;
            for (int64_t d = 0; d < size; d++) sum[d] += weight * row[d];
        }
    }
    if (c->bfloat16)
        for (int64_t d = 0; d < size; d++) ((uint16_t *)out)[d] = narrowed(sum[d]);
}

/* The softmax of some logits, those of tokens that don't exist left out; returns the logarithm of its divisor. */
static REAL softmax(const REAL *logits, const uint8_t *exist, int64_t count, REAL *weights)
{
    const REAL least_mass = IS_DOUBLE ? (REAL)-1.7976931348623157e308 : (REAL)-3.4028234663852886e38;
    REAL largest = -INFINITY, total = 0;
    for (int64_t j = 0; j < count; j++) {
        weights[j] = exist && !exist[j] ? -INFINITY : logits[j] * IN_BASE_2;
        if (!(weights[j] <= largest)) largest = weights[j];
    }
    if (largest == -INFINITY) {
        memset(weights, 0, count * sizeof(REAL));
        return least_mass;
    }
    for (int64_t j = 0; j < count; j += WIDE) {
        vector *some = (vector *)(weights + j);
        *some = exp2_of(*some - largest);
    }
    for (int64_t j = 0; j < count; j++) total += weights[j];
    for (int64_t j = 0; j < count; j++) weights[j] /= total;
    return (largest + (REAL)log2(total)) / IN_BASE_2;
}

/* Returns 0, or 1 if there is no memory. */
int pool(const call *c)
{
    const int64_t segments = (c->tokens + c->segment - 1) / c->segment, jobs = c->samples * c->heads * segments;
    const int64_t bytes = c->bfloat16 ? 2 : sizeof(REAL), room = (c->segment + WIDE - 1) / WIDE * WIDE;
    int failed = 0;
#pragma omp parallel num_threads(c->threads)
    {
        int64_t numbers = room + c->size + c->value_size;
        REAL *weights = aligned_alloc(64, (numbers * sizeof(REAL) + 63) / 64 * 64), *space = weights + room;
        if (!weights) {
#pragma omp atomic write
            failed = 1;
        } else {
            memset(weights, 0, room * sizeof(REAL));
        }
#pragma omp for schedule(static)
        for (int64_t job = 0; job < jobs; job++) {
            if (!weights) continue;
            const int64_t head = job / segments, b = head / c->heads, g = head % c->heads;
            const int64_t start = job % segments * c->segment, count = least(c->segment, c->tokens - start);
            const int64_t key = b * c->key_strides[0] + g * c->key_strides[1] + start * c->key_strides[2];
            const int64_t value = b * c->value_strides[0] + g * c->value_strides[1] + start * c->value_strides[2];
            for (int64_t r = 0; r < c->rank; r++) {
                const int64_t node = job * c->rank + r;
                c->mass[node] = softmax(c->logits + (head * c->rank + r) * c->tokens + start,
                                        c->exist ? c->exist + b * c->tokens + start : 0, count, weights);
                weigh(c, weights, count, (const char *)c->key + key * bytes, c->key_strides[2], c->size, space,
                      (char *)c->far_key + node * c->size * bytes);
                weigh(c, weights, count, (const char *)c->value + value * bytes, c->value_strides[2], c->value_size,
                      space, (char *)c->far_value + node * c->value_size * bytes);
            }
        }
        free(weights);
    }
    return failed;
}
