/* Values of one rendering. Private to the room.
 *
 * A value is 24 bytes, copied freely; what it points to lives in the rendering's arena (or, for
 * strings, in the template or the caller's JSON) and is never freed singly. Lists and dicts are
 * shared by reference, as in Python. Strings are always valid UTF-8: the source and the variables
 * are checked on entry and every operation cuts between code points, so nothing below re-checks.
 *
 * Nested values may be deep, wide through sharing, or cyclic (a template can append a list to
 * itself): every walk over them counts its depth against JINJA_VALUE_DEPTH_MAX and its work as
 * steps. */
#ifndef JINJA_VALUE_H
#define JINJA_VALUE_H

#include "jinja.h"

typedef struct JinjaMachine JinjaMachine;
typedef struct JinjaNode JinjaNode;
typedef struct JinjaBuiltin JinjaBuiltin;

enum { JINJA_VALUE_DEPTH_MAX = 400 };

typedef enum JinjaKind {
    JINJA_ABSENT, /* no value at all: an argument not given, a variable not set */
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_LONG, /* an integer beyond int64_t, see jinja_integer.c */
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_DICT,
    JINJA_RANGE,
    JINJA_GENERATOR, /* a result that can be walked once: map, select, items, reversed... */
    JINJA_VIEW,      /* dict.keys(), .values(), .items() */
    JINJA_NAMESPACE,
    JINJA_MACRO,
    JINJA_LOOP,
    JINJA_METHOD,   /* a method bound to its object */
    JINJA_FUNCTION, /* a global function */
    JINJA_CYCLER,
    JINJA_JOINER
} JinjaKind;

/* Why a value is undefined; decides the message when it is used where a value is needed. */
typedef enum JinjaMissing {
    JINJA_MISSING_VARIABLE,
    JINJA_MISSING_ATTRIBUTE, /* detail's upper bits: kind of the object */
    JINJA_MISSING_ELEMENT,
    JINJA_MISSING_PARAMETER,
    JINJA_MISSING_UNSAFE,
    JINJA_MISSING_HINT /* the name is the whole message */
} JinjaMissing;

typedef enum JinjaViewKind { JINJA_VIEW_KEYS, JINJA_VIEW_VALUES, JINJA_VIEW_ITEMS } JinjaViewKind;

typedef struct JinjaList JinjaList;
typedef struct JinjaDict JinjaDict;
typedef struct JinjaRange JinjaRange;
typedef struct JinjaIterator JinjaIterator;
typedef struct JinjaMacro JinjaMacro;
typedef struct JinjaLoop JinjaLoop;
typedef struct JinjaMethod JinjaMethod;

typedef struct JinjaValue {
    JinjaKind kind;
    uint32_t detail; /* STRING: 1 = markup (from `safe` or `escape`); UNDEFINED: JinjaMissing, kind
                        << 8; VIEW: JinjaViewKind; TUPLE: 1 = of groupby, its items have names */
    union {
        bool boolean;
        int64_t integer;
        double number;
        Slice string;    /* STRING; LONG: its digits; UNDEFINED: the name that was looked for */
        JinjaList *list; /* LIST, TUPLE, CYCLER (its values), JOINER (separator, used?) */
        JinjaDict *dict; /* DICT, NAMESPACE, VIEW */
        JinjaRange *range;
        JinjaIterator *iterator; /* GENERATOR */
        JinjaMacro *macro;
        JinjaLoop *loop;
        JinjaMethod *method;
        const JinjaBuiltin *function;
    } as;
} JinjaValue;

struct JinjaList {
    JinjaValue *items;
    size_t count, capacity;
};

typedef struct JinjaEntry {
    JinjaValue key, value;
} JinjaEntry;

/* Entries in insertion order; above a handful an open-addressing index of entry number + 1. */
struct JinjaDict {
    JinjaEntry *entries;
    size_t count, capacity;
    uint32_t *index;
    size_t index_size; /* power of two, 0 = none */
};

struct JinjaRange {
    int64_t start, stop, step;
    size_t count;
};

struct JinjaMethod {
    JinjaValue self;
    const JinjaBuiltin *builtin;
};

/* Walks any iterable without building a list. A generator's iterator is shared, so that a second
 * walk finds it exhausted. */
struct JinjaIterator {
    JinjaValue source;
    size_t at;            /* item number; byte offset in a string */
    JinjaIterator *inner; /* of a generator: the shared one */
};

/* ---- Making values ---- */

#define JINJA_VALUE_ABSENT ((JinjaValue){.kind = JINJA_ABSENT})
#define JINJA_VALUE_NONE ((JinjaValue){.kind = JINJA_NONE})

