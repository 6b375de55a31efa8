/* JSON Schema: which documents, which errors, and that hostile schemas end soon. Data:
 * tests/data/grammar/schema_cases.jsonl holds {"schema": S, "accept": [text...], "reject":
 * [text...]} or
 * {"schema": S, "error": part of the message} lines; schemas.jsonl holds schemas that must compile.
 */
#include "grammar.h"
#include "json.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>
/* cmocka needs what is above */
#include <cmocka.h>

enum { FILE_BYTES_MAX = 4 << 20, HOSTILE_SECONDS_MAX = 5 };

static bool compile(Slice schema, bool ignores_unknown, Grammar **out, Error *err)
{
    GrammarSource source = {
        .kind = GRAMMAR_JSON_SCHEMA, .text = schema, .ignores_unknown = ignores_unknown};
    *err = (Error){0};
    bool ok = grammar_create(&source, NULL, out, err);
    assert_int_equal(ok, *out != NULL);
    return ok;
}

static bool accepts(Grammar *grammar, Slice text)
{
    GrammarRun *run;
    Error err = {0};
    assert_true(grammar_run_create(grammar, &run, &err));
    bool result = grammar_run_accept_bytes(run, text, &err) && grammar_run_can_end(run);
    grammar_run_free(run);
    return result;
}

/* Calls check for every line of a file of tests/data/grammar. */
static size_t for_lines(const char *name, void (*check)(const JsonValue *line, Buffer *schema))
{
    char path[512];
    Buffer content, schema;
    Error err = {0};
    size_t count = 0;
    snprintf(path, sizeof(path), "%s/grammar/%s", TEST_DATA_DIR, name);
    buffer_init(&content, FILE_BYTES_MAX);
    buffer_init(&schema, FILE_BYTES_MAX);
    if (!file_read(path, FILE_BYTES_MAX, &content, &err))
        fail_msg("%s", err.message);
    for (size_t at = 0; at < content.len;) {
        size_t end = slice_find(buffer_view(&content), SLICE("\n"), at);
        Slice line = {content.ptr + at, end - at};
        Arena arena;
        const JsonValue *value;
        JsonWriter writer;
        at = end + 1;
        arena_init(&arena, FILE_BYTES_MAX * 4);
        if (!json_parse(line, &arena, &value, &err))
            fail_msg("%s line %zu: %s", name, count + 1, err.message);
        buffer_clear(&schema);
        json_writer_init(&writer, &schema, 0);
        json_write_value(&writer, json_get(value, SLICE("schema")));
        check(value, &schema);
        arena_reset(&arena);
        count++;
    }
    buffer_reset(&content);
    buffer_reset(&schema);
    return count;
}

static void check_texts(const JsonValue *line, const char *key, Grammar *grammar, bool expected,
                        Slice schema)
{
    const JsonValue *texts = json_get(line, slice_of(key));
    for (size_t i = 0; texts && i < texts->as.array.count; i++) {
        Slice text = texts->as.array.items[i].as.string;
        if (accepts(grammar, text) != expected)
            fail_msg("%.*s: %s: %.*s", SLICE_ARG(schema), key, SLICE_ARG(text));
    }
}

static void check_case(const JsonValue *line, Buffer *schema)
{
    Grammar *grammar;
    Error err;
    const JsonValue *error = json_get(line, SLICE("error"));
    bool ok = compile(buffer_view(schema), false, &grammar, &err);
    if (ok == (error != NULL))
        fail_msg("%.*s: %s", SLICE_ARG(buffer_view(schema)), ok ? "compiles" : err.message);
    if (error) {
        if (slice_find(slice_of(err.message), error->as.string, 0) == SIZE_MAX)
            fail_msg("expected \"%.*s\", got \"%s\"", SLICE_ARG(error->as.string), err.message);
        return;
    }
    check_texts(line, "accept", grammar, true, buffer_view(schema));
    check_texts(line, "reject", grammar, false, buffer_view(schema));
    grammar_release(grammar);
}

