#include "pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

/* PCRE2 allocates through our hook, so that out-of-memory tests reach it. */
static void *regex_allocate(size_t size, void *unused)
{
    (void)unused;
    return memory_allocate(size);
}

static void regex_free(void *ptr, void *unused)
{
    (void)unused;
    memory_free(ptr);
}

bool pattern_init_literal(Pattern *pattern, Slice text, Error *err)
{
    *pattern = (Pattern){.kind = PATTERN_LITERAL, .literal_len = text.len};
    pattern->literal = memory_allocate(text.len + 1);
    if (!pattern->literal)
        return error_no_memory(err, "pattern");
    if (text.len)
        memcpy(pattern->literal, text.ptr, text.len);
    return true;
}

void pattern_init_class(Pattern *pattern, unsigned classes)
{
    *pattern = (Pattern){.kind = PATTERN_CLASS, .classes = classes};
}

void pattern_init_scanner(Pattern *pattern, ScannerKind kind)
{
    *pattern = (Pattern){.kind = PATTERN_SCANNER, .scanner = kind};
}

static bool compile_error(Error *err, int code, Slice source)
{
    PCRE2_UCHAR text[160];
    if (pcre2_get_error_message(code, text, sizeof(text)) < 0)
        text[0] = '\0';
    int shown = source.len < 80 ? (int)source.len : 80;
    return error_set(err, ERROR_INVALID, "regex '%.*s': %s", shown, source.ptr, (const char *)text);
}

bool pattern_init_regex(Pattern *pattern, Slice source, Error *err)
{
    ScannerKind scanner = scanner_recognise(source);
    *pattern = (Pattern){.kind = PATTERN_SCANNER, .scanner = scanner};
    if (scanner != SCANNER_NONE)
        return true;
    pattern->kind = PATTERN_REGEX;
    if (source.len > PATTERN_BYTES_MAX)
        return error_set(err, ERROR_LIMIT, "a regex has %zu bytes, at most %d are taken",
                         source.len, PATTERN_BYTES_MAX);
    enum { TRANSLATED_BYTES_MAX = 64 * PATTERN_BYTES_MAX };
    Buffer translated;
    buffer_init(&translated, TRANSLATED_BYTES_MAX);
    if (!pattern_translate_regex(source, &translated, err)) {
        buffer_reset(&translated);
        return false;
    }
    pcre2_general_context *general = pcre2_general_context_create(regex_allocate, regex_free, NULL);
    pcre2_compile_context *context = general ? pcre2_compile_context_create(general) : NULL;
    pcre2_code *code = NULL;
    int fault = PCRE2_ERROR_NOMEMORY;
    size_t offset = 0;
    if (context) {
        /* Oniguruma's Ruby syntax: ^ and $ are those of lines, and only \n ends a line. */
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        code = pcre2_compile((PCRE2_SPTR)(translated.ptr ? translated.ptr : ""), translated.len,
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                             &fault, &offset, context);
    }
    bool ok = code != NULL;
    if (ok)
        (void)pcre2_jit_compile(code,
                                PCRE2_JIT_COMPLETE); /* refused: the interpreter runs instead */
    else if (fault == PCRE2_ERROR_NOMEMORY || fault == PCRE2_ERROR_HEAP_FAILED)
        error_no_memory(err, "regex");
    else
        compile_error(err, fault, source);
    buffer_reset(&translated);
    pcre2_compile_context_free(context);
    pcre2_general_context_free(general);
    pattern->regex = code;
    return ok;
}

void pattern_reset(Pattern *pattern)
{
    memory_free(pattern->literal);
    pcre2_code_free(pattern->regex);
    *pattern = (Pattern){0};
}

