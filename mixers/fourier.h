/* Fourier transforms along the tokens, as many channels at once as a vector holds: no number changes its lane.

   Two vectors of channels are the real and the imaginary part of one complex sequence (Press et al., "Numerical
   Recipes", section 12.3). Its transform leaves frequencies in the order of reversed digits, decimated in frequency; the
   inverse takes them in this order. Both go into depth, so that what they work on soon fits into a core's own cache
   (Frigo and Johnson, 2005, "The Design and Implementation of FFTW3"). */

#include "vectors.h"

#define FAR 8 /* how many rows ahead the cache is told to bring one: they may be too far apart for it to foresee */

typedef struct {
    vector re, im;
} complex_;

typedef struct {
    const REAL *twiddles;   /* stage by stage: (size / radix, radix - 1, 2) */
    const int64_t *radices; /* of the stages, 2, 3 or 4 */
    const int32_t *places;  /* (bins, 2), where frequencies k and -k are left */
    int64_t stages, length, bins;
} transform;

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

static inline complex_ product(complex_ a, complex_ b)
{
    return (complex_){a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

/* Frequency k, doubled, of both sequences that are the real and the imaginary part of one. */
typedef struct {
    complex_ real, imaginary;
} both;

/* From the frequencies k and -k of the one. */
static inline both separated(complex_ here, complex_ there)
{
    return (both){{here.re + there.re, here.im - there.im}, {here.im + there.im, there.re - here.re}};
}

/* And back: frequency k of the one. */
static inline complex_ joined(both x)
{
    return turned(x.real, x.imaginary, 1);
}

/* Frequency -k. */
static inline complex_ joined_there(both x)
{
    return (complex_){x.real.re + x.imaginary.im, x.imaginary.re - x.real.im};
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

/* What is transformed: number n of it is row first + n, 0 where there is none. */
typedef struct {
    const REAL *at;
    int64_t stride, channel, channels, first, rows;
} source;

/* Where an inverse goes: number skipped + n of it, counted around the end, is row n. */
typedef struct {
    REAL *at;
    int64_t stride, channel, channels, skipped, rows, length;
    const REAL *scale; /* factor of row n, or of `scales` channels of it, or null */
    int64_t scales;
} target;

static inline complex_ row_of(const source *from, int64_t n)
{
    const int64_t t = from->first + n;
    if (t < 0 || t >= from->rows) return (complex_){{0}, {0}};
    const REAL *row = from->at + t * from->stride;
    __builtin_prefetch(row + from->channel + FAR * from->stride);
    __builtin_prefetch(row + from->channel + FAR * from->stride + WIDE);
    return (complex_){read_channels(row, from->channel, from->channels),
                      read_channels(row, from->channel + WIDE, from->channels)};
}

static inline void write_row(const target *to, int64_t n, complex_ x)
{
    const int64_t t = n - to->skipped + (n < to->skipped ? to->length : 0);
    if (t >= to->rows) return;
    REAL *row = to->at + t * to->stride;
    __builtin_prefetch(row + to->channel + FAR * to->stride, 1);
    __builtin_prefetch(row + to->channel + FAR * to->stride + WIDE, 1);
    if (to->scales == 1) x.re *= to->scale[t], x.im *= to->scale[t];
    if (to->scales > 1) {
        const vector *factor = (const vector *)(to->scale + t * to->scales + to->channel);
        x.re *= factor[0], x.im *= factor[1];
    }
    write_channels(row, x.re, to->channel, to->channels);
    write_channels(row, x.im, to->channel + WIDE, to->channels);
}

/* One stage: forward the transforms of `radix` numbers and then the twiddles, backward the other way round. In place,
   if there is no source or target. */
static inline void stage(complex_ *x, int64_t radix, int64_t part, const REAL *w, const int backward, const source *from,
                         const target *to)
{
#define GET(n) (from ? row_of(from, n) : x[n])
#define PUT(n, number) (to ? write_row(to, n, number) : (void)(x[n] = (number)))
    const int sign = backward ? 1 : -1;
    if (radix == 4) {
        for (int64_t j = 0; j < part; j++, w += 6) {
            complex_ a = GET(j), b = GET(j + part), c = GET(j + 2 * part), d = GET(j + 3 * part);
            if (backward) b = times(b, w[0], -w[1]), c = times(c, w[2], -w[3]), d = times(d, w[4], -w[5]);
            complex_ s = plus(a, c), t = minus(a, c), u = plus(b, d), v = minus(b, d);
            a = plus(s, u), b = turned(t, v, sign), c = minus(s, u), d = turned(t, v, -sign);
            if (!backward) b = times(b, w[0], w[1]), c = times(c, w[2], w[3]), d = times(d, w[4], w[5]);
            PUT(j, a), PUT(j + part, b), PUT(j + 2 * part, c), PUT(j + 3 * part, d);
        }
    } else if (radix == 2) {
        for (int64_t j = 0; j < part; j++, w += 2) {
            complex_ a = GET(j), b = GET(j + part);
            if (backward) b = times(b, w[0], -w[1]);
            complex_ s = plus(a, b), d = minus(a, b);
            PUT(j, s), PUT(j + part, backward ? d : times(d, w[0], w[1]));
        }
    } else {
        const REAL half = 0.5, root = 0.86602540378443865;
        for (int64_t j = 0; j < part; j++, w += 4) {
            complex_ a = GET(j), b = GET(j + part), c = GET(j + 2 * part);
            if (backward) b = times(b, w[0], -w[1]), c = times(c, w[2], -w[3]);
            complex_ s = plus(b, c), d = minus(b, c);
            complex_ m = {a.re - half * s.re, a.im - half * s.im}, r = {root * d.re, root * d.im};
            a = plus(a, s), b = turned(m, r, sign), c = turned(m, r, -sign);
            if (!backward) b = times(b, w[0], w[1]), c = times(c, w[2], w[3]);
            PUT(j, a), PUT(j + part, b), PUT(j + 2 * part, c);
        }
    }
}

static inline void forward_in_place(const transform *c, complex_ *x, int64_t depth, int64_t size, const REAL *twiddles)
{
    if (depth == c->stages) return;
    const int64_t radix = c->radices[depth], part = size / radix;
    stage(x, radix, part, twiddles, 0, 0, 0);
    for (int64_t q = 0; part > 1 && q < radix; q++)
        forward_in_place(c, x + q * part, depth + 1, part, twiddles + 2 * (radix - 1) * part);
}

static inline void backward_in_place(const transform *c, complex_ *x, int64_t depth, int64_t size, const REAL *twiddles)
{
    if (depth == c->stages) return;
    const int64_t radix = c->radices[depth], part = size / radix;
    for (int64_t q = 0; part > 1 && q < radix; q++)
        backward_in_place(c, x + q * part, depth + 1, part, twiddles + 2 * (radix - 1) * part);
    stage(x, radix, part, twiddles, 1, 0, 0);
}

/* The first stage leaves as many blocks as its radix, each to be transformed by itself. Frequencies k and -k end up in
   blocks q and `other_block` of q. */
static inline int64_t block_of(const transform *c)
{
    return c->length / c->radices[0];
}

static inline int64_t other_block(const transform *c, int64_t q)
{
    return q ? c->radices[0] - q : 0;
}

static inline void first_stage(const transform *c, const source *from, complex_ *x)
{
    stage(x, c->radices[0], block_of(c), c->twiddles, 0, from, 0);
}

static inline void forward_block(const transform *c, complex_ *x, int64_t q)
{
    const int64_t part = block_of(c);
    forward_in_place(c, x + q * part, 1, part, c->twiddles + 2 * (c->radices[0] - 1) * part);
}

static inline void backward_block(const transform *c, complex_ *x, int64_t q)
{
    const int64_t part = block_of(c);
    backward_in_place(c, x + q * part, 1, part, c->twiddles + 2 * (c->radices[0] - 1) * part);
}

static inline void last_stage(const transform *c, complex_ *x, const target *to)
{
    stage(x, c->radices[0], block_of(c), c->twiddles, 1, 0, to);
}

/* The transform of rows. */
static inline void forward(const transform *c, const source *from, complex_ *x)
{
    first_stage(c, from, x);
    for (int64_t q = 0; q < c->radices[0]; q++) forward_block(c, x, q);
}

/* The inverse, times the length, into rows. */
static inline void backward(const transform *c, complex_ *x, const target *to)
{
    for (int64_t q = 0; q < c->radices[0]; q++) backward_block(c, x, q);
    last_stage(c, x, to);
}
