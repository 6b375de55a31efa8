#include "completion_request.h"

#include "server.h"

#include <stdio.h>

/* Every name that this route knows, whether it has an effect or not. */
static const char *const KNOWN_FIELDS[] = {"prompt", "model", "max_tokens", "n", "best_of", "echo",
                                           "logprobs", "suffix", "stream", "stream_options",
                                           "response_format", "guided_regex", "guided_choice",
                                           "grammar", SAMPLING_FIELD_NAMES,
                                           /* Accepted without effect. */
                                           "user"};

const BodyNames COMPLETION_REQUEST_NAMES = {KNOWN_FIELDS, ARRAY_COUNT(KNOWN_FIELDS)};

/* ---- Prompts ---- */

static bool wrong_prompt(const JsonValue *value, const char *param, HttpError *error)
{
    return field_wrong_type(value, param, "a string or an array of token ids", error);
}

static bool read_prompt(const JsonValue *value, const char *param, CompletionPrompt *out,
                        HttpError *error)
{
    if (value->kind == JSON_STRING) {
        out->text = value->as.string;
        return true;
    }
    if (value->kind != JSON_ARRAY)
        return wrong_prompt(value, param, error);
    if (value->as.array.count == 0)
        return http_error_set(error, FAULT_EMPTY_ARRAY, param, "'%s' is empty.", param);
    out->ids = value;
    return true;
}

/* A string, an array of strings, of token ids, or of arrays of token ids. */
static bool read_prompts(const JsonValue *value, CompletionCall *out, HttpError *error)
{
    if (!value)
        return http_error_set(error, FAULT_MISSING, "prompt", "'prompt' is missing.");
    bool is_list = value->kind == JSON_ARRAY && value->as.array.count > 0 &&
                   !json_is_number(&value->as.array.items[0]);
    if (!is_list) {
        out->n_prompts = 1;
        return read_prompt(value, "prompt", &out->prompts[0], error);
    }
    size_t count = value->as.array.count;
    if (count > SERVER_PROMPTS_MAX)
        return http_error_set(error, FAULT_ARRAY_MAX, "prompt",
                              "'prompt' has %zu prompts, at most %d are possible.", count,
                              SERVER_PROMPTS_MAX);
    out->n_prompts = count;
    JsonKind kind = value->as.array.items[0].kind;
    for (size_t i = 0; i < count; i++) {
        char param[32];
        const JsonValue *item = &value->as.array.items[i];
        snprintf(param, sizeof(param), "prompt[%zu]", i);
        if (item->kind != kind)
            return wrong_prompt(item, param, error);
        if (!read_prompt(item, param, &out->prompts[i], error))
            return false;
    }
    return true;
}

/* ---- Other fields ---- */

static bool read_numbers(const JsonValue *body, CompletionCall *out, HttpError *error)
{
    int64_t max_tokens = COMPLETION_MAX_TOKENS_DEFAULT, n = 1, top = -1;
    if (!field_read_integer(json_get(body, SLICE("max_tokens")), "max_tokens", 0, INT32_MAX,
                            &max_tokens, error) ||
        !field_read_integer(json_get(body, SLICE("n")), "n", 1, SERVER_CHOICES_MAX, &n, error))
        return false;
    int64_t best_of = n;
    if (!field_read_integer(json_get(body, SLICE("best_of")), "best_of", 1, SERVER_CHOICES_MAX,
                            &best_of, error) ||
        !field_read_integer(json_get(body, SLICE("logprobs")), "logprobs", 0,
                            SERVER_TOP_LOGPROBS_MAX, &top, error))
        return false;
    if (best_of != n)
        return http_error_set(error, FAULT_VALUE, "best_of",
                              "'best_of' must be equal to 'n': every choice is returned.");
    out->generation.max_tokens = (size_t)max_tokens;
    out->generation.logprobs = top >= 0;
    out->generation.top_logprobs = top > 0 ? (uint32_t)top : 0;
    out->n = (size_t)n;
    return true;
}

bool completion_request_read(const JsonValue *body, float temperature, size_t vocab_size,
                             Arena *arena, CompletionCall *out, HttpError *error)
{
    *out = (CompletionCall){0};
    generation_options_init(&out->generation);
    out->generation.temperature = temperature;
    if (!read_prompts(json_get_present(body, "prompt"), out, error) ||
        !field_read_string(json_get(body, SLICE("model")), "model", &out->model, error) ||
        !read_numbers(body, out, error) ||
        !field_read_bool(json_get(body, SLICE("echo")), "echo", &out->echo, error) ||
        !fields_read_stream(body, &out->stream, &out->include_usage, error) ||
        !fields_read_constraint(body, arena, &out->constraint, error) ||
        !fields_read_sampling(body, vocab_size, SERVER_STOP_STRINGS_MAX, arena, &out->generation,
                              error))
        return false;
    return !json_get_present(body, "suffix") || field_unsupported("suffix", error);
}
