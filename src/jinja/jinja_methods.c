/* Methods of strings. Positions count code points. */
#include "jinja_filters.h"

#include <string.h>
#include <utf8proc.h>

/* ---- String methods: stripping, splitting, joining ---- */

static Slice self_text(const JinjaCall *call)
{
    return call->self.as.string;
}

static bool strip_self(JinjaMachine *m, const JinjaCall *call, bool left, bool right,
                       JinjaValue *out)
{
    Slice chars, text = self_text(call);
    bool by_space = call->args[0].kind == JINJA_ABSENT || call->args[0].kind == JINJA_NONE;
    if (by_space)
        text = jinja_text_strip(text, left, right);
    else if (!jinja_arg_string(m, call, 0, SLICE_EMPTY, &chars) ||
             !jinja_text_strip_chars(m, text, chars, left, right, &text))
        return false;
    *out = jinja_string(text);
    return jinja_charge(m, self_text(call).len / 256);
}

static bool method_strip(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return strip_self(m, call, true, true, out);
}

static bool method_lstrip(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return strip_self(m, call, true, false, out);
}

static bool method_rstrip(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return strip_self(m, call, false, true, out);
}

static bool append_part(JinjaMachine *m, JinjaValue *list, Slice part)
{
    JinjaValue value = jinja_string(part);
    return jinja_list_append(m, list->as.list, &value);
}

/* Where the last occurrence in text begins, or SIZE_MAX. */
static bool find_last(JinjaMachine *m, Slice text, Slice needle, size_t *at)
{
    *at = SIZE_MAX;
    if (needle.len > text.len)
        return true;
    for (size_t i = text.len - needle.len + 1; i-- > 0;) {
        if ((i & 255) == 0 && !jinja_charge(m, 1))
            return false;
        if (needle.len > 0 && text.ptr[i] != needle.ptr[0])
            continue;
        if (!jinja_charge(m, needle.len / 32))
            return false;
        if (needle.len == 0 || memcmp(text.ptr + i, needle.ptr, needle.len) == 0) {
            *at = i;
            return true;
        }
    }
    return true;
}

/* At runs of white space, which vanish at the ends; from the left. */
static bool split_space(JinjaMachine *m, Slice text, int64_t count, JinjaValue *list)
{
    size_t len;
    text = jinja_text_strip(text, true, false);
    while (text.len > 0) {
        size_t end = 0;
        while (end < text.len && !jinja_is_space(jinja_text_at(text, end, &len)))
            end += len;
        if (count == 0)
            return append_part(m, list, text);
        count -= count > 0;
        if (!append_part(m, list, (Slice){text.ptr, end}))
            return false;
        text = jinja_text_strip((Slice){text.ptr + end, text.len - end}, true, false);
    }
    return true;
}

static bool split_at(JinjaMachine *m, Slice text, Slice separator, int64_t count, JinjaValue *list)
{
    while (count != 0) {
        size_t found;
        if (!jinja_text_find(m, text, separator, 0, &found))
            return false;
        if (found == SIZE_MAX)
            break;
        if (!append_part(m, list, (Slice){text.ptr, found}))
            return false;
        found += separator.len;
        text = (Slice){text.ptr + found, text.len - found};
        count -= count > 0;
    }
    return append_part(m, list, text);
}

static void reverse_items(JinjaList *list)
{
    for (size_t i = 0; i < list->count / 2; i++) {
        JinjaValue swapped = list->items[i];
        list->items[i] = list->items[list->count - 1 - i];
        list->items[list->count - 1 - i] = swapped;
    }
}

