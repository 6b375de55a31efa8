/* The state of one rendering and the seam between the evaluator and the built-in functions.
 * Private.
 *
 * A built-in is a table row: a name, its parameters and a C function. The evaluator binds
 * positional and keyword arguments to the parameters, so that the function finds them by position.
 */
#ifndef JINJA_MACHINE_H
#define JINJA_MACHINE_H

#include "jinja_tree.h"

typedef struct JinjaVariable {
    uint32_t name;
    JinjaValue value;
} JinjaVariable;

/* The variables of one block; the template's own scope is an array by name number instead. Scopes
 * are linked to the one around them in the source, so a macro sees where it was written, not its
 * caller. */
typedef struct JinjaScope {
    struct JinjaScope *parent; /* NULL: the template's own */
    JinjaVariable *items;
    size_t count, capacity;
    bool captured; /* a macro refers to it: it must not be reused for the next iteration */
} JinjaScope;

struct JinjaMacro {
    const JinjaMacroNode *node;
    JinjaScope *scope; /* where it was defined */
};

/* What `loop` shows. With an inline `if` the items are filtered as they are asked for, one ahead at
 * most, because the test may depend on what the body does. */
struct JinjaLoop {
    const JinjaForNode *node;
    JinjaIterator it;
    JinjaScope *outer; /* scope around the loop */
    JinjaValue before, current, after;
    bool has_after;     /* after was fetched but not yet used */
    int64_t index0;     /* -1 before the first item */
    JinjaValue length;  /* ABSENT until asked for */
    JinjaValue changed; /* what loop.changed() saw last */
    unsigned depth0;
};

typedef enum JinjaSignal {
    JINJA_SIGNAL_NONE,
    JINJA_SIGNAL_BREAK,
    JINJA_SIGNAL_CONTINUE
} JinjaSignal;

enum { JINJA_BUILDERS = 4 };

struct JinjaMachine {
    const JinjaTemplate *tmpl;
    const JinjaContext *context;
    Arena arena;
    Buffer out;  /* what is printed; captures are cut off its end */
    Buffer text; /* scratch for building strings, used as a stack */
    Error *err;
    uint64_t steps, steps_max;
    unsigned depth;      /* nodes being evaluated */
    unsigned call_depth; /* macros and recursive loops being rendered */
    uint32_t line;
    JinjaSignal signal;
    uint64_t random_state; /* of the filter random */
    bool autoescape;       /* inside a block that switched it on, wherever that stands */
    JinjaValue captured;   /* the text a filter block's chain of filters begins with */
    JinjaScope *scope;     /* innermost; NULL = the template's own */
    JinjaValue *variables; /* the template's own scope, by name number */
    /* Strings that grow by `a ~ b` again and again get spare room, so that the next concatenation
     * to the very same text appends in place: others still see their shorter prefix. */
    struct {
        char *ptr;
        size_t used, capacity;
    } builders[JINJA_BUILDERS];
    unsigned next_builder;
};

/* ---- Failing and limits (each returns false) ---- */

bool jinja_fail(JinjaMachine *m, const char *format, ...) PRINTF_LIKE(2, 3);
/* A value cannot take part in what: explains an undefined value, else "'TYPE' object what". */
bool jinja_fail_value(JinjaMachine *m, const JinjaValue *value, const char *what);
bool jinja_fail_limit(JinjaMachine *m, const char *what, size_t limit);
/* Counts work; false when the rendering has used its steps. */
bool jinja_charge(JinjaMachine *m, size_t steps) WARN_UNUSED;
/* The same where failing is not possible: the next charge fails instead. */
void jinja_note_work(JinjaMachine *m, size_t steps);
void *jinja_allocate(JinjaMachine *m, size_t count, size_t size) WARN_UNUSED;

/* ---- Scratch text: mark = m->text.len; append to m->text; finish(mark) ---- */

bool jinja_text_finish(JinjaMachine *m, size_t mark, JinjaValue *out) WARN_UNUSED;
/* Cuts the printed output back to mark and makes what stood there a string. */
bool jinja_capture_finish(JinjaMachine *m, size_t mark, JinjaValue *out) WARN_UNUSED;

/* ---- Built-ins ---- */

enum { JINJA_PARAMETERS_MAX = 6 };

typedef struct JinjaKeyword {
    Slice name;
    JinjaValue value;
} JinjaKeyword;

typedef struct JinjaArguments {
    const JinjaValue *items;
    size_t count;
    const JinjaKeyword *keywords;
    size_t keyword_count;
} JinjaArguments;

