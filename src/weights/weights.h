/* weights: tensors in files, and MLX's quantised layouts.
 *
 * A TensorSet is a model directory's safetensors (one file, or shards), memory-mapped: look-ups
 * return views into the mapping, every offset, shape, dtype and overlap checked when it is opened.
 * A WeightMatrix is a linear layer's matrix [rows = out, cols = in] as MLX stores it: packed codes
 * with scales and biases, or dense. This room also reads GGUF and writes a GGUF model as an MLX
 * directory. It knows nothing of transformer layers, except in the importer's name mapping.
 * Threads: everything here is immutable after opening, any thread.
 *
 * MLX does not pad safetensors headers: tensor data starts at any byte offset. Use memcpy. */
#ifndef WEIGHTS_H
#define WEIGHTS_H

#include "base.h"
#include "json.h"

enum {
    WEIGHTS_DIMS_MAX = 8,
    WEIGHTS_HEADER_BYTES_MAX = 100 << 20, /* safetensors' own limit */
    WEIGHTS_TENSORS_MAX = 1 << 20,
    WEIGHTS_SHARDS_MAX = 4096,
};

typedef enum DType {
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_U32,
    DTYPE_U8,
    DTYPE_OTHER /* a valid safetensors dtype that no weight uses (I64, BOOL, F64, F8...) */
} DType;

const char *dtype_name(DType dtype);
size_t dtype_size(DType dtype); /* bytes of an element; 0 for DTYPE_OTHER */

typedef struct TensorView {
    Slice name;
    DType dtype;
    uint32_t n_dims;
    int64_t shape[WEIGHTS_DIMS_MAX];
    const uint8_t *data; /* little-endian, row-major, unaligned */
    size_t n_bytes;
    uint32_t file; /* index of its file in the set */
} TensorView;

typedef struct TensorSet TensorSet;

/* Opens every model*.safetensors of the directory. If model.safetensors.index.json exists, each
 * file and tensor that it names must exist. No safetensors at all: ERROR_NOT_FOUND saying what a
 * model directory is. */
bool tensor_set_open(const char *directory, TensorSet **out, Error *err) WARN_UNUSED;
/* One safetensors image in memory (borrowed), for tests and fuzzing. */
bool tensor_set_create(Slice image, const char *name, TensorSet **out, Error *err) WARN_UNUSED;
void tensor_set_close(TensorSet *set);

const TensorView *tensor_set_find(const TensorSet *set, Slice name); /* NULL if absent */
size_t tensor_set_count(const TensorSet *set);
const TensorView *tensor_set_at(const TensorSet *set, size_t index); /* in name order */
size_t tensor_set_bytes(const TensorSet *set);                       /* of all tensors */
/* Gives a tensor's pages back to the system after it, or a part of it, was copied elsewhere. */
void tensor_set_release(const TensorSet *set, const TensorView *tensor);

/* "[2048, 31]" into out, for messages. */
enum { SHAPE_TEXT_MAX = 192 };
const char *tensor_shape_text(const TensorView *tensor, char out[SHAPE_TEXT_MAX]);

/* ---- Quantised layouts ---- */

typedef enum QuantMode {
    QUANT_NONE,   /* dense F32, F16 or BF16 */
    QUANT_AFFINE, /* w = scale * q + bias, q unsigned, bits 2 3 4 5 6 8, group 32 64 128 */
    QUANT_MXFP4,  /* E2M1 codes, E8M0 scale byte, group 32 */
    QUANT_MXFP8,  /* E4M3 codes, E8M0 scale byte, group 32 */
    QUANT_NVFP4   /* E2M1 codes, E4M3 scale byte, group 16 */
} QuantMode;

/* Views of one matrix's tensors; borrowed from the TensorSet. Packing: a row of codes is one bit
 * stream, element i in bits [i * bits, (i + 1) * bits), lowest first, rows a whole number of 32-bit
 * words. */
typedef struct WeightMatrix {
    const TensorView *weight;
    const TensorView *scales; /* NULL when dense */
    const TensorView *biases; /* NULL unless affine */
    /* nvfp4 stacks may have one float32 g per expert: values are then times g / 2688. Else NULL. */
    const TensorView *global_scale;
    /* [n_experts] when each expert has tensors of its own, as Hugging Face stores them; the views
     * above are then the first expert's. NULL for one tensor of all experts. */
    const struct WeightMatrix *experts;
    QuantMode mode;
    uint32_t bits;       /* 0 when dense */
    uint32_t group_size; /* 0 when dense */
    size_t n_experts;    /* 1 unless the tensors are [experts, rows, cols] */
    size_t rows, cols;
    size_t first_row; /* rows [first_row, first_row + rows) of the tensors: parts of fused
                         projections */
} WeightMatrix;

/* What config.json says about one module that it names (pass no spec for the others: as in mlx-lm,
 * their tensors decide). */
typedef struct QuantSpec {
    bool quantized; /* false: config says false, or has no quantisation at all */
    QuantMode mode;
    uint32_t bits, group_size;
} QuantSpec;

