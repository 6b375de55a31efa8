/* Text by code points: positions, white space, search, case, stripping, lines and padding. Texts
 * are valid UTF-8 throughout.
 */
#include "jinja_filters.h"

#include <string.h>
#include <utf8proc.h>

size_t jinja_text_offset(Slice text, size_t position)
{
    for (size_t i = 0; i < text.len; i++) {
        if (((unsigned char)text.ptr[i] & 0xC0) == 0x80)
            continue;
        if (position-- == 0)
            return i;
    }
    return text.len;
}

uint32_t jinja_text_at(Slice text, size_t offset, size_t *len)
{
    unsigned char first = (unsigned char)text.ptr[offset];
    *len = 1;
    if (first < 0x80)
        return first;
    uint32_t code_point = 0xFFFD;
    size_t used = utf8_decode(text.ptr + offset, text.len - offset, &code_point);
    if (used > 0)
        *len = used;
    return code_point;
}

bool jinja_is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
}

/* Candidates are found by their first byte; each comparison is charged by its length, so that a
 * hostile pair of texts runs into the step limit instead of taking quadratic time. */
bool jinja_text_find(JinjaMachine *m, Slice text, Slice needle, size_t from, size_t *at)
{
    *at = SIZE_MAX;
    if (from > text.len || needle.len > text.len - from)
        return true;
    if (needle.len == 0) {
        *at = from;
        return true;
    }
    enum { CANDIDATES_A_STEP = 2 };
    size_t last = text.len - needle.len, candidates = 0;
    while (from <= last) {
        const char *candidate = memchr(text.ptr + from, needle.ptr[0], last - from + 1);
        size_t next = candidate ? (size_t)(candidate - text.ptr) : last + 1;
        if (!jinja_charge(m, (next - from) / 256))
            return false;
        if (!candidate)
            return true;
        if (!jinja_charge(m, needle.len / 32 + (++candidates % CANDIDATES_A_STEP == 0)))
            return false;
        if (memcmp(candidate, needle.ptr, needle.len) == 0) {
            *at = next;
            return true;
        }
        from = next + 1;
    }
    return true;
}

/* ---- Case ---- */

/* Characters whose full mapping is several characters, in order; the rest of Unicode maps one to
 * one.
 */
typedef struct SpecialCase {
    uint32_t code_point;
    const char *upper; /* NULL: as usual */
    const char *lower;
} SpecialCase;

