#include "reply.h"

#include <assert.h>
#include <string.h>

static void free_parts(ReplyChoice *choice)
{
    for (size_t i = 0; i < choice->n_calls; i++) {
        buffer_reset(&choice->calls[i].name);
        buffer_reset(&choice->calls[i].arguments);
    }
    memory_free(choice->calls);
    buffer_reset(&choice->reasoning);
    content_logprobs_reset(&choice->entries);
    buffer_reset(&choice->raw);
    chat_reply_reset(&choice->parts);
}

static void reply_free(void *task)
{
    Reply *reply = task;
    for (size_t i = 0; i < reply->n_prompts; i++) {
        job_release(reply->prompts[i].job);
        logprob_list_reset(&reply->prompts[i].logprobs);
    }
    for (size_t i = 0; i < reply->n_choices; i++) {
        ReplyChoice *choice = &reply->choices[i];
        buffer_reset(&choice->text);
        logprob_list_reset(&choice->logprobs);
        free_parts(choice);
    }
    memory_free(reply->choices);
    memory_free(reply->prompts);
    memory_free(reply);
}

/* ---- Reading ---- */

/* A generation that did not end as it should. Its message is the engine's, not the client's fault.
 */
static bool check_outcome(const JobStatus *status, HttpError *error)
{
    Error fault = status->error;
    if (status->finish == FINISH_ERROR)
        return http_error_from(error, &fault, FAULT_VALUE, FAULT_INTERNAL, NULL);
    if (status->finish == FINISH_CANCELLED)
        return http_error_set(
            error, fault.code == ERROR_CANCELLED ? FAULT_INTERNAL : FAULT_SHUTTING_DOWN, NULL, "%s",
            fault.code == ERROR_CANCELLED ? fault.message : "The server is shutting down.");
    return true;
}

static bool check_calls(const ReplyChoice *choice, Error *err)
{
    for (size_t i = 0; i < choice->n_calls; i++) {
        if (!buffer_check(&choice->calls[i].name, "the reply", err) ||
            !buffer_check(&choice->calls[i].arguments, "the reply", err))
            return false;
    }
    return true;
}

static bool check_memory(const ReplyChoice *choice, HttpError *error)
{
    Error err;
    if (check_calls(choice, &err) && buffer_check(&choice->text, "the reply", &err) &&
        buffer_check(&choice->raw, "the reply", &err) &&
        buffer_check(&choice->reasoning, "the reply", &err) &&
        logprob_list_check(&choice->entries.pending, &err) &&
        logprob_list_check(&choice->logprobs, &err))
        return true;
    return http_error_from(error, &err, FAULT_INTERNAL, FAULT_INTERNAL, NULL);
}

/* ---- Parts ---- */

typedef struct PartContext {
    const Reply *reply;
    ReplyChoice *choice;
    Buffer *out; /* of a stream's events; NULL: the reply is told as a whole */
} PartContext;

/* "call_" and 24 letters and digits, different for every call of the server. */
static void make_call_id(const Reply *reply, const ReplyChoice *choice, size_t call, char id[32])
{
    static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const uint64_t seed[] = {reply->call_key, (uint64_t)reply->id, choice->index, call};
    memcpy(id, "call_", 5);
    for (size_t i = 0; i < 24; i += 8) {
        uint64_t words[5] = {seed[0], seed[1], seed[2], seed[3], i};
        uint64_t hash = slice_hash((Slice){(const char *)words, sizeof(words)});
        for (size_t k = 0; k < 8; k++, hash /= 62)
            id[5 + i + k] = digits[hash % 62];
    }
    id[29] = '\0';
}

/* Text, and entries, have been told. */
static void count_told(ReplyChoice *choice)
{
    size_t count = logprob_list_count(&choice->logprobs), end = 0;
    Slice text = buffer_view(&choice->text);
    if (count > 0)
        end = logprob_list_get(&choice->logprobs, count - 1)->text_end;
    if (end > choice->bytes && end - choice->bytes <= text.len)
        choice->entry_characters =
            choice->characters + utf8_count((Slice){text.ptr, end - choice->bytes});
    choice->bytes += text.len;
    choice->characters += utf8_count(text);
}

