/* exponential: e^x for weights, the same bits on every machine and with every libm. */
#ifndef GENERATE_EXPONENTIAL_H
#define GENERATE_EXPONENTIAL_H

#include <stdint.h>
#include <string.h>

/* Two steps of the formula, for numbers and for vectors of them: x - n ln 2, and e^r. */
#define EXPONENTIAL_REMAINDER(x, n) (((x) - (n)*0.693359375f) - (n) * -2.12194440e-4f)
#define EXPONENTIAL_POLYNOMIAL(r)                                                                  \
    ((((((1.0f / 720 * (r) + 1.0f / 120) * (r) + 1.0f / 24) * (r) + 1.0f / 6) * (r) + 0.5f) *      \
          (r) +                                                                                    \
      1.0f) *                                                                                      \
         (r) +                                                                                     \
     1.0f)

/* e^x for x <= 0; below -87 it is 0. x = n ln 2 + r with |r| <= ln(2) / 2; e^r by its Taylor
 * polynomial of degree 6 (error below 2e-7 relative); ln 2 in two parts keeps r exact. Additions
 * and multiplications only, without branches: compilers vectorise it. */
static inline float exp_negative(float x)
{
    float clamped = x < -87.0f ? -87.0f : x;
    float n = (float)(int32_t)(clamped * 1.44269504f - 0.5f);
    float r = EXPONENTIAL_REMAINDER(clamped, n);
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof(scale));
    return x < -87.0f ? 0.0f : EXPONENTIAL_POLYNOMIAL(r) * scale;
}

#endif
