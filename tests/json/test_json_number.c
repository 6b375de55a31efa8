/* Numbers both ways, against texts and bits that other implementations computed. */
#include "json.h"

#include <inttypes.h>
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka needs what is above */
#include <cmocka.h>

#include "case_file.h"

enum { RANDOM_DOUBLES = 1000 * 1000, RANDOM_FLOATS = 300 * 1000 };

static JsonValue read_number(Slice text)
{
    JsonReader reader;
    Error err = {0};
    json_reader_init(&reader, text, &err);
    if (json_reader_next(&reader) != JSON_TOKEN_NUMBER)
        fail_msg("%.*s: %s", SLICE_ARG(text), err.message);
    JsonValue value = json_reader_number(&reader);
    if (json_reader_next(&reader) != JSON_TOKEN_END)
        fail_msg("%.*s: %s", SLICE_ARG(text), err.message);
    return value;
}

static uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static double double_of(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static uint32_t float_bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* splitmix64: enough to scatter bit patterns, and the same on every run. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static uint64_t split_bits(Slice line, Slice *text)
{
    Slice bits;
    case_file_split(line, SLICE(" "), &bits, text);
    return strtoull(bits.ptr, NULL, 16);
}

/* ---- Integers ---- */

static void test_integer_edges(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        JsonKind kind;
        uint64_t bits; /* of the integer */
    } cases[] = {
        {"0", JSON_INT, 0},
        {"-0", JSON_INT, 0},
        {"1", JSON_INT, 1},
        {"-1", JSON_INT, UINT64_MAX},
        {"2147483648", JSON_INT, UINT64_C(2147483648)},
        {"9007199254740993", JSON_INT, UINT64_C(9007199254740993)},
        {"9223372036854775806", JSON_INT, INT64_MAX - 1},
        {"9223372036854775807", JSON_INT, INT64_MAX},
        {"9223372036854775808", JSON_UINT, (uint64_t)INT64_MAX + 1},
        {"-9223372036854775807", JSON_INT, (uint64_t)INT64_MAX + 2},
        {"-9223372036854775808", JSON_INT, (uint64_t)INT64_MAX + 1},
        {"9999999999999999999", JSON_UINT, UINT64_C(9999999999999999999)},
        {"10000000000000000000", JSON_UINT, UINT64_C(10000000000000000000)},
        {"18446744073709551614", JSON_UINT, UINT64_MAX - 1},
        {"18446744073709551615", JSON_UINT, UINT64_MAX},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        JsonValue value = read_number(slice_of(cases[i].text));
        assert_int_equal(value.kind, cases[i].kind);
        uint64_t bits =
            value.kind == JSON_INT ? (uint64_t)value.as.integer : value.as.unsigned_integer;
        assert_int_equal(bits, cases[i].bits);
    }
}

static void test_integers_beyond_64_bits(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        double value;
    } cases[] = {
        {"18446744073709551616", 0x1p64},
        {"-9223372036854775809", -0x1p63},
        {"-18446744073709551615", -0x1p64},
        {"99999999999999999999", 1e20},
        {"184467440737095516150", 184467440737095516150.0},
        {"1.0", 1},
        {"1e2", 100},
        {"-0.0", -0.0},
        {"-0e5", -0.0},
        {"1e309", (double)INFINITY},
        {"-1e309", -(double)INFINITY},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        JsonValue value = read_number(slice_of(cases[i].text));
        assert_int_equal(value.kind, JSON_DOUBLE);
        assert_int_equal(bits_of(value.as.number), bits_of(cases[i].value));
    }
}

/* ---- Golden texts ---- */

static void check_double(Slice line)
{
    Slice text;
    double expected = double_of(split_bits(line, &text));
    JsonValue value = read_number(text);
    if (value.kind != JSON_DOUBLE || bits_of(value.as.number) != bits_of(expected))
        fail_msg("%.*s: read as %.17g", SLICE_ARG(line), json_to_double(&value));
    char out[JSON_NUMBER_TEXT_MAX];
    size_t len = json_format_double(expected, out);
    if (!slice_equal((Slice){out, len}, text))
        fail_msg("%.*s: written as %.*s", SLICE_ARG(line), (int)len, out);
}

static void check_float(Slice line)
{
    Slice text;
    uint32_t bits = (uint32_t)split_bits(line, &text);
    Buffer out;
    JsonWriter writer;
    buffer_init(&out, 64);
    json_writer_init(&writer, &out, 0);
    json_write_float(&writer, float_of(bits));
    if (!slice_equal(buffer_view(&out), text))
        fail_msg("%.*s: written as %.*s", SLICE_ARG(line), SLICE_ARG(buffer_view(&out)));
    buffer_reset(&out);
}