static const SpecialCase special_cases[] = {
    {0x00DF, "SS", NULL},
    {0x0130, NULL, "i\u0307"},
    {0x0149, "\u02BCN", NULL},
    {0x01F0, "J\u030C", NULL},
    {0x0390, "\u0399\u0308\u0301", NULL},
    {0x03B0, "\u03A5\u0308\u0301", NULL},
    {0x0587, "\u0535\u0552", NULL},
    {0x1E96, "H\u0331", NULL},
    {0x1E97, "T\u0308", NULL},
    {0x1E98, "W\u030A", NULL},
    {0x1E99, "Y\u030A", NULL},
    {0x1E9A, "A\u02BE", NULL},
    {0x1F50, "\u03A5\u0313", NULL},
    {0x1F52, "\u03A5\u0313\u0300", NULL},
    {0x1F54, "\u03A5\u0313\u0301", NULL},
    {0x1F56, "\u03A5\u0313\u0342", NULL},
    {0x1F80, "\u1F08\u0399", NULL},
    {0x1F81, "\u1F09\u0399", NULL},
    {0x1F82, "\u1F0A\u0399", NULL},
    {0x1F83, "\u1F0B\u0399", NULL},
    {0x1F84, "\u1F0C\u0399", NULL},
    {0x1F85, "\u1F0D\u0399", NULL},
    {0x1F86, "\u1F0E\u0399", NULL},
    {0x1F87, "\u1F0F\u0399", NULL},
    {0x1F88, "\u1F08\u0399", NULL},
    {0x1F89, "\u1F09\u0399", NULL},
    {0x1F8A, "\u1F0A\u0399", NULL},
    {0x1F8B, "\u1F0B\u0399", NULL},
    {0x1F8C, "\u1F0C\u0399", NULL},
    {0x1F8D, "\u1F0D\u0399", NULL},
    {0x1F8E, "\u1F0E\u0399", NULL},
    {0x1F8F, "\u1F0F\u0399", NULL},
    {0x1F90, "\u1F28\u0399", NULL},
    {0x1F91, "\u1F29\u0399", NULL},
    {0x1F92, "\u1F2A\u0399", NULL},
    {0x1F93, "\u1F2B\u0399", NULL},
    {0x1F94, "\u1F2C\u0399", NULL},
    {0x1F95, "\u1F2D\u0399", NULL},
    {0x1F96, "\u1F2E\u0399", NULL},
    {0x1F97, "\u1F2F\u0399", NULL},
    {0x1F98, "\u1F28\u0399", NULL},
    {0x1F99, "\u1F29\u0399", NULL},
    {0x1F9A, "\u1F2A\u0399", NULL},
    {0x1F9B, "\u1F2B\u0399", NULL},
    {0x1F9C, "\u1F2C\u0399", NULL},
    {0x1F9D, "\u1F2D\u0399", NULL},
    {0x1F9E, "\u1F2E\u0399", NULL},
    {0x1F9F, "\u1F2F\u0399", NULL},
    {0x1FA0, "\u1F68\u0399", NULL},
    {0x1FA1, "\u1F69\u0399", NULL},
    {0x1FA2, "\u1F6A\u0399", NULL},
    {0x1FA3, "\u1F6B\u0399", NULL},
    {0x1FA4, "\u1F6C\u0399", NULL},
    {0x1FA5, "\u1F6D\u0399", NULL},
    {0x1FA6, "\u1F6E\u0399", NULL},
    {0x1FA7, "\u1F6F\u0399", NULL},
    {0x1FA8, "\u1F68\u0399", NULL},
    {0x1FA9, "\u1F69\u0399", NULL},
    {0x1FAA, "\u1F6A\u0399", NULL},
    {0x1FAB, "\u1F6B\u0399", NULL},
    {0x1FAC, "\u1F6C\u0399", NULL},
    {0x1FAD, "\u1F6D\u0399", NULL},
    {0x1FAE, "\u1F6E\u0399", NULL},
    {0x1FAF, "\u1F6F\u0399", NULL},
    {0x1FB2, "\u1FBA\u0399", NULL},
    {0x1FB3, "\u0391\u0399", NULL},
    {0x1FB4, "\u0386\u0399", NULL},
    {0x1FB6, "\u0391\u0342", NULL},
    {0x1FB7, "\u0391\u0342\u0399", NULL},
    {0x1FBC, "\u0391\u0399", NULL},
    {0x1FC2, "\u1FCA\u0399", NULL},
    {0x1FC3, "\u0397\u0399", NULL},
    {0x1FC4, "\u0389\u0399", NULL},
    {0x1FC6, "\u0397\u0342", NULL},
    {0x1FC7, "\u0397\u0342\u0399", NULL},
    {0x1FCC, "\u0397\u0399", NULL},
    {0x1FD2, "\u0399\u0308\u0300", NULL},
    {0x1FD3, "\u0399\u0308\u0301", NULL},
    {0x1FD6, "\u0399\u0342", NULL},
    {0x1FD7, "\u0399\u0308\u0342", NULL},
    {0x1FE2, "\u03A5\u0308\u0300", NULL},
    {0x1FE3, "\u03A5\u0308\u0301", NULL},
    {0x1FE4, "\u03A1\u0313", NULL},
    {0x1FE6, "\u03A5\u0342", NULL},
    {0x1FE7, "\u03A5\u0308\u0342", NULL},
    {0x1FF2, "\u1FFA\u0399", NULL},
    {0x1FF3, "\u03A9\u0399", NULL},
    {0x1FF4, "\u038F\u0399", NULL},
    {0x1FF6, "\u03A9\u0342", NULL},
    {0x1FF7, "\u03A9\u0342\u0399", NULL},
    {0x1FFC, "\u03A9\u0399", NULL},
    {0xFB00, "FF", NULL},
    {0xFB01, "FI", NULL},
    {0xFB02, "FL", NULL},
    {0xFB03, "FFI", NULL},
    {0xFB04, "FFL", NULL},
    {0xFB05, "ST", NULL},
    {0xFB06, "ST", NULL},
    {0xFB13, "\u0544\u0546", NULL},
    {0xFB14, "\u0544\u0535", NULL},
    {0xFB15, "\u0544\u053B", NULL},
    {0xFB16, "\u054E\u0546", NULL},
    {0xFB17, "\u0544\u053D", NULL},
};

