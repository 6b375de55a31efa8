/* json: RFC 8259, strictly, in both directions.
 *
 * Two ways to read. The pull reader (JsonReader) walks a text token by token and allocates nothing:
 * for files of many megabytes. The tree (json_parse) puts a whole document into an arena: for
 * requests and configs; values are immutable once built and die with the arena. jinja shares the
 * tree.
 *
 * Strict means: valid UTF-8 only, no lone surrogate escapes, no NaN, comments, trailing commas,
 * leading zeros or trailing bytes. Object keys keep their order; duplicate keys are kept in the
 * tree and the last one wins in look-ups. Integers that fit 64 bits are exact; all other numbers
 * are doubles (a tree keeps a longer integer's digits too); a number beyond double becomes an
 * infinity, which the caller refuses where it matters. It knows nothing of any schema. Threads:
 * any; a reader, writer or tree belongs to one at a time. */
#ifndef JSON_H
#define JSON_H

#include "base.h"

enum {
    JSON_DEPTH_MAX = 256,                  /* nested arrays and objects, requests and files alike */
    JSON_FILE_BYTES_MAX = 64 << 20,        /* json_parse_optional */
    JSON_FILE_TREES_BYTES_MAX = 512 << 20, /* an arena for such files */
};

/* ---- Values ---- */

typedef enum JsonKind {
    JSON_NULL,
    JSON_BOOL,
    JSON_INT,    /* fits int64_t */
    JSON_UINT,   /* above INT64_MAX, fits uint64_t */
    JSON_DOUBLE, /* has a fraction or exponent, or is an integer beyond 64 bits; may be +-inf if the
                    text overflows a double (1e999) */
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT
} JsonKind;

typedef struct JsonValue JsonValue;
typedef struct JsonMember JsonMember;

struct JsonValue {
    JsonKind kind;
    union {
        bool boolean;
        int64_t integer;
        uint64_t unsigned_integer;
        double number;
        struct {
            double number; /* the same */
            const char
                *digits; /* in a tree, an integer beyond 64 bits as it was written; or NULL */
        } wide;
        Slice string; /* UTF-8, may hold NUL; followed by a NUL that is not counted */
        struct {
            const JsonValue *items;
            size_t count;
        } array;
        struct {
            const JsonMember *members;
            size_t count;
        } object;
    } as;
};

struct JsonMember {
    Slice key;
    JsonValue value;
};

/* Parses a whole document into arena. Errors: ERROR_INVALID with "line L column C: ..." ;
 * ERROR_LIMIT for depth; ERROR_MEMORY when the arena is exhausted. *out is NULL on failure. */
bool json_parse(Slice text, Arena *arena, const JsonValue **out, Error *err) WARN_UNUSED;

/* The same of directory/name, whose text goes to arena too; errors name the file. *out is NULL when
 * there is no such file. */
bool json_parse_optional(const char *directory, const char *name, Arena *arena,
                         const JsonValue **out, Error *err) WARN_UNUSED;

/* The last member of that name, or NULL; NULL too when object is NULL or not an object. */
const JsonValue *json_get(const JsonValue *object, Slice key);
/* As json_get, but a member that is null counts as absent. */
const JsonValue *json_get_present(const JsonValue *object, const char *key);
bool json_is(const JsonValue *value, JsonKind kind); /* false for NULL */
bool json_is_number(const JsonValue *value);         /* INT, UINT or DOUBLE */
/* Any number as double; value must be a number. */
double json_to_double(const JsonValue *value);
/* An INT, or a finite DOUBLE with zero fraction that fits (5.0): true and *out. */
bool json_to_int64(const JsonValue *value, int64_t *out) WARN_UNUSED;
const char *
json_kind_name(JsonKind kind); /* "null", "boolean", "integer", "number", "string", ... */

/* Reading config-like objects: absent or null keeps *out (the default) and succeeds; a wrong kind
 * or range is ERROR_INVALID naming the key, what was found and what was expected. */
bool json_read_bool(const JsonValue *object, const char *key, bool *out, Error *err) WARN_UNUSED;
bool json_read_int(const JsonValue *object, const char *key, int64_t min, int64_t max, int64_t *out,
                   Error *err) WARN_UNUSED;
bool json_read_double(const JsonValue *object, const char *key, double *out,
                      Error *err) WARN_UNUSED;
bool json_read_string(const JsonValue *object, const char *key, Slice *out, Error *err) WARN_UNUSED;

/* ---- Pull reader ---- */

