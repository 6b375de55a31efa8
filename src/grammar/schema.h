/* schema: JSON Schema to an automaton.
 *
 * What a place in the document must satisfy is a list of schema objects, all of which hold there (a
 * SchemaList): allOf and $ref add members, anyOf and oneOf make one list per branch. A list is
 * merged into one set of limits per type and compiled; lists for objects, arrays and alternatives
 * become rules, found again by their members, which is how recursion ends. Rules are compiled from
 * a queue, so depth of references costs no stack.
 *
 *     schema_relax    leaves out what cannot be enforced, where a part may be
 *     schema_check    keywords, their types, references: before the compiler reads them
 *     schema_list     flattening of $ref and allOf, merging
 *     schema_number, schema_string, schema_object, schema_value    the automaton of each type */
#ifndef GRAMMAR_SCHEMA_H
#define GRAMMAR_SCHEMA_H

#include "char_dfa.h"
#include "json.h"
#include "text.h"

enum {
    SCHEMA_RULES_MAX = 1 << 14,
    SCHEMA_LIST_MAX = 256,     /* schemas that hold at one place */
    SCHEMA_WORK_MAX = 4 << 20, /* list members looked at */
    SCHEMA_ARENA_BYTES_MAX = 64 << 20,
    SCHEMA_LENGTH_MAX = 1 << 16, /* of minLength, maxLength */
    SCHEMA_ITEMS_MAX = 1 << 15,  /* of minItems, maxItems */
    SCHEMA_IGNORED_MAX = 20,
    SCHEMA_PLACE_BYTES_MAX = 300,
};

typedef struct SchemaPlace SchemaPlace;
struct SchemaPlace { /* where a schema stands, for messages: a list from the leaf up */
    const SchemaPlace *parent;
    Slice name;
    size_t index; /* used when name is empty */
};

typedef struct SchemaChain SchemaChain;
struct SchemaChain { /* the schemas that led to one at the same place of the document */
    const SchemaChain *up;
    const JsonValue *schema;
};

typedef struct SchemaMember {
    const JsonValue *schema; /* an object, or a boolean before flattening */
    const SchemaPlace *place;
    const SchemaChain *chain;
    bool any_of_done, one_of_done, is_followed; /* $ref and allOf are in the list already */
} SchemaMember;

typedef struct SchemaList {
    const SchemaMember *members;
    size_t count;
} SchemaList;

typedef struct SchemaRule {
    SchemaList list; /* flat */
    uint32_t rule;
    uint64_t hash;
} SchemaRule;

typedef struct SchemaStringRule {
    Slice key; /* what holds for the string, written down */
    uint32_t rule;
} SchemaStringRule;

typedef struct SchemaCompiler {
    Text *text;
    Automaton *automaton;
    Arena arena;
    const JsonValue *root;
    JsonValue relaxed; /* the root, where it is not strict */
    bool is_strict;    /* what cannot be enforced is an error */
    Slice ignored[SCHEMA_IGNORED_MAX];
    size_t n_ignored;
    SchemaRule *rules;
    size_t n_rules, rules_capacity, n_compiled;
    uint32_t *slots;
    size_t n_slots;
    const JsonValue **checked; /* set of schemas that schema_check has seen */
    size_t n_checked, n_checked_slots;
    SchemaStringRule *string_rules; /* patterns and formats compiled already */
    size_t n_string_rules, string_rules_capacity;
    size_t work;
    char contradiction[SCHEMA_PLACE_BYTES_MAX + 100]; /* the first thing nothing satisfies; "" */
    Error *err;
} SchemaCompiler;

/* ---- schema_check.c ---- */

typedef enum SchemaValueKind {
    SCHEMA_VALUE_ANY,    /* not looked at */
    SCHEMA_VALUE_TYPE,   /* a type name or an array of them */
    SCHEMA_VALUE_VALUES, /* an array with elements */
    SCHEMA_VALUE_SCHEMA,
    SCHEMA_VALUE_SCHEMAS, /* an array of schemas, not empty */
    SCHEMA_VALUE_NAMED,   /* an object of schemas */
    SCHEMA_VALUE_NAMES,   /* an array of strings */
    SCHEMA_VALUE_COUNT,   /* an integer >= 0 */
    SCHEMA_VALUE_NUMBER,
    SCHEMA_VALUE_POSITIVE, /* a number > 0 */
    SCHEMA_VALUE_STRING,
    SCHEMA_VALUE_REFERENCE,
} SchemaValueKind;

/* Of a keyword that is not known: SCHEMA_VALUE_ANY. */
SchemaValueKind schema_value_kind(Slice keyword);
/* Tells the caller that the keyword is not enforced; each name once, the first 20 of them. */
void schema_note_ignored(SchemaCompiler *c, Slice keyword);