/* From the right; the parts are gathered backwards. */
static bool split_right(JinjaMachine *m, Slice text, const Slice *separator, int64_t count,
                        JinjaValue *list)
{
    for (; count != 0; count -= count > 0) {
        size_t cut, len;
        if (!separator) {
            text = jinja_text_strip(text, false, true);
            if (text.len == 0)
                break;
            cut = text.len;
            while (cut > 0) {
                size_t start = cut - 1;
                while (start > 0 && ((unsigned char)text.ptr[start] & 0xC0) == 0x80)
                    start--;
                if (jinja_is_space(jinja_text_at(text, start, &len)))
                    break;
                cut = start;
            }
            if (!append_part(m, list, (Slice){text.ptr + cut, text.len - cut}))
                return false;
            text.len = cut;
            continue;
        }
        if (!find_last(m, text, *separator, &cut))
            return false;
        if (cut == SIZE_MAX)
            break;
        size_t after = cut + separator->len;
        if (!append_part(m, list, (Slice){text.ptr + after, text.len - after}))
            return false;
        text.len = cut;
    }
    if (!separator)
        text = jinja_text_strip(text, false, true);
    if ((separator || text.len > 0) && !append_part(m, list, text))
        return false;
    reverse_items(list->as.list);
    return true;
}

static bool split_self(JinjaMachine *m, const JinjaCall *call, bool from_right, JinjaValue *out)
{
    Slice separator;
    int64_t count;
    bool by_space = call->args[0].kind == JINJA_ABSENT || call->args[0].kind == JINJA_NONE;
    if ((!by_space && !jinja_arg_string(m, call, 0, SLICE_EMPTY, &separator)) ||
        !jinja_arg_integer(m, call, 1, -1, &count) || !jinja_charge(m, self_text(call).len / 64) ||
        !jinja_list_new(m, JINJA_LIST, 4, out))
        return false;
    if (!by_space && separator.len == 0)
        return jinja_fail(m, "empty separator");
    if (from_right)
        return split_right(m, self_text(call), by_space ? NULL : &separator, count, out);
    return by_space ? split_space(m, self_text(call), count, out)
                    : split_at(m, self_text(call), separator, count, out);
}

static bool method_split(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return split_self(m, call, false, out);
}

static bool method_rsplit(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return split_self(m, call, true, out);
}

static bool method_splitlines(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice line, line_break;
    bool keep = jinja_arg_truth(call, 0, false);
    if (!jinja_charge(m, self_text(call).len / 16) || !jinja_list_new(m, JINJA_LIST, 4, out))
        return false;
    for (size_t at = 0; jinja_text_next_line(self_text(call), &at, &line, &line_break);) {
        line.len += keep ? line_break.len : 0;
        if (!append_part(m, out, line))
            return false;
    }
    return true;
}

static bool partition_self(JinjaMachine *m, const JinjaCall *call, bool last, JinjaValue *out)
{
    Slice separator, text = self_text(call);
    size_t at;
    if (!jinja_arg_string(m, call, 0, SLICE_EMPTY, &separator) ||
        !jinja_list_new(m, JINJA_TUPLE, 3, out))
        return false;
    if (separator.len == 0)
        return jinja_fail(m, "empty separator");
    if (!(last ? find_last(m, text, separator, &at) : jinja_text_find(m, text, separator, 0, &at)))
        return false;
    Slice before = text, after = SLICE_EMPTY;
    if (at != SIZE_MAX) {
        before.len = at;
        after = (Slice){text.ptr + at + separator.len, text.len - at - separator.len};
    } else {
        separator = SLICE_EMPTY;
        if (last) {
            before = SLICE_EMPTY;
            after = text;
        }
    }
    return append_part(m, out, before) && append_part(m, out, separator) &&
           append_part(m, out, after);
}

static bool method_partition(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return partition_self(m, call, false, out);
}

static bool method_rpartition(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return partition_self(m, call, true, out);
}

static bool method_join(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    JinjaIterator it;
    if (!jinja_iterate(m, &call->args[0], &it))
        return false;
    size_t mark = m->text.len;
    for (size_t i = 0;; i++) {
        JinjaValue item;
        bool more;
        if (!jinja_next(m, &it, &item, &more))
            return false;
        if (!more)
            return jinja_text_finish(m, mark, out);
        if (jinja_is_markup(&call->self) && !jinja_to_markup(m, &item, &item))
            return false;
        if (item.kind != JINJA_STRING)
            return jinja_fail(m, "sequence item %zu: expected str instance, %s found", i,
                              jinja_type_name(&item));
        if (i > 0)
            buffer_append_slice(&m->text, self_text(call));
        buffer_append_slice(&m->text, item.as.string);
        if (!jinja_charge(m, (item.as.string.len + self_text(call).len) / 256))
            return false;
    }
}

