/* Circular convolutions along the tokens, as many channels at once as a vector holds: no number changes its lane.

   Two vectors of channels are the real and the imaginary part of one complex sequence (Press et al., "Numerical
   Recipes", section 12.3). Its transform leaves frequencies in the order of reversed digits, decimated in frequency; the
   inverse takes them in this order. Both go into depth, so that what they work on soon fits into a core's own cache
   (Frigo and Johnson, 2005, "The Design and Implementation of FFTW3").

   Built with REAL = float or double. */

#include "vectors.h"

typedef struct {
    vector re, im;
} complex_;

typedef struct {
    const REAL *values; /* (B, G, T, E or 1) */
    REAL *out;          /* (B, H, T, channels) */
    int64_t value_strides[3], out_strides[3];
    /* The coefficients' transform over 2 length, or over length if all channels share it: for each head and two vectors
       of channels (bins, 4, WIDE), real and imaginary parts of the first and of the second; shared: (length, 2). */
    const REAL *spectrum;
    const REAL *scale;       /* (H, T, channels rounded up to whole pairs of vectors, or 1), factor, or null */
    const REAL *twiddles;    /* stage by stage: (size / radix, radix - 1, 2) */
    const int64_t *radices;  /* of the stages, 2, 3 or 4 */
    const int32_t *places;   /* (bins, 2), where frequencies k and -k are left */
    int64_t stages, length, bins;
    int64_t samples, value_heads, heads, tokens, value_channels, channels, shared, scales;
    int64_t blocks, step, before, first; /* block n: values from n step - before on, give rows n step.. from `first` on */
    int64_t threads;
} call;

static inline complex_ times(complex_ a, REAL re, REAL im)
{
    return (complex_){a.re * re - a.im * im, a.re * im + a.im * re};
}

static inline complex_ plus(complex_ a, complex_ b)
{
    return (complex_){a.re + b.re, a.im + b.im};
}

static inline complex_ minus(complex_ a, complex_ b)
{
    return (complex_){a.re - b.re, a.im - b.im};
}

/* a + sign i b */
static inline complex_ turned(complex_ a, complex_ b, const int sign)
{
    return sign > 0 ? (complex_){a.re - b.im, a.im + b.re} : (complex_){a.re + b.im, a.im - b.re};
}

/* One stage in place: forward the transforms of `radix` numbers and then the twiddles, backward the other way round. */
static inline void stage(complex_ *x, int64_t radix, int64_t part, const REAL *w, const int backward)
{
    const int sign = backward ? 1 : -1;
    if (radix == 4) {
        for (int64_t j = 0; j < part; j++, w += 6) {
            complex_ a = x[j], b = x[j + part], c = x[j + 2 * part], d = x[j + 3 * part];
            if (backward) b = times(b, w[0], -w[1]), c = times(c, w[2], -w[3]), d = times(d, w[4], -w[5]);
            complex_ s = plus(a, c), t = minus(a, c), u = plus(b, d), v = minus(b, d);
            a = plus(s, u), b = turned(t, v, sign), c = minus(s, u), d = turned(t, v, -sign);
            if (!backward) b = times(b, w[0], w[1]), c = times(c, w[2], w[3]), d = times(d, w[4], w[5]);
            x[j] = a, x[j + part] = b, x[j + 2 * part] = c, x[j + 3 * part] = d;
        }
    } else if (radix == 2) {
        for (int64_t j = 0; j < part; j++, w += 2) {
            complex_ a = x[j], b = x[j + part];
            if (backward) b = times(b, w[0], -w[1]);
            x[j] = plus(a, b), b = minus(a, b);
            x[j + part] = backward ? b : times(b, w[0], w[1]);
        }
    } else {
        const REAL half = 0.5, root = 0.86602540378443865;
        for (int64_t j = 0; j < part; j++, w += 4) {
            complex_ a = x[j], b = x[j + part], c = x[j + 2 * part];
            if (backward) b = times(b, w[0], -w[1]), c = times(c, w[2], -w[3]);
            complex_ s = plus(b, c), d = minus(b, c);
            complex_ m = {a.re - half * s.re, a.im - half * s.im}, r = {root * d.re, root * d.im};
            x[j] = plus(a, s), b = turned(m, r, sign), c = turned(m, r, -sign);
            if (!backward) b = times(b, w[0], w[1]), c = times(c, w[2], w[3]);
            x[j + part] = b, x[j + 2 * part] = c;
        }
    }
}

static void forward(const call *c, complex_ *x, int64_t depth, int64_t size, const REAL *twiddles)
{
    if (depth == c->stages) return;
    const int64_t radix = c->radices[depth], part = size / radix;
    stage(x, radix, part, twiddles, 0);
    for (int64_t q = 0; part > 1 && q < radix; q++)
        forward(c, x + q * part, depth + 1, part, twiddles + 2 * (radix - 1) * part);
}

