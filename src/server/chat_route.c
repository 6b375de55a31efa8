/* POST /v1/chat/completions: body to prompt to reply. */
#include "chat_request.h"
#include "chat_response.h"
#include "constraint.h"
#include "models.h"
#include "route.h"

enum { CHAT_PROMPT_BYTES_MAX = 64 << 20 };

/* Messages to prompt tokens; what the prompt leaves to the reply decides about its marks. */
static bool render_prompt(HttpRequest *request, const ServerModel *model, ChatCall *call,
                          const ConstraintPlan *plan, TokenList *tokens, HttpError *error)
{
    Error err = {0};
    Buffer prompt;
    buffer_init(&prompt, CHAT_PROMPT_BYTES_MAX);
    ChatRequest chat = {.messages = call->messages,
                        .tools = call->tools.list,
                        .kwargs = call->kwargs,
                        .add_generation_prompt = true,
                        .for_reply = true};
    bool ok = chat_template_render(model->chat, &chat, &request->arena, &prompt, &err) &&
              tokenizer_encode(model->tokenizer, buffer_view(&prompt), false, tokens, &err);
    if (ok)
        constraint_plan_markup(plan, model, buffer_view(&prompt), &call->generation.markup);
    buffer_reset(&prompt);
    if (!ok)
        return http_error_from(error, &err, FAULT_VALUE, FAULT_VALUE, "messages");
    if (tokens->count == 0)
        return http_error_set(error, FAULT_VALUE, "messages", "The messages make an empty prompt.");
    return true;
}

/* Schemas are looked at before the model's name, where that may be refused. */
static bool check_early(const Server *server, const ConstraintPlan *plan, HttpError *error)
{
    bool may_refuse = !atomic_load(&server->is_ready) || server->options.strict_model;
    return !may_refuse || constraint_check(plan, error);
}

static bool start_chat(HttpRequest *request, HttpError *error)
{
    Server *server = request->server;
    ChatCall call;
    const JsonValue *body;
    const ServerModel *model = NULL;
    TokenList tokens = {0};
    Constraint *constraint = NULL;
    ConstraintPlan plan = {
        .content = &call.constraint, .tools = &call.tools, .markup = &call.generation.markup};
    ChatDefaults defaults = {
        .temperature = server->options.temperature,
        .vocab_size = atomic_load(&server->is_ready) ? server->model.vocab_size : SIZE_MAX,
    };
    bool ok = body_read(request, &CHAT_REQUEST_NAMES, &body, error) &&
              chat_request_read(body, &defaults, &request->arena, &call, error) &&
              check_early(server, &plan, error) && models_select(server, call.model, error) &&
              (model = http_need_model(request, error)) &&
              render_prompt(request, model, &call, &plan, &tokens, error) &&
              constraint_open(request, &plan, &constraint, error);
    if (ok) {
        call.generation.constraint = constraint;
        ReplyCall reply = {
            .dialect = &CHAT_DIALECT,
            .prompts = &tokens,
            .n_prompts = 1,
            .n = call.n,
            .generation = call.generation,
            .stream = call.stream,
            .include_usage = call.include_usage,
            .prompt_param = "messages",
        };
        ok = reply_start(request, &reply, error);
    }
    constraint_free(constraint); /* the jobs have copies */
    token_list_reset(&tokens);
    return ok;
}

void chat_handle(HttpRequest *request)
{
    HttpError error;
    if (!start_chat(request, &error))
        http_reply_error(request, &error);
}
