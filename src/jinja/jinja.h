/* jinja: the template language of chat templates, as jinja2 with Hugging Face's settings renders it
 * (trim_blocks, lstrip_blocks, loop controls, generation blocks, immutable sandbox; no autoescape
 * unless a block switches it on). Integers beyond 64 bits can be handed through but not computed
 * with, and the filter random gives the same choices in every rendering.
 *
 * Stages stay apart: lexer (source to tokens), parser (tokens to a tree in the template's arena),
 * evaluator (tree and variables to text). A template is parsed once and rendered many times; data
 * come in as JSON values. It knows nothing of messages or models. Threads: a JinjaTemplate is
 * immutable and may be rendered by any number of threads at once. */
#ifndef JINJA_H
#define JINJA_H

#include "base.h"
#include "json.h"

enum {
    JINJA_SOURCE_BYTES_MAX = 1 << 20,
    JINJA_NESTING_MAX = 200,            /* of blocks and expressions in the source */
    JINJA_KEYWORDS_MAX = 1000,          /* of a call in the source: each is compared with all */
    JINJA_CALL_DEPTH_MAX = 100,         /* of macros and recursive loops at run time */
    JINJA_DEPTH_MAX = 1200,             /* of nodes being evaluated; fits a stack of 512 KiB */
    JINJA_STEPS_MAX = 20 * 1000 * 1000, /* evaluated nodes of one rendering */
    JINJA_OUTPUT_BYTES_MAX = 64 << 20,
    JINJA_MEMORY_BYTES_MAX = 256 << 20, /* values of one rendering */
    JINJA_INTEGER_DIGITS_MAX = 4300,    /* of an integer among the variables, as in Python */
};

typedef struct JinjaTemplate JinjaTemplate;

/* Parses source (copied). name is for messages. Errors: ERROR_INVALID "NAME:LINE: ..." . */
bool jinja_template_create(Slice source, const char *name, JinjaTemplate **out,
                           Error *err) WARN_UNUSED;
void jinja_template_free(JinjaTemplate *tmpl);

typedef struct JinjaContext {
    const JsonValue
        *variables;        /* an object: every member is a variable of the template; may be NULL */
    const JsonValue *more; /* a second object whose members win over the first; may be NULL */
    int64_t now_unix_seconds; /* what strftime_now formats in local time; 0 = the clock */
    const char
        *now_text;      /* or "2026-01-02T03:04:05", taken as local time; NULL = now_unix_seconds */
    uint64_t steps_max; /* a lower limit than JINJA_STEPS_MAX; 0 = that */
} JinjaContext;

/* Appends the rendered text to out. Errors: ERROR_INVALID with the text of raise_exception or
 * "NAME:LINE: what failed"; ERROR_LIMIT when a limit above is passed. On failure out is as before.
 */
bool jinja_template_render(const JinjaTemplate *tmpl, const JinjaContext *context, Buffer *out,
                           Error *err) WARN_UNUSED;

#endif
