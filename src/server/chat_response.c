#include "chat_response.h"

#include "openai_json.h"

#define ID_PREFIX "chatcmpl-"

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
    if (!tokenizer_append_token_bytes(reply->tokenizer, top->id, &bytes, &err))
        buffer_clear(&bytes); /* the token is told by its id */
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

static void write_finish(FinishReason finish, JsonWriter *writer)
{
    json_write_key(writer, "finish_reason");
    if (finish == FINISH_NONE)
        json_write_null(writer);
    else
        json_write_text(writer, finish_reason_name(finish));
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
    json_write_string(writer, buffer_view(&choice->text));
    json_write_object_end(writer);
    write_logprobs(reply, &choice->logprobs, writer);
    write_finish(choice->status.finish, writer);
    json_write_object_end(writer);
}

static void write_whole(const Reply *reply, Buffer *out)
{
    JsonWriter writer;
    json_writer_init(&writer, out, 0);
    json_write_object_begin(&writer);
    openai_write_head(reply, ID_PREFIX, "chat.completion", &writer);
    json_write_key(&writer, "choices");
    json_write_array_begin(&writer);
    for (size_t i = 0; i < reply->n_choices; i++)
        write_choice(reply, &reply->choices[i], &writer);
    json_write_array_end(&writer);
    json_write_key(&writer, "usage");
    openai_write_usage(reply, &writer);
    json_write_key(&writer, "timings");
    openai_write_timings(reply, &writer);
    json_write_object_end(&writer);
}

/* ---- Chunks ---- */

static void begin_chunk(const Reply *reply, JsonWriter *writer, Buffer *out)
{
    openai_begin_event(writer, out);
    openai_write_head(reply, ID_PREFIX, "chat.completion.chunk", writer);
    json_write_key(writer, "choices");
    json_write_array_begin(writer);
}

/* One chunk with one choice; role and text may be absent (NULL), list is what goes with the text.
 */
static void write_delta(const Reply *reply, size_t index, const char *role, const Slice *text,
                        const LogprobList *list, FinishReason finish, Buffer *out)
{
    JsonWriter writer;
    begin_chunk(reply, &writer, out);
    json_write_object_begin(&writer);
    json_write_key(&writer, "index");
    json_write_uint(&writer, index);
    json_write_key(&writer, "delta");
    json_write_object_begin(&writer);
    if (role) {
        json_write_key(&writer, "role");
        json_write_text(&writer, role);
    }
    if (text) {
        json_write_key(&writer, "content");
        json_write_string(&writer, *text);
    }
    json_write_object_end(&writer);
    write_logprobs(reply, list, &writer);
    write_finish(finish, &writer);
    json_write_object_end(&writer);
    json_write_array_end(&writer);
    if (reply->include_usage) {
        json_write_key(&writer, "usage");
        json_write_null(&writer);
    }
    openai_end_event(&writer, out);
}

static void stream_begin(const Reply *reply, Buffer *out)
{
    Slice empty = SLICE("");
    for (size_t i = 0; i < reply->n_choices; i++)
        write_delta(reply, i, "assistant", &empty, NULL, FINISH_NONE, out);
}

static void stream_delta(const Reply *reply, const ReplyChoice *choice, Buffer *out)
{
    Slice text = buffer_view(&choice->text);
    write_delta(reply, choice->index, NULL, &text, &choice->logprobs, FINISH_NONE, out);
}

static void stream_choice_end(const Reply *reply, const ReplyChoice *choice, Buffer *out)
{
    bool has_rest = logprob_list_count(&choice->logprobs) > 0;
    write_delta(reply, choice->index, NULL, NULL, has_rest ? &choice->logprobs : NULL,
                choice->status.finish, out);
}

static void stream_end(const Reply *reply, Buffer *out)
{
    if (reply->include_usage) {
        JsonWriter writer;
        begin_chunk(reply, &writer, out);
        json_write_array_end(&writer);
        json_write_key(&writer, "usage");
        openai_write_usage(reply, &writer);
        json_write_key(&writer, "timings");
        openai_write_timings(reply, &writer);
        openai_end_event(&writer, out);
    }
    buffer_append_text(out, "data: [DONE]\n\n");
}

const ReplyDialect CHAT_DIALECT = {
    .begin = stream_begin,
    .delta = stream_delta,
    .choice_end = stream_choice_end,
    .end = stream_end,
    .error = openai_write_error_event,
    .keep_alive = openai_write_keep_alive,
    .whole = write_whole,
};
