/* What Python's strings say about their characters: isdigit(), isupper() and their relatives.
 * Categories are those of utf8proc; what Python takes from other properties of the Unicode database
 * (digits that are no decimals, ideographs that are numbers) stands in the tables below. */
#include "jinja_filters.h"

#include <utf8proc.h>

typedef bool (*CharacterTest)(uint32_t c);

typedef struct CharacterRange {
    uint32_t first, last;
} CharacterRange;

/* Numeric_Type=Digit: superscripts, subscripts, circled digits and the like. */
static const CharacterRange digits[] = {
    {0xB2, 0xB3},       {0xB9, 0xB9},       {0x1369, 0x1371},   {0x19DA, 0x19DA},
    {0x2070, 0x2070},   {0x2074, 0x2079},   {0x2080, 0x2089},   {0x2460, 0x2468},
    {0x2474, 0x247C},   {0x2488, 0x2490},   {0x24EA, 0x24EA},   {0x24F5, 0x24FD},
    {0x24FF, 0x24FF},   {0x2776, 0x277E},   {0x2780, 0x2788},   {0x278A, 0x2792},
    {0x10A40, 0x10A43}, {0x10E60, 0x10E68}, {0x11052, 0x1105A}, {0x1F100, 0x1F10A},
};

/* Ideographs of category Lo with a numeric value. */
static const uint32_t numeric_ideographs[] = {
    0x3405,  0x3483,  0x382A,  0x3B4D,  0x4E00,  0x4E03,  0x4E07,  0x4E09,  0x4E5D,
    0x4E8C,  0x4E94,  0x4E96,  0x4EBF,  0x4EC0,  0x4EDF,  0x4EE8,  0x4F0D,  0x4F70,
    0x5104,  0x5146,  0x5169,  0x516B,  0x516D,  0x5341,  0x5343,  0x5344,  0x5345,
    0x534C,  0x53C1,  0x53C2,  0x53C3,  0x53C4,  0x56DB,  0x58F1,  0x58F9,  0x5E7A,
    0x5EFE,  0x5EFF,  0x5F0C,  0x5F0D,  0x5F0E,  0x5F10,  0x62FE,  0x634C,  0x67D2,
    0x6F06,  0x7396,  0x767E,  0x8086,  0x842C,  0x8CAE,  0x8CB3,  0x8D30,  0x9621,
    0x9646,  0x964C,  0x9678,  0x96F6,  0xF96B,  0xF973,  0xF978,  0xF9B2,  0xF9D1,
    0xF9D3,  0xF9FD,  0x20001, 0x20064, 0x200E2, 0x20121, 0x2092A, 0x20983, 0x2098C,
    0x2099C, 0x20AEA, 0x20AFD, 0x20B19, 0x22390, 0x22998, 0x23B1B, 0x2626D, 0x2F890,
};

static utf8proc_category_t category_of(uint32_t c)
{
    return utf8proc_category((utf8proc_int32_t)c);
}

static bool is_letter(uint32_t c)
{
    return category_of(c) >= UTF8PROC_CATEGORY_LU && category_of(c) <= UTF8PROC_CATEGORY_LO;
}

bool jinja_is_decimal(uint32_t c)
{
    return category_of(c) == UTF8PROC_CATEGORY_ND;
}

static bool is_digit(uint32_t c)
{
    bool found = jinja_is_decimal(c);
    for (size_t i = 0; !found && i < ARRAY_COUNT(digits); i++)
        found = c >= digits[i].first && c <= digits[i].last;
    return found;
}

static bool is_numeric(uint32_t c)
{
    bool found = category_of(c) >= UTF8PROC_CATEGORY_ND && category_of(c) <= UTF8PROC_CATEGORY_NO;
    for (size_t i = 0; !found && i < ARRAY_COUNT(numeric_ideographs); i++)
        found = c == numeric_ideographs[i];
    return found;
}

static bool is_letter_or_number(uint32_t c)
{
    return is_letter(c) || is_numeric(c);
}

