/* Number texts to values and back, independent of the locale and correctly rounded.
 *
 * Reading. An integer that fits 64 bits is exact. Else the text is brought to digits * 10^exponent.
 * If the digits are below 2^53 and the power of ten is exact in a double (|exponent| <= 22), one
 * IEEE multiplication or division rounds correctly. The rest goes to strtod in the form
 * DIGITSeEXPONENT, which holds no decimal point and so means the same in every locale. 800 digits
 * are kept: a double's rounding boundary has at most 767, so beyond them only "something follows"
 * matters, and a final digit 1 says it.
 *
 * Writing. Shortest digits that read back to the same bits, and of those the closest. Any decimal
 * of up to 15 digits survives decimal -> double -> decimal, so 15 digits without trailing zeros are
 * shortest if they read back at all; else 16, else 17 are tried. Below a power of two the spacing
 * is half: there the nearest 16 digits may miss while the next ones up hit. Subnormals carry fewer
 * digits and are tried from one. Most values in practice are short decimals; they are found without
 * printf by looking for the first k with value = integer / 10^k. Floats: the same with 6 and 9
 * digits. */
#include "json_number.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json_scan.h"

enum {
    DIGITS_KEPT = 800,
    MANTISSA_DIGITS = 19, /* always fit uint64_t */
    EXACT_POWER_MAX = 22,
    POINT_MAX = 310, /* 0.D * 10^310 overflows whatever the digits are */
    POINT_MIN = -330,
    SHORTEST_MAX = 17
};

#define EXACT_INTEGER_MAX (UINT64_C(1) << 53)

