/* json_scan: the byte loops that the reader and the writer share (private to the room).
 *
 * Almost all bytes of a JSON text are plain string content or white space, so both loops look at 16
 * bytes at a time with SSE2 where the compiler may assume it (every x86-64), else at 8 with integer
 * tricks, and finish byte by byte. No load reaches past `end`: the text may end at an unreadable
 * page. JSON_SCAN_PORTABLE forces the integer form, so that tests on x86-64 reach it. */
#ifndef JSON_SCAN_H
#define JSON_SCAN_H

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) && !defined(JSON_SCAN_PORTABLE)
#define JSON_SCAN_SSE2 1
#include <emmintrin.h>
#endif

static inline bool json_is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static inline bool json_is_digit(char c)
{
    return c >= '0' && c <= '9';
}

#ifndef JSON_SCAN_SSE2
/* In these three, the top bit of a byte tells: set somewhere exactly when some byte of x qualifies
 * (the borrow may also mark bytes above the first one, so the place is not exact). */
#define JSON_EACH_BYTE(c) (UINT64_C(0x0101010101010101) * (c))
static inline uint64_t json_mark_below_space(uint64_t x)
{
    return (x - JSON_EACH_BYTE(0x20)) & ~x & JSON_EACH_BYTE(0x80);
}

static inline uint64_t json_mark_equal(uint64_t x, unsigned char c)
{
    uint64_t difference = x ^ JSON_EACH_BYTE(c);
    return (difference - JSON_EACH_BYTE(0x01)) & ~difference & JSON_EACH_BYTE(0x80);
}
#endif

/* First byte in [p, end) that string content cannot just pass over: a quote, a backslash, a control
 * character below 0x20 or a byte above 0x7F; with stop_at_delete also 0x7F. end if there is none.
 */
static inline const char *json_scan_plain(const char *p, const char *end, bool stop_at_delete)
{
#ifdef JSON_SCAN_SSE2
    while (end - p >= 16) {
        __m128i x = _mm_loadu_si128((const __m128i *)(const void *)p);
        /* Signed: bytes above 0x7F are negative, hence below a space too. */
        __m128i stop = _mm_cmplt_epi8(x, _mm_set1_epi8(0x20));
        stop = _mm_or_si128(stop, _mm_cmpeq_epi8(x, _mm_set1_epi8('"')));
        stop = _mm_or_si128(stop, _mm_cmpeq_epi8(x, _mm_set1_epi8('\\')));
        if (stop_at_delete)
            stop = _mm_or_si128(stop, _mm_cmpeq_epi8(x, _mm_set1_epi8(0x7f)));
        unsigned mask = (unsigned)_mm_movemask_epi8(stop);
        if (mask != 0)
            return p + __builtin_ctz(mask);
        p += 16;
    }
#else
    while (end - p >= 8) {
        uint64_t x;
        memcpy(&x, p, sizeof(x));
        uint64_t stop = json_mark_below_space(x) | json_mark_equal(x, '"') |
                        json_mark_equal(x, '\\') | (x & JSON_EACH_BYTE(0x80));
        if (stop_at_delete)
            stop |= json_mark_equal(x, 0x7f);
        if (stop != 0)
            break;
        p += 8;
    }
#endif
    while (p < end) {
        unsigned char c = (unsigned char)*p;
        if (c < 0x20 || c > 0x7f || c == '"' || c == '\\' || (stop_at_delete && c == 0x7f))
            break;
        p++;
    }
    return p;
}

/* First byte in [p, end) that is not JSON white space, or end. */
static inline const char *json_scan_space(const char *p, const char *end)
{
    if (p < end && !json_is_space(*p))
        return p;
#ifdef JSON_SCAN_SSE2
    while (end - p >= 16) { /* indentation of pretty-printed files */
        __m128i x = _mm_loadu_si128((const __m128i *)(const void *)p);
        __m128i space = _mm_cmpeq_epi8(x, _mm_set1_epi8(' '));
        space = _mm_or_si128(space, _mm_cmpeq_epi8(x, _mm_set1_epi8('\n')));
        space = _mm_or_si128(space, _mm_cmpeq_epi8(x, _mm_set1_epi8('\r')));
        space = _mm_or_si128(space, _mm_cmpeq_epi8(x, _mm_set1_epi8('\t')));
        unsigned mask = (unsigned)_mm_movemask_epi8(space) ^ 0xffffU;
        if (mask != 0)
            return p + __builtin_ctz(mask);
        p += 16;
    }
#endif
    while (p < end && json_is_space(*p))
        p++;
    return p;
}

#endif