/* Streams: content that was not told yet comes before what follows it. */
static void tell_content(const Reply *reply, ReplyChoice *choice, Buffer *out)
{
    if (choice->text.len == 0)
        return;
    reply->dialect->delta(reply, choice, out);
    count_told(choice);
    buffer_clear(&choice->text);
    logprob_list_clear(&choice->logprobs);
}

static void take_call(PartContext *context, const ChatPart *part)
{
    ReplyChoice *choice = context->choice;
    assert(part->call == choice->n_calls);
    if (!memory_grow_array((void **)&choice->calls, choice->n_calls, &choice->calls_capacity,
                           sizeof(*choice->calls))) {
        choice->raw.failed = true;
        return;
    }
    ReplyToolCall *call = &choice->calls[choice->n_calls++];
    *call = (ReplyToolCall){0};
    make_call_id(context->reply, choice, part->call, call->id);
    buffer_init(&call->name, SERVER_REPLY_BYTES_MAX);
    buffer_init(&call->arguments, SERVER_REPLY_BYTES_MAX);
    buffer_append_slice(&call->name, part->text);
    if (context->out)
        context->reply->dialect->call(context->reply, choice, part->call, context->out);
}

static void take_part(void *state, const ChatPart *part)
{
    PartContext *context = state;
    ReplyChoice *choice = context->choice;
    const ReplyDialect *dialect = context->reply->dialect;
    if (choice->raw.failed)
        return;
    if (part->kind == CHAT_PART_CONTENT) {
        buffer_append_slice(&choice->text, part->text);
        content_logprobs_take(&choice->entries, part->at, part->at + part->text.len,
                              &choice->logprobs);
        return;
    }
    if (context->out)
        tell_content(context->reply, choice, context->out);
    if (part->kind == CHAT_PART_CALL)
        take_call(context, part);
    else if (part->kind == CHAT_PART_REASONING && context->out)
        dialect->reasoning(context->reply, choice, part->text, context->out);
    else if (part->kind == CHAT_PART_REASONING)
        buffer_append_slice(&choice->reasoning, part->text);
    else if (context->out)
        dialect->arguments(context->reply, choice, part->call, part->text, context->out);
    else
        buffer_append_slice(&choice->calls[part->call].arguments, part->text);
}

/* Takes new raw text apart. */
static bool read_parts(const Reply *reply, ReplyChoice *choice, Buffer *out, HttpError *error)
{
    Error err = {0};
    PartContext context = {reply, choice, out};
    const ChatPartTaker taker = {take_part, &context};
    if (!chat_reply_push(&choice->parts, buffer_view(&choice->raw), &taker, &err))
        return http_error_from(error, &err, FAULT_INTERNAL, FAULT_INTERNAL, NULL);
    if (choice->status.finish != FINISH_NONE) {
        chat_reply_finish(&choice->parts, &taker);
        content_logprobs_take(&choice->entries, SIZE_MAX, SIZE_MAX, &choice->logprobs);
    }
    if (!check_memory(choice, error))
        return false;
    buffer_clear(&choice->raw);
    return true;
}

const char *reply_finish_name(const ReplyChoice *choice)
{
    FinishReason finish = choice->status.finish;
    if (finish == FINISH_NONE)
        return NULL;
    bool is_cut = finish == FINISH_LENGTH && chat_reply_is_in_call(&choice->parts);
    return choice->parts.n_calls > 0 && !is_cut ? "tool_calls" : finish_reason_name(finish);
}

/* Takes what a choice has produced to the end of its lists. out: of a stream's events, or NULL. */
static bool read_choice(Reply *reply, ReplyChoice *choice, Buffer *out, HttpError *error)
{
    ReplyPrompt *prompt = &reply->prompts[choice->prompt];
    job_read_choice(prompt->job, choice->number, reply->has_parts ? &choice->raw : &choice->text,
                    !reply->logprobs   ? NULL
                    : reply->has_parts ? &choice->entries.pending
                                       : &choice->logprobs,
                    &choice->status);
    return check_outcome(&choice->status, error) && check_memory(choice, error) &&
           (!reply->has_parts || read_parts(reply, choice, out, error));
}

