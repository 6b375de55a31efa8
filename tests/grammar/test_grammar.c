/* Regular expressions, choices, GBNF, runs and masks. Data: tests/data/grammar/cases.txt holds
 * constraint and texts, one group per constraint:
 *
 *     regex [ab]+        or: gbnf (lines up to a line "."), choice a|b
 *     + text             accepted          - text   not accepted       (\n \t \\ are escapes)
 *     ! part of message  it does not compile */
#include "grammar.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
/* cmocka needs what is above */
#include <cmocka.h>

static Grammar *compile(GrammarKind kind, const char *text, GrammarVocabulary *vocabulary,
                        Error *err)
{
    GrammarSource source = {.kind = kind, .text = slice_of(text)};
    Grammar *grammar;
    *err = (Error){0};
    bool ok = grammar_create(&source, vocabulary, &grammar, err);
    assert_int_equal(ok, grammar != NULL);
    assert_int_equal(ok, err->code == ERROR_NONE);
    return grammar;
}

static bool accepts(Grammar *grammar, Slice text)
{
    GrammarRun *run;
    Error err = {0};
    assert_true(grammar_run_create(grammar, &run, &err));
    bool result = grammar_run_accept_bytes(run, text, &err) && grammar_run_can_end(run);
    grammar_run_free(run);
    return result;
}

/* ---- Cases from the file ---- */

static size_t unescape(const char *from, char *to)
{
    size_t n = 0;
    for (; *from && *from != '\n'; from++) {
        if (*from == '\\' && from[1]) {
            from++;
            to[n++] = *from == 'n' ? '\n' : *from == 't' ? '\t' : *from;
        } else {
            to[n++] = *from;
        }
    }
    to[n] = '\0';
    return n;
}

static Grammar *compile_choice(char *list, Error *err)
{
    Slice choices[16];
    GrammarSource source = {.kind = GRAMMAR_CHOICE, .choices = choices};
    for (char *at = list; at; source.n_choices++) {
        char *bar = strchr(at, '|');
        choices[source.n_choices] = (Slice){at, bar ? (size_t)(bar - at) : strlen(at)};
        at = bar ? bar + 1 : NULL;
    }
    Grammar *grammar;
    *err = (Error){0};
    if (!grammar_create(&source, NULL, &grammar, err))
        return NULL;
    return grammar;
}

static void read_gbnf(FILE *file, char *out)
{
    char line[512];
    size_t n = 0;
    while (fgets(line, sizeof(line), file) && strcmp(line, ".\n") != 0)
        n += (size_t)sprintf(out + n, "%s", line);
    out[n] = '\0';
}

static void test_cases(void **state)
{
    (void)state;
    FILE *file = fopen(TEST_DATA_DIR "/grammar/cases.txt", "rb");
    assert_non_null(file);
    char line[1024], text[4096];
    Grammar *grammar = NULL;
    Error err = {0};
    size_t n_checked = 0;
    while (fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "regex ", 6) == 0 || strncmp(line, "choice ", 7) == 0 ||
            strcmp(line, "gbnf") == 0) {
            grammar_release(grammar);
            if (line[0] == 'g')
                read_gbnf(file, text);
            grammar = line[0] == 'r'   ? compile(GRAMMAR_REGEX, line + 6, NULL, &err)
                      : line[0] == 'c' ? compile_choice(line + 7, &err)
                                       : compile(GRAMMAR_GBNF, text, NULL, &err);
        } else if (line[0] == '!') {
            if (grammar || !strstr(err.message, line + 2))
                fail_msg("expected \"%s\", got \"%s\"", line + 2, err.message);
            n_checked++;
        } else if (line[0] == '+' || line[0] == '-') {
            size_t len = line[1] ? unescape(line + 2, text) : 0;
            if (!grammar)
                fail_msg("%s: does not compile: %s", line, err.message);
            if (accepts(grammar, (Slice){text, len}) != (line[0] == '+'))
                fail_msg("wrong: %s", line);
            n_checked++;
        }
    }
    grammar_release(grammar);
    fclose(file);
    assert_true(n_checked > 150);
}

