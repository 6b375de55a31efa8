/* Source text to tokens, on demand.
 *
 * Outside of tags the lexer looks for the next "{{", "{%" or "{#" and applies the whitespace rules
 * to the text before it: `-` strips all of it at the end, `+` keeps it, and otherwise
 * (lstrip_blocks) blanks between a line's start and a block or comment go. After "%}" and "#}" one
 * newline goes (trim_blocks). Comments and raw markers yield no token. A closing "}}" or "%}"
 * counts only when all brackets are closed, so that `{{ {'a': {}} }}` works. */
#include "jinja_tree.h"

#include <string.h>
#include <utf8proc.h>

static bool lexer_fail(JinjaLexer *lexer, uint32_t line, const char *what)
{
    return error_set(lexer->err, ERROR_INVALID, "%s:%u: %s", lexer->name, line, what);
}

const char *jinja_token_name(JinjaTokenKind kind)
{
    static const char *const names[] = {
        [TOKEN_END] = "end of template",
        [TOKEN_TEXT] = "template data / text",
        [TOKEN_PRINT_BEGIN] = "begin of print statement",
        [TOKEN_PRINT_END] = "end of print statement",
        [TOKEN_BLOCK_BEGIN] = "begin of statement block",
        [TOKEN_BLOCK_END] = "end of statement block",
        [TOKEN_NAME] = "name",
        [TOKEN_STRING] = "string",
        [TOKEN_INTEGER] = "integer",
        [TOKEN_FLOAT] = "float",
        [TOKEN_ADD] = "+",
        [TOKEN_SUB] = "-",
        [TOKEN_MUL] = "*",
        [TOKEN_DIV] = "/",
        [TOKEN_FLOORDIV] = "//",
        [TOKEN_MOD] = "%",
        [TOKEN_POW] = "**",
        [TOKEN_TILDE] = "~",
        [TOKEN_LBRACKET] = "[",
        [TOKEN_RBRACKET] = "]",
        [TOKEN_LPAREN] = "(",
        [TOKEN_RPAREN] = ")",
        [TOKEN_LBRACE] = "{",
        [TOKEN_RBRACE] = "}",
        [TOKEN_EQ] = "==",
        [TOKEN_NE] = "!=",
        [TOKEN_GT] = ">",
        [TOKEN_GE] = ">=",
        [TOKEN_LT] = "<",
        [TOKEN_LE] = "<=",
        [TOKEN_IN] = "in",
        [TOKEN_NOT_IN] = "not in",
        [TOKEN_ASSIGN] = "=",
        [TOKEN_DOT] = ".",
        [TOKEN_COLON] = ":",
        [TOKEN_PIPE] = "|",
        [TOKEN_COMMA] = ",",
        [TOKEN_SEMICOLON] = ";",
    };
    return names[kind];
}

static char lexer_peek(const JinjaLexer *lexer, size_t ahead)
{
    size_t at = lexer->at + ahead;
    return at < lexer->source.len ? lexer->source.ptr[at] : '\0';
}

static bool lexer_sees(const JinjaLexer *lexer, size_t at, const char *text)
{
    size_t len = strlen(text);
    return lexer->source.len - at >= len && memcmp(lexer->source.ptr + at, text, len) == 0;
}

/* Moves to `to`, counting lines. */
static void lexer_move(JinjaLexer *lexer, size_t to)
{
    for (size_t i = lexer->at; i < to; i++)
        lexer->line += lexer->source.ptr[i] == '\n';
    lexer->at = to;
}

static size_t skip_space(Slice source, size_t at)
{
    size_t len;
    while (at < source.len && jinja_is_space(jinja_text_at(source, at, &len)))
        at += len;
    return at;
}

/* ---- Text between tags ---- */

static Slice strip_right(Slice text)
{
    size_t len;
    while (text.len > 0) {
        size_t start = text.len - 1;
        while (start > 0 && ((unsigned char)text.ptr[start] & 0xC0) == 0x80)
            start--;
        if (!jinja_is_space(jinja_text_at(text, start, &len)))
            break;
        text.len = start;
    }
    return text;
}

