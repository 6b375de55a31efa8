/* The kernel table, activations, and products in one parallel section.
 *
 * A section's parts are runs of row tiles of one product; a part covers all tokens, so that its
 * weights come from memory once. Part sizes: small enough that the last parts end together, large
 * enough that taking one (about 0.1 microseconds) does not show. */
#include "kernels.h"

#include <assert.h>
#include <string.h>

enum {
    PARTS_PER_THREAD = 8,
    TILES_TOGETHER = 2,       /* kernels take up to 2 tiles side by side */
    PART_COST_MIN = 16 << 10, /* bytes of weights times tokens: about a microsecond */
    PREPARE_PART_TOKENS = 8,
    PREPARE_PARALLEL_VALUES = 16 << 10,
};

/* Written once by cpu_kernels_select, before threads start. */
static const KernelTable *selected_kernels = &kernels_plain;

const KernelTable *cpu_kernels(void)
{
    return selected_kernels;
}

InstructionSet cpu_kernels_select(InstructionSet set)
{
    static const KernelTable *const tables[INSTRUCTION_SETS] = {
        [INSTRUCTIONS_PLAIN] = &kernels_plain,
#if CPU_HAS_X86_KERNELS
        [INSTRUCTIONS_AVX2] = &kernels_avx2,
        [INSTRUCTIONS_AVXVNNI] = &kernels_avxvnni,
        [INSTRUCTIONS_AVX512] = &kernels_avx512,
        [INSTRUCTIONS_ZEN4] = &kernels_zen4,
        [INSTRUCTIONS_AMX] = &kernels_amx,
#elif CPU_HAS_ARM_KERNELS
        [INSTRUCTIONS_NEON] = &kernels_neon,
        [INSTRUCTIONS_DOTPROD] = &kernels_dotprod,
        [INSTRUCTIONS_I8MM] = &kernels_i8mm,
#endif
    };
    set = cpu_best_instructions(set);
    selected_kernels = tables[set];
    return set;
}

/* ---- Activations ---- */

static void set_precision(Activations *activations, ActivationPrecision precision)
{
    activations->precision = precision;
    activations->planes = precision == ACTIVATIONS_F32 ? 0 : precision == ACTIVATIONS_INT8 ? 1 : 2;
    activations->block_bytes = precision == ACTIVATIONS_INT12
                                   ? ACTIVATION_INT12_BYTES
                                   : activations->planes * ACTIVATION_BLOCK;
}

/* Of codes and of scales, at capacity. */
static bool count_bytes(const Activations *activations, size_t *code_bytes, size_t *scale_bytes)
{
    size_t n_blocks, planes = activations->wanted == ACTIVATIONS_INT8 ? 1 : 2;
    if (!size_add(activations->max_cols, ACTIVATION_BLOCK - 1, &n_blocks) ||
        !size_multiply(n_blocks / ACTIVATION_BLOCK, activations->max_tokens, &n_blocks) ||
        !size_multiply(n_blocks, planes * ACTIVATION_BLOCK, code_bytes))
        return false;
    *scale_bytes = (n_blocks + ACTIVATION_SLACK_TOKENS) * sizeof(ActivationScale); /* < codes */
    return size_add(*code_bytes, ACTIVATION_SLACK_BYTES, code_bytes);
}

size_t activations_bytes(const Activations *activations)
{
    size_t code_bytes, scale_bytes;
    if (!activations->codes || !count_bytes(activations, &code_bytes, &scale_bytes))
        return 0;
    return code_bytes + scale_bytes;
}

