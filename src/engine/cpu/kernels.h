/* Private to the matrix files of engine/cpu: the packed layout, and the table of kernels.
 *
 * A PackedMatrix is cut into tiles of 16 output rows; rows past the last are zero. A tile is
 * contiguous, and every part of it begins at a cache line:
 *
 *   quantised   group 0 | group 1 | ...              inputs [g * group_size, ...), all 16 rows
 *     group     scales [16] | biases [16] | block 0 | block 1 | ...       scale_type each
 *     block     32 inputs: lane r of vector j (32 bits) holds row r's inputs 4j .. 4j + 3,
 *               j = 0 .. 7
 *       bytes   vector 0 | ... | vector 7                                       512 bytes
 *       nibbles 4 vectors: vector i has code vector 2i low and 2i + 1 high      256 bytes
 *   dense       input 0: value of rows 0 .. 15 | input 1 | ...        PackedFormat's type
 *
 * A lane being a row, sums never cross lanes, and 16 rows share every broadcast of the activations.
 * A vector is one AVX-512 register, two AVX2 registers, or a row of an AMX tile, whose layout for 4
 * inputs of 16 outputs this is. One tile after the other is one stream of memory.
 *
 * The order of additions, for each (row, token), is the same in every kernel of an instruction set:
 *   quantised  acc = 0; for each span: acc += dot * (scale * x.scale); acc += bias * x.offset
 *              where a span is 64 inputs, or 32 when groups are of 32, and
 *              dot = sum of weight code * activation code, which matrix.h spells in planes
 *   float32    acc = 0; for each block: p = 0; for each input: p += w * x; acc += p
 * and at last acc + product bias. dot is an exact integer, so kernels may sum it as they like. */
#ifndef ENGINE_CPU_KERNELS_H
#define ENGINE_CPU_KERNELS_H

#include "hints.h"
#include "matrix.h"

enum {
    TILE_ROWS = 16,
    WEIGHT_BLOCK = 32, /* inputs */
    BLOCK_VECTORS = WEIGHT_BLOCK / 4,
    VECTOR_BYTES = 4 * TILE_ROWS,
    NIBBLE_BLOCK_BYTES = TILE_ROWS * WEIGHT_BLOCK / 2,
    BYTE_BLOCK_BYTES = TILE_ROWS * WEIGHT_BLOCK,
};

typedef enum PackedFormat {
    PACKED_NIBBLES, /* affine, codes 0 .. 15 */
    PACKED_FP4,     /* E2M1 nibbles standing for FP4_CODES, codes 0 .. 24 */
    PACKED_BYTES,   /* affine, codes 0 .. 2^code_bits - 1 */
    PACKED_F32,
    PACKED_F16,
    PACKED_BF16,
    PACKED_FORMATS
} PackedFormat;

typedef enum ScaleType { SCALE_F32, SCALE_F16, SCALE_BF16 } ScaleType;

struct PackedMatrix {
    size_t rows, cols;
    size_t n_tiles;
    size_t n_blocks;     /* of 32 inputs */
    size_t group_blocks; /* blocks of a group: 1, or an even number; 1 when dense */
    size_t group_bytes;  /* quantised: a group of a tile, scales included; dense: a block's */
    size_t tile_bytes;
    size_t bytes;   /* of data */
    bool is_stored; /* data belongs to a PackedStore */
    PackedFormat format;
    ScaleType scale_type;
    uint32_t code_bits; /* of PACKED_BYTES: 5, 6 or 8 */
    uint8_t *data;
};

/* E2M1 is a signed value; twice it, plus 12, is a code that the affine formula fits exactly:
 * value * s = code * (s / 2) + (-12 * (s / 2)). */
#define FP4_CODES                                                                                  \
    {                                                                                              \
        12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0                                  \
    }
enum { FP4_CODE_OF_ZERO = 12 };

/* Tiles [first_tile, first_tile + n_tiles) of one product, all tokens. */
typedef struct KernelJob {
    const PackedMatrix *matrix;
    const Activations *x;
    const float *bias;
    float *y;
    size_t y_stride;
    size_t first_tile, n_tiles;
} KernelJob;

typedef void (*MatrixKernel)(const KernelJob *job);
/* Quantises 64 inputs to one plane of codes, or to two that lie together. */
typedef void (*QuantizeBlock)(const float *x, int8_t *codes, ActivationScale *scale);

typedef struct KernelTable {
    const char *name;
    QuantizeBlock quantize_block, quantize_block_int16;
    QuantizeBlock quantize_block_int12; /* optional: where pairs of inputs make products cheaper */
    /* Optional: how products of words_from tokens and more want activations of 16 bits instead of
     * in planes, with weights of 8 bits those of words_from_bytes. The same codes, each an int16_t,
     * inputs 0, 2, 1 and 3 of each 4. */
    QuantizeBlock quantize_block_words;
    size_t words_from, words_from_bytes;
    MatrixKernel multiply[PACKED_FORMATS];     /* codes of any precision; dense formats: values */
    MatrixKernel multiply_f32[PACKED_FORMATS]; /* float32 values for every format */
} KernelTable;

extern const KernelTable kernels_plain;
#if CPU_HAS_X86_KERNELS
extern const KernelTable kernels_avx2, kernels_avxvnni, kernels_avx512, kernels_zen4, kernels_amx;
#elif CPU_HAS_ARM_KERNELS
extern const KernelTable kernels_neon, kernels_dotprod, kernels_i8mm;
#endif
const KernelTable *cpu_kernels(void); /* the selected table */

