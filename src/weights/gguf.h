/* GGUF, private to the room: the file's parsed form, its block formats, and the importer's parts.
 *
 * gguf_read.c parses, gguf_blocks.c knows the block layouts, gguf_config.c and gguf_tokenizer.c
 * (with gguf_merges.c) turn metadata into JSON, gguf_import.c drives them and converts the weights,
 * gguf_output.c holds the file that they go to. */
#ifndef WEIGHTS_GGUF_H
#define WEIGHTS_GGUF_H

#include "weights.h"

enum {
    GGUF_PAIRS_MAX = 1 << 16,
    GGUF_DIMS_MAX = 4,
    GGUF_ALIGNMENT_MAX = 1 << 20,
    GGUF_GROUP = 32,        /* values under one scale of the affine form that we write */
    GGUF_BLOCK_VALUES = 256 /* of the largest block */
};

/* Value types, numbered as in the file. */
typedef enum GgufValueType {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64
} GgufValueType;

/* A metadata value: its encoded bytes, checked to lie inside the image. */
typedef struct GgufValue {
    GgufValueType type;
    GgufValueType item_type; /* of an array */
    uint64_t count;          /* of an array's items; 1 otherwise */
    Slice bytes;             /* the value, or an array's items, encoded */
} GgufValue;

typedef struct GgufPair {
    Slice key;
    GgufValue value;
} GgufPair;

/* One tensor block format. Exactly one of three: dense (dtype), affine by nature (read_codes), or
 * requantised (only read_values). */
typedef struct GgufBlockType {
    uint32_t id;
    const char *name;
    uint32_t block_values, block_bytes;
    bool is_supported;
    DType dtype;   /* of a dense format; DTYPE_OTHER for blocks */
    uint32_t bits; /* of the affine form that holds it; 0 when dense */
    /* A block as block_values / 32 groups w = scale * code + bias, exact in float32. */
    void (*read_codes)(const uint8_t *block, uint8_t *codes, float *scales, float *biases);
    /* A block's values; for every supported block format. */
    void (*read_values)(const uint8_t *block, float *values);
} GgufBlockType;

/* NULL for an id that this file does not know. */
const GgufBlockType *gguf_block_type(uint32_t id);
/* values [GGUF_GROUP] to 8-bit codes, with the grid that loses least; for formats whose scales
 * cover less than a group. half_steps [2]: the spacing of values in each half of the group, 0 if
 * unknown. */
void gguf_requantize_group(const float *values, const float *half_steps, uint8_t *codes,
                           float *scale, float *bias);
/* The spacing of values in each 16-value part of a block [block_values / 16], where the format has
 * one. */
bool gguf_block_steps(const GgufBlockType *type, const uint8_t *block, float *steps);

typedef struct GgufTensor {
    Slice name;
    const GgufBlockType *type;
    uint32_t n_dims;
    uint64_t dims[GGUF_DIMS_MAX]; /* innermost first: dims[0] is the row length */
    uint64_t rows;                /* product of all but dims[0] */
    size_t offset;                /* in the image */
    size_t n_bytes;
} GgufTensor;

typedef struct GgufFile {
    Slice image;
    const char *name; /* for messages */
    GgufPair *pairs;  /* sorted by key */
    size_t n_pairs, pairs_capacity;
    GgufTensor *tensors; /* in file order */
    size_t n_tensors, tensors_capacity;
    size_t alignment;
    size_t data_offset;
} GgufFile;

/* Parses header, metadata and tensor table; everything points into image. On failure nothing is
 * held. */
bool gguf_parse(Slice image, const char *name, GgufFile *out, Error *err) WARN_UNUSED;
void gguf_reset(GgufFile *file);

const GgufValue *gguf_find(const GgufFile *file, Slice key); /* NULL if absent */
const GgufTensor *gguf_find_tensor(const GgufFile *file, Slice name);

/* Readers for metadata. Absent: *out keeps its default and the result is true, unless is_required.
 * A wrong type or a value out of range is ERROR_INVALID naming the key. */
typedef enum GgufNeed { GGUF_OPTIONAL, GGUF_REQUIRED } GgufNeed;
bool gguf_read_uint(const GgufFile *file, const char *key, GgufNeed need, uint64_t max,
                    uint64_t *out, Error *err) WARN_UNUSED;
bool gguf_read_double(const GgufFile *file, const char *key, GgufNeed need, double *out,
                      Error *err) WARN_UNUSED;
bool gguf_read_bool(const GgufFile *file, const char *key, bool *out, Error *err) WARN_UNUSED;
bool gguf_read_string(const GgufFile *file, const char *key, GgufNeed need, Slice *out,
                      Error *err) WARN_UNUSED;
/* An array of strings as slices in arena; *count 0 and *out NULL when absent. */
bool gguf_read_strings(const GgufFile *file, const char *key, Arena *arena, const Slice **out,
                       size_t *count, Error *err) WARN_UNUSED;
/* An array of any integers or floats; each item converted. */
bool gguf_read_int_array(const GgufFile *file, const char *key, Arena *arena, const int64_t **out,
                         size_t *count, Error *err) WARN_UNUSED;
bool gguf_read_float_array(const GgufFile *file, const char *key, Arena *arena, const float **out,
                           size_t *count, Error *err) WARN_UNUSED;