bool activations_create(size_t max_tokens, size_t max_cols, ActivationPrecision precision,
                        Activations *out, Error *err)
{
    memset(out, 0, sizeof(*out));
    out->max_tokens = max_tokens;
    out->max_cols = max_cols;
    out->wanted = precision;
    set_precision(out, precision);
    if (precision == ACTIVATIONS_F32)
        return true;
    size_t code_bytes, scale_bytes;
    if (!count_bytes(out, &code_bytes, &scale_bytes))
        return error_set(err, ERROR_LIMIT, "activations [%zu, %zu] are too large", max_tokens,
                         max_cols);
    out->codes = memory_allocate_aligned(64, code_bytes);
    out->scales = memory_allocate_aligned(64, scale_bytes);
    if (!out->codes || !out->scales) {
        activations_free(out);
        return error_no_memory(err, "activations");
    }
    return true;
}

void activations_free(Activations *activations)
{
    memory_free(activations->scales);
    memory_free(activations->codes);
    memset(activations, 0, sizeof(*activations));
}

static bool has_gain_from_pairs(const PackedMatrix *matrix)
{
    return cpu_kernels()->quantize_block_int12 && (!matrix || matrix->format == PACKED_NIBBLES);
}

/* Whether codes of 16 bits are words for products of a matrix with n_tokens. */
static bool wants_words(const PackedMatrix *matrix, size_t n_tokens)
{
    const KernelTable *kernels = cpu_kernels();
    bool is_bytes = matrix && matrix->format == PACKED_BYTES && matrix->code_bits == 8;
    return kernels->quantize_block_words &&
           n_tokens >= (is_bytes ? kernels->words_from_bytes : kernels->words_from);
}

void activations_begin(Activations *activations, const PackedMatrix *matrix, const float *x,
                       size_t n_tokens, size_t cols, size_t x_stride)
{
    assert(n_tokens <= activations->max_tokens && cols <= activations->max_cols);
    assert(x_stride >= cols || n_tokens <= 1);
    if (activations->wanted == ACTIVATIONS_INT12)
        set_precision(activations,
                      has_gain_from_pairs(matrix) ? ACTIVATIONS_INT12 : ACTIVATIONS_INT16);
    activations->are_words =
        activations->precision == ACTIVATIONS_INT16 && wants_words(matrix, n_tokens);
    activations->values = x;
    activations->value_stride = x_stride;
    activations->n_tokens = n_tokens;
    activations->cols = cols;
    activations->n_blocks = (cols + ACTIVATION_BLOCK - 1) / ACTIVATION_BLOCK;
}

static QuantizeBlock block_quantizer(const Activations *activations)
{
    const KernelTable *kernels = cpu_kernels();
    if (activations->precision == ACTIVATIONS_INT8)
        return kernels->quantize_block;
    if (activations->precision == ACTIVATIONS_INT12)
        return kernels->quantize_block_int12;
    return activations->are_words ? kernels->quantize_block_words : kernels->quantize_block_int16;
}

void activations_quantize_row(Activations *activations, size_t token)
{
    if (activations->precision == ACTIVATIONS_F32)
        return;
    QuantizeBlock quantize_block = block_quantizer(activations);
    const float *x = activations->values + token * activations->value_stride;
    size_t whole = activations->cols / ACTIVATION_BLOCK;
    for (size_t block = 0; block < whole; block++)
        quantize_block(x + block * ACTIVATION_BLOCK, activation_codes(activations, token, block),
                       activation_scale(activations, token, block));
    if (whole < activations->n_blocks) {
        float padded[ACTIVATION_BLOCK] = {0};
        memcpy(padded, x + whole * ACTIVATION_BLOCK,
               (activations->cols - whole * ACTIVATION_BLOCK) * sizeof(float));
        quantize_block(padded, activation_codes(activations, token, whole),
                       activation_scale(activations, token, whole));
    }
}

static void prepare_part(void *context, size_t part, size_t n_parts)
{
    Activations *activations = context;
    size_t first = part * PREPARE_PART_TOKENS;
    (void)n_parts;
    for (size_t t = first; t < first + PREPARE_PART_TOKENS && t < activations->n_tokens; t++)
        activations_quantize_row(activations, t);
}

