#include "chat_response.h"

#include "openai_json.h"

static const OpenaiNames NAMES = {"chatcmpl-", "chat.completion", "chat.completion.chunk"};

/* ---- Log-probabilities ---- */

/* The members of an entry that all tokens have. bytes are exact; token is text, where a part of a
 * character shows as U+FFFD. */
static void write_token(int32_t id, float logprob, Slice bytes, JsonWriter *writer)
{
    json_write_key(writer, "token");
    json_write_string(writer, bytes);
    json_write_key(writer, "logprob");
    openai_write_logprob(logprob, writer);
    json_write_key(writer, "bytes");
    json_write_array_begin(writer);
    for (size_t i = 0; i < bytes.len; i++)
        json_write_int(writer, (unsigned char)bytes.ptr[i]);
    json_write_array_end(writer);
    json_write_key(writer, "id");
    json_write_int(writer, id);
}

static void write_alternative(const Reply *reply, const TokenLogprob *top, JsonWriter *writer)
{
    Buffer bytes;
    Error err;
    buffer_init(&bytes, TOKENIZER_TEXT_BYTES_MAX);
    if (!tokenizer_append_token_bytes(reply->tokenizer, top->id, &bytes, &err)) {
        if (err.code == ERROR_MEMORY)
            writer->out->failed = true; /* the reply fails as a whole, not silently in part */
        buffer_clear(&bytes);           /* the token is told by its id */
    }
    json_write_object_begin(writer);
    write_token(top->id, top->logprob, buffer_view(&bytes), writer);
    json_write_object_end(writer);
    buffer_reset(&bytes);
}

static void write_entry(const Reply *reply, const LogprobList *list, const LogprobEntry *entry,
                        JsonWriter *writer)
{
    json_write_object_begin(writer);
    write_token(entry->id, entry->logprob, logprob_list_bytes(list, entry), writer);
    json_write_key(writer, "top_logprobs");
    json_write_array_begin(writer);
    for (size_t i = 0; i < entry->n_top; i++)
        write_alternative(reply, &entry->top[i], writer);
    json_write_array_end(writer);
    json_write_object_end(writer);
}

static void write_logprobs(const Reply *reply, const LogprobList *list, JsonWriter *writer)
{
    json_write_key(writer, "logprobs");
    if (!list || !reply->logprobs) {
        json_write_null(writer);
        return;
    }
    json_write_object_begin(writer);
    json_write_key(writer, "content");
    json_write_array_begin(writer);
    for (size_t i = 0; i < logprob_list_count(list); i++)
        write_entry(reply, list, logprob_list_get(list, i), writer);
    json_write_array_end(writer);
    json_write_key(writer, "refusal");
    json_write_null(writer);
    json_write_object_end(writer);
}

/* ---- Calls ---- */

/* The members of a call that its first delta has; arguments follow, or come whole. */
static void write_call(const ReplyToolCall *call, Slice arguments, JsonWriter *writer)
{
    json_write_key(writer, "id");
    json_write_text(writer, call->id);
    json_write_key(writer, "type");
    json_write_text(writer, "function");
    json_write_key(writer, "function");
    json_write_object_begin(writer);
    json_write_key(writer, "name");
    json_write_string(writer, buffer_view(&call->name));
    json_write_key(writer, "arguments");
    json_write_string(writer, arguments);
    json_write_object_end(writer);
}

static void write_calls(const ReplyChoice *choice, JsonWriter *writer)
{
    json_write_key(writer, "tool_calls");
    json_write_array_begin(writer);
    for (size_t i = 0; i < choice->parts.n_calls; i++) {
        json_write_object_begin(writer);
        write_call(&choice->calls[i], buffer_view(&choice->calls[i].arguments), writer);
        json_write_object_end(writer);
    }
    json_write_array_end(writer);
}

/* ---- Whole ---- */

static void write_choice(const Reply *reply, const ReplyChoice *choice, JsonWriter *writer)
{
    json_write_object_begin(writer);
    json_write_key(writer, "index");
    json_write_uint(writer, choice->index);
    json_write_key(writer, "message");
    json_write_object_begin(writer);
    json_write_key(writer, "role");
    json_write_text(writer, "assistant");
    json_write_key(writer, "content");
    if (choice->text.len == 0 && choice->parts.n_calls > 0)
        json_write_null(writer);
    else
        json_write_string(writer, buffer_view(&choice->text));
    if (choice->reasoning.len > 0) {
        json_write_key(writer, "reasoning_content");
        json_write_string(writer, buffer_view(&choice->reasoning));
    }
    if (choice->parts.n_calls > 0)
        write_calls(choice, writer);
    json_write_object_end(writer);
    write_logprobs(reply, &choice->logprobs, writer);
    openai_write_finish(reply_finish_name(choice), writer);
    json_write_object_end(writer);
}

