/* The writer: separators from a stack of open containers, strings escaped so that every reader of
 * JSON, of JavaScript and of lines gets the same text.
 *
 * `first` belongs to the innermost container only: closing one makes its parent non-empty, so there
 * is nothing to restore. Calls in the wrong order are bugs of the caller and asserted; nesting
 * beyond JSON_DEPTH_MAX may come from input and fails the buffer instead. */
#include "json.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "json_number.h"
#include "json_scan.h"

enum { INSIDE_ARRAY, INSIDE_OBJECT };

/* ---- Strings ---- */

static void append_escape(Buffer *out, uint32_t code_unit)
{
    static const char hex[] = "0123456789abcdef";
    char text[6] = {'\\',
                    'u',
                    hex[code_unit >> 12 & 15],
                    hex[code_unit >> 8 & 15],
                    hex[code_unit >> 4 & 15],
                    hex[code_unit & 15]};
    buffer_append(out, text, sizeof(text));
}

static void append_ascii(Buffer *out, char c)
{
    switch (c) {
    case '"':
        buffer_append(out, "\\\"", 2);
        break;
    case '\\':
        buffer_append(out, "\\\\", 2);
        break;
    case '\n':
        buffer_append(out, "\\n", 2);
        break;
    case '\r':
        buffer_append(out, "\\r", 2);
        break;
    case '\t':
        buffer_append(out, "\\t", 2);
        break;
    case '\b':
        buffer_append(out, "\\b", 2);
        break;
    case '\f':
        buffer_append(out, "\\f", 2);
        break;
    default:
        append_escape(out, (unsigned char)c);
    }
}

/* Passes well-formed characters above 0x7F that need no escape. */
static const char *skip_plain_unicode(const char *p, const char *end)
{
    while (p < end && (unsigned char)*p > 0x7f) {
        uint32_t code_point;
        size_t length = utf8_decode(p, (size_t)(end - p), &code_point);
        if (length == 0 || code_point == 0x85 || code_point == 0x2028 || code_point == 0x2029)
            break;
        p += length;
    }
    return p;
}

/* Writes what stands at p: a character that needs an escape, or an ill-formed part. Returns its
 * end. */
static const char *append_special(Buffer *out, const char *p, const char *end)
{
    if ((unsigned char)*p < 0x80) {
        append_ascii(out, *p);
        return p + 1;
    }
    uint32_t code_point;
    size_t length = utf8_decode(p, (size_t)(end - p), &code_point);
    if (length > 0) {
        append_escape(out, code_point);
        return p + length;
    }
    bool incomplete;
    buffer_append(out, "\xef\xbf\xbd", 3);
    return p + utf8_ill_formed_length(p, (size_t)(end - p), &incomplete);
}

void json_append_string(Buffer *out, Slice s)
{
    buffer_append_byte(out, '"');
    const char *p = s.ptr ? s.ptr : "";
    const char *end = p + s.len;
    const char *start = p; /* of what is copied as it is */
    while (p < end && !out->failed) {
        p = json_scan_plain(p, end, true);
        const char *next = skip_plain_unicode(p, end);
        if (next != p || p == end) {
            p = next;
            continue;
        }
        buffer_append(out, start, (size_t)(p - start));
        p = append_special(out, p, end);
        start = p;
    }
    buffer_append(out, start, (size_t)(end - start));
    buffer_append_byte(out, '"');
}

/* ---- Structure ---- */

static void append_line_break(JsonWriter *writer)
{
    if (writer->indent == 0)
        return;
    buffer_append_byte(writer->out, '\n');
    size_t spaces = writer->indent * writer->depth;
    char *to = buffer_extend(writer->out, spaces);
    if (to)
        memset(to, ' ', spaces);
}

/* Beyond the depth limit nothing is recorded, nor written. */
static void assert_inside(const JsonWriter *writer, uint8_t container)
{
    assert(writer->depth > 0);
    assert(writer->depth > JSON_DEPTH_MAX || writer->stack[writer->depth - 1] == container);
    (void)writer, (void)container;
}

/* The comma and line break before an array's item or an object's key. */
static void separate(JsonWriter *writer)
{
    if (!writer->first)
        buffer_append_byte(writer->out, ',');
    writer->first = false;
    append_line_break(writer);
}

static void begin_value(JsonWriter *writer)
{
    if (writer->after_key) {
        writer->after_key = false;
        return;
    }
    if (writer->depth == 0)
        return;
    assert_inside(writer, INSIDE_ARRAY); /* in an object a key would be due */
    separate(writer);
}

