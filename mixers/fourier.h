/* Fourier transforms along the tokens, as many channels at once as a vector holds: no number changes its lane.

   Two vectors of channels are the real and the imaginary part of one complex sequence (Press et al., "Numerical
   Recipes", section 12.3). Its transform leaves frequencies in the order of reversed digits, decimated in frequency; the
   inverse takes them in this order. Both go into depth, so that what they work on soon fits into a core's own cache
   (Frigo and Johnson, 2005, "The Design and Implementation of FFTW3"). */

#include "rows.h"

typedef struct {
    const REAL *twiddles;   /* stage by stage: (size / radix, radix - 1, 2) */
    const int64_t *radices; /* of the stages, 2, 3, 4, 5 or 8 */
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

static INLINE void transform_of_four(complex_ *x, const int sign)
{
    const complex_ s = plus(x[0], x[2]), t = minus(x[0], x[2]), u = plus(x[1], x[3]), v = minus(x[1], x[3]);
    x[0] = plus(s, u), x[1] = turned(t, v, sign), x[2] = minus(s, u), x[3] = turned(t, v, -sign);
}

/* The transform of as many numbers as a radix says, by sign -1; by 1 the inverse. */
static INLINE void small_transform(complex_ *x, const int64_t size, const int sign)
{
    if (size == 2) {
        const complex_ a = x[0], b = x[1];
        x[0] = plus(a, b), x[1] = minus(a, b);
    } else if (size == 3) {
        const REAL half = 0.5, root = 0.86602540378443865;
        const complex_ a = x[0], s = plus(x[1], x[2]), d = minus(x[1], x[2]);
        const complex_ m = {a.re - half * s.re, a.im - half * s.im}, r = {root * d.re, root * d.im};
        x[0] = plus(a, s), x[1] = turned(m, r, sign), x[2] = turned(m, r, -sign);
    } else if (size == 4) {
        transform_of_four(x, sign);
    } else if (size == 5) {
        /* Cosines and sines of a fifth of a turn and of two. */
        const REAL c1 = 0.30901699437494742, c2 = -0.80901699437494742;
        const REAL s1 = 0.95105651629515357, s2 = 0.58778525229247313;
        const complex_ a = x[0], s = plus(x[1], x[4]), t = plus(x[2], x[3]);
        const complex_ u = minus(x[1], x[4]), v = minus(x[2], x[3]);
        const complex_ m = {a.re + c1 * s.re + c2 * t.re, a.im + c1 * s.im + c2 * t.im};
        const complex_ n = {a.re + c2 * s.re + c1 * t.re, a.im + c2 * s.im + c1 * t.im};
        const complex_ p = {s1 * u.re + s2 * v.re, s1 * u.im + s2 * v.im};
        const complex_ q = {s2 * u.re - s1 * v.re, s2 * u.im - s1 * v.im};
        x[0] = plus(a, plus(s, t)), x[1] = turned(m, p, sign), x[2] = turned(n, q, sign);
        x[3] = turned(n, q, -sign), x[4] = turned(m, p, -sign);
    } else {
        const REAL root = 0.70710678118654752;
        complex_ even[4], odd[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) even[i] = plus(x[i], x[i + 4]), odd[i] = minus(x[i], x[i + 4]);
        const complex_ zero = {{0}, {0}}, one = turned(odd[1], odd[1], sign), three = turned(odd[3], odd[3], -sign);
        odd[1] = (complex_){one.re * root, one.im * root};
        odd[2] = turned(zero, odd[2], sign);
        odd[3] = (complex_){three.re * -root, three.im * -root};
        transform_of_four(even, sign);
        transform_of_four(odd, sign);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) x[2 * i] = even[i], x[2 * i + 1] = odd[i];
    }
}

/* `stage` of a radix that the compiler knows. */
static INLINE void stage_of(complex_ *x, const int64_t radix, int64_t part, const REAL *w, const int backward,
                            const source *from, const target *to)
{
    for (int64_t j = 0; j < part; j++, w += 2 * (radix - 1)) {
        complex_ some[8];
#pragma GCC unroll 8
        for (int64_t i = 0; i < radix; i++) {
            const int64_t n = j + i * part;
            some[i] = from ? row_of(from, n) : x[n];
            if (backward && i) some[i] = times(some[i], w[2 * i - 2], -w[2 * i - 1]);
        }
        small_transform(some, radix, backward ? 1 : -1);
#pragma GCC unroll 8
        for (int64_t i = 0; i < radix; i++) {
            const int64_t n = j + i * part;
            if (!backward && i) some[i] = times(some[i], w[2 * i - 2], w[2 * i - 1]);
            if (to)
                write_row(to, n, some[i]);
            else
                x[n] = some[i];
        }
    }
}

/* One stage: forward the transforms of `radix` numbers and then the twiddles, backward the other way round. In place,
   if there is no source or target. */
static inline void stage(complex_ *x, int64_t radix, int64_t part, const REAL *w, const int backward, const source *from,
                         const target *to)
{
    if (radix == 2) stage_of(x, 2, part, w, backward, from, to);
    if (radix == 3) stage_of(x, 3, part, w, backward, from, to);
    if (radix == 4) stage_of(x, 4, part, w, backward, from, to);
    if (radix == 5) stage_of(x, 5, part, w, backward, from, to);
    if (radix == 8) stage_of(x, 8, part, w, backward, from, to);
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
