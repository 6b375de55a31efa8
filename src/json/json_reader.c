/* The pull reader: a state machine over the text with one byte per open container.
 *
 *   state             what may come                          set by
 *   STATE_VALUE       a value                                start, KEY (which takes its
 *                                                            colon along)
 *   STATE_FIRST_ITEM  a value or ]                           [
 *   STATE_FIRST_KEY   a key or }                             {
 *   STATE_AFTER       , or the container's end; at depth 0   a value, ] and }
 *                     the end of the text
 *   STATE_FAILED      nothing: JSON_TOKEN_ERROR for ever     the first fault
 *
 * `at` stands behind the last token (behind the colon for a key). Strings are checked completely
 * when they are passed (UTF-8, escapes, surrogate pairs), so that copying one cannot fail. Line and
 * column are counted only when a fault is reported. */
#include "json.h"

#include <stdio.h>

#include "json_number.h"
#include "json_scan.h"

enum { STATE_VALUE, STATE_FIRST_ITEM, STATE_FIRST_KEY, STATE_AFTER, STATE_FAILED };
enum { INSIDE_ARRAY, INSIDE_OBJECT };

/* ---- Faults ---- */

/* Line and column count from 1; a column is a code point, whatever its width in bytes. */
static JsonToken fail_code(JsonReader *reader, ErrorCode code, const char *place,
                           const char *message)
{
    size_t line = 1;
    size_t column = 1;
    for (const char *p = reader->start; p < place; p++) {
        if (*p == '\n') {
            line++;
            column = 1;
        } else if (((unsigned char)*p & 0xc0) != 0x80) {
            column++;
        }
    }
    error_set(reader->err, code, "line %zu column %zu: %s", line, column, message);
    reader->at = place;
    reader->state = STATE_FAILED;
    return JSON_TOKEN_ERROR;
}

static JsonToken fail(JsonReader *reader, const char *place, const char *message)
{
    return fail_code(reader, ERROR_INVALID, place, message);
}

/* "expected X, found Y", where Y is the byte at place. */
static JsonToken fail_expected(JsonReader *reader, const char *place, const char *expected)
{
    char found[24] = "the end of the text";
    if (place != reader->end) {
        unsigned char byte = (unsigned char)*place;
        if (byte > 0x20 && byte < 0x7f)
            snprintf(found, sizeof(found), "'%c'", byte);
        else
            snprintf(found, sizeof(found), "byte 0x%02X", byte);
    }
    char message[128];
    snprintf(message, sizeof(message), "expected %s, found %s", expected, found);
    return fail(reader, place, message);
}

/* ---- Strings ---- */

