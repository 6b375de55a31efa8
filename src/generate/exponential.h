/* exponential: 2^x for weights, the same bits on every machine and with every libm. */
#ifndef GENERATE_EXPONENTIAL_H
#define GENERATE_EXPONENTIAL_H

#include <stdint.h>
#include <string.h>

/* Steps of the formula, for numbers and for vectors of them. Adding EXPONENTIAL_ROUND (1.5 * 2^23)
 * rounds to a whole number, which then stands in the lowest bits of the sum. */
#define EXPONENTIAL_ROUND 12582912.0f
#define EXPONENTIAL_LEAST -125.0f           /* what comes out is a normal number down to here */
#define EXPONENTIAL_PER_NATURAL 1.44269504f /* log2(e): e^x is 2^(x * this) */
/* 2^f for |f| <= 1/2: the polynomial of least relative error (9.2e-8) that is 1 at 0. */
#define EXPONENTIAL_POLYNOMIAL(f)                                                                  \
    (((((0x1.5bba14p-10f * (f) + 0x1.3cea88p-7f) * (f) + 0x1.c6b752p-5f) * (f) + 0x1.ebf9bcp-3f) * \
          (f) +                                                                                    \
      0x1.62e42ap-1f) *                                                                            \
         (f) +                                                                                     \
     1.0f)

/* 2^x for x <= 0 within 2e-7, never above 1; 0 below EXPONENTIAL_LEAST, and of a NaN. x is a whole
 * n plus f: 2^f by its polynomial, to whose exponent n is added. Additions and multiplications
 * only, without branches: compilers vectorise it. */
static inline float exp2_negative(float x)
{
    float sum = x + EXPONENTIAL_ROUND, f = x - (sum - EXPONENTIAL_ROUND);
    float power = EXPONENTIAL_POLYNOMIAL(f);
    uint32_t n, bits;
    memcpy(&n, &sum, sizeof(n));
    memcpy(&bits, &power, sizeof(bits));
    bits += n << 23;
    memcpy(&power, &bits, sizeof(power));
    return x >= EXPONENTIAL_LEAST ? power : 0.0f;
}

#endif
