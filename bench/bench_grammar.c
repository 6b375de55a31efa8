/* bench_grammar VOCABULARY SCHEMAS: times of compiling and of masks, as CSV.
 *
 * VOCABULARY: as grammar_walk reads it (uint32 length and bytes for each token; tests/grammar/
 * make_vocabulary.py writes it). SCHEMAS: lines of {"name", "schema"}. Every schema is compiled and
 * three
 * random replies of up to 400 tokens are walked, every mask timed in microseconds of processor
 * time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "grammar.h"
#include "json.h"

enum { STEPS_MAX = 400 };

static uint64_t random_state = 1;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static int32_t choose(const uint64_t *words, size_t n_tokens)
{
    size_t n = 0, start = random_next() % n_tokens;
    for (; n < n_tokens; n++) { /* the next allowed one from a random place on */
        size_t id = (start + n) % n_tokens;
        if (words[id / 64] >> id % 64 & 1)
            return (int32_t)id;
    }
    return -1;
}

/* Of this thread alone: a shared machine's other work is left out. */
static double cpu_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

typedef struct Times {
    double compile_ms, sum, worst;
    size_t count;
} Times;

static bool walk(Grammar *grammar, size_t n_tokens, Times *times, Error *err)
{
    GrammarRun *run;
    if (!grammar_run_create(grammar, &run, err))
        return false;
    bool ok = true;
    for (size_t step = 0; ok && step < STEPS_MAX && !grammar_run_is_finished(run); step++) {
        const uint64_t *words;
        double start = cpu_seconds();
        ok = grammar_run_view_mask(run, &words, err);
        double us = (cpu_seconds() - start) * 1e6;
        if (!ok)
            break;
        times->sum += us;
        times->count++;
        if (us > times->worst)
            times->worst = us;
        int32_t id = choose(words, n_tokens);
        if (id < 0)
            break;
        ok = grammar_run_accept_token(run, id, err);
    }
    grammar_run_free(run);
    return ok;
}

static bool measure(const JsonValue *line, GrammarVocabulary *vocabulary, Times *total, Error *err)
{
    Buffer text;
    JsonWriter writer;
    Grammar *grammar;
    Times times = {0};
    buffer_init(&text, GRAMMAR_SOURCE_BYTES_MAX);
    json_writer_init(&writer, &text, 0);
    json_write_value(&writer, json_get(line, SLICE("schema")));
    GrammarSource source = {.kind = GRAMMAR_JSON_SCHEMA, .text = buffer_view(&text)};
    double start = cpu_seconds();
    bool ok = grammar_create(&source, vocabulary, &grammar, err);
    times.compile_ms = (cpu_seconds() - start) * 1e3;
    if (ok) {
        size_t n_tokens = grammar_vocabulary_size(vocabulary);
        for (unsigned i = 0; ok && i < 3; i++)
            ok = walk(grammar, n_tokens, &times, err);
        Slice name = json_get(line, SLICE("name"))->as.string;
        printf("\"%.*s\",%zu,%.3f,%zu,%.1f,%.1f,%zu\n", SLICE_ARG(name), text.len, times.compile_ms,
               times.count, times.sum / (double)(times.count ? times.count : 1), times.worst,
               grammar_bytes(grammar));
        grammar_release(grammar);
        total->sum += times.sum;
        total->count += times.count;
        total->worst = times.worst > total->worst ? times.worst : total->worst;
        total->compile_ms =
            times.compile_ms > total->compile_ms ? times.compile_ms : total->compile_ms;
    }
    buffer_reset(&text);
    return ok;
}

static bool read_vocabulary(const char *path, GrammarVocabulary **out, Error *err)
{
    FileMap map;
    if (!file_map_open(path, &map, err))
        return false;
    Slice *tokens = memory_allocate_array(map.size / 4 + 1, sizeof(*tokens));
    size_t count = 0;
    for (size_t at = 0; tokens && at + 4 <= map.size;) {
        uint32_t len;
        memcpy(&len, map.data + at, 4);
        if (len > map.size - at - 4)
            break;
        tokens[count++] = (Slice){(const char *)map.data + at + 4, len};
        at += 4 + len;
    }
    double start = cpu_seconds();
    bool ok = tokens && grammar_vocabulary_create(tokens, count, out, err);
    if (ok)
        fprintf(stderr, "vocabulary: %zu tokens, %.0f ms, %zu bytes\n", count,
                (cpu_seconds() - start) * 1e3, grammar_vocabulary_bytes(*out));
    memory_free(tokens);
    file_map_close(&map);
    return ok;
}

int main(int argc, char **argv)
{
    Error err = {0};
    GrammarVocabulary *vocabulary;
    Buffer schemas;
    Times total = {0};
    if (argc != 3) {
        fprintf(stderr, "usage: bench_grammar VOCABULARY SCHEMAS\n");
        return 2;
    }
    buffer_init(&schemas, 64 << 20);
    bool ok = read_vocabulary(argv[1], &vocabulary, &err) &&
              file_read(argv[2], schemas.max, &schemas, &err);
    printf("schema,bytes,compile_ms,masks,mean_us,worst_us,memory_bytes\n");
    for (size_t at = 0; ok && at < schemas.len;) {
        size_t end = slice_find(buffer_view(&schemas), SLICE("\n"), at);
        end = end == SIZE_MAX ? schemas.len : end;
        Arena arena;
        const JsonValue *line;
        arena_init(&arena, 64 << 20);
        ok = json_parse((Slice){schemas.ptr + at, end - at}, &arena, &line, &err) &&
             measure(line, vocabulary, &total, &err);
        arena_reset(&arena);
        at = end + 1;
    }
    if (!ok) {
        fprintf(stderr, "bench_grammar: %s\n", err.message);
        return 1;
    }
    fprintf(stderr, "all: compile at most %.2f ms, %zu masks, mean %.1f us, worst %.1f us\n",
            total.compile_ms, total.count, total.sum / (double)total.count, total.worst);
    return 0;
}
