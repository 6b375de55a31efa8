/* The writer: separators, indentation, escapes, repair of bad UTF-8, limits. */
#include "json.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
/* cmocka needs what is above */
#include <cmocka.h>

enum { OUT_BYTES_MAX = 1 << 20 };

static void assert_text(const Buffer *out, const char *expected)
{
    assert_false(out->failed);
    if (!slice_equal(buffer_view(out), slice_of(expected)))
        fail_msg("wrote %.*s, expected %s", SLICE_ARG(buffer_view(out)), expected);
}

static void write_sample(JsonWriter *writer)
{
    json_write_object_begin(writer);
    json_write_key(writer, "empty");
    json_write_array_begin(writer);
    json_write_array_end(writer);
    json_write_key_slice(writer, SLICE("values"));
    json_write_array_begin(writer);
    json_write_null(writer);
    json_write_bool(writer, true);
    json_write_bool(writer, false);
    json_write_int(writer, INT64_MIN);
    json_write_int(writer, INT64_MAX);
    json_write_int(writer, 0);
    json_write_uint(writer, UINT64_MAX);
    json_write_double(writer, 0.1);
    json_write_double(writer, 3);
    json_write_double(writer, (double)NAN);
    json_write_double(writer, -(double)INFINITY);
    json_write_float(writer, 0.1f);
    json_write_float(writer, INFINITY);
    json_write_text(writer, "text");
    json_write_array_end(writer);
    json_write_key(writer, "object");
    json_write_object_begin(writer);
    json_write_key(writer, "a");
    json_write_int(writer, 1);
    json_write_key(writer, "b");
    json_write_object_begin(writer);
    json_write_object_end(writer);
    json_write_object_end(writer);
    json_write_object_end(writer);
}

static void test_compact(void **state)
{
    (void)state;
    Buffer out;
    JsonWriter writer;
    buffer_init(&out, OUT_BYTES_MAX);
    json_writer_init(&writer, &out, 0);
    write_sample(&writer);
    assert_text(&out, "{\"empty\":[],\"values\":[null,true,false,-9223372036854775808,"
                      "9223372036854775807,0,18446744073709551615,0.1,3.0,null,null,0.1,null,"
                      "\"text\"],\"object\":{\"a\":1,\"b\":{}}}");
    buffer_reset(&out);
}

static void test_indented(void **state)
{
    (void)state;
    Buffer out;
    JsonWriter writer;
    buffer_init(&out, OUT_BYTES_MAX);
    json_writer_init(&writer, &out, 2);
    write_sample(&writer);
    assert_text(&out, "{\n"
                      "  \"empty\": [],\n"
                      "  \"values\": [\n"
                      "    null,\n"
                      "    true,\n"
                      "    false,\n"
                      "    -9223372036854775808,\n"
                      "    9223372036854775807,\n"
                      "    0,\n"
                      "    18446744073709551615,\n"
                      "    0.1,\n"
                      "    3.0,\n"
                      "    null,\n"
                      "    null,\n"
                      "    0.1,\n"
                      "    null,\n"
                      "    \"text\"\n"
                      "  ],\n"
                      "  \"object\": {\n"
                      "    \"a\": 1,\n"
                      "    \"b\": {}\n"
                      "  }\n"
                      "}");
    buffer_reset(&out);
}

static void test_single_values(void **state)
{
    (void)state;
    Buffer out;
    JsonWriter writer;
    buffer_init(&out, OUT_BYTES_MAX);
    json_writer_init(&writer, &out, 4);
    json_write_string(&writer, SLICE_EMPTY);
    assert_text(&out, "\"\"");
    buffer_clear(&out);
    json_writer_init(&writer, &out, 4);
    json_write_array_begin(&writer);
    json_write_array_end(&writer);
    assert_text(&out, "[]");
    buffer_reset(&out);
}

/* ---- Strings ---- */

