#include "reply.h"

static void reply_free(void *task)
{
    Reply *reply = task;
    for (size_t i = 0; i < reply->n_prompts; i++) {
        job_release(reply->prompts[i].job);
        logprob_list_reset(&reply->prompts[i].logprobs);
    }
    for (size_t i = 0; i < reply->n_choices; i++) {
        buffer_reset(&reply->choices[i].text);
        logprob_list_reset(&reply->choices[i].logprobs);
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

static bool check_memory(const ReplyChoice *choice, HttpError *error)
{
    Error err;
    if (buffer_check(&choice->text, "the reply", &err) &&
        logprob_list_check(&choice->logprobs, &err))
        return true;
    return http_error_from(error, &err, FAULT_INTERNAL, FAULT_INTERNAL, NULL);
}

/* Takes what a choice has produced to the end of its lists. */
static bool read_choice(Reply *reply, ReplyChoice *choice, HttpError *error)
{
    ReplyPrompt *prompt = &reply->prompts[choice->prompt];
    job_read_choice(prompt->job, choice->number, &choice->text,
                    reply->logprobs ? &choice->logprobs : NULL, &choice->status);
    return check_outcome(&choice->status, error) && check_memory(choice, error);
}

static void record_outcome(const Reply *reply, HttpOutcome *outcome)
{
    const JobStatus *first = &reply->choices[0].status;
    outcome->has_ended = true;
    outcome->queue_seconds = first->queue_seconds;
    outcome->first_token_seconds = first->first_token_seconds;
    outcome->finish = finish_reason_name(first->finish);
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

static size_t count_characters(Slice text)
{
    size_t count = 0;
    for (size_t i = 0; i < text.len; i++)
        count += ((unsigned char)text.ptr[i] & 0xc0) != 0x80;
    return count;
}

/* Writes the events for what a choice has. */
static void tell_choice(Reply *reply, ReplyChoice *choice, Buffer *out)
{
    if (choice->text.len > 0) {
        reply->dialect->delta(reply, choice, out);
        choice->characters += count_characters(buffer_view(&choice->text));
        buffer_clear(&choice->text);
        logprob_list_clear(&choice->logprobs);
    }
    if (choice->status.finish == FINISH_NONE)
        return;
    reply->dialect->choice_end(reply, choice, out);
    logprob_list_clear(&choice->logprobs);
    choice->ended = true;
}

/* A stream begins at once, unless it begins with log-probabilities of the prompt: they come with
 * the first reading. Errors are then still ordinary responses of the stream's own kind. */
static bool can_begin(Reply *reply)
{
    if (!reply->echo || !reply->logprobs)
        return true;
    for (size_t i = 0; i < reply->n_prompts; i++) {
        ReplyPrompt *prompt = &reply->prompts[i];
        if (!prompt->has_logprobs)
            prompt->has_logprobs = job_read_prompt_logprobs(prompt->job, &prompt->logprobs);
        if (!prompt->has_logprobs)
            return false;
    }
    return true;
}

static HttpProgress advance_stream(Reply *reply, HttpRequest *request)
{
    HttpError error;
    size_t before = request->out.len, ended = 0;
    if (!reply->began && can_begin(reply)) {
        reply->dialect->begin(reply, &request->out);
        reply->began = true;
    }
    for (size_t i = 0; i < reply->n_choices; i++) {
        ReplyChoice *choice = &reply->choices[i];
        if (!choice->ended) {
            if (!read_choice(reply, choice, &error)) {
                if (reply->began && choice->text.len > 0)
                    reply->dialect->delta(reply, choice, &request->out);
                request->error = error;
                reply->dialect->error(&error, &request->out);
                return HTTP_END;
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
    for (size_t i = 0; i < reply->n_choices; i++) {
        ReplyChoice *choice = &reply->choices[i];
        if (!choice->ended && !read_choice(reply, choice, &error)) {
            http_reply_error(request, &error);
            return HTTP_END;
        }
        choice->ended = choice->status.finish != FINISH_NONE;
        ended += choice->ended;
    }
    if (ended < reply->n_choices)
        return HTTP_WAIT;
    can_begin(reply); /* takes the prompt's log-probabilities */
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
