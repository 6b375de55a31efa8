/* fields: reading checked values out of a request's JSON.
 *
 * Every reader takes the value (NULL or null: absent, *out stays the default), the parameter's name
 * for the error, and returns false with the error set. Shared by the dialects. */
#ifndef SERVER_FIELDS_H
#define SERVER_FIELDS_H

#include "http_error.h"
#include "json.h"
#include "scheduler.h"

bool field_read_bool(const JsonValue *value, const char *param, bool *out,
                     HttpError *error) WARN_UNUSED;
/* 5.0 is an integer; "5" and true are not. */
bool field_read_integer(const JsonValue *value, const char *param, int64_t min, int64_t max,
                        int64_t *out, HttpError *error) WARN_UNUSED;
bool field_read_number(const JsonValue *value, const char *param, double min, double max,
                       float *out, HttpError *error) WARN_UNUSED;
bool field_read_string(const JsonValue *value, const char *param, Slice *out,
                       HttpError *error) WARN_UNUSED;
/* *out is NULL when absent. */
bool field_read_object(const JsonValue *value, const char *param, const JsonValue **out,
                       HttpError *error) WARN_UNUSED;
bool field_read_array(const JsonValue *value, const char *param, const JsonValue **out,
                      HttpError *error) WARN_UNUSED;
/* "X must be a string, not an array." */
bool field_wrong_type(const JsonValue *value, const char *param, const char *expected,
                      HttpError *error);
/* An array of token ids below vocab_size, appended to out. */
bool fields_read_tokens(const JsonValue *array, const char *param, size_t vocab_size,
                        TokenList *out, HttpError *error) WARN_UNUSED;

/* `stream` and `stream_options`, which is possible only with the former. */
bool fields_read_stream(const JsonValue *object, bool *stream, bool *include_usage,
                        HttpError *error) WARN_UNUSED;

/* sampling_fields: the sampling fields and stop, which every generation route takes from an object.
 * vocab_size bounds the ids of logit_bias. Arrays live in arena. */
bool fields_read_sampling(const JsonValue *object, size_t vocab_size, size_t max_stop, Arena *arena,
                          GenerationOptions *out, HttpError *error) WARN_UNUSED;
/* Their names, for BodyNames. */
#define SAMPLING_FIELD_NAMES                                                                       \
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "repetition_context_size",     \
        "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop", "ignore_eos"

/* What a reply is constrained to. */
typedef struct ConstraintFields {
    bool is_constrained;
    GrammarSource source;
    const char *param; /* the field that asks for it */
} ConstraintFields;

/* constraint_fields: response_format, guided_regex, guided_choice and grammar, of which one at most
 * may constrain; what they say is compiled by constraint_open. functions and function_call are
 * refused. What out points at lives in arena or in body. */
bool fields_read_constraint(const JsonValue *body, Arena *arena, ConstraintFields *out,
                            HttpError *error) WARN_UNUSED;
#define CONSTRAINT_FIELD_NAMES                                                                     \
    "response_format", "guided_regex", "guided_choice", "grammar", "functions", "function_call"

/* What a reply may call. */
typedef struct ToolFields {
    const JsonValue *list;    /* as given, for the template; NULL: none */
    const GrammarTool *tools; /* [n_tools] those that may be called */
    const size_t *indices;    /* [n_tools] their places in the list */
    size_t n_tools;           /* 0: no calls, and nothing is read as one */
    bool needs_call, one_call;
} ToolFields;

/* tool_fields: tools, tool_choice and parallel_tool_calls. The schemas are as the grammar wants
 * them: of objects, and closed where the tool leaves it open. */
bool fields_read_tools(const JsonValue *body, Arena *arena, ToolFields *out,
                       HttpError *error) WARN_UNUSED;
/* The list alone, checked. */
bool fields_check_tools(const JsonValue *body, Arena *arena, const JsonValue **out,
                        HttpError *error) WARN_UNUSED;
#define TOOL_FIELD_NAMES "tools", "tool_choice", "parallel_tool_calls"

/* 400 `unsupported_parameter`. */
bool field_unsupported(const char *param, HttpError *error);

#endif