bool jinja_is_printable(uint32_t c)
{
    if (c < 0x7F)
        return c >= 0x20;
    switch (category_of(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    default:
        return true;
    }
}

/* Whether all characters pass; `empty` is the answer for no characters. */
static bool all_characters(JinjaMachine *m, const JinjaCall *call, CharacterTest test, bool empty,
                           JinjaValue *out)
{
    Slice text = call->self.as.string;
    size_t len;
    bool all = text.len > 0 || empty;
    for (size_t at = 0; all && at < text.len; at += len)
        all = test(jinja_text_at(text, at, &len));
    *out = jinja_bool(all);
    return jinja_charge(m, text.len / 16);
}

static bool method_isdecimal(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return all_characters(m, call, jinja_is_decimal, false, out);
}

static bool method_isdigit(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return all_characters(m, call, is_digit, false, out);
}

static bool method_isnumeric(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return all_characters(m, call, is_numeric, false, out);
}

static bool method_isalpha(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return all_characters(m, call, is_letter, false, out);
}

static bool method_isalnum(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return all_characters(m, call, is_letter_or_number, false, out);
}

static bool method_isspace(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return all_characters(m, call, jinja_is_space, false, out);
}

static bool method_isprintable(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return all_characters(m, call, jinja_is_printable, true, out);
}

static bool is_ascii(uint32_t c)
{
    return c < 0x80;
}

static bool method_isascii(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return all_characters(m, call, is_ascii, true, out);
}

/* A letter or underscore, then letters, decimals, marks and connectors. */
static bool method_isidentifier(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice text = call->self.as.string;
    size_t len;
    bool ok = text.len > 0;
    for (size_t at = 0; ok && at < text.len; at += len) {
        uint32_t c = jinja_text_at(text, at, &len);
        utf8proc_category_t category = category_of(c);
        bool begins = c == '_' || is_letter(c) || category == UTF8PROC_CATEGORY_NL;
        bool goes_on = category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_MN ||
                       category == UTF8PROC_CATEGORY_MC || category == UTF8PROC_CATEGORY_PC;
        ok = begins || (at > 0 && goes_on);
    }
    *out = jinja_bool(ok);
    return jinja_charge(m, text.len / 16);
}

static bool case_test(JinjaMachine *m, const JinjaCall *call, Slice name, JinjaValue *out)
{
    JinjaArguments none = {0};
    return jinja_builtin_call(m, jinja_test_find(name), &call->self, &none, out);
}

static bool method_islower(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return case_test(m, call, SLICE("lower"), out);
}

static bool method_isupper(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    return case_test(m, call, SLICE("upper"), out);
}

/* Capitals only where a run of cased letters begins, and at least one. */
static bool method_istitle(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    Slice text = call->self.as.string;
    size_t len;
    bool ok = true, any = false, inside = false;
    for (size_t at = 0; ok && at < text.len; at += len) {
        uint32_t c = jinja_text_at(text, at, &len);
        bool cased = jinja_is_cased(c), lower = jinja_case_of(c) == UTF8PROC_CATEGORY_LL;
        ok = !cased || lower == inside;
        any |= cased;
        inside = cased;
    }
    *out = jinja_bool(ok && any);
    return jinja_charge(m, text.len / 16);
}

const JinjaBuiltin *jinja_character_method_find(Slice name)
{
    static const JinjaBuiltin methods[] = {
        {"isdigit", "", method_isdigit},           {"isdecimal", "", method_isdecimal},
        {"isnumeric", "", method_isnumeric},       {"isalpha", "", method_isalpha},
        {"isalnum", "", method_isalnum},           {"isspace", "", method_isspace},
        {"isascii", "", method_isascii},           {"islower", "", method_islower},
        {"isupper", "", method_isupper},           {"istitle", "", method_istitle},
        {"isidentifier", "", method_isidentifier}, {"isprintable", "", method_isprintable},
    };
    for (size_t i = 0; i < ARRAY_COUNT(methods); i++) {
        if (slice_equal(name, slice_of(methods[i].name)))
            return &methods[i];
    }
    return NULL;
}