/* What is fixed while a kernel of quantised weights is compiled. */
typedef struct KernelKind {
    PackedFormat format;
    uint32_t code_bits; /* for kernels that care: of PACKED_BYTES 5, 6 or 8, else 4 */
    int span_blocks;    /* packed_span_blocks */
    size_t planes;      /* of the activations */
    bool has_pairs;     /* in the second plane: for tables with quantize_block_int12 */
} KernelKind;

/* Calls multiply(job, kind) with what fits the job. A macro, since each call must have constants to
 * be compiled for: a function would pass them at run time. The type of the scales is left to
 * branches, which go one way throughout a matrix: a third of the kernels. */
#define KERNEL_BY_SPAN(multiply, job, format, bits, planes, has_pairs)                             \
    do {                                                                                           \
        if ((job)->matrix->group_blocks > 1)                                                       \
            multiply(job, (KernelKind){format, bits, 2, planes, has_pairs});                       \
        else                                                                                       \
            multiply(job, (KernelKind){format, bits, 1, planes, has_pairs});                       \
    } while (0)
#define KERNEL_BY_PLANES(multiply, job, format, bits)                                              \
    do {                                                                                           \
        if ((job)->x->planes == 2)                                                                 \
            KERNEL_BY_SPAN(multiply, job, format, bits, 2, false);                                 \
        else                                                                                       \
            KERNEL_BY_SPAN(multiply, job, format, bits, 1, false);                                 \
    } while (0)
#define KERNEL_BY_FORMAT(multiply, job)                                                            \
    do {                                                                                           \
        if ((job)->matrix->format == PACKED_NIBBLES)                                               \
            KERNEL_BY_PLANES(multiply, job, PACKED_NIBBLES, 4);                                    \
        else if ((job)->matrix->format == PACKED_FP4)                                              \
            KERNEL_BY_PLANES(multiply, job, PACKED_FP4, 4);                                        \
        else                                                                                       \
            KERNEL_BY_PLANES(multiply, job, PACKED_BYTES, 8);                                      \
    } while (0)

static inline size_t scale_type_bytes(ScaleType type)
{
    return type == SCALE_F32 ? 4 : 2;
}

static inline bool packed_format_is_quantized(PackedFormat format)
{
    return format <= PACKED_BYTES;
}

/* Blocks of 32 inputs that share one dot product: kernels.h's spans. */
static inline size_t packed_span_blocks(const PackedMatrix *m)
{
    return m->group_blocks == 1 ? 1 : ACTIVATION_BLOCK / WEIGHT_BLOCK;
}

/* A group of a tile (quantised formats), or a block (dense). */
static inline const uint8_t *packed_group(const PackedMatrix *m, size_t tile, size_t group)
{
    return m->data + tile * m->tile_bytes + group * m->group_bytes;
}

/* Packs tile tile_index of expert `expert` of source. scratch: 2 floats a column, and 16. */
void packed_tile_write(const PackedMatrix *m, const WeightMatrix *source, size_t expert,
                       size_t tile_index, float *scratch);

/* How the tiles of matrices that share a section are cut into parts: parts are runs of tiles of one
 * matrix, in the order of the matrices. The cut depends on the matrices, the threads and hardly on
 * the tokens. */
enum { MATRIX_PARTS_MATRICES = 64 };
typedef struct MatrixParts {
    size_t n_matrices;
    const PackedMatrix *matrices[MATRIX_PARTS_MATRICES];
    size_t tiles_per_part[MATRIX_PARTS_MATRICES]; /* of matrix i */
    size_t end[MATRIX_PARTS_MATRICES];            /* parts of matrices 0 .. i */
} MatrixParts;
typedef struct MatrixPart {
    size_t matrix, first_tile, n_tiles;
} MatrixPart;
/* n_matrices and matrices are set; fills in the rest. Returns the number of parts. */
size_t matrix_parts_plan(MatrixParts *parts, size_t n_tokens, size_t threads);
MatrixPart matrix_parts_get(const MatrixParts *parts, size_t part);

/* Kernels may take tokens 16 at a time, and then read codes and scales past the last token. */
enum {
    ACTIVATION_SLACK_TOKENS = 16,
    ACTIVATION_SLACK_BYTES = ACTIVATION_SLACK_TOKENS * 2 * ACTIVATION_BLOCK
};

/* Largest 16-bit code: the first plane stays a byte, and a weight's code added to it a word. */
enum { ACTIVATION_INT16_MAX = 127 * ACTIVATION_PLANE_STEP };

/* Winograd's products of bytes: qa + 120 + b is an unsigned byte and qb - 8 + a a signed one for
 * weights of 4 bits and codes within WINOGRAD_CODE_MAX. Pairs are those of ACTIVATIONS_INT12; a
 * token's rest is the negated sum of a b + 120 a - 8 b over them, of codes of the first plane. */
enum { WINOGRAD_FIRST = 120, WINOGRAD_SECOND = 8, WINOGRAD_CODE_MAX = 120 };

/* Of pairs: the most steps of 16 in a code, for which w = (steps - u) / 16 stays within
 * WINOGRAD_CODE_MAX, and the bytes of a block. */
enum {
    ACTIVATION_INT12_STEPS = WINOGRAD_CODE_MAX * ACTIVATION_PAIR_STEP - 128,
    ACTIVATION_INT12_BYTES = ACTIVATION_BLOCK + ACTIVATION_BLOCK / 2
};

/* Blocks whose largest input is below this count as zero: a code over it must stay finite. */
#define ACTIVATION_ZERO_BELOW 1e-30f

/* Plain C: values of one block of a tile, [input][row]. Inputs beyond cols are 0. */
void packed_expand_block(const PackedMatrix *m, size_t tile, size_t block,
                         float out[WEIGHT_BLOCK][TILE_ROWS]);

#endif