static void test_cases(void **state)
{
    (void)state;
    assert_true(for_lines("schema_cases.jsonl", check_case) > 80);
}

static void check_compiles(const JsonValue *line, Buffer *schema)
{
    Grammar *grammar;
    Error err;
    Slice name = json_get(line, SLICE("name"))->as.string;
    if (!compile(buffer_view(schema), false, &grammar, &err))
        fail_msg("%.*s: %s", SLICE_ARG(name), err.message);
    grammar_release(grammar);
}

static void test_corpus_compiles(void **state)
{
    (void)state;
    assert_true(for_lines("schemas.jsonl", check_compiles) >= 200);
}

static void test_unknown_keywords_are_reported(void **state)
{
    (void)state;
    Grammar *grammar;
    Error err;
    size_t count;
    Slice schema = SLICE("{\"not\":{},\"properties\":{\"a\":{\"uniqueItems\":true,\"not\":{}}}}");
    assert_false(compile(schema, false, &grammar, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    assert_non_null(strstr(err.message, "keyword not"));
    assert_true(compile(schema, true, &grammar, &err));
    const Slice *names = grammar_ignored(grammar, &count);
    assert_int_equal(count, 2);
    assert_true(slice_equal(names[0], SLICE("not")));
    assert_true(slice_equal(names[1], SLICE("uniqueItems")));
    grammar_release(grammar);
}

/* A schema that may be enforced in part; all but the last of its texts are accepted. */
static void check_relaxed(const char *schema, const char *const names[], const char *const texts[])
{
    Grammar *grammar;
    Error err;
    size_t count, i = 0;
    bool is_sound = !compile(slice_of(schema), false, &grammar, &err) && err.code != ERROR_MEMORY;
    if (!is_sound || !compile(slice_of(schema), true, &grammar, &err))
        fail_msg("%s: %s", schema, is_sound ? err.message : "enforced");
    const Slice *ignored = grammar_ignored(grammar, &count);
    for (; names[i]; i++) {
        if (i >= count || !slice_equal(ignored[i], slice_of(names[i])))
            fail_msg("%s: %s is not told", schema, names[i]);
    }
    assert_int_equal(count, i);
    for (i = 0; texts[i]; i++) {
        if (accepts(grammar, slice_of(texts[i])) != (texts[i + 1] != NULL))
            fail_msg("%s: %s", schema, texts[i]);
    }
    grammar_release(grammar);
}

static void test_what_cannot_be_enforced_is_left_out(void **state)
{
    (void)state;
    static const struct {
        const char *schema, *names[3], *texts[4];
    } cases[] = {
        {"{\"type\":\"string\",\"pattern\":\"^(?!a)b\",\"maxLength\":2}",
         {"pattern"},
         {"\"ab\"", "\"\"", "\"abc\""}},
        {"{\"anyOf\":[{\"type\":\"null\"},{\"type\":\"string\",\"pattern\":\"\\\\p{L}\"}]}",
         {"pattern"},
         {"null", "\"1\"", "1"}},
        {"{\"type\":\"number\",\"multipleOf\":0.01,\"minimum\":0}",
         {"multipleOf"},
         {"0.015", "3", "-1"}},
        {"{\"type\":[\"integer\",\"number\"],\"multipleOf\":2.5}", {"multipleOf"}, {"1", "x"}},
        {"{\"type\":\"string\",\"maxLength\":100000,\"minLength\":1}",
         {"maxLength"},
         {"\"a\"", "\"\""}},
        {"{\"items\":{\"type\":\"null\"},\"type\":\"array\",\"maxItems\":50000}",
         {"maxItems"},
         {"[]", "[null]", "[1]"}},
        {"{\"type\":\"array\",\"items\":[{\"type\":\"null\"},{\"type\":\"boolean\"}],"
         "\"additionalItems\":false}",
         {NULL},
         {"[]", "[null,true]", "[null,true,1]"}},
        {"{\"type\":\"array\",\"items\":[{\"pattern\":\"(?=a)\"}],\"additionalItems\":{\"type\":"
         "\"null\"}}",
         {"pattern"},
         {"[\"b\",null]", "[1]", "[1,2]"}},
        {"{\"type\":\"array\",\"items\":[],\"additionalItems\":{\"type\":\"null\"}}",
         {NULL},
         {"[]", "[null]", "[1]"}},
        {"{\"$ref\":\"#/definitions/a/properties/pattern\",\"definitions\":{\"a\":{\"properties\":{"
         "\"pattern\":{\"type\":\"string\",\"pattern\":\"\\\\bx\"}}}}}",
         {"pattern"},
         {"\"y\"", "1"}},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
        check_relaxed(cases[i].schema, cases[i].names, cases[i].texts);
}

static void test_malformed_is_refused_always(void **state)
{
    (void)state;
    static const char *const schemas[] = {
        "{\"pattern\":\"(\"}",   "{\"pattern\":1}",
        "{\"multipleOf\":-0.5}", "{\"maxLength\":\"100000\"}",
        "{\"items\":[1]}",       "{\"prefixItems\":[],\"items\":[]}",
        "{\"properties\":[]}",   "{\"minLength\":5,\"maxLength\":2,\"type\":\"string\"}",
        "{\"$ref\":\"#/x\"}"};
    for (size_t i = 0; i < ARRAY_COUNT(schemas); i++) {
        Grammar *grammar;
        Error err;
        if (compile(slice_of(schemas[i]), true, &grammar, &err))
            fail_msg("%s compiles", schemas[i]);
        assert_int_equal(err.code, ERROR_INVALID);
    }
}

/* ---- Hostile schemas ---- */

static void append_repeated(Buffer *out, const char *text, size_t count)
{
    for (size_t i = 0; i < count; i++)
        buffer_append_text(out, text);
}

/* Definitions d0..d(n-1), each by format with its own number and the next one's. */
static void append_chain(Buffer *out, const char *open, const char *item, const char *close,
                         size_t n)
{
    buffer_append_text(out, "{\"$ref\":\"#/$defs/d0\",\"$defs\":{");
    for (size_t i = 0; i < n; i++) {
        buffer_append_format(out, "\"d%zu\":%s", i, open);
        for (size_t k = 0; k < 2; k++)
            buffer_append_format(out, "%s{\"$ref\":\"#/$defs/d%zu\"}", k ? item : "", i + 1);
        buffer_append_format(out, "%s,", close);
    }
    buffer_append_format(out, "\"d%zu\":{\"type\":\"integer\"}}}", n);
}

static void append_hostile(unsigned which, Buffer *out)
{
    switch (which) {
    case 0: /* doubles at each of 60 levels */
        append_chain(out, "{\"anyOf\":[", ",", "]}", 60);
        break;
    case 1:
        append_chain(out, "{\"allOf\":[", ",", "]}", 60);
        break;
    case 2: /* a chain of references without end */
        append_chain(out, "{\"allOf\":[", ",", "]}", 20000);
        break;
    case 3: /* 2^24 combinations */
        buffer_append_text(out, "{\"allOf\":[");
        for (unsigned i = 0; i < 24; i++)
            buffer_append_format(
                out, "%s{\"anyOf\":[{\"required\":[\"a%u\"]},{\"required\":[\"b%u\"]}]}",
                i ? "," : "", i, i);
        buffer_append_text(out, "]}");
        break;
    case 4: /* deep */
        append_repeated(out, "{\"items\":", 200);
        buffer_append_text(out, "true");
        append_repeated(out, "}", 200);
        break;
    case 5: /* many values */
        buffer_append_text(out, "{\"enum\":[0");
        for (unsigned i = 0; i < 100000; i++)
            buffer_append_format(out, ",\"value number %u\"", i);
        buffer_append_text(out, "]}");
        break;
    case 6:
        buffer_append_text(out, "{\"pattern\":\"(a|b)*a(a|b){30}$\"}");
        break;
    case 7:
        buffer_append_text(out, "{\"pattern\":\"^((((a{1,60}){1,60}){1,60}){1,60})$\"}");
        break;
    case 8: /* patterns whose product is large */
        buffer_append_text(out, "{\"allOf\":[");
        for (unsigned i = 2; i < 24; i++)
            buffer_append_format(out, "%s{\"pattern\":\"^(.{%u})*$\"}", i > 2 ? "," : "",
                                 i * 7 + 1);
        buffer_append_text(out, "]}");
        break;
    case 9:
        buffer_append_text(out, "{\"type\":\"string\",\"minLength\":4000000000}");
        break;
    case 10:
        buffer_append_text(
            out, "{\"type\":\"array\",\"items\":{\"type\":\"array\",\"maxItems\":30000,"
                 "\"items\":{\"type\":\"string\",\"maxLength\":60000}},\"maxItems\":30000}");
        break;
    case 11:
        buffer_append_text(out, "{\"type\":\"integer\",\"multipleOf\":999983}");
        break;
    case 12: /* many open properties, counted */
        buffer_append_text(out, "{\"minProperties\":2000,\"properties\":{\"p\":{}");
        for (unsigned i = 0; i < 2500; i++)
            buffer_append_format(out, ",\"property %u\":{\"type\":\"string\",\"format\":\"date\"}",
                                 i);
        buffer_append_text(out, "}}");
        break;
    case 13: /* classes of many ranges */
        buffer_append_text(out, "{\"pattern\":\"^[");
        for (unsigned i = 0; i < 3000; i++)
            buffer_append_format(out, "\\\\u{%x}", 0x3000 + i * 2);
        buffer_append_text(out, "]*$\",\"maxLength\":60000}");
        break;
    case 14: /* mutual references of 300 definitions */
        buffer_append_text(out, "{\"$ref\":\"#/$defs/a0\",\"$defs\":{\"z\":{}");
        for (unsigned i = 0; i < 300; i++)
            buffer_append_format(
                out, ",\"a%u\":{\"anyOf\":[{\"$ref\":\"#/$defs/a%u\"},{\"$ref\":\"#/$defs/a%u\"}]}",
                i, (i * 7 + 1) % 300, (i * 13 + 5) % 300);
        buffer_append_text(out, "}}");
        break;
    default:
        buffer_append_text(out, "{\"allOf\":[");
        append_repeated(out, "{\"properties\":{\"a\":{\"allOf\":[{},{}]}}},", 5000);
        buffer_append_text(out, "{}]}");
    }
}

/* They compile or are refused, whichever: soon, and within memory limits. A text is stepped over
 * too. */
static void test_hostile_schemas_end(void **state)
{
    (void)state;
    Buffer schema;
    buffer_init(&schema, GRAMMAR_SOURCE_BYTES_MAX);
    for (unsigned which = 0; which < 16; which++) {
        Grammar *grammar;
        Error err;
        double start = clock_monotonic_seconds();
        buffer_clear(&schema);
        append_hostile(which, &schema);
        assert_false(schema.failed);
        if (compile(buffer_view(&schema), false, &grammar, &err)) {
            assert_true(grammar_bytes(grammar) < 64 << 20);
            accepts(grammar, SLICE("{\"a\": [[[\"value number 77\"]]]}"));
            grammar_release(grammar);
        } else {
            assert_true(err.code == ERROR_LIMIT || err.code == ERROR_INVALID);
        }
        double seconds = clock_monotonic_seconds() - start;
        if (seconds > HOSTILE_SECONDS_MAX)
            fail_msg("hostile schema %u took %.1f s", which, seconds);
    }
    buffer_reset(&schema);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_corpus_compiles),
        cmocka_unit_test(test_unknown_keywords_are_reported),
        cmocka_unit_test(test_what_cannot_be_enforced_is_left_out),
        cmocka_unit_test(test_malformed_is_refused_always),
        cmocka_unit_test(test_hostile_schemas_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
