/* Well-formed UTF-8 is table 3-7 of the Unicode standard: the first byte fixes the length and the
 * range of the second byte; all later bytes are 80..BF. */
#include "base.h"

typedef struct Utf8Lead {
    size_t length;           /* 0: not a first byte */
    unsigned char low, high; /* range of the second byte */
} Utf8Lead;

static Utf8Lead classify_lead(unsigned char byte)
{
    if (byte < 0x80)
        return (Utf8Lead){1, 0, 0};
    if (byte < 0xc2)
        return (Utf8Lead){0, 0, 0};
    if (byte < 0xe0)
        return (Utf8Lead){2, 0x80, 0xbf};
    if (byte < 0xf0)
        return (Utf8Lead){3, byte == 0xe0 ? 0xa0 : 0x80, byte == 0xed ? 0x9f : 0xbf};
    if (byte < 0xf5)
        return (Utf8Lead){4, byte == 0xf0 ? 0x90 : 0x80, byte == 0xf4 ? 0x8f : 0xbf};
    return (Utf8Lead){0, 0, 0};
}

size_t utf8_decode(const char *s, size_t len, uint32_t *code_point)
{
    const unsigned char *u = (const unsigned char *)s;
    Utf8Lead lead = classify_lead(u[0]);
    if (lead.length == 1) {
        *code_point = u[0];
        return 1;
    }
    if (lead.length == 0 || lead.length > len || u[1] < lead.low || u[1] > lead.high)
        return 0;
    uint32_t value = u[0] & (0x7fU >> lead.length);
    value = value << 6 | (u[1] & 0x3fU);
    for (size_t i = 2; i < lead.length; i++) {
        if ((u[i] & 0xc0) != 0x80)
            return 0;
        value = value << 6 | (u[i] & 0x3fU);
    }
    *code_point = value;
    return lead.length;
}

size_t utf8_encode(uint32_t c, char out[UTF8_MAX])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

bool utf8_is_valid(Slice s)
{
    uint32_t ignored;
    for (size_t i = 0; i < s.len;) {
        size_t n = utf8_decode(s.ptr + i, s.len - i, &ignored);
        if (n == 0)
            return false;
        i += n;
    }
    return true;
}

size_t utf8_count(Slice s)
{
    size_t count = 0;
    for (size_t i = 0; i < s.len; i++)
        count += ((unsigned char)s.ptr[i] & 0xc0) != 0x80;
    return count;
}

size_t utf8_ill_formed_length(const char *s, size_t len, bool *incomplete)
{
    const unsigned char *u = (const unsigned char *)s;
    Utf8Lead lead = classify_lead(u[0]);
    *incomplete = false;
    if (lead.length < 2)
        return 1;
    size_t n = 1;
    while (n < len && n < lead.length) {
        bool fits = n == 1 ? u[1] >= lead.low && u[1] <= lead.high : (u[n] & 0xc0) == 0x80;
        if (!fits)
            return n;
        n++;
    }
    *incomplete = n == len && n < lead.length;
    return n;
}

void utf8_append_repaired(Buffer *out, Slice s)
{
    uint32_t ignored;
    bool incomplete;
    size_t start = 0;
    for (size_t i = 0; i < s.len;) {
        size_t n = utf8_decode(s.ptr + i, s.len - i, &ignored);
        if (n > 0) {
            i += n;
            continue;
        }
        buffer_append(out, s.ptr + start, i - start);
        buffer_append_text(out, "\xef\xbf\xbd");
        i += utf8_ill_formed_length(s.ptr + i, s.len - i, &incomplete);
        start = i;
    }
    buffer_append(out, s.ptr ? s.ptr + start : NULL, s.len - start);
}