/* The second argument, which text that is markup escapes before it takes it in. */
static bool inserted_text(JinjaMachine *m, const JinjaCall *call, Slice fallback, Slice *out)
{
    JinjaValue escaped;
    if (!jinja_is_markup(&call->self) || call->args[1].kind == JINJA_ABSENT)
        return jinja_arg_string(m, call, 1, fallback, out);
    if (!jinja_to_markup(m, &call->args[1], &escaped))
        return false;
    *out = escaped.as.string;
    return true;
}

static bool method_replace(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice old, replacement;
    int64_t count;
    return jinja_arg_string(m, call, 0, SLICE_EMPTY, &old) &&
           inserted_text(m, call, SLICE_EMPTY, &replacement) &&
           jinja_arg_integer(m, call, 2, -1, &count) &&
           jinja_text_replace(m, self_text(call), old, replacement, count, out);
}

/* ---- String methods: searching ---- */

/* The part of the text between the optional start and end arguments at `at`; *offset counts what
 * was cut. */
static bool search_range(JinjaMachine *m, const JinjaCall *call, size_t at, Slice *text,
                         int64_t *offset)
{
    int64_t count = (int64_t)utf8_count(self_text(call)), start, end;
    *text = self_text(call);
    if (!jinja_arg_integer(m, call, at, 0, &start) ||
        !jinja_arg_integer(m, call, at + 1, count, &end) || !jinja_charge(m, text->len / 64))
        return false;
    start += start < 0 ? count : 0;
    end += end < 0 ? count : 0;
    start = start < 0 ? 0 : start;
    end = end > count ? count : end;
    *offset = start;
    if (start > end) { /* nothing is found there, not even the empty text */
        *offset = -1;
        return true;
    }
    size_t from = jinja_text_offset(*text, (size_t)start),
           to = jinja_text_offset(*text, (size_t)end);
    *text = (Slice){text->ptr + from, to - from};
    return true;
}

/* One prefix, or any of a tuple of them. */
static bool has_affix(JinjaMachine *m, const JinjaCall *call, bool at_end, JinjaValue *out)
{
    const JinjaValue *affix = &call->args[0];
    Slice text;
    int64_t offset;
    if (!search_range(m, call, 1, &text, &offset))
        return false;
    const JinjaValue *items = affix;
    size_t count = 1;
    if (affix->kind == JINJA_TUPLE) {
        items = affix->as.list->items;
        count = affix->as.list->count;
    }
    bool found = false;
    for (size_t i = 0; i < count; i++) {
        if (jinja_is_undefined(&items[i]))
            return jinja_fail_value(m, &items[i], "is not a string");
        if (items[i].kind != JINJA_STRING)
            return jinja_fail(m, "%s first arg must be str or a tuple of str, not %s",
                              call->builtin->name, jinja_type_name(&items[i]));
        if (!jinja_charge(m, items[i].as.string.len / 256))
            return false;
        found |= offset >= 0 && (at_end ? slice_ends_with(text, items[i].as.string)
                                        : slice_starts_with(text, items[i].as.string));
    }
    *out = jinja_bool(found);
    return true;
}

static bool method_startswith(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return has_affix(m, call, false, out);
}

static bool method_endswith(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return has_affix(m, call, true, out);
}

static bool find_self(JinjaMachine *m, const JinjaCall *call, bool last, bool required,
                      JinjaValue *out)
{
    Slice needle, text;
    int64_t offset;
    size_t at = SIZE_MAX;
    if (!jinja_arg_string(m, call, 0, SLICE_EMPTY, &needle) ||
        !search_range(m, call, 1, &text, &offset))
        return false;
    if (offset >= 0 &&
        !(last ? find_last(m, text, needle, &at) : jinja_text_find(m, text, needle, 0, &at)))
        return false;
    if (at == SIZE_MAX && required)
        return jinja_fail(m, "substring not found");
    *out = jinja_int(at == SIZE_MAX ? -1 : offset + (int64_t)utf8_count((Slice){text.ptr, at}));
    return true;
}

