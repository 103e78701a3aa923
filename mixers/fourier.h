/* Fourier transforms along the tokens, as many channels at once as a vector holds: no number changes its lane.

   Two vectors of channels are the real and the imaginary part of one complex sequence (Press et al., "Numerical
   Recipes", section 12.3). Its transform leaves frequencies in the order of reversed digits, decimated in frequency; the
   inverse takes them in this order. Both go into depth, so that what they work on soon fits into a core's own cache
   (Frigo and Johnson, 2005, "The Design and Implementation of FFTW3"). */

#include "vectors.h"

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

static inline void forward(const transform *c, complex_ *x, int64_t depth, int64_t size, const REAL *twiddles)
{
    if (depth == c->stages) return;
    const int64_t radix = c->radices[depth], part = size / radix;
    stage(x, radix, part, twiddles, 0);
    for (int64_t q = 0; part > 1 && q < radix; q++)
        forward(c, x + q * part, depth + 1, part, twiddles + 2 * (radix - 1) * part);
}

static inline void backward(const transform *c, complex_ *x, int64_t depth, int64_t size, const REAL *twiddles)
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