static bool prepare_scratch(PatternScratch *scratch, Error *err)
{
    if (scratch->match_data)
        return true;
    pcre2_general_context *general = pcre2_general_context_create(regex_allocate, regex_free, NULL);
    if (!general)
        return error_no_memory(err, "regex");
    pcre2_match_data *data = pcre2_match_data_create(1, general);
    pcre2_match_context *context = pcre2_match_context_create(general);
    pcre2_jit_stack *stack = pcre2_jit_stack_create(32 << 10, PATTERN_STACK_BYTES_MAX, general);
    pcre2_general_context_free(general);
    scratch->match_data = data;
    scratch->match_context = context;
    scratch->jit_stack = stack;
    if (!data || !context) {
        pattern_scratch_reset(scratch);
        return error_no_memory(err, "regex");
    }
    pcre2_set_match_limit(context, PATTERN_MATCH_STEPS_MAX);
    pcre2_set_heap_limit(context, PATTERN_HEAP_KIB_MAX);
    if (stack)
        pcre2_jit_stack_assign(context, NULL, stack);
    return true;
}

void pattern_scratch_reset(PatternScratch *scratch)
{
    pcre2_jit_stack_free(scratch->jit_stack);
    pcre2_match_context_free(scratch->match_context);
    pcre2_match_data_free(scratch->match_data);
    *scratch = (PatternScratch){0};
}

static bool search_regex(const Pattern *pattern, PatternScratch *scratch, Slice text, size_t from,
                         PatternMatch *match, bool *found, Error *err)
{
    if (!prepare_scratch(scratch, err))
        return false;
    int rc = pcre2_match(pattern->regex, (PCRE2_SPTR)(text.ptr ? text.ptr : ""), text.len, from,
                         PCRE2_NO_UTF_CHECK, scratch->match_data, scratch->match_context);
    *found = rc >= 0;
    if (rc == PCRE2_ERROR_NOMATCH)
        return true;
    if (rc == PCRE2_ERROR_NOMEMORY)
        return error_no_memory(err, "regex");
    if (rc < 0)
        return error_set(err, ERROR_LIMIT,
                         "a regex of the tokenizer gave up on the text (PCRE2 error %d)", rc);
    const PCRE2_SIZE *offsets = pcre2_get_ovector_pointer(scratch->match_data);
    *match = (PatternMatch){offsets[0], offsets[1]};
    if (match->start > match->end || match->start < from)
        return error_set(err, ERROR_UNSUPPORTED,
                         "a regex of the tokenizer moves its match with \\K");
    return true;
}

static bool search_class(const Pattern *pattern, const UnicodeTable *unicode, Slice text,
                         size_t from, PatternMatch *match)
{
    uint32_t c;
    for (size_t at = from; at < text.len;) {
        size_t len = unicode_decode(text.ptr + at, &c);
        if (unicode_class(unicode, c) & pattern->classes) {
            *match = (PatternMatch){at, at + len};
            return true;
        }
        at += len;
    }
    return false;
}

static bool search(const Pattern *pattern, const UnicodeTable *unicode, PatternScratch *scratch,
                   Slice text, size_t from, PatternMatch *match, bool *found, Error *err)
{
    *found = false;
    switch (pattern->kind) {
    case PATTERN_LITERAL: {
        size_t at = slice_find(text, (Slice){pattern->literal, pattern->literal_len}, from);
        *found = at != SIZE_MAX;
        *match = (PatternMatch){at, at + pattern->literal_len};
        return true;
    }
    case PATTERN_CLASS:
        *found = search_class(pattern, unicode, text, from, match);
        return true;
    case PATTERN_SCANNER:
        *found = from < text.len;
        if (*found)
            *match = (PatternMatch){from, scanner_next(pattern->scanner, unicode, text, from)};
        return true;
    case PATTERN_REGEX:
        break;
    }
    return search_regex(pattern, scratch, text, from, match, found, err);
}

bool pattern_next(const Pattern *pattern, const UnicodeTable *unicode, PatternScratch *scratch,
                  Slice text, PatternWalk *walk, PatternMatch *match, bool *found, Error *err)
{
    for (;;) {
        *found = false;
        if (walk->at > text.len)
            return true;
        if (!search(pattern, unicode, scratch, text, walk->at, match, found, err))
            return false;
        if (!*found)
            return true;
        if (match->start < match->end || !walk->any || walk->last_end != match->end)
            break;
        walk->at += walk->at < text.len ? unicode_length(text.ptr[walk->at]) : 1;
    }
    walk->any = true;
    walk->at = walk->last_end = match->end;
    return true;
}
