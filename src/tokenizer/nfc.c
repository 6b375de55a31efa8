/* NFC, done only where it can change something. A character without UNICODE_NFC is a starter that
 * neither decomposes nor composes with what stands before it; so text is cut before each such
 * character, and only pieces that hold a marked one are decomposed, ordered and composed.
 *
 * The reference has the data of Unicode 9.0. Characters that take part in normalisation only since
 * then are inert to it: they are cut out too (UNICODE_NFC_LATER).
 *
 * utf8proc gives decompositions, classes and compositions. Ordering is our own, because utf8proc's
 * is quadratic in a run of marks. */
#include "internal.h"

#include <utf8proc.h>

enum { SMALL_RUN = 32, COMBINING_CLASSES = 256 };

bool nfc_is_normal(const UnicodeTable *unicode, Slice s)
{
    for (size_t at = 0; at < s.len;) {
        uint32_t c;
        at += unicode_decode(s.ptr + at, &c);
        if (c >= 0xc0 && (unicode_class(unicode, c) & UNICODE_NFC))
            return false;
    }
    return true;
}

static unsigned combining_class(int32_t c)
{
    return (unsigned)utf8proc_get_property(c)->combining_class & 0xff;
}

/* Counting sort by class, stable. counts: COMBINING_CLASSES + 1; copy: count characters. */
static void order_long_run(int32_t *run, size_t count, int32_t *copy)
{
    size_t starts[COMBINING_CLASSES + 1] = {0};
    for (size_t i = 0; i < count; i++)
        starts[combining_class(run[i]) + 1]++;
    for (size_t i = 1; i <= COMBINING_CLASSES; i++)
        starts[i] += starts[i - 1];
    for (size_t i = 0; i < count; i++)
        copy[starts[combining_class(run[i])]++] = run[i];
    memcpy(run, copy, count * sizeof(*run));
}

static void order_short_run(int32_t *run, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        int32_t c = run[i];
        size_t at = i;
        for (; at > 0 && combining_class(run[at - 1]) > combining_class(c); at--)
            run[at] = run[at - 1];
        run[at] = c;
    }
}

/* Puts each run of non-starters into the order of their classes. copy: room for count characters.
 */
static void order_marks(int32_t *text, size_t count, int32_t *copy)
{
    for (size_t start = 0; start < count; start++) {
        size_t end = start;
        while (end < count && combining_class(text[end]) != 0)
            end++;
        if (end - start > SMALL_RUN)
            order_long_run(text + start, end - start, copy);
        else
            order_short_run(text + start, end - start);
        start = end;
    }
}

/* Canonical decomposition of s, unordered. A character has at most 4 parts. */
static size_t decompose(Slice s, int32_t *out, size_t room)
{
    size_t count = 0;
    for (size_t at = 0; at < s.len;) {
        uint32_t c;
        int boundary = 0;
        at += unicode_decode(s.ptr + at, &c);
        utf8proc_ssize_t parts =
            utf8proc_decompose_char((int32_t)c, out + count, (utf8proc_ssize_t)(room - count),
                                    UTF8PROC_DECOMPOSE, &boundary);
        if (parts > 0)
            count += (size_t)parts;
    }
    return count;
}

static bool append_piece(Slice s, Buffer *out, Error *err)
{
    int32_t small[SMALL_RUN * 8];
    int32_t *text = small;
    size_t room = s.len * 4; /* bytes bound characters */
    if (room * 2 > ARRAY_COUNT(small)) {
        text = memory_allocate_array(room, 2 * sizeof(*text));
        if (!text)
            return error_no_memory(err, "normalisation");
    }
    size_t count = decompose(s, text, room);
    order_marks(text, count, text + room);
    utf8proc_ssize_t composed = utf8proc_normalize_utf32(
        text, (utf8proc_ssize_t)count, (utf8proc_option_t)(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    for (utf8proc_ssize_t i = 0; i < composed; i++) {
        char bytes[UTF8_MAX];
        buffer_append(out, bytes, utf8_encode((uint32_t)text[i], bytes));
    }
    if (text != small)
        memory_free(text);
    return composed >= 0 || error_set(err, ERROR_INTERNAL, "normalisation failed");
}

bool nfc_append(const UnicodeTable *unicode, Slice s, Buffer *out, Error *err)
{
    size_t done = 0;  /* bytes that are in out */
    size_t start = 0; /* of the current piece: an inert character and those after it that are not */
    bool marked = false; /* the piece holds a character that is not */
    for (size_t at = 0, len; at <= s.len; at += len) {
        uint32_t c = 0;
        unsigned classes = 0;
        len = 1;
        if (at < s.len) {
            len = unicode_decode(s.ptr + at, &c);
            classes = c < 0xc0 ? 0 : unicode_class(unicode, c);
        }
        if (classes & UNICODE_NFC) {
            marked = true;
            continue;
        }
        if (marked) {
            buffer_append(out, s.ptr + done, start - done);
            if (!append_piece((Slice){s.ptr + start, at - start}, out, err))
                return false;
            done = at;
            marked = false;
        }
        /* utf8proc must not see a later character, so the piece begins behind it. */
        start = classes & UNICODE_NFC_LATER ? at + len : at;
    }
    buffer_append(out, s.ptr + done, s.len - done);
    return true;
}