static const SpecialCase *find_special(uint32_t c)
{
    size_t low = 0, high = ARRAY_COUNT(special_cases);
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (special_cases[middle].code_point == c)
            return &special_cases[middle];
        if (special_cases[middle].code_point < c)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

utf8proc_category_t jinja_case_of(uint32_t c)
{
    /* Unicode's Other_Lowercase and Other_Uppercase: letters and numerals of other categories. */
    static const struct {
        uint32_t first, last;
        bool upper;
    } others[] = {{0xAA, 0xAA, false},       {0xBA, 0xBA, false},       {0x2B0, 0x2B8, false},
                  {0x2C0, 0x2C1, false},     {0x2E0, 0x2E4, false},     {0x345, 0x345, false},
                  {0x37A, 0x37A, false},     {0x1D2C, 0x1D6A, false},   {0x1D78, 0x1D78, false},
                  {0x1D9B, 0x1DBF, false},   {0x2071, 0x2071, false},   {0x207F, 0x207F, false},
                  {0x2090, 0x209C, false},   {0x2160, 0x216F, true},    {0x2170, 0x217F, false},
                  {0x24B6, 0x24CF, true},    {0x24D0, 0x24E9, false},   {0x2C7C, 0x2C7D, false},
                  {0xA69C, 0xA69D, false},   {0xA770, 0xA770, false},   {0xA7F8, 0xA7F9, false},
                  {0xAB5C, 0xAB5F, false},   {0x10780, 0x10780, false}, {0x10783, 0x10785, false},
                  {0x10787, 0x107B0, false}, {0x107B2, 0x107BA, false}, {0x1F130, 0x1F149, true},
                  {0x1F150, 0x1F169, true},  {0x1F170, 0x1F189, true}};
    for (size_t i = 0; c >= others[0].first && i < ARRAY_COUNT(others); i++) {
        if (c >= others[i].first && c <= others[i].last)
            return others[i].upper ? UTF8PROC_CATEGORY_LU : UTF8PROC_CATEGORY_LL;
    }
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    bool cased = category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL ||
                 category == UTF8PROC_CATEGORY_LT;
    return cased ? category : UTF8PROC_CATEGORY_CN;
}

bool jinja_is_cased(uint32_t c)
{
    return jinja_case_of(c) != UTF8PROC_CATEGORY_CN;
}

/* What may stand within a word without being a letter of it (Unicode's Case_Ignorable). */
static bool is_case_ignorable(uint32_t c)
{
    static const uint32_t inner[] = {0x27,   0x2E,   0x3A,   0xB7,   0x387,  0x55F,
                                     0x5F4,  0x2018, 0x2019, 0x2024, 0x2027, 0xFE13,
                                     0xFE52, 0xFE55, 0xFF07, 0xFF0E, 0xFF1A};
    for (size_t i = 0; i < ARRAY_COUNT(inner); i++) {
        if (c == inner[i])
            return true;
    }
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
        return true;
    default:
        return false;
    }
}

/* Greek sigma is written differently at the end of a word. Looks at few characters on each side:
 * texts of nothing but such signs are no words. */
static bool is_final_sigma(Slice text, size_t at)
{
    enum { LOOKED_AT_MAX = 32 };
    size_t before = at, after = at + 2, len;
    uint32_t c = 0;
    for (unsigned i = 0; i < LOOKED_AT_MAX && before > 0; i++) {
        do
            before--;
        while (before > 0 && ((unsigned char)text.ptr[before] & 0xC0) == 0x80);
        c = jinja_text_at(text, before, &len);
        if (!is_case_ignorable(c))
            break;
    }
    if (at == 0 || is_case_ignorable(c) || !jinja_is_cased(c))
        return false;
    for (unsigned i = 0; i < LOOKED_AT_MAX && after < text.len; i++, after += len) {
        c = jinja_text_at(text, after, &len);
        if (!is_case_ignorable(c))
            return !jinja_is_cased(c);
    }
    return true;
}

static void append_mapped(Buffer *out, Slice text, size_t at, uint32_t c, bool upper)
{
    if (c < 0x80) {
        bool changes = upper ? (c >= 'a' && c <= 'z') : (c >= 'A' && c <= 'Z');
        buffer_append_byte(out, (char)(changes ? c ^ 0x20 : c));
        return;
    }
    const SpecialCase *special = find_special(c);
    const char *several = !special ? NULL : upper ? special->upper : special->lower;
    if (several) {
        buffer_append_text(out, several);
        return;
    }
    utf8proc_int32_t mapped =
        upper ? utf8proc_toupper((utf8proc_int32_t)c) : utf8proc_tolower((utf8proc_int32_t)c);
    if (!upper && c == 0x03A3 && is_final_sigma(text, at))
        mapped = 0x03C2;
    char bytes[UTF8_MAX];
    buffer_append(out, bytes, utf8_encode((uint32_t)mapped, bytes));
}

