/* POST /v1/completions: prompts to tokens to reply. No template; special tokens in a text are
 * recognised, and a BOS goes before it if the tokenizer says so. */
#include "completion_request.h"
#include "completion_response.h"
#include "constraint.h"
#include "models.h"
#include "route.h"

#include <stdio.h>

typedef struct PromptTokens {
    TokenList lists[SERVER_PROMPTS_MAX];
    Slice texts[SERVER_PROMPTS_MAX];
} PromptTokens;

static void reset_prompts(PromptTokens *prompts)
{
    for (size_t i = 0; i < SERVER_PROMPTS_MAX; i++)
        token_list_reset(&prompts->lists[i]);
}

/* What `echo` begins with when the prompt came as tokens. */
static bool decode_prompt(const ServerModel *model, const TokenList *tokens, Arena *arena,
                          Slice *out, Error *err)
{
    Buffer text;
    buffer_init(&text, SERVER_REPLY_BYTES_MAX);
    bool ok = tokenizer_decode(model->tokenizer, tokens->ids, tokens->count, false, &text, err);
    if (ok && !arena_copy_slice(arena, buffer_view(&text), out))
        ok = error_no_memory(err, "prompt");
    buffer_reset(&text);
    return ok;
}

static bool read_tokens(HttpRequest *request, const ServerModel *model, const CompletionCall *call,
                        size_t at, PromptTokens *out, HttpError *error)
{
    Error err = {0};
    char param[32] = "prompt";
    const CompletionPrompt *prompt = &call->prompts[at];
    TokenList *tokens = &out->lists[at];
    if (call->n_prompts > 1)
        snprintf(param, sizeof(param), "prompt[%zu]", at);
    bool ok = true;
    if (prompt->ids) {
        if (!fields_read_tokens(prompt->ids, param, model->vocab_size, tokens, error))
            return false;
        ok = !call->echo || decode_prompt(model, tokens, &request->arena, &out->texts[at], &err);
    } else {
        out->texts[at] = prompt->text;
        ok = tokenizer_encode(model->tokenizer, prompt->text, true, tokens, &err);
    }
    if (!ok)
        return http_error_from(error, &err, FAULT_VALUE, FAULT_VALUE, param);
    if (tokens->count == 0)
        return http_error_set(error, FAULT_VALUE, param, "'%s' has no token to begin with.", param);
    return true;
}

static bool start_reply(HttpRequest *request, const ServerModel *model, const CompletionCall *call,
                        PromptTokens *prompts, HttpError *error)
{
    for (size_t i = 0; i < call->n_prompts; i++) {
        if (!read_tokens(request, model, call, i, prompts, error))
            return false;
    }
    ReplyCall reply = {
        .dialect = &COMPLETION_DIALECT,
        .prompts = prompts->lists,
        .echoes = call->echo ? prompts->texts : NULL,
        .n_prompts = call->n_prompts,
        .n = call->n,
        .generation = call->generation,
        .stream = call->stream,
        .include_usage = call->include_usage,
        .prompt_param = "prompt",
    };
    return reply_start(request, &reply, error);
}

static bool start_completion(HttpRequest *request, HttpError *error)
{
    Server *server = request->server;
    const JsonValue *body;
    const ServerModel *model;
    PromptTokens prompts = {0};
    Constraint *constraint = NULL;
    CompletionCall *call = arena_allocate(&request->arena, sizeof(*call));
    size_t vocab_size = atomic_load(&server->is_ready) ? server->model.vocab_size : SIZE_MAX;
    if (!call)
        return http_error_set(error, FAULT_INTERNAL, NULL, "Out of memory.");
    ConstraintPlan plan = {.content = &call->constraint};
    bool ok = body_read(request, &COMPLETION_REQUEST_NAMES, &body, error) &&
              completion_request_read(body, server->options.temperature, vocab_size,
                                      &request->arena, call, error) &&
              constraint_open(request, &plan, &constraint, error) &&
              models_select(server, call->model, error) &&
              (model = http_need_model(request, error)) &&
              (constraint || constraint_open(request, &plan, &constraint, error));
    if (ok)
        call->generation.constraint = constraint;
    ok = ok && start_reply(request, model, call, &prompts, error);
    constraint_free(constraint); /* the jobs have copies */
    reset_prompts(&prompts);
    return ok;
}

void completion_handle(HttpRequest *request)
{
    HttpError error;
    if (!start_completion(request, &error))
        http_reply_error(request, &error);
}
