/* Rows of channels as complex numbers, two vectors of channels being the real and the imaginary part: where transforms
   read, and where they write. */

#include "vectors.h"

#define AHEAD 8 /* how many rows ahead the cache is told to bring one: they may be too far apart for it to foresee */

typedef struct {
    vector re, im;
} complex_;

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

/* Factors on the first and the last rows of a sequence, half of them each: of every channel, or one for all. */
typedef struct {
    const REAL *at; /* (rows, channels), or null */
    int64_t rows, channels, tokens;
} factors;

/* Where an inverse goes: number skipped + n of it, counted around the end, is row n, which is row first + n of all. */
typedef struct {
    REAL *at;
    int64_t stride, channel, channels, skipped, rows, length;
    factors factors;
    int64_t first;
    int64_t far; /* whether rows go past the caches: there are whole pairs of vectors, where vectors may be stored */
} target;

/* Those on row t, or null. */
static inline const REAL *factors_on(const factors *f, int64_t t)
{
    const int64_t first = (f->rows + 1) / 2, without = f->tokens - f->rows;
    if (!f->at || (t >= first && t < first + without)) return 0;
    return f->at + (t < first ? t : t - without) * f->channels;
}

static inline complex_ row_of(const source *from, int64_t n)
{
    const int64_t t = from->first + n;
    if (t < 0 || t >= from->rows) return (complex_){{0}, {0}};
    const REAL *row = from->at + t * from->stride;
    __builtin_prefetch(row + from->channel + AHEAD * from->stride);
    __builtin_prefetch(row + from->channel + AHEAD * from->stride + WIDE);
    return (complex_){read_channels(row, from->channel, from->channels),
                      read_channels(row, from->channel + WIDE, from->channels)};
}

static inline void write_row(const target *to, int64_t n, complex_ x)
{
    const int64_t t = n - to->skipped + (n < to->skipped ? to->length : 0);
    if (t >= to->rows) return;
    REAL *row = to->at + t * to->stride;
    if (!to->far) {
        __builtin_prefetch(row + to->channel + AHEAD * to->stride, 1);
        __builtin_prefetch(row + to->channel + AHEAD * to->stride + WIDE, 1);
    }
    const REAL *factor = factors_on(&to->factors, to->first + t);
    if (factor && to->factors.channels == 1) x.re *= factor[0], x.im *= factor[0];
    if (factor && to->factors.channels > 1) {
        const vector *each = (const vector *)(factor + to->channel);
        x.re *= each[0], x.im *= each[1];
    }
    if (to->far) {
        write_far(row + to->channel, x.re);
        write_far(row + to->channel + WIDE, x.im);
        return;
    }
    write_channels(row, x.re, to->channel, to->channels);
    write_channels(row, x.im, to->channel + WIDE, to->channels);
}
