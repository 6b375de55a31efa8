#include "chat_response.h"

#include <stdio.h>

static void write_usage(const JobStatus *status, JsonWriter *writer)
{
    size_t prompt = status->prompt_tokens, completion = status->completion_tokens;
    json_write_object_begin(writer);
    json_write_key(writer, "prompt_tokens");
    json_write_uint(writer, prompt);
    json_write_key(writer, "completion_tokens");
    json_write_uint(writer, completion);
    json_write_key(writer, "total_tokens");
    json_write_uint(writer, prompt + completion);
    json_write_key(writer, "prompt_tokens_details");
    json_write_object_begin(writer);
    json_write_key(writer, "cached_tokens");
    json_write_uint(writer, 0);
    json_write_object_end(writer);
    json_write_key(writer, "completion_tokens_details");
    json_write_object_begin(writer);
    json_write_key(writer, "reasoning_tokens");
    json_write_uint(writer, 0);
    json_write_object_end(writer);
    json_write_object_end(writer);
}

/* Microsecond steps: more digits would be noise. */
static double round_to_microsecond(double milliseconds)
{
    return (double)(int64_t)(milliseconds * 1000 + 0.5) / 1000;
}

static void write_timing(const char *const keys[3], size_t tokens, double seconds,
                         JsonWriter *writer)
{
    json_write_key(writer, keys[0]);
    json_write_uint(writer, tokens);
    json_write_key(writer, keys[1]);
    json_write_double(writer, round_to_microsecond(seconds * 1000));
    json_write_key(writer, keys[2]);
    json_write_double(writer, seconds > 0 ? round_to_microsecond((double)tokens / seconds) : 0.0);
}

static void write_timings(const JobStatus *status, JsonWriter *writer)
{
    static const char *const PROMPT[] = {"prompt_n", "prompt_ms", "prompt_per_second"};
    static const char *const PREDICTED[] = {"predicted_n", "predicted_ms", "predicted_per_second"};
    json_write_object_begin(writer);
    json_write_key(writer, "cache_n");
    json_write_uint(writer, 0);
    write_timing(PROMPT, status->prompt_tokens, status->prompt_seconds, writer);
    write_timing(PREDICTED, status->completion_tokens, status->decode_seconds, writer);
    json_write_object_end(writer);
}

static void write_head(const ChatReply *reply, const char *object, JsonWriter *writer)
{
    char id[48];
    snprintf(id, sizeof(id), "chatcmpl-%lld", (long long)reply->id);
    json_write_key(writer, "id");
    json_write_text(writer, id);
    json_write_key(writer, "object");
    json_write_text(writer, object);
    json_write_key(writer, "created");
    json_write_int(writer, reply->created);
    json_write_key(writer, "model");
    json_write_string(writer, reply->model);
    json_write_key(writer, "system_fingerprint");
    json_write_text(writer, reply->fingerprint);
}

static void write_finish(const JobStatus *status, JsonWriter *writer)
{
    json_write_key(writer, "logprobs");
    json_write_null(writer);
    json_write_key(writer, "finish_reason");
    if (status)
        json_write_text(writer, finish_reason_name(status->finish));
    else
        json_write_null(writer);
}

void chat_response_write(const ChatReply *reply, Slice text, const JobStatus *status, Buffer *out)
{
    JsonWriter writer;
    json_writer_init(&writer, out, 0);
    json_write_object_begin(&writer);
    write_head(reply, "chat.completion", &writer);
    json_write_key(&writer, "choices");
    json_write_array_begin(&writer);
    json_write_object_begin(&writer);
    json_write_key(&writer, "index");
    json_write_int(&writer, 0);
    json_write_key(&writer, "message");
    json_write_object_begin(&writer);
    json_write_key(&writer, "role");
    json_write_text(&writer, "assistant");
    json_write_key(&writer, "content");
    json_write_string(&writer, text);
    json_write_object_end(&writer);
    write_finish(status, &writer);
    json_write_object_end(&writer);
    json_write_array_end(&writer);
    json_write_key(&writer, "usage");
    write_usage(status, &writer);
    json_write_key(&writer, "timings");
    write_timings(status, &writer);
    json_write_object_end(&writer);
}

/* ---- Chunks ---- */

static void begin_chunk(const ChatReply *reply, JsonWriter *writer, Buffer *out)
{
    buffer_append_text(out, "data: ");
    json_writer_init(writer, out, 0);
    json_write_object_begin(writer);
    write_head(reply, "chat.completion.chunk", writer);
    json_write_key(writer, "choices");
    json_write_array_begin(writer);
}

static void end_chunk(JsonWriter *writer, Buffer *out)
{
    json_write_object_end(writer);
    buffer_append_text(out, "\n\n");
}

/* One chunk with one choice; role and text may be absent (NULL), status only at the end. */
static void write_delta(const ChatReply *reply, const char *role, const Slice *text,
                        const JobStatus *status, Buffer *out)
{
    JsonWriter writer;
    begin_chunk(reply, &writer, out);
    json_write_object_begin(&writer);
    json_write_key(&writer, "index");
    json_write_int(&writer, 0);
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
    write_finish(status, &writer);
    json_write_object_end(&writer);
    json_write_array_end(&writer);
    if (reply->include_usage) {
        json_write_key(&writer, "usage");
        json_write_null(&writer);
    }
    end_chunk(&writer, out);
}

void chat_stream_begin(const ChatReply *reply, Buffer *out)
{
    Slice empty = SLICE("");
    write_delta(reply, "assistant", &empty, NULL, out);
}

void chat_stream_text(const ChatReply *reply, Slice text, Buffer *out)
{
    write_delta(reply, NULL, &text, NULL, out);
}

void chat_stream_end(const ChatReply *reply, const JobStatus *status, Buffer *out)
{
    write_delta(reply, NULL, NULL, status, out);
    if (reply->include_usage) {
        JsonWriter writer;
        begin_chunk(reply, &writer, out);
        json_write_array_end(&writer);
        json_write_key(&writer, "usage");
        write_usage(status, &writer);
        json_write_key(&writer, "timings");
        write_timings(status, &writer);
        end_chunk(&writer, out);
    }
    buffer_append_text(out, "data: [DONE]\n\n");
}
