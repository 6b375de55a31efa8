/* Byte pair encoding of one word. See bpe.c for the algorithm.
 * A Bpe is immutable after bpe_finish but for `verdicts`, a memo whose writers all write the same
 * value; what a call needs to write lies in its BpeScratch. */
#ifndef TOKENIZER_BPE_H
#define TOKENIZER_BPE_H

#include "tokenizer.h"
#include "vocabulary.h"

#include <stdatomic.h>

enum {
    BPE_MERGES_MAX = 1 << 23,
    BPE_JOIN_BITS = 20, /* of the filter of joinable neighbours */
    BPE_PENDING_MAX = 32,
};

typedef struct Merge {
    int32_t left, right, result;
    uint32_t rank;
} Merge;

/* A merge that was read but not yet looked up. */
typedef struct PendingMerge {
    size_t start, left_len, len; /* of both tokens, one behind the other, in Bpe.pending_text */
    uint32_t rank;
    uint64_t hashes[3]; /* left, right, both */
} PendingMerge;

typedef struct BpePairResult {
    uint32_t rank; /* UINT32_MAX: no such merge */
    int32_t result;
} BpePairResult;

typedef struct Bpe {
    const Vocabulary *vocabulary;
    bool byte_level; /* words are bytes, spelt in the byte-level alphabet in the vocabulary */
    bool byte_fallback, fuse_unk, ignore_merges;
    bool has_unk;   /* an unk_token is named ... */
    int32_t unk_id; /* ... and this is it, or -1 when the vocabulary lacks it */
    bool never_cut; /* a merge takes fallback tokens: no boundary is safe */
    PendingMerge pending[BPE_PENDING_MAX]; /* up to merge_capacity: while loading */
    size_t pending_count;
    Buffer pending_text;
    Merge *merges;
    size_t merge_count, merge_capacity;
    uint64_t *pair_keys; /* left << 32 | right; UINT64_MAX: free */
    BpePairResult *pair_results;
    uint64_t pair_mask;
    BpePairResult *byte_pairs; /* [256 * 256] merges of ids byte_base onwards, or NULL and span 0 */
    int32_t byte_base;
    uint32_t byte_span;
    uint64_t *joins;           /* filter: which symbols may be merged across their boundary */
    int32_t *characters;       /* [65536] id of the token that is this one character, or -1 */
    char spelling[256][2];     /* byte-level: each byte in UTF-8 of the alphabet, NUL-padded */
    int32_t byte_ids[256];     /* byte-level: token of each byte; or -1 */
    int32_t fallback_ids[256]; /* <0x00> to <0xFF>; or -1 */
    _Atomic uint8_t *verdicts; /* by id: is its own text encoded as that one token */
} Bpe;

typedef struct BpeScratch {
    int32_t *symbols;
    size_t symbol_count, symbol_capacity;
    uint32_t *links; /* working arrays for long units */
    size_t link_capacity;
    uint64_t *heap;
    size_t heap_count, heap_capacity;
} BpeScratch;

/* unk_token: ptr NULL when there is none. The vocabulary must stay where it is. */
void bpe_init(Bpe *bpe, const Vocabulary *vocabulary);
bool bpe_add_merge(Bpe *bpe, Slice left, Slice right, uint32_t rank, Error *err) WARN_UNUSED;
/* The same with ids of the vocabulary. Merges of equal rank are one: the leftmost goes first. */
bool bpe_add_merge_ids(Bpe *bpe, Merge merge, Error *err) WARN_UNUSED;
/* After the flags, all merges and the vocabulary are there. */
bool bpe_finish(Bpe *bpe, Error *err) WARN_UNUSED;
void bpe_reset(Bpe *bpe);

/* Appends the ids of a word of well-formed text. */
bool bpe_encode_word(const Bpe *bpe, BpeScratch *scratch, Slice word, TokenList *out,
                     Error *err) WARN_UNUSED;
void bpe_scratch_reset(BpeScratch *scratch);

/* The byte-level alphabet: the code point below 0x180 that spells a byte, and back (-1: none). */
uint32_t byte_level_character(unsigned char byte);
int byte_level_byte(uint32_t character);

#endif
