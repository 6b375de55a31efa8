/* http_error: what went wrong with a request, as status, type, code, parameter and one sentence.
 * The only table from faults to HTTP, and the only place where an ErrorCode becomes one. */
#ifndef SERVER_HTTP_ERROR_H
#define SERVER_HTTP_ERROR_H

#include "base.h"

typedef enum HttpFault {
    FAULT_INVALID_JSON,
    FAULT_INVALID_REQUEST,
    FAULT_MISSING,
    FAULT_TYPE,
    FAULT_INTEGER_MIN,
    FAULT_INTEGER_MAX,
    FAULT_DECIMAL_MIN,
    FAULT_DECIMAL_MAX,
    FAULT_VALUE,
    FAULT_EMPTY_ARRAY,
    FAULT_ARRAY_MAX,
    FAULT_UNSUPPORTED_VALUE,
    FAULT_UNSUPPORTED_PARAMETER,
    FAULT_JSON_SCHEMA,
    FAULT_GRAMMAR,
    FAULT_CONTEXT_LENGTH,
    FAULT_UNKNOWN_PARAMETER,
    FAULT_API_KEY,
    FAULT_ORIGIN,
    FAULT_HOST,
    FAULT_UNKNOWN_URL,
    FAULT_MODEL_NOT_FOUND,
    FAULT_METHOD,
    FAULT_TIMEOUT,
    FAULT_LENGTH_REQUIRED,
    FAULT_TOO_LARGE,
    FAULT_URI_TOO_LONG,
    FAULT_MEDIA_TYPE,
    FAULT_HEADERS_TOO_LARGE,
    FAULT_VERSION,
    FAULT_INTERNAL,
    FAULT_LOADING,
    FAULT_SHUTTING_DOWN,
    FAULT_OVERLOADED,
    FAULT_COUNT
} HttpFault;

enum {
    HTTP_PARAM_BYTES_MAX = 128,
    HTTP_QUOTE_BYTES_MAX = 64, /* of client input in one message; at most three quotes a message */
};

typedef struct HttpError {
    HttpFault fault;
    char param[HTTP_PARAM_BYTES_MAX]; /* empty: null */
    char message[ERROR_MESSAGE_MAX];
} HttpError;

/* For "%.*s": a stranger's text, cut. */
#define QUOTE_ARG(s)                                                                               \
    (int)((s).len < HTTP_QUOTE_BYTES_MAX ? (s).len : HTTP_QUOTE_BYTES_MAX), ((s).ptr ? (s).ptr : "")

/* Returns false, so that `return http_error_set(...)` reads well. param may be NULL. */
bool http_error_set(HttpError *out, HttpFault fault, const char *param, const char *format, ...)
    PRINTF_LIKE(4, 5);
/* From an Error of the rooms below; invalid and limit say what bad input and a passed limit mean
 * here. */
bool http_error_from(HttpError *out, const Error *err, HttpFault invalid, HttpFault limit,
                     const char *param);

unsigned http_fault_status(HttpFault fault);
const char *http_fault_code(HttpFault fault);
/* Appends {"error":{...}} in the OpenAI dialect. */
void http_error_write(const HttpError *error, Buffer *out);

#endif
