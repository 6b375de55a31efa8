/* Makes safetensors and GGUF images in memory, right ones and deliberately wrong ones. */
#ifndef WEIGHTS_BUILDER_H
#define WEIGHTS_BUILDER_H

#include "weights.h"

/* Buffers that never fail; tests check nothing about them. */
void put_bytes(Buffer *out, const void *bytes, size_t len);
void put_u16(Buffer *out, uint16_t value);
void put_u32(Buffer *out, uint32_t value);
void put_u64(Buffer *out, uint64_t value);
void put_f16(Buffer *out, float value);
void put_f32(Buffer *out, float value);

/* u64 length, header, data. */
void safetensors_image(Buffer *out, const char *header, const void *data, size_t size);

/* A GGUF image in the making: pairs, then tensors, then gguf_finish. */
typedef struct GgufBuilder {
    Buffer pairs, infos, data;
    uint64_t n_pairs, n_tensors;
} GgufBuilder;

void gguf_init(GgufBuilder *gguf);
void gguf_free(GgufBuilder *gguf);
void gguf_put_key(GgufBuilder *gguf, const char *key, uint32_t type); /* the value's bytes follow */
void gguf_put_u32(GgufBuilder *gguf, const char *key, uint32_t value);
void gguf_put_f32(GgufBuilder *gguf, const char *key, float value);
void gguf_put_bool(GgufBuilder *gguf, const char *key, bool value);
void gguf_put_text(GgufBuilder *gguf, const char *key, const char *value);
void gguf_put_texts(GgufBuilder *gguf, const char *key, const char *const *values, size_t count);
void gguf_put_i32s(GgufBuilder *gguf, const char *key, const int32_t *values, size_t count);
void gguf_put_f32s(GgufBuilder *gguf, const char *key, const float *values, size_t count);
/* rows 0: a vector. Data are padded to 32 bytes. */
void gguf_put_tensor(GgufBuilder *gguf, const char *name, uint32_t type, uint64_t cols,
                     uint64_t rows, const void *data, size_t size);
void gguf_finish(const GgufBuilder *gguf, Buffer *image);

/* Deterministic noise. */
uint32_t noise_next(uint32_t *state);
float noise_float(uint32_t *state); /* -1 .. 1 */

#endif
