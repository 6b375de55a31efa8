/* The patterns share their shape: alternatives tried in order at one position, each a few runs of
 * character classes. Where a regex engine would backtrack, the outcome is computed directly; the
 * places are marked. tests/tokenizer compares every scanner with PCRE2 on the pattern itself. */
#include "scanner.h"

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define NEMO_UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define NEMO_LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"

static const char *const patterns[] = {
    [SCANNER_NONE] = "",
    [SCANNER_QWEN] =
        CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES,
    [SCANNER_LLAMA3] = CONTRACTIONS
    "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES,
    [SCANNER_QWEN35] = CONTRACTIONS
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" SPACES,
    [SCANNER_NEMO] =
        "[^\\r\\n\\p{L}\\p{N}]?" NEMO_UPPER "*" NEMO_LOWER "+|[^\\r\\n\\p{L}\\p{N}]?" NEMO_UPPER
        "+" NEMO_LOWER "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES,
    [SCANNER_GPT2] =
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
};

ScannerKind scanner_recognise(Slice pattern)
{
    for (size_t kind = SCANNER_NONE + 1; kind < ARRAY_COUNT(patterns); kind++) {
        if (slice_equal(pattern, slice_of(patterns[kind])))
            return (ScannerKind)kind;
    }
    return SCANNER_NONE;
}

/* The character at `at`: its class, and *next behind it. At the end: class 0 and *next == at. The
 * first block of the table is ASCII. */
static inline unsigned peek(const UnicodeTable *unicode, Slice text, size_t at, size_t *next)
{
    if (at >= text.len) {
        *next = at;
        return 0;
    }
    unsigned char byte = (unsigned char)text.ptr[at];
    if (byte < 0x80) {
        *next = at + 1;
        return unicode->classes[byte];
    }
    uint32_t c;
    *next = at + unicode_decode(text.ptr + at, &c);
    return unicode_class(unicode, c);
}

/* End of the run of characters that have any of `classes`. */
static inline size_t skip_run(const UnicodeTable *unicode, Slice text, size_t at, unsigned classes)
{
    size_t next;
    while (at < text.len && (peek(unicode, text, at, &next) & classes))
        at = next;
    return at;
}

/* End of the run of characters that have none of `classes`. */
static inline size_t skip_run_without(const UnicodeTable *unicode, Slice text, size_t at,
                                      unsigned classes)
{
    size_t next;
    while (at < text.len && !(peek(unicode, text, at, &next) & classes))
        at = next;
    return at;
}

static inline bool is_newline(char c)
{
    return c == '\r' || c == '\n';
}

static inline char at_or_nul(Slice text, size_t at)
{
    return at < text.len ? text.ptr[at] : '\0';
}

/* Length of the contraction at an apostrophe, or 0. Ignoring case, "s" is also U+017F. */
static size_t contraction_length(Slice text, size_t at, bool ignore_case)
{
    unsigned char a = (unsigned char)at_or_nul(text, at + 1),
                  b = (unsigned char)at_or_nul(text, at + 2);
    if (ignore_case) {
        if (a == 0xc5 && b == 0xbf)
            return 3;
        a = a >= 'A' && a <= 'Z' ? a | 0x20 : a;
        b = b >= 'A' && b <= 'Z' ? b | 0x20 : b;
    }
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
        return 3;
    return 0;
}

/* White space at `at`: with newlines, \s*[\r\n]+ reaches to behind the last newline of the run;
 * else \s+(?!\S) leaves the last character of a run that does not end the text to what follows it.
 */
static size_t scan_space(const UnicodeTable *unicode, Slice text, size_t at, bool newlines)
{
    size_t end = at, last = at, newline_end = at, next;
    while (end < text.len && (peek(unicode, text, end, &next) & UNICODE_SPACE)) {
        if (is_newline(text.ptr[end]))
            newline_end = next;
        last = end;
        end = next;
    }
    if (newlines && newline_end > at)
        return newline_end;
    return end == text.len || last == at ? end : last;
}

/*  ?[^\s\p{L}\p{N}]+[\r\n]* with `others` the excluded classes; 0 when it does not match. */
static size_t scan_symbols(const UnicodeTable *unicode, Slice text, size_t at, unsigned others,
                           bool newlines, bool slashes)
{
    size_t start = at + (text.ptr[at] == ' ');
    size_t end = skip_run_without(unicode, text, start, others);
    if (end == start)
        return 0;
    while (end < text.len &&
           ((newlines && is_newline(text.ptr[end])) || (slashes && text.ptr[end] == '/')))
        end++;
    return end;
}

