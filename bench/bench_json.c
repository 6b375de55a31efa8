/* How fast the json room reads: bench_json FILE [REPEATS=9].
 *
 * Prints CSV, one line a measurement: what, bytes, best seconds, MB/s, and a count that keeps the
 * work from being optimised away. `tokens` walks the file with the pull reader, which checks
 * everything; `strings` also decodes every string and number; `tree` builds the whole tree; `write`
 * writes that tree compactly. The best of the repeats counts: noise only adds. */
#include <stdio.h>
#include <stdlib.h>

#include "json.h"

enum { TREE_BYTES_MAX = 1 << 30, STRING_BYTES_MAX = 1 << 24 };

static bool walk(Slice text, char *decoded, size_t *count, Error *err)
{
    JsonReader reader;
    json_reader_init(&reader, text, err);
    *count = 0;
    for (;;) {
        JsonToken token = json_reader_next(&reader);
        if (token == JSON_TOKEN_ERROR)
            return false;
        if (token == JSON_TOKEN_END)
            return true;
        (*count)++;
        if (!decoded)
            continue;
        if (token == JSON_TOKEN_STRING || token == JSON_TOKEN_KEY) {
            if (reader.raw.len > STRING_BYTES_MAX)
                return error_set(err, ERROR_LIMIT, "a string is longer than this program reads");
            *count += json_reader_copy_string(&reader, decoded);
        } else if (token == JSON_TOKEN_NUMBER) {
            *count += json_reader_number(&reader).kind == JSON_INT;
        }
    }
}

static void report(const char *what, size_t bytes, double seconds, size_t count)
{
    printf("%s,%zu,%.6f,%.1f,%zu\n", what, bytes, seconds, (double)bytes / seconds / 1e6, count);
}

static bool measure_walk(const char *what, Slice text, char *decoded, int repeats, Error *err)
{
    double best = 1e9;
    size_t count = 0;
    for (int i = 0; i < repeats; i++) {
        double start = clock_monotonic_seconds();
        if (!walk(text, decoded, &count, err))
            return false;
        double seconds = clock_monotonic_seconds() - start;
        best = seconds < best ? seconds : best;
    }
    report(what, text.len, best, count);
    return true;
}

static bool measure_tree(Slice text, int repeats, Error *err)
{
    double best_read = 1e9, best_write = 1e9;
    Arena arena;
    Buffer out;
    arena_init(&arena, TREE_BYTES_MAX);
    buffer_init(&out, TREE_BYTES_MAX);
    bool ok = false;
    size_t arena_bytes = 0;
    for (int i = 0; i < repeats; i++) {
        const JsonValue *value;
        double start = clock_monotonic_seconds();
        if (!json_parse(text, &arena, &value, err))
            goto cleanup;
        double middle = clock_monotonic_seconds();
        JsonWriter writer;
        buffer_clear(&out);
        json_writer_init(&writer, &out, 0);
        json_write_value(&writer, value);
        double end = clock_monotonic_seconds();
        best_read = middle - start < best_read ? middle - start : best_read;
        best_write = end - middle < best_write ? end - middle : best_write;
        arena_bytes = arena.total;
        arena_reset(&arena);
    }
    if (!buffer_check(&out, "the written text", err))
        goto cleanup;
    report("tree", text.len, best_read, arena_bytes);
    report("write", out.len, best_write, out.len);
    ok = true;
cleanup:
    arena_reset(&arena);
    buffer_reset(&out);
    return ok;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: bench_json FILE [REPEATS=9]\n");
        return 2;
    }
    int repeats = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 9;
    Error err = {0};
    FileMap map = {0};
    bool ok = false;
    char *decoded = memory_allocate(STRING_BYTES_MAX);
    if (!decoded) {
        error_no_memory(&err, "decoded strings");
        goto cleanup;
    }
    if (!file_map_open(argv[1], &map, &err))
        goto cleanup;
    Slice text = {(const char *)map.data, map.size};
    printf("what,bytes,seconds,mb_per_s,count\n");
    ok = measure_walk("tokens", text, NULL, repeats, &err) &&
         measure_walk("strings", text, decoded, repeats, &err) && measure_tree(text, repeats, &err);
cleanup:
    if (!ok)
        fprintf(stderr, "bench_json: %s\n", err.message);
    file_map_close(&map);
    memory_free(decoded);
    return ok ? 0 : 1;
}