/* Names are a client's text: of a long one a message has the beginning. */
static void test_messages_quote_little(void **state)
{
    (void)state;
    char name[301], source[2][1024];
    memset(name, 'n', 300);
    name[300] = '\0';
    snprintf(source[0], sizeof(source[0]), "root ::= %s", name);
    snprintf(source[1], sizeof(source[1]), "root ::= %s\n%s ::= %s | \"a\"", name, name, name);
    for (size_t i = 0; i < ARRAY_COUNT(source); i++) {
        Error err;
        assert_null(compile(GRAMMAR_GBNF, source[i], NULL, &err));
        assert_non_null(strstr(err.message, "nnn"));
        assert_true(strlen(err.message) < 200);
    }
}

/* ---- Runs ---- */

static void test_run_moves_and_stays(void **state)
{
    (void)state;
    Error err;
    Grammar *grammar = compile(GRAMMAR_REGEX, "ab(c|de)?", NULL, &err);
    GrammarRun *run, *copy;
    size_t count;
    assert_true(grammar_run_create(grammar, &run, &err));
    assert_false(grammar_run_can_end(run));
    assert_true(grammar_run_count_bytes(run, SLICE("abx"), &count, &err));
    assert_int_equal(count, 2);
    assert_false(grammar_run_accept_bytes(run, SLICE("abx"), &err));
    assert_int_equal(err.code, ERROR_INVALID);
    assert_true(grammar_run_accept_bytes(run, SLICE("ab"), &err)); /* it stayed at the start */
    assert_true(grammar_run_copy(run, &copy, &err));
    assert_true(grammar_run_can_end(run));
    assert_false(grammar_run_is_finished(run));
    assert_true(grammar_run_accept_bytes(run, SLICE("c"), &err));
    assert_true(grammar_run_is_finished(run));
    assert_false(grammar_run_is_finished(copy));
    assert_true(grammar_run_accept_bytes(copy, SLICE("d"), &err));
    assert_false(grammar_run_can_end(copy));
    grammar_release(grammar); /* runs hold it */
    grammar_run_free(run);
    assert_true(grammar_run_accept_bytes(copy, SLICE("e"), &err));
    grammar_run_free(copy);
}

static void test_forced_bytes(void **state)
{
    (void)state;
    Error err;
    GrammarSource source = {.kind = GRAMMAR_JSON_SCHEMA,
                            .text =
                                SLICE("{\"type\":\"object\",\"properties\":{\"name\":{\"const\":"
                                      "\"x\\\"y\"}},\"required\":[\"name\"],"
                                      "\"additionalProperties\":false}")};
    Grammar *grammar;
    GrammarRun *run;
    char out[64];
    size_t len;
    assert_true(grammar_create(&source, NULL, &grammar, &err));
    assert_true(grammar_run_create(grammar, &run, &err));
    assert_true(grammar_run_forced_bytes(run, out, sizeof(out), &len, &err));
    assert_int_equal(len, 1); /* behind "{" there may be space */
    assert_memory_equal(out, "{", 1);
    assert_true(grammar_run_accept_bytes(run, SLICE("{\"n"), &err));
    assert_true(grammar_run_forced_bytes(run, out, 3, &len, &err));
    assert_int_equal(len, 3);
    assert_true(grammar_run_forced_bytes(run, out, sizeof(out), &len, &err));
    assert_int_equal(len, 4);
    assert_memory_equal(out, "ame\"", 4);
    assert_true(grammar_run_accept_bytes(run, SLICE("ame\":\""), &err));
    assert_true(grammar_run_forced_bytes(run, out, sizeof(out), &len, &err));
    assert_int_equal(len, 5);
    assert_memory_equal(out, "x\\\"y\"", 5);
    grammar_run_free(run);
    grammar_release(grammar);
}

/* ---- Masks ---- */

enum { N_BYTE_TOKENS = 256, N_WORDS = 40, N_TOKENS = N_BYTE_TOKENS + N_WORDS + 3 };

static Slice tokens[N_TOKENS];
static char token_bytes[N_BYTE_TOKENS];

