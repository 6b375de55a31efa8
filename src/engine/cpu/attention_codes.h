/* Private to engine/cpu: attention over keys and values that are codes, of 16 or of 8 bits.
 *
 * Queries become 16-bit codes, and so do the weights of a block's keys, times the values' scales.
 * Products of codes are then added up as integers, exactly:
 *
 *   score   = sum over the dimensions that share a scale: qs * (sum q (k - zero)) * ks
 *   output += ws * (sum w (v - zero))
 *
 * Two products of 16 bits take the time of one in float32. The steps are shared by all instruction
 * sets; a set brings the three loops. Layout of blocks: kv.h.
 *
 * Codes of 16 bits are signed, and a head's row has one scale. Their sums fit 32 bits since
 * quantising bounds them: with keys and queries the Euclidean norm of a row (Cauchy-Schwarz:
 * |sum q k| <= CODE_NORM_MAX^2 < 2^31), with values the largest code and with weights the sum.
 * A row loses 5e-5 to 1e-4 of its norm to that, to fp16 2e-4.
 *
 * Codes of 8 bits are unsigned with 128 for zero, 64 dimensions to a scale; what the 16 bits of
 * queries and weights leave out is some hundred times below what those do. The 16-bit codes that
 * belong to four bytes of keys (or values) stand in the order 0, 2, 1, 3: the even bytes of a
 * vector widen to 16 bits with one operation, and the odd ones with another. */
#ifndef ENGINE_CPU_ATTENTION_CODES_H
#define ENGINE_CPU_ATTENTION_CODES_H

#include "attention.h"

enum {
    CODE_GROUP_QUERIES = 6, /* taken together by the loops, at most */
    CODE_MAX = 32767,
    CODE_NORM_MAX = 45800,     /* of a row's codes, before they are rounded; the half units of
                                * MODEL_DIM_MAX dimensions still fit */
    CODE_VALUE_MAX = 16383,    /* of values of 16 bits */
    CODE_WEIGHTS_MAX = 131000, /* sum of a block's weights, before they are rounded, with those */
};

/* Dimensions of a query that share a scale. */
struct AttentionQueryScale {
    float scale;  /* NaN when the query is not finite */
    int32_t zero; /* 128 * (sum of its codes); 0 with keys of 16 bits */
};

/* One block of keys. */
typedef struct CodeBlock {
    const uint8_t *key_codes, *value_codes;
    const float *key_scales, *value_scales; /* [rows of dimensions][KV_BLOCK] */
    size_t padded_dim;                      /* a multiple of KV_VALUE_UNIT */
    size_t value_offset; /* of the values' codes from the keys'; scales lie behind the codes */
    size_t n_keys;       /* those behind them no query sees */
    /* Keys of the block that follows, n_next of which to ask for while this one is worked on; or
     * NULL. */
    const uint8_t *next;
    size_t n_next;
} CodeBlock;

typedef struct CodeLoops {
    /* scores[i] = query i . keys, for n_keys at least; the other scores may be anything. codes and
     * scales as in AttentionTile. */
    void (*score)(const CodeBlock *block, const int16_t *codes, const AttentionQueryScale *scales,
                  size_t n, float (*scores)[KV_BLOCK]);
    /* Scores of n queries to weights; keys outside seen[i] are hidden and weigh 0. corrections[i]:
     * by how much what was summed before shrinks. */
    void (*soften)(float (*scores)[KV_BLOCK], const KeyRange *seen, size_t n, float soft_cap,
                   float *maxima, float *sums, float *corrections);
    /* output[i] = output[i] * corrections[i] + weights[i] . values; outputs padded_dim apart, and
     * weights 0 behind n_keys. */
    void (*weigh)(const CodeBlock *block, const float (*weights)[KV_BLOCK],
                  const float *corrections, size_t n, float *output);
} CodeLoops;

extern const CodeLoops int8_loops_plain, int16_loops_plain;
#if CPU_HAS_X86_KERNELS
extern const CodeLoops int8_loops_avx2, int16_loops_avx2, int8_loops_avx512, int16_loops_avx512;
/* Shared with the kernels for numbers: scores aligned to the set's vectors. */
void attention_soften_avx2(float (*scores)[KV_BLOCK], const KeyRange *seen, size_t n,
                           float soft_cap, float *maxima, float *sums, float *corrections);
void attention_soften_avx512(float (*scores)[KV_BLOCK], const KeyRange *seen, size_t n,
                             float soft_cap, float *maxima, float *sums, float *corrections);
#elif CPU_HAS_ARM_KERNELS
extern const CodeLoops int8_loops_neon;
void attention_soften_neon(float (*scores)[KV_BLOCK], const KeyRange *seen, size_t n,
                           float soft_cap, float *maxima, float *sums, float *corrections);
#endif

/* Stores a key and a value [head_dim] at a slot of a head's block of codes. */
void attention_store_codes(const CpuOps *ops, KvType type, const float *key, const float *value,
                           size_t head_dim, uint8_t *keys, uint8_t *values, size_t slot);
/* Asks for the memory that n rows will be stored to, from a slot on: lines that lie far apart,
 * which stores alone would wait for one by one. */
void attention_ask_for_slots(KvType type, size_t head_dim, const uint8_t *keys,
                             const uint8_t *values, size_t slot, size_t n);
/* Codes and scales of a query. */
size_t attention_query_codes(KvType type, size_t padded_dim);
size_t attention_query_scales(KvType type, size_t padded_dim);
/* Queries [n, padded_dim] to codes and scales. */
void attention_quantize_queries(const CpuOps *ops, KvType type, const float *queries, size_t n,
                                size_t padded_dim, int16_t *codes, AttentionQueryScale *scales);
/* What AttentionTile says, with the set's loops for the type. */
void attention_segment_codes(const AttentionTile *tile, KvType type, const CpuOps *ops);

/* Codes that a product adds up, and that lie together for it. */
static inline size_t codes_together(KvType type)
{
    return type == KV_INT16 ? 2 : 4;
}

/* Dimensions of a row that share a scale. */
static inline size_t code_row_dims(KvType type, size_t padded_dim)
{
    return type == KV_INT16 ? padded_dim : KV_SCALE_DIMS;
}

/* Rows of dimensions that share a scale, 8 bits. */
static inline size_t int8_scale_rows(size_t dims)
{
    return (dims + KV_SCALE_DIMS - 1) / KV_SCALE_DIMS;
}

/* Calls call(..., n) with a constant for n: sums are arrays of registers. 4 for more than that. */
#define BY_QUERY_COUNT_TO_4(n, call, ...)                                                          \
    do {                                                                                           \
        switch (n) {                                                                               \
        case 1:                                                                                    \
            call(__VA_ARGS__, 1);                                                                  \
            break;                                                                                 \
        case 2:                                                                                    \
            call(__VA_ARGS__, 2);                                                                  \
            break;                                                                                 \
        case 3:                                                                                    \
            call(__VA_ARGS__, 3);                                                                  \
            break;                                                                                 \
        default:                                                                                   \
            call(__VA_ARGS__, 4);                                                                  \
            break;                                                                                 \
        }                                                                                          \
    } while (0)

/* The same for 1 to CODE_GROUP_QUERIES. */
#define BY_QUERY_COUNT(n, call, ...)                                                               \
    do {                                                                                           \
        if ((n) == 6)                                                                              \
            call(__VA_ARGS__, 6);                                                                  \
        else if ((n) == 5)                                                                         \
            call(__VA_ARGS__, 5);                                                                  \
        else                                                                                       \
            BY_QUERY_COUNT_TO_4(n, call, __VA_ARGS__);                                             \
    } while (0)

#endif
