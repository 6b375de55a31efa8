#include "fields.h"

#include <stdio.h>

/* ---- Sampling ---- */

/* Any 64 bits, signed or not: above an int64_t also as a number like 1e19. */
static bool read_seed(const JsonValue *value, GenerationOptions *out, HttpError *error)
{
    if (!value)
        return true;
    out->has_seed = true;
    if (value->kind == JSON_UINT) {
        out->seed = value->as.unsigned_integer;
        return true;
    }
    if (json_is_number(value) && json_to_double(value) >= 0x1p64)
        return http_error_set(error, FAULT_INTEGER_MAX, "seed", "'seed' must fit 64 bits.");
    if (value->kind == JSON_DOUBLE && value->as.number >= 0x1p63) {
        out->seed = (uint64_t)value->as.number; /* doubles of that size have no fraction */
        return true;
    }
    int64_t seed = 0;
    if (!field_read_integer(value, "seed", INT64_MIN, INT64_MAX, &seed, error))
        return false;
    out->seed = (uint64_t)seed;
    return true;
}

static bool read_repetition_penalty(const JsonValue *value, GenerationOptions *out,
                                    HttpError *error)
{
    float penalty = out->repetition_penalty;
    if (!field_read_number(value, "repetition_penalty", 0, 10, &penalty, error))
        return false;
    if (!(penalty > 0)) /* a double that is tiny may have become 0 too */
        return http_error_set(error, FAULT_DECIMAL_MIN, "repetition_penalty",
                              "'repetition_penalty' must be above 0.");
    out->repetition_penalty = penalty;
    return true;
}

static bool read_integers(const JsonValue *object, GenerationOptions *out, HttpError *error)
{
    int64_t top_k = out->top_k, context = out->repetition_context_size;
    if (!field_read_integer(json_get(object, SLICE("top_k")), "top_k", -1, INT64_MAX, &top_k,
                            error) ||
        !field_read_integer(json_get(object, SLICE("repetition_context_size")),
                            "repetition_context_size", 0, INT64_MAX, &context, error))
        return false;
    if (top_k < 0)
        top_k = 0;
    /* More than a vocabulary, or than a context, is all of it. */
    out->top_k = (int32_t)(top_k < INT32_MAX ? top_k : INT32_MAX);
    out->repetition_context_size = (int32_t)(context < INT32_MAX ? context : INT32_MAX);
    return true;
}

/* A decimal token id without leading zeros. */
static bool parse_token_id(Slice key, size_t vocab_size, int32_t *id)
{
    if (key.len == 0 || key.len > 9 || (key.len > 1 && key.ptr[0] == '0'))
        return false;
    int32_t number = 0;
    for (size_t i = 0; i < key.len; i++) {
        if (key.ptr[i] < '0' || key.ptr[i] > '9')
            return false;
        number = number * 10 + (key.ptr[i] - '0');
    }
    *id = number;
    return (size_t)number < vocab_size;
}

static bool read_logit_bias(const JsonValue *value, size_t vocab_size, Arena *arena,
                            GenerationOptions *out, HttpError *error)
{
    const JsonValue *object;
    if (!field_read_object(value, "logit_bias", &object, error))
        return false;
    if (!object || object->as.object.count == 0)
        return true;
    size_t count = object->as.object.count;
    if (count > GENERATE_LOGIT_BIAS_MAX)
        return http_error_set(error, FAULT_ARRAY_MAX, "logit_bias",
                              "'logit_bias' has %zu entries, at most %d are possible.", count,
                              GENERATE_LOGIT_BIAS_MAX);
    LogitBias *entries = arena_allocate_array(arena, count, sizeof(*entries));
    if (!entries)
        return http_error_set(error, FAULT_INTERNAL, NULL, "Out of memory.");
    for (size_t i = 0; i < count; i++) {
        const JsonMember *member = &object->as.object.members[i];
        if (!parse_token_id(member->key, vocab_size, &entries[i].id))
            return http_error_set(
                error, FAULT_VALUE, "logit_bias",
                "'logit_bias' has the key '%.*s', which is no token id below %zu.",
                QUOTE_ARG(member->key), vocab_size);
        char param[64];
        snprintf(param, sizeof(param), "logit_bias.%d", entries[i].id);
        entries[i].bias = 0;
        if (!field_read_number(&member->value, param, -100, 100, &entries[i].bias, error))
            return false;
    }
    out->logit_bias = entries;
    out->n_logit_bias = count;
    return true;
}

static bool check_stop(const JsonValue *value, const char *param, Slice *out, HttpError *error)
{
    if (value->kind != JSON_STRING)
        return field_wrong_type(value, param, "a string", error);
    if (value->as.string.len > GENERATE_STOP_BYTES_MAX)
        return http_error_set(error, FAULT_VALUE, param, "'%s' is longer than %d bytes.", param,
                              GENERATE_STOP_BYTES_MAX);
    *out = value->as.string;
    return true;
}

static bool read_stop(const JsonValue *value, size_t max_stop, Arena *arena, GenerationOptions *out,
                      HttpError *error)
{
    if (!value)
        return true;
    bool is_array = value->kind == JSON_ARRAY;
    if (!is_array && value->kind != JSON_STRING)
        return field_wrong_type(value, "stop", "a string or an array of strings", error);
    size_t count = is_array ? value->as.array.count : 1;
    if (count > max_stop)
        return http_error_set(error, FAULT_ARRAY_MAX, "stop",
                              "'stop' has %zu strings, at most %zu are possible.", count, max_stop);
    if (count == 0)
        return true;
    Slice *strings = arena_allocate_array(arena, count, sizeof(*strings));
    if (!strings)
        return http_error_set(error, FAULT_INTERNAL, NULL, "Out of memory.");
    for (size_t i = 0; i < count; i++) {
        char param[32] = "stop";
        if (is_array)
            snprintf(param, sizeof(param), "stop[%zu]", i);
        if (!check_stop(is_array ? &value->as.array.items[i] : value, param, &strings[i], error))
            return false;
    }
    out->stop = strings;
    out->n_stop = count;
    return true;
}

bool fields_read_sampling(const JsonValue *object, size_t vocab_size, size_t max_stop, Arena *arena,
                          GenerationOptions *out, HttpError *error)
{
    const struct {
        const char *name;
        double min, max;
        float *to;
    } numbers[] = {
        {"temperature", 0, 2, &out->temperature},
        {"top_p", 0, 1, &out->top_p},
        {"min_p", 0, 1, &out->min_p},
        {"presence_penalty", -2, 2, &out->presence_penalty},
        {"frequency_penalty", -2, 2, &out->frequency_penalty},
    };
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++) {
        if (!field_read_number(json_get_present(object, numbers[i].name), numbers[i].name,
                               numbers[i].min, numbers[i].max, numbers[i].to, error))
            return false;
    }
    return read_integers(object, out, error) &&
           read_repetition_penalty(json_get_present(object, "repetition_penalty"), out, error) &&
           read_seed(json_get_present(object, "seed"), out, error) &&
           field_read_bool(json_get_present(object, "ignore_eos"), "ignore_eos", &out->ignore_eos,
                           error) &&
           read_logit_bias(json_get_present(object, "logit_bias"), vocab_size, arena, out, error) &&
           read_stop(json_get_present(object, "stop"), max_stop, arena, out, error);
}
