#include "internal.h"

#include <utf8proc.h>

/* ---- Loading ---- */

static bool load_step(void *to, Slice type, const JsonValue *config, Error *err)
{
    Normalizer *normalizer = to;
    if (normalizer->count == COMPONENTS_MAX)
        return error_set(err, ERROR_LIMIT, "more than %d normalizers", COMPONENTS_MAX);
    NormalizerStep *step = &normalizer->steps[normalizer->count];
    bool ok = true;
    if (slice_equal(type, SLICE("NFC"))) {
        step->kind = NORMALIZER_NFC;
    } else if (slice_equal(type, SLICE("Lowercase"))) {
        step->kind = NORMALIZER_LOWERCASE;
    } else if (slice_equal(type, SLICE("Prepend"))) {
        step->kind = NORMALIZER_PREPEND;
        ok = component_read_text(config, "prepend", step->text, &step->text_len, err);
    } else if (slice_equal(type, SLICE("Replace"))) {
        step->kind = NORMALIZER_REPLACE;
        ok = component_read_text(config, "content", step->text, &step->text_len, err) &&
             component_read_pattern(config, &step->pattern, err);
    } else {
        return component_unknown("a normalizer", type, err);
    }
    if (!ok) {
        pattern_reset(&step->pattern);
        return error_prefix(err, "normalizer %.*s", SLICE_ARG(type));
    }
    normalizer->count++;
    return true;
}

bool normalizer_load(Normalizer *normalizer, const JsonValue *config, Error *err)
{
    return component_visit(config, "normalizer", "normalizers", load_step, normalizer, err);
}

void normalizer_reset(Normalizer *normalizer)
{
    for (size_t i = 0; i < normalizer->count; i++)
        pattern_reset(&normalizer->steps[i].pattern);
    normalizer->count = 0;
    piece_normalizer_reset(&normalizer->pieces);
}

/* ---- Running ---- */

/* Simple lower case, but for U+0130, which has two characters. utf8proc may know fewer scripts than
 * the reference: these pairs came with Unicode 16.0 and 17.0. */
static void append_lowercase(Buffer *out, uint32_t c)
{
    static const struct {
        uint32_t first, last, lower;
    } newer[] = {{0x1c89, 0x1c89, 0x1c8a},   {0xa7cb, 0xa7cb, 0x264},  {0xa7cc, 0xa7cc, 0xa7cd},
                 {0xa7ce, 0xa7ce, 0xa7cf},   {0xa7d2, 0xa7d2, 0xa7d3}, {0xa7d4, 0xa7d4, 0xa7d5},
                 {0xa7da, 0xa7da, 0xa7db},   {0xa7dc, 0xa7dc, 0x19b},  {0x10d50, 0x10d65, 0x10d70},
                 {0x16ea0, 0x16eb8, 0x16ebb}};
    char bytes[UTF8_MAX];
    if (c == 0x130) {
        buffer_append_text(out, "i\xcc\x87");
        return;
    }
    uint32_t lower = (uint32_t)utf8proc_tolower((int32_t)c);
    for (size_t i = 0; i < ARRAY_COUNT(newer); i++) {
        if (c >= newer[i].first && c <= newer[i].last)
            lower = newer[i].lower + (c - newer[i].first);
    }
    buffer_append(out, bytes, utf8_encode(lower, bytes));
}

static void lowercase(Slice text, Buffer *out)
{
    for (size_t at = 0; at < text.len;) {
        uint32_t c;
        at += unicode_decode(text.ptr + at, &c);
        if (c >= 'A' && c <= 'Z')
            buffer_append_byte(out, (char)(c | 0x20));
        else if (c < 0x80)
            buffer_append_byte(out, (char)c);
        else
            append_lowercase(out, c);
    }
}

static bool replace(const NormalizerStep *step, const UnicodeTable *unicode,
                    PatternScratch *scratch, Slice text, Buffer *out, Error *err)
{
    PatternWalk walk = {0};
    size_t done = 0;
    for (;;) {
        PatternMatch match;
        bool found;
        if (!pattern_next(&step->pattern, unicode, scratch, text, &walk, &match, &found, err))
            return false;
        if (!found)
            break;
        buffer_append(out, text.ptr + done, match.start - done);
        buffer_append(out, step->text, step->text_len);
        done = match.end;
    }
    buffer_append(out, text.ptr + done, text.len - done);
    return true;
}

static bool run_step(const Normalizer *normalizer, const NormalizerStep *step,
                     const UnicodeTable *unicode, PatternScratch *scratch, Slice text, Buffer *out,
                     Error *err)
{
    switch (step->kind) {
    case NORMALIZER_NFC:
        if (!nfc_append(unicode, text, out, err))
            return false;
        break;
    case NORMALIZER_LOWERCASE:
        lowercase(text, out);
        break;
    case NORMALIZER_PREPEND:
        buffer_append(out, step->text, step->text_len);
        buffer_append_slice(out, text);
        break;
    case NORMALIZER_PIECES:
        piece_normalizer_run(&normalizer->pieces, unicode, text, out);
        break;
    case NORMALIZER_REPLACE:
        if (!replace(step, unicode, scratch, text, out, err))
            return false;
        break;
    }
    return buffer_check(out, "normalised text", err);
}

bool normalizer_run(const Normalizer *normalizer, const UnicodeTable *unicode,
                    PatternScratch *scratch, Buffer buffers[2], Slice text, Slice *out, Error *err)
{
    size_t turn = 0;
    for (size_t i = 0; i < normalizer->count && text.len > 0; i++) {
        const NormalizerStep *step = &normalizer->steps[i];
        if (step->kind == NORMALIZER_NFC && nfc_is_normal(unicode, text))
            continue;
        Buffer *to = &buffers[turn];
        buffer_clear(to);
        if (!run_step(normalizer, step, unicode, scratch, text, to, err))
            return false;
        text = buffer_view(to);
        turn = 1 - turn;
    }
    *out = text;
    return true;
}
