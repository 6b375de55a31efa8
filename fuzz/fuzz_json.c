/* Any bytes: the tree and the pull reader agree on whether they are JSON and why not; every string
 * and number of an accepted text decodes; and what the writer makes of the tree, compact or
 * indented, reads back as an equal tree. */
#include <stdlib.h>
#include <string.h>

#include "json.h"

enum { MEMORY_BYTES_MAX = 64 << 20 };

static void require(bool fact)
{
    if (!fact)
        abort(); /* libFuzzer's way to report */
}

static bool walk(Slice text, Error *err)
{
    char *decoded = memory_allocate(text.len);
    require(decoded);
    JsonReader reader;
    json_reader_init(&reader, text, err);
    JsonToken token;
    size_t offset = 0;
    while ((token = json_reader_next(&reader)) != JSON_TOKEN_END && token != JSON_TOKEN_ERROR) {
        require(json_reader_end_offset(&reader) > offset); /* always moves on */
        offset = json_reader_end_offset(&reader);
        require(json_reader_offset(&reader) >= offset && offset <= text.len);
        if (token == JSON_TOKEN_STRING || token == JSON_TOKEN_KEY) {
            size_t len = json_reader_copy_string(&reader, decoded);
            require(len <= reader.raw.len && utf8_is_valid((Slice){decoded, len}));
        } else if (token == JSON_TOKEN_NUMBER) {
            JsonValue number = json_reader_number(&reader);
            require(json_is_number(&number));
        }
    }
    memory_free(decoded);
    return token == JSON_TOKEN_END;
}

static bool is_infinite(double value)
{
    return value - value != 0;
}

/* Equal in kind and bits; an infinity is written as null. The reader limits the depth. */
static bool is_equal(const JsonValue *a, const JsonValue *b)
{
    if (a->kind == JSON_DOUBLE && is_infinite(a->as.number))
        return b->kind == JSON_NULL;
    if (a->kind != b->kind)
        return false;
    switch (a->kind) {
    case JSON_NULL:
        return true;
    case JSON_BOOL:
        return a->as.boolean == b->as.boolean;
    case JSON_INT:
        return a->as.integer == b->as.integer;
    case JSON_UINT:
        return a->as.unsigned_integer == b->as.unsigned_integer;
    case JSON_DOUBLE:
        return memcmp(&a->as.number, &b->as.number, sizeof(double)) == 0;
    case JSON_STRING:
        return slice_equal(a->as.string, b->as.string);
    case JSON_ARRAY:
        if (a->as.array.count != b->as.array.count)
            return false;
        for (size_t i = 0; i < a->as.array.count; i++) {
            if (!is_equal(&a->as.array.items[i], &b->as.array.items[i]))
                return false;
        }
        return true;
    case JSON_OBJECT:
        if (a->as.object.count != b->as.object.count)
            return false;
        for (size_t i = 0; i < a->as.object.count; i++) {
            const JsonMember *left = &a->as.object.members[i];
            const JsonMember *right = &b->as.object.members[i];
            if (!slice_equal(left->key, right->key) || !is_equal(&left->value, &right->value))
                return false;
        }
        return true;
    }
    return false;
}

static void write_and_read_again(const JsonValue *value, Arena *arena, unsigned indent)
{
    Buffer out;
    JsonWriter writer;
    buffer_init(&out, MEMORY_BYTES_MAX);
    json_writer_init(&writer, &out, indent);
    json_write_value(&writer, value);
    require(!out.failed && writer.depth == 0);
    for (size_t i = 0; i < out.len; i++)
        require((unsigned char)out.ptr[i] >= 0x20 || (indent > 0 && out.ptr[i] == '\n'));
    const JsonValue *again;
    require(json_parse(buffer_view(&out), arena, &again, NULL));
    require(is_equal(value, again));
    buffer_reset(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Slice text = {(const char *)data, size};
    Arena arena;
    arena_init(&arena, MEMORY_BYTES_MAX);
    Error walk_err = {0}, parse_err = {0};
    const JsonValue *value;
    bool walked = walk(text, &walk_err);
    bool parsed = json_parse(text, &arena, &value, &parse_err);
    require(walked == parsed && parsed == (value != NULL));
    require(walk_err.code == parse_err.code && strcmp(walk_err.message, parse_err.message) == 0);
    if (parsed) {
        write_and_read_again(value, &arena, 0);
        write_and_read_again(value, &arena, 1);
    }
    arena_reset(&arena);
    return 0;
}
