/* The input as the body of a generation request: to checked requests of both OpenAI routes, or to
 * an error that names its field. */
#include "chat_request.h"
#include "completion_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FUZZ_VOCABULARY = 1000 };

/* A refusal has a sentence and is valid JSON whatever it quotes. */
static void check_error(const HttpError *error)
{
    Buffer text;
    Arena arena;
    Error err;
    const JsonValue *value;
    if (error->fault >= FAULT_COUNT || error->message[0] == '\0')
        __builtin_trap();
    buffer_init(&text, 1 << 16);
    arena_init(&arena, 1 << 20);
    http_error_write(error, &text);
    if (text.failed || !json_parse(buffer_view(&text), &arena, &value, &err))
        __builtin_trap();
    arena_reset(&arena);
    buffer_reset(&text);
}

static void check_generation(const GenerationOptions *options)
{
    bool ok = options->temperature >= 0 && options->temperature <= 2 && options->top_p >= 0 &&
              options->top_p <= 1 && options->min_p >= 0 && options->min_p <= 1 &&
              options->top_k >= 0 && options->repetition_penalty > 0 &&
              options->repetition_context_size >= 0 && options->n_stop <= SERVER_STOP_STRINGS_MAX &&
              options->top_logprobs <= SERVER_TOP_LOGPROBS_MAX;
    for (size_t i = 0; i < options->n_logit_bias; i++)
        ok = ok && options->logit_bias[i].id >= 0 && options->logit_bias[i].id < FUZZ_VOCABULARY;
    if (!ok)
        __builtin_trap();
}

static void read_chat(const JsonValue *body, Arena *arena)
{
    HttpError error;
    ChatCall call;
    const ChatDefaults defaults = {.vocab_size = FUZZ_VOCABULARY};
    if (!chat_request_read(body, &defaults, arena, &call, &error)) {
        check_error(&error);
        return;
    }
    check_generation(&call.generation);
    if (!json_is(call.messages, JSON_ARRAY) || call.messages->as.array.count == 0 || call.n < 1 ||
        call.n > SERVER_CHOICES_MAX || call.generation.max_tokens < 1)
        __builtin_trap();
}

static void read_completion(const JsonValue *body, Arena *arena)
{
    HttpError error;
    CompletionCall call;
    if (!completion_request_read(body, 0, FUZZ_VOCABULARY, arena, &call, &error)) {
        check_error(&error);
        return;
    }
    check_generation(&call.generation);
    if (call.n_prompts < 1 || call.n_prompts > SERVER_PROMPTS_MAX || call.n < 1 ||
        call.n > SERVER_CHOICES_MAX)
        __builtin_trap();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Arena arena;
    HttpError error;
    const JsonValue *body;
    BodyIgnored ignored;
    arena_init(&arena, 16 << 20);
    if (body_parse((Slice){(const char *)data, size}, &arena, &body, &error)) {
        body_collect_ignored(body, &CHAT_REQUEST_NAMES, &ignored);
        if (ignored.count > BODY_IGNORED_MAX)
            __builtin_trap();
        read_chat(body, &arena);
        read_completion(body, &arena);
    } else {
        check_error(&error);
    }
    arena_reset(&arena);
    return 0;
}
