/* Slices, errors and UTF-8. The UTF-8 functions are held against two facts built here from nothing
 * but the bit layout: the set of all well-formed sequences, and the set of all their prefixes. */
#include "base.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>
/* cmocka needs what is above */
#include <cmocka.h>

/* ---- Slices ---- */

static void test_slice_compare(void **state)
{
    (void)state;
    assert_true(slice_equal(SLICE_EMPTY, SLICE("")));
    assert_true(slice_equal((Slice){"a\0b", 3}, (Slice){"a\0b", 3}));
    assert_false(slice_equal((Slice){"a\0b", 3}, (Slice){"a\0c", 3}));
    assert_false(slice_equal(SLICE("a"), SLICE("ab")));
    assert_true(slice_compare(SLICE("a"), SLICE("ab")) < 0);
    assert_true(slice_compare(SLICE("b"), SLICE("ab")) > 0);
    assert_true(slice_compare(SLICE("\x80"), SLICE("a")) > 0); /* bytes are unsigned */
    assert_true(slice_compare(SLICE_EMPTY, SLICE("")) == 0);
    assert_true(slice_compare(SLICE_EMPTY, SLICE("a")) < 0);
    assert_true(slice_compare(SLICE("a"), SLICE("a")) == 0);
    assert_int_equal(slice_of(NULL).len, 0);
    assert_int_equal(slice_of("abc").len, 3);
}

static void test_hex_digits(void **state)
{
    (void)state;
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    for (int c = 0; c < 256; c++) {
        const char *at = c ? strchr(digits, c) : NULL;
        assert_int_equal(hex_digit_value((char)c), at ? (at - digits) % 16 : -1);
    }
}

static void test_slice_affixes(void **state)
{
    (void)state;
    assert_true(slice_starts_with(SLICE("abc"), SLICE("ab")));
    assert_true(slice_starts_with(SLICE("abc"), SLICE_EMPTY));
    assert_true(slice_starts_with(SLICE_EMPTY, SLICE_EMPTY));
    assert_false(slice_starts_with(SLICE("ab"), SLICE("abc")));
    assert_false(slice_starts_with(SLICE("abc"), SLICE("b")));
    assert_true(slice_ends_with(SLICE("abc"), SLICE("bc")));
    assert_true(slice_ends_with(SLICE_EMPTY, SLICE_EMPTY));
    assert_false(slice_ends_with(SLICE("bc"), SLICE("abc")));
    assert_false(slice_ends_with(SLICE("abc"), SLICE("b")));
}

static void test_slice_find(void **state)
{
    (void)state;
    Slice s = SLICE("abcabc");
    assert_int_equal(slice_find(s, SLICE("bc"), 0), 1);
    assert_int_equal(slice_find(s, SLICE("bc"), 1), 1);
    assert_int_equal(slice_find(s, SLICE("bc"), 2), 4);
    assert_int_equal(slice_find(s, SLICE("bc"), 5), SIZE_MAX);
    assert_int_equal(slice_find(s, SLICE("abcabc"), 0), 0);
    assert_int_equal(slice_find(s, SLICE("abcabcd"), 0), SIZE_MAX);
    assert_int_equal(slice_find(s, SLICE_EMPTY, 3), 3);
    assert_int_equal(slice_find(s, SLICE_EMPTY, 6), 6);
    assert_int_equal(slice_find(s, SLICE_EMPTY, 7), SIZE_MAX);
    assert_int_equal(slice_find(s, SLICE("a"), SIZE_MAX), SIZE_MAX);
    assert_int_equal(slice_find(SLICE_EMPTY, SLICE_EMPTY, 0), 0);
    assert_int_equal(slice_find(SLICE_EMPTY, SLICE("a"), 0), SIZE_MAX);
    assert_int_equal(slice_find((Slice){"\0\0\1", 3}, (Slice){"\0\1", 2}, 0), 1);
}

