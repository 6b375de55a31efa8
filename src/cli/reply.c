/* run: one prompt, one reply, streamed to stdout as it is generated. The command drives the engine
 * itself: with one sequence there is nothing to schedule. */
#include "cli.h"

#include "generate.h"
#include "json.h"
#include "loaded_model.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    PROMPT_BYTES_MAX = 64 << 20,
    PREFILL_STEP = 512, /* tokens between two looks at the stop flag */
    REPLY_PIECE_BYTES_MAX = 1 << 20,
};

typedef struct ReplyTiming {
    size_t prompt_tokens, reply_tokens;
    size_t decode_steps; /* the first token comes out of the prefill */
    double prompt_seconds, reply_seconds;
} ReplyTiming;

/* The prompt as one user message through the chat template. */
static bool render_chat(const ChatTemplate *chat, Slice prompt, Buffer *out, Error *err)
{
    const JsonMember members[] = {
        {SLICE("role"), {.kind = JSON_STRING, .as.string = SLICE("user")}},
        {SLICE("content"), {.kind = JSON_STRING, .as.string = prompt}},
    };
    const JsonValue message = {.kind = JSON_OBJECT,
                               .as.object = {.members = members, .count = ARRAY_COUNT(members)}};
    const JsonValue messages = {.kind = JSON_ARRAY, .as.array = {.items = &message, .count = 1}};
    ChatRequest request = {.messages = &messages, .add_generation_prompt = true};
    Arena scratch;
    arena_init(&scratch, PROMPT_BYTES_MAX);
    bool ok = chat_template_render(chat, &request, &scratch, out, err);
    arena_reset(&scratch);
    return ok;
}

static bool encode_prompt(const LoadedModel *loaded, const Arguments *arguments, Slice prompt,
                          TokenList *out, Error *err)
{
    if (arguments->raw)
        return tokenizer_encode(loaded->tokenizer, prompt, true, out, err);
    Buffer text;
    buffer_init(&text, PROMPT_BYTES_MAX);
    /* Templates write their own BOS, so none is added. */
    bool ok = render_chat(loaded->chat, prompt, &text, err) &&
              tokenizer_encode(loaded->tokenizer, buffer_view(&text), false, out, err);
    buffer_reset(&text);
    return ok;
}

/* Feeds the prompt; logits are those after its last token. Stops early when asked to. */
static bool prefill(Engine *engine, EngineSequence *sequence, const TokenList *prompt,
                    float *logits, Error *err)
{
    for (size_t at = 0; at < prompt->count && !stop_requested();) {
        size_t left = prompt->count - at;
        size_t count = left < PREFILL_STEP ? left : PREFILL_STEP;
        bool is_last = count == left;
        EngineRow row = {sequence, prompt->ids + at, count,
                         is_last ? ENGINE_LOGITS_LAST : ENGINE_LOGITS_NONE};
        if (!engine_forward(engine, &row, 1, is_last ? logits : NULL, err))
            return false;
        at += count;
    }
    return true;
}

/* Chooses, prints and feeds tokens until the generation ends, the context is full or a signal came.
 */
static bool decode(const LoadedModel *loaded, EngineSequence *sequence, Generation *generation,
                   size_t room, float *logits, size_t *steps, Error *err)
{
    Buffer text;
    buffer_init(&text, REPLY_PIECE_BYTES_MAX);
    bool ok = true;
    *steps = 0;
    bool chosen = false; /* by the engine */
    EngineChoice choice;
    int32_t id = 0;
    while (ok && !stop_requested()) {
        ok = chosen ? generation_accept(generation, id, &text, err)
                    : generation_step(generation, logits, &id, &text, err);
        ok = ok && write_output(&text, err);
        if (!ok || generation_finish_reason(generation) != FINISH_NONE)
            break;
        if (*steps == room) {
            ok = generation_end(generation, FINISH_LENGTH, &text, err);
            break;
        }
        int32_t last = id;
        EngineRow row = {sequence, &last, 1, ENGINE_LOGITS_LAST};
        chosen = engine_has_forward_choose(loaded->engine) &&
                 generation_is_plain(generation, &choice.temperature, choice.draws);
        ok = chosen ? engine_forward_choose(loaded->engine, &row, 1, &choice, &id, err)
                    : engine_forward(loaded->engine, &row, 1, logits, err);
        ++*steps;
    }
    if (ok && stop_requested())
        ok = generation_end(generation, FINISH_CANCELLED, &text, err);
    if (ok)
        ok = write_output(&text, err);
    buffer_reset(&text);
    return ok;
}

