/* logits: what the engine computes for given token ids, as one JSON object. For tests and
 * debugging. */
#include "cli.h"

#include "generate.h"
#include "json.h"
#include "loaded_model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OUTPUT_PIECE_BYTES = 1 << 16, /* written to stdout when the buffer holds this much */
    OUTPUT_BYTES_MAX = 1 << 26,
    LOGITS_ROWS = 16, /* positions computed at once */
};

/* "1,2,3" to ids. */
static bool parse_tokens(const char *text, size_t vocab_size, TokenList *out, Error *err)
{
    for (const char *at = text;;) {
        char *end;
        errno = 0;
        long value = strtol(at, &end, 10);
        if (end == at || errno != 0 || (*end != ',' && *end != '\0') || value < 0)
            return error_set(err, ERROR_USAGE, "--tokens: \"%.40s\" is not a list of token ids",
                             at);
        if ((size_t)value >= vocab_size)
            return error_set(err, ERROR_USAGE, "--tokens: %ld is beyond the vocabulary of %zu",
                             value, vocab_size);
        if (!token_list_append(out, (int32_t)value, err))
            return false;
        if (*end == '\0')
            return true;
        at = end + 1;
    }
}

static bool write_position(JsonWriter *writer, size_t position, const float *logits, size_t count,
                           Error *err)
{
    json_write_object_begin(writer);
    json_write_key(writer, "pos");
    json_write_uint(writer, position);
    json_write_key(writer, "logits");
    json_write_array_begin(writer);
    for (size_t i = 0; i < count; i++) {
        json_write_float(writer, logits[i]);
        if (writer->out->len >= OUTPUT_PIECE_BYTES && !write_output(writer->out, err))
            return false;
    }
    json_write_array_end(writer);
    json_write_object_end(writer);
    return true;
}

/* Feeds the prompt and writes the positions asked for; the last position's logits end up first in
 * logits [LOGITS_ROWS, vocab_size]. */
static bool write_positions(Engine *engine, EngineSequence *sequence, const TokenList *tokens,
                            bool all, float *logits, size_t vocab_size, JsonWriter *writer,
                            Error *err)
{
    json_write_key(writer, "positions");
    json_write_array_begin(writer);
    size_t step = all ? LOGITS_ROWS : tokens->count;
    for (size_t at = 0; at < tokens->count; at += step) {
        size_t left = tokens->count - at;
        size_t count = left < step ? left : step;
        EngineRow row = {sequence, tokens->ids + at, count,
                         all ? ENGINE_LOGITS_ALL : ENGINE_LOGITS_LAST};
        if (!engine_forward(engine, &row, 1, logits, err))
            return false;
        size_t rows = all ? count : 1;
        for (size_t i = 0; i < rows; i++) {
            size_t position = at + count - rows + i;
            if (!write_position(writer, position, logits + i * vocab_size, vocab_size, err))
                return false;
        }
        memmove(logits, logits + (rows - 1) * vocab_size, vocab_size * sizeof(float));
    }
    json_write_array_end(writer);
    return true;
}

static bool write_greedy(Engine *engine, EngineSequence *sequence, size_t count, float *logits,
                         size_t vocab_size, JsonWriter *writer, Error *err)
{
    json_write_key(writer, "greedy");
    json_write_array_begin(writer);
    for (size_t i = 0; i < count; i++) {
        int32_t id = logits_argmax(logits, vocab_size);
        json_write_int(writer, id);
        EngineRow row = {sequence, &id, 1, ENGINE_LOGITS_LAST};
        if (i + 1 < count && !engine_forward(engine, &row, 1, logits, err))
            return false;
    }
    json_write_array_end(writer);
    return true;
}

static bool write_logits(const LoadedModel *loaded, const Arguments *arguments, Error *err)
{
    size_t vocab_size = loaded->model->config.vocab_size;
    TokenList tokens = {0};
    EngineSequence *sequence = NULL;
    float *logits = NULL;
    Buffer out;
    JsonWriter writer;
    bool ok = false;
    buffer_init(&out, OUTPUT_BYTES_MAX);
    json_writer_init(&writer, &out, 0);
    if (!parse_tokens(arguments->tokens, vocab_size, &tokens, err) ||
        !engine_sequence_create(loaded->engine, tokens.count + (size_t)arguments->greedy, &sequence,
                                err))
        goto cleanup;
    logits = memory_allocate_array(vocab_size, LOGITS_ROWS * sizeof(float));
    if (!logits) {
        error_no_memory(err, "logits");
        goto cleanup;
    }
    json_write_object_begin(&writer);
    json_write_key(&writer, "tokens");
    json_write_array_begin(&writer);
    for (size_t i = 0; i < tokens.count; i++)
        json_write_int(&writer, tokens.ids[i]);
    json_write_array_end(&writer);
    bool all = strcmp(arguments->positions, "all") == 0;
    if (!write_positions(loaded->engine, sequence, &tokens, all, logits, vocab_size, &writer,
                         err) ||
        !write_greedy(loaded->engine, sequence, (size_t)arguments->greedy, logits, vocab_size,
                      &writer, err))
        goto cleanup;
    json_write_object_end(&writer);
    buffer_append_byte(&out, '\n');
    ok = write_output(&out, err);
cleanup:
    memory_free(logits);
    engine_sequence_free(loaded->engine, sequence);
    token_list_reset(&tokens);
    buffer_reset(&out);
    return ok;
}

int command_logits(const Arguments *arguments)
{
    Error err = {0};
    LoadedModel loaded;
    if (!loaded_model_open(arguments, LOAD_ENGINE, &loaded, &err))
        return report_error(&err);
    bool ok = write_logits(&loaded, arguments, &err);
    loaded_model_close(&loaded);
    return ok ? EXIT_DONE : report_error(&err);
}
