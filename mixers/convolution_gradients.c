/* The Toeplitz product in training, and its gradients, which are Toeplitz products themselves.

   Built with REAL = float or double. */

#include "fourier.h"

/* Rows of channels for each sample and head. */
typedef struct {
    REAL *at; /* (B, heads, rows, E); of all samples one if that stride is 0 */
    int64_t strides[3];
    int64_t rows;
} sequences;

enum { PRODUCT, OF_VALUES, OF_COEFFICIENTS };

/* PRODUCT: result = coefficients * values. OF_VALUES and OF_COEFFICIENTS: what of its gradient falls to these. */
typedef struct {
    sequences coefficients, values, above, result;
    transform transform;
    int64_t samples, value_heads, heads, channels;
    int64_t first; /* how many coefficients stand before that of offset 0 */
    int64_t what, threads;
} call;

static void transform_of(const call *c, const sequences *some, int64_t b, int64_t h, int64_t channel, complex_ *x)
{
    const source rows = {some->at + b * some->strides[0] + h * some->strides[1],
                         some->strides[2], channel, c->channels, 0, some->rows};
    forward(&c->transform, &rows, x);
}

/* sum += left, or its conjugate, times right: of both sequences that are the real and the imaginary part of each. */
static void add_product(const call *c, const complex_ *left, const complex_ *right, complex_ *sum, const REAL sign)
{
    const REAL share = (REAL)0.25 / c->transform.length;
    for (int64_t k = 0; k < c->transform.bins; k++) {
        const int32_t here = c->transform.places[2 * k], there = c->transform.places[2 * k + 1];
        both a = separated(left[here], left[there]);
        a.real = (complex_){a.real.re * share, a.real.im * sign * share};
        a.imaginary = (complex_){a.imaginary.re * share, a.imaginary.im * sign * share};
        const both b = separated(right[here], right[there]);
        const both term = {product(a.real, b.real), product(a.imaginary, b.imaginary)};
        sum[here] = plus(sum[here], joined(term));
        if (here != there) sum[there] = plus(sum[there], joined_there(term));
    }
}

/* Returns 0, or 1 if there is no memory. */
int toeplitz(const call *c)
{
    const int64_t pairs = (c->channels + 2 * WIDE - 1) / (2 * WIDE), groups = c->heads / c->value_heads;
    const int64_t length = c->transform.length, samples = c->what == OF_COEFFICIENTS ? 1 : c->samples;
    const int64_t heads = c->what == OF_VALUES ? c->value_heads : c->heads;
    const int64_t terms = c->what == PRODUCT ? 1 : c->what == OF_VALUES ? groups : c->samples;
    const int64_t start = c->what == PRODUCT ? c->first : length - c->first;
    int failed = 0;
#pragma omp parallel num_threads(c->threads)
    {
        complex_ *left = aligned_alloc(64, 3 * length * sizeof(complex_)), *right = left + length, *sum = right + length;
        if (!left) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < samples * heads * pairs; job++) {
            if (!left) continue;
            const int64_t channel = job % pairs * 2 * WIDE, head = job / pairs % heads, b = job / pairs / heads;
            memset(sum, 0, length * sizeof(complex_));
            for (int64_t n = 0; n < terms; n++) {
                if (c->what == PRODUCT) {
                    transform_of(c, &c->coefficients, 0, head, channel, left);
                    transform_of(c, &c->values, b, head / groups, channel, right);
                } else if (c->what == OF_VALUES) {
                    transform_of(c, &c->coefficients, 0, head * groups + n, channel, left);
                    transform_of(c, &c->above, b, head * groups + n, channel, right);
                } else {
                    transform_of(c, &c->values, n, head / groups, channel, left);
                    transform_of(c, &c->above, n, head, channel, right);
                }
                add_product(c, left, right, sum, c->what == PRODUCT ? 1 : -1);
            }
            const sequences *result = &c->result;
            const target rows = {
                .at = result->at + b * result->strides[0] + head * result->strides[1],
                .stride = result->strides[2],
                .channel = channel,
                .channels = c->channels,
                .skipped = start % length,
                .rows = result->rows,
                .length = length,
            };
            backward(&c->transform, sum, &rows);
        }
        free(left);
    }
    return failed;
}
