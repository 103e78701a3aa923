/* Numbers side by side in the widest registers that the CPU has, by the vector extensions of GCC and Clang.

   Built with REAL = float or double. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef REAL
#define REAL float
#endif

/* Bytes of a vector register, and how many rows of a product stay in registers beside two vectors of columns. */
#if defined(__AVX512F__)
#define BYTES 64
#define ROWS 12
#elif defined(__AVX2__) && defined(__FMA__)
#define BYTES 32
#define ROWS 6
#elif defined(__aarch64__)
#define BYTES 16
#define ROWS 12
#else
#error "no vector instructions that are worth it"
#endif

#define WIDE ((int)(BYTES / sizeof(REAL)))
#define IN_BASE_2 ((REAL)1.4426950408889634)
#define IS_DOUBLE (sizeof(REAL) == 8)
#define INTEGER __typeof__(__builtin_choose_expr(IS_DOUBLE, (int64_t)0, (int32_t)0))

#define INLINE inline __attribute__((always_inline))

typedef REAL vector __attribute__((vector_size(BYTES)));
typedef INTEGER bits __attribute__((vector_size(BYTES)));

static inline vector all(REAL x)
{
    return x - (vector){0}; /* not +, which makes 0 of -0, and is not left out */
}

static inline vector either(bits mask, vector yes, vector no)
{
    return (vector)(((bits)yes & mask) | ((bits)no & ~mask));
}

/* The larger one, b if one of them is no number. GCC doesn't find the instruction by itself. */
static inline vector larger(vector a, vector b)
{
#if defined(__AVX512F__)
    return IS_DOUBLE ? (vector)_mm512_max_pd((__m512d)a, (__m512d)b) : (vector)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return IS_DOUBLE ? (vector)_mm256_max_pd((__m256d)a, (__m256d)b) : (vector)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return either(a > b, a, b);
#endif
}

/* Stores a vector, at a multiple of its size, past the caches: memory that is only written to need not be read first.
   `end_of_far` before others read it. */
static inline void write_far(REAL *to, vector x)
{
#if defined(__AVX512F__)
    _mm512_stream_si512((__m512i *)to, (__m512i)x);
#elif defined(__AVX2__)
    _mm256_stream_si256((__m256i *)to, (__m256i)x);
#else
    *(vector *)to = x;
#endif
}

static inline void end_of_far(void)
{
#if defined(__AVX512F__) || defined(__AVX2__)
    _mm_sfence();
#endif
}

#ifdef __AVX512DQ__
/* `exp2_of` of single numbers where there are instructions for x - floor(x) and for a times 2^floor(x): the polynomial
   of degree 5, 1 at 0, whose relative error on [0, 1] is least, 8e-8. */
static inline __m512 exp2_of_single(__m512 x)
{
    static const float series[] = {1.0f, 0.69315131247355622f, 0.24016444623083294f, 0.055799920011970641f,
                                   0.0090170260671129841f, 0.0018671306999768641f};
    const __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126), _CMP_NLE_UQ);
    __m512 power = _mm512_set1_ps(series[5]);
#pragma GCC unroll 8
    for (int i = 4; i >= 0; i--) power = power * rest + series[i];
    return _mm512_maskz_scalef_ps(normal, power, x);
}
#endif

/* 2^x for x < 1, by the power of the nearest whole number and a polynomial of the rest; 0 below the normal numbers.

   The polynomial of single numbers is that of degree 5, 1 at 0, whose relative error on [-1/2, 1/2] is least, 9e-8;
   that of double is the Taylor series. */
static inline vector exp2_of(vector x)
{
#ifdef __AVX512DQ__
    if (!IS_DOUBLE) return (vector)exp2_of_single((__m512)x);
#endif
    static const REAL single[] = {1.0, 0.6931469775997534, 0.24022242085357517, 0.05550733742306941, 0.00967151264177711,
                                  0.0013264727490587879};
    static const REAL taylor[] = {1.0, 0.69314718055994531, 0.24022650695910071, 0.055504108664821580,
                                  0.0096181291076284772, 0.0013333558146428443, 0.00015403530393381609,
                                  1.5252733804059840e-5, 1.3215486790144309e-6, 1.0178086009239699e-7,
                                  7.0549116208011233e-9, 4.4455382718708115e-10, 2.5678435993488205e-11,
                                  1.3691488853904128e-12};
    const REAL *series = IS_DOUBLE ? taylor : single;
    const int degree = IS_DOUBLE ? 13 : 5, fraction = IS_DOUBLE ? 52 : 23, bias = IS_DOUBLE ? 1023 : 127;
    const REAL round = (IS_DOUBLE ? 6755399441055744.0 : 12582912.0) + bias; /* 1.5 * 2^fraction: adding it rounds */
    const bits tiny = x <= all((REAL)(1 - bias));
    const vector whole = x + round, rest = x - (whole - round);
    vector power = all(series[degree]);
#pragma GCC unroll 16
    for (int i = degree - 1; i >= 0; i--) power = power * rest + series[i];
    const bits exponent = (bits)whole << fraction; /* all bits of round but those of bias are shifted out */
    return (vector)((bits)(power * (vector)exponent) & ~tiny);
}

/* Four numbers, wherever they lie. */
typedef REAL quad __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL))));

#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (__typeof__((a) < (b))){i, j, k, l})
#endif

/* The transpose of four rows of four numbers. */
static inline void transpose(quad rows[4])
{
    const quad a = PICK(rows[0], rows[1], 0, 4, 1, 5), b = PICK(rows[2], rows[3], 0, 4, 1, 5);
    const quad c = PICK(rows[0], rows[1], 2, 6, 3, 7), d = PICK(rows[2], rows[3], 2, 6, 3, 7);
    rows[0] = PICK(a, b, 0, 1, 4, 5);
    rows[1] = PICK(a, b, 2, 3, 6, 7);
    rows[2] = PICK(c, d, 0, 1, 4, 5);
    rows[3] = PICK(c, d, 2, 3, 6, 7);
}

static inline int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static inline REAL widened(uint16_t x)
{
    union {
        uint32_t as_bits;
        float as_float;
    } u = {(uint32_t)x << 16};
    return u.as_float;
}

static inline uint16_t narrowed(REAL x)
{
    union {
        float as_float;
        uint32_t as_bits;
    } u = {(float)x};
    if (x != x) return 0x7FC0;
    return (u.as_bits + 0x7FFF + ((u.as_bits >> 16) & 1)) >> 16; /* to the nearest, ties to even */
}
