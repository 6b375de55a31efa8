#include "http_error.h"

#include "json.h"

#include <stdio.h>

typedef struct FaultEntry {
    unsigned status;
    const char *type, *code;
} FaultEntry;

static const char REQUEST_ERROR[] = "invalid_request_error";
static const char SERVER_ERROR[] = "server_error";

static const FaultEntry FAULTS[FAULT_COUNT] = {
    [FAULT_INVALID_JSON] = {400, REQUEST_ERROR, "invalid_json"},
    [FAULT_INVALID_REQUEST] = {400, REQUEST_ERROR, "invalid_request"},
    [FAULT_MISSING] = {400, REQUEST_ERROR, "missing_required_parameter"},
    [FAULT_TYPE] = {400, REQUEST_ERROR, "invalid_type"},
    [FAULT_INTEGER_MIN] = {400, REQUEST_ERROR, "integer_below_min_value"},
    [FAULT_INTEGER_MAX] = {400, REQUEST_ERROR, "integer_above_max_value"},
    [FAULT_DECIMAL_MIN] = {400, REQUEST_ERROR, "decimal_below_min_value"},
    [FAULT_DECIMAL_MAX] = {400, REQUEST_ERROR, "decimal_above_max_value"},
    [FAULT_VALUE] = {400, REQUEST_ERROR, "invalid_value"},
    [FAULT_EMPTY_ARRAY] = {400, REQUEST_ERROR, "empty_array"},
    [FAULT_ARRAY_MAX] = {400, REQUEST_ERROR, "array_above_max_length"},
    [FAULT_UNSUPPORTED_VALUE] = {400, REQUEST_ERROR, "unsupported_value"},
    [FAULT_UNSUPPORTED_PARAMETER] = {400, REQUEST_ERROR, "unsupported_parameter"},
    [FAULT_JSON_SCHEMA] = {400, REQUEST_ERROR, "invalid_json_schema"},
    [FAULT_GRAMMAR] = {400, REQUEST_ERROR, "invalid_grammar"},
    [FAULT_CONTEXT_LENGTH] = {400, REQUEST_ERROR, "context_length_exceeded"},
    [FAULT_UNKNOWN_PARAMETER] = {400, REQUEST_ERROR, "unknown_parameter"},
    [FAULT_API_KEY] = {401, REQUEST_ERROR, "invalid_api_key"},
    [FAULT_ORIGIN] = {403, REQUEST_ERROR, "origin_not_allowed"},
    [FAULT_HOST] = {403, REQUEST_ERROR, "host_not_allowed"},
    [FAULT_UNKNOWN_URL] = {404, REQUEST_ERROR, "unknown_url"},
    [FAULT_MODEL_NOT_FOUND] = {404, REQUEST_ERROR, "model_not_found"},
    [FAULT_METHOD] = {405, REQUEST_ERROR, "method_not_supported"},
    [FAULT_TIMEOUT] = {408, REQUEST_ERROR, "request_timeout"},
    [FAULT_LENGTH_REQUIRED] = {411, REQUEST_ERROR, "invalid_request"},
    [FAULT_TOO_LARGE] = {413, REQUEST_ERROR, "request_too_large"},
    [FAULT_URI_TOO_LONG] = {414, REQUEST_ERROR, "invalid_request"},
    [FAULT_MEDIA_TYPE] = {415, REQUEST_ERROR, "invalid_request"},
    [FAULT_HEADERS_TOO_LARGE] = {431, REQUEST_ERROR, "invalid_request"},
    [FAULT_VERSION] = {505, REQUEST_ERROR, "invalid_request"},
    [FAULT_INTERNAL] = {500, SERVER_ERROR, "internal_error"},
    [FAULT_LOADING] = {503, SERVER_ERROR, "model_loading"},
    [FAULT_SHUTTING_DOWN] = {503, SERVER_ERROR, "shutting_down"},
    [FAULT_OVERLOADED] = {503, SERVER_ERROR, "server_overloaded"},
};

bool http_error_set(HttpError *out, HttpFault fault, const char *param, const char *format, ...)
{
    out->fault = fault;
    snprintf(out->param, sizeof(out->param), "%s", param ? param : "");
    va_list args;
    va_start(args, format);
    vsnprintf(out->message, sizeof(out->message), format, args);
    va_end(args);
    return false;
}

static HttpFault fault_of_code(ErrorCode code, HttpFault invalid, HttpFault limit)
{
    switch (code) {
    case ERROR_INVALID:
    case ERROR_UNSUPPORTED:
    case ERROR_NOT_FOUND:
        return invalid;
    case ERROR_LIMIT:
        return limit;
    case ERROR_BUSY:
        return FAULT_OVERLOADED;
    case ERROR_CANCELLED:
        return FAULT_SHUTTING_DOWN;
    case ERROR_NONE:
    case ERROR_MEMORY:
    case ERROR_IO:
    case ERROR_USAGE:
    case ERROR_INTERNAL:
        break;
    }
    return FAULT_INTERNAL;
}

bool http_error_from(HttpError *out, const Error *err, HttpFault invalid, HttpFault limit,
                     const char *param)
{
    HttpFault fault = fault_of_code(err->code, invalid, limit);
    bool is_clients = FAULTS[fault].status == 400;
    return http_error_set(out, fault, is_clients ? param : NULL, "%s", err->message);
}

unsigned http_fault_status(HttpFault fault)
{
    return FAULTS[fault].status;
}

const char *http_fault_code(HttpFault fault)
{
    return FAULTS[fault].code;
}

void http_error_write(const HttpError *error, Buffer *out)
{
    JsonWriter writer;
    json_writer_init(&writer, out, 0);
    json_write_object_begin(&writer);
    json_write_key(&writer, "error");
    json_write_object_begin(&writer);
    json_write_key(&writer, "message");
    json_write_text(&writer, error->message);
    json_write_key(&writer, "type");
    json_write_text(&writer, FAULTS[error->fault].type);
    json_write_key(&writer, "param");
    if (error->param[0])
        json_write_text(&writer, error->param);
    else
        json_write_null(&writer);
    json_write_key(&writer, "code");
    json_write_text(&writer, FAULTS[error->fault].code);
    json_write_object_end(&writer);
    json_write_object_end(&writer);
}