void jinja_append_lower_at(Buffer *out, Slice text, size_t at)
{
    size_t len;
    append_mapped(out, text, at, jinja_text_at(text, at, &len), false);
}

/* Full case folding, which may give several characters. */
static void append_folded(Buffer *out, uint32_t c)
{
    enum { FOLDED_MAX = 8 };
    utf8proc_int32_t folded[FOLDED_MAX];
    utf8proc_ssize_t count = utf8proc_decompose_char((utf8proc_int32_t)c, folded, FOLDED_MAX,
                                                     UTF8PROC_CASEFOLD, &(int){0});
    char bytes[UTF8_MAX];
    for (utf8proc_ssize_t i = 0; i < count && i < FOLDED_MAX; i++)
        buffer_append(out, bytes, utf8_encode((uint32_t)folded[i], bytes));
}

void jinja_append_case(Buffer *out, Slice text, JinjaCase how)
{
    size_t len;
    for (size_t at = 0; at < text.len; at += len) {
        uint32_t c = jinja_text_at(text, at, &len);
        bool upper = how == JINJA_CASE_UPPER;
        if (how == JINJA_CASE_SWAP && c >= 0x80 && jinja_case_of(c) == UTF8PROC_CATEGORY_LT) {
            buffer_append(out, text.ptr + at, len); /* both at once */
            continue;
        }
        if (how == JINJA_CASE_SWAP)
            upper = c < 0x80 ? c >= 'a' : jinja_case_of(c) == UTF8PROC_CATEGORY_LL;
        if (how == JINJA_CASE_FOLD)
            append_folded(out, c);
        else
            append_mapped(out, text, at, c, upper);
    }
}

/* The character at a byte as the first of a word: of a mapping to several, only the first is
 * large. */
void jinja_append_title_at(Buffer *out, Slice text, size_t at)
{
    enum { APOSTROPHE_N = 0x149 }; /* whose first is no letter */
    size_t len;
    uint32_t c = jinja_text_at(text, at, &len);
    utf8proc_int32_t single = utf8proc_totitle((utf8proc_int32_t)c);
    const SpecialCase *special = find_special(c);
    if (special && special->upper && c != APOSTROPHE_N &&
        utf8proc_category(single) != UTF8PROC_CATEGORY_LT) {
        Slice upper = slice_of(special->upper);
        jinja_text_at(upper, 0, &len);
        buffer_append(out, upper.ptr, len);
        jinja_append_case(out, (Slice){upper.ptr + len, upper.len - len}, JINJA_CASE_LOWER);
        return;
    }
    if (c < 0x80 || c == APOSTROPHE_N) {
        append_mapped(out, text, at, c, true);
        return;
    }
    char bytes[UTF8_MAX];
    buffer_append(out, bytes, utf8_encode((uint32_t)single, bytes));
}

void jinja_append_capitalized(Buffer *out, Slice text)
{
    size_t len;
    for (size_t at = 0; at < text.len; at += len) {
        jinja_text_at(text, at, &len);
        if (at == 0)
            jinja_append_title_at(out, text, at);
        else
            jinja_append_lower_at(out, text, at);
    }
}

bool jinja_text_to_case(JinjaMachine *m, Slice text, JinjaCase how, JinjaValue *out)
{
    size_t mark = m->text.len;
    jinja_append_case(&m->text, text, how);
    return jinja_charge(m, text.len / 8) && jinja_text_finish(m, mark, out);
}

/* ---- Shared text routines ---- */

static size_t last_character(Slice text)
{
    size_t start = text.len - 1;
    while (start > 0 && ((unsigned char)text.ptr[start] & 0xC0) == 0x80)
        start--;
    return start;
}

Slice jinja_text_strip(Slice text, bool left, bool right)
{
    size_t len;
    while (left && text.len > 0 && jinja_is_space(jinja_text_at(text, 0, &len)))
        text = (Slice){text.ptr + len, text.len - len};
    while (right && text.len > 0) {
        size_t start = last_character(text);
        if (!jinja_is_space(jinja_text_at(text, start, &len)))
            break;
        text.len = start;
    }
    return text;
}

