/* The tree: values, look-ups, config readers, and memory that runs out. */
#include "json.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
/* cmocka needs what is above */
#include <cmocka.h>

#include "case_file.h"

enum { ARENA_BYTES_MAX = 64 << 20 };

static Arena arena;

static int arena_open(void **state)
{
    (void)state;
    arena_init(&arena, ARENA_BYTES_MAX);
    return 0;
}

static int arena_close(void **state)
{
    (void)state;
    arena_reset(&arena);
    return 0;
}

static const JsonValue *parse(const char *text)
{
    const JsonValue *value;
    Error err = {0};
    if (!json_parse(slice_of(text), &arena, &value, &err))
        fail_msg("%s: %s", text, err.message);
    return value;
}

/* ---- Values ---- */

static void test_values(void **state)
{
    (void)state;
    const JsonValue *value =
        parse("[null, true, false, -7, 18446744073709551615, 2.5, \"text\", [], {}]");
    assert_int_equal(value->kind, JSON_ARRAY);
    assert_int_equal(value->as.array.count, 9);
    const JsonValue *items = value->as.array.items;
    assert_int_equal(items[0].kind, JSON_NULL);
    assert_true(items[1].kind == JSON_BOOL && items[1].as.boolean);
    assert_true(items[2].kind == JSON_BOOL && !items[2].as.boolean);
    assert_true(items[3].kind == JSON_INT && items[3].as.integer == -7);
    assert_true(items[4].kind == JSON_UINT && items[4].as.unsigned_integer == UINT64_MAX);
    assert_true(items[5].kind == JSON_DOUBLE && items[5].as.number == 2.5);
    assert_true(items[6].kind == JSON_STRING && slice_equal(items[6].as.string, SLICE("text")));
    assert_true(items[7].kind == JSON_ARRAY && items[7].as.array.count == 0);
    assert_true(items[8].kind == JSON_OBJECT && items[8].as.object.count == 0);
}

static void test_strings_end_in_a_nul(void **state)
{
    (void)state;
    const JsonValue *value = parse("{\"k\\u0000y\":\"a\\u0000b\\ud83d\\ude00\",\"\":\"\"}");
    const JsonMember *members = value->as.object.members;
    assert_int_equal(members[0].key.len, 3);
    assert_memory_equal(members[0].key.ptr, "k\0y", 4);
    assert_int_equal(members[0].value.as.string.len, 7);
    assert_memory_equal(members[0].value.as.string.ptr, "a\0b\xf0\x9f\x98\x80", 8);
    assert_int_equal(members[1].key.len, 0);
    assert_int_equal(members[1].value.as.string.ptr[0], '\0');
    assert_ptr_equal(json_get(value, (Slice){"k\0y", 3}), &members[0].value);
    assert_null(json_get(value, SLICE("k")));
}

static void test_the_last_duplicate_wins(void **state)
{
    (void)state;
    const JsonValue *value = parse("{\"z\":1,\"a\":2,\"z\":3,\"b\":null}");
    assert_int_equal(value->as.object.count, 4);
    static const char *const order[] = {"z", "a", "z", "b"};
    for (size_t i = 0; i < 4; i++)
        assert_string_equal(value->as.object.members[i].key.ptr, order[i]);
    assert_int_equal(json_get(value, SLICE("z"))->as.integer, 3);
    assert_int_equal(json_get(value, SLICE("b"))->kind, JSON_NULL);
    assert_null(json_get(value, SLICE("c")));
    assert_null(json_get_present(value, "b"));
    assert_int_equal(json_get_present(value, "a")->as.integer, 2);
    assert_null(json_get(NULL, SLICE("z")));
    assert_null(json_get(parse("[1]"), SLICE("z")));
    assert_null(json_get_present(NULL, "z"));
}

