/* Integers with Python's rules.
 *
 * Python's have no bound. Here what fits 64 bits is computed exactly; a longer one comes only out
 * of the variables, as its decimal digits, and can be printed, compared and made a float, but not
 * computed with. Whatever would need more is an error, never a wrong number. */
#include "jinja_machine.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

bool jinja_fail_overflow(JinjaMachine *m)
{
    return jinja_fail(m, "integer result exceeds 64 bits");
}

/* ---- Arithmetic ---- */

static bool add_exact(int64_t a, int64_t b, int64_t *out)
{
    if (b > 0 ? a > INT64_MAX - b : a < INT64_MIN - b)
        return false;
    *out = a + b;
    return true;
}

static uint64_t magnitude_of(int64_t value)
{
    return value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
}

static bool multiply_exact(int64_t a, int64_t b, int64_t *out)
{
    uint64_t x = magnitude_of(a), y = magnitude_of(b);
    bool negative = (a < 0) != (b < 0);
    if (y != 0 && x > ((uint64_t)INT64_MAX + negative) / y)
        return false;
    *out = negative ? (int64_t)(0 - x * y) : (int64_t)(x * y);
    return true;
}

static bool power_exact(int64_t base, int64_t exponent, int64_t *out)
{
    int64_t result = 1;
    while (exponent > 0) {
        if ((exponent & 1) && !multiply_exact(result, base, &result))
            return false;
        exponent >>= 1;
        if (exponent > 0 && !multiply_exact(base, base, &base))
            return false;
    }
    *out = result;
    return true;
}

/* Division rounds down and the remainder has the divisor's sign. */
static bool divide_floor(JinjaMachine *m, bool remainder, int64_t a, int64_t b, JinjaValue *out)
{
    if (b == 0)
        return jinja_fail(m, remainder ? "integer modulo by zero"
                                       : "integer division or modulo by zero");
    if (b == -1) { /* INT64_MIN / -1 traps */
        if (!remainder && a == INT64_MIN)
            return jinja_fail_overflow(m);
        *out = jinja_int(remainder ? 0 : -a);
        return true;
    }
    int64_t quotient = a / b, rest = a % b;
    if (rest != 0 && (rest < 0) != (b < 0)) {
        quotient--;
        rest += b;
    }
    *out = jinja_int(remainder ? rest : quotient);
    return true;
}

/* The double nearest to a / b, which dividing two doubles is not beyond 2^53: long division to
 * more bits than a double has, the last one telling whether anything is left. */
static double divide_true(int64_t a, int64_t b)
{
    enum { QUOTIENT_BITS = 58 };
    const uint64_t exact = UINT64_C(1) << 53;
    uint64_t x = magnitude_of(a), y = magnitude_of(b);
    if (x <= exact && y <= exact)
        return (double)a / (double)b;
    uint64_t quotient = x / y, rest = x % y;
    int shift = 0;
    for (; quotient < UINT64_C(1) << (QUOTIENT_BITS - 1) && x != 0; shift++) {
        bool carry = rest >> 63;
        rest <<= 1;
        bool one = carry || rest >= y;
        rest -= one ? y : 0;
        quotient = quotient << 1 | one;
    }
    double result = ldexp((double)(quotient | (rest != 0)), -shift);
    return (a < 0) != (b < 0) ? -result : result;
}

bool jinja_operate_integers(JinjaMachine *m, JinjaTokenKind op, int64_t a, int64_t b,
                            JinjaValue *out)
{
    int64_t result = 0;
    bool fits;
    switch (op) {
    case TOKEN_ADD:
        fits = add_exact(a, b, &result);
        break;
    case TOKEN_SUB:
        fits = b == INT64_MIN ? a < 0 && add_exact(a + 1, INT64_MAX, &result)
                              : add_exact(a, -b, &result);
        break;
    case TOKEN_MUL:
        fits = multiply_exact(a, b, &result);
        break;
    case TOKEN_FLOORDIV:
    case TOKEN_MOD:
        return divide_floor(m, op == TOKEN_MOD, a, b, out);
    case TOKEN_DIV:
        if (b == 0)
            return jinja_fail(m, "division by zero");
        *out = jinja_float(divide_true(a, b));
        return true;
    default:
        if (b < 0) {
            if (a == 0)
                return jinja_fail(m, "0.0 cannot be raised to a negative power");
            *out = jinja_float(pow((double)a, (double)b));
            return true;
        }
        fits = power_exact(a, b, &result);
        break;
    }
    *out = jinja_int(result);
    return fits || jinja_fail_overflow(m);
}