/* Whether one of chars is the character at a byte of text; charged by the length of chars. */
static bool is_among(JinjaMachine *m, Slice chars, Slice text, size_t at, bool *out)
{
    size_t len, found;
    jinja_text_at(text, at, &len);
    bool ok =
        jinja_charge(m, 1) && jinja_text_find(m, chars, (Slice){text.ptr + at, len}, 0, &found);
    *out = ok && found != SIZE_MAX;
    return ok;
}

bool jinja_text_strip_chars(JinjaMachine *m, Slice text, Slice chars, bool left, bool right,
                            Slice *out)
{
    size_t len;
    bool stripped = true;
    while (left && stripped && text.len > 0) {
        if (!is_among(m, chars, text, 0, &stripped))
            return false;
        jinja_text_at(text, 0, &len);
        len = stripped ? len : 0;
        text = (Slice){text.ptr + len, text.len - len};
    }
    for (stripped = true; right && stripped && text.len > 0;) {
        size_t start = last_character(text);
        if (!is_among(m, chars, text, start, &stripped))
            return false;
        text.len = stripped ? start : text.len;
    }
    *out = text;
    return true;
}

bool jinja_text_replace(JinjaMachine *m, Slice text, Slice old, Slice replacement, int64_t count,
                        JinjaValue *out)
{
    size_t mark = m->text.len, at = 0, len;
    if (!text.ptr)
        text = SLICE(""); /* has places, too */
    while (count != 0) {
        size_t found = at;
        if (old.len == 0) { /* between all characters */
            if (at > text.len)
                break;
        } else if (!jinja_text_find(m, text, old, at, &found)) {
            return false;
        }
        if (found == SIZE_MAX)
            break;
        buffer_append(&m->text, text.ptr + at, found - at);
        buffer_append_slice(&m->text, replacement);
        if (!jinja_charge(m, 1 + replacement.len / 64))
            return false;
        at = found + old.len;
        count -= count > 0;
        if (old.len > 0)
            continue;
        if (at == text.len)
            return jinja_text_finish(m, mark, out);
        jinja_text_at(text, at, &len);
        buffer_append(&m->text, text.ptr + at, len);
        at += len;
    }
    if (at < text.len)
        buffer_append(&m->text, text.ptr + at, text.len - at);
    return jinja_charge(m, text.len / 64) && jinja_text_finish(m, mark, out);
}

static bool is_line_break(uint32_t c)
{
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

bool jinja_text_next_line(Slice text, size_t *at, Slice *line, Slice *line_break)
{
    if (*at >= text.len)
        return false;
    size_t end = *at, len = 0;
    bool found = false;
    for (; end < text.len; end += len) {
        found = is_line_break(jinja_text_at(text, end, &len));
        if (found)
            break;
    }
    if (!found)
        len = 0;
    else if (text.ptr[end] == '\r' && end + 1 < text.len && text.ptr[end + 1] == '\n')
        len = 2;
    *line = (Slice){text.ptr + *at, end - *at};
    *line_break = (Slice){text.ptr + end, len};
    *at = end + len;
    return true;
}

bool jinja_is_word(uint32_t c)
{
    if (c < 0x80)
        return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
               (c >= 'A' && c <= 'Z');
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NO &&
           !(category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME);
}

bool jinja_text_pad(JinjaMachine *m, Slice text, size_t left, size_t right, Slice fill,
                    JinjaValue *out)
{
    size_t mark = m->text.len;
    if (left + right > JINJA_OUTPUT_BYTES_MAX / UTF8_MAX)
        return jinja_fail_limit(m, "width of padded text", JINJA_OUTPUT_BYTES_MAX / UTF8_MAX);
    if (!jinja_charge(m, (left + right) / 16))
        return false;
    for (size_t i = 0; i < left; i++)
        buffer_append_slice(&m->text, fill);
    buffer_append_slice(&m->text, text);
    for (size_t i = 0; i < right; i++)
        buffer_append_slice(&m->text, fill);
    return jinja_text_finish(m, mark, out);
}

size_t jinja_text_missing(Slice text, int64_t width)
{
    size_t count = utf8_count(text);
    return width > 0 && (uint64_t)width > count ? (size_t)width - count : 0;
}

bool jinja_text_center(JinjaMachine *m, Slice text, int64_t width, Slice fill, JinjaValue *out)
{
    size_t pad = jinja_text_missing(text, width);
    size_t left = pad / 2 + (pad & (size_t)width & 1);
    return jinja_text_pad(m, text, left, pad - left, fill, out);
}
