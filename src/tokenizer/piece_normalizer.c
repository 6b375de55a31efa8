/* SentencePiece's normaliser: a map of characters (identity, NFKC and the like, compiled into a
 * trie), white space collapsed and written as "▁", and a space put before the text. User-defined
 * pieces are left as they are.
 *
 * The compiled map is a 32-bit length and a double array of that many bytes, then the replacements,
 * each ended by NUL. A unit of the array (Darts-clone): bits 0-7 label, bit 8 "has a leaf", bit 9
 * "offset is shifted by 8", bits 10-30 offset, bit 31 set on leaves, whose other bits are the
 * value: where the replacement starts. */
#include "internal.h"

enum { UNIT_BYTES = 4 };

bool piece_normalizer_set_charsmap(PieceNormalizer *normalizer, Slice charsmap, Error *err)
{
    memory_free(normalizer->charsmap);
    normalizer->charsmap = NULL;
    normalizer->units = normalizer->replacements_len = 0;
    if (charsmap.len == 0)
        return true;
    uint64_t trie_bytes = 0;
    for (size_t i = 0; i < UNIT_BYTES && i < charsmap.len; i++)
        trie_bytes |= (uint64_t)(unsigned char)charsmap.ptr[i] << (8 * i);
    if (charsmap.len < UNIT_BYTES || trie_bytes > charsmap.len - UNIT_BYTES ||
        trie_bytes % UNIT_BYTES != 0 || trie_bytes == 0 || charsmap.ptr[charsmap.len - 1] != '\0' ||
        !utf8_is_valid((Slice){charsmap.ptr + UNIT_BYTES + trie_bytes,
                               charsmap.len - UNIT_BYTES - (size_t)trie_bytes}))
        return error_set(err, ERROR_INVALID, "the normalizer's map of characters is damaged");
    normalizer->charsmap = memory_allocate(charsmap.len);
    if (!normalizer->charsmap)
        return error_no_memory(err, "normalizer");
    memcpy(normalizer->charsmap, charsmap.ptr, charsmap.len);
    normalizer->units = (size_t)trie_bytes / UNIT_BYTES;
    normalizer->replacements_len = charsmap.len - UNIT_BYTES - (size_t)trie_bytes;
    return true;
}

void piece_normalizer_reset(PieceNormalizer *normalizer)
{
    memory_free(normalizer->charsmap);
    *normalizer = (PieceNormalizer){0};
}

/* Whether a character begins at text[at], or the text ends there. */
static bool is_boundary(Slice text, size_t at)
{
    return at >= text.len || ((unsigned char)text.ptr[at] & 0xc0) != 0x80;
}

static uint32_t unit_at(const PieceNormalizer *normalizer, size_t at)
{
    const unsigned char *bytes =
        (const unsigned char *)normalizer->charsmap + UNIT_BYTES + at * UNIT_BYTES;
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
           (uint32_t)bytes[3] << 24;
}

static size_t unit_offset(uint32_t unit)
{
    return (size_t)(unit >> 10) << ((unit >> 6) & 8);
}

/* The replacement of the longest key that text begins with, and the key's length; 0: there is none.
 */
static size_t find_replacement(const PieceNormalizer *normalizer, Slice text, Slice *out)
{
    size_t longest = 0, value = 0, at = unit_offset(unit_at(normalizer, 0));
    for (size_t i = 0; i < text.len; i++) {
        at ^= (unsigned char)text.ptr[i];
        if (at >= normalizer->units)
            break;
        uint32_t unit = unit_at(normalizer, at);
        if ((unit & 0x800000ffU) != (unsigned char)text.ptr[i])
            break;
        at ^= unit_offset(unit);
        if (at >= normalizer->units)
            break;
        if ((unit >> 8 & 1) && is_boundary(text, i + 1)) {
            longest = i + 1;
            value = unit_at(normalizer, at) & 0x7fffffffU;
        }
    }
    if (longest == 0 || value >= normalizer->replacements_len)
        return 0;
    const char *text_start =
        normalizer->charsmap + UNIT_BYTES + normalizer->units * UNIT_BYTES + value;
    *out = slice_of(text_start); /* the last replacement ends with a NUL, as was checked */
    return is_boundary(*out, 0) ? longest : 0;
}

