/* Private to engine/cpu: weight matrices in the kernels' own tile order, and their products.
 *
 * A PackedMatrix is one WeightMatrix repacked at load; Activations are the input rows of a product,
 * quantised once for all matrices that share them (q, k, v; gate, up). matrix_multiply computes
 * y = x W^T for several matrices in one parallel section. Which kernel runs is decided by a table
 * that is filled once (cpu_kernels_select), by instruction set, format and number of tokens.
 *
 * Determinism: within an instruction set, y[token][row] is the same bits whatever n_tokens is,
 * whichever thread computes it and whatever else is in the batch. */
#ifndef ENGINE_CPU_MATRIX_H
#define ENGINE_CPU_MATRIX_H

#include "base.h"
#include "instruction_set.h"
#include "pool.h"
#include "weights.h"

/* Quantised activations come in blocks of 64 inputs that share a scale. */
enum { ACTIVATION_BLOCK = 64 };

/* How inputs enter a product: x ~ scale * code. One byte of a block's largest magnitude leaves an
 * error of about half a percent in an input, which small models show in their logits; two bytes
 * leave none to speak of and cost a second product of bytes. Between them, a byte and a half:
 * inputs a and b = a + 4 share a byte u, and with bytes v and w of their own
 *     code of a = 256 v + u,  code of b = 256 w + 16 u.
 * The low 4 bits of u place b between multiples of 256, the high 4 bits place a, both in steps of
 * 16. Where weights of 4 bits come two in a byte p = qa + 16 qb, this takes three products of bytes
 * instead of four, one of them with p as it lies in memory:
 *     qa * (code of a) + qb * (code of b) = 256 (qa v + qb w) + p u. */
typedef enum ActivationPrecision {
    ACTIVATIONS_INT8,  /* codes of +-127 */
    ACTIVATIONS_INT12, /* pairs as above; INT16 for instruction sets and weights without a gain */
    ACTIVATIONS_INT16, /* codes of +-32512 as 256 * high + low, low in [-128, 127] */
    ACTIVATIONS_F32    /* float32 products, nothing is quantised */
} ActivationPrecision;

typedef struct PackedMatrix PackedMatrix;

/* Repacks (in parallel; pool may be NULL). Not the source's pages: the caller releases them.
 * Formats: affine of every width and group (up to 4 bits as nibbles; the others as 8-bit codes),
 * mxfp4 as nibbles (exact), mxfp8 and nvfp4 widened to bfloat16 (exact down to 2^-133), dense
 * F32/F16/BF16. */
bool packed_matrix_create(const WeightMatrix *source, size_t expert, CpuPool *pool,
                          PackedMatrix **out, Error *err) WARN_UNUSED;
/* Memory for many matrices, one behind the other in slabs of huge pages: each on its own would
 * begin a page of its own and end in small ones. A slab's untouched end takes addresses only.
 * Caller-owned, zeroed to begin with; reset after its matrices are freed. */
typedef struct PackedStore {
    struct PackedSlab *slabs;
    uint8_t *next; /* of the newest slab */
    size_t left;
} PackedStore;
void packed_store_reset(PackedStore *store);
typedef struct PackRequest {
    const WeightMatrix *source;
    size_t expert;
    PackedMatrix **out;
} PackRequest;
/* The same for matrices that will be multiplied together (at most MATRIX_PARTS_MATRICES): one
 * section, in which each thread packs the rows that are its share of the product. store: where
 * most go, or NULL. On failure every out is NULL. Threads: one caller a store. */
bool packed_matrices_create(PackedStore *store, const PackRequest *requests, size_t count,
                            CpuPool *pool, Error *err) WARN_UNUSED;
void packed_matrix_free(PackedMatrix *matrix); /* accepts NULL */
size_t packed_matrix_bytes(const PackedMatrix *matrix);
size_t packed_matrix_rows(const PackedMatrix *matrix);
size_t packed_matrix_cols(const PackedMatrix *matrix);
/* Exact float32 values of a row (embedding look-up): out [cols]. */
void packed_matrix_read_row(const PackedMatrix *matrix, size_t row, float *out);

/* What a block's codes stand for. half_offsets are for matrices whose groups are half a block. */
typedef struct ActivationScale {
    float scale;           /* of the whole code; NaN when an input is not finite */
    float offset;          /* scale * (sum of codes): what a group's bias is multiplied by */
    float half_offsets[2]; /* the same of inputs 0 .. 31 and 32 .. 63 */
    /* What Winograd's products need to be added for the codes alone (kernels.h). Set for codes that
     * can meet them: of 12 bits, and words. */
    int32_t pair_rest, half_pair_rests[2];
} ActivationScale;

