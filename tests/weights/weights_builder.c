#include "weights_builder.h"

#include <string.h>

void put_bytes(Buffer *out, const void *bytes, size_t len)
{
    buffer_append(out, bytes, len);
}

static void put_little_endian(Buffer *out, uint64_t value, size_t size)
{
    for (size_t i = 0; i < size; i++)
        buffer_append_byte(out, (char)(value >> (8 * i) & 0xff));
}

void put_u16(Buffer *out, uint16_t value)
{
    put_little_endian(out, value, 2);
}

void put_u32(Buffer *out, uint32_t value)
{
    put_little_endian(out, value, 4);
}

void put_u64(Buffer *out, uint64_t value)
{
    put_little_endian(out, value, 8);
}

void put_f16(Buffer *out, float value)
{
    put_u16(out, float_to_f16(value));
}

void put_f32(Buffer *out, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    put_u32(out, bits);
}

void safetensors_image(Buffer *out, const char *header, const void *data, size_t size)
{
    put_u64(out, strlen(header));
    buffer_append_text(out, header);
    put_bytes(out, data, size);
}

static const size_t part_bytes_max = (size_t)64 << 20;

void gguf_init(GgufBuilder *gguf)
{
    *gguf = (GgufBuilder){.n_pairs = 0};
    buffer_init(&gguf->pairs, part_bytes_max);
    buffer_init(&gguf->infos, part_bytes_max);
    buffer_init(&gguf->data, part_bytes_max);
}

void gguf_free(GgufBuilder *gguf)
{
    buffer_reset(&gguf->pairs);
    buffer_reset(&gguf->infos);
    buffer_reset(&gguf->data);
}

static void put_string(Buffer *out, const char *text)
{
    put_u64(out, strlen(text));
    buffer_append_text(out, text);
}

void gguf_put_key(GgufBuilder *gguf, const char *key, uint32_t type)
{
    put_string(&gguf->pairs, key);
    put_u32(&gguf->pairs, type);
    gguf->n_pairs++;
}

void gguf_put_u32(GgufBuilder *gguf, const char *key, uint32_t value)
{
    gguf_put_key(gguf, key, 4);
    put_u32(&gguf->pairs, value);
}

void gguf_put_f32(GgufBuilder *gguf, const char *key, float value)
{
    gguf_put_key(gguf, key, 6);
    put_f32(&gguf->pairs, value);
}

void gguf_put_bool(GgufBuilder *gguf, const char *key, bool value)
{
    gguf_put_key(gguf, key, 7);
    buffer_append_byte(&gguf->pairs, (char)value);
}

void gguf_put_text(GgufBuilder *gguf, const char *key, const char *value)
{
    gguf_put_key(gguf, key, 8);
    put_string(&gguf->pairs, value);
}

static void put_array(GgufBuilder *gguf, const char *key, uint32_t item_type, size_t count)
{
    gguf_put_key(gguf, key, 9);
    put_u32(&gguf->pairs, item_type);
    put_u64(&gguf->pairs, count);
}

void gguf_put_texts(GgufBuilder *gguf, const char *key, const char *const *values, size_t count)
{
    put_array(gguf, key, 8, count);
    for (size_t i = 0; i < count; i++)
        put_string(&gguf->pairs, values[i]);
}

void gguf_put_i32s(GgufBuilder *gguf, const char *key, const int32_t *values, size_t count)
{
    put_array(gguf, key, 5, count);
    for (size_t i = 0; i < count; i++)
        put_u32(&gguf->pairs, (uint32_t)values[i]);
}

void gguf_put_f32s(GgufBuilder *gguf, const char *key, const float *values, size_t count)
{
    put_array(gguf, key, 6, count);
    for (size_t i = 0; i < count; i++)
        put_f32(&gguf->pairs, values[i]);
}

static void pad_to_32(Buffer *out)
{
    while (out->len % 32 != 0)
        buffer_append_byte(out, 0);
}

void gguf_put_tensor(GgufBuilder *gguf, const char *name, uint32_t type, uint64_t cols,
                     uint64_t rows, const void *data, size_t size)
{
    put_string(&gguf->infos, name);
    put_u32(&gguf->infos, rows ? 2 : 1);
    put_u64(&gguf->infos, cols);
    if (rows)
        put_u64(&gguf->infos, rows);
    put_u32(&gguf->infos, type);
    put_u64(&gguf->infos, gguf->data.len);
    put_bytes(&gguf->data, data, size);
    pad_to_32(&gguf->data);
    gguf->n_tensors++;
}

void gguf_finish(const GgufBuilder *gguf, Buffer *image)
{
    buffer_append_text(image, "GGUF");
    put_u32(image, 3);
    put_u64(image, gguf->n_tensors);
    put_u64(image, gguf->n_pairs);
    put_bytes(image, gguf->pairs.ptr, gguf->pairs.len);
    put_bytes(image, gguf->infos.ptr, gguf->infos.len);
    pad_to_32(image);
    put_bytes(image, gguf->data.ptr, gguf->data.len);
}

uint32_t noise_next(uint32_t *state)
{
    *state = *state * 1664525 + 1013904223;
    return *state >> 8;
}

float noise_float(uint32_t *state)
{
    return (float)(noise_next(state) & 0xffff) / 32768.0f - 1.0f;
}
