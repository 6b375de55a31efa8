#include "json_lines.h"

#include "cli.h"
#include "line_reader.h"

#include <unistd.h>

static bool answer_line(Slice line, AnswerLine answer, void *context, Buffer *out, Error *err)
{
    Arena arena;
    arena_init(&arena, JSON_LINES_BYTES_MAX);
    const JsonValue *request;
    bool ok = json_parse(line, &arena, &request, err);
    if (ok && request->kind != JSON_OBJECT)
        ok = error_set(err, ERROR_INVALID, "a line must be a JSON object");
    if (ok) {
        JsonWriter writer;
        json_writer_init(&writer, out, 0);
        json_write_object_begin(&writer);
        ok = answer(context, request, &writer, &arena, err);
        if (ok)
            json_write_object_end(&writer);
    }
    arena_reset(&arena);
    return ok && buffer_check(out, "the result", err);
}

static void write_error_line(Buffer *out, const Error *fault)
{
    JsonWriter writer;
    json_writer_init(&writer, out, 0);
    json_write_object_begin(&writer);
    json_write_key(&writer, "error");
    json_write_text(&writer, fault->message);
    json_write_object_end(&writer);
}

bool json_lines_answer(AnswerLine answer, void *context, Error *err)
{
    LineReader reader;
    Buffer out;
    bool ok = false;
    line_reader_init(&reader, STDIN_FILENO);
    buffer_init(&out, JSON_LINES_BYTES_MAX);
    for (;;) {
        Slice line = SLICE_EMPTY;
        bool has_line;
        if (!line_reader_next(&reader, &line, &has_line, err))
            goto cleanup;
        if (!has_line || stop_requested())
            break;
        Error fault = {0};
        if (!answer_line(line, answer, context, &out, &fault)) {
            buffer_clear(&out);
            write_error_line(&out, &fault);
        }
        buffer_append_byte(&out, '\n');
        if (!write_output(&out, err))
            goto cleanup;
    }
    ok = true;
cleanup:
    buffer_reset(&out);
    line_reader_reset(&reader);
    return ok;
}
