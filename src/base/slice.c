#define _GNU_SOURCE /* memmem */
#include "base.h"

#include <string.h>

Slice slice_of(const char *c_string)
{
    return c_string ? (Slice){c_string, strlen(c_string)} : SLICE_EMPTY;
}

bool slice_equal(Slice a, Slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

int slice_compare(Slice a, Slice b)
{
    size_t shared = a.len < b.len ? a.len : b.len;
    int order = shared ? memcmp(a.ptr, b.ptr, shared) : 0;
    if (order != 0 || a.len == b.len)
        return order;
    return a.len < b.len ? -1 : 1;
}

bool slice_starts_with(Slice s, Slice prefix)
{
    return s.len >= prefix.len && (prefix.len == 0 || memcmp(s.ptr, prefix.ptr, prefix.len) == 0);
}

bool slice_ends_with(Slice s, Slice suffix)
{
    return s.len >= suffix.len &&
           (suffix.len == 0 || memcmp(s.ptr + s.len - suffix.len, suffix.ptr, suffix.len) == 0);
}

size_t slice_find(Slice s, Slice needle, size_t from)
{
    if (from > s.len || needle.len > s.len - from)
        return SIZE_MAX;
    if (needle.len == 0)
        return from;
    const char *found = memmem(s.ptr + from, s.len - from, needle.ptr, needle.len);
    return found ? (size_t)(found - s.ptr) : SIZE_MAX;
}

int hex_digit_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

uint64_t slice_hash(Slice s)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < s.len; i++)
        h = (h ^ (unsigned char)s.ptr[i]) * UINT64_C(0x100000001b3);
    h ^= h >> 32; /* FNV's low bits alone are weak for power-of-two tables */
    h *= UINT64_C(0x9e3779b97f4a7c15);
    return h ^ (h >> 29);
}