static void test_kinds(void **state)
{
    (void)state;
    assert_false(json_is(NULL, JSON_NULL));
    assert_true(json_is(parse("null"), JSON_NULL));
    assert_false(json_is(parse("1"), JSON_DOUBLE));
    assert_true(json_is_number(parse("1")));
    assert_true(json_is_number(parse("1.5")));
    assert_true(json_is_number(parse("18446744073709551615")));
    assert_false(json_is_number(parse("\"1\"")));
    assert_false(json_is_number(NULL));
    static const char *const names[] = {"null",   "boolean", "integer", "integer",
                                        "number", "string",  "array",   "object"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        assert_string_equal(json_kind_name((JsonKind)i), names[i]);
}

static void test_conversions(void **state)
{
    (void)state;
    assert_true(json_to_double(parse("-3")) == -3.0);
    assert_true(json_to_double(parse("18446744073709551615")) == 0x1p64);
    assert_true(json_to_double(parse("0.5")) == 0.5);
    static const struct {
        const char *text;
        bool fits;
        int64_t value;
    } cases[] = {
        {"5", true, 5},
        {"5.0", true, 5},
        {"-5e2", true, -500},
        {"-0.0", true, 0},
        {"5.5", false, 0},
        {"9223372036854775807", true, INT64_MAX},
        {"-9223372036854775808", true, INT64_MIN},
        {"-9223372036854775808.0", true, INT64_MIN},
        {"9223372036854775808", false, 0},
        {"9223372036854775808.0", false, 0},
        {"9223372036854774784.0", true, INT64_C(9223372036854774784)},
        {"-9223372036854777856.0", false, 0},
        {"18446744073709551615", false, 0},
        {"1e300", false, 0},
        {"1e999", false, 0},
        {"-1e999", false, 0},
        {"1e-300", false, 0},
        {"true", false, 0},
        {"\"5\"", false, 0},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        int64_t out = 77;
        if (json_to_int64(parse(cases[i].text), &out) != cases[i].fits)
            fail_msg("%s", cases[i].text);
        assert_int_equal(out, cases[i].fits ? cases[i].value : 77);
    }
    int64_t out = 77;
    assert_false(json_to_int64(NULL, &out));
}

/* ---- Config readers ---- */

static void test_readers_keep_defaults(void **state)
{
    (void)state;
    const JsonValue *objects[] = {parse("{}"), parse("{\"k\":null}"), parse("[]"), NULL};
    for (size_t i = 0; i < ARRAY_COUNT(objects); i++) {
        bool flag = true;
        int64_t integer = 12;
        double number = 0.25;
        Slice string = SLICE("default");
        Error err = {0};
        assert_true(json_read_bool(objects[i], "k", &flag, &err));
        assert_true(json_read_int(objects[i], "k", 0, 100, &integer, &err));
        assert_true(json_read_double(objects[i], "k", &number, &err));
        assert_true(json_read_string(objects[i], "k", &string, &err));
        assert_true(flag && integer == 12 && number == 0.25);
        assert_true(slice_equal(string, SLICE("default")));
        assert_int_equal(err.code, ERROR_NONE);
    }
}

static void test_readers_read(void **state)
{
    (void)state;
    const JsonValue *object = parse("{\"b\":false,\"i\":-5,\"e\":1e3,\"d\":2,\"s\":\"x\"}");
    bool flag = true;
    int64_t integer = 0;
    double number = 0;
    Slice string = SLICE_EMPTY;
    Error err = {0};
    assert_true(json_read_bool(object, "b", &flag, &err) && !flag);
    assert_true(json_read_int(object, "i", -5, 5, &integer, &err) && integer == -5);
    assert_true(json_read_int(object, "e", 0, 1000, &integer, &err) && integer == 1000);
    assert_true(json_read_double(object, "d", &number, &err) && number == 2);
    assert_true(json_read_string(object, "s", &string, &err) && slice_equal(string, SLICE("x")));
}

static void test_readers_refuse(void **state)
{
    (void)state;
    static const struct {
        char reader;
        const char *text, *message;
    } cases[] = {
        {'b', "{\"k\":1}", "k: found 1, expected a boolean"},
        {'b', "{\"k\":\"true\"}", "k: found string, expected a boolean"},
        {'i', "{\"k\":11}", "k: found 11, expected an integer from 1 to 10"},
        {'i', "{\"k\":0}", "k: found 0, expected an integer from 1 to 10"},
        {'i', "{\"k\":2.5}", "k: found 2.5, expected an integer from 1 to 10"},
        {'i', "{\"k\":1e999}", "k: found a number beyond double, expected an integer from 1 to 10"},
        {'i', "{\"k\":18446744073709551615}",
         "k: found 18446744073709551615, expected an integer from 1 to 10"},
        {'i', "{\"k\":true}", "k: found boolean, expected an integer from 1 to 10"},
        {'d', "{\"k\":\"1\"}", "k: found string, expected a finite number"},
        {'d', "{\"k\":-1e999}", "k: found a number beyond double, expected a finite number"},
        {'d', "{\"k\":[]}", "k: found array, expected a finite number"},
        {'s', "{\"k\":{}}", "k: found object, expected a string"},
        {'s', "{\"k\":\"a\",\"k\":7}", "k: found 7, expected a string"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        const JsonValue *object = parse(cases[i].text);
        bool flag = true;
        int64_t integer = 12;
        double number = 0.25;
        Slice string = SLICE("default");
        Error err = {0};
        bool ok = cases[i].reader == 'b'   ? json_read_bool(object, "k", &flag, &err)
                  : cases[i].reader == 'i' ? json_read_int(object, "k", 1, 10, &integer, &err)
                  : cases[i].reader == 'd' ? json_read_double(object, "k", &number, &err)
                                           : json_read_string(object, "k", &string, &err);
        assert_false(ok);
        assert_int_equal(err.code, ERROR_INVALID);
        assert_string_equal(err.message, cases[i].message);
        assert_true(flag && integer == 12 && number == 0.25);
        assert_true(slice_equal(string, SLICE("default")));
    }
}

/* ---- Memory that runs out ---- */

/* Many items at several depths, so that arena blocks and the scratch stack both grow. */
static void append_document(Buffer *out)
{
    buffer_append_text(out, "{\"numbers\":[");
    for (int i = 0; i < 300; i++)
        buffer_append_format(out, "%s%d", i ? "," : "", i);
    buffer_append_text(out, "],\"strings\":[");
    for (int i = 0; i < 200; i++)
        buffer_append_format(out, "%s\"string \\u00e9 %d\"", i ? "," : "", i);
    buffer_append_text(out, "],\"nested\":");
    for (int i = 0; i < 100; i++)
        buffer_append_text(out, "[1,{\"k\":");
    buffer_append_text(out, "null");
    for (int i = 0; i < 100; i++)
        buffer_append_text(out, "},2]");
    buffer_append_text(out, "}");
    assert_false(out->failed);
}

static void test_every_allocation_fails_once(void **state)
{
    (void)state;
    Buffer text;
    buffer_init(&text, 1 << 20);
    append_document(&text);
    uint64_t failures = 0;
    for (uint64_t nth = 1;; nth++) {
        Arena own;
        arena_init(&own, ARENA_BYTES_MAX);
        Error err = {0};
        const JsonValue *value = (const JsonValue *)&own; /* must be overwritten */
        fault_fail_allocation(nth);
        bool ok = json_parse(buffer_view(&text), &own, &value, &err);
        bool struck = fault_allocation_count() >= nth;
        fault_fail_allocation(0);
        assert_int_equal(ok, !struck);
        if (!ok) {
            assert_null(value);
            assert_int_equal(err.code, ERROR_MEMORY);
            failures++;
        } else {
            assert_int_equal(value->as.object.count, 3);
        }
        arena_reset(&own);
        if (ok)
            break;
    }
    assert_true(failures >= 8);
    buffer_reset(&text);
}

static void test_arena_maximum(void **state)
{
    (void)state;
    Buffer text;
    buffer_init(&text, 1 << 20);
    append_document(&text);
    bool refused = false, read = false;
    for (size_t max = 0; max < 256 << 10; max += 1000) {
        Arena own;
        arena_init(&own, max);
        Error err = {0};
        const JsonValue *value;
        if (json_parse(buffer_view(&text), &own, &value, &err)) {
            read = true;
        } else {
            assert_false(read); /* more room never hurts */
            assert_int_equal(err.code, ERROR_MEMORY);
            refused = true;
        }
        assert_true(own.total <= max);
        arena_reset(&own);
    }
    assert_true(refused && read);
    buffer_reset(&text);
}

/* A flat text of millions of items must not take scratch memory far beyond the arena's maximum. */
static void test_scratch_stays_near_the_arena_maximum(void **state)
{
    (void)state;
    Buffer text;
    buffer_init(&text, 16 << 20);
    buffer_append_byte(&text, '[');
    for (size_t i = 0; i < 4000000; i++)
        buffer_append(&text, "0,", 2);
    buffer_append(&text, "0]", 2);
    assert_false(text.failed);
    Arena own;
    arena_init(&own, 64 << 10);
    Error err = {0};
    const JsonValue *value;
    fault_fail_allocation(UINT64_MAX);
    assert_false(json_parse(buffer_view(&text), &own, &value, &err));
    uint64_t allocations = fault_allocation_count();
    fault_fail_allocation(0);
    assert_int_equal(err.code, ERROR_MEMORY);
    /* The stack doubles from 8 items: 2^14 * 8 items of 24 bytes are 3 MB. */
    assert_true(allocations <= 14);
    arena_reset(&own);
    buffer_reset(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_strings_end_in_a_nul),
        cmocka_unit_test(test_the_last_duplicate_wins),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_conversions),
        cmocka_unit_test(test_readers_keep_defaults),
        cmocka_unit_test(test_readers_read),
        cmocka_unit_test(test_readers_refuse),
        cmocka_unit_test(test_every_allocation_fails_once),
        cmocka_unit_test(test_arena_maximum),
        cmocka_unit_test(test_scratch_stays_near_the_arena_maximum),
    };
    return cmocka_run_group_tests(tests, arena_open, arena_close);
}