static void record_outcome(const Reply *reply, HttpOutcome *outcome)
{
    const JobStatus *first = &reply->choices[0].status;
    outcome->has_ended = true;
    outcome->queue_seconds = first->queue_seconds;
    outcome->first_token_seconds = first->first_token_seconds;
    outcome->finish = reply_finish_name(&reply->choices[0]);
    outcome->prompt_tokens = outcome->cached_tokens = outcome->completion_tokens = 0;
    for (size_t i = 0; i < reply->n_choices; i++) {
        const JobStatus *status = &reply->choices[i].status;
        outcome->completion_tokens += status->completion_tokens;
        if (reply->choices[i].number == 0) {
            outcome->prompt_tokens += status->prompt_tokens;
            outcome->cached_tokens += status->cached_tokens;
        }
    }
}

/* ---- Progress ---- */

/* Writes the events for what a choice has. */
static void tell_choice(Reply *reply, ReplyChoice *choice, Buffer *out)
{
    tell_content(reply, choice, out);
    if (choice->status.finish == FINISH_NONE)
        return;
    reply->dialect->choice_end(reply, choice, out);
    logprob_list_clear(&choice->logprobs);
    choice->ended = true;
}

/* Takes the prompts' log-probabilities as they become complete; *complete: none are missing. */
static bool read_prompts(Reply *reply, bool *complete, HttpError *error)
{
    Error err;
    *complete = true;
    for (size_t i = 0; reply->echo && reply->logprobs && i < reply->n_prompts; i++) {
        ReplyPrompt *prompt = &reply->prompts[i];
        if (!prompt->has_logprobs)
            prompt->has_logprobs = job_read_prompt_logprobs(prompt->job, &prompt->logprobs);
        if (!logprob_list_check(&prompt->logprobs, &err))
            return http_error_from(error, &err, FAULT_INTERNAL, FAULT_INTERNAL, NULL);
        *complete = *complete && prompt->has_logprobs;
    }
    return true;
}

/* A stream begins at once, unless it begins with log-probabilities of the prompt: they come with
 * the first reading. Errors are then still ordinary responses of the stream's own kind. */
static bool begin_stream(Reply *reply, Buffer *out, HttpError *error)
{
    bool can_begin;
    if (reply->began)
        return true;
    if (!read_prompts(reply, &can_begin, error))
        return false;
    if (can_begin)
        reply->dialect->begin(reply, out);
    reply->began = can_begin;
    return true;
}

static HttpProgress end_with_error(Reply *reply, HttpRequest *request, const HttpError *error)
{
    request->error = *error;
    reply->dialect->error(error, &request->out);
    return HTTP_END;
}

static HttpProgress advance_stream(Reply *reply, HttpRequest *request)
{
    HttpError error;
    size_t before = request->out.len, ended = 0;
    if (!begin_stream(reply, &request->out, &error))
        return end_with_error(reply, request, &error);
    for (size_t i = 0; i < reply->n_choices; i++) {
        ReplyChoice *choice = &reply->choices[i];
        if (!choice->ended) {
            if (!read_choice(reply, choice, &request->out, &error)) {
                if (reply->began && choice->text.len > 0)
                    reply->dialect->delta(reply, choice, &request->out);
                return end_with_error(reply, request, &error);
            }
            if (reply->began)
                tell_choice(reply, choice, &request->out);
        }
        ended += choice->ended;
    }
    if (ended == reply->n_choices) {
        record_outcome(reply, &request->outcome);
        reply->dialect->end(reply, &request->out);
        return HTTP_END;
    }
    return request->out.len > before ? HTTP_MORE : HTTP_WAIT;
}

static HttpProgress advance_whole(Reply *reply, HttpRequest *request)
{
    HttpError error;
    size_t ended = 0;
    bool all;
    for (size_t i = 0; i < reply->n_choices; i++) {
        ReplyChoice *choice = &reply->choices[i];
        if (!choice->ended && !read_choice(reply, choice, NULL, &error)) {
            http_reply_error(request, &error);
            return HTTP_END;
        }
        choice->ended = choice->status.finish != FINISH_NONE;
        ended += choice->ended;
    }
    if (ended < reply->n_choices)
        return HTTP_WAIT;
    if (!read_prompts(reply, &all, &error)) {
        http_reply_error(request, &error);
        return HTTP_END;
    }
    record_outcome(reply, &request->outcome);
    reply->dialect->whole(reply, &request->reply);
    http_reply(request, 200, "application/json");
    return HTTP_END;
}

static HttpProgress reply_advance(void *task, HttpRequest *request)
{
    Reply *reply = task;
    return reply->stream ? advance_stream(reply, request) : advance_whole(reply, request);
}