/* "#/properties/a/minimum" */
void schema_print_place(const SchemaPlace *place, const char *keyword,
                        char out[SCHEMA_PLACE_BYTES_MAX]);
/* ERROR_INVALID "#/...: keyword: what"; false. */
bool schema_fail(SchemaCompiler *c, const SchemaPlace *place, const char *keyword,
                 const char *what);
/* Remembers the first contradiction, for when nothing satisfies the whole. */
void schema_note_contradiction(SchemaCompiler *c, const SchemaPlace *place, const char *keyword,
                               const char *what);
const SchemaPlace *schema_place(SchemaCompiler *c, const SchemaPlace *parent, Slice name,
                                size_t index);
/* Checks a schema and all below it. */
bool schema_check(SchemaCompiler *c, const JsonValue *schema, const SchemaPlace *place) WARN_UNUSED;
bool schema_resolve(SchemaCompiler *c, Slice reference, const SchemaPlace *place,
                    const JsonValue **out) WARN_UNUSED;

/* ---- schema_relax.c ---- */

/* The schema without what cannot be enforced, in c->arena; depth is that of the document. */
bool schema_relax(SchemaCompiler *c, const JsonValue *schema, JsonValue *out) WARN_UNUSED;

/* ---- schema_list.c ---- */

enum {
    SCHEMA_NULL = 1,
    SCHEMA_BOOLEAN = 2,
    SCHEMA_OBJECT = 4,
    SCHEMA_ARRAY = 8,
    SCHEMA_STRING = 16,
    SCHEMA_INTEGER = 32, /* whole numbers */
    SCHEMA_NUMBER = 64,  /* any number; the bit of integers is then set too */
    SCHEMA_ALL = 127
};

typedef struct SchemaBounds {
    bool has_low, has_high, low_is_exclusive, high_is_exclusive;
    JsonValue low, high;
    uint64_t multiple; /* of whole numbers; 0: none */
} SchemaBounds;

typedef struct SchemaLimits { /* what a flat list says together */
    unsigned types;
    SchemaBounds bounds;
    size_t min_length, max_length, min_items, max_items, min_properties;
    size_t n_string_rules;    /* patterns and enforced formats */
    const SchemaPlace *place; /* of the first member */
} SchemaLimits;

/* One schema as a list of its own, at a place of the document that nothing has led to yet. */
bool schema_list_of(SchemaCompiler *c, const JsonValue *schema, const SchemaPlace *place,
                    SchemaList *out) WARN_UNUSED;
/* Follows $ref and allOf, drops `true`, sorts. *is_never: a `false` is among them. */
bool schema_list_flatten(SchemaCompiler *c, SchemaList list, SchemaList *out,
                         bool *is_never) WARN_UNUSED;
bool schema_list_append(SchemaCompiler *c, SchemaList list, const SchemaMember *member,
                        SchemaList *out) WARN_UNUSED;
bool schema_list_merge(SchemaCompiler *c, SchemaList list, SchemaLimits *out) WARN_UNUSED;
unsigned schema_types_of(const JsonValue *type);
const SchemaMember *schema_find_keyword(SchemaList list, const char *keyword,
                                        const JsonValue **value);
/* -1, 0, 1; numbers only */
int schema_compare_numbers(const JsonValue *a, const JsonValue *b);

/* ---- The automata; each returns the start of what is followed by next ---- */

/* Any document that the list accepts: schema.c */
uint32_t schema_add_list(SchemaCompiler *c, SchemaList list, uint32_t next);
uint32_t schema_add_numbers(SchemaCompiler *c, const SchemaLimits *limits, uint32_t next);
uint32_t schema_add_strings(SchemaCompiler *c, SchemaList list, const SchemaLimits *limits,
                            uint32_t next);
uint32_t schema_add_objects(SchemaCompiler *c, SchemaList list, const SchemaLimits *limits,
                            uint32_t next);
uint32_t schema_add_arrays(SchemaCompiler *c, SchemaList list, const SchemaLimits *limits,
                           uint32_t next);
/* The values of enum and const that the rest of the list accepts. */
uint32_t schema_add_values(SchemaCompiler *c, SchemaList list, uint32_t next);

/* Do pattern and format of the schema accept s? */
bool schema_string_fits(SchemaCompiler *c, const JsonValue *schema, const SchemaPlace *place,
                        Slice s, bool *fits) WARN_UNUSED;
bool schema_format_is_enforced(Slice format);

/* ---- schema.c ---- */

/* Compiles root (a schema object or boolean) into c->text and sets the automaton's root. The schema
 * must outlive the compilation. */
bool schema_compile(SchemaCompiler *c, Error *err) WARN_UNUSED;
void schema_compiler_init(SchemaCompiler *c, Text *text, const JsonValue *root, bool is_strict);
void schema_compiler_reset(SchemaCompiler *c);

#endif
