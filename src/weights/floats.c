/* Number formats of weights: half, bfloat16 and the 8- and 4-bit floats of MLX's block formats.
 *
 *     f16   s eeeee mmmmmmmmmm   bias 15     bf16  the upper half of a float32
 *     e4m3  s eeee mmm           bias 7, subnormals m * 2^-9, 0x7f and 0xff are NaN, no infinities
 *     e8m0  eeeeeeee             2^(b - 127), 255 is NaN: only a scale
 *     e2m1  s ee m               0 .5 1 1.5 2 3 4 6
 *
 * Everything is done on the bits, so that no result depends on the rounding mode or on hardware. */
#include "weights.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static uint32_t bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

float float_from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 0x1f;
    uint32_t mantissa = half & 0x3ff;
    if (exponent == 0x1f)
        return float_of_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) {
        /* Subnormal: mantissa * 2^-24, exact in float32. */
        float magnitude = (float)mantissa * 0x1p-24f;
        return float_of_bits(sign | bits_of_float(magnitude));
    }
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* value >> shift, rounded to nearest, ties to even; 1 <= shift <= 31. */
static uint32_t shift_right_to_even(uint32_t value, unsigned shift)
{
    uint32_t half = (uint32_t)1 << (shift - 1);
    uint32_t rest = value & ((half << 1) - 1);
    uint32_t result = value >> shift;
    return result + (rest > half || (rest == half && (result & 1)));
}

uint16_t float_to_f16(float value)
{
    uint32_t bits = bits_of_float(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x1ff));
    if (magnitude >= 0x47800000) /* 65536 and beyond; 65520..65535 get there by rounding below */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude >= 0x38800000) { /* 2^-14: normal; a carry into the exponent is right */
        uint32_t rounded = shift_right_to_even(magnitude, 13) - (112u << 10);
        return (uint16_t)(sign | rounded);
    }
    if (magnitude < 0x33000000) /* below 2^-25, half of the least subnormal */
        return sign;
    unsigned exponent = magnitude >> 23;
    uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
    return (uint16_t)(sign | shift_right_to_even(mantissa, 126 - exponent));
}

float float_from_bf16(uint16_t bits)
{
    return float_of_bits((uint32_t)bits << 16);
}

uint16_t float_to_bf16(float value)
{
    uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)shift_right_to_even(bits, 16);
}

float float_from_e4m3(uint8_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x80) << 24;
    uint32_t exponent = bits >> 3 & 0xf;
    uint32_t mantissa = bits & 7;
    if (exponent == 0xf && mantissa == 7)
        return float_of_bits(sign | 0x7fc00000);
    if (exponent == 0)
        return float_of_bits(sign | bits_of_float((float)mantissa * 0x1p-9f));
    return float_of_bits(sign | (exponent + 120) << 23 | mantissa << 20);
}

float float_from_e8m0(uint8_t bits)
{
    if (bits == 255)
        return float_of_bits(0x7fc00000);
    if (bits == 0)
        return 0x1p-127f;
    return float_of_bits((uint32_t)bits << 23);
}

float float_from_e2m1(uint8_t code)
{
    static const float magnitudes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    float magnitude = magnitudes[code & 7];
    return code & 8 ? -magnitude : magnitude;
}

void tensor_read_floats(const TensorView *tensor, size_t index, size_t count, float *out)
{
    size_t size = dtype_size(tensor->dtype);
    assert(size != 0 && index <= tensor->n_bytes / size && count <= tensor->n_bytes / size - index);
    const uint8_t *from = tensor->data + index * size;
    switch (tensor->dtype) {
    case DTYPE_F32:
        if (count)
            memcpy(out, from, count * sizeof(float));
        return;
    case DTYPE_F16:
        for (size_t i = 0; i < count; i++)
            out[i] = float_from_f16((uint16_t)(from[2 * i] | from[2 * i + 1] << 8));
        return;
    case DTYPE_BF16:
        for (size_t i = 0; i < count; i++)
            out[i] = float_from_bf16((uint16_t)(from[2 * i] | from[2 * i + 1] << 8));
        return;
    default:
        assert(false && "not a float tensor");
    }
}
