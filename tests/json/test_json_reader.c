/* The pull reader, and the tree on the same texts: they must agree on what is JSON. Every text is
 * read from memory that ends at an unreadable page. */
#include "json.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
/* cmocka needs what is above */
#include <cmocka.h>

#include "case_file.h"

enum { TEXT_BYTES_MAX = 1 << 20, ARENA_BYTES_MAX = 16 << 20 };

/* ---- Memory with an end ---- */

static struct {
    char *start;
    size_t size; /* readable; the page after it is not */
} guarded;

static int guarded_create(void **state)
{
    (void)state;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    guarded.size = (TEXT_BYTES_MAX + page - 1) / page * page;
    void *memory =
        mmap(NULL, guarded.size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -1;
    guarded.start = memory;
    return mprotect(guarded.start + guarded.size, page, PROT_NONE);
}

static int guarded_free(void **state)
{
    (void)state;
    return munmap(guarded.start, guarded.size + (size_t)sysconf(_SC_PAGESIZE));
}

/* A copy of text whose last byte is the last readable one. */
static Slice guard(Slice text)
{
    assert_true(text.len <= guarded.size);
    char *copy = guarded.start + guarded.size - text.len;
    if (text.len > 0)
        memcpy(copy, text.ptr, text.len);
    return (Slice){copy, text.len};
}

/* ---- Reading a whole text ---- */

/* Walks text, decoding every string and number. Returns whether it is JSON. */
static bool walk(Slice text, Error *err)
{
    static char decoded[TEXT_BYTES_MAX];
    JsonReader reader;
    json_reader_init(&reader, text, err);
    for (;;) {
        JsonToken token = json_reader_next(&reader);
        assert_true(reader.depth <= JSON_DEPTH_MAX);
        assert_true(json_reader_offset(&reader) <= text.len);
        if (token == JSON_TOKEN_ERROR) {
            assert_int_equal(json_reader_next(&reader), JSON_TOKEN_ERROR);
            return false;
        }
        if (token == JSON_TOKEN_END) {
            assert_int_equal(json_reader_next(&reader), JSON_TOKEN_END);
            return true;
        }
        if (token == JSON_TOKEN_STRING || token == JSON_TOKEN_KEY) {
            size_t len = json_reader_copy_string(&reader, decoded);
            assert_true(len <= reader.raw.len);
            assert_true(utf8_is_valid((Slice){decoded, len}));
            assert_int_equal(reader.has_escapes, reader.raw.len && memchr(reader.raw.ptr, '\\',
                                                                          reader.raw.len) != NULL);
        } else if (token == JSON_TOKEN_NUMBER) {
            JsonValue number = json_reader_number(&reader);
            assert_true(json_is_number(&number));
        }
    }
}

/* Both ways of reading; they must agree. On acceptance `compact` receives the text written again.
 */
static bool read_both(Slice text, Buffer *compact, Error *err)
{
    Slice copy = guard(text);
    Error walk_err = {0};
    bool walked = walk(copy, &walk_err);
    Arena arena;
    arena_init(&arena, ARENA_BYTES_MAX);
    const JsonValue *value;
    bool parsed = json_parse(copy, &arena, &value, err);
    assert_int_equal(walked, parsed);
    assert_int_equal(parsed, value != NULL);
    if (parsed) {
        JsonWriter writer;
        buffer_clear(compact);
        json_writer_init(&writer, compact, 0);
        json_write_value(&writer, value);
        assert_false(compact->failed);
    } else {
        assert_string_equal(walk_err.message, err->message);
        assert_int_equal(walk_err.code, err->code);
    }
    arena_reset(&arena);
    return parsed;
}

/* ---- The case files ---- */

typedef struct Case {
    Slice name, text, expected;
    Buffer text_bytes, expected_bytes;
} Case;

static void case_open(Case *c, Slice line)
{
    Slice rest;
    case_file_split(line, SLICE(": "), &c->name, &rest);
    Slice text, expected;
    case_file_split(rest, SLICE(" => "), &text, &expected);
    buffer_init(&c->text_bytes, TEXT_BYTES_MAX);
    buffer_init(&c->expected_bytes, TEXT_BYTES_MAX);
    case_file_decode(text, &c->text_bytes);
    case_file_decode(expected, &c->expected_bytes);
    c->text = buffer_view(&c->text_bytes);
    c->expected = buffer_view(&c->expected_bytes);
}

static void case_close(Case *c)
{
    buffer_reset(&c->text_bytes);
    buffer_reset(&c->expected_bytes);
}

static void check_accepted(Slice line)
{
    Case c;
    case_open(&c, line);
    Error err = {0};
    Buffer compact;
    buffer_init(&compact, TEXT_BYTES_MAX);
    if (!read_both(c.text, &compact, &err))
        fail_msg("%.*s: refused: %s", SLICE_ARG(c.name), err.message);
    Slice got = buffer_view(&compact);
    if (!slice_equal(got, c.expected))
        fail_msg("%.*s: read as %.*s, expected %.*s", SLICE_ARG(c.name), SLICE_ARG(got),
                 SLICE_ARG(c.expected));
    assert_int_equal(err.code, ERROR_NONE);
    buffer_reset(&compact);
    case_close(&c);
}

static void check_refused(Slice line)
{
    Case c;
    case_open(&c, line);
    Error err = {0};
    Buffer compact;
    buffer_init(&compact, TEXT_BYTES_MAX);
    if (read_both(c.text, &compact, &err))
        fail_msg("%.*s: accepted as %.*s", SLICE_ARG(c.name), SLICE_ARG(buffer_view(&compact)));
    assert_int_equal(err.code, ERROR_INVALID);
    if (!slice_equal(slice_of(err.message), c.expected))
        fail_msg("%.*s: message \"%s\", expected \"%.*s\"", SLICE_ARG(c.name), err.message,
                 SLICE_ARG(c.expected));
    buffer_reset(&compact);
    case_close(&c);
}

static void test_accepted_texts(void **state)
{
    (void)state;
    assert_true(case_file_visit("accept.txt", check_accepted) >= 100);
}

static void test_refused_texts(void **state)
{
    (void)state;
    assert_true(case_file_visit("reject.txt", check_refused) >= 150);
}

/* Nothing is read past a cut, wherever it is. */
static void check_truncations(Slice line, bool whole_is_json)
{
    Case c;
    case_open(&c, line);
    Buffer compact;
    buffer_init(&compact, TEXT_BYTES_MAX);
    size_t end = c.text.len;
    while (end > 0 && strchr(" \t\r\n", c.text.ptr[end - 1]))
        end--;
    /* A container, string or word that lacks its end is no JSON; a number may be. */
    bool number = end > 0 && c.text.ptr[end - 1] >= '0' && c.text.ptr[end - 1] <= '9';
    for (size_t len = 0; len < end; len++) {
        Error err = {0};
        bool read = read_both((Slice){c.text.ptr, len}, &compact, &err);
        if (read && whole_is_json && !number)
            fail_msg("%.*s: accepted when cut at byte %zu", SLICE_ARG(c.name), len);
    }
    buffer_reset(&compact);
    case_close(&c);
}

static void check_truncated_json(Slice line)
{
    check_truncations(line, true);
}

static void check_truncated_nonsense(Slice line)
{
    check_truncations(line, false);
}

static void test_truncated_texts(void **state)
{
    (void)state;
    case_file_visit("accept.txt", check_truncated_json);
    case_file_visit("reject.txt", check_truncated_nonsense);
}

/* ---- Strings against the block loops ---- */

/* A byte that needs attention at every place of strings of every length around the block sizes. */
static void test_every_place_of_a_string(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        bool valid;
    } specials[] = {
        {"\\n", true},
        {"\\\"", true},
        {"\xc3\xa9", true},
        {"\x7f", true},
        {"\xe2\x96\x81", true},
        {"\xf0\x9f\x98\x80", true},
        {"\\ud83d\\ude00", true},
        {"\x1f", false},
        {"\x01", false},
        {"\xff", false},
        {"\xe2\x96", false},
        {"\\q", false},
        {"\n", false},
        {"\xed\xa0\x80", false},
        {"\\ud83d", false},
    };
    Buffer text, compact;
    buffer_init(&text, TEXT_BYTES_MAX);
    buffer_init(&compact, TEXT_BYTES_MAX);
    for (size_t s = 0; s < ARRAY_COUNT(specials); s++) {
        for (size_t len = 0; len <= 40; len++) {
            for (size_t place = 0; place <= len; place++) {
                buffer_clear(&text);
                buffer_append_byte(&text, '"');
                for (size_t i = 0; i < place; i++)
                    buffer_append_byte(&text, 'a');
                buffer_append_text(&text, specials[s].bytes);
                for (size_t i = place; i < len; i++)
                    buffer_append_byte(&text, 'z');
                buffer_append_byte(&text, '"');
                Error err = {0};
                bool read = read_both(buffer_view(&text), &compact, &err);
                if (read != specials[s].valid)
                    fail_msg("special %zu at %zu of %zu: %s", s, place, len, err.message);
            }
        }
    }
    buffer_reset(&text);
    buffer_reset(&compact);
}

