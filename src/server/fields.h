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

/* The sampling fields and stop, which every generation route takes from an object. vocab_size
 * bounds the ids of logit_bias. Arrays live in arena. */
bool fields_read_sampling(const JsonValue *object, size_t vocab_size, size_t max_stop, Arena *arena,
                          GenerationOptions *out, HttpError *error) WARN_UNUSED;

#endif
