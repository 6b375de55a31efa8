/* grammar_walk [VOCABULARY]: random texts of grammars, for test_grammar.py.
 *
 * Reads {"kind": "schema"|"regex"|"gbnf", "source": S, "seed": N, "count": N, "lenient": B} lines
 * and writes {"texts": [S...], "cut": N} or {"error": S}: texts are walked from the start to an
 * end, byte by byte, or token by token when a vocabulary is given (a file of uint32 lengths, each
 * followed by the bytes). Walks that are longer than a limit are counted as cut. In token walks
 * every mask is compared with what the bytes of 500 random tokens say; a difference ends the
 * program with status 3. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grammar.h"
#include "json.h"

enum { STEPS_MAX = 3000, TEXT_BYTES_MAX = 1 << 20, LINE_BYTES_MAX = 8 << 20, SAMPLES = 500 };

static uint64_t random_state;

static uint64_t random_next(void)
{
    random_state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = random_state;
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static void give_up(const char *what, const Error *err)
{
    fprintf(stderr, "grammar_walk: %s: %s\n", what, err->message);
    exit(3);
}

/* A byte that can come next, structural ones more often, so that walks end; -1: none. */
static int choose_byte(GrammarRun *run, size_t step)
{
    char allowed[256], closing[8];
    size_t n = 0, n_closing = 0, count;
    Error err = {0};
    for (unsigned b = 0; b < 256; b++) {
        char byte = (char)b;
        if (!grammar_run_count_bytes(run, (Slice){&byte, 1}, &count, &err))
            give_up("step", &err);
        if (count == 0)
            continue;
        allowed[n++] = byte;
        if (strchr("\"]},", byte) && byte)
            closing[n_closing++] = byte;
    }
    if (n == 0)
        return -1;
    if (n_closing > 0 && random_next() % 100 < (step > 300 ? 80 : 30))
        return (unsigned char)closing[step > 300 ? 0 : random_next() % n_closing];
    return (unsigned char)allowed[random_next() % n];
}

static void check_mask(GrammarRun *run, const uint64_t *words, size_t n_tokens)
{
    for (size_t i = 0; i < SAMPLES; i++) {
        size_t id = random_next() % n_tokens;
        bool is_set = words[id / 64] >> id % 64 & 1;
        if (is_set == grammar_run_allows_token(run, (int32_t)id))
            continue;
        fprintf(stderr, "grammar_walk: the mask of token %zu says %d\n", id, is_set);
        exit(3);
    }
}

static int32_t choose_token(GrammarRun *run, size_t n_tokens)
{
    const uint64_t *words;
    Error err = {0};
    size_t n = 0;
    if (!grammar_run_view_mask(run, &words, &err))
        give_up("mask", &err);
    check_mask(run, words, n_tokens);
    for (size_t i = 0; i < (n_tokens + 63) / 64; i++)
        n += (size_t)__builtin_popcountll(words[i]);
    if (n == 0)
        return -1;
    size_t chosen = random_next() % n;
    for (size_t i = 0;; i++) {
        size_t here = (size_t)__builtin_popcountll(words[i]);
        if (chosen >= here) {
            chosen -= here;
            continue;
        }
        uint64_t word = words[i];
        while (chosen-- > 0)
            word &= word - 1;
        return (int32_t)(i * 64 + (size_t)__builtin_ctzll(word));
    }
}

/* One walk; false when it was cut. */
static bool walk(Grammar *grammar, const Slice *tokens, size_t n_tokens, Buffer *text)
{
    GrammarRun *run;
    Error err = {0};
    if (!grammar_run_create(grammar, &run, &err))
        give_up("run", &err);
    bool ended = false;
    buffer_clear(text);
    for (size_t step = 0; step < STEPS_MAX && !ended; step++) {
        bool can_end = grammar_run_can_end(run);
        if (can_end && (grammar_run_is_finished(run) || random_next() % 3 == 0)) {
            ended = true;
            break;
        }
        int32_t next = tokens && step < 200 ? choose_token(run, n_tokens) : choose_byte(run, step);
        bool is_token = tokens && step < 200;
        if (next < 0 && !can_end)
            give_up("stuck", &err);
        if (next < 0) {
            ended = true;
            break;
        }
        char byte = (char)next;
        Slice bytes = is_token ? tokens[next] : (Slice){&byte, 1};
        if (!(is_token ? grammar_run_accept_token(run, next, &err)
                       : grammar_run_accept_bytes(run, bytes, &err)))
            give_up("accept", &err);
        buffer_append_slice(text, bytes);
    }
    grammar_run_free(run);
    return ended;
}

