#include "chat_request.h"

#include "server.h"

#include <stdio.h>

/* Every name that this route knows, whether it has an effect or not. */
static const char *const KNOWN_FIELDS[] = {
    "messages", "model", "max_tokens", "max_completion_tokens", "stream", "stream_options", "n",
    "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format",
    "chat_template_kwargs", "enable_thinking", "reasoning_effort", "reasoning_budget_tokens",
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "repetition_context_size",
    "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop", "ignore_eos",
    "modalities", "audio", "functions", "function_call", "guided_regex", "guided_choice", "grammar",
    /* Accepted without effect. */
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "verbosity", "prediction", "web_search_options", "moderation"};

/* Present in any form: not possible here. */
static const char *const REFUSED_FIELDS[] = {"functions", "function_call", "guided_regex",
                                             "guided_choice", "grammar"};

static bool unsupported(const char *param, HttpError *error)
{
    return http_error_set(error, FAULT_UNSUPPORTED_PARAMETER, param, "'%s' is not supported here.",
                          param);
}

static bool string_is_one_of(Slice text, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (slice_equal(text, slice_of(names[i])))
            return true;
    }
    return false;
}

static void collect_ignored(const JsonValue *body, ChatCall *out)
{
    for (size_t i = 0; i < body->as.object.count; i++) {
        Slice key = body->as.object.members[i].key;
        if (out->n_ignored >= CHAT_IGNORED_FIELDS_MAX)
            return;
        if (!string_is_one_of(key, KNOWN_FIELDS, ARRAY_COUNT(KNOWN_FIELDS)) &&
            !slice_starts_with(key, SLICE("prompt_cache_")))
            out->ignored[out->n_ignored++] = key;
    }
}

/* ---- Groups of fields ---- */

static bool read_length(const JsonValue *body, ChatCall *out, HttpError *error)
{
    int64_t limit = GENERATE_MAX_TOKENS_DEFAULT, newer = 0;
    if (!field_read_integer(json_get(body, SLICE("max_tokens")), "max_tokens", 1, INT32_MAX, &limit,
                            error) ||
        !field_read_integer(json_get(body, SLICE("max_completion_tokens")), "max_completion_tokens",
                            1, INT32_MAX, &newer, error))
        return false;
    out->generation.max_tokens = (size_t)(newer > 0 ? newer : limit);
    return true;
}

static bool read_stream(const JsonValue *body, ChatCall *out, HttpError *error)
{
    const JsonValue *options;
    if (!field_read_bool(json_get(body, SLICE("stream")), "stream", &out->stream, error) ||
        !field_read_object(json_get(body, SLICE("stream_options")), "stream_options", &options,
                           error))
        return false;
    if (options && !out->stream)
        return http_error_set(error, FAULT_VALUE, "stream_options",
                              "'stream_options' is possible only with 'stream' set to true.");
    return field_read_bool(json_get(options, SLICE("include_usage")),
                           "stream_options.include_usage", &out->include_usage, error);
}

static bool check_choices(const JsonValue *body, HttpError *error)
{
    int64_t n = 1, top = 0;
    bool logprobs = false;
    if (!field_read_integer(json_get(body, SLICE("n")), "n", 1, 16, &n, error) ||
        !field_read_bool(json_get(body, SLICE("logprobs")), "logprobs", &logprobs, error) ||
        !field_read_integer(json_get(body, SLICE("top_logprobs")), "top_logprobs", 0, 20, &top,
                            error))
        return false;
    if (top > 0 && !logprobs)
        return http_error_set(error, FAULT_VALUE, "top_logprobs",
                              "'top_logprobs' is possible only with 'logprobs' set to true.");
    if (n > 1)
        return unsupported("n", error);
    return !logprobs || unsupported("logprobs", error);
}

static bool check_tools(const JsonValue *body, HttpError *error)
{
    const JsonValue *tools;
    bool parallel;
    if (!field_read_array(json_get(body, SLICE("tools")), "tools", &tools, error) ||
        !field_read_bool(json_get(body, SLICE("parallel_tool_calls")), "parallel_tool_calls",
                         &parallel, error))
        return false;
    if (tools && tools->as.array.count > 0)
        return unsupported("tools", error);
    const JsonValue *choice = json_get_present(body, "tool_choice");
    if (!choice)
        return true;
    if (choice->kind == JSON_OBJECT)
        return unsupported("tool_choice", error);
    if (choice->kind != JSON_STRING)
        return field_wrong_type(choice, "tool_choice", "a string or an object", error);
    Slice text = choice->as.string;
    if (slice_equal(text, SLICE("none")) || slice_equal(text, SLICE("auto")))
        return true;
    if (slice_equal(text, SLICE("required")))
        return unsupported("tool_choice", error);
    return http_error_set(error, FAULT_VALUE, "tool_choice", "The tool_choice '%.*s' is unknown.",
                          QUOTE_ARG(text));
}

static bool check_response_format(const JsonValue *body, HttpError *error)
{
    const JsonValue *format;
    Slice type = SLICE_EMPTY;
    if (!field_read_object(json_get(body, SLICE("response_format")), "response_format", &format,
                           error))
        return false;
    if (!format)
        return true;
    const JsonValue *value = json_get_present(format, "type");
    if (!value)
        return http_error_set(error, FAULT_MISSING, "response_format.type",
                              "'response_format.type' is missing.");
    if (!field_read_string(value, "response_format.type", &type, error))
        return false;
    if (slice_equal(type, SLICE("text")))
        return true;
    if (slice_equal(type, SLICE("json_object")) || slice_equal(type, SLICE("json_schema")))
        return unsupported("response_format", error);
    return http_error_set(error, FAULT_VALUE, "response_format.type",
                          "The response_format '%.*s' is unknown.", QUOTE_ARG(type));
}

