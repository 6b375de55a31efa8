/* The line protocol of `mlx-serve tokenize --json` and `detokenize --json` over the tokenizer room
 * alone, for check_real.py and for profiling:
 *
 *     tokenizer_lines (tokenize|detokenize) --model PATH --json < requests > answers
 *     tokenizer_lines time PATH FILE [N]      times loading PATH and encoding FILE N times */
#include "json.h"
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA_BYTES = 1 << 30, LINE_BYTES = 1 << 30 };

static void write_error(JsonWriter *writer, const Error *err)
{
    json_write_key(writer, "error");
    json_write_text(writer, err->message);
}

static bool answer_tokenize(const Tokenizer *tokenizer, const JsonValue *request,
                            JsonWriter *writer, Error *err)
{
    Slice text = SLICE_EMPTY;
    bool add_special = false;
    TokenList list = {0};
    if (!json_read_string(request, "text", &text, err) ||
        !json_read_bool(request, "add_special", &add_special, err) ||
        !tokenizer_encode(tokenizer, text, add_special, &list, err))
        return false;
    json_write_key(writer, "ids");
    json_write_array_begin(writer);
    for (size_t i = 0; i < list.count; i++)
        json_write_int(writer, list.ids[i]);
    json_write_array_end(writer);
    token_list_reset(&list);
    return true;
}

static bool read_ids(const JsonValue *request, TokenList *list, Error *err)
{
    const JsonValue *ids = json_get_present(request, "ids");
    if (!json_is(ids, JSON_ARRAY))
        return error_set(err, ERROR_INVALID, "'ids' is missing or not a list");
    for (size_t i = 0; i < ids->as.array.count; i++) {
        int64_t id;
        if (!json_to_int64(&ids->as.array.items[i], &id) || id < INT32_MIN || id > INT32_MAX)
            return error_set(err, ERROR_INVALID, "'ids' holds something else than ids");
        if (!token_list_append(list, (int32_t)id, err))
            return false;
    }
    return true;
}

static bool write_chunks(const Tokenizer *tokenizer, const TokenList *list, bool skip_special,
                         JsonWriter *writer, Error *err)
{
    TokenDecoder decoder;
    Buffer chunk;
    bool ok = true;
    token_decoder_init(&decoder, tokenizer, skip_special);
    buffer_init(&chunk, LINE_BYTES);
    json_write_key(writer, "chunks");
    json_write_array_begin(writer);
    for (size_t i = 0; ok && i <= list->count; i++) {
        buffer_clear(&chunk);
        ok = i < list->count ? token_decoder_push(&decoder, list->ids[i], &chunk, err)
                             : token_decoder_finish(&decoder, &chunk, err);
        json_write_string(writer, buffer_view(&chunk));
    }
    json_write_array_end(writer);
    buffer_reset(&chunk);
    return ok;
}

static bool answer_detokenize(const Tokenizer *tokenizer, const JsonValue *request,
                              JsonWriter *writer, Error *err)
{
    bool skip_special = false, stream = false;
    TokenList list = {0};
    Buffer text;
    buffer_init(&text, LINE_BYTES);
    bool ok = json_read_bool(request, "skip_special", &skip_special, err) &&
              json_read_bool(request, "stream", &stream, err) && read_ids(request, &list, err);
    if (ok && stream) {
        ok = write_chunks(tokenizer, &list, skip_special, writer, err);
    } else if (ok) {
        ok = tokenizer_decode(tokenizer, list.ids, list.count, skip_special, &text, err);
        if (ok) {
            json_write_key(writer, "text");
            json_write_string(writer, buffer_view(&text));
        }
    }
    buffer_reset(&text);
    token_list_reset(&list);
    return ok;
}

static void answer_line(const Tokenizer *tokenizer, Slice line, bool decodes, Buffer *out)
{
    Arena arena;
    const JsonValue *request;
    JsonWriter writer;
    Error err;
    arena_init(&arena, ARENA_BYTES);
    buffer_clear(out);
    json_writer_init(&writer, out, 0);
    json_write_object_begin(&writer);
    bool ok = json_parse(line, &arena, &request, &err) &&
              (decodes ? answer_detokenize(tokenizer, request, &writer, &err)
                       : answer_tokenize(tokenizer, request, &writer, &err));
    if (!ok)
        write_error(&writer, &err);
    json_write_object_end(&writer);
    buffer_append_byte(out, '\n');
    fwrite(out->ptr, 1, out->len, stdout);
    arena_reset(&arena);
}

static int serve_lines(const Tokenizer *tokenizer, bool decodes)
{
    char *line = NULL;
    size_t capacity = 0;
    ssize_t len;
    Buffer out;
    buffer_init(&out, LINE_BYTES);
    while ((len = getline(&line, &capacity, stdin)) > 0) {
        if (line[len - 1] == '\n')
            len--;
        answer_line(tokenizer, (Slice){line, (size_t)len}, decodes, &out);
    }
    buffer_reset(&out);
    free(line);
    return 0;
}

static int run_timing(const char *model, const char *path, int repeat)
{
    Tokenizer *tokenizer = NULL;
    FileMap map;
    Error err;
    double start = clock_monotonic_seconds();
    if (!tokenizer_open(model, &tokenizer, &err) || !file_map_open(path, &map, &err)) {
        fprintf(stderr, "%s\n", err.message);
        tokenizer_free(tokenizer);
        return 1;
    }
    printf("load %.3f s\n", clock_monotonic_seconds() - start);
    for (int i = 0; i < repeat; i++) {
        TokenList list = {0};
        start = clock_monotonic_seconds();
        bool ok = tokenizer_encode(tokenizer, (Slice){(const char *)map.data, map.size}, false,
                                   &list, &err);
        double seconds = clock_monotonic_seconds() - start;
        printf("encode %s: %zu tokens, %.3f s, %.1f MB/s\n", ok ? "ok" : err.message, list.count,
               seconds, (double)map.size / 1e6 / seconds);
        token_list_reset(&list);
    }
    file_map_close(&map);
    tokenizer_free(tokenizer);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc >= 4 && strcmp(argv[1], "time") == 0)
        return run_timing(argv[2], argv[3], argc > 4 ? (int)strtol(argv[4], NULL, 10) : 3);
    if (argc < 4 || strcmp(argv[2], "--model") != 0) {
        fprintf(stderr, "usage: %s tokenize|detokenize --model PATH --json\n", argv[0]);
        return 2;
    }
    Tokenizer *tokenizer;
    Error err;
    if (!tokenizer_open(argv[3], &tokenizer, &err)) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    int status = serve_lines(tokenizer, strcmp(argv[1], "detokenize") == 0);
    tokenizer_free(tokenizer);
    return status;
}
