/* The chat route: body to prompt to job, and the job's text to a response or a stream of events. */
#include "chat_request.h"
#include "chat_response.h"
#include "route.h"

enum { CHAT_PROMPT_BYTES_MAX = 64 << 20 };

typedef struct ChatTask {
    Job *job;
    ChatReply reply;
    bool stream, began;
    Buffer text; /* whole reply, or what is new for the next event */
} ChatTask;

static void task_free(void *context)
{
    ChatTask *task = context;
    job_release(task->job);
    buffer_reset(&task->text);
    memory_free(task);
}

/* ---- Progress ---- */

static void append_error_event(const HttpError *error, Buffer *out)
{
    buffer_append_text(out, "data: ");
    http_error_write(error, out);
    buffer_append_text(out, "\n\ndata: [DONE]\n\n");
}

static void task_fail(void *context, HttpRequest *request, const HttpError *error)
{
    ChatTask *task = context;
    if (task->stream)
        append_error_event(error, &request->out);
    else
        http_reply_error(request, error);
}

static void task_keep_alive(void *context, HttpRequest *request)
{
    (void)context;
    buffer_append_text(&request->out, ": keep-alive\n\n");
}

/* A generation that did not end as it should. Its message is the engine's, not the client's fault.
 */
static bool check_outcome(const ChatTask *task, const JobStatus *status, HttpError *error)
{
    Error fault = status->error;
    if (status->finish == FINISH_ERROR)
        return http_error_from(error, &fault, FAULT_VALUE, FAULT_INTERNAL, NULL);
    if (status->finish == FINISH_CANCELLED)
        return http_error_set(
            error, fault.code == ERROR_CANCELLED ? FAULT_INTERNAL : FAULT_SHUTTING_DOWN, NULL, "%s",
            fault.code == ERROR_CANCELLED ? fault.message : "The server is shutting down.");
    if (!buffer_check(&task->text, "the reply", &fault))
        return http_error_from(error, &fault, FAULT_INTERNAL, FAULT_INTERNAL, NULL);
    return true;
}

static HttpProgress advance_stream(ChatTask *task, HttpRequest *request)
{
    JobStatus status;
    HttpError error;
    bool had_begun = task->began;
    if (!task->began)
        chat_stream_begin(&task->reply, &request->out);
    task->began = true;
    buffer_clear(&task->text);
    job_read(task->job, &task->text, &status);
    if (task->text.len > 0)
        chat_stream_text(&task->reply, buffer_view(&task->text), &request->out);
    if (!check_outcome(task, &status, &error)) {
        append_error_event(&error, &request->out);
        return HTTP_END;
    }
    if (status.finish == FINISH_NONE)
        return task->text.len > 0 || !had_begun ? HTTP_MORE : HTTP_WAIT;
    chat_stream_end(&task->reply, &status, &request->out);
    return HTTP_END;
}

static HttpProgress task_advance(void *context, HttpRequest *request)
{
    ChatTask *task = context;
    JobStatus status;
    HttpError error;
    if (task->stream)
        return advance_stream(task, request);
    job_read(task->job, &task->text, &status);
    if (!check_outcome(task, &status, &error)) {
        http_reply_error(request, &error);
        return HTTP_END;
    }
    if (status.finish == FINISH_NONE)
        return HTTP_WAIT;
    chat_response_write(&task->reply, buffer_view(&task->text), &status, &request->reply);
    http_reply(request, 200, "application/json");
    return HTTP_END;
}

static const HttpTaskOps CHAT_OPS = {task_advance, task_fail, task_keep_alive, task_free};

/* ---- Start ---- */

static bool parse_body(HttpRequest *request, const JsonValue **body, HttpError *error)
{
    Error err;
    if (!json_parse(buffer_view(&request->body), &request->arena, body, &err)) {
        if (err.code == ERROR_MEMORY)
            return http_error_set(error, FAULT_TOO_LARGE, NULL,
                                  "The body holds more values than the server has memory for.");
        return http_error_from(error, &err, FAULT_INVALID_JSON, FAULT_INVALID_JSON, NULL);
    }
    return true;
}