typedef struct JinjaCall {
    const JinjaBuiltin *builtin;
    JinjaValue self; /* the filtered or tested value, the method's object */
    const JinjaArguments *given;
    JinjaValue args[JINJA_PARAMETERS_MAX]; /* bound by name; ABSENT when not given */
} JinjaCall;

struct JinjaBuiltin {
    const char *name;
    const char
        *parameters; /* "old new ?count": ? begins the optional ones; NULL: takes `given` itself */
    bool (*call)(JinjaMachine *m, const JinjaCall *call, JinjaValue *out);
};

const JinjaBuiltin *jinja_filter_find(Slice name);
const JinjaBuiltin *jinja_test_find(Slice name);
const JinjaBuiltin *jinja_global_at(size_t at); /* NULL after the last */
/* The method of that name of this kind of value; *unsafe: Python has it but the sandbox refuses it.
 */
const JinjaBuiltin *jinja_method_find(const JinjaValue *self, Slice name, bool *unsafe);

/* Those that return a string, or strings, return markup when their string is. */
bool jinja_is_string_method(const JinjaBuiltin *builtin);

bool jinja_builtin_call(JinjaMachine *m, const JinjaBuiltin *builtin, const JinjaValue *self,
                        const JinjaArguments *given, JinjaValue *out) WARN_UNUSED;
/* Calls any callable value. */
bool jinja_call_value(JinjaMachine *m, const JinjaValue *callee, const JinjaArguments *given,
                      JinjaValue *out) WARN_UNUSED;

/* Arguments of a bound call, with Python's conversions; each names the built-in when it fails. */
bool jinja_arg_integer(JinjaMachine *m, const JinjaCall *call, size_t at, int64_t fallback,
                       int64_t *out) WARN_UNUSED;
bool jinja_arg_string(JinjaMachine *m, const JinjaCall *call, size_t at, Slice fallback,
                      Slice *out) WARN_UNUSED;
bool jinja_arg_truth(const JinjaCall *call, size_t at, bool fallback);

/* ---- Evaluation ---- */

bool jinja_evaluate(JinjaMachine *m, const JinjaNode *node, JinjaValue *out) WARN_UNUSED;
bool jinja_evaluate_arguments(JinjaMachine *m, const JinjaCallNodes *nodes,
                              JinjaArguments *out) WARN_UNUSED;
bool jinja_execute(JinjaMachine *m, const JinjaNodes *body) WARN_UNUSED;
bool jinja_assign(JinjaMachine *m, const JinjaNode *target, const JinjaValue *value) WARN_UNUSED;
bool jinja_enter(JinjaMachine *m)
    WARN_UNUSED; /* counts evaluation depth and a step; pair with depth-- */
JinjaScope *jinja_scope_push(JinjaMachine *m) WARN_UNUSED;
bool jinja_scope_set(JinjaMachine *m, uint32_t name, const JinjaValue *value) WARN_UNUSED;
bool jinja_macro_call(JinjaMachine *m, JinjaMacro *macro, const JinjaArguments *given,
                      JinjaValue *out) WARN_UNUSED;
/* loop(items) of a recursive loop. */
bool jinja_loop_recurse(JinjaMachine *m, JinjaLoop *loop, const JinjaArguments *given,
                        JinjaValue *out) WARN_UNUSED;
bool jinja_loop_attribute(JinjaMachine *m, JinjaLoop *loop, Slice name, JinjaValue *out,
                          bool *found) WARN_UNUSED;

/* ---- Operators and access ---- */

bool jinja_operate(JinjaMachine *m, JinjaTokenKind op, const JinjaValue *a, const JinjaValue *b,
                   JinjaValue *out) WARN_UNUSED;
bool jinja_negate(JinjaMachine *m, bool negative, const JinjaValue *a, JinjaValue *out) WARN_UNUSED;
bool jinja_concatenate(JinjaMachine *m, Slice a, Slice b, JinjaValue *out) WARN_UNUSED;
bool jinja_get_attribute(JinjaMachine *m, const JinjaValue *object, Slice name,
                         JinjaValue *out) WARN_UNUSED;
bool jinja_get_item(JinjaMachine *m, const JinjaValue *object, const JinjaValue *key,
                    JinjaValue *out) WARN_UNUSED;
/* object[start:stop:step]; ABSENT or NONE parts are left out. */
bool jinja_get_slice(JinjaMachine *m, const JinjaValue *object, const JinjaValue parts[3],
                     JinjaValue *out) WARN_UNUSED;

/* ---- Integers ---- */