/* Numbered keys spread evenly over the low bits, which hash tables use. */
static void test_slice_hash_spreads(void **state)
{
    (void)state;
    enum { KEYS = 65536, BUCKETS = 4096 };
    static unsigned counts[BUCKETS];
    for (unsigned i = 0; i < KEYS; i++) {
        char key[16];
        int len = snprintf(key, sizeof(key), "key%u", i);
        counts[slice_hash((Slice){key, (size_t)len}) % BUCKETS]++;
    }
    for (size_t i = 0; i < BUCKETS; i++)
        assert_in_range(counts[i], 1, 48); /* 16 expected; 8 standard deviations */
    assert_true(slice_hash(SLICE("a")) == slice_hash((Slice){"ab", 1}));
    assert_true(slice_hash(SLICE("ab")) != slice_hash(SLICE("ba")));
    assert_true(slice_hash(SLICE_EMPTY) == slice_hash(SLICE("")));
}

static void test_slice_arg(void **state)
{
    (void)state;
    char text[16];
    snprintf(text, sizeof(text), "[%.*s]", SLICE_ARG(((Slice){"abcdef", 3})));
    assert_string_equal(text, "[abc]");
    snprintf(text, sizeof(text), "[%.*s]", SLICE_ARG(SLICE_EMPTY));
    assert_string_equal(text, "[]");
    snprintf(text, sizeof(text), "[%.*s]", SLICE_ARG(((Slice){"abc", SIZE_MAX})));
    assert_string_equal(text, "[abc]"); /* no negative precision */
}

/* ---- Errors ---- */

static void test_error_set(void **state)
{
    (void)state;
    Error err = {0};
    assert_false(error_set(&err, ERROR_LIMIT, "%s: %d\n\t\x7f\x1b[0m", "place", 7));
    assert_int_equal(err.code, ERROR_LIMIT);
    assert_string_equal(err.message, "place: 7????[0m");
    assert_false(error_set(NULL, ERROR_LIMIT, "x"));
    assert_false(error_no_memory(NULL, "x"));
    assert_false(error_prefix(NULL, "x"));
    assert_false(error_no_memory(&err, "KV cache"));
    assert_int_equal(err.code, ERROR_MEMORY);
    assert_string_equal(err.message, "out of memory for KV cache");
}

static void test_error_truncation(void **state)
{
    (void)state;
    char big[3 * ERROR_MESSAGE_MAX];
    memset(big, 'b', sizeof(big));
    big[sizeof(big) - 1] = '\0';
    Error err = {0};
    assert_false(error_set(&err, ERROR_INVALID, "%s", big));
    assert_int_equal(strlen(err.message), ERROR_MESSAGE_MAX - 1);

    /* Both the place and the fault keep a share. */
    assert_false(error_prefix(&err, "%s", "file.json"));
    assert_int_equal(strlen(err.message), ERROR_MESSAGE_MAX - 1);
    assert_memory_equal(err.message, "file.json: bbb", 14);
    memset(big, 'p', sizeof(big) - 1);
    assert_false(error_set(&err, ERROR_INVALID, "the fault"));
    assert_false(error_prefix(&err, "%s", big));
    assert_int_equal(err.code, ERROR_INVALID);
    assert_memory_equal(err.message, "pppp", 4);
    assert_true(slice_ends_with(slice_of(err.message), SLICE("pp: the fault")));

    assert_false(error_set(&err, ERROR_IO, "cannot read"));
    assert_false(error_prefix(&err, "line\n%d", 3));
    assert_string_equal(err.message, "line?3: cannot read");
    assert_int_equal(err.code, ERROR_IO);
}

/* ---- UTF-8 ---- */

/* Sequences as big-endian numbers. well_formed[n] has a bit for every well-formed sequence of n
 * bytes, prefix[n] for every proper prefix of n bytes; four bytes are told by their code point. */
static uint8_t well_formed_2[65536 / 8], well_formed_3[1 << 21];
static uint8_t prefix_1[256 / 8], prefix_2[65536 / 8], prefix_3[1 << 21];