/* What a code of the first plane counts when there are two, and what the second counts for the
 * second input of a pair. */
enum { ACTIVATION_PLANE_STEP = 256, ACTIVATION_PAIR_STEP = 16 };

/* Tokens go through the kernels in tiles. A tile's blocks lie together, block by block, and within
 * a block token by token, so that a kernel that holds one block of weights reads them in one
 * stream. */
enum { ACTIVATION_TILE = 64 };

/* Input rows of a product. Caller-owned struct over memory sized by activations_create. */
typedef struct Activations {
    size_t max_tokens, max_cols;           /* capacity */
    size_t n_tokens, cols;                 /* current content */
    size_t n_blocks;                       /* of a token: cols / ACTIVATION_BLOCK, rounded up */
    ActivationPrecision wanted, precision; /* as created; as it is */
    size_t planes;                         /* of codes: 1 or 2; 0 for float32 products */
    bool are_words;                        /* codes of 16 bits, not in planes */
    size_t block_bytes;                    /* of a block's codes; a plane that pairs share has 32 */
    const float *values; /* [n_tokens, value_stride] float32, borrowed from the last prepare */
    size_t value_stride;
    int8_t *codes;           /* [n_tokens * n_blocks][block_bytes], 64-byte aligned */
    ActivationScale *scales; /* [n_tokens * n_blocks], in the order of codes */
} Activations;

/* Where a token's block stands among all: the index of its scale. */
static inline size_t activation_index(const Activations *x, size_t token, size_t block)
{
    size_t first = token / ACTIVATION_TILE * ACTIVATION_TILE;
    size_t left = x->n_tokens - first;
    size_t width = left < ACTIVATION_TILE ? left : ACTIVATION_TILE;
    return first * x->n_blocks + block * width + (token - first);
}

static inline ActivationScale *activation_scale(const Activations *x, size_t token, size_t block)
{
    return x->scales + activation_index(x, token, block);
}

/* The planes of inputs [64 * block, 64 * block + 64) of a token, one after the other. Codes are
 * -127 .. 127 in the first plane, -128 .. 127 in the second; whole codes are 0 beyond the last
 * column. A second
 * plane of pairs has a byte for each input that is the first of one, in their order. Where
 * KernelTable says so, codes are words instead of two planes. */
static inline int8_t *activation_codes(const Activations *x, size_t token, size_t block)
{
    return x->codes + activation_index(x, token, block) * x->block_bytes;
}

bool activations_create(size_t max_tokens, size_t max_cols, ActivationPrecision precision,
                        Activations *out, Error *err) WARN_UNUSED;
size_t activations_bytes(const Activations *activations); /* of memory, at capacity */
void activations_free(Activations *activations);
/* Takes rows x [n_tokens, x_stride] (cols used of each) as the input: borrows x, and quantises it
 * unless products are float32. In parallel over tokens when that pays. matrix: what decides whether
 * INT12 has a gain and 16 bits are words, NULL for any; products with others come out right as
 * well. */
void activations_prepare(Activations *activations, const PackedMatrix *matrix, const float *x,
                         size_t n_tokens, size_t cols, size_t x_stride, CpuPool *pool);
/* Quantises one row into `token`'s place; for callers that fuse it behind a norm in their own
 * parallel section. n_tokens and cols were set by activations_begin. */
void activations_begin(Activations *activations, const PackedMatrix *matrix, const float *x,
                       size_t n_tokens, size_t cols, size_t x_stride);
void activations_quantize_row(Activations *activations, size_t token);

typedef struct MatrixProduct {
    const PackedMatrix *matrix;
    const float *bias; /* [rows] added to the result, or NULL */
    float *y;          /* [n_tokens, y_stride] */
    size_t y_stride;
} MatrixProduct;

/* y = x W^T (+ bias) for each product; all matrices have x's cols. */
void matrix_multiply(const Activations *x, const MatrixProduct *products, size_t n_products,
                     CpuPool *pool);

/* Makes the table of a set the one in use; called before threads start. A set that is not available
 * falls to the best one below it. Returns what was selected. */
InstructionSet cpu_kernels_select(InstructionSet set);

#endif
