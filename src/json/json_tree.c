/* The tree: tokens of the pull reader, folded into values.
 *
 * Finished values wait on one scratch stack until their container closes; then they move to the
 * arena in one piece of exactly the right size and the container takes their place:
 *
 *   scratch  ... | [ items of the outer array ... | key value key value  <- top
 *                  ^ frames[0].first                ^ frames[1].first
 *
 * A key lies on the stack as a string value before its value. There is no recursion; the reader
 * limits the depth. What waits on the stack will need arena memory too, so a document that cannot
 * fit the arena's maximum is refused before the stack outgrows it. */
#include "json.h"
#include "json_scan.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct Builder {
    JsonReader reader;
    Arena *arena;
    JsonValue *stack;
    size_t count, capacity;
    size_t first[JSON_DEPTH_MAX]; /* per open container: where its items start on the stack */
    Error *err;
} Builder;

/* ---- Building ---- */

static bool push(Builder *builder, JsonValue value)
{
    /* The newest block's free tail is not known here; it is below SLACK. */
    enum { SLACK = 1 << 20 };
    size_t room = builder->arena->max - builder->arena->total;
    bool fits = builder->count <= room / sizeof(JsonValue) + SLACK / sizeof(JsonValue);
    void *items = builder->stack;
    if (!fits || !memory_grow_array(&items, builder->count, &builder->capacity, sizeof(JsonValue)))
        return error_no_memory(builder->err, "a JSON document");
    builder->stack = items;
    builder->stack[builder->count++] = value;
    return true;
}

static bool push_string(Builder *builder)
{
    const JsonReader *reader = &builder->reader;
    size_t bytes;
    char *copy =
        size_add(reader->raw.len, 1, &bytes) ? arena_allocate(builder->arena, bytes) : NULL;
    if (!copy)
        return error_no_memory(builder->err, "a JSON string");
    size_t len = json_reader_copy_string(reader, copy);
    copy[len] = '\0';
    return push(builder, (JsonValue){JSON_STRING, {.string = {copy, len}}});
}

/* An integer beyond 64 bits keeps its digits beside the double. */
static bool push_number(Builder *builder)
{
    Slice text = builder->reader.raw;
    JsonValue value = json_reader_number(&builder->reader);
    size_t digits = text.len > 0 && text.ptr[0] == '-';
    while (digits < text.len && json_is_digit(text.ptr[digits]))
        digits++;
    if (value.kind == JSON_DOUBLE && digits == text.len) {
        value.as.wide.digits = arena_copy_string(builder->arena, text);
        if (!value.as.wide.digits)
            return error_no_memory(builder->err, "a JSON number");
    }
    return push(builder, value);
}

/* The items since `first` become one array value. */
static bool close_array(Builder *builder, size_t first)
{
    size_t count = builder->count - first;
    JsonValue *items = NULL;
    if (count > 0) {
        items = arena_allocate_array(builder->arena, count, sizeof(JsonValue));
        if (!items)
            return error_no_memory(builder->err, "a JSON array");
        memcpy(items, builder->stack + first, count * sizeof(JsonValue));
    }
    builder->count = first;
    return push(builder, (JsonValue){JSON_ARRAY, {.array = {items, count}}});
}

/* The keys and values since `first` become one object value. */
static bool close_object(Builder *builder, size_t first)
{
    size_t count = (builder->count - first) / 2;
    JsonMember *members = NULL;
    if (count > 0) {
        members = arena_allocate_array(builder->arena, count, sizeof(JsonMember));
        if (!members)
            return error_no_memory(builder->err, "a JSON object");
    }
    for (size_t i = 0; i < count; i++) {
        const JsonValue *pair = &builder->stack[first + 2 * i];
        members[i] = (JsonMember){pair[0].as.string, pair[1]};
    }
    builder->count = first;
    return push(builder, (JsonValue){JSON_OBJECT, {.object = {members, count}}});
}

static bool take_token(Builder *builder, JsonToken token)
{
    size_t depth = builder->reader.depth;
    switch (token) {
    case JSON_TOKEN_NULL:
        return push(builder, (JsonValue){.kind = JSON_NULL});
    case JSON_TOKEN_TRUE:
    case JSON_TOKEN_FALSE:
        return push(builder, (JsonValue){JSON_BOOL, {.boolean = token == JSON_TOKEN_TRUE}});
    case JSON_TOKEN_NUMBER:
        return push_number(builder);
    case JSON_TOKEN_STRING:
    case JSON_TOKEN_KEY:
        return push_string(builder);
    case JSON_TOKEN_ARRAY_BEGIN:
    case JSON_TOKEN_OBJECT_BEGIN:
        builder->first[depth - 1] = builder->count;
        return true;
    case JSON_TOKEN_ARRAY_END: /* the reader has left the container: depth is its index */
        return close_array(builder, builder->first[depth]);
    case JSON_TOKEN_OBJECT_END:
        return close_object(builder, builder->first[depth]);
    default: /* ERROR: the reader has told; END does not come here */
        return false;
    }
}

bool json_parse(Slice text, Arena *arena, const JsonValue **out, Error *err)
{
    *out = NULL;
    Builder builder;
    json_reader_init(&builder.reader, text, err);
    builder.arena = arena;
    builder.stack = NULL;
    builder.count = builder.capacity = 0;
    builder.err = err;
    bool ok = false;
    for (;;) {
        JsonToken token = json_reader_next(&builder.reader);
        if (token == JSON_TOKEN_END)
            break;
        if (!take_token(&builder, token))
            goto cleanup;
    }
    JsonValue *root = arena_allocate(arena, sizeof(JsonValue));
    if (!root) {
        error_no_memory(err, "a JSON document");
        goto cleanup;
    }
    assert(builder.count == 1);
    *root = builder.stack[0];
    *out = root;
    ok = true;
cleanup:
    memory_free(builder.stack);
    return ok;
}