static void begin_container(JsonWriter *writer, uint8_t container)
{
    begin_value(writer);
    if (writer->depth < JSON_DEPTH_MAX) {
        writer->stack[writer->depth] = container;
        buffer_append_byte(writer->out, container == INSIDE_OBJECT ? '{' : '[');
    } else {
        writer->out->failed = writer->out->over_limit = true;
    }
    writer->depth++;
    writer->first = true;
}

static void end_container(JsonWriter *writer, uint8_t container)
{
    assert(!writer->after_key);
    assert_inside(writer, container);
    bool empty = writer->first;
    writer->depth--;
    writer->first = false;
    if (!empty)
        append_line_break(writer);
    buffer_append_byte(writer->out, container == INSIDE_OBJECT ? '}' : ']');
}

void json_writer_init(JsonWriter *writer, Buffer *out, unsigned indent)
{
    writer->out = out;
    writer->depth = 0;
    writer->first = true;
    writer->after_key = false;
    writer->indent = indent;
}

void json_write_object_begin(JsonWriter *writer)
{
    begin_container(writer, INSIDE_OBJECT);
}

void json_write_object_end(JsonWriter *writer)
{
    end_container(writer, INSIDE_OBJECT);
}

void json_write_array_begin(JsonWriter *writer)
{
    begin_container(writer, INSIDE_ARRAY);
}

void json_write_array_end(JsonWriter *writer)
{
    end_container(writer, INSIDE_ARRAY);
}

void json_write_key(JsonWriter *writer, const char *key)
{
    json_write_key_slice(writer, slice_of(key));
}

void json_write_key_slice(JsonWriter *writer, Slice key)
{
    assert(!writer->after_key);
    assert_inside(writer, INSIDE_OBJECT);
    separate(writer);
    json_append_string(writer->out, key);
    buffer_append_byte(writer->out, ':');
    if (writer->indent > 0)
        buffer_append_byte(writer->out, ' ');
    writer->after_key = true;
}

/* ---- Values ---- */

static void write_scalar(JsonWriter *writer, Slice text)
{
    begin_value(writer);
    buffer_append_slice(writer->out, text);
}

void json_write_null(JsonWriter *writer)
{
    write_scalar(writer, SLICE("null"));
}

void json_write_bool(JsonWriter *writer, bool value)
{
    write_scalar(writer, value ? SLICE("true") : SLICE("false"));
}

void json_write_int(JsonWriter *writer, int64_t value)
{
    char text[JSON_NUMBER_TEXT_MAX + 1];
    size_t sign = value < 0;
    text[0] = '-';
    uint64_t magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    size_t len = json_number_format_uint(magnitude, text + sign);
    write_scalar(writer, (Slice){text, sign + len});
}

void json_write_uint(JsonWriter *writer, uint64_t value)
{
    char text[JSON_NUMBER_TEXT_MAX];
    write_scalar(writer, (Slice){text, json_number_format_uint(value, text)});
}

void json_write_double(JsonWriter *writer, double value)
{
    char text[JSON_NUMBER_TEXT_MAX];
    write_scalar(writer, (Slice){text, json_format_double(value, text)});
}

void json_write_float(JsonWriter *writer, float value)
{
    char text[JSON_NUMBER_TEXT_MAX];
    write_scalar(writer, (Slice){text, json_number_format_float(value, text)});
}

void json_write_string(JsonWriter *writer, Slice value)
{
    begin_value(writer);
    json_append_string(writer->out, value);
}

void json_write_text(JsonWriter *writer, const char *c_string)
{
    json_write_string(writer, slice_of(c_string));
}

/* Recursion ends at JSON_DEPTH_MAX: beyond it the buffer has failed. */
void json_write_value(JsonWriter *writer, const JsonValue *value)
{
    if (writer->out->failed) {
        writer->after_key = false;
        return;
    }
    switch (value->kind) {
    case JSON_NULL:
        json_write_null(writer);
        break;
    case JSON_BOOL:
        json_write_bool(writer, value->as.boolean);
        break;
    case JSON_INT:
        json_write_int(writer, value->as.integer);
        break;
    case JSON_UINT:
        json_write_uint(writer, value->as.unsigned_integer);
        break;
    case JSON_DOUBLE:
        json_write_double(writer, value->as.number);
        break;
    case JSON_STRING:
        json_write_string(writer, value->as.string);
        break;
    case JSON_ARRAY:
        json_write_array_begin(writer);
        for (size_t i = 0; i < value->as.array.count; i++)
            json_write_value(writer, &value->as.array.items[i]);
        json_write_array_end(writer);
        break;
    case JSON_OBJECT:
        json_write_object_begin(writer);
        for (size_t i = 0; i < value->as.object.count; i++) {
            json_write_key_slice(writer, value->as.object.members[i].key);
            json_write_value(writer, &value->as.object.members[i].value);
        }
        json_write_object_end(writer);
        break;
    }
}