static bool answer(const JsonValue *request, GrammarVocabulary *vocabulary, const Slice *tokens,
                   size_t n_tokens, JsonWriter *writer, Error *err)
{
    Slice kind = SLICE_EMPTY;
    GrammarSource source = {0};
    int64_t seed = 0, count = 1;
    if (!json_read_string(request, "kind", &kind, err) ||
        !json_read_string(request, "source", &source.text, err) ||
        !json_read_bool(request, "lenient", &source.ignores_unknown, err) ||
        !json_read_int(request, "seed", 0, INT64_MAX, &seed, err) ||
        !json_read_int(request, "count", 0, 100000, &count, err))
        return false;
    source.kind = slice_equal(kind, SLICE("schema"))  ? GRAMMAR_JSON_SCHEMA
                  : slice_equal(kind, SLICE("regex")) ? GRAMMAR_REGEX
                                                      : GRAMMAR_GBNF;
    Grammar *grammar;
    if (!grammar_create(&source, vocabulary, &grammar, err))
        return false;
    Buffer text;
    int64_t cut = 0;
    buffer_init(&text, TEXT_BYTES_MAX);
    random_state = (uint64_t)seed;
    json_write_key(writer, "texts");
    json_write_array_begin(writer);
    for (int64_t i = 0; i < count; i++) {
        if (walk(grammar, tokens, n_tokens, &text))
            json_write_string(writer, buffer_view(&text));
        else
            cut++;
    }
    json_write_array_end(writer);
    json_write_key(writer, "cut");
    json_write_int(writer, cut);
    buffer_reset(&text);
    grammar_release(grammar);
    return true;
}

static void answer_line(Slice line, GrammarVocabulary *vocabulary, const Slice *tokens,
                        size_t n_tokens)
{
    Arena arena;
    Buffer out;
    JsonWriter writer;
    Error err = {0};
    const JsonValue *request;
    arena_init(&arena, 64 << 20);
    buffer_init(&out, 256 << 20);
    json_writer_init(&writer, &out, 0);
    json_write_object_begin(&writer);
    if (!json_parse(line, &arena, &request, &err) ||
        !answer(request, vocabulary, tokens, n_tokens, &writer, &err)) {
        buffer_clear(&out);
        json_writer_init(&writer, &out, 0);
        json_write_object_begin(&writer);
        json_write_key(&writer, "error");
        json_write_text(&writer, err.message);
    }
    json_write_object_end(&writer);
    printf("%.*s\n", SLICE_ARG(buffer_view(&out)));
    fflush(stdout);
    buffer_reset(&out);
    arena_reset(&arena);
}

/* Slices into the mapped file; exits on a bad one. */
static Slice *read_tokens(const char *path, size_t *count)
{
    FileMap map;
    Error err = {0};
    if (!file_map_open(path, &map, &err))
        give_up(path, &err);
    Slice *tokens = memory_allocate_array(map.size / 4 + 1, sizeof(*tokens));
    *count = 0;
    for (size_t at = 0; tokens && at + 4 <= map.size;) {
        uint32_t len;
        memcpy(&len, map.data + at, 4);
        if (len > map.size - at - 4)
            give_up(path, &err);
        tokens[(*count)++] = (Slice){(const char *)map.data + at + 4, len};
        at += 4 + len;
    }
    return tokens;
}

int main(int argc, char **argv)
{
    GrammarVocabulary *vocabulary = NULL;
    Slice *tokens = NULL;
    size_t n_tokens = 0;
    Error err = {0};
    if (argc > 1) {
        tokens = read_tokens(argv[1], &n_tokens);
        if (!grammar_vocabulary_create(tokens, n_tokens, &vocabulary, &err))
            give_up("vocabulary", &err);
    }
    char *line = malloc(LINE_BYTES_MAX);
    while (line && fgets(line, LINE_BYTES_MAX, stdin))
        answer_line((Slice){line, strcspn(line, "\n")}, vocabulary, tokens, n_tokens);
    free(line);
    grammar_vocabulary_release(vocabulary);
    memory_free(tokens);
    return 0;
}