bool json_parse_optional(const char *directory, const char *name, Arena *arena,
                         const JsonValue **out, Error *err)
{
    Slice text;
    *out = NULL;
    if (!file_read_optional(directory, name, JSON_FILE_BYTES_MAX, arena, &text, err))
        return false;
    return !text.ptr || json_parse(text, arena, out, err) ||
           error_prefix(err, "%s/%s", directory, name);
}

/* ---- Looking ---- */

const JsonValue *json_get(const JsonValue *object, Slice key)
{
    if (!json_is(object, JSON_OBJECT))
        return NULL;
    for (size_t i = object->as.object.count; i > 0; i--) {
        const JsonMember *member = &object->as.object.members[i - 1];
        if (slice_equal(member->key, key))
            return &member->value;
    }
    return NULL;
}

const JsonValue *json_get_present(const JsonValue *object, const char *key)
{
    const JsonValue *value = json_get(object, slice_of(key));
    return json_is(value, JSON_NULL) ? NULL : value;
}

bool json_is(const JsonValue *value, JsonKind kind)
{
    return value && value->kind == kind;
}

bool json_is_number(const JsonValue *value)
{
    return value &&
           (value->kind == JSON_INT || value->kind == JSON_UINT || value->kind == JSON_DOUBLE);
}

double json_to_double(const JsonValue *value)
{
    assert(json_is_number(value));
    switch (value->kind) {
    case JSON_INT:
        return (double)value->as.integer;
    case JSON_UINT:
        return (double)value->as.unsigned_integer;
    default:
        return value->as.number;
    }
}

bool json_to_int64(const JsonValue *value, int64_t *out)
{
    if (json_is(value, JSON_INT)) {
        *out = value->as.integer;
        return true;
    }
    if (!json_is(value, JSON_DOUBLE))
        return false;
    double number = value->as.number;
    /* Both bounds are exact doubles: -2^63 fits, 2^63 does not. A NaN fails the comparison. */
    if (!(number >= -0x1p63 && number < 0x1p63) || trunc(number) != number)
        return false;
    *out = (int64_t)number;
    return true;
}

const char *json_kind_name(JsonKind kind)
{
    static const char *const names[] = {
        [JSON_NULL] = "null",    [JSON_BOOL] = "boolean",  [JSON_INT] = "integer",
        [JSON_UINT] = "integer", [JSON_DOUBLE] = "number", [JSON_STRING] = "string",
        [JSON_ARRAY] = "array",  [JSON_OBJECT] = "object"};
    return (size_t)kind < ARRAY_COUNT(names) ? names[kind] : "unknown";
}

/* ---- Reading config-like objects ---- */

enum { FOUND_MAX = 64 };

/* What a message says about a value: a number itself, of anything else the kind. */
static const char *describe(const JsonValue *value, char out[FOUND_MAX])
{
    char text[JSON_NUMBER_TEXT_MAX];
    if (value->kind == JSON_INT) {
        snprintf(out, FOUND_MAX, "%" PRId64, value->as.integer);
    } else if (value->kind == JSON_UINT) {
        snprintf(out, FOUND_MAX, "%" PRIu64, value->as.unsigned_integer);
    } else if (value->kind == JSON_DOUBLE && isfinite(value->as.number)) {
        size_t len = json_format_double(value->as.number, text);
        snprintf(out, FOUND_MAX, "%.*s", (int)len, text);
    } else {
        snprintf(out, FOUND_MAX, "%s",
                 value->kind == JSON_DOUBLE ? "a number beyond double"
                                            : json_kind_name(value->kind));
    }
    return out;
}

static bool refuse(Error *err, const char *key, const JsonValue *value, const char *expected)
{
    char found[FOUND_MAX];
    return error_set(err, ERROR_INVALID, "%s: found %s, expected %s", key, describe(value, found),
                     expected);
}

bool json_read_bool(const JsonValue *object, const char *key, bool *out, Error *err)
{
    const JsonValue *value = json_get_present(object, key);
    if (!value)
        return true;
    if (value->kind != JSON_BOOL)
        return refuse(err, key, value, "a boolean");
    *out = value->as.boolean;
    return true;
}

bool json_read_int(const JsonValue *object, const char *key, int64_t min, int64_t max, int64_t *out,
                   Error *err)
{
    const JsonValue *value = json_get_present(object, key);
    if (!value)
        return true;
    int64_t number;
    if (!json_to_int64(value, &number) || number < min || number > max) {
        char expected[96];
        snprintf(expected, sizeof(expected), "an integer from %" PRId64 " to %" PRId64, min, max);
        return refuse(err, key, value, expected);
    }
    *out = number;
    return true;
}

bool json_read_double(const JsonValue *object, const char *key, double *out, Error *err)
{
    const JsonValue *value = json_get_present(object, key);
    if (!value)
        return true;
    if (!json_is_number(value) || !isfinite(json_to_double(value)))
        return refuse(err, key, value, "a finite number");
    *out = json_to_double(value);
    return true;
}

bool json_read_string(const JsonValue *object, const char *key, Slice *out, Error *err)
{
    const JsonValue *value = json_get_present(object, key);
    if (!value)
        return true;
    if (value->kind != JSON_STRING)
        return refuse(err, key, value, "a string");
    *out = value->as.string;
    return true;
}
