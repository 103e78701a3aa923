/* Fourier transforms along the tokens, as many channels at once as a vector holds: no number changes its lane.

   Two vectors of channels are the real and the imaginary part of one complex sequence (Press et al., "Numerical
   Recipes", section 12.3). Its transform leaves frequencies in the order of reversed digits, decimated in frequency; the
   inverse takes them in this order. Both go into depth, so that what they work on soon fits into a core's own cache
   (Frigo and Johnson, 2005, "The Design and Implementation of FFTW3"). */

#include "rows.h"

typedef struct {
    const REAL *twiddles;   /* stage by stage: (size / radix, radix - 1, 2) */
    const int64_t *radices; /* of the stages, 2, 3, 4 or 5 */
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
    } else if (radix == 3) {
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
    } else {
        /* Cosines and sines of a fifth of a turn and of two. */
        const REAL c1 = 0.30901699437494742, c2 = -0.80901699437494742, s1 = 0.95105651629515357, s2 = 0.58778525229247313;
        for (int64_t j = 0; j < part; j++, w += 8) {
            complex_ a = GET(j), b = GET(j + part), c = GET(j + 2 * part), d = GET(j + 3 * part), e = GET(j + 4 * part);
            if (backward) {
                b = times(b, w[0], -w[1]), c = times(c, w[2], -w[3]);
                d = times(d, w[4], -w[5]), e = times(e, w[6], -w[7]);
            }
            complex_ s = plus(b, e), t = plus(c, d), u = minus(b, e), v = minus(c, d);
            complex_ m = {a.re + c1 * s.re + c2 * t.re, a.im + c1 * s.im + c2 * t.im};
            complex_ n = {a.re + c2 * s.re + c1 * t.re, a.im + c2 * s.im + c1 * t.im};
            complex_ p = {s1 * u.re + s2 * v.re, s1 * u.im + s2 * v.im}, q = {s2 * u.re - s1 * v.re, s2 * u.im - s1 * v.im};
            a = plus(a, plus(s, t)), b = turned(m, p, sign), c = turned(n, q, sign);
            d = turned(n, q, -sign), e = turned(m, p, -sign);
            if (!backward) {
                b = times(b, w[0], w[1]), c = times(c, w[2], w[3]);
                d = times(d, w[4], w[5]), e = times(e, w[6], w[7]);
            }
            PUT(j, a), PUT(j + part, b), PUT(j + 2 * part, c), PUT(j + 3 * part, d), PUT(j + 4 * part, e);
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