static void set_bit(uint8_t *bits, uint32_t i)
{
    bits[i / 8] |= (uint8_t)(1U << i % 8);
}

static bool get_bit(const uint8_t *bits, uint32_t i)
{
    return bits[i / 8] >> i % 8 & 1;
}

/* The bytes of a code point by the bit layout alone; returns their number. */
static size_t spell(uint32_t c, unsigned char out[4])
{
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char marks[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n; i-- > 1; c /= 64)
        out[i] = (unsigned char)(0x80 + c % 64);
    out[0] = (unsigned char)(marks[n] + c);
    return n;
}

static int build_tables(void **state)
{
    (void)state;
    for (uint32_t c = 0x80; c <= 0x10ffff; c++) {
        if (c >= 0xd800 && c <= 0xdfff)
            continue;
        unsigned char u[4];
        size_t n = spell(c, u);
        uint32_t two = (uint32_t)u[0] << 8 | u[1];
        set_bit(prefix_1, u[0]);
        if (n == 2)
            set_bit(well_formed_2, two);
        if (n >= 3)
            set_bit(prefix_2, two);
        if (n == 3)
            set_bit(well_formed_3, two << 8 | u[2]);
        if (n == 4)
            set_bit(prefix_3, two << 8 | u[2]);
    }
    return 0;
}

static bool is_continuation(unsigned char c)
{
    return c >= 0x80 && c <= 0xbf;
}

/* What utf8_decode and utf8_ill_formed_length must say about u[0..len). */
static void expect_at(const unsigned char *u, size_t len, size_t *decoded, size_t *ill_formed,
                      bool *incomplete)
{
    uint32_t one = u[0];
    uint32_t two = len >= 2 ? one << 8 | u[1] : 0;
    uint32_t three = len >= 3 ? two << 8 | u[2] : 0;
    *decoded = 0;
    if (one < 0x80)
        *decoded = 1;
    else if (len >= 2 && get_bit(well_formed_2, two))
        *decoded = 2;
    else if (len >= 3 && get_bit(well_formed_3, three))
        *decoded = 3;
    else if (len >= 4 && get_bit(prefix_3, three) && is_continuation(u[3]))
        *decoded = 4;
    /* The longest prefix of some character, at least one byte. */
    *ill_formed = 1;
    bool proper = get_bit(prefix_1, one);
    if (len >= 2 && get_bit(prefix_2, two))
        *ill_formed = 2;
    if (len >= 3 && get_bit(prefix_3, three))
        *ill_formed = 3;
    *incomplete = proper && *ill_formed == len;
}

static void check_sequence(const unsigned char *u, size_t len)
{
    size_t decoded, ill_formed;
    bool incomplete, got_incomplete;
    expect_at(u, len, &decoded, &ill_formed, &incomplete);
    uint32_t c = 0xdeadbeef;
    size_t got = utf8_decode((const char *)u, len, &c);
    bool ok = got == decoded;
    if (ok && got > 0) {
        unsigned char again[4];
        ok = spell(c, again) == got && memcmp(again, u, got) == 0;
    } else if (ok) {
        ok = utf8_ill_formed_length((const char *)u, len, &got_incomplete) == ill_formed &&
             got_incomplete == incomplete;
    }
    if (!ok)
        fail_msg("%zu bytes %02x %02x %02x %02x", len, u[0], len > 1 ? u[1] : 0U,
                 len > 2 ? u[2] : 0U, len > 3 ? u[3] : 0U);
}

static void test_all_code_points(void **state)
{
    (void)state;
    for (uint32_t c = 0; c <= 0x10ffff; c++) {
        unsigned char u[4];
        char encoded[UTF8_MAX];
        uint32_t decoded = 0;
        size_t n = spell(c, u);
        if (c >= 0xd800 && c <= 0xdfff) {
            assert_int_equal(utf8_decode((const char *)u, n, &decoded), 0);
            assert_false(utf8_is_valid((Slice){(const char *)u, n}));
            continue;
        }
        assert_int_equal(utf8_encode(c, encoded), n);
        assert_memory_equal(encoded, u, n);
        assert_int_equal(utf8_decode(encoded, n, &decoded), n);
        assert_int_equal(decoded, c);
        assert_true(utf8_is_valid((Slice){encoded, n}));
        assert_int_equal(utf8_count((Slice){encoded, n}), 1);
        for (size_t cut = 1; cut < n; cut++)
            check_sequence(u, cut);
    }
}