static bool method_find(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return find_self(m, call, false, false, out);
}

static bool method_rfind(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return find_self(m, call, true, false, out);
}

static bool method_index(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return find_self(m, call, false, true, out);
}

static bool method_rindex(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return find_self(m, call, true, true, out);
}

static bool method_count(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice needle, text;
    int64_t offset, count = 0;
    if (!jinja_arg_string(m, call, 0, SLICE_EMPTY, &needle) ||
        !search_range(m, call, 1, &text, &offset))
        return false;
    if (offset >= 0 && needle.len == 0)
        count = (int64_t)utf8_count(text) + 1;
    for (size_t at = 0; offset >= 0 && needle.len > 0; at += needle.len, count++) {
        if (!jinja_charge(m, 1) || !jinja_text_find(m, text, needle, at, &at))
            return false;
        if (at == SIZE_MAX)
            break;
    }
    *out = jinja_int(count);
    return true;
}

static bool remove_affix(JinjaMachine *m, const JinjaCall *call, bool at_end, JinjaValue *out)
{
    Slice affix, text = self_text(call);
    if (!jinja_arg_string(m, call, 0, SLICE_EMPTY, &affix))
        return false;
    if (at_end && slice_ends_with(text, affix))
        text.len -= affix.len;
    else if (!at_end && slice_starts_with(text, affix))
        text = (Slice){text.ptr + affix.len, text.len - affix.len};
    *out = jinja_string(text);
    return true;
}

static bool method_removeprefix(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return remove_affix(m, call, false, out);
}

static bool method_removesuffix(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return remove_affix(m, call, true, out);
}

/* ---- String methods: case, padding, classes ---- */

static bool method_upper(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return jinja_text_to_case(m, self_text(call), JINJA_CASE_UPPER, out);
}

static bool method_lower(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return jinja_text_to_case(m, self_text(call), JINJA_CASE_LOWER, out);
}

static bool method_swapcase(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return jinja_text_to_case(m, self_text(call), JINJA_CASE_SWAP, out);
}

static bool method_casefold(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return jinja_text_to_case(m, self_text(call), JINJA_CASE_FOLD, out);
}

static bool method_capitalize(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    size_t mark = m->text.len;
    jinja_append_capitalized(&m->text, self_text(call));
    return jinja_charge(m, self_text(call).len / 8) && jinja_text_finish(m, mark, out);
}

/* Every run of letters that have a case begins with a capital. */
static bool method_title(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice text = self_text(call);
    size_t mark = m->text.len, len;
    bool inside = false;
    for (size_t at = 0; at < text.len; at += len) {
        uint32_t c = jinja_text_at(text, at, &len);
        if (inside)
            jinja_append_lower_at(&m->text, text, at);
        else
            jinja_append_title_at(&m->text, text, at);
        inside = jinja_is_cased(c);
    }
    return jinja_charge(m, text.len / 8) && jinja_text_finish(m, mark, out);
}

static bool read_padding(JinjaMachine *m, const JinjaCall *call, int64_t *width, Slice *fill)
{
    if (!jinja_arg_integer(m, call, 0, 0, width) || !inserted_text(m, call, SLICE(" "), fill))
        return false;
    return utf8_count(*fill) == 1 ||
           jinja_fail(m, "The fill character must be exactly one character long");
}

static bool method_ljust(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    int64_t width;
    Slice fill;
    return read_padding(m, call, &width, &fill) &&
           jinja_text_pad(m, self_text(call), 0, jinja_text_missing(self_text(call), width), fill,
                          out);
}

static bool method_rjust(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    int64_t width;
    Slice fill;
    return read_padding(m, call, &width, &fill) &&
           jinja_text_pad(m, self_text(call), jinja_text_missing(self_text(call), width), 0, fill,
                          out);
}

static bool method_center(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    int64_t width;
    Slice fill;
    return read_padding(m, call, &width, &fill) &&
           jinja_text_center(m, self_text(call), width, fill, out);
}