static void backward(const call *c, complex_ *x, int64_t depth, int64_t size, const REAL *twiddles)
{
    if (depth == c->stages) return;
    const int64_t radix = c->radices[depth], part = size / radix;
    for (int64_t q = 0; part > 1 && q < radix; q++)
        backward(c, x + q * part, depth + 1, part, twiddles + 2 * (radix - 1) * part);
    stage(x, radix, part, twiddles, 1);
}

/* A vector of the channels from `start` on of a token; 0 beyond the last. */
static inline vector read_channels(const REAL *token, int64_t start, int64_t channels)
{
    vector x = {0};
    if (channels == 1) return all(token[0]);
    if (start + WIDE <= channels)
        memcpy(&x, token + start, sizeof x);
    else if (start < channels)
        memcpy(&x, token + start, (channels - start) * sizeof(REAL));
    return x;
}

static inline void write_channels(REAL *token, vector x, int64_t start, int64_t channels)
{
    if (start + WIDE <= channels)
        memcpy(token + start, &x, sizeof x);
    else if (start < channels)
        memcpy(token + start, &x, (channels - start) * sizeof(REAL));
}

/* All frequencies of x times those of the coefficients, into y, which may be x. */
static void multiply(const call *c, const complex_ *x, complex_ *y, const REAL *s)
{
    if (c->shared) {
        for (int64_t k = 0; k < c->length; k++) y[k] = times(x[k], s[2 * k], s[2 * k + 1]);
        return;
    }
    const vector *spectrum = (const vector *)s;
    for (int64_t k = 0; k < c->bins; k++, spectrum += 4) {
        const int32_t here = c->places[2 * k], there = c->places[2 * k + 1];
        const complex_ p = x[here], q = x[there];
        const vector first_re = p.re + q.re, first_im = p.im - q.im, second_re = p.im + q.im, second_im = q.re - p.re;
        const vector a_re = first_re * spectrum[0] - first_im * spectrum[1];
        const vector a_im = first_re * spectrum[1] + first_im * spectrum[0];
        const vector b_re = second_re * spectrum[2] - second_im * spectrum[3];
        const vector b_im = second_re * spectrum[3] + second_im * spectrum[2];
        y[here] = (complex_){a_re - b_im, a_im + b_re};
        y[there] = (complex_){a_re + b_im, b_re - a_im};
    }
}

static void read_values(const call *c, complex_ *x, const REAL *values, int64_t from, int64_t channel)
{
    const int64_t start = least(-least(-from, 0), from + c->length), stop = least(from + c->length, c->tokens);
    memset(x, 0, (start - from) * sizeof(complex_));
    for (int64_t t = start; t < stop; t++) {
        const REAL *token = values + t * c->value_strides[2];
        x[t - from] = (complex_){read_channels(token, channel, c->value_channels),
                                 read_channels(token, channel + WIDE, c->value_channels)};
    }
    const int64_t end = stop > start ? stop : start;
    memset(x + (end - from), 0, (from + c->length - end) * sizeof(complex_));
}

static void write_rows(const call *c, const complex_ *y, REAL *out, const REAL *scale, int64_t from, int64_t channel)
{
    const int64_t stop = least(from + c->step, c->tokens);
    for (int64_t t = from; t < stop; t++) {
        complex_ row = y[c->first + t - from];
        if (scale && c->scales == 1) row.re *= scale[t], row.im *= scale[t];
        if (scale && c->scales > 1) {
            const vector *factor = (const vector *)(scale + t * c->scales + channel);
            row.re *= factor[0], row.im *= factor[1];
        }
        write_channels(out + t * c->out_strides[2], row.re, channel, c->channels);
        write_channels(out + t * c->out_strides[2], row.im, channel + WIDE, c->channels);
    }
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
    const int64_t of_spectrum = c->shared ? 2 * c->length : c->bins * 4 * WIDE;
    int failed = 0;
#pragma omp parallel num_threads(c->threads)
    {
        complex_ *x = aligned_alloc(64, (groups > 1 ? 2 : 1) * c->length * sizeof(complex_));
        complex_ *y = groups > 1 ? x + c->length : x;
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
            read_values(c, x, c->values + b * c->value_strides[0] + g * c->value_strides[1], start - c->before, channel);
            forward(c, x, 0, c->length, c->twiddles);
            for (int64_t n = part * each; n < least(groups, (part + 1) * each); n++) {
                const int64_t h = g * groups + n;
                multiply(c, x, y, c->spectrum + (c->shared ? h : h * pairs + pair) * of_spectrum);
                backward(c, y, 0, c->length, c->twiddles);
                write_rows(c, y, c->out + b * c->out_strides[0] + h * c->out_strides[1],
                           c->scale ? c->scale + h * c->tokens * c->scales : 0, start, channel);
            }
        }
        free(x);
    }
    return failed;
}
