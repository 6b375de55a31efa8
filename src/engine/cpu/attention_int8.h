/* Private to engine/cpu: attention over keys and values of 8 bits.
 *
 * Queries become 16-bit codes, 64 dimensions to a scale, and so do the weights of a block's keys,
 * times the values' scales. Products of codes are then added up as integers, 4 at a time, exactly:
 *
 *   score   = sum over 64 dimensions at a time: qs * (sum q (k - 128)) * ks
 *   output += ws * (sum w (v - 128))
 *
 * What the 16 bits leave out is some hundred times below what the 8 bits do. The steps are shared
 * by all instruction sets; a set brings the three loops. Layout of blocks: kv.h.
 *
 * 16-bit codes that belong to four bytes of keys (or values) stand in the order 0, 2, 1, 3: the
 * even bytes of a vector widen to 16 bits with one operation, and the odd ones with another. */
#ifndef ENGINE_CPU_ATTENTION_INT8_H
#define ENGINE_CPU_ATTENTION_INT8_H

#include "attention.h"

enum {
    INT8_GROUP_QUERIES = 6,  /* taken together by the loops, at most */
    INT8_WEIGHT_MAX = 32767, /* largest code of a weight */
};
/* Blocks whose largest weight is below this count as zero: a code over it must stay finite. */
#define INT8_WEIGHT_ZERO_BELOW 1e-30f

/* 64 dimensions of a query. */
struct AttentionQueryScale {
    float scale;  /* NaN when the query is not finite */
    int32_t zero; /* 128 * (sum of its codes) */
};

/* One block of keys. */
typedef struct Int8Block {
    const uint8_t *key_codes, *value_codes;
    const float *key_scales, *value_scales; /* [dimensions / 64][KV_BLOCK] */
    size_t padded_dim;                      /* a multiple of KV_VALUE_UNIT */
    bool looks_ahead;                       /* asks for the values while it reads the keys */
    const uint8_t *next; /* keys of the block that follows, to ask for; or NULL */
    size_t next_bytes;
} Int8Block;

typedef struct Int8Loops {
    /* scores[i] = query i . keys, the whole block. codes and scales as in AttentionTile. */
    void (*score)(const Int8Block *block, const int16_t *codes, const AttentionQueryScale *scales,
                  size_t n, float (*scores)[KV_BLOCK]);
    /* Scores to weights of one query; keys outside [first, end) are hidden and weigh 0. Returns by
     * how much what was summed before shrinks. */
    float (*soften)(float scores[KV_BLOCK], size_t first, size_t end, float soft_cap, float *max,
                    float *sum);
    /* output[i] = output[i] * corrections[i] + weights[i] . values; outputs padded_dim apart. */
    void (*weigh)(const Int8Block *block, const float (*weights)[KV_BLOCK],
                  const float *corrections, size_t n, float *output);
} Int8Loops;

extern const Int8Loops int8_loops_plain;
#if CPU_HAS_X86_KERNELS
extern const Int8Loops int8_loops_avx2, int8_loops_avx512;
/* Shared with the kernels for fp16: 64-byte aligned scores. */
float attention_soften_avx2(float scores[KV_BLOCK], size_t first, size_t end, float soft_cap,
                            float *max, float *sum);
float attention_soften_avx512(float scores[KV_BLOCK], size_t first, size_t end, float soft_cap,
                              float *max, float *sum);
#elif CPU_HAS_ARM_KERNELS
extern const Int8Loops int8_loops_neon;
float attention_soften_neon(float scores[KV_BLOCK], size_t first, size_t end, float soft_cap,
                            float *max, float *sum);
#endif

/* Stores a key and a value [head_dim] at a slot of a head's block. */
void attention_store_int8(const float *key, const float *value, size_t head_dim, uint8_t *keys,
                          uint8_t *values, size_t slot);
/* Queries [n, padded_dim] to codes [n][dimensions / 64][64] and scales [n][dimensions / 64]. */
void attention_quantize_queries(const float *queries, size_t n, size_t padded_dim, int16_t *codes,
                                AttentionQueryScale *scales);
/* What AttentionTile says, with these loops. */
void attention_segment_int8(const AttentionTile *tile, const Int8Loops *loops);

static inline size_t int8_scale_rows(size_t dims)
{
    return (dims + KV_SCALE_DIMS - 1) / KV_SCALE_DIMS;
}

#endif