static void test_escapes(void **state)
{
    (void)state;
    static const struct {
        Slice text;
        const char *expected;
    } cases[] = {
        {{"", 0}, "\"\""},
        {{"plain text / ' < > &", 20}, "\"plain text / ' < > &\""},
        {{"\"\\", 2}, "\"\\\"\\\\\""},
        {{"\b\f\n\r\t", 5}, "\"\\b\\f\\n\\r\\t\""},
        {{"\0\x01\x1f", 3}, "\"\\u0000\\u0001\\u001f\""},
        {{"a\x7fz", 3}, "\"a\\u007fz\""},
        {{"0123456789abcdef\x7f", 17}, "\"0123456789abcdef\\u007f\""},
        {{"\xc2\x84\xc2\x85\xc2\x86", 6}, "\"\xc2\x84\\u0085\xc2\x86\""},
        {{"\xe2\x80\xa7\xe2\x80\xa8\xe2\x80\xa9\xe2\x80\xaa", 12},
         "\"\xe2\x80\xa7\\u2028\\u2029\xe2\x80\xaa\""},
        {{"\xf0\x9f\x98\x80", 4}, "\"\xf0\x9f\x98\x80\""},
        {{"\xff", 1}, "\"\xef\xbf\xbd\""},
        {{"a\xc3", 2}, "\"a\xef\xbf\xbd\""},
        {{"\xe2\x96\xe2\x96\x81", 5}, "\"\xef\xbf\xbd\xe2\x96\x81\""},
        {{"\xf0\x9f\x98", 3}, "\"\xef\xbf\xbd\""},
        {{"\xed\xa0\x80", 3}, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
        {{"\xc0\xaf", 2}, "\"\xef\xbf\xbd\xef\xbf\xbd\""},
    };
    Buffer out;
    buffer_init(&out, OUT_BYTES_MAX);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        buffer_clear(&out);
        json_append_string(&out, cases[i].text);
        assert_text(&out, cases[i].expected);
    }
    buffer_reset(&out);
}

/* Any bytes at all: the result reads back, as the bytes with their ill-formed parts replaced. */
static void test_random_bytes_read_back(void **state)
{
    (void)state;
    static const unsigned char pool[] = {'a',  'z',  ' ',  '"',  '\\', '\n', 0,    0x1f, 0x7f, 0x80,
                                         0xbf, 0xc2, 0xc3, 0xe0, 0xe2, 0x80, 0xa8, 0xa9, 0xed, 0xa0,
                                         0xef, 0xf0, 0x9f, 0xf4, 0x90, 0xff, 'b',  'c'};
    uint64_t seed = 5;
    Buffer out, repaired;
    buffer_init(&out, OUT_BYTES_MAX);
    buffer_init(&repaired, OUT_BYTES_MAX);
    for (int round = 0; round < 50000; round++) {
        char bytes[48], decoded[48 * 6];
        size_t len = 0;
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407U;
        for (size_t wanted = seed >> 40 & 31; len < wanted; len++) {
            seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407U;
            bytes[len] = (char)pool[(seed >> 33) % sizeof(pool)];
        }
        buffer_clear(&out);
        buffer_clear(&repaired);
        json_append_string(&out, (Slice){bytes, len});
        utf8_append_repaired(&repaired, (Slice){bytes, len});
        JsonReader reader;
        Error err = {0};
        json_reader_init(&reader, buffer_view(&out), &err);
        if (json_reader_next(&reader) != JSON_TOKEN_STRING)
            fail_msg("%s", err.message);
        size_t decoded_len = json_reader_copy_string(&reader, decoded);
        assert_true(slice_equal((Slice){decoded, decoded_len}, buffer_view(&repaired)));
        assert_int_equal(json_reader_next(&reader), JSON_TOKEN_END);
        for (size_t i = 0; i < out.len; i++)
            assert_true((unsigned char)out.ptr[i] >= 0x20 && out.ptr[i] != 0x7f);
    }
    buffer_reset(&out);
    buffer_reset(&repaired);
}

/* ---- Limits ---- */

/* A chain of arrays; values[0] is the innermost. */
static void chain(JsonValue *values, size_t depth)
{
    for (size_t i = 0; i < depth; i++) {
        values[i].kind = JSON_ARRAY;
        values[i].as.array.items = i ? &values[i - 1] : NULL;
        values[i].as.array.count = i ? 1 : 0;
    }
}

