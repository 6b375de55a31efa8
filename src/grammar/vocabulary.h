/* vocabulary: tokens as two tries, and sets of tokens that are plain text.
 *
 * Plain text is characters that may stand raw in a JSON string: valid UTF-8 from U+0020 on but `"`,
 * `\` and U+007F. Most of a vocabulary is plain, and most places in most grammars either take any
 * plain character and stay alike (inside a string) or take few bytes at all. So plain tokens have a
 * trie of their own, and bit sets by their number of characters stand ready; a mask in a string is
 * one of these sets and a walk over the other, small trie.
 *
 * A trie is an array of nodes in depth-first order; `skip` leads behind the subtree:
 *
 *     index   0    1    2    3    4         tokens  a ab abc b
 *     byte    a    b    c    b
 *     depth   1    2    3    1
 *     skip    3    3    3    4  */
#ifndef GRAMMAR_VOCABULARY_H
#define GRAMMAR_VOCABULARY_H

#include "grammar.h"

#include <stdatomic.h>

enum { VOCABULARY_PLAIN_LEVELS = 24, VOCABULARY_NO_TOKEN = -1 };

typedef struct TrieNode {
    uint32_t skip;
    uint32_t first; /* of the trie's tokens: those of this subtree begin here */
    int32_t token;  /* the first of those with these bytes, or VOCABULARY_NO_TOKEN */
    uint16_t depth;
    uint8_t byte;
} TrieNode;

typedef struct Trie {
    TrieNode *nodes;
    size_t count, capacity;
    int32_t *tokens; /* in the order of nodes: a subtree's tokens are neighbours */
    size_t n_tokens, tokens_capacity;
} Trie;

typedef struct SameToken {
    int32_t first, other; /* the same bytes */
} SameToken;

typedef struct LongToken {
    int32_t id;
    uint32_t n_characters;
} LongToken;

struct GrammarVocabulary {
    atomic_size_t n_references;
    size_t n_tokens, n_words;
    Slice *tokens; /* [n_tokens] into bytes */
    char *bytes;
    Trie plain, other;
    SameToken *same;
    size_t n_same, same_capacity;
    /* [VOCABULARY_PLAIN_LEVELS + 2][n_words]: plain tokens of at most that many characters; the
     * last holds all of them */
    uint64_t *plain_sets;
    LongToken *longs; /* plain tokens of more characters than the levels reach */
    size_t n_longs, longs_capacity;
    size_t plain_characters_max;
    size_t token_bytes_max;
    bool has_byte[256]; /* a token of just that byte exists */
    bool has_all_bytes;
};

static inline const uint64_t *vocabulary_plain_set(const GrammarVocabulary *v, size_t level)
{
    return v->plain_sets + level * v->n_words;
}

#endif