static void report_ignored(HttpRequest *request, const ChatCall *call)
{
    Buffer names;
    buffer_init(&names, CHAT_IGNORED_FIELDS_MAX * (HTTP_QUOTE_BYTES_MAX + 2));
    for (size_t i = 0; i < call->n_ignored; i++)
        buffer_append_format(&names, "%s%.*s", i > 0 ? ", " : "", QUOTE_ARG(call->ignored[i]));
    if (names.len > 0)
        http_add_header(request, "x-ignored-fields", buffer_view(&names));
    buffer_reset(&names);
}

/* Messages to prompt tokens. */
static bool render_prompt(HttpRequest *request, const ChatCall *call, TokenList *tokens,
                          HttpError *error)
{
    Error err = {0};
    Buffer prompt;
    buffer_init(&prompt, CHAT_PROMPT_BYTES_MAX);
    ChatRequest chat = {.messages = call->messages,
                        .kwargs = call->kwargs,
                        .add_generation_prompt = true,
                        .join_content = true};
    bool ok =
        chat_template_render(request->server->chat, &chat, &request->arena, &prompt, &err) &&
        tokenizer_encode(request->server->tokenizer, buffer_view(&prompt), false, tokens, &err);
    buffer_reset(&prompt);
    if (!ok)
        return http_error_from(error, &err, FAULT_VALUE, FAULT_VALUE, "messages");
    if (tokens->count == 0)
        return http_error_set(error, FAULT_VALUE, "messages", "The messages make an empty prompt.");
    return true;
}

static bool make_task(HttpRequest *request, const ChatCall *call, ChatTask **out, HttpError *error)
{
    Server *server = request->server;
    ChatTask *task = memory_allocate_zeroed(1, sizeof(*task));
    if (!task)
        return http_error_set(error, FAULT_INTERNAL, NULL, "Out of memory.");
    buffer_init(&task->text, SERVER_REPLY_BYTES_MAX);
    task->stream = call->stream;
    task->reply = (ChatReply){
        .id = http_next_reply_id(server),
        .created = clock_unix_milliseconds() / 1000,
        .model = server->model_id,
        .fingerprint = server->fingerprint,
        .include_usage = call->include_usage,
    };
    *out = task;
    return true;
}

static bool submit(HttpRequest *request, const ChatCall *call, const TokenList *tokens,
                   ChatTask *task, HttpError *error)
{
    Error err = {0};
    JobRequest job = {
        .prompt = tokens->ids,
        .n_prompt = tokens->count,
        .generation = call->generation,
        .notify = http_notify,
        .notify_context = request,
        /* A whole reply is wanted at its end; in between only room is made. */
        .notify_bytes = call->stream ? 0 : SCHEDULER_JOB_TEXT_BYTES_MAX / 4,
    };
    if (scheduler_submit(request->server->scheduler, &job, &task->job, &err))
        return true;
    return http_error_from(error, &err, FAULT_VALUE,
                           err.code == ERROR_LIMIT ? FAULT_CONTEXT_LENGTH : FAULT_VALUE,
                           "messages");
}

static bool start_chat(HttpRequest *request, HttpError *error)
{
    ChatCall call;
    const JsonValue *body;
    TokenList tokens = {0};
    ChatTask *task = NULL;
    ChatDefaults defaults = {
        .temperature = request->server->temperature,
        .vocab_size = tokenizer_vocabulary_size(request->server->tokenizer),
    };
    bool ok = parse_body(request, &body, error) &&
              chat_request_read(body, &defaults, &request->arena, &call, error);
    if (ok)
        report_ignored(request, &call);
    ok = ok && render_prompt(request, &call, &tokens, error) &&
         make_task(request, &call, &task, error) && submit(request, &call, &tokens, task, error);
    token_list_reset(&tokens);
    if (ok)
        http_start_task(request, &CHAT_OPS, task, call.stream);
    else if (task)
        task_free(task);
    return ok;
}

void chat_handle(HttpRequest *request)
{
    HttpError error;
    if (!start_chat(request, &error))
        http_reply_error(request, &error);
}