JinjaValue jinja_bool(bool value);
JinjaValue jinja_int(int64_t value);
JinjaValue jinja_float(double value);
JinjaValue jinja_string(Slice text);
JinjaValue jinja_undefined(JinjaMissing why, Slice name);
JinjaValue jinja_undefined_of(const JinjaValue *object,
                              Slice name); /* missing attribute or element */

/* The rest allocate: false with the machine's error set. */
bool jinja_string_copy(JinjaMachine *m, Slice text, JinjaValue *out) WARN_UNUSED;
/* len writable bytes that become a string's text; NULL on failure. */
char *jinja_string_new(JinjaMachine *m, size_t len, JinjaValue *out) WARN_UNUSED;
bool jinja_list_new(JinjaMachine *m, JinjaKind kind, size_t capacity, JinjaValue *out) WARN_UNUSED;
bool jinja_list_append(JinjaMachine *m, JinjaList *list, const JinjaValue *item) WARN_UNUSED;
bool jinja_pair_new(JinjaMachine *m, const JinjaValue *a, const JinjaValue *b,
                    JinjaValue *out) WARN_UNUSED; /* a tuple of two */
/* A generator over a list's items, or over anything iterable. */
bool jinja_generator_new(JinjaMachine *m, const JinjaValue *source, JinjaValue *out) WARN_UNUSED;
bool jinja_dict_new(JinjaMachine *m, size_t capacity, JinjaValue *out) WARN_UNUSED;
/* Adds or replaces. Fails on a key that Python cannot hash. */
bool jinja_dict_set(JinjaMachine *m, JinjaDict *dict, const JinjaValue *key,
                    const JinjaValue *value) WARN_UNUSED;
/* *found is NULL when there is none. Fails on a key that Python cannot hash. */
bool jinja_dict_get(JinjaMachine *m, const JinjaDict *dict, const JinjaValue *key,
                    JinjaEntry **found) WARN_UNUSED;
/* Cannot fail, but counts its work. */
JinjaEntry *jinja_dict_get_text(JinjaMachine *m, const JinjaDict *dict, Slice key);
bool jinja_dict_remove(JinjaMachine *m, JinjaDict *dict, JinjaEntry *entry) WARN_UNUSED;
bool jinja_value_from_json(JinjaMachine *m, const JsonValue *json, JinjaValue *out) WARN_UNUSED;

/* ---- Asking ---- */

bool jinja_is_undefined(const JinjaValue *value);
bool jinja_is_string(const JinjaValue *value);
bool jinja_is_integer(const JinjaValue *value); /* BOOL or INT, as Python's int; *not* LONG */
bool jinja_is_number(const JinjaValue *value);  /* BOOL, INT, LONG, FLOAT */
bool jinja_is_iterable(const JinjaValue *value);
bool jinja_is_callable(const JinjaValue *value);
int64_t jinja_integer_of(const JinjaValue *value);    /* of a BOOL or INT */
double jinja_number_of(const JinjaValue *value);      /* of any number */
const char *jinja_type_name(const JinjaValue *value); /* Python's: "str", "NoneType" */
bool jinja_truth(const JinjaValue *value);
/* len(); false (with no error set) when the value has no length. */
bool jinja_length(const JinjaValue *value, size_t *out) WARN_UNUSED;

/* == of Python. Fails on depth and steps only. */
bool jinja_equal(JinjaMachine *m, const JinjaValue *a, const JinjaValue *b, bool *out) WARN_UNUSED;
/* Three-way order for < > and sorting; what is the operator's text for the message. A comparison
 * with NaN gives 2, which is neither. */
bool jinja_compare(JinjaMachine *m, const JinjaValue *a, const JinjaValue *b, const char *what,
                   int *out) WARN_UNUSED;
/* item in container */
bool jinja_contains(JinjaMachine *m, const JinjaValue *container, const JinjaValue *item,
                    bool *out) WARN_UNUSED;

/* ---- Walking ---- */

/* Fails when the value is not iterable. */
bool jinja_iterate(JinjaMachine *m, const JinjaValue *value, JinjaIterator *out) WARN_UNUSED;
/* The next item; *more false at the end. Fails on steps and memory. */
bool jinja_next(JinjaMachine *m, JinjaIterator *it, JinjaValue *out, bool *more) WARN_UNUSED;
/* All items as a new list value. */
bool jinja_to_list(JinjaMachine *m, const JinjaValue *value, JinjaValue *out) WARN_UNUSED;

/* ---- Text by code points ---- */

size_t jinja_text_offset(Slice text,
                         size_t position); /* byte offset of the position-th code point */
uint32_t jinja_text_at(Slice text, size_t offset, size_t *len);
bool jinja_is_space(uint32_t code_point); /* Python's str.isspace() */
/* First occurrence at or after from, or SIZE_MAX; charges steps for its work. */
bool jinja_text_find(JinjaMachine *m, Slice text, Slice needle, size_t from,
                     size_t *at) WARN_UNUSED;

#endif
