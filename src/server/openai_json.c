#include "openai_json.h"

#include <math.h>
#include <stdio.h>

/* The object up to the first choice. */
static void begin_object(const Reply *reply, const char *id_prefix, const char *object,
                         JsonWriter *writer, Buffer *out)
{
    char id[48];
    snprintf(id, sizeof(id), "%s%lld", id_prefix, (long long)reply->id);
    json_writer_init(writer, out, 0);
    json_write_object_begin(writer);
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
    json_write_key(writer, "choices");
    json_write_array_begin(writer);
}

typedef struct Totals {
    size_t prompt, cached, completion, reasoning;
    double prompt_seconds, decode_seconds; /* of the slowest choice: they run side by side */
} Totals;

static Totals sum_up(const Reply *reply)
{
    Totals totals = {0};
    for (size_t i = 0; i < reply->n_choices; i++) {
        const JobStatus *status = &reply->choices[i].status;
        totals.completion += status->completion_tokens;
        totals.reasoning += status->reasoning_tokens;
        totals.prompt_seconds = fmax(totals.prompt_seconds, status->prompt_seconds);
        totals.decode_seconds = fmax(totals.decode_seconds, status->decode_seconds);
        if (reply->choices[i].number == 0) {
            totals.prompt += status->prompt_tokens;
            totals.cached += status->cached_tokens;
        }
    }
    return totals;
}

static void write_detail(const char *group, const char *name, size_t count, JsonWriter *writer)
{
    json_write_key(writer, group);
    json_write_object_begin(writer);
    json_write_key(writer, name);
    json_write_uint(writer, count);
    json_write_object_end(writer);
}

/* Prompts are counted once, completions over all choices. */
static void write_usage(const Totals *totals, JsonWriter *writer)
{
    json_write_key(writer, "usage");
    json_write_object_begin(writer);
    json_write_key(writer, "prompt_tokens");
    json_write_uint(writer, totals->prompt);
    json_write_key(writer, "completion_tokens");
    json_write_uint(writer, totals->completion);
    json_write_key(writer, "total_tokens");
    json_write_uint(writer, totals->prompt + totals->completion);
    write_detail("prompt_tokens_details", "cached_tokens", totals->cached, writer);
    write_detail("completion_tokens_details", "reasoning_tokens", totals->reasoning, writer);
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

static void write_timings(const Totals *totals, JsonWriter *writer)
{
    static const char *const PROMPT[] = {"prompt_n", "prompt_ms", "prompt_per_second"};
    static const char *const PREDICTED[] = {"predicted_n", "predicted_ms", "predicted_per_second"};
    json_write_key(writer, "timings");
    json_write_object_begin(writer);
    json_write_key(writer, "cache_n");
    json_write_uint(writer, totals->cached);
    write_timing(PROMPT, totals->prompt - totals->cached, totals->prompt_seconds, writer);
    write_timing(PREDICTED, totals->completion, totals->decode_seconds, writer);
    json_write_object_end(writer);
}

void openai_end_whole(const Reply *reply, JsonWriter *writer)
{
    Totals totals = sum_up(reply);
    json_write_array_end(writer);
    write_usage(&totals, writer);
    write_timings(&totals, writer);
    json_write_object_end(writer);
}

void openai_begin_whole(const Reply *reply, const OpenaiNames *names, JsonWriter *writer,
                        Buffer *out)
{
    begin_object(reply, names->id_prefix, names->whole, writer, out);
}

void openai_write_finish(const char *finish, JsonWriter *writer)
{
    json_write_key(writer, "finish_reason");
    if (finish)
        json_write_text(writer, finish);
    else
        json_write_null(writer);
}

void openai_write_logprob(float logprob, JsonWriter *writer)
{
    json_write_float(writer, isinf(logprob) ? -9999.0f : logprob);
}

/* ---- Events ---- */

void openai_begin_chunk(const Reply *reply, const OpenaiNames *names, JsonWriter *writer,
                        Buffer *out)
{
    buffer_append_text(out, "data: ");
    begin_object(reply, names->id_prefix, names->chunk, writer, out);
}

void openai_end_chunk(const Reply *reply, JsonWriter *writer, Buffer *out)
{
    json_write_array_end(writer);
    if (reply->include_usage) {
        json_write_key(writer, "usage");
        json_write_null(writer);
    }
    json_write_object_end(writer);
    buffer_append_text(out, "\n\n");
}

void openai_end_stream(const Reply *reply, const OpenaiNames *names, Buffer *out)
{
    JsonWriter writer;
    if (reply->include_usage) {
        openai_begin_chunk(reply, names, &writer, out);
        openai_end_whole(reply, &writer);
        buffer_append_text(out, "\n\n");
    }
    buffer_append_text(out, "data: [DONE]\n\n");
}

void openai_write_error_event(const HttpError *error, Buffer *out)
{
    buffer_append_text(out, "data: ");
    http_error_write(error, out);
    buffer_append_text(out, "\n\ndata: [DONE]\n\n");
}

void openai_write_keep_alive(Buffer *out)
{
    buffer_append_text(out, ": keep-alive\n\n");
}