/* All bytes, words with and without what JSON cares about, a double, an empty one, a long one. */
static GrammarVocabulary *make_vocabulary(void)
{
    static const char *const words[N_WORDS] = {
        "ab",   "abc",   "b\"",  "\":", "\": \"", "{\"",  "\"}",   "\",\"",    "\\n",  "\\u00",
        "e9",   "\xc3",  "é",    "aé",  "\xa9x",  "日本", "本\"",  "  ",       "\n  ", "12",
        "345",  ".5",    "1e",   "}}",  "]}",     "[[",   "true",  "alse",     "null", "a b c",
        "name", "ame\"", "x, y", "-",   "-1",     "00",   "\"a\"", "\xf0\x9f", "😀",   "ab"};
    static char spaces[200];
    Error err = {0};
    GrammarVocabulary *vocabulary;
    for (size_t i = 0; i < N_BYTE_TOKENS; i++) {
        token_bytes[i] = (char)i;
        tokens[i] = (Slice){&token_bytes[i], 1};
    }
    for (size_t i = 0; i < N_WORDS; i++)
        tokens[N_BYTE_TOKENS + i] = slice_of(words[i]);
    memset(spaces, ' ', sizeof(spaces));
    tokens[N_BYTE_TOKENS + N_WORDS] = SLICE_EMPTY;
    tokens[N_BYTE_TOKENS + N_WORDS + 1] = (Slice){spaces, sizeof(spaces)};
    tokens[N_BYTE_TOKENS + N_WORDS + 2] = (Slice){spaces, 30};
    assert_true(grammar_vocabulary_create(tokens, N_TOKENS, &vocabulary, &err));
    assert_int_equal(grammar_vocabulary_size(vocabulary), N_TOKENS);
    return vocabulary;
}

/* The mask at the run's place says of every token what its bytes say. */
static void check_mask(GrammarRun *run)
{
    const uint64_t *words;
    float logits[N_TOKENS + 5];
    Error err = {0};
    for (size_t i = 0; i < ARRAY_COUNT(logits); i++)
        logits[i] = (float)i;
    assert_true(grammar_run_mask_logits(run, logits, ARRAY_COUNT(logits), &err));
    assert_true(grammar_run_view_mask(run, &words, &err));
    for (size_t id = 0; id < N_TOKENS; id++) {
        size_t count;
        assert_true(grammar_run_count_bytes(run, tokens[id], &count, &err));
        bool may_come = tokens[id].len > 0 && count == tokens[id].len;
        if ((words[id / 64] >> id % 64 & 1) != may_come)
            fail_msg("mask of token %zu is wrong, expected %d", id, may_come);
        assert_int_equal(grammar_run_allows_token(run, (int32_t)id), may_come);
        assert_true(may_come ? logits[id] == (float)id : logits[id] == -INFINITY);
    }
    for (size_t id = N_TOKENS; id < ARRAY_COUNT(logits); id++)
        assert_true(logits[id] == -INFINITY);
}

static void walk_and_check(GrammarKind kind, const char *constraint, const char *text,
                           GrammarVocabulary *vocabulary)
{
    Error err;
    Grammar *grammar = compile(kind, constraint, vocabulary, &err);
    GrammarRun *run;
    if (!grammar)
        fail_msg("%s: %s", constraint, err.message);
    assert_true(grammar_run_create(grammar, &run, &err));
    for (const char *at = text;; at++) {
        check_mask(run);
        if (!*at)
            break;
        assert_true(grammar_run_accept_token(run, (unsigned char)*at, &err));
    }
    assert_true(grammar_run_can_end(run));
    grammar_run_free(run);
    grammar_release(grammar);
}

