#include "base.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum { BUFFER_CAPACITY_MIN = 64 };

void buffer_init(Buffer *buffer, size_t max_bytes)
{
    *buffer = (Buffer){.max = max_bytes};
}

void buffer_reset(Buffer *buffer)
{
    memory_free(buffer->ptr);
    buffer_init(buffer, buffer->max);
}

void buffer_clear(Buffer *buffer)
{
    buffer->len = 0;
    buffer->failed = buffer->over_limit = false;
}

static bool reserve(Buffer *buffer, size_t extra)
{
    if (buffer->failed)
        return false;
    size_t needed;
    if (!size_add(buffer->len, extra, &needed) || needed > buffer->max) {
        buffer->failed = buffer->over_limit = true;
        return false;
    }
    if (needed <= buffer->capacity && buffer->ptr)
        return true;
    size_t capacity =
        buffer->capacity < BUFFER_CAPACITY_MIN ? BUFFER_CAPACITY_MIN : buffer->capacity;
    while (capacity < needed)
        capacity = capacity > SIZE_MAX / 2 ? needed : capacity * 2;
    if (capacity > buffer->max)
        capacity = buffer->max;
    char *grown = memory_resize_array(buffer->ptr, capacity, 1);
    if (!grown) {
        buffer->failed = true;
        return false;
    }
    buffer->ptr = grown;
    buffer->capacity = capacity;
    return true;
}

char *buffer_extend(Buffer *buffer, size_t len)
{
    if (!reserve(buffer, len))
        return NULL;
    char *start = buffer->ptr + buffer->len;
    buffer->len += len;
    return start;
}

void buffer_append(Buffer *buffer, const void *bytes, size_t len)
{
    if (len == 0)
        return;
    char *to = buffer_extend(buffer, len);
    if (to)
        memcpy(to, bytes, len);
}

void buffer_append_slice(Buffer *buffer, Slice s)
{
    buffer_append(buffer, s.ptr, s.len);
}

void buffer_append_text(Buffer *buffer, const char *c_string)
{
    buffer_append(buffer, c_string, strlen(c_string));
}

void buffer_append_byte(Buffer *buffer, char byte)
{
    buffer_append(buffer, &byte, 1);
}

void buffer_append_format(Buffer *buffer, const char *format, ...)
{
    char small[256];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(small, sizeof(small), format, args);
    va_end(args);
    if (len < 0) {
        buffer->failed = true;
        return;
    }
    if ((size_t)len < sizeof(small)) {
        buffer_append(buffer, small, (size_t)len);
        return;
    }
    /* vsnprintf writes a NUL after the text, which may be one byte more than the maximum allows. */
    char *text = buffer->failed ? NULL : memory_allocate((size_t)len + 1);
    if (!text) {
        buffer->failed = true;
        return;
    }
    va_start(args, format);
    vsnprintf(text, (size_t)len + 1, format, args);
    va_end(args);
    buffer_append(buffer, text, (size_t)len);
    memory_free(text);
}

void buffer_remove_front(Buffer *buffer, size_t len)
{
    assert(len <= buffer->len);
    if (len == 0)
        return;
    memmove(buffer->ptr, buffer->ptr + len, buffer->len - len);
    buffer->len -= len;
}

Slice buffer_view(const Buffer *buffer)
{
    return (Slice){buffer->ptr, buffer->len};
}

char *buffer_take(Buffer *buffer, size_t *len)
{
    char *bytes = buffer->ptr;
    *len = buffer->len;
    buffer_init(buffer, buffer->max);
    return bytes;
}

bool buffer_check(const Buffer *buffer, const char *what, Error *err)
{
    if (!buffer->failed)
        return true;
    if (buffer->over_limit)
        return error_set(err, ERROR_LIMIT, "%s exceeds its limit of %zu bytes", what, buffer->max);
    return error_no_memory(err, what);
}
