/* Products of circulant matrices, one for each head and channel, and values: by transforms along the tokens.

   Built with REAL = float or double. */

#include "fourier.h"

#define FAR 4194304 /* bytes of a result that goes past the caches */

typedef struct {
    const REAL *values; /* (B, G, T, E or 1) */
    REAL *out;          /* (B, H, T, channels) */
    int64_t value_strides[3], out_strides[3];
    /* The coefficients' transform over 2 length, or over length if all channels share it: for each head and two vectors
       of channels (bins, 4, WIDE), real and imaginary parts of the first and of the second; shared: (length, 2). */
    const REAL *spectrum;
    const REAL *scale;       /* (H, scaled, channels rounded up to whole pairs of vectors, or 1), see `factors`, or null */
    transform transform;
    int64_t samples, value_heads, heads, tokens, value_channels, channels, shared, scaled, scales;
    int64_t blocks, step, before, first; /* block n: values from n step - before on, give rows n step.. from `first` on */
    int64_t threads;
} call;

/* How many bins come before that of a place. */
static int64_t bins_before(const transform *c, int64_t place)
{
    int64_t from = 0, to = c->bins;
    while (from < to) {
        const int64_t middle = (from + to) / 2;
        if (c->places[2 * middle] < place)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

/* The frequencies of a block of x, and their negatives, times those of the coefficients, into y, which may be x. */
static void multiply(const call *c, const complex_ *x, complex_ *y, const REAL *s, int64_t q)
{
    const int64_t start = q * block_of(&c->transform), stop = start + block_of(&c->transform);
    if (c->shared) {
        for (int64_t k = start; k < stop; k++) y[k] = times(x[k], s[2 * k], s[2 * k + 1]);
        return;
    }
    const int64_t from = bins_before(&c->transform, start), to = bins_before(&c->transform, stop);
    const vector *spectrum = (const vector *)s + 4 * from;
    for (int64_t k = from; k < to; k++, spectrum += 4) {
        const int32_t here = c->transform.places[2 * k], there = c->transform.places[2 * k + 1];
        const both value = separated(x[here], x[there]);
        const both mixed = {product(value.real, (complex_){spectrum[0], spectrum[1]}),
                            product(value.imaginary, (complex_){spectrum[2], spectrum[3]})};
        y[here] = joined(mixed);
        y[there] = joined_there(mixed);
    }
}

/* What is left to do of x between the first stage and the last, into y: block by block, that they stay in cache. */
static void convolve_blocks(const call *c, complex_ *x, complex_ *y, const REAL *spectrum, int first)
{
    const transform *transform = &c->transform;
    for (int64_t q = 0; 2 * q <= transform->radices[0]; q++) {
        const int64_t other = other_block(transform, q);
        if (first) forward_block(transform, x, q);
        if (first && other != q) forward_block(transform, x, other);
        multiply(c, x, y, spectrum, q);
        if (other != q) multiply(c, x, y, spectrum, other);
        backward_block(transform, y, q);
        if (other != q) backward_block(transform, y, other);
    }
}

/* Whether the result is so large that caches wouldn't keep it, and all of its rows are whole vectors. */
static int is_far(const call *c)
{
    const int64_t bytes = c->samples * c->heads * c->tokens * c->channels * sizeof(REAL);
    int whole = c->channels % (2 * WIDE) == 0 && (uintptr_t)c->out % BYTES == 0;
    for (int n = 0; n < 3; n++) whole = whole && c->out_strides[n] % WIDE == 0;
    return bytes >= FAR && whole;
}

/* How many channels a vector holds. */
int wide(void)
{
    return WIDE;
}

/* Returns 0, or 1 if there is no memory. */
int convolve(const call *c)
{
    const int64_t pairs = (c->channels + 2 * WIDE - 1) / (2 * WIDE), groups = c->heads / c->value_heads;
    const int64_t inputs = c->samples * c->value_heads * pairs * c->blocks;
    const int64_t parts = least(groups, 1 + 4 * c->threads / inputs); /* of the heads that read one value head */
    const int64_t each = (groups + parts - 1) / parts;
    const int64_t of_spectrum = c->shared ? 2 * c->transform.length : c->transform.bins * 4 * WIDE;
    const int far = is_far(c);
    int failed = 0;
#pragma omp parallel num_threads(c->threads)
    {
        complex_ *x = aligned_alloc(64, (groups > 1 ? 2 : 1) * c->transform.length * sizeof(complex_));
        complex_ *y = groups > 1 ? x + c->transform.length : x;
        if (!x) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < inputs * parts; job++) {
            if (!x) continue;
            const int64_t part = job % parts, block = job / parts % c->blocks, pair = job / parts / c->blocks % pairs;
            const int64_t head = job / parts / c->blocks / pairs, g = head % c->value_heads, b = head / c->value_heads;
            const int64_t channel = pair * 2 * WIDE, start = block * c->step;
            const source values = {c->values + b * c->value_strides[0] + g * c->value_strides[1],
                                   c->value_strides[2], channel, c->value_channels, start - c->before, c->tokens};
            first_stage(&c->transform, &values, x);
            for (int64_t n = part * each; n < least(groups, (part + 1) * each); n++) {
                const int64_t h = g * groups + n;
                convolve_blocks(c, x, y, c->spectrum + (c->shared ? h : h * pairs + pair) * of_spectrum, n == part * each);
                const target rows = {
                    .at = c->out + b * c->out_strides[0] + h * c->out_strides[1] + start * c->out_strides[2],
                    .stride = c->out_strides[2],
                    .channel = channel,
                    .channels = c->channels,
                    .skipped = c->first,
                    .rows = least(c->step, c->tokens - start),
                    .length = c->transform.length,
                    .factors = {c->scale ? c->scale + h * c->scaled * c->scales : 0, c->scaled, c->scales, c->tokens},
                    .first = start,
                    .far = far,
                };
                last_stage(&c->transform, y, &rows);
            }
        }
        end_of_far();
        free(x);
    }
    return failed;
}