static void test_masks_equal_bytes(void **state)
{
    (void)state;
    GrammarVocabulary *vocabulary = make_vocabulary();
    const char *text = "{\"name\": \"aé\\u00e9日😀 x\", \"a\": [12, -1.5e3, {\"b\": null}]}";
    walk_and_check(GRAMMAR_JSON_OBJECT, "", text, vocabulary);
    walk_and_check(GRAMMAR_REGEX, "[a-c]*( \\w+)?.{3,40}é", "abc ab  日本  é", vocabulary);
    walk_and_check(GRAMMAR_GBNF, "root ::= [^\"]{0,35} \"\\\"\" root?", "ab  \"x\"", vocabulary);
    walk_and_check(GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\",\"maxLength\":28,\"minLength\":2}",
                   "\"ab c日本\\n\\ud83d\\ude00x\"", vocabulary);
    walk_and_check(GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\",\"maxLength\":100}", "\"ab\"",
                   vocabulary);
    grammar_vocabulary_release(vocabulary);
}

/* Without tokens for some bytes, what needs them is not in the grammar, and nothing gets stuck. */
static void test_missing_bytes(void **state)
{
    (void)state;
    static const Slice few[] = {{"a", 1}, {"b", 1}, {"ac", 2}, {"cb", 2}};
    GrammarVocabulary *vocabulary;
    Error err = {0};
    assert_true(grammar_vocabulary_create(few, ARRAY_COUNT(few), &vocabulary, &err));
    Grammar *grammar = compile(GRAMMAR_REGEX, "a(bb|cb|d)?", vocabulary, &err);
    GrammarRun *run;
    assert_true(grammar_run_create(grammar, &run, &err));
    assert_true(grammar_run_allows_token(run, 0));
    assert_false(grammar_run_allows_token(run, 2));
    assert_true(grammar_run_accept_token(run, 0, &err));
    assert_true(grammar_run_allows_token(run, 1));
    assert_false(grammar_run_allows_token(run, 3));
    grammar_run_free(run);
    grammar_release(grammar);
    assert_null(compile(GRAMMAR_REGEX, "a(c|d)", vocabulary, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    grammar_vocabulary_release(vocabulary);
}

/* Depth makes states; many of them are dropped again while runs and masks stay right. */
static void test_states_are_dropped(void **state)
{
    (void)state;
    GrammarVocabulary *vocabulary = make_vocabulary();
    Error err;
    Grammar *grammar = compile(GRAMMAR_JSON_OBJECT, "", vocabulary, &err);
    GrammarRun *run, *waiting;
    enum { DEPTH = 30000 };
    assert_true(grammar_run_create(grammar, &run, &err));
    assert_true(grammar_run_create(grammar, &waiting, &err));
    assert_true(grammar_run_accept_bytes(waiting, SLICE("{\"x\": [[{\"y\": "), &err));
    for (size_t i = 0; i < DEPTH; i++)
        assert_true(grammar_run_accept_bytes(run, SLICE("{\"a\":"), &err));
    assert_true(grammar_run_accept_bytes(run, SLICE("1"), &err));
    check_mask(run);
    for (size_t i = 0; i < DEPTH; i++) {
        assert_false(grammar_run_can_end(run));
        assert_true(grammar_run_accept_bytes(run, SLICE("}"), &err));
    }
    assert_true(grammar_run_is_finished(run));
    assert_true(grammar_bytes(grammar) < 64 << 20);
    check_mask(waiting);
    assert_true(grammar_run_accept_bytes(waiting, SLICE("1}]]}"), &err));
    assert_true(grammar_run_is_finished(waiting));
    grammar_run_free(run);
    grammar_run_free(waiting);
    grammar_release(grammar);
    grammar_vocabulary_release(vocabulary);
}

/* ---- Cache ---- */

static void test_cache(void **state)
{
    (void)state;
    GrammarCache *cache;
    Error err = {0};
    char text[32];
    Grammar *first, *again, *other;
    GrammarSource source = {.kind = GRAMMAR_REGEX, .text = SLICE("a+")};
    assert_true(grammar_cache_create(NULL, &cache, &err));
    assert_true(grammar_cache_get(cache, &source, &first, &err));
    assert_true(grammar_cache_get(cache, &source, &again, &err));
    assert_ptr_equal(first, again);
    source.kind = GRAMMAR_GBNF;
    source.text = SLICE("root ::= \"a\"");
    assert_true(grammar_cache_get(cache, &source, &other, &err));
    assert_ptr_not_equal(first, other);
    source.text = SLICE("root ::= ");
    grammar_release(again);
    grammar_release(other);
    for (int i = 0; i < 100; i++) { /* pushes the first out; its holder keeps it */
        source.kind = GRAMMAR_REGEX;
        source.text = (Slice){text, (size_t)snprintf(text, sizeof(text), "b{%d}", i)};
        assert_true(grammar_cache_get(cache, &source, &other, &err));
        grammar_release(other);
    }
    source.text = SLICE("(");
    assert_false(grammar_cache_get(cache, &source, &other, &err));
    assert_null(other);
    grammar_cache_free(cache);
    assert_true(accepts(first, SLICE("aaa")));
    grammar_release(first);
}

/* ---- Failing allocations ---- */

static bool use_once(const GrammarSource *source, const Slice *vocabulary_tokens, size_t count)
{
    GrammarVocabulary *vocabulary = NULL;
    GrammarCache *cache = NULL;
    Grammar *grammar = NULL;
    GrammarRun *run = NULL;
    const uint64_t *words;
    Error err = {0};
    bool ok = grammar_vocabulary_create(vocabulary_tokens, count, &vocabulary, &err) &&
              grammar_cache_create(vocabulary, &cache, &err) &&
              grammar_cache_get(cache, source, &grammar, &err) &&
              grammar_run_create(grammar, &run, &err) && grammar_run_view_mask(run, &words, &err) &&
              grammar_run_accept_bytes(run, SLICE("{"), &err) &&
              grammar_run_view_mask(run, &words, &err);
    if (!ok && err.code != ERROR_MEMORY && err.code != ERROR_LIMIT)
        fail_msg("source kind %d: code %d: %s", (int)source->kind, (int)err.code, err.message);
    grammar_run_free(run);
    grammar_release(grammar);
    grammar_cache_free(cache);
    grammar_vocabulary_release(vocabulary);
    return ok;
}

static void test_failing_allocations(void **state)
{
    (void)state;
    const GrammarSource sources[] = {
        {.kind = GRAMMAR_JSON_SCHEMA,
         .text = SLICE(
             "{\"$ref\":\"#/$defs/a\",\"$defs\":{\"a\":{\"type\":\"object\",\"properties\":"
             "{\"a\":{\"type\":\"string\",\"pattern\":\"^x\",\"maxLength\":3},\"b\":{\"enum\":"
             "[\"a\",1]},\"c\":{\"anyOf\":[{\"type\":\"integer\",\"minimum\":3,\"multipleOf\":2},"
             "{\"$ref\":\"#\"}]},\"d\":{\"items\":[{\"pattern\":\"(?=a)\"}]}},"
             "\"minProperties\":1}},\"x\":1}"),
         .ignores_unknown = true},
        {.kind = GRAMMAR_REGEX, .text = SLICE("\\{(a|b[^c]{2,3})*$")},
        {.kind = GRAMMAR_GBNF, .text = SLICE("root ::= \"{\" (a | [b-d]){1,3}\na ::= \"x\" a?")},
    };
    static const Slice few[] = {{"{", 1}, {"a", 1}, {"\"", 1}, {"x", 1}, {":", 1}, {"{\"a\"", 4},
                                {"1", 1}, {"}", 1}, {"b", 1},  {"c", 1}, {"a", 1}};
    for (size_t i = 0; i < ARRAY_COUNT(sources); i++) {
        uint64_t n = 1;
        for (bool ok = false; !ok; n++) {
            assert_true(n < 100000);
            fault_fail_allocation(n);
            ok = use_once(&sources[i], few, ARRAY_COUNT(few));
            fault_fail_allocation(0);
        }
        assert_true(n > 30);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_messages_quote_little),
        cmocka_unit_test(test_run_moves_and_stays),
        cmocka_unit_test(test_forced_bytes),
        cmocka_unit_test(test_masks_equal_bytes),
        cmocka_unit_test(test_missing_bytes),
        cmocka_unit_test(test_states_are_dropped),
        cmocka_unit_test(test_cache),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