/* QWEN, LLAMA3 and QWEN35: `word` are the classes of words, `digits` how many numbers go together.
 */
static size_t scan_qwen(const UnicodeTable *unicode, Slice text, size_t at, unsigned word,
                        int digits)
{
    size_t next, after;
    char first = text.ptr[at];
    if (first == '\'') {
        size_t len = contraction_length(text, at, true);
        if (len)
            return at + len;
    }
    unsigned class_first = peek(unicode, text, at, &next);
    if (class_first & word)
        return skip_run(unicode, text, next, word);
    if (class_first & UNICODE_NUMBER) {
        while (--digits > 0 && (peek(unicode, text, next, &after) & UNICODE_NUMBER))
            next = after;
        return next;
    }
    if (!is_newline(first) && (peek(unicode, text, next, &after) & word))
        return skip_run(unicode, text, after, word);
    size_t end =
        scan_symbols(unicode, text, at, UNICODE_SPACE | UNICODE_NUMBER | word, true, false);
    return end ? end : scan_space(unicode, text, at, true);
}

/* NEMO's words: U*W+ where the classes overlap (marks, Lm, Lo). After the run of U, if no W
 * follows, the engine gives characters back until one of them is also in W: the last such one ends
 * the match. 0: no match. */
static size_t scan_nemo_lower(const UnicodeTable *unicode, Slice text, size_t at)
{
    size_t end = at, shared_end = 0, next;
    unsigned class_next;
    while (end < text.len && ((class_next = peek(unicode, text, end, &next)) & UNICODE_UPPER)) {
        end = next;
        if (class_next & UNICODE_LOWER)
            shared_end = end;
    }
    size_t lower_end = skip_run(unicode, text, end, UNICODE_LOWER);
    return lower_end > end ? lower_end : shared_end;
}

/* U+W*; 0: no match. */
static size_t scan_nemo_upper(const UnicodeTable *unicode, Slice text, size_t at)
{
    size_t end = skip_run(unicode, text, at, UNICODE_UPPER);
    return end > at ? skip_run(unicode, text, end, UNICODE_LOWER) : 0;
}

static size_t scan_nemo(const UnicodeTable *unicode, Slice text, size_t at)
{
    size_t next, end = 0;
    unsigned class_first = peek(unicode, text, at, &next);
    bool prefix = !is_newline(text.ptr[at]) && !(class_first & (UNICODE_LETTER | UNICODE_NUMBER));
    /* A mark may be the prefix or begin the word, so both readings of each alternative are tried.
     */
    if (prefix)
        end = scan_nemo_lower(unicode, text, next);
    if (!end)
        end = scan_nemo_lower(unicode, text, at);
    if (!end && prefix)
        end = scan_nemo_upper(unicode, text, next);
    if (!end)
        end = scan_nemo_upper(unicode, text, at);
    if (end)
        return end;
    if (class_first & UNICODE_NUMBER)
        return next;
    end = scan_symbols(unicode, text, at, UNICODE_SPACE | UNICODE_NUMBER | UNICODE_LETTER, true,
                       true);
    return end ? end : scan_space(unicode, text, at, true);
}

static size_t scan_gpt2(const UnicodeTable *unicode, Slice text, size_t at)
{
    if (text.ptr[at] == '\'') {
        size_t len = contraction_length(text, at, false);
        if (len)
            return at + len;
    }
    size_t next, start = at + (text.ptr[at] == ' ');
    unsigned class_first = peek(unicode, text, start, &next);
    if (class_first & UNICODE_LETTER)
        return skip_run(unicode, text, next, UNICODE_LETTER);
    if (class_first & UNICODE_NUMBER)
        return skip_run(unicode, text, next, UNICODE_NUMBER);
    size_t end = scan_symbols(unicode, text, at, UNICODE_SPACE | UNICODE_NUMBER | UNICODE_LETTER,
                              false, false);
    return end ? end : scan_space(unicode, text, at, false);
}

size_t scanner_next(ScannerKind kind, const UnicodeTable *unicode, Slice text, size_t at)
{
    switch (kind) {
    case SCANNER_QWEN:
        return scan_qwen(unicode, text, at, UNICODE_LETTER, 1);
    case SCANNER_LLAMA3:
        return scan_qwen(unicode, text, at, UNICODE_LETTER, 3);
    case SCANNER_QWEN35:
        return scan_qwen(unicode, text, at, UNICODE_LETTER | UNICODE_MARK, 1);
    case SCANNER_NEMO:
        return scan_nemo(unicode, text, at);
    case SCANNER_GPT2:
        return scan_gpt2(unicode, text, at);
    case SCANNER_NONE:
        break;
    }
    return text.len;
}