static bool check_modalities(const JsonValue *body, HttpError *error)
{
    const JsonValue *array;
    if (!field_read_array(json_get(body, SLICE("modalities")), "modalities", &array, error))
        return false;
    for (size_t i = 0; array && i < array->as.array.count; i++) {
        const JsonValue *item = &array->as.array.items[i];
        if (item->kind != JSON_STRING)
            return field_wrong_type(item, "modalities", "an array of strings", error);
        if (!slice_equal(item->as.string, SLICE("text")))
            return http_error_set(error, FAULT_UNSUPPORTED_VALUE, "modalities",
                                  "This model answers with text only, not with '%.*s'.",
                                  QUOTE_ARG(item->as.string));
    }
    if (array && array->as.array.count == 0)
        return http_error_set(error, FAULT_EMPTY_ARRAY, "modalities", "'modalities' is empty.");
    if (json_get_present(body, "audio"))
        return http_error_set(error, FAULT_UNSUPPORTED_VALUE, "audio",
                              "This model answers with text only, not with audio.");
    return true;
}

static bool check_refused(const JsonValue *body, HttpError *error)
{
    for (size_t i = 0; i < ARRAY_COUNT(REFUSED_FIELDS); i++) {
        if (json_get_present(body, REFUSED_FIELDS[i]))
            return unsupported(REFUSED_FIELDS[i], error);
    }
    int64_t budget = -1;
    if (!field_read_integer(json_get(body, SLICE("reasoning_budget_tokens")),
                            "reasoning_budget_tokens", -1, INT32_MAX, &budget, error))
        return false;
    return budget < 0 || unsupported("reasoning_budget_tokens", error);
}

/* ---- Variables of the template ---- */

static JsonMember bool_member(Slice key, bool value)
{
    JsonMember member = {key, {.kind = JSON_BOOL}};
    member.value.as.boolean = value;
    return member;
}

/* chat_template_kwargs with the switches of reasoning. A later member wins: reasoning_effort gives
 * way to the kwargs, which say exactly what the template gets, and enable_thinking wins over both.
 */
static bool read_kwargs(const JsonValue *body, Arena *arena, ChatCall *out, HttpError *error)
{
    static const char *const EFFORTS[] = {"none", "minimal", "low", "medium",
                                          "high", "xhigh",   "max"};
    const JsonValue *kwargs, *effort = json_get_present(body, "reasoning_effort");
    const JsonValue *thinking = json_get_present(body, "enable_thinking");
    bool enable = false;
    Slice level = SLICE_EMPTY;
    if (!field_read_object(json_get(body, SLICE("chat_template_kwargs")), "chat_template_kwargs",
                           &kwargs, error) ||
        !field_read_bool(thinking, "enable_thinking", &enable, error) ||
        !field_read_string(effort, "reasoning_effort", &level, error))
        return false;
    if (effort && !string_is_one_of(level, EFFORTS, ARRAY_COUNT(EFFORTS)))
        return http_error_set(error, FAULT_VALUE, "reasoning_effort",
                              "The reasoning_effort '%.*s' is unknown.", QUOTE_ARG(level));
    size_t given = kwargs ? kwargs->as.object.count : 0, n = 0;
    JsonMember *members = arena_allocate_array(arena, given + 3, sizeof(*members));
    JsonValue *object = arena_allocate(arena, sizeof(*object));
    if (!members || !object)
        return http_error_set(error, FAULT_INTERNAL, NULL, "Out of memory.");
    if (effort) {
        bool on = !slice_equal(level, SLICE("none"));
        members[n++] = bool_member(SLICE("enable_thinking"), on);
        if (on)
            members[n++] = (JsonMember){SLICE("reasoning_effort"), *effort};
    }
    for (size_t i = 0; i < given; i++)
        members[n++] = kwargs->as.object.members[i];
    if (thinking)
        members[n++] = bool_member(SLICE("enable_thinking"), enable);
    object->kind = JSON_OBJECT;
    object->as.object.members = members;
    object->as.object.count = n;
    out->kwargs = n > 0 ? object : NULL;
    return true;
}

bool chat_request_read(const JsonValue *body, const ChatDefaults *defaults, Arena *arena,
                       ChatCall *out, HttpError *error)
{
    Slice model;
    *out = (ChatCall){0};
    generation_options_init(&out->generation);
    out->generation.temperature = defaults->temperature;
    if (body->kind != JSON_OBJECT)
        return http_error_set(error, FAULT_TYPE, NULL,
                              "The body must be a JSON object, not of type %s.",
                              json_kind_name(body->kind));
    collect_ignored(body, out);
    return chat_messages_read(json_get(body, SLICE("messages")), arena, &out->messages, error) &&
           field_read_string(json_get(body, SLICE("model")), "model", &model, error) &&
           read_length(body, out, error) && read_stream(body, out, error) &&
           check_choices(body, error) && check_tools(body, error) &&
           check_response_format(body, error) && check_modalities(body, error) &&
           check_refused(body, error) && read_kwargs(body, arena, out, error) &&
           fields_read_sampling(body, defaults->vocab_size, SERVER_STOP_STRINGS_MAX, arena,
                                &out->generation, error);
}