static const double powers_of_ten[EXACT_POWER_MAX + 1] = {
    1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* ---- Reading ---- */

/* The exponent's digits with an optional sign; saturates far beyond what any text's digits can
 * undo. */
static int64_t parse_exponent(const char *p, const char *end)
{
    bool negative = *p == '-';
    if (*p == '-' || *p == '+')
        p++;
    int64_t value = 0;
    for (; p < end; p++) {
        if (value < INT64_C(100000000000000000))
            value = value * 10 + (*p - '0');
    }
    return negative ? -value : value;
}

/* Magnitude of a number text without its sign. */
static double parse_magnitude(const char *p, const char *end)
{
    char text[DIGITS_KEPT + 1 + 24];
    size_t count = 0;
    uint64_t mantissa = 0; /* of the first MANTISSA_DIGITS digits */
    int64_t exponent = 0;
    bool fraction = false;
    bool cut_nonzero = false;
    for (; p < end && *p != 'e' && *p != 'E'; p++) {
        if (*p == '.') {
            fraction = true;
            continue;
        }
        if (fraction)
            exponent--;
        if (count == 0 && *p == '0')
            continue;
        if (count == DIGITS_KEPT) {
            exponent++;
            cut_nonzero = cut_nonzero || *p != '0';
            continue;
        }
        if (count < MANTISSA_DIGITS)
            mantissa = mantissa * 10 + (uint64_t)(*p - '0');
        text[count++] = *p;
    }
    if (count == 0)
        return 0;
    if (p < end)
        exponent += parse_exponent(p + 1, end);

#if FLT_EVAL_METHOD == 0 /* else intermediate precision would round twice */
    if (count <= MANTISSA_DIGITS && mantissa <= EXACT_INTEGER_MAX && exponent <= EXACT_POWER_MAX &&
        exponent >= -EXACT_POWER_MAX) {
        return exponent < 0 ? (double)mantissa / powers_of_ten[-exponent]
                            : (double)mantissa * powers_of_ten[exponent];
    }
#endif
    int64_t point = exponent + (int64_t)count;
    if (point > POINT_MAX)
        return (double)INFINITY;
    if (point < POINT_MIN)
        return 0;
    if (cut_nonzero) {
        text[count++] = '1';
        exponent--;
    }
    snprintf(text + count, sizeof(text) - count, "e%" PRId64, exponent);
    return strtod(text, NULL);
}

/* true and *out if all of [p, end) is digits and fits. */
static bool parse_uint64(const char *p, const char *end, uint64_t *out)
{
    if (end - p > 20)
        return false;
    uint64_t value = 0;
    for (; p < end; p++) {
        if (!json_is_digit(*p))
            return false;
        uint64_t digit = (uint64_t)(*p - '0');
        if (value > (UINT64_MAX - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *out = value;
    return true;
}

JsonValue json_number_parse(Slice text)
{
    const char *p = text.ptr;
    const char *end = p + text.len;
    bool negative = *p == '-';
    if (negative)
        p++;
    uint64_t magnitude;
    if (parse_uint64(p, end, &magnitude)) {
        if (!negative && magnitude > INT64_MAX)
            return (JsonValue){JSON_UINT, {.unsigned_integer = magnitude}};
        if (magnitude <= INT64_MAX) {
            int64_t value = (int64_t)magnitude;
            return (JsonValue){JSON_INT, {.integer = negative ? -value : value}};
        }
        if (magnitude == (uint64_t)INT64_MAX + 1)
            return (JsonValue){JSON_INT, {.integer = INT64_MIN}};
    }
    double value = parse_magnitude(p, end);
    return (JsonValue){JSON_DOUBLE, {.wide = {negative ? -value : value, NULL}}};
}

/* ---- Writing ---- */

/* value = D.DDD * 10^exponent: count digits, the first one not 0. */
typedef struct Decimal {
    char digits[SHORTEST_MAX + 1];
    size_t count;
    int exponent;
} Decimal;

static void trim_zeros(Decimal *decimal)
{
    while (decimal->count > 1 && decimal->digits[decimal->count - 1] == '0')
        decimal->count--;
}

/* The nearest decimal of count digits. */
static void round_to_digits(double value, size_t count, Decimal *out)
{
    char text[64];
    snprintf(text, sizeof(text), "%.*e", (int)count - 1, value);
    out->count = 0;
    const char *p = text;
    for (; *p != 'e'; p++) { /* passes over the locale's decimal point, whatever it is */
        if (json_is_digit(*p) && out->count < count)
            out->digits[out->count++] = *p;
    }
    out->exponent = (int)strtol(p + 1, NULL, 10);
}

/* The next decimal up with as many digits. */
static void increment(Decimal *decimal)
{
    size_t i = decimal->count;
    while (i > 0 && decimal->digits[i - 1] == '9')
        decimal->digits[--i] = '0';
    if (i > 0) {
        decimal->digits[i - 1]++;
        return;
    }
    decimal->digits[0] = '1';
    decimal->exponent++;
}

/* A float has to survive both ways of reading it: at once, and through a double. */
static bool reads_back(const Decimal *decimal, double value, bool single)
{
    char text[SHORTEST_MAX + 24];
    memcpy(text, decimal->digits, decimal->count);
    snprintf(text + decimal->count, sizeof(text) - decimal->count, "e%d",
             decimal->exponent - (int)decimal->count + 1);
    double wide = strtod(text, NULL);
    if (!single)
        return wide == value;
    return (float)wide == (float)value && strtof(text, NULL) == (float)value;
}

static void set_integer_digits(Decimal *decimal, uint64_t digits, int power)
{
    char text[JSON_NUMBER_TEXT_MAX];
    decimal->count = json_number_format_uint(digits, text);
    memcpy(decimal->digits, text, decimal->count);
    decimal->exponent = (int)decimal->count - 1 - power;
    trim_zeros(decimal);
}

static bool is_power_of_two(double value)
{
    int exponent;
    return frexp(value, &exponent) == 0.5;
}

/* Half-way between two normal floats. Such a quotient may have been rounded to that place, and then
 * the text itself would round to either side. */
static bool is_float_midpoint(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    const uint64_t beyond_float = (UINT64_C(1) << (DBL_MANT_DIG - FLT_MANT_DIG)) - 1;
    return (bits & beyond_float) == (beyond_float + 1) / 2;
}

/* Finds the first k with value = integer / 10^k; false if there is none, or if that need not be the
 * shortest. The quotient is rounded correctly, so equality means that the text reads back. A
 * double's integer stays below 10^15 and is unique. A float's has up to 9 digits: only below 10^6
 * are the digits before the point all needed, and only off the powers of two is the nearest
 * candidate for a k the only one. */
static bool find_short_decimal(double value, bool single, Decimal *out)
{
#if FLT_EVAL_METHOD == 0
    if (single && (value >= 1e6 || is_power_of_two(value)))
        return false;
    double limit = single ? 1e9 : 1e15;
    for (int power = 0; power <= EXACT_POWER_MAX; power++) {
        double scaled = value * powers_of_ten[power];
        if (scaled >= limit)
            return false;
        uint64_t digits = (uint64_t)rint(scaled); /* ties to even, as printf does */
        double quotient = (double)digits / powers_of_ten[power];
        if (single ? (float)quotient != (float)value : quotient != value)
            continue;
        if (single && is_float_midpoint(quotient))
            return false;
        set_integer_digits(out, digits, power);
        return true;
    }
#else
    (void)value, (void)single, (void)out;
#endif
    return false;
}

/* value is positive and finite. */
static void find_shortest(double value, bool single, Decimal *out)
{
    if (find_short_decimal(value, single, out))
        return;
    bool subnormal = value < (single ? (double)FLT_MIN : DBL_MIN);
    size_t first = subnormal ? 1 : single ? FLT_DIG : DBL_DIG;
    size_t last = single ? 9 : SHORTEST_MAX;
    for (size_t count = first; count <= last; count++) {
        round_to_digits(value, count, out);
        if (reads_back(out, value, single))
            break;
        if (!is_power_of_two(value))
            continue;
        Decimal above = *out;
        increment(&above);
        if (reads_back(&above, value, single)) {
            *out = above;
            break;
        }
    }
    trim_zeros(out);
}

/* Plain notation for exponents -4 to 15, else scientific. Returns the length. */
static size_t layout_decimal(const Decimal *decimal, bool negative, char *out)
{
    char *to = out;
    int exponent = decimal->exponent;
    size_t count = decimal->count;
    const char *digits = decimal->digits;
    if (negative)
        *to++ = '-';
    if (exponent < -4 || exponent > 15) {
        *to++ = digits[0];
        if (count > 1) {
            *to++ = '.';
            memcpy(to, digits + 1, count - 1);
            to += count - 1;
        }
        to += snprintf(to, 8, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
        return (size_t)(to - out);
    }
    if (exponent < 0) {
        *to++ = '0';
        *to++ = '.';
        for (int i = -1; i > exponent; i--)
            *to++ = '0';
        memcpy(to, digits, count);
        return (size_t)(to + count - out);
    }
    size_t whole = (size_t)exponent + 1;
    for (size_t i = 0; i < whole; i++)
        *to++ = i < count ? digits[i] : '0';
    *to++ = '.';
    if (count <= whole)
        *to++ = '0';
    for (size_t i = whole; i < count; i++)
        *to++ = digits[i];
    return (size_t)(to - out);
}

static size_t format_number(double value, bool single, char *out)
{
    if (!isfinite(value)) {
        memcpy(out, "null", 4);
        return 4;
    }
    Decimal decimal = {.digits = "0", .count = 1};
    if (value != 0)
        find_shortest(fabs(value), single, &decimal);
    return layout_decimal(&decimal, signbit(value), out);
}

size_t json_number_format_uint(uint64_t value, char out[JSON_NUMBER_TEXT_MAX])
{
    char reversed[20];
    size_t count = 0;
    do {
        reversed[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    for (size_t i = 0; i < count; i++)
        out[i] = reversed[count - 1 - i];
    return count;
}

size_t json_number_format_float(float value, char out[JSON_NUMBER_TEXT_MAX])
{
    return format_number((double)value, true, out);
}

size_t json_format_double(double value, char out[JSON_NUMBER_TEXT_MAX])
{
    return format_number(value, false, out);
}