static bool generate_reply(const LoadedModel *loaded, const Arguments *arguments,
                           const TokenList *prompt, size_t context, ReplyTiming *timing, Error *err)
{
    const ModelConfig *config = &loaded->model->config;
    EngineSequence *sequence = NULL;
    Generation *generation = NULL;
    float *logits = NULL;
    bool ok = false;

    GenerationOptions options;
    generation_options_init(&options);
    options.temperature = (float)arguments->temp;
    options.max_tokens = (size_t)arguments->max_tokens;
    options.seed = (uint64_t)arguments->seed;
    options.has_seed = arguments->has_seed;
    options.skip_special = true;
    size_t room = context - prompt->count;
    if (room > options.max_tokens)
        room = options.max_tokens;
    if (!generation_create(loaded->tokenizer, &options, config->eos_token_ids,
                           config->n_eos_token_ids, prompt->ids, prompt->count, config->vocab_size,
                           &generation, err) ||
        !engine_sequence_create(loaded->engine, prompt->count + room, &sequence, err))
        goto cleanup;
    logits = memory_allocate_array(config->vocab_size, sizeof(float));
    if (!logits) {
        error_no_memory(err, "logits");
        goto cleanup;
    }
    double start = clock_monotonic_seconds();
    if (!prefill(loaded->engine, sequence, prompt, logits, err))
        goto cleanup;
    double middle = clock_monotonic_seconds();
    size_t steps;
    if (!decode(loaded, sequence, generation, room, logits, &steps, err))
        goto cleanup;
    *timing = (ReplyTiming){
        .prompt_tokens = prompt->count,
        .reply_tokens = generation_token_count(generation),
        .decode_steps = steps,
        .prompt_seconds = middle - start,
        .reply_seconds = clock_monotonic_seconds() - middle,
    };
    ok = true;
cleanup:
    memory_free(logits);
    engine_sequence_free(loaded->engine, sequence);
    generation_free(generation);
    return ok;
}

static void print_timing(const Engine *engine, const ReplyTiming *timing)
{
    EngineDescription description;
    engine_describe(engine, &description);
    double prompt_rate =
        timing->prompt_seconds > 0 ? (double)timing->prompt_tokens / timing->prompt_seconds : 0;
    double reply_rate =
        timing->reply_seconds > 0 ? (double)timing->decode_steps / timing->reply_seconds : 0;
    fprintf(stderr,
            "prefill %zu tokens, %.1f tokens/s; decode %zu tokens, %.1f tokens/s; peak memory %.0f "
            "MB",
            timing->prompt_tokens, prompt_rate, timing->reply_tokens, reply_rate,
            (double)process_peak_resident_bytes() * 1e-6);
    if (description.device_peak_bytes > 0)
        fprintf(stderr, ", on the device %.0f MB", (double)description.device_peak_bytes * 1e-6);
    fputc('\n', stderr);
}

/* The prompt from the command line, else (for `run` with standard input redirected) from there. */
static bool read_prompt(const Arguments *arguments, Buffer *out, Error *err)
{
    if (arguments->prompt) {
        buffer_append_text(out, arguments->prompt);
        return buffer_check(out, "prompt", err);
    }
    if (isatty(STDIN_FILENO) || !arguments->prompt_from_stdin) {
        buffer_append_text(out, "Hello");
        return buffer_check(out, "prompt", err);
    }
    char chunk[4096];
    size_t n;
    while ((n = fread(chunk, 1, sizeof(chunk), stdin)) > 0)
        buffer_append(out, chunk, n);
    if (ferror(stdin) && !stop_requested())
        return error_set(err, ERROR_IO, "standard input: %s", strerror(errno));
    return buffer_check(out, "prompt on standard input", err);
}

int command_run(const Arguments *arguments)
{
    Error err = {0};
    LoadedModel loaded = {0};
    TokenList prompt = {0};
    ReplyTiming timing = {0};
    Buffer text;
    size_t context = 0;
    bool ok = false;
    buffer_init(&text, PROMPT_BYTES_MAX);
    if (!read_prompt(arguments, &text, &err) ||
        !loaded_model_open(arguments, LOAD_ENGINE | LOAD_TEXT, &loaded, &err) ||
        !loaded_model_context(&loaded, arguments, &context, &err) ||
        !encode_prompt(&loaded, arguments, buffer_view(&text), &prompt, &err))
        goto cleanup;
    if (prompt.count == 0) {
        error_set(&err, ERROR_INVALID, "the prompt is empty");
        goto cleanup;
    }
    if (prompt.count >= context) {
        error_set(&err, ERROR_LIMIT, "the prompt is %zu tokens, the context %zu", prompt.count,
                  context);
        goto cleanup;
    }
    if (!generate_reply(&loaded, arguments, &prompt, context, &timing, &err))
        goto cleanup;
    putchar('\n');
    fflush(stdout);
    print_timing(loaded.engine, &timing);
    ok = true;
cleanup:
    token_list_reset(&prompt);
    loaded_model_close(&loaded);
    buffer_reset(&text);
    return ok ? EXIT_DONE : report_error(&err);
}