static void reply_fail(void *task, HttpRequest *request, const HttpError *error)
{
    Reply *reply = task;
    request->error = *error;
    if (reply->stream)
        reply->dialect->error(error, &request->out);
    else
        http_reply_error(request, error);
}

static void reply_keep_alive(void *task, HttpRequest *request)
{
    const Reply *reply = task;
    reply->dialect->keep_alive(&request->out);
}

static const HttpTaskOps REPLY_OPS = {reply_advance, reply_fail, reply_keep_alive, reply_free};

/* ---- Start ---- */

static bool make_reply(HttpRequest *request, const ReplyCall *call, Reply **out)
{
    Server *server = request->server;
    Reply *reply = memory_allocate_zeroed(1, sizeof(*reply));
    *out = reply;
    if (!reply)
        return false;
    *reply = (Reply){
        .dialect = call->dialect,
        .tokenizer = server->model.tokenizer,
        .id = http_next_reply_id(server),
        .created = clock_unix_milliseconds() / 1000,
        .model = server->options.model_id,
        .fingerprint = server->fingerprint,
        .stream = call->stream,
        .include_usage = call->include_usage,
        .logprobs = call->generation.logprobs,
        .echo = call->echoes != NULL,
        .has_parts = markup_has_marks(&call->generation.markup),
        .call_key = server->request_key,
    };
    reply->prompts = memory_allocate_zeroed(call->n_prompts, sizeof(*reply->prompts));
    reply->choices = memory_allocate_zeroed(call->n_prompts * call->n, sizeof(*reply->choices));
    if (!reply->prompts || !reply->choices)
        return false;
    reply->n_prompts = call->n_prompts;
    reply->n_choices = call->n_prompts * call->n;
    for (size_t i = 0; i < reply->n_prompts; i++) {
        logprob_list_init(&reply->prompts[i].logprobs);
        reply->prompts[i].echo = call->echoes ? call->echoes[i] : SLICE_EMPTY;
    }
    for (size_t i = 0; i < reply->n_choices; i++) {
        ReplyChoice *choice = &reply->choices[i];
        choice->index = i;
        choice->prompt = i / call->n;
        choice->number = i % call->n;
        buffer_init(&choice->text, SERVER_REPLY_BYTES_MAX);
        logprob_list_init(&choice->logprobs);
        chat_reply_init(&choice->parts, &call->generation.markup);
        buffer_init(&choice->raw, SERVER_REPLY_BYTES_MAX);
        buffer_init(&choice->reasoning, SERVER_REPLY_BYTES_MAX);
        content_logprobs_init(&choice->entries);
    }
    return true;
}

static bool submit_jobs(HttpRequest *request, const ReplyCall *call, Reply *reply, HttpError *error)
{
    Error err = {0};
    for (size_t i = 0; i < call->n_prompts; i++) {
        JobRequest job = {
            .prompt = call->prompts[i].ids,
            .n_prompt = call->prompts[i].count,
            .generation = call->generation,
            .n = call->n,
            .prompt_logprobs = reply->echo && reply->logprobs,
            .notify = http_notify,
            .notify_context = request,
            /* A whole reply is wanted at its end; in between only room is made. */
            .notify_bytes = call->stream ? 0 : SCHEDULER_JOB_TEXT_BYTES_MAX / 4,
        };
        request->outcome.prompt_tokens += job.n_prompt;
        if (!scheduler_submit(request->server->model.scheduler, &job, &reply->prompts[i].job, &err))
            return http_error_from(error, &err, FAULT_VALUE,
                                   err.code == ERROR_LIMIT ? FAULT_CONTEXT_LENGTH : FAULT_VALUE,
                                   call->prompt_param);
    }
    return true;
}

bool reply_start(HttpRequest *request, const ReplyCall *call, HttpError *error)
{
    Reply *reply;
    request->outcome = (HttpOutcome){.is_generation = true, .choices = call->n_prompts * call->n};
    bool ok = make_reply(request, call, &reply) ||
              http_error_set(error, FAULT_INTERNAL, NULL, "Out of memory.");
    if (ok && submit_jobs(request, call, reply, error)) {
        http_start_task(request, &REPLY_OPS, reply, call->stream);
        return true;
    }
    if (reply)
        reply_free(reply);
    return false;
}