bool jinja_fail_overflow(JinjaMachine *m);
bool jinja_operate_integers(JinjaMachine *m, JinjaTokenKind op, int64_t a, int64_t b,
                            JinjaValue *out) WARN_UNUSED;
/* round(value, -zeros), zeros >= 0 */
bool jinja_round_integer(JinjaMachine *m, int64_t value, int64_t zeros,
                         JinjaValue *out) WARN_UNUSED;
/* digits: "-" or not, then at least 19 digits that do not fit int64_t, no leading zero. Borrowed.
 */
bool jinja_long_new(JinjaMachine *m, Slice digits, JinjaValue *out) WARN_UNUSED;
bool jinja_long_negate(JinjaMachine *m, const JinjaValue *value, JinjaValue *out) WARN_UNUSED;
/* int(number) of a finite float, of whatever size. */
bool jinja_integer_from_float(JinjaMachine *m, double number, JinjaValue *out) WARN_UNUSED;
/* float(value), which fails for what is beyond a double's range. */
bool jinja_to_float(JinjaMachine *m, const JinjaValue *value, double *out) WARN_UNUSED;
int jinja_long_sign(const JinjaValue *value);         /* -1 or 1 */
double jinja_long_to_double(const JinjaValue *value); /* may be infinite */
/* A LONG with any number: -1, 0, 1, or 2 beside NaN. */
int jinja_long_compare(const JinjaValue *a, const JinjaValue *b);

/* ---- Text of values ---- */

/* Appends str(value) or repr(value), as Python prints them. */
bool jinja_append_text(JinjaMachine *m, Buffer *out, const JinjaValue *value) WARN_UNUSED;
bool jinja_append_repr(JinjaMachine *m, Buffer *out, const JinjaValue *value) WARN_UNUSED;
/* str(value) as a string; a string is returned as it is. */
bool jinja_to_text(JinjaMachine *m, const JinjaValue *value, Slice *out) WARN_UNUSED;
void jinja_append_float(Buffer *out, double value); /* Python's repr */
/* Reads a whole float text as Python's float(); false if it is none. */
bool jinja_read_float(Slice text, double *out);
/* Python's int(text, base); *beyond (if not NULL): it is one, but takes more than 64 bits. */
bool jinja_read_integer(Slice text, int base, int64_t *out, bool *beyond);
bool jinja_filter_tojson(JinjaMachine *m, const JinjaCall *call, JinjaValue *out);

/* "%s" % args, and "{}".format(args); a format that is markup escapes what it takes in. */
bool jinja_format_percent(JinjaMachine *m, const JinjaValue *format, const JinjaValue *args,
                          JinjaValue *out) WARN_UNUSED;
bool jinja_format_braces(JinjaMachine *m, const JinjaValue *format, const JinjaArguments *given,
                         JinjaValue *out) WARN_UNUSED;

/* ---- Markup ---- */

bool jinja_is_markup(const JinjaValue *value);
bool jinja_append_escaped(JinjaMachine *m, Buffer *out, Slice text) WARN_UNUSED; /* HTML */
/* str(value), escaped unless it is markup. */
bool jinja_append_as_markup(JinjaMachine *m, Buffer *out, const JinjaValue *value) WARN_UNUSED;
bool jinja_to_markup(JinjaMachine *m, const JinjaValue *value, JinjaValue *out) WARN_UNUSED;
void jinja_mark_all(JinjaValue *value); /* a string, or the strings of a fresh list */
/* The texts of parts, one behind the other; if one is markup, all of it is. */
bool jinja_join_markup(JinjaMachine *m, const JinjaList *parts, JinjaValue *out) WARN_UNUSED;

bool jinja_strftime_now(JinjaMachine *m, const JinjaCall *call, JinjaValue *out);

/* Case mapping of code points; upper, lower and title of whole texts append to out. */
typedef enum JinjaCase {
    JINJA_CASE_UPPER,
    JINJA_CASE_LOWER,
    JINJA_CASE_SWAP,
    JINJA_CASE_FOLD
} JinjaCase;
void jinja_append_case(Buffer *out, Slice text, JinjaCase how);
/* The character at a byte of text in lower case, as its neighbours ask for it (final sigma). */
void jinja_append_lower_at(Buffer *out, Slice text, size_t at);
void jinja_append_title_at(Buffer *out, Slice text, size_t at);
bool jinja_text_to_case(JinjaMachine *m, Slice text, JinjaCase how, JinjaValue *out) WARN_UNUSED;
void jinja_append_capitalized(Buffer *out, Slice text);

#endif