static void test_all_sequences_to_three_bytes(void **state)
{
    (void)state;
    unsigned char u[3];
    for (unsigned a = 0; a < 256; a++) {
        u[0] = (unsigned char)a;
        check_sequence(u, 1);
        for (unsigned b = 0; b < 256; b++) {
            u[1] = (unsigned char)b;
            check_sequence(u, 2);
            if (a < 0xe0)
                continue; /* two bytes at most: the third changes nothing */
            for (unsigned c = 0; c < 256; c++) {
                u[2] = (unsigned char)c;
                check_sequence(u, 3);
            }
        }
    }
}

static void test_four_byte_sequences(void **state)
{
    (void)state;
    static const unsigned char edges[] = {0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f,
                                          0xa0, 0xbf, 0xc0, 0xe0, 0xf0, 0xff};
    unsigned char u[4];
    for (unsigned a = 0xc0; a < 256; a++) {
        u[0] = (unsigned char)a;
        for (unsigned b = 0; b < 256; b++) {
            u[1] = (unsigned char)b;
            for (size_t c = 0; c < ARRAY_COUNT(edges); c++) {
                u[2] = edges[c];
                for (size_t d = 0; d < ARRAY_COUNT(edges); d++) {
                    u[3] = edges[d];
                    check_sequence(u, 4);
                }
            }
        }
    }
}

/* The examples of the Unicode standard, tables 3-8 to 3-11; R stands for U+FFFD. */
static void test_repair_as_unicode_shows(void **state)
{
    (void)state;
    static const struct {
        Slice bytes;
        const char *expected;
    } cases[] = {
        {{"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", 9}, "RRRRRRRRA"},
        {{"\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", 9}, "RRRRRRRRA"},
        {{"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", 9}, "RRRRRARRB"},
        {{"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", 9}, "RRRRA"},
        {{"plain", 5}, "plain"},
        {{"", 0}, ""},
        {{NULL, 0}, ""},
        {{"a\0b\xff", 4}, NULL}, /* below */
        {{"cut \xf0\x9f\x98", 7}, "cut R"},
    };
    Buffer out, expected;
    buffer_init(&out, 1000);
    buffer_init(&expected, 1000);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        buffer_clear(&out);
        buffer_clear(&expected);
        utf8_append_repaired(&out, cases[i].bytes);
        if (cases[i].expected) {
            for (const char *p = cases[i].expected; *p; p++)
                buffer_append_text(&expected, *p == 'R' ? "\xef\xbf\xbd" : (char[]){*p, '\0'});
        } else {
            buffer_append(&expected, "a\0b\xef\xbf\xbd", 6);
        }
        assert_true(slice_equal(buffer_view(&out), buffer_view(&expected)));
        assert_true(utf8_is_valid(buffer_view(&out)));
    }
    buffer_reset(&out);
    buffer_reset(&expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slice_compare),
        cmocka_unit_test(test_hex_digits),
        cmocka_unit_test(test_slice_affixes),
        cmocka_unit_test(test_slice_find),
        cmocka_unit_test(test_slice_hash_spreads),
        cmocka_unit_test(test_slice_arg),
        cmocka_unit_test(test_error_set),
        cmocka_unit_test(test_error_truncation),
        cmocka_unit_test(test_all_code_points),
        cmocka_unit_test(test_all_sequences_to_three_bytes),
        cmocka_unit_test(test_four_byte_sequences),
        cmocka_unit_test(test_repair_as_unicode_shows),
    };
    return cmocka_run_group_tests(tests, build_tables, NULL);
}