/* One step of the walk: what stands at text[at] and its normal form. */
static size_t take_prefix(const PieceNormalizer *normalizer, Slice text, size_t at, size_t end,
                          Slice *out)
{
    Slice rest = {text.ptr + at, end - at};
    size_t len = normalizer->charsmap ? find_replacement(normalizer, rest, out) : 0;
    if (len > 0)
        return len;
    len = unicode_length(rest.ptr[0]);
    *out = (Slice){rest.ptr, len};
    return len;
}

typedef struct PieceWalk {
    const PieceNormalizer *normalizer;
    Buffer *out;
    bool after_space; /* further spaces are dropped */
} PieceWalk;

static void put(PieceWalk *walk, Slice text)
{
    while (walk->after_space && text.len > 0 && text.ptr[0] == ' ')
        text = (Slice){text.ptr + 1, text.len - 1};
    for (size_t i = 0; i < text.len; i++) {
        if (text.ptr[i] == ' ' && walk->normalizer->escape_whitespaces)
            buffer_append_text(walk->out, PIECE_SPACE);
        else
            buffer_append_byte(walk->out, text.ptr[i]);
    }
    if (text.len > 0)
        walk->after_space =
            walk->normalizer->remove_extra_whitespaces && text.ptr[text.len - 1] == ' ';
}

/* Normalises text[at, end), a stretch without user-defined pieces. *started: something other than
 * leading space was met, and the dummy prefix was written. */
static void put_stretch(PieceWalk *walk, Slice text, size_t at, size_t end, bool *started)
{
    const PieceNormalizer *normalizer = walk->normalizer;
    while (at < end) {
        Slice normal;
        at += take_prefix(normalizer, text, at, end, &normal);
        if (!*started) {
            if (normalizer->remove_extra_whitespaces && slice_equal(normal, SLICE(" ")))
                continue;
            *started = true;
            if (normalizer->add_dummy_prefix)
                buffer_append_text(walk->out, normalizer->escape_whitespaces ? PIECE_SPACE : " ");
        }
        put(walk, normal);
    }
}

static void drop_trailing_space(const PieceNormalizer *normalizer, Buffer *out, size_t start)
{
    Slice space = normalizer->escape_whitespaces ? SLICE(PIECE_SPACE) : SLICE(" ");
    for (;;) {
        Slice written = {out->ptr + start, out->len - start};
        if (out->failed || !slice_ends_with(written, space))
            return;
        out->len -= space.len;
    }
}

void piece_normalizer_run(const PieceNormalizer *normalizer, const UnicodeTable *unicode,
                          Slice text, Buffer *out)
{
    PieceWalk walk = {normalizer, out, normalizer->remove_extra_whitespaces};
    AddedScan scan = {0};
    AddedSegment segment;
    bool started = false;
    size_t start = out->len;
    while (added_scan_next(&scan, normalizer->user_defined, unicode, text, &segment)) {
        if (segment.id < 0) {
            put_stretch(&walk, text, segment.start, segment.end, &started);
            continue;
        }
        Slice piece = {text.ptr + segment.start, segment.end - segment.start};
        if (!started && normalizer->remove_extra_whitespaces && slice_equal(piece, SLICE(" ")))
            continue;
        if (!started && normalizer->add_dummy_prefix)
            buffer_append_text(out, normalizer->escape_whitespaces ? PIECE_SPACE : " ");
        started = true;
        put(&walk, piece);
    }
    if (normalizer->remove_extra_whitespaces && out->len > start)
        drop_trailing_space(normalizer, out, start);
}
