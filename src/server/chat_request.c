#include "chat_request.h"

#include "server.h"

#include <stdio.h>

/* Every name that this route knows, whether it has an effect or not. */
static const char *const KNOWN_FIELDS[] = {
    "messages", "model", "max_tokens", "max_completion_tokens", "stream", "stream_options", "n",
    "logprobs", "top_logprobs", CONSTRAINT_FIELD_NAMES, TOOL_FIELD_NAMES, "chat_template_kwargs",
    "enable_thinking", "reasoning_effort", "reasoning_budget_tokens", SAMPLING_FIELD_NAMES,
    "modalities", "audio",
    /* Accepted without effect. */
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_*", "verbosity",
    "prediction", "web_search_options", "moderation"};

const BodyNames CHAT_REQUEST_NAMES = {KNOWN_FIELDS, ARRAY_COUNT(KNOWN_FIELDS)};

static bool string_is_one_of(Slice text, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (slice_equal(text, slice_of(names[i])))
            return true;
    }
    return false;
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

static bool read_choices(const JsonValue *body, ChatCall *out, HttpError *error)
{
    int64_t n = 1, top = 0;
    if (!field_read_integer(json_get(body, SLICE("n")), "n", 1, SERVER_CHOICES_MAX, &n, error) ||
        !field_read_bool(json_get(body, SLICE("logprobs")), "logprobs", &out->generation.logprobs,
                         error) ||
        !field_read_integer(json_get(body, SLICE("top_logprobs")), "top_logprobs", 0,
                            SERVER_TOP_LOGPROBS_MAX, &top, error))
        return false;
    if (top > 0 && !out->generation.logprobs)
        return http_error_set(error, FAULT_VALUE, "top_logprobs",
                              "'top_logprobs' is possible only with 'logprobs' set to true.");
    out->n = (size_t)n;
    out->generation.top_logprobs = (uint32_t)top;
    return true;
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
bool chat_kwargs_read(const JsonValue *body, Arena *arena, const JsonValue **out, HttpError *error)
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
    *out = n > 0 ? object : NULL;
    return true;
}

bool chat_request_read(const JsonValue *body, const ChatDefaults *defaults, Arena *arena,
                       ChatCall *out, HttpError *error)
{
    *out = (ChatCall){0};
    generation_options_init(&out->generation);
    out->generation.temperature = defaults->temperature;
    return chat_messages_read(json_get(body, SLICE("messages")), arena, &out->messages, error) &&
           field_read_string(json_get(body, SLICE("model")), "model", &out->model, error) &&
           read_length(body, out, error) &&
           fields_read_stream(body, &out->stream, &out->include_usage, error) &&
           read_choices(body, out, error) &&
           fields_read_constraint(body, arena, &out->constraint, error) &&
           fields_read_tools(body, arena, &out->tools, error) && check_modalities(body, error) &&
           field_read_integer(json_get(body, SLICE("reasoning_budget_tokens")),
                              "reasoning_budget_tokens", -1, INT32_MAX,
                              &out->generation.reasoning_budget, error) &&
           chat_kwargs_read(body, arena, &out->kwargs, error) &&
           fields_read_sampling(body, defaults->vocab_size, SERVER_STOP_STRINGS_MAX, arena,
                                &out->generation, error);
}
