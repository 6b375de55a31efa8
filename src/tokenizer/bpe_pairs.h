/* Private to bpe.c and bpe_load.c: the table of merges by pair of symbols, and the filter of pairs
 * that some merge joins. */
#ifndef TOKENIZER_BPE_PAIRS_H
#define TOKENIZER_BPE_PAIRS_H

#include "bpe.h"

#define BPE_NO_RANK UINT32_MAX
#define BPE_FREE_KEY UINT64_MAX

static inline uint64_t pair_key(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static inline uint64_t pair_hash(uint64_t key)
{
    key *= UINT64_C(0x9e3779b97f4a7c15);
    key ^= key >> 32;
    return key * UINT64_C(0xd6e8feb86659fd93);
}

static inline BpePairResult find_pair(const Bpe *bpe, int32_t left, int32_t right)
{
    uint32_t low_left = (uint32_t)(left - bpe->byte_base),
             low_right = (uint32_t)(right - bpe->byte_base);
    if (low_left < bpe->byte_span && low_right < bpe->byte_span)
        return bpe->byte_pairs[low_left << 8 | low_right];
    uint64_t key = pair_key(left, right);
    for (uint64_t at = pair_hash(key) >> 20 & bpe->pair_mask;; at = (at + 1) & bpe->pair_mask) {
        if (bpe->pair_keys[at] == key)
            return bpe->pair_results[at];
        if (bpe->pair_keys[at] == BPE_FREE_KEY)
            return (BpePairResult){BPE_NO_RANK, -1};
    }
}

static inline size_t join_bit(int32_t left, int32_t right)
{
    return pair_hash(pair_key(left, right)) >> (64 - BPE_JOIN_BITS);
}

static inline bool may_join(const Bpe *bpe, int32_t left, int32_t right)
{
    size_t bit = join_bit(left, right);
    return bpe->joins[bit >> 6] >> (bit & 63) & 1;
}

#endif