/* The text before a tag at `end`, whose sign ('-', '+' or anything else) stands in the source. */
static Slice text_before_tag(const JinjaLexer *lexer, size_t end, char sign, bool is_print)
{
    Slice text = {lexer->source.ptr + lexer->at, end - lexer->at};
    if (sign == '-')
        return strip_right(text);
    if (sign == '+' || is_print)
        return text;
    size_t line_start = text.len;
    while (line_start > 0 && text.ptr[line_start - 1] != '\n')
        line_start--;
    bool at_line_start =
        line_start > 0 || lexer->at == 0 || lexer->source.ptr[lexer->at - 1] == '\n';
    if (at_line_start && skip_space(text, line_start) == text.len)
        text.len = line_start;
    return text;
}

/* End of a closing marker at `at` ("%}" or "#}" with its sign and what it swallows), or SIZE_MAX.
 */
static size_t closing_end(const JinjaLexer *lexer, size_t at, const char *marker, bool trims)
{
    Slice source = lexer->source;
    char sign = at < source.len ? source.ptr[at] : '\0';
    size_t after = at + (sign == '-' || (sign == '+' && trims));
    if (!lexer_sees(lexer, after, marker))
        return SIZE_MAX;
    after += 2;
    if (sign == '-')
        return skip_space(source, after);
    if (sign != '+' && trims && after < source.len && source.ptr[after] == '\n')
        after++;
    return after;
}

/* Where "{% raw %}" or "{% endraw %}" beginning at `at` ends, before its closing marker; SIZE_MAX
 * when the tag there is another. */
static size_t match_word_tag(const JinjaLexer *lexer, size_t at, const char *word)
{
    if (!lexer_sees(lexer, at, "{%"))
        return SIZE_MAX;
    at += 2;
    if (at < lexer->source.len && (lexer->source.ptr[at] == '-' || lexer->source.ptr[at] == '+'))
        at++;
    at = skip_space(lexer->source, at);
    if (!lexer_sees(lexer, at, word))
        return SIZE_MAX;
    return skip_space(lexer->source, at + strlen(word));
}

static char tag_sign(const JinjaLexer *lexer, size_t tag)
{
    return tag + 2 < lexer->source.len ? lexer->source.ptr[tag + 2] : '\0';
}

/* After "{% raw %}": the body is one text token up to "{% endraw %}". jinja2 takes a source that
 * ends directly behind an opening {% raw %} or {# as complete. */
static bool lex_raw_body(JinjaLexer *lexer, JinjaToken *out)
{
    uint32_t line = lexer->line;
    for (size_t at = lexer->at; at < lexer->source.len; at++) {
        if (lexer->source.ptr[at] != '{')
            continue;
        size_t word_end = match_word_tag(lexer, at, "endraw");
        size_t end = word_end == SIZE_MAX ? SIZE_MAX : closing_end(lexer, word_end, "%}", true);
        if (end == SIZE_MAX)
            continue;
        *out = (JinjaToken){.kind = TOKEN_TEXT, .line = line};
        out->text = text_before_tag(lexer, at, tag_sign(lexer, at), false);
        lexer_move(lexer, end);
        return true;
    }
    *out = (JinjaToken){.kind = TOKEN_END, .line = line};
    return lexer->at == lexer->source.len ||
           lexer_fail(lexer, line, "Missing end of raw directive");
}

static bool skip_comment(JinjaLexer *lexer)
{
    uint32_t line = lexer->line;
    for (size_t at = lexer->at; at < lexer->source.len; at++) {
        size_t end = closing_end(lexer, at, "#}", true);
        if (end != SIZE_MAX) {
            lexer_move(lexer, end);
            return true;
        }
    }
    return lexer->at == lexer->source.len || lexer_fail(lexer, line, "Missing end of comment tag");
}