static bool method_zfill(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    int64_t width;
    Slice text = self_text(call);
    JinjaValue padded;
    if (!jinja_arg_integer(m, call, 0, 0, &width))
        return false;
    bool sign = text.len > 0 && (text.ptr[0] == '-' || text.ptr[0] == '+');
    size_t pad = jinja_text_missing(text, width);
    Slice digits = {text.ptr + sign, text.len - sign};
    return jinja_text_pad(m, digits, pad, 0, SLICE("0"), &padded) &&
           jinja_concatenate(m, (Slice){text.ptr, sign}, padded.as.string, out);
}

/* A tab moves to the next multiple of tabsize in its line. */
static bool method_expandtabs(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    enum { TAB_MAX = 1000 };
    Slice text = self_text(call);
    int64_t size, column = 0;
    size_t mark = m->text.len, len;
    if (!jinja_arg_integer(m, call, 0, 8, &size))
        return false;
    if (size > TAB_MAX)
        return jinja_fail_limit(m, "expandtabs: tabsize", TAB_MAX);
    for (size_t at = 0; at < text.len; at += len) {
        uint32_t c = jinja_text_at(text, at, &len);
        if (c != '\t') {
            buffer_append(&m->text, text.ptr + at, len);
            column = c == '\n' || c == '\r' ? 0 : column + 1;
            continue;
        }
        for (int64_t i = size > 0 ? size - column % size : 0; i > 0; i--, column++)
            buffer_append_byte(&m->text, ' ');
        if (!jinja_charge(m, 1))
            return false;
    }
    return jinja_charge(m, text.len / 16) && jinja_text_finish(m, mark, out);
}

static bool method_format(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return jinja_format_braces(m, &call->self, call->given, out);
}

static const JinjaBuiltin string_methods[] = {
    {"split", "?sep ?maxsplit", method_split},
    {"strip", "?chars", method_strip},
    {"lstrip", "?chars", method_lstrip},
    {"rstrip", "?chars", method_rstrip},
    {"startswith", "prefix ?start ?end", method_startswith},
    {"endswith", "suffix ?start ?end", method_endswith},
    {"replace", "old new ?count", method_replace},
    {"format", NULL, method_format},
    {"upper", "", method_upper},
    {"lower", "", method_lower},
    {"title", "", method_title},
    {"capitalize", "", method_capitalize},
    {"swapcase", "", method_swapcase},
    {"casefold", "", method_casefold},
    {"join", "iterable", method_join},
    {"find", "sub ?start ?end", method_find},
    {"rfind", "sub ?start ?end", method_rfind},
    {"index", "sub ?start ?end", method_index},
    {"rindex", "sub ?start ?end", method_rindex},
    {"count", "sub ?start ?end", method_count},
    {"splitlines", "?keepends", method_splitlines},
    {"rsplit", "?sep ?maxsplit", method_rsplit},
    {"partition", "sep", method_partition},
    {"rpartition", "sep", method_rpartition},
    {"removeprefix", "prefix", method_removeprefix},
    {"removesuffix", "suffix", method_removesuffix},
    {"ljust", "width ?fillchar", method_ljust},
    {"rjust", "width ?fillchar", method_rjust},
    {"center", "width ?fillchar", method_center},
    {"zfill", "width", method_zfill},
    {"expandtabs", "?tabsize", method_expandtabs},
};

static const JinjaBuiltin *find_in(const JinjaBuiltin *table, size_t count, Slice name)
{
    for (size_t i = 0; i < count; i++) {
        if (slice_equal(name, slice_of(table[i].name)))
            return &table[i];
    }
    return NULL;
}

bool jinja_is_string_method(const JinjaBuiltin *builtin)
{
    return builtin >= string_methods && builtin < string_methods + ARRAY_COUNT(string_methods);
}

const JinjaBuiltin *jinja_method_find(const JinjaValue *self, Slice name, bool *unsafe)
{
    *unsafe = false;
    if (self->kind == JINJA_STRING) {
        const JinjaBuiltin *method = find_in(string_methods, ARRAY_COUNT(string_methods), name);
        return method ? method : jinja_character_method_find(name);
    }
    return jinja_container_method_find(self, name, unsafe);
}