/* Every byte value alone in a string: only printable ASCII and 7F but for " and \ may stand. */
static void test_every_byte_in_a_string(void **state)
{
    (void)state;
    Buffer compact;
    buffer_init(&compact, TEXT_BYTES_MAX);
    for (unsigned byte = 0; byte < 256; byte++) {
        for (size_t padding = 0; padding < 20; padding++) {
            char text[24];
            memset(text, 'x', sizeof(text));
            text[0] = '"';
            text[1 + padding] = (char)byte;
            text[2 + padding] = '"';
            Error err = {0};
            bool read = read_both((Slice){text, 3 + padding}, &compact, &err);
            bool valid = byte >= 0x20 && byte < 0x80 && byte != '"' && byte != '\\';
            if (read != valid)
                fail_msg("byte 0x%02x after %zu", byte, padding);
        }
    }
    buffer_reset(&compact);
}

/* All code points: raw ones, and escaped ones, decode to themselves. */
static void test_all_code_points(void **state)
{
    (void)state;
    for (uint32_t c = 0; c <= 0x10ffff; c++) {
        bool surrogate = c >= 0xd800 && c <= 0xdfff;
        char expected[UTF8_MAX], decoded[16], text[32];
        size_t expected_len = surrogate ? 0 : utf8_encode(c, expected);
        int len = c < 0x10000
                      ? snprintf(text, sizeof(text), "\"\\u%04x\"", (unsigned)c)
                      : snprintf(text, sizeof(text), "\"\\u%04X\\u%04x\"",
                                 (unsigned)(0xd7c0 + (c >> 10)), (unsigned)(0xdc00 + (c & 0x3ff)));
        JsonReader reader;
        json_reader_init(&reader, (Slice){text, (size_t)len}, NULL);
        JsonToken token = json_reader_next(&reader);
        if (surrogate) {
            assert_int_equal(token, JSON_TOKEN_ERROR);
            continue;
        }
        assert_int_equal(token, JSON_TOKEN_STRING);
        assert_int_equal(json_reader_copy_string(&reader, decoded), expected_len);
        assert_memory_equal(decoded, expected, expected_len);
        if (c < 0x20 || c == '"' || c == '\\')
            continue;
        text[0] = text[1 + expected_len] = '"';
        memcpy(text + 1, expected, expected_len);
        json_reader_init(&reader, (Slice){text, 2 + expected_len}, NULL);
        assert_int_equal(json_reader_next(&reader), JSON_TOKEN_STRING);
        assert_false(reader.has_escapes);
        assert_int_equal(reader.raw.len, expected_len);
        assert_int_equal(json_reader_next(&reader), JSON_TOKEN_END);
    }
}