/* Finds the next tag; SIZE_MAX at the end of the source. */
static size_t find_tag(const JinjaLexer *lexer)
{
    Slice source = lexer->source;
    for (size_t at = lexer->at; at + 1 < source.len; at++) {
        const char *brace = memchr(source.ptr + at, '{', source.len - 1 - at);
        if (!brace)
            return SIZE_MAX;
        at = (size_t)(brace - source.ptr);
        if (brace[1] == '{' || brace[1] == '%' || brace[1] == '#')
            return at;
    }
    return SIZE_MAX;
}

/* Steps over a tag's opening marker; *skipped tells that it was a comment or a raw marker. */
static bool open_tag(JinjaLexer *lexer, size_t tag, bool *is_raw, bool *is_comment)
{
    *is_raw = *is_comment = false;
    char kind = lexer->source.ptr[tag + 1];
    char sign = tag_sign(lexer, tag);
    size_t after = tag + 2 + (sign == '-' || sign == '+');
    if (kind == '%') {
        size_t word_end = match_word_tag(lexer, tag, "raw");
        size_t end = word_end == SIZE_MAX ? SIZE_MAX : closing_end(lexer, word_end, "%}", false);
        *is_raw = end != SIZE_MAX;
        lexer_move(lexer, *is_raw ? end : after);
        lexer->mode = *is_raw ? LEXER_TEXT : LEXER_BLOCK;
        return true;
    }
    lexer_move(lexer, after);
    *is_comment = kind == '#';
    if (*is_comment)
        return skip_comment(lexer);
    lexer->mode = LEXER_PRINT;
    return true;
}

/* In text mode: a TEXT token if there is text, else the token that opens the next tag. */
static bool lex_text(JinjaLexer *lexer, JinjaToken *out)
{
    for (;;) {
        uint32_t line = lexer->line;
        size_t tag = find_tag(lexer);
        if (tag == SIZE_MAX) {
            Slice rest = {lexer->source.ptr + lexer->at, lexer->source.len - lexer->at};
            *out =
                (JinjaToken){.kind = rest.len ? TOKEN_TEXT : TOKEN_END, .line = line, .text = rest};
            lexer_move(lexer, lexer->source.len);
            return true;
        }
        bool is_print = lexer->source.ptr[tag + 1] == '{';
        Slice text = text_before_tag(lexer, tag, tag_sign(lexer, tag), is_print);
        lexer_move(lexer, tag);
        if (text.len > 0) {
            /* The tag is found again by the next call, with no text before it. */
            *out = (JinjaToken){.kind = TOKEN_TEXT, .line = line, .text = text};
            return true;
        }
        line = lexer->line;
        bool is_raw, is_comment;
        if (!open_tag(lexer, tag, &is_raw, &is_comment))
            return false;
        if (is_raw)
            return lex_raw_body(lexer, out);
        if (!is_comment) {
            *out = (JinjaToken){.kind = is_print ? TOKEN_PRINT_BEGIN : TOKEN_BLOCK_BEGIN,
                                .line = line};
            return true;
        }
    }
}

/* ---- Inside tags ---- */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int digit_value(char c)
{
    if (is_digit(c))
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return 99;
}

/* Digits of a base at `at`, single underscores between them allowed; returns where they end. */
static size_t skip_digits(Slice source, size_t at, int base)
{
    size_t end = at;
    for (;;) {
        size_t next = end + (end > at && end < source.len && source.ptr[end] == '_');
        if (next >= source.len || digit_value(source.ptr[next]) >= base)
            return end;
        end = next + 1;
    }
}

static bool parse_integer(JinjaLexer *lexer, size_t end, int base, JinjaToken *out)
{
    uint64_t value = 0;
    for (size_t i = lexer->at; i < end; i++) {
        char c = lexer->source.ptr[i];
        if (c == '_')
            continue;
        uint64_t digit = (uint64_t)digit_value(c);
        if (value > ((uint64_t)INT64_MAX - digit) / (uint64_t)base)
            return lexer_fail(lexer, lexer->line, "integer literal exceeds 64 bits");
        value = value * (uint64_t)base + digit;
    }
    out->kind = TOKEN_INTEGER;
    out->as.integer = (int64_t)value;
    lexer_move(lexer, end);
    return true;
}

