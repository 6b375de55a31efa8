/* Character classes of Unicode 16.0, the version whose tables Hugging Face's regex engine uses, and
 * the marks that normalisation to NFC needs (Unicode 9.0, see nfc.c).
 *
 * unicode_tables.c holds runs of equal class; a UnicodeTable is the two-level form of them, built
 * once per tokenizer: index[code point >> 7] names a block of 128 classes, equal blocks are shared.
 */
#ifndef TOKENIZER_UNICODE_H
#define TOKENIZER_UNICODE_H

#include "base.h"

typedef enum UnicodeClass {
    UNICODE_LETTER = 1,       /* category L */
    UNICODE_NUMBER = 2,       /* category N */
    UNICODE_MARK = 4,         /* category M */
    UNICODE_UPPER = 8,        /* Lu Lt Lm Lo M */
    UNICODE_LOWER = 16,       /* Ll Lm Lo M */
    UNICODE_SPACE = 32,       /* White_Space */
    UNICODE_PUNCTUATION = 64, /* what Punctuation takes: P of an older Unicode, ASCII symbols */
    UNICODE_WORD = 128,       /* \w */
    UNICODE_NFC = 256,        /* not inert under NFC */
    UNICODE_NFC_LATER = 512,  /* not inert today, but unknown to Unicode 9.0 */
    UNICODE_NUMERIC = 1024,   /* category N of Unicode 17.0: as Digits takes it */
} UnicodeClass;

enum {
    UNICODE_RUN_CLASSES = 64,
    UNICODE_BLOCK_BITS = 7,
    UNICODE_BLOCK = 1 << UNICODE_BLOCK_BITS,
    UNICODE_BLOCKS = 0x110000 >> UNICODE_BLOCK_BITS,
};

extern const uint16_t unicode_run_classes[UNICODE_RUN_CLASSES];
extern const uint32_t unicode_runs[];
extern const size_t unicode_run_count;

typedef struct UnicodeTable {
    uint16_t index[UNICODE_BLOCKS];
    uint16_t *classes; /* blocks of UNICODE_BLOCK */
} UnicodeTable;

bool unicode_table_init(UnicodeTable *table, Error *err) WARN_UNUSED;
void unicode_table_reset(UnicodeTable *table);

/* Classes of a code point below 0x110000. */
static inline unsigned unicode_class(const UnicodeTable *table, uint32_t c)
{
    size_t block = table->index[c >> UNICODE_BLOCK_BITS];
    return table->classes[block << UNICODE_BLOCK_BITS | (c & (UNICODE_BLOCK - 1))];
}

/* Decodes the character at s, which is known to be well-formed. Returns its length. */
static inline size_t unicode_decode(const char *s, uint32_t *c)
{
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80) {
        *c = u[0];
        return 1;
    }
    if (u[0] < 0xe0) {
        *c = (uint32_t)(u[0] & 0x1f) << 6 | (u[1] & 0x3f);
        return 2;
    }
    if (u[0] < 0xf0) {
        *c = (uint32_t)(u[0] & 0x0f) << 12 | (uint32_t)(u[1] & 0x3f) << 6 | (u[2] & 0x3f);
        return 3;
    }
    *c = (uint32_t)(u[0] & 0x07) << 18 | (uint32_t)(u[1] & 0x3f) << 12 |
         (uint32_t)(u[2] & 0x3f) << 6 | (u[3] & 0x3f);
    return 4;
}

/* Length of the well-formed character that starts with this byte. */
static inline size_t unicode_length(char first)
{
    unsigned char u = (unsigned char)first;
    return u < 0x80 ? 1 : u < 0xe0 ? 2 : u < 0xf0 ? 3 : 4;
}

/* Start of the character that ends at s + end (end > 0) in well-formed text. */
static inline size_t unicode_previous(const char *s, size_t end)
{
    size_t at = end - 1;
    while (at > 0 && ((unsigned char)s[at] & 0xc0) == 0x80)
        at--;
    return at;
}

#endif
