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

/* Characters whose full mapping is several characters; the rest of Unicode maps one to one. */
static const struct {
    uint32_t code_point;
    const char *upper; /* NULL: as usual */
    const char *lower;
} special_cases[] = {
    {0x00DF, "SS", NULL},
    {0x0130, NULL, "i\xCC\x87"},
    {0x0149, "\xCA\xBCN", NULL},
    {0x01F0, "J\xCC\x8C", NULL},
    {0x0587, "\xD4\xB5\xD5\x92", NULL},
    {0xFB00, "FF", NULL},
    {0xFB01, "FI", NULL},
    {0xFB02, "FL", NULL},
    {0xFB03, "FFI", NULL},
    {0xFB04, "FFL", NULL},
    {0xFB05, "ST", NULL},
    {0xFB06, "ST", NULL},
};

bool jinja_is_cased(uint32_t c)
{
    /* Unicode's Other_Lowercase and Other_Uppercase: letters and numerals of other categories. */
    static const struct {
        uint32_t first, last;
    } others[] = {{0xAA, 0xAA},       {0xBA, 0xBA},       {0x2B0, 0x2B8},    {0x2C0, 0x2C1},
                  {0x2E0, 0x2E4},     {0x345, 0x345},     {0x37A, 0x37A},    {0x1D2C, 0x1D6A},
                  {0x1D78, 0x1D78},   {0x1D9B, 0x1DBF},   {0x2071, 0x2071},  {0x207F, 0x207F},
                  {0x2090, 0x209C},   {0x2160, 0x217F},   {0x24B6, 0x24E9},  {0x2C7C, 0x2C7D},
                  {0xA69C, 0xA69D},   {0xA770, 0xA770},   {0xA7F8, 0xA7F9},  {0xAB5C, 0xAB5F},
                  {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}};
    for (size_t i = 0; c >= others[0].first && i < ARRAY_COUNT(others); i++) {
        if (c >= others[i].first && c <= others[i].last)
            return true;
    }
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL ||
           category == UTF8PROC_CATEGORY_LT;
}

/* Greek sigma is written differently at the end of a word. */
static bool is_final_sigma(Slice text, size_t at)
{
    size_t before = at, len;
    if (before == 0)
        return false;
    do
        before--;
    while (before > 0 && ((unsigned char)text.ptr[before] & 0xC0) == 0x80);
    if (!jinja_is_cased(jinja_text_at(text, before, &len)))
        return false;
    size_t after = at + 2;
    return after >= text.len || !jinja_is_cased(jinja_text_at(text, after, &len));
}

static void append_mapped(Buffer *out, Slice text, size_t at, uint32_t c, bool upper)
{
    if (c < 0x80) {
        bool changes = upper ? (c >= 'a' && c <= 'z') : (c >= 'A' && c <= 'Z');
        buffer_append_byte(out, (char)(changes ? c ^ 0x20 : c));
        return;
    }
    for (size_t i = 0; i < ARRAY_COUNT(special_cases); i++) {
        const char *special = upper ? special_cases[i].upper : special_cases[i].lower;
        if (special_cases[i].code_point == c && special) {
            buffer_append_text(out, special);
            return;
        }
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
        if (how == JINJA_CASE_SWAP)
            upper = c < 0x80 ? c >= 'a'
                             : utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_LL;
        if (how == JINJA_CASE_FOLD)
            append_folded(out, c);
        else
            append_mapped(out, text, at, c, upper);
    }
}

void jinja_append_capitalized(Buffer *out, Slice text)
{
    size_t len;
    if (text.len == 0)
        return;
    jinja_text_at(text, 0, &len);
    jinja_append_case(out, (Slice){text.ptr, len}, JINJA_CASE_UPPER);
    jinja_append_case(out, (Slice){text.ptr + len, text.len - len}, JINJA_CASE_LOWER);
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