/* Half to even at the digit before which `zeros` follow. */
bool jinja_round_integer(JinjaMachine *m, int64_t value, int64_t zeros, JinjaValue *out)
{
    enum { ZEROS_MAX = 18 };
    const uint64_t largest_unit = UINT64_C(10000000000000000000);
    uint64_t magnitude = magnitude_of(value), unit = 1;
    if (zeros > ZEROS_MAX + 1) {
        *out = jinja_int(0);
        return true;
    }
    for (int64_t i = 0; i < zeros && i < ZEROS_MAX; i++)
        unit *= 10;
    unit = zeros > ZEROS_MAX ? largest_unit : unit;
    uint64_t rest = magnitude % unit, kept = magnitude - rest;
    bool up = rest > unit / 2 || (unit > 1 && rest == unit / 2 && (kept / unit) % 2 == 1);
    uint64_t limit = (uint64_t)INT64_MAX + (value < 0);
    if (up && (kept > limit || unit > limit - kept))
        return jinja_fail_overflow(m);
    kept += up ? unit : 0;
    *out = jinja_int(value < 0 ? (int64_t)(0 - kept) : (int64_t)kept);
    return true;
}

/* ---- Beyond 64 bits ---- */

bool jinja_long_new(JinjaMachine *m, Slice digits, JinjaValue *out)
{
    if (digits.len > JINJA_INTEGER_DIGITS_MAX)
        return jinja_fail_limit(m, "digits of an integer", JINJA_INTEGER_DIGITS_MAX);
    *out = (JinjaValue){.kind = JINJA_LONG, .as.string = digits};
    return true;
}

bool jinja_integer_from_float(JinjaMachine *m, double number, JinjaValue *out)
{
    char text[400];
    JinjaValue copy;
    if (number >= -0x1p63 && number < 0x1p63) {
        *out = jinja_int((int64_t)number);
        return true;
    }
    int len = snprintf(text, sizeof(text), "%.0f", number); /* exact: it is whole */
    return jinja_string_copy(m, (Slice){text, (size_t)len}, &copy) &&
           jinja_long_new(m, copy.as.string, out);
}

bool jinja_to_float(JinjaMachine *m, const JinjaValue *value, double *out)
{
    *out = jinja_number_of(value);
    return value->kind != JINJA_LONG || isfinite(*out) ||
           jinja_fail(m, "int too large to convert to float");
}

bool jinja_long_negate(JinjaMachine *m, const JinjaValue *value, JinjaValue *out)
{
    Slice digits = value->as.string;
    if (digits.ptr[0] == '-')
        return jinja_long_new(m, (Slice){digits.ptr + 1, digits.len - 1}, out);
    if (slice_equal(digits, SLICE("9223372036854775808"))) {
        *out = jinja_int(INT64_MIN);
        return true;
    }
    char *text = jinja_string_new(m, digits.len + 1, out);
    if (!text)
        return false;
    text[0] = '-';
    memcpy(text + 1, digits.ptr, digits.len);
    out->kind = JINJA_LONG;
    return true;
}

int jinja_long_sign(const JinjaValue *value)
{
    return value->as.string.ptr[0] == '-' ? -1 : 1;
}

double jinja_long_to_double(const JinjaValue *value)
{
    JsonReader reader;
    json_reader_init(&reader, value->as.string, &(Error){.code = ERROR_NONE});
    if (json_reader_next(&reader) != JSON_TOKEN_NUMBER)
        return (double)NAN; /* digits are checked where they come in */
    JsonValue number = json_reader_number(&reader);
    return json_to_double(&number);
}

static int compare_digits(Slice a, Slice b)
{
    bool negative = a.ptr[0] == '-';
    if (negative != (b.ptr[0] == '-'))
        return negative ? -1 : 1;
    int order = a.len != b.len ? (a.len < b.len ? -1 : 1) : memcmp(a.ptr, b.ptr, a.len);
    return negative ? -order : order;
}

int jinja_long_compare(const JinjaValue *a, const JinjaValue *b)
{
    int order;
    if (b->kind == JINJA_LONG) {
        order = compare_digits(a->as.string, b->as.string);
        return order < 0 ? -1 : order > 0;
    }
    if (b->kind != JINJA_FLOAT)
        return jinja_long_sign(a);
    if (isnan(b->as.number))
        return 2;
    if (!(fabs(b->as.number) >= 0x1p63) || isinf(b->as.number))
        return isinf(b->as.number) ? (b->as.number < 0 ? 1 : -1) : jinja_long_sign(a);
    char text[400]; /* a float that large is whole, and printed exactly */
    int len = snprintf(text, sizeof(text), "%.0f", b->as.number);
    order = compare_digits(a->as.string, (Slice){text, (size_t)len});
    return order < 0 ? -1 : order > 0;
}