/* ---- The safetensors file being written ------------------------------------------------------ */

typedef struct GgufOutputTensor {
    const char *name;
    DType dtype;
    uint32_t n_dims;
    uint64_t shape[2];
    size_t begin, end; /* within the data */
} GgufOutputTensor;

typedef struct GgufOutput {
    int fd;
    char path[PATH_BYTES_MAX], temporary[PATH_BYTES_MAX + 16];
    size_t header_size; /* reserved, without the 8 length bytes */
    size_t data_size;
    GgufOutputTensor *tensors;
    size_t n_tensors, capacity;
} GgufOutput;

/* Creates model.safetensors in directory under a temporary name, header_size bytes of header
 * reserved. A GgufOutput with fd -1 is empty; gguf_output_abandon is due in every case and keeps a
 * finished file. */
bool gguf_output_open(GgufOutput *output, const char *directory, size_t header_size,
                      Error *err) WARN_UNUSED;
/* Enters a tensor whose data take size bytes from the current end; *begin says where in the data.
 */
bool gguf_output_add(GgufOutput *output, GgufOutputTensor tensor, size_t size, size_t *begin,
                     Error *err) WARN_UNUSED;
/* Position in the file of an offset in the data. */
size_t gguf_output_data_at(const GgufOutput *output, size_t offset);
bool gguf_output_write(const GgufOutput *output, const void *bytes, size_t size, size_t at,
                       Error *err) WARN_UNUSED;
bool gguf_output_finish(GgufOutput *output, Error *err) WARN_UNUSED;
void gguf_output_abandon(GgufOutput *output);

/* ---- The importer's parts -------------------------------------------------------------------- */

typedef struct GgufNameRule {
    const char *gguf; /* without "blk.N." and suffix */
    const char *mlx;  /* within "model.layers.N." for layer rules, whole otherwise */
} GgufNameRule;

typedef struct GgufArchitecture {
    const char *name;              /* general.architecture and prefix of its keys */
    const char *model_type;        /* config.json's */
    const char *class_name;        /* config.json's `architectures` */
    const GgufNameRule *own_rules; /* beside those that all have */
    size_t n_own_rules;
    double default_rope_theta;
    bool has_permuted_qk;   /* rows of q and k are stored for interleaved RoPE */
    bool has_norm_plus_one; /* norm weights are stored as 1 + w */
    bool writes_head_dim;   /* the configuration has its own head_dim */
    bool writes_bias_keys;  /* attention_bias and mlp_bias exist in its configuration */
} GgufArchitecture;

/* ERROR_UNSUPPORTED, naming it and listing the known ones, when the file's architecture is unknown.
 */
bool gguf_find_architecture(const GgufFile *file, const GgufArchitecture **out,
                            Error *err) WARN_UNUSED;

/* The names of what a layer holds, all of it required; NULL past the last. */
const GgufNameRule *gguf_layer_rule(const GgufArchitecture *architecture, size_t index);

/* The model's dimensions, checked to be usable. */
typedef struct GgufDims {
    uint64_t layers, hidden, heads, kv_heads, head_dim, feed_forward, context, vocab;
    bool is_tied;
} GgufDims;

bool gguf_read_dims(const GgufFile *file, const GgufArchitecture *architecture, GgufDims *out,
                    Error *err) WARN_UNUSED;

/* How one module was stored, for config.json. */
typedef struct GgufModule {
    const char *name; /* MLX module path, NUL-terminated */
    uint32_t bits;    /* 0: dense */
} GgufModule;

bool gguf_write_config(const GgufFile *file, const GgufArchitecture *architecture,
                       const GgufDims *dims, const GgufModule *modules, size_t n_modules,
                       DType dtype, Buffer *out, Error *err) WARN_UNUSED;
bool gguf_write_generation_config(const GgufFile *file, Buffer *out, Error *err) WARN_UNUSED;

/* tokenizer.ggml.token_type */
enum {
    GGUF_TOKEN_NORMAL = 1,
    GGUF_TOKEN_UNKNOWN = 2,
    GGUF_TOKEN_CONTROL = 3,
    GGUF_TOKEN_USER_DEFINED = 4,
    GGUF_TOKEN_UNUSED = 5,
    GGUF_TOKEN_BYTE = 6
};

typedef struct GgufVocabulary {
    const GgufFile *file;
    const Slice *tokens;
    const int64_t *types; /* [count] */
    const float *scores;  /* [count], or NULL */
    size_t count;
    uint64_t bos, eos, unknown, padding; /* UINT64_MAX: none */
    bool is_spm;
    bool adds_bos;
    Arena *arena;
    Error *err;
} GgufVocabulary;

/* Writes the merges that a SentencePiece vocabulary's scores amount to, as one array. */
bool gguf_write_scored_merges(const GgufVocabulary *v, JsonWriter *w) WARN_UNUSED;
void gguf_write_merge(JsonWriter *w, Slice left, Slice right);

/* tokenizer.json and tokenizer_config.json; an unknown tokenizer or pre-tokenizer is
 * ERROR_UNSUPPORTED naming it. */
bool gguf_write_tokenizer(const GgufFile *file, const GgufArchitecture *architecture,
                          Buffer *tokenizer, Buffer *config, Error *err) WARN_UNUSED;

#endif
