/* How fast a tokenizer loads and encodes: bench_tokenizer TOKENIZER_JSON TEXT [REPEATS=5]
 * [IDS_FILE].
 *
 * Prints CSV, one line a measurement: what, bytes, seconds, MB/s, count. `load` reads the file and
 * builds the tables (best of the repeats; count: bytes that stay allocated for it); `encode_first`
 * is the first pass over the text, when no memo is filled, `encode` the best of the repeats, both
 * on one thread (count: tokens); `decode` turns the ids into text again. IDS_FILE receives the ids
 * as 32-bit integers of the machine, for comparison with another library. */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

#include "tokenizer.h"

enum { TEXT_BYTES_MAX = 1 << 30 };

static void report(const char *what, size_t bytes, double seconds, size_t count)
{
    printf("%s,%zu,%.6f,%.2f,%zu\n", what, bytes, seconds, (double)bytes / seconds / 1e6, count);
}

static size_t allocated_bytes(void)
{
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

static bool measure_load(const char *path, int repeats, Tokenizer **out, Error *err)
{
    double best = 1e9;
    size_t held = 0;
    *out = NULL;
    for (int i = 0; i < repeats; i++) {
        tokenizer_free(*out);
        size_t before = allocated_bytes();
        double start = clock_monotonic_seconds();
        if (!tokenizer_open(path, out, err))
            return false;
        double seconds = clock_monotonic_seconds() - start;
        held = allocated_bytes() - before;
        best = seconds < best ? seconds : best;
    }
    FileMap map;
    if (!file_map_open(path, &map, err))
        return false;
    report("load", map.size, best, held);
    file_map_close(&map);
    return true;
}

static bool measure_encode(const Tokenizer *tokenizer, Slice text, int repeats, TokenList *ids,
                           Error *err)
{
    double best = 1e9;
    for (int i = 0; i < repeats; i++) {
        ids->count = 0;
        double start = clock_monotonic_seconds();
        if (!tokenizer_encode(tokenizer, text, false, ids, err))
            return false;
        double seconds = clock_monotonic_seconds() - start;
        best = seconds < best ? seconds : best;
        if (i == 0)
            report("encode_first", text.len, seconds, ids->count);
    }
    report("encode", text.len, best, ids->count);
    return true;
}

static bool measure_decode(const Tokenizer *tokenizer, const TokenList *ids, int repeats,
                           Error *err)
{
    double best = 1e9;
    Buffer text;
    bool ok = true;
    buffer_init(&text, TEXT_BYTES_MAX);
    for (int i = 0; ok && i < repeats; i++) {
        buffer_clear(&text);
        double start = clock_monotonic_seconds();
        ok = tokenizer_decode(tokenizer, ids->ids, ids->count, false, &text, err);
        double seconds = clock_monotonic_seconds() - start;
        best = seconds < best ? seconds : best;
    }
    if (ok)
        report("decode", text.len, best, ids->count);
    buffer_reset(&text);
    return ok;
}

static bool write_ids(const char *path, const TokenList *ids, Error *err)
{
    FILE *file = fopen(path, "wb");
    bool ok = file && fwrite(ids->ids, sizeof(*ids->ids), ids->count, file) == ids->count;
    if (file && fclose(file) != 0)
        ok = false;
    return ok || error_set(err, ERROR_IO, "%s: cannot be written", path);
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: bench_tokenizer TOKENIZER_JSON TEXT [REPEATS=5] [IDS_FILE]\n");
        return 2;
    }
    int repeats = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 5;
    Error err = {0};
    FileMap map = {0};
    TokenList ids = {0};
    Tokenizer *tokenizer = NULL;
    printf("what,bytes,seconds,mb_per_s,count\n");
    bool ok =
        file_map_open(argv[2], &map, &err) && measure_load(argv[1], repeats, &tokenizer, &err) &&
        measure_encode(tokenizer, (Slice){(const char *)map.data, map.size}, repeats, &ids, &err) &&
        measure_decode(tokenizer, &ids, repeats, &err) &&
        (argc < 5 || write_ids(argv[4], &ids, &err));
    if (!ok)
        fprintf(stderr, "bench_tokenizer: %s\n", err.message);
    token_list_reset(&ids);
    tokenizer_free(tokenizer);
    file_map_close(&map);
    return ok ? 0 : 1;
}