/* The literal without underscores and leading zeros, read by the json room. */
static bool parse_float(JinjaLexer *lexer, size_t end, JinjaToken *out)
{
    char *text = arena_allocate(lexer->arena, end - lexer->at + 1);
    if (!text)
        return error_no_memory(lexer->err, "template");
    size_t len = 0;
    for (size_t i = lexer->at; i < end; i++) {
        if (lexer->source.ptr[i] == '_')
            continue;
        if (len == 1 && text[0] == '0' && is_digit(lexer->source.ptr[i]))
            len = 0;
        text[len++] = lexer->source.ptr[i];
    }
    JsonReader reader;
    json_reader_init(&reader, (Slice){text, len}, lexer->err);
    if (json_reader_next(&reader) != JSON_TOKEN_NUMBER)
        return lexer_fail(lexer, lexer->line, "malformed number");
    JsonValue value = json_reader_number(&reader);
    out->kind = TOKEN_FLOAT;
    out->as.number = json_to_double(&value);
    lexer_move(lexer, end);
    return true;
}

static bool lex_number(JinjaLexer *lexer, JinjaToken *out)
{
    Slice source = lexer->source;
    size_t at = lexer->at;
    /* After a dot (`a.0.1`) digits are an index, never the start of a float. */
    bool after_dot = at > 0 && source.ptr[at - 1] == '.';
    size_t end = skip_digits(source, at, 10), integer_end = end;
    bool is_float = false;
    if (end + 1 < source.len && source.ptr[end] == '.' && is_digit(source.ptr[end + 1])) {
        end = skip_digits(source, end + 1, 10);
        is_float = true;
    }
    if (end < source.len && (source.ptr[end] == 'e' || source.ptr[end] == 'E')) {
        size_t exponent = end + 1;
        if (exponent < source.len && (source.ptr[exponent] == '+' || source.ptr[exponent] == '-'))
            exponent++;
        if (exponent < source.len && is_digit(source.ptr[exponent])) {
            end = skip_digits(source, exponent, 10);
            is_float = true;
        }
    }
    if (is_float && !after_dot)
        return parse_float(lexer, end, out);
    if (source.ptr[at] != '0')
        return parse_integer(lexer, integer_end, 10, out);
    char letter = lexer_peek(lexer, 1);
    int base = letter == 'x' || letter == 'X'   ? 16
               : letter == 'o' || letter == 'O' ? 8
               : letter == 'b' || letter == 'B' ? 2
                                                : 0;
    size_t digits = at + 2 + (base != 0 && lexer_peek(lexer, 2) == '_');
    if (base != 0 && skip_digits(source, digits, base) > digits) {
        lexer->at = digits;
        return parse_integer(lexer, skip_digits(source, digits, base), base, out);
    }
    return parse_integer(lexer, skip_digits(source, at, 1), 10, out); /* zeros only */
}

/* Value of count hexadecimal digits, or UINT32_MAX. */
static uint32_t read_hex(Slice text, size_t at, size_t count)
{
    uint32_t value = 0;
    for (size_t i = 0; i < count; i++) {
        int digit = at + i < text.len ? digit_value(text.ptr[at + i]) : 99;
        if (digit > 15)
            return UINT32_MAX;
        value = value * 16 + (uint32_t)digit;
    }
    return value;
}

/* One escape at text[at] (after the backslash); returns the bytes consumed, 0 when malformed. */
static size_t read_escape(Slice text, size_t at, uint32_t *code_point)
{
    static const char letters[] = "abfnrtv\\'\"";
    static const char values[] = "\a\b\f\n\r\t\v\\'\"";
    char c = text.ptr[at];
    const char *known = c ? strchr(letters, c) : NULL;
    if (known) {
        *code_point = (unsigned char)values[known - letters];
        return 1;
    }
    if (c >= '0' && c <= '7') {
        size_t len = 0;
        *code_point = 0;
        while (len < 3 && at + len < text.len && digit_value(text.ptr[at + len]) < 8)
            *code_point = *code_point * 8 + (uint32_t)digit_value(text.ptr[at + len++]);
        return len;
    }
    size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
    *code_point = read_hex(text, at + 1, digits);
    return *code_point > 0x10FFFF ? 0 : 1 + digits;
}