typedef enum JsonToken {
    JSON_TOKEN_ERROR, /* the reader's error is set; every further call returns this again */
    JSON_TOKEN_END,   /* the document is complete and nothing follows it */
    JSON_TOKEN_NULL,
    JSON_TOKEN_TRUE,
    JSON_TOKEN_FALSE,
    JSON_TOKEN_NUMBER,
    JSON_TOKEN_STRING,
    JSON_TOKEN_KEY, /* a member's name; its value follows */
    JSON_TOKEN_ARRAY_BEGIN,
    JSON_TOKEN_ARRAY_END,
    JSON_TOKEN_OBJECT_BEGIN,
    JSON_TOKEN_OBJECT_END
} JsonToken;

/* Caller-owned; borrows the text. Fields are private but for `raw` and `has_escapes`. */
typedef struct JsonReader {
    const char *start, *at, *end;
    Slice raw; /* of the last NUMBER, STRING or KEY: its bytes, without the quotes, escapes kept */
    bool has_escapes; /* of the last STRING or KEY: raw holds a backslash */
    uint8_t stack[JSON_DEPTH_MAX];
    size_t depth;
    uint8_t state;
    Error *err;
} JsonReader;

/* err receives the first fault and must outlive the reader. */
void json_reader_init(JsonReader *reader, Slice text, Error *err);
JsonToken json_reader_next(JsonReader *reader);
/* Skips the value that comes next (after a KEY, or the next array element): false on error. */
bool json_reader_skip_value(JsonReader *reader) WARN_UNUSED;
/* Byte offset of the next token, and the one just behind the last: around json_reader_skip_value
 * they cut a raw value out of the text. */
size_t json_reader_offset(const JsonReader *reader);
size_t json_reader_end_offset(const JsonReader *reader);
/* Copies the last STRING or KEY with escapes resolved into out, which has room for raw.len bytes
 * (the decoded form is never longer). Returns the decoded length. Cannot fail: the reader checked.
 */
size_t json_reader_copy_string(const JsonReader *reader, char *out);
/* The last NUMBER as a value (INT, UINT or DOUBLE). */
JsonValue json_reader_number(const JsonReader *reader);

/* ---- Writer ---- */

/* Appends JSON to a buffer, putting commas and colons itself. Misuse (a value where a key is due)
 * is asserted. Compact unless indent > 0. Sticky failure lives in the buffer. Beyond JSON_DEPTH_MAX
 * it fails. Control characters, U+007F, U+0085, U+2028 and U+2029 are written as escapes, the short
 * ones where JSON has them (some clients split lines at them); ill-formed UTF-8 becomes U+FFFD;
 * other characters are raw. Doubles use the shortest text that reads back to the same bits; NaN and
 * infinities become null. */
typedef struct JsonWriter {
    Buffer *out;
    uint8_t stack[JSON_DEPTH_MAX + 1];
    size_t depth;
    bool first;     /* no element written yet in the innermost container */
    bool after_key; /* a key was written, its value is due */
    unsigned indent;
} JsonWriter;

void json_writer_init(JsonWriter *writer, Buffer *out, unsigned indent);
void json_write_object_begin(JsonWriter *writer);
void json_write_object_end(JsonWriter *writer);
void json_write_array_begin(JsonWriter *writer);
void json_write_array_end(JsonWriter *writer);
void json_write_key(JsonWriter *writer, const char *key);
void json_write_key_slice(JsonWriter *writer, Slice key);
void json_write_null(JsonWriter *writer);
void json_write_bool(JsonWriter *writer, bool value);
void json_write_int(JsonWriter *writer, int64_t value);
void json_write_uint(JsonWriter *writer, uint64_t value);
void json_write_double(JsonWriter *writer, double value);
/* A float32 in the shortest form that reads back to the same float (at most 9 digits). */
void json_write_float(JsonWriter *writer, float value);
void json_write_string(JsonWriter *writer, Slice value);
void json_write_text(JsonWriter *writer, const char *c_string);
void json_write_value(JsonWriter *writer, const JsonValue *value);

/* Appends s as a quoted JSON string by the writer's rules. */
void json_append_string(Buffer *out, Slice s);
/* Shortest round-trip text of a double, laid out as Python's repr does: "1.0" keeps its ".0",
 * exponents below -4 or above 15 as in "1e-05" and "1e+16". Not NUL-terminated. Returns the length.
 */
enum { JSON_NUMBER_TEXT_MAX = 32 };
size_t json_format_double(double value, char out[JSON_NUMBER_TEXT_MAX]);

#endif