static void test_depth_limit(void **state)
{
    (void)state;
    static JsonValue values[100000];
    chain(values, ARRAY_COUNT(values));
    Buffer out;
    JsonWriter writer;
    buffer_init(&out, OUT_BYTES_MAX);
    json_writer_init(&writer, &out, 0);
    json_write_value(&writer, &values[JSON_DEPTH_MAX - 1]);
    assert_false(out.failed);
    assert_int_equal(out.len, 2 * JSON_DEPTH_MAX);

    static const size_t too_deep[] = {JSON_DEPTH_MAX, ARRAY_COUNT(values) - 1};
    for (size_t i = 0; i < ARRAY_COUNT(too_deep); i++) {
        buffer_clear(&out);
        json_writer_init(&writer, &out, 0);
        json_write_value(&writer, &values[too_deep[i]]);
        Error err = {0};
        assert_false(buffer_check(&out, "reply", &err));
        assert_int_equal(err.code, ERROR_LIMIT);
    }
    /* By hand, objects with keys: begin and end stay paired after the failure. */
    buffer_clear(&out);
    json_writer_init(&writer, &out, 0);
    json_write_object_begin(&writer);
    for (int i = 0; i < 2 * JSON_DEPTH_MAX; i++) {
        json_write_key(&writer, "k");
        json_write_object_begin(&writer);
    }
    for (int i = 0; i <= 2 * JSON_DEPTH_MAX; i++)
        json_write_object_end(&writer);
    assert_true(out.failed);
    assert_int_equal(writer.depth, 0);
    buffer_reset(&out);
}

static const JsonValue *parse_sample(Arena *arena)
{
    const JsonValue *value;
    Error err = {0};
    Slice text = SLICE("{\"a\":[1,2.5,\"x\\u2028\",{\"b\":null,\"c\":[[],{}]}],\"d\":true,"
                       "\"long\":\"0123456789012345678901234567890123456789\"}");
    if (!json_parse(text, arena, &value, &err))
        fail_msg("%s", err.message);
    return value;
}

/* Every maximum below the needed one fails, cleanly, and writes no byte beyond it. */
static void test_buffer_maximum(void **state)
{
    (void)state;
    Arena arena;
    arena_init(&arena, 1 << 20);
    const JsonValue *value = parse_sample(&arena);
    for (unsigned indent = 0; indent <= 3; indent += 3) {
        bool done = false;
        for (size_t max = 0; !done; max++) {
            Buffer out;
            JsonWriter writer;
            Error err = {0};
            buffer_init(&out, max);
            json_writer_init(&writer, &out, indent);
            json_write_value(&writer, value);
            assert_int_equal(writer.depth, 0);
            assert_true(out.len <= max);
            done = buffer_check(&out, "reply", &err);
            if (done)
                assert_int_equal(out.len, max);
            else
                assert_int_equal(err.code, ERROR_LIMIT);
            buffer_reset(&out);
        }
    }
    arena_reset(&arena);
}

static void test_every_allocation_fails_once(void **state)
{
    (void)state;
    Arena arena;
    arena_init(&arena, 1 << 20);
    const JsonValue *value = parse_sample(&arena);
    bool done = false;
    for (uint64_t nth = 1; !done; nth++) {
        Buffer out;
        JsonWriter writer;
        Error err = {0};
        buffer_init(&out, OUT_BYTES_MAX);
        fault_fail_allocation(nth);
        json_writer_init(&writer, &out, 2);
        json_write_value(&writer, value);
        bool struck = fault_allocation_count() >= nth;
        fault_fail_allocation(0);
        done = buffer_check(&out, "reply", &err);
        assert_int_equal(done, !struck);
        if (!done)
            assert_int_equal(err.code, ERROR_MEMORY);
        buffer_reset(&out);
    }
    arena_reset(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compact),
        cmocka_unit_test(test_indented),
        cmocka_unit_test(test_single_values),
        cmocka_unit_test(test_escapes),
        cmocka_unit_test(test_random_bytes_read_back),
        cmocka_unit_test(test_depth_limit),
        cmocka_unit_test(test_buffer_maximum),
        cmocka_unit_test(test_every_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
