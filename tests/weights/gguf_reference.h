/* Dequantises GGUF blocks the way the format's description walks them: the expectation of import
 * tests, written apart from the importer. */
#ifndef GGUF_REFERENCE_H
#define GGUF_REFERENCE_H

#include "weights_builder.h"

typedef struct BlockFormat {
    uint32_t id;
    const char *name;
    size_t values, bytes;
    bool is_exact;    /* the importer must reproduce every value */
    double error_max; /* else: greatest relative error */
    uint32_t bits;    /* of the MLX form; 0 dense */
    void (*read)(const uint8_t *block, float *values);
    size_t halfs[2]; /* offsets of f16 fields (0xffff: none), which random bytes must not fill */
} BlockFormat;

extern const BlockFormat block_formats[];
extern const size_t n_block_formats;

/* Appends random blocks for count values. */
void put_random_blocks(Buffer *out, const BlockFormat *format, size_t count, uint32_t *noise);
void read_blocks(const BlockFormat *format, const uint8_t *blocks, size_t count, float *values);

#endif