void activations_prepare(Activations *activations, const PackedMatrix *matrix, const float *x,
                         size_t n_tokens, size_t cols, size_t x_stride, CpuPool *pool)
{
    activations_begin(activations, matrix, x, n_tokens, cols, x_stride);
    if (activations->precision == ACTIVATIONS_F32)
        return;
    size_t n_parts = (n_tokens + PREPARE_PART_TOKENS - 1) / PREPARE_PART_TOKENS;
    bool pays = n_tokens * cols >= PREPARE_PARALLEL_VALUES;
    cpu_pool_run(pays ? pool : NULL, prepare_part, activations, n_parts);
}

/* ---- Products ---- */

size_t matrix_parts_plan(MatrixParts *parts, size_t n_tokens, size_t threads)
{
    size_t cost = 0, n_parts = 0;
    for (size_t i = 0; i < parts->n_matrices; i++)
        cost += parts->matrices[i]->bytes * n_tokens;
    size_t part_cost = cost / (threads * PARTS_PER_THREAD);
    if (part_cost < PART_COST_MIN)
        part_cost = PART_COST_MIN;
    for (size_t i = 0; i < parts->n_matrices; i++) {
        const PackedMatrix *m = parts->matrices[i];
        size_t tile_cost = m->tile_bytes * n_tokens;
        size_t count = tile_cost ? part_cost / tile_cost / TILES_TOGETHER : 0;
        parts->tiles_per_part[i] = (count ? count : 1) * TILES_TOGETHER;
        n_parts += (m->n_tiles + parts->tiles_per_part[i] - 1) / parts->tiles_per_part[i];
        parts->end[i] = n_parts;
    }
    return n_parts;
}

MatrixPart matrix_parts_get(const MatrixParts *parts, size_t part)
{
    size_t i = 0;
    while (part >= parts->end[i])
        i++;
    size_t count = parts->tiles_per_part[i];
    size_t first = (part - (i ? parts->end[i - 1] : 0)) * count;
    size_t left = parts->matrices[i]->n_tiles - first;
    return (MatrixPart){i, first, count < left ? count : left};
}

typedef struct Section {
    const Activations *x;
    const MatrixProduct *products;
    MatrixParts parts;
} Section;

static void multiply_part(void *context, size_t part, size_t n_parts)
{
    const Section *section = context;
    MatrixPart tiles = matrix_parts_get(&section->parts, part);
    const MatrixProduct *product = &section->products[tiles.matrix];
    KernelJob job = {product->matrix,   section->x,       product->bias, product->y,
                     product->y_stride, tiles.first_tile, tiles.n_tiles};
    const KernelTable *kernels = cpu_kernels();
    (void)n_parts;
    if (section->x->precision == ACTIVATIONS_F32)
        kernels->multiply_f32[product->matrix->format](&job);
    else
        kernels->multiply[product->matrix->format](&job);
}

static void multiply_up_to_max(const Activations *x, const MatrixProduct *products,
                               size_t n_products, CpuPool *pool)
{
    Section section = {.x = x, .products = products, .parts.n_matrices = n_products};
    for (size_t p = 0; p < n_products; p++) {
        assert(products[p].matrix->cols == x->cols);
        assert(products[p].y_stride >= products[p].matrix->rows || x->n_tokens <= 1);
        section.parts.matrices[p] = products[p].matrix;
    }
    size_t n_parts = matrix_parts_plan(&section.parts, x->n_tokens, cpu_pool_threads(pool));
    cpu_pool_run_shares(pool, multiply_part, &section, n_parts);
}

void matrix_multiply(const Activations *x, const MatrixProduct *products, size_t n_products,
                     CpuPool *pool)
{
    for (size_t first = 0; first < n_products; first += MATRIX_PARTS_MATRICES) {
        size_t left = n_products - first;
        multiply_up_to_max(x, products + first,
                           left < MATRIX_PARTS_MATRICES ? left : MATRIX_PARTS_MATRICES, pool);
    }
}
