/* Shared by fuzz_schema, fuzz_regex and fuzz_gbnf: a source compiles or is refused; what compiles
 * is walked, along bytes of the input first and then any way out. A run never gets stuck, its mask
 * says of every token what the token's bytes say, and what it can end with was accepted byte by
 * byte. */
#ifndef FUZZ_GRAMMAR_H
#define FUZZ_GRAMMAR_H

#include <stdlib.h>
#include <string.h>

#include "grammar.h"

enum { FUZZ_STEPS = 40, FUZZ_WORDS = 8, FUZZ_TOKENS = 256 + FUZZ_WORDS };

static inline void fuzz_require(bool fact)
{
    if (!fact)
        abort(); /* libFuzzer's way to report */
}

static Slice fuzz_tokens[FUZZ_TOKENS];

static inline GrammarVocabulary *fuzz_vocabulary(void)
{
    static GrammarVocabulary *vocabulary;
    static char bytes[256];
    static const char *const words[FUZZ_WORDS] = {"ab", "\":", "{\"", "a\"",
                                                  "12", "é",   "   ", "\",\""};
    if (vocabulary)
        return vocabulary;
    for (size_t i = 0; i < 256; i++) {
        bytes[i] = (char)i;
        fuzz_tokens[i] = (Slice){&bytes[i], 1};
    }
    for (size_t i = 0; i < FUZZ_WORDS; i++)
        fuzz_tokens[256 + i] = slice_of(words[i]);
    fuzz_require(grammar_vocabulary_create(fuzz_tokens, FUZZ_TOKENS, &vocabulary, NULL));
    return vocabulary;
}

/* A token that may come, the wanted byte if it may. */
static inline int32_t fuzz_choose(GrammarRun *run, const uint64_t *words, unsigned wanted)
{
    size_t count;
    int32_t found = -1;
    for (int32_t id = 0; id < FUZZ_TOKENS; id++) {
        bool is_set = words[id / 64] >> id % 64 & 1;
        fuzz_require(grammar_run_count_bytes(run, fuzz_tokens[id], &count, NULL));
        fuzz_require(is_set == (count == fuzz_tokens[id].len));
        if (is_set && (found < 0 || id == (int32_t)wanted % FUZZ_TOKENS))
            found = id;
    }
    return found;
}

static inline void fuzz_walk(GrammarKind kind, const uint8_t *data, size_t size)
{
    GrammarSource source = {.kind = kind, .text = {(const char *)data, size}};
    Grammar *grammar;
    GrammarRun *run;
    Error err = {0};
    if (!grammar_create(&source, fuzz_vocabulary(), &grammar, &err)) {
        fuzz_require(err.code != ERROR_NONE && err.message[0] != '\0');
        return;
    }
    fuzz_require(grammar_run_create(grammar, &run, &err));
    for (size_t step = 0; step < FUZZ_STEPS; step++) {
        const uint64_t *words;
        if (!grammar_run_view_mask(run, &words, &err)) {
            fuzz_require(err.code == ERROR_LIMIT);
            break;
        }
        int32_t id = fuzz_choose(run, words, size > 0 ? data[(step * 7) % size] : 0);
        fuzz_require(id >= 0 || grammar_run_can_end(run));
        fuzz_require(grammar_run_is_finished(run) == (id < 0));
        if (id < 0)
            break;
        fuzz_require(grammar_run_accept_token(run, id, &err));
    }
    grammar_run_free(run);
    grammar_release(grammar);
}

#endif