/* Value of four hexadecimal digits, or -1. */
static int32_t read_hex4(const char *p)
{
    int32_t value = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int digit;
        if (json_is_digit(c))
            digit = c - '0';
        else if (c >= 'a' && c <= 'f')
            digit = c - 'a' + 10;
        else if (c >= 'A' && c <= 'F')
            digit = c - 'A' + 10;
        else
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* Checks the \uXXXX at p (a pair of them if the first is a high surrogate). Returns its end, or
 * NULL with the reader failed. */
static const char *check_unicode_escape(JsonReader *reader, const char *p)
{
    const char *end = reader->end;
    int32_t unit = end - p >= 6 ? read_hex4(p + 2) : -1;
    if (unit < 0) {
        fail(reader, p, "\\u needs four hexadecimal digits");
        return NULL;
    }
    if (unit < 0xd800 || unit > 0xdfff)
        return p + 6;
    if (unit < 0xdc00 && end - p >= 12 && p[6] == '\\' && p[7] == 'u') {
        int32_t low = read_hex4(p + 8);
        if (low >= 0xdc00 && low <= 0xdfff)
            return p + 12;
    }
    fail(reader, p, "lone surrogate escape");
    return NULL;
}

/* Checks the escape at p (a backslash). Returns its end, or NULL with the reader failed. */
static const char *check_escape(JsonReader *reader, const char *p)
{
    if (reader->end - p < 2) {
        fail(reader, reader->end, "unterminated string");
        return NULL;
    }
    switch (p[1]) {
    case '"':
    case '\\':
    case '/':
    case 'b':
    case 'f':
    case 'n':
    case 'r':
    case 't':
        return p + 2;
    case 'u':
        return check_unicode_escape(reader, p);
    default:
        fail(reader, p, "unknown escape in a string");
        return NULL;
    }
}

static inline bool is_continuation(char c)
{
    return ((unsigned char)c & 0xc0) == 0x80;
}

/* Passes a run of bytes above 0x7F. Two- and three-byte characters, nearly all of a vocabulary, are
 * checked here; leads with a narrower second byte and four-byte ones go to utf8_decode. */
static const char *check_non_ascii(JsonReader *reader, const char *p)
{
    const char *end = reader->end;
    while (p < end && (unsigned char)*p > 0x7f) {
        unsigned char lead = (unsigned char)*p;
        if (lead > 0xe0 && lead < 0xf0 && lead != 0xed && end - p >= 3 && is_continuation(p[1]) &&
            is_continuation(p[2])) {
            p += 3;
        } else if (lead >= 0xc2 && lead < 0xe0 && end - p >= 2 && is_continuation(p[1])) {
            p += 2;
        } else {
            uint32_t ignored;
            size_t length = utf8_decode(p, (size_t)(end - p), &ignored);
            if (length == 0) {
                fail(reader, p, "ill-formed UTF-8 in a string");
                return NULL;
            }
            p += length;
        }
    }
    return p;
}

/* Checks the string whose opening quote is before p and sets raw and has_escapes. Returns the byte
 * after the closing quote, or NULL with the reader failed. */
static inline const char *read_string(JsonReader *reader, const char *p)
{
    const char *start = p;
    const char *end = reader->end;
    reader->has_escapes = false;
    for (;;) {
        p = json_scan_plain(p, end, false);
        if (p == end) {
            fail(reader, end, "unterminated string");
            return NULL;
        }
        unsigned char c = (unsigned char)*p;
        if (c == '"')
            break;
        if (c == '\\') {
            reader->has_escapes = true;
            p = check_escape(reader, p);
        } else if (c > 0x7f) {
            p = check_non_ascii(reader, p);
        } else {
            fail(reader, p, "control character in a string");
            return NULL;
        }
        if (!p)
            return NULL;
    }
    reader->raw = (Slice){start, (size_t)(p - start)};
    return p + 1;
}

/* ---- Tokens ---- */

static inline const char *skip_digits(const char *p, const char *end)
{
    while (p < end && json_is_digit(*p))
        p++;
    return p;
}

static JsonToken read_number(JsonReader *reader, const char *start)
{
    const char *end = reader->end;
    const char *p = start;
    if (*p == '-')
        p++;
    if (p == end || !json_is_digit(*p))
        return fail_expected(reader, p, "a digit");
    /* A leading zero stands alone; a digit after it is then no separator, which fails. */
    p = *p == '0' ? p + 1 : skip_digits(p, end);
    if (p < end && *p == '.') {
        p++;
        if (p == end || !json_is_digit(*p))
            return fail_expected(reader, p, "a digit after the decimal point");
        p = skip_digits(p, end);
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        if (p < end && (*p == '+' || *p == '-'))
            p++;
        if (p == end || !json_is_digit(*p))
            return fail_expected(reader, p, "a digit in the exponent");
        p = skip_digits(p, end);
    }
    reader->raw = (Slice){start, (size_t)(p - start)};
    reader->at = p;
    reader->state = STATE_AFTER;
    return JSON_TOKEN_NUMBER;
}

static JsonToken read_word(JsonReader *reader, const char *p, Slice word, JsonToken token)
{
    if ((size_t)(reader->end - p) < word.len || memcmp(p, word.ptr, word.len) != 0)
        return fail_expected(reader, p, "a value");
    reader->at = p + word.len;
    reader->state = STATE_AFTER;
    return token;
}

static JsonToken open_container(JsonReader *reader, const char *p, bool object)
{
    if (reader->depth == JSON_DEPTH_MAX) {
        char message[64];
        snprintf(message, sizeof(message), "nested deeper than %d", JSON_DEPTH_MAX);
        return fail_code(reader, ERROR_LIMIT, p, message);
    }
    reader->stack[reader->depth++] = object ? INSIDE_OBJECT : INSIDE_ARRAY;
    reader->at = p + 1;
    reader->state = object ? STATE_FIRST_KEY : STATE_FIRST_ITEM;
    return object ? JSON_TOKEN_OBJECT_BEGIN : JSON_TOKEN_ARRAY_BEGIN;
}

static JsonToken close_container(JsonReader *reader, const char *p, JsonToken token)
{
    reader->depth--;
    reader->at = p + 1;
    reader->state = STATE_AFTER;
    return token;
}

static inline JsonToken read_value(JsonReader *reader, const char *p)
{
    if (p == reader->end)
        return fail_expected(reader, p, "a value");
    switch (*p) {
    case '"': {
        const char *after = read_string(reader, p + 1);
        if (!after)
            return JSON_TOKEN_ERROR;
        reader->at = after;
        reader->state = STATE_AFTER;
        return JSON_TOKEN_STRING;
    }
    case '[':
        return open_container(reader, p, false);
    case '{':
        return open_container(reader, p, true);
    case 't':
        return read_word(reader, p, SLICE("true"), JSON_TOKEN_TRUE);
    case 'f':
        return read_word(reader, p, SLICE("false"), JSON_TOKEN_FALSE);
    case 'n':
        return read_word(reader, p, SLICE("null"), JSON_TOKEN_NULL);
    default:
        if (*p == '-' || json_is_digit(*p))
            return read_number(reader, p);
        return fail_expected(reader, p, "a value");
    }
}

static inline JsonToken read_key(JsonReader *reader, const char *p)
{
    if (p == reader->end || *p != '"')
        return fail_expected(reader, p, "a key in quotes");
    p = read_string(reader, p + 1);
    if (!p)
        return JSON_TOKEN_ERROR;
    p = json_scan_space(p, reader->end);
    if (p == reader->end || *p != ':')
        return fail_expected(reader, p, "':' after a key");
    reader->at = p + 1;
    reader->state = STATE_VALUE;
    return JSON_TOKEN_KEY;
}

/* Between values: the comma with what follows it, or the end of what is open. */
static inline JsonToken read_after_value(JsonReader *reader, const char *p)
{
    if (reader->depth == 0) {
        if (p != reader->end)
            return fail_expected(reader, p, "the end of the text");
        reader->at = p;
        return JSON_TOKEN_END;
    }
    bool object = reader->stack[reader->depth - 1] == INSIDE_OBJECT;
    if (p != reader->end && *p == ',') {
        p = json_scan_space(p + 1, reader->end);
        return object ? read_key(reader, p) : read_value(reader, p);
    }
    if (p != reader->end && *p == (object ? '}' : ']'))
        return close_container(reader, p, object ? JSON_TOKEN_OBJECT_END : JSON_TOKEN_ARRAY_END);
    return fail_expected(reader, p, object ? "',' or '}'" : "',' or ']'");
}

/* ---- Public ---- */

void json_reader_init(JsonReader *reader, Slice text, Error *err)
{
    /* The stack needs no clearing, and readers are made per message. */
    reader->start = reader->at = text.ptr ? text.ptr : "";
    reader->end = reader->start + text.len;
    reader->raw = SLICE_EMPTY;
    reader->has_escapes = false;
    reader->depth = 0;
    reader->state = STATE_VALUE;
    reader->err = err;
}

JsonToken json_reader_next(JsonReader *reader)
{
    const char *p = json_scan_space(reader->at, reader->end);
    switch (reader->state) {
    case STATE_AFTER:
        return read_after_value(reader, p);
    case STATE_VALUE:
        return read_value(reader, p);
    case STATE_FIRST_ITEM:
        if (p != reader->end && *p == ']')
            return close_container(reader, p, JSON_TOKEN_ARRAY_END);
        return read_value(reader, p);
    case STATE_FIRST_KEY:
        if (p != reader->end && *p == '}')
            return close_container(reader, p, JSON_TOKEN_OBJECT_END);
        return read_key(reader, p);
    default:
        return JSON_TOKEN_ERROR;
    }
}

bool json_reader_skip_value(JsonReader *reader)
{
    size_t depth = reader->depth;
    do {
        JsonToken token = json_reader_next(reader);
        if (token == JSON_TOKEN_ERROR)
            return false;
        if (token == JSON_TOKEN_END || reader->depth < depth ||
            (token == JSON_TOKEN_KEY && reader->depth == depth)) {
            fail(reader, reader->at, "no value to skip here");
            return false;
        }
    } while (reader->depth > depth);
    return true;
}

size_t json_reader_offset(const JsonReader *reader)
{
    const char *p = json_scan_space(reader->at, reader->end);
    if (reader->state == STATE_AFTER && reader->depth > 0 && p != reader->end && *p == ',')
        p = json_scan_space(p + 1, reader->end);
    return (size_t)(p - reader->start);
}

size_t json_reader_end_offset(const JsonReader *reader)
{
    return (size_t)(reader->at - reader->start);
}

/* Decodes the checked escape at p into to, moving both on. */
static const char *copy_escape(const char *p, char **to)
{
    static const char short_escapes[] = "b\bf\fn\nr\rt\t";
    if (p[1] != 'u') {
        char c = p[1];
        for (size_t i = 0; i + 1 < sizeof(short_escapes); i += 2) {
            if (short_escapes[i] == p[1])
                c = short_escapes[i + 1];
        }
        *(*to)++ = c;
        return p + 2;
    }
    uint32_t code_point = (uint32_t)read_hex4(p + 2);
    p += 6;
    if (code_point >= 0xd800 && code_point < 0xdc00) {
        uint32_t low = (uint32_t)read_hex4(p + 2);
        code_point = 0x10000 + ((code_point - 0xd800) << 10) + (low - 0xdc00);
        p += 6;
    }
    char bytes[UTF8_MAX];
    size_t length = utf8_encode(code_point, bytes);
    memcpy(*to, bytes, length);
    *to += length;
    return p;
}

size_t json_reader_copy_string(const JsonReader *reader, char *out)
{
    const char *p = reader->raw.ptr;
    if (reader->raw.len == 0)
        return 0;
    const char *end = p + reader->raw.len;
    char *to = out;
    while (p < end) {
        const char *escape = reader->has_escapes ? memchr(p, '\\', (size_t)(end - p)) : NULL;
        size_t run = (size_t)((escape ? escape : end) - p);
        memcpy(to, p, run);
        to += run;
        p += run;
        if (escape)
            p = copy_escape(p, &to);
    }
    return (size_t)(to - out);
}

JsonValue json_reader_number(const JsonReader *reader)
{
    return json_number_parse(reader->raw);
}