/* Finds module's tensors (module + ".weight", ".scales", ".biases", and for nvfp4 ".global_scale")
 * and checks names, dtypes and
 * shapes against [n_experts,] rows, cols; one expert may be stored in two dimensions. The module is
 * quantised exactly when .scales exists; bits, group size and mode follow from shapes and dtypes,
 * and must agree with spec when it is not NULL (a dense module passes any spec: indivisible ones
 * stay dense silently). A missing tensor or a mismatch is an error that names tensor, found and
 * expected. */
bool weight_matrix_bind(const TensorSet *set, const char *module, size_t n_experts, size_t rows,
                        size_t cols, const QuantSpec *spec, WeightMatrix *out,
                        Error *err) WARN_UNUSED;
/* One matrix out of experts [n_experts], each bound on its own to one expert's tensors. The layouts
 * must be the same, else it is an error that names both; experts has to outlive out. */
bool weight_matrix_join_experts(const WeightMatrix *experts, size_t n_experts, WeightMatrix *out,
                                Error *err) WARN_UNUSED;
size_t weight_matrix_bytes(const WeightMatrix *matrix);
/* What every value of an expert is multiplied by beyond its scales: 1 unless global_scale. */
float weight_matrix_expert_factor(const WeightMatrix *matrix, size_t expert);
/* A view of rows [first, first + count) of matrix. */
WeightMatrix weight_matrix_slice_rows(const WeightMatrix *matrix, size_t first, size_t count);

/* Rows [first, first + count) of an expert in one of the matrix's own tensors (weight, scales,
 * biases): its bytes as a part of tensor. Not for separate experts. */
TensorView weight_matrix_view_rows(const WeightMatrix *matrix, const TensorView *tensor,
                                   size_t expert, size_t first, size_t count);

/* Dequantises or widens one row (of expert e) to float32: out [cols]. The reference for every
 * kernel. */
void weight_matrix_read_row(const WeightMatrix *matrix, size_t expert, size_t row, float *out);
/* The unsigned codes of a row of a quantised matrix: out [cols]. */
void weight_matrix_read_codes(const WeightMatrix *matrix, size_t expert, size_t row, uint8_t *out);
/* scales and biases of a row as float32 [cols / group_size] each, without the expert's factor;
 * biases is zeroed unless affine. */
void weight_matrix_read_scales(const WeightMatrix *matrix, size_t expert, size_t row, float *scales,
                               float *biases);
/* Element `index` of a float tensor as float32, and a run of them. */
void tensor_read_floats(const TensorView *tensor, size_t index, size_t count, float *out);

float float_from_f16(uint16_t half);
uint16_t float_to_f16(float value); /* round to nearest even */
float float_from_bf16(uint16_t bits);
uint16_t float_to_bf16(float value); /* round to nearest even */
float float_from_e4m3(uint8_t bits); /* MLX's fp8: bias 7, no infinities */
float float_from_e8m0(uint8_t bits);
float float_from_e2m1(uint8_t code); /* 0..15, sign in bit 3 */

/* Quantises one group as mlx.core.quantize does: count values at a time, count = group size.
 * codes [count]; scale and bias in float32, not yet rounded to a storage type. */
void affine_quantize_group(const float *values, size_t count, uint32_t bits, uint8_t *codes,
                           float *scale, float *bias);
/* Packs count codes of `bits` each into out (count * bits / 8 bytes, count * bits divisible by 32).
 */
void affine_pack_codes(const uint8_t *codes, size_t count, uint32_t bits, uint8_t *out);

/* ---- Random weights ---- */

/* An empty set that makes up tensors as they are asked for, to measure speed without a model's
 * files: affine of 2 to 6 or 8 bits with bfloat16 scales and groups of 32, 64 or 128, or with bits
 * 16 dense bfloat16. Tensors repeat a few megabytes: they take addresses, but no memory. */
bool tensor_set_create_random(uint32_t bits, uint32_t group_size, TensorSet **out,
                              Error *err) WARN_UNUSED;
bool tensor_set_is_random(const TensorSet *set);
/* A matrix in such a set's layout; the group size must divide cols. */
bool weight_matrix_create_random(TensorSet *set, size_t n_experts, size_t rows, size_t cols,
                                 WeightMatrix *out, Error *err) WARN_UNUSED;

/* ---- GGUF import ---- */

typedef struct GgufImportReport {
    size_t exact_tensors, converted_tensors;
    double worst_relative_error; /* max over converted tensors of rms(error) / rms(weight) */
    char worst_tensor[128];
    size_t bytes_written;
} GgufImportReport;

/* Reads a GGUF file and writes an MLX model directory (created if missing): config.json,
 * model.safetensors, tokenizer.json, tokenizer_config.json, generation_config.json. progress, when
 * not NULL, is called with each tensor's one-line account. */
bool gguf_import(const char *gguf_path, const char *out_directory,
                 void (*progress)(void *context, const char *line), void *context,
                 GgufImportReport *report, Error *err) WARN_UNUSED;
/* Parses a GGUF image's header, metadata and tensor table only, checking everything; for fuzzing.
 */
bool gguf_check(Slice image, const char *name, Error *err) WARN_UNUSED;

#endif