/* Joins a \ud83d\ude00 pair; a lone surrogate cannot be text and becomes U+FFFD. */
static uint32_t join_surrogates(Slice text, size_t *at, uint32_t code_point)
{
    if (code_point < 0xD800 || code_point > 0xDFFF)
        return code_point;
    if (code_point < 0xDC00 && *at + 1 < text.len && text.ptr[*at] == '\\' &&
        text.ptr[*at + 1] == 'u') {
        uint32_t low = read_hex(text, *at + 2, 4);
        if (low >= 0xDC00 && low <= 0xDFFF) {
            *at += 6;
            return 0x10000 + ((code_point - 0xD800) << 10) + (low - 0xDC00);
        }
    }
    return 0xFFFD;
}

/* Resolves backslash escapes as Python's "unicode-escape" does: an unknown escape stays as it is.
 */
static bool unescape(JinjaLexer *lexer, Slice text, Slice *out)
{
    char *to = arena_allocate(lexer->arena, text.len + 1);
    if (!to)
        return error_no_memory(lexer->err, "template");
    size_t len = 0;
    for (size_t at = 0; at < text.len;) {
        if (text.ptr[at] != '\\') {
            to[len++] = text.ptr[at++];
            continue;
        }
        char next = text.ptr[++at]; /* a backslash is never last: it would have escaped the quote */
        if (next == '\n') {
            at++;
        } else if (next != '\0' && strchr("abfnrtv\\'\"01234567xuU", next)) {
            uint32_t code_point;
            size_t used = read_escape(text, at, &code_point);
            if (used == 0)
                return lexer_fail(lexer, lexer->line, "malformed escape in string literal");
            at += used;
            /* The shortest escape of an n-byte character has at least n bytes. */
            len += utf8_encode(join_surrogates(text, &at, code_point), to + len);
        } else if (next == 'N') {
            return lexer_fail(lexer, lexer->line, "\\N{...} escapes are not supported");
        } else {
            to[len++] = '\\';
        }
    }
    *out = (Slice){to, len};
    return true;
}

static bool lex_string(JinjaLexer *lexer, JinjaToken *out)
{
    Slice source = lexer->source;
    char quote = source.ptr[lexer->at];
    size_t start = lexer->at + 1, end = start;
    bool has_escapes = false;
    while (end < source.len && source.ptr[end] != quote) {
        if (source.ptr[end] == '\\') {
            has_escapes = true;
            end++;
        }
        end++;
    }
    if (end >= source.len)
        return lexer_fail(lexer, lexer->line, "unterminated string literal");
    Slice text = {source.ptr + start, end - start};
    out->kind = TOKEN_STRING;
    out->text = text;
    if (has_escapes && !unescape(lexer, text, &out->text))
        return false;
    lexer_move(lexer, end + 1);
    return true;
}

static bool is_name_character(uint32_t c)
{
    if (c < 0x80)
        return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
               (c >= 'A' && c <= 'Z');
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NO;
}

static size_t skip_name(Slice source, size_t at)
{
    size_t len;
    while (at < source.len && is_name_character(jinja_text_at(source, at, &len)))
        at += len;
    return at;
}

static bool close_bracket(JinjaLexer *lexer, char c)
{
    char expected = lexer->bracket_count ? lexer->brackets[lexer->bracket_count - 1] : '\0';
    if (expected == c) {
        lexer->bracket_count--;
        return true;
    }
    char message[64] = "unexpected ' '";
    message[12] = c;
    if (expected) {
        memcpy(message + 14, ", expected ' '", 15);
        message[26] = expected;
    }
    return lexer_fail(lexer, lexer->line, message);
}

