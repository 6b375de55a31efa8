/* The inside of a TensorSet, for the files of this room that fill one. */
#ifndef WEIGHTS_TENSOR_SET_H
#define WEIGHTS_TENSOR_SET_H

#include "safetensors.h"

typedef struct TensorFile {
    char *name; /* inside the directory; in the arena. NULL: made up */
    FileMap map;
} TensorFile;

/* What made-up tensors repeat (random_weights.c). */
typedef enum RandomPattern {
    RANDOM_WEIGHT,
    RANDOM_SCALE,
    RANDOM_BIAS,
    RANDOM_PATTERNS
} RandomPattern;

struct TensorSet {
    Arena arena;
    TensorFile *files;
    size_t n_files, files_capacity;
    TensorList tensors; /* in name order */
    size_t n_bytes;
    bool is_random; /* tensors are made up as they are asked for, and not listed */
    uint32_t random_bits, random_group_size;
    FilePattern patterns[RANDOM_PATTERNS];
};

/* An empty set, or NULL with the error set. */
TensorSet *tensor_set_allocate(Error *err) WARN_UNUSED;

#endif