/* ---- Depth ---- */

/* `depth` containers, arrays and objects in turn, around nothing. */
static void append_nested(Buffer *out, size_t depth)
{
    for (size_t i = 0; i < depth; i++)
        buffer_append_text(out, i % 2 == 0 ? "[" : i + 1 < depth ? "{\"k\":" : "{");
    for (size_t i = depth; i > 0; i--)
        buffer_append_byte(out, i % 2 == 1 ? ']' : '}');
}

static void test_depth_limit(void **state)
{
    (void)state;
    Buffer text, compact;
    buffer_init(&text, TEXT_BYTES_MAX);
    buffer_init(&compact, TEXT_BYTES_MAX);
    Error err = {0};
    append_nested(&text, JSON_DEPTH_MAX);
    assert_true(read_both(buffer_view(&text), &compact, &err));
    assert_true(slice_equal(buffer_view(&compact), buffer_view(&text)));

    buffer_clear(&text);
    append_nested(&text, JSON_DEPTH_MAX + 1);
    assert_false(read_both(buffer_view(&text), &compact, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    assert_string_equal(err.message, "line 1 column 769: nested deeper than 256");

    buffer_clear(&text);
    for (size_t i = 0; i < 100000; i++)
        buffer_append_byte(&text, '[');
    err = (Error){0};
    assert_false(read_both(buffer_view(&text), &compact, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    buffer_reset(&text);
    buffer_reset(&compact);
}

/* ---- Tokens, offsets, skipping ---- */

static void test_token_sequence(void **state)
{
    (void)state;
    static const JsonToken expected[] = {
        JSON_TOKEN_OBJECT_BEGIN, JSON_TOKEN_KEY,    JSON_TOKEN_ARRAY_BEGIN, JSON_TOKEN_NUMBER,
        JSON_TOKEN_TRUE,         JSON_TOKEN_FALSE,  JSON_TOKEN_NULL,        JSON_TOKEN_ARRAY_END,
        JSON_TOKEN_KEY,          JSON_TOKEN_STRING, JSON_TOKEN_OBJECT_END,  JSON_TOKEN_END,
        JSON_TOKEN_END};
    JsonReader reader;
    Error err = {0};
    json_reader_init(&reader, SLICE("{\"a\": [1.50, true, false, null], \"b\\n\": \"c\"}"), &err);
    for (size_t i = 0; i < ARRAY_COUNT(expected); i++) {
        assert_int_equal(json_reader_next(&reader), expected[i]);
        if (i == 3)
            assert_true(slice_equal(reader.raw, SLICE("1.50")));
        if (i == 8)
            assert_true(reader.has_escapes && slice_equal(reader.raw, SLICE("b\\n")));
        if (i == 9)
            assert_true(!reader.has_escapes && slice_equal(reader.raw, SLICE("c")));
    }
    assert_int_equal(err.code, ERROR_NONE);
}

static void test_raw_values_by_offset(void **state)
{
    (void)state;
    Slice text = SLICE(" { \"a\" : [ 1 , {\"x\":[]} , \"]\" ] , \"b\":2 }");
    JsonReader reader;
    json_reader_init(&reader, text, NULL);
    assert_int_equal(json_reader_offset(&reader), 1);
    assert_int_equal(json_reader_next(&reader), JSON_TOKEN_OBJECT_BEGIN);
    assert_int_equal(json_reader_next(&reader), JSON_TOKEN_KEY);
    size_t from = json_reader_offset(&reader);
    assert_true(json_reader_skip_value(&reader));
    size_t to = json_reader_end_offset(&reader);
    assert_true(
        slice_equal((Slice){text.ptr + from, to - from}, SLICE("[ 1 , {\"x\":[]} , \"]\" ]")));
    /* Behind a comma the next token is the key, not the comma. */
    assert_int_equal(text.ptr[json_reader_offset(&reader)], '"');
    assert_int_equal(json_reader_next(&reader), JSON_TOKEN_KEY);
    assert_true(json_reader_skip_value(&reader));
    assert_int_equal(text.ptr[json_reader_offset(&reader)], '}');
    assert_int_equal(json_reader_next(&reader), JSON_TOKEN_OBJECT_END);
    assert_int_equal(json_reader_offset(&reader), text.len);
    assert_int_equal(json_reader_next(&reader), JSON_TOKEN_END);
}

static void test_skip_array_items(void **state)
{
    (void)state;
    JsonReader reader;
    json_reader_init(&reader, SLICE("[[[]], {\"a\":{}}, 3, 4]"), NULL);
    assert_int_equal(json_reader_next(&reader), JSON_TOKEN_ARRAY_BEGIN);
    for (int i = 0; i < 3; i++)
        assert_true(json_reader_skip_value(&reader));
    assert_int_equal(json_reader_next(&reader), JSON_TOKEN_NUMBER);
    assert_int_equal(json_reader_number(&reader).as.integer, 4);

    Error err = {0};
    json_reader_init(&reader, SLICE("{\"a\":1}"), &err);
    assert_int_equal(json_reader_next(&reader), JSON_TOKEN_OBJECT_BEGIN);
    assert_false(json_reader_skip_value(&reader)); /* a key comes, no value */
    assert_int_equal(err.code, ERROR_INVALID);
    json_reader_init(&reader, SLICE("[]"), NULL);
    assert_int_equal(json_reader_next(&reader), JSON_TOKEN_ARRAY_BEGIN);
    assert_false(json_reader_skip_value(&reader));
    json_reader_init(&reader, SLICE("[[1,[2"), NULL);
    assert_false(json_reader_skip_value(&reader));
    json_reader_init(&reader, SLICE("1"), NULL);
    assert_true(json_reader_skip_value(&reader));
    assert_false(json_reader_skip_value(&reader));
}

static void test_empty_slice(void **state)
{
    (void)state;
    JsonReader reader;
    Error err = {0};
    json_reader_init(&reader, SLICE_EMPTY, &err);
    assert_int_equal(json_reader_offset(&reader), 0);
    assert_int_equal(json_reader_next(&reader), JSON_TOKEN_ERROR);
    assert_string_equal(err.message,
                        "line 1 column 1: expected a value, found the end of the text");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted_texts),
        cmocka_unit_test(test_refused_texts),
        cmocka_unit_test(test_truncated_texts),
        cmocka_unit_test(test_every_place_of_a_string),
        cmocka_unit_test(test_every_byte_in_a_string),
        cmocka_unit_test(test_all_code_points),
        cmocka_unit_test(test_depth_limit),
        cmocka_unit_test(test_token_sequence),
        cmocka_unit_test(test_raw_values_by_offset),
        cmocka_unit_test(test_skip_array_items),
        cmocka_unit_test(test_empty_slice),
    };
    return cmocka_run_group_tests(tests, guarded_create, guarded_free);
}