static bool track_bracket(JinjaLexer *lexer, char c)
{
    if (c == ')' || c == ']' || c == '}')
        return close_bracket(lexer, c);
    if (c != '(' && c != '[' && c != '{')
        return true;
    if (lexer->bracket_count == JINJA_BRACKETS_MAX)
        return error_set(lexer->err, ERROR_LIMIT, "%s:%u: brackets nest deeper than %d",
                         lexer->name, lexer->line, JINJA_BRACKETS_MAX);
    lexer->brackets[lexer->bracket_count++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    return true;
}

static bool lex_operator(JinjaLexer *lexer, JinjaToken *out)
{
    static const struct {
        char text[3];
        JinjaTokenKind kind;
    } operators[] = {
        {"//", TOKEN_FLOORDIV}, {"**", TOKEN_POW},     {"==", TOKEN_EQ},    {"!=", TOKEN_NE},
        {">=", TOKEN_GE},       {"<=", TOKEN_LE},      {"+", TOKEN_ADD},    {"-", TOKEN_SUB},
        {"/", TOKEN_DIV},       {"*", TOKEN_MUL},      {"%", TOKEN_MOD},    {"~", TOKEN_TILDE},
        {"[", TOKEN_LBRACKET},  {"]", TOKEN_RBRACKET}, {"(", TOKEN_LPAREN}, {")", TOKEN_RPAREN},
        {"{", TOKEN_LBRACE},    {"}", TOKEN_RBRACE},   {">", TOKEN_GT},     {"<", TOKEN_LT},
        {"=", TOKEN_ASSIGN},    {".", TOKEN_DOT},      {":", TOKEN_COLON},  {"|", TOKEN_PIPE},
        {",", TOKEN_COMMA},     {";", TOKEN_SEMICOLON}};
    for (size_t i = 0; i < ARRAY_COUNT(operators); i++) {
        if (!lexer_sees(lexer, lexer->at, operators[i].text))
            continue;
        size_t len = strlen(operators[i].text);
        out->kind = operators[i].kind;
        out->text = (Slice){lexer->source.ptr + lexer->at, len};
        if (len == 1 && !track_bracket(lexer, operators[i].text[0]))
            return false;
        lexer->at += len;
        return true;
    }
    size_t len = 1;
    if (lexer->at < lexer->source.len)
        jinja_text_at(lexer->source, lexer->at, &len);
    return error_set(lexer->err, ERROR_INVALID, "%s:%u: unexpected char '%.*s'", lexer->name,
                     lexer->line, (int)len, lexer->source.ptr + lexer->at);
}

static bool lex_tag(JinjaLexer *lexer, JinjaToken *out)
{
    Slice source = lexer->source;
    for (;;) {
        bool is_print = lexer->mode == LEXER_PRINT;
        size_t end = lexer->bracket_count
                         ? SIZE_MAX
                         : closing_end(lexer, lexer->at, is_print ? "}}" : "%}", !is_print);
        if (end != SIZE_MAX) {
            *out = (JinjaToken){.kind = is_print ? TOKEN_PRINT_END : TOKEN_BLOCK_END,
                                .line = lexer->line};
            lexer_move(lexer, end);
            lexer->mode = LEXER_TEXT;
            return true;
        }
        size_t after = skip_space(source, lexer->at);
        if (after == lexer->at)
            break;
        lexer_move(lexer, after);
    }
    *out = (JinjaToken){.line = lexer->line};
    if (lexer->at >= source.len)
        return true; /* TOKEN_END: the parser says what it expected */
    char c = source.ptr[lexer->at];
    if (is_digit(c))
        return lex_number(lexer, out);
    if (c == '\'' || c == '"')
        return lex_string(lexer, out);
    size_t name_end = skip_name(source, lexer->at);
    if (name_end > lexer->at) {
        out->kind = TOKEN_NAME;
        out->text = (Slice){source.ptr + lexer->at, name_end - lexer->at};
        lexer->at = name_end;
        return true;
    }
    return lex_operator(lexer, out);
}

bool jinja_lexer_next(JinjaLexer *lexer, JinjaToken *out)
{
    return lexer->mode == LEXER_TEXT ? lex_text(lexer, out) : lex_tag(lexer, out);
}
