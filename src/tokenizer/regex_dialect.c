/* The regexes of tokenizer.json are written for Oniguruma's Ruby syntax; PCRE2 takes most of it as
 * it is. What it would take in another sense is spelt out here (\w, \s, \b, \h, \v, {,n}), and what
 * has no counterpart is refused by name, so that no text is ever split in a wrong place.
 *
 * Oniguruma's \w is a letter, mark, decimal, letter number or connector; by itself, but not within
 * a class, also the six numbers of Latin-1. Its \s is White_Space. */
#include "pattern.h"

#include <string.h>

#define WORD                                                                                       \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-"         \
    "\\x{1F169}\\x{1F170}-\\x{1F189}"
#define WORD_ALONE WORD "\\xB2\\xB3\\xB9\\xBC-\\xBE"
#define SPACE                                                                                      \
    "\\x09-\\x0D\\x20\\x85\\xA0\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}"   \
    "\\x{3000}"
#define NOT_SPACE                                                                                  \
    "\\x00-\\x08\\x0E-\\x1F\\x21-\\x84\\x86-\\x9F\\xA1-\\x{167F}\\x{1681}-\\x{1FFF}\\x{200B}-"     \
    "\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{10FFFF}"
#define BOUNDARY                                                                                   \
    "(?:(?<=[" WORD_ALONE "])(?![" WORD_ALONE "])|(?<![" WORD_ALONE "])(?=[" WORD_ALONE "]))"
#define NOT_BOUNDARY                                                                               \
    "(?:(?<=[" WORD_ALONE "])(?=[" WORD_ALONE "])|(?<![" WORD_ALONE "])(?![" WORD_ALONE "]))"
#define HEX "0-9A-Fa-f"

typedef struct Escape {
    char letter;
    const char *alone, *in_class; /* NULL: refused */
} Escape;

static const Escape escapes[] = {
    {'w', "[" WORD_ALONE "]", WORD},
    {'W', "[^" WORD_ALONE "]", NULL},
    {'s', "[" SPACE "]", SPACE},
    {'S', "[^" SPACE "]", NOT_SPACE},
    {'h', "[" HEX "]", HEX},
    {'H', "[^" HEX "]", NULL},
    {'b', BOUNDARY, "\\x08"},
    {'B', NOT_BOUNDARY, NULL},
    {'v', "\\x0B", "\\x0B"},
    {'V', NULL, NULL},
    {'Q', NULL, NULL},
    {'E', NULL, NULL},
    {'R', "(?>\\r\\n|[\\n-\\r\\x85\\x{2028}\\x{2029}])", NULL},
};

typedef struct Translation {
    Slice source;
    size_t at;
    Buffer *out;
    Error *err;
} Translation;

static bool refuse(Translation *t, const char *what)
{
    int shown = t->source.len < 80 ? (int)t->source.len : 80;
    return error_set(t->err, ERROR_UNSUPPORTED, "regex '%.*s': %s is not supported", shown,
                     t->source.ptr, what);
}

static char peek(const Translation *t, size_t ahead)
{
    return t->at + ahead < t->source.len ? t->source.ptr[t->at + ahead] : '\0';
}

static void copy(Translation *t, size_t len)
{
    size_t left = t->source.len - t->at;
    len = len < left ? len : left;
    buffer_append(t->out, t->source.ptr + t->at, len);
    t->at += len;
}

static bool translate_escape(Translation *t, bool in_class)
{
    char letter = peek(t, 1);
    for (size_t i = 0; i < ARRAY_COUNT(escapes); i++) {
        if (letter != escapes[i].letter || letter == '\0')
            continue;
        const char *spelt = in_class ? escapes[i].in_class : escapes[i].alone;
        char name[] = {'\\', letter, '\0'};
        if (!spelt)
            return refuse(t, name);
        buffer_append_text(t->out, spelt);
        t->at += 2;
        return true;
    }
    if (letter == 'u' && t->at + 6 <= t->source.len) {
        buffer_append_format(t->out, "\\x{%.4s}", t->source.ptr + t->at + 2);
        t->at += 6;
        return true;
    }
    copy(t, 2);
    return true;
}

/* From '[' to its ']'. */
static bool translate_class(Translation *t)
{
    copy(t, peek(t, 1) == '^' ? 2 : 1);
    for (bool first = true; t->at < t->source.len; first = false) {
        char c = peek(t, 0);
        if (c == '[')
            return refuse(t, "a class within a class");
        if (c == '&' && peek(t, 1) == '&')
            return refuse(t, "an intersection of classes");
        if (c == '\\' && !translate_escape(t, true))
            return false;
        if (c != '\\')
            copy(t, 1);
        if (c == ']' && !first)
            return true;
    }
    return true; /* the compiler says what is missing */
}

/* "{n,m}" and its like; other braces are characters. */
static bool translate_braces(Translation *t)
{
    size_t len = 1, digits = 0;
    for (char c; (c = peek(t, len)) == ',' || (c >= '0' && c <= '9'); len++)
        digits += c != ',';
    if (peek(t, len) != '}' || digits == 0) {
        copy(t, 1);
        return true;
    }
    if (peek(t, len + 1) == '+')
        return refuse(t, "'+' behind a count"); /* repeats there, possesses here */
    if (peek(t, 1) == ',') {
        buffer_append_text(t->out, "{0");
        t->at++;
        len--;
    }
    copy(t, len + 1);
    return true;
}

/* "(?imx-imx": m means that a dot takes newlines, and s does not exist. */
static bool check_options(Translation *t)
{
    for (size_t i = 2; peek(t, i) && strchr("imxs-", peek(t, i)); i++) {
        if (peek(t, i) == 'm' || peek(t, i) == 's')
            return refuse(t, "the option m or s");
        if (peek(t, i) == 'x')
            return refuse(t, "the option x");
    }
    return true;
}

bool pattern_translate_regex(Slice source, Buffer *out, Error *err)
{
    Translation t = {source, 0, out, err};
    while (t.at < source.len) {
        char c = peek(&t, 0);
        bool ok = true;
        if (c == '\\')
            ok = translate_escape(&t, false);
        else if (c == '[')
            ok = translate_class(&t);
        else if (c == '{')
            ok = translate_braces(&t);
        else if (c == '(' && peek(&t, 1) == '?' && !check_options(&t))
            ok = false;
        else
            copy(&t, 1);
        if (!ok)
            return false;
    }
    return buffer_check(out, "regex", err);
}