static void write_whole(const Reply *reply, Buffer *out)
{
    JsonWriter writer;
    openai_begin_whole(reply, &NAMES, &writer, out);
    for (size_t i = 0; i < reply->n_choices; i++)
        write_choice(reply, &reply->choices[i], &writer);
    openai_end_whole(reply, &writer);
}

/* ---- Chunks ---- */

/* A chunk of one choice, open for the members of its delta. */
static void begin_delta(const Reply *reply, size_t index, JsonWriter *writer, Buffer *out)
{
    openai_begin_chunk(reply, &NAMES, writer, out);
    json_write_object_begin(writer);
    json_write_key(writer, "index");
    json_write_uint(writer, index);
    json_write_key(writer, "delta");
    json_write_object_begin(writer);
}

/* list: what goes with the delta's text, or NULL. */
static void end_delta(const Reply *reply, const LogprobList *list, const char *finish,
                      JsonWriter *writer, Buffer *out)
{
    json_write_object_end(writer);
    write_logprobs(reply, list, writer);
    openai_write_finish(finish, writer);
    json_write_object_end(writer);
    openai_end_chunk(reply, writer, out);
}

static void stream_begin(const Reply *reply, Buffer *out)
{
    JsonWriter writer;
    for (size_t i = 0; i < reply->n_choices; i++) {
        begin_delta(reply, i, &writer, out);
        json_write_key(&writer, "role");
        json_write_text(&writer, "assistant");
        json_write_key(&writer, "content");
        json_write_text(&writer, "");
        end_delta(reply, NULL, NULL, &writer, out);
    }
}

static void stream_text(const Reply *reply, const ReplyChoice *choice, const char *key, Slice text,
                        const LogprobList *list, Buffer *out)
{
    JsonWriter writer;
    begin_delta(reply, choice->index, &writer, out);
    json_write_key(&writer, key);
    json_write_string(&writer, text);
    end_delta(reply, list, NULL, &writer, out);
}

static void stream_delta(const Reply *reply, const ReplyChoice *choice, Buffer *out)
{
    stream_text(reply, choice, "content", buffer_view(&choice->text), &choice->logprobs, out);
}

static void stream_reasoning(const Reply *reply, const ReplyChoice *choice, Slice text, Buffer *out)
{
    stream_text(reply, choice, "reasoning_content", text, NULL, out);
}

static void begin_call_delta(const Reply *reply, const ReplyChoice *choice, size_t call,
                             JsonWriter *writer, Buffer *out)
{
    begin_delta(reply, choice->index, writer, out);
    json_write_key(writer, "tool_calls");
    json_write_array_begin(writer);
    json_write_object_begin(writer);
    json_write_key(writer, "index");
    json_write_uint(writer, call);
}

static void end_call_delta(const Reply *reply, JsonWriter *writer, Buffer *out)
{
    json_write_object_end(writer);
    json_write_array_end(writer);
    end_delta(reply, NULL, NULL, writer, out);
}

static void stream_call(const Reply *reply, const ReplyChoice *choice, size_t call, Buffer *out)
{
    JsonWriter writer;
    begin_call_delta(reply, choice, call, &writer, out);
    write_call(&choice->calls[call], SLICE(""), &writer);
    end_call_delta(reply, &writer, out);
}

static void stream_arguments(const Reply *reply, const ReplyChoice *choice, size_t call, Slice text,
                             Buffer *out)
{
    JsonWriter writer;
    begin_call_delta(reply, choice, call, &writer, out);
    json_write_key(&writer, "function");
    json_write_object_begin(&writer);
    json_write_key(&writer, "arguments");
    json_write_string(&writer, text);
    json_write_object_end(&writer);
    end_call_delta(reply, &writer, out);
}

static void stream_choice_end(const Reply *reply, const ReplyChoice *choice, Buffer *out)
{
    JsonWriter writer;
    bool has_rest = logprob_list_count(&choice->logprobs) > 0;
    begin_delta(reply, choice->index, &writer, out);
    end_delta(reply, has_rest ? &choice->logprobs : NULL, reply_finish_name(choice), &writer, out);
}

static void stream_end(const Reply *reply, Buffer *out)
{
    openai_end_stream(reply, &NAMES, out);
}

const ReplyDialect CHAT_DIALECT = {
    .begin = stream_begin,
    .delta = stream_delta,
    .reasoning = stream_reasoning,
    .call = stream_call,
    .arguments = stream_arguments,
    .choice_end = stream_choice_end,
    .end = stream_end,
    .error = openai_write_error_event,
    .keep_alive = openai_write_keep_alive,
    .whole = write_whole,
};