static void check_reading(Slice line)
{
    Slice text;
    double expected = double_of(split_bits(line, &text));
    JsonValue value = read_number(text);
    double got = json_to_double(&value);
    if (bits_of(got) != bits_of(expected))
        fail_msg("%.*s: read as %.17g, %016" PRIx64, SLICE_ARG(line), got, bits_of(got));
    /* The sign is put on afterwards and must not change the rounding. */
    char negative[2048];
    int len = snprintf(negative, sizeof(negative), "-%.*s", SLICE_ARG(text));
    assert_in_range(len, 2, sizeof(negative) - 1);
    value = read_number((Slice){negative, (size_t)len});
    assert_true(bits_of(json_to_double(&value)) == bits_of(-expected));
}

static void test_doubles_as_python_prints_them(void **state)
{
    (void)state;
    assert_true(case_file_visit("doubles.txt", check_double) > 1000);
}

static void test_floats_as_numpy_prints_them(void **state)
{
    (void)state;
    assert_true(case_file_visit("floats.txt", check_float) > 500);
}

static void test_midpoints_round_to_even(void **state)
{
    (void)state;
    assert_true(case_file_visit("midpoints.txt", check_reading) > 100);
}

/* ---- Round trips ---- */

static void check_round_trip(double value)
{
    char text[JSON_NUMBER_TEXT_MAX];
    size_t len = json_format_double(value, text);
    assert_true(len <= 25);
    JsonValue again = read_number((Slice){text, len});
    if (again.kind != JSON_DOUBLE || bits_of(again.as.number) != bits_of(value))
        fail_msg("%.17g: written as %.*s, read back as %.17g", value, (int)len, text,
                 json_to_double(&again));
}

static void test_random_doubles_round_trip(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (size_t i = 0; i < RANDOM_DOUBLES; i++) {
        double value = double_of(next_random(&seed));
        if (isfinite(value))
            check_round_trip(value);
    }
}

static void test_short_decimals_round_trip(void **state)
{
    (void)state;
    uint64_t seed = 2;
    for (size_t i = 0; i < 200000; i++) {
        int64_t digits = (int64_t)(next_random(&seed) % 2000000000) - 1000000000;
        static const double scales[] = {1, 10, 100, 1e3, 1e6, 1e9, 1e12, 1e-3, 1e15};
        check_round_trip((double)digits / scales[next_random(&seed) % ARRAY_COUNT(scales)]);
    }
    for (int exponent = -1074; exponent < 1024; exponent++) {
        double power = ldexp(1, exponent);
        check_round_trip(power);
        check_round_trip(nextafter(power, 0));
        check_round_trip(nextafter(power, 1));
    }
}

static void test_random_floats_round_trip(void **state)
{
    (void)state;
    uint64_t seed = 3;
    Buffer out;
    buffer_init(&out, 64);
    for (size_t i = 0; i < RANDOM_FLOATS; i++) {
        float value = float_of((uint32_t)next_random(&seed));
        if (!isfinite(value))
            continue;
        JsonWriter writer;
        buffer_clear(&out);
        json_writer_init(&writer, &out, 0);
        json_write_float(&writer, value);
        assert_true(out.len <= 19);
        JsonValue again = read_number(buffer_view(&out));
        if (float_bits_of((float)again.as.number) != float_bits_of(value))
            fail_msg("%.9g: written as %.*s", (double)value, SLICE_ARG(buffer_view(&out)));
    }
    buffer_reset(&out);
}

/* A comma as the locale's decimal point changes nothing. */
static void test_locale_does_not_matter(void **state)
{
    (void)state;
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "de_DE",
                                        "fr_FR.utf8"};
    bool found = false;
    for (size_t i = 0; i < ARRAY_COUNT(names) && !found; i++)
        found = setlocale(LC_NUMERIC, names[i]) && localeconv()->decimal_point[0] == ',';
    if (!found)
        skip();
    case_file_visit("doubles.txt", check_double);
    case_file_visit("floats.txt", check_float);
    case_file_visit("midpoints.txt", check_reading);
    setlocale(LC_NUMERIC, "C");
}

static void test_not_finite_is_null(void **state)
{
    (void)state;
    char text[JSON_NUMBER_TEXT_MAX];
    assert_int_equal(json_format_double((double)NAN, text), 4);
    assert_memory_equal(text, "null", 4);
    assert_int_equal(json_format_double(-(double)INFINITY, text), 4);
    assert_memory_equal(text, "null", 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_integer_edges),
        cmocka_unit_test(test_integers_beyond_64_bits),
        cmocka_unit_test(test_doubles_as_python_prints_them),
        cmocka_unit_test(test_floats_as_numpy_prints_them),
        cmocka_unit_test(test_midpoints_round_to_even),
        cmocka_unit_test(test_random_doubles_round_trip),
        cmocka_unit_test(test_short_decimals_round_trip),
        cmocka_unit_test(test_random_floats_round_trip),
        cmocka_unit_test(test_locale_does_not_matter),
        cmocka_unit_test(test_not_finite_is_null),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
