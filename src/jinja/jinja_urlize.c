/* The filter urlize: links around what looks like a URL or a mail address, as jinja2 recognises
 * them.
 *
 * The escaped text is cut at white space. Of each word, opening brackets in front and closing
 * brackets and punctuation behind stay outside of the link, except closing brackets that something
 * inside opened. The rest is matched by hand in one pass: no pattern here can backtrack. */
#include "jinja_filters.h"

#include <string.h>

typedef struct LinkStyle {
    int64_t trim; /* code points of a URL that are shown; INT64_MAX = all */
    Slice attributes;
    const JinjaList *schemes; /* more prefixes that make a link; may be NULL */
    size_t scheme_bytes;
} LinkStyle;

/* ---- Recognising ---- */

static bool starts_with_letters(Slice text, const char *lower)
{
    size_t len = strlen(lower);
    if (text.len < len)
        return false;
    for (size_t i = 0; i < len; i++) {
        char c = text.ptr[i];
        if ((c >= 'A' && c <= 'Z' ? c | 0x20 : c) != lower[i])
            return false;
    }
    return true;
}

static Slice skip(Slice text, size_t bytes)
{
    return (Slice){text.ptr + bytes, text.len - bytes};
}

/* Between min and max code points, all of which satisfy is. */
static bool is_run_of(Slice text, size_t min, size_t max, bool (*is)(uint32_t))
{
    size_t count = 0, len;
    for (size_t at = 0; at < text.len; at += len, count++) {
        if (!is(jinja_text_at(text, at, &len)))
            return false;
    }
    return count >= min && count <= max;
}

/* a-z without regard to case, which takes in two signs that fold to letters and Turkish i's. */
static bool is_tld_letter(uint32_t c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == 0x130 || c == 0x131 ||
           c == 0x17F || c == 0x212A;
}

static bool is_word_or_percent(uint32_t c)
{
    return c == '%' || jinja_is_word(c);
}

static bool is_host_character(uint32_t c)
{
    return c == '-' || is_word_or_percent(c);
}

/* The part of host before its first dot; *host moves behind the dot. false when there is none. */
static bool take_label(Slice *host, Slice *label)
{
    const char *dot = host->len ? memchr(host->ptr, '.', host->len) : NULL;
    if (!dot)
        return false;
    *label = (Slice){host->ptr, (size_t)(dot - host->ptr)};
    *host = skip(*host, label->len + 1);
    return true;
}

/* Behind a scheme or www.: any labels, then letters or an international name. */
static bool is_host(Slice host)
{
    enum { TLD_MIN = 2, TLD_MAX = 63, IDNA_MAX = 59 };
    Slice label;
    while (take_label(&host, &label)) {
        if (!is_run_of(label, 1, SIZE_MAX, is_host_character))
            return false;
    }
    return is_run_of(host, TLD_MIN, TLD_MAX, is_tld_letter) ||
           (starts_with_letters(host, "xn--") &&
            is_run_of(skip(host, 4), TLD_MIN, IDNA_MAX, is_word_or_percent));
}

/* Without a scheme: only names under a few old top level domains. */
static bool is_bare_domain(Slice host)
{
    enum { LABEL_MIN = 2, LABEL_MAX = 63 };
    static const char *const domains[] = {"com", "net", "int", "edu", "gov", "org", "info", "mil"};
    Slice label;
    bool any = false;
    for (; take_label(&host, &label); any = true) {
        if (!is_run_of(label, LABEL_MIN, LABEL_MAX, is_host_character))
            return false;
    }
    for (size_t i = 0; any && i < ARRAY_COUNT(domains); i++) {
        if (host.len == strlen(domains[i]) && starts_with_letters(host, domains[i]))
            return true;
    }
    return false;
}

static bool is_ipv4(Slice host)
{
    Slice label;
    for (size_t i = 0; i < 3; i++) {
        if (!take_label(&host, &label) || !is_run_of(label, 1, 3, jinja_is_decimal))
            return false;
    }
    return is_run_of(host, 1, 3, jinja_is_decimal);
}

static bool is_hex_digit(uint32_t c)
{
    return (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F') || jinja_is_decimal(c);
}

/* Bytes of up to four hexadecimal digits and, if there, a colon behind them. */
static size_t hex_group(Slice text, bool *colon)
{
    size_t at = 0, len;
    for (size_t i = 0; i < 4 && at < text.len && is_hex_digit(jinja_text_at(text, at, &len)); i++)
        at += len;
    *colon = at < text.len && text.ptr[at] == ':';
    return at + *colon;
}

/* [ two groups with colons, then one to six whose colons may lack ] */
static bool is_ipv6(Slice inside)
{
    bool colon;
    for (size_t i = 0; i < 2; i++) {
        inside = skip(inside, hex_group(inside, &colon));
        if (!colon)
            return false;
    }
    for (size_t i = 0; i < 6; i++)
        inside = skip(inside, hex_group(inside, &colon));
    return inside.len == 0;
}

/* Nothing, or :port, and then nothing or a path, query or fragment. */
static bool is_port_and_path(Slice rest)
{
    if (rest.len > 0 && rest.ptr[0] == ':') {
        size_t at = 1, count = 0, len;
        for (; count < 5 && at < rest.len && jinja_is_decimal(jinja_text_at(rest, at, &len));
             count++)
            at += len;
        if (count == 0)
            return false;
        rest = skip(rest, at);
    }
    return rest.len == 0 || rest.ptr[0] == '/' || rest.ptr[0] == '?' || rest.ptr[0] == '#';
}

static bool is_url(Slice word)
{
    size_t scheme = starts_with_letters(word, "https://")  ? 8
                    : starts_with_letters(word, "http://") ? 7
                                                           : 0;
    Slice rest = skip(word, scheme);
    if (scheme > 0 && rest.len > 0 && rest.ptr[0] == '[') {
        const char *close = memchr(rest.ptr, ']', rest.len);
        size_t len = close ? (size_t)(close - rest.ptr) : 0;
        return close && is_ipv6((Slice){rest.ptr + 1, len - 1}) &&
               is_port_and_path(skip(rest, len + 1));
    }
    size_t end = 0;
    while (end < rest.len && rest.ptr[end] && !strchr(":/?#", rest.ptr[end]))
        end++;
    Slice host = {rest.ptr, end};
    bool www = scheme == 0 && starts_with_letters(host, "www.");
    bool known = (scheme > 0 && (is_host(host) || is_ipv4(host))) ||
                 (www && is_host(skip(host, 4))) || (scheme == 0 && is_bare_domain(host));
    return known && is_port_and_path(skip(rest, end));
}

/* something@name.name: the last @ counts, and letters, digits and _ behind the last dot. */
static bool is_address(Slice word)
{
    size_t at = word.len, len, dot = SIZE_MAX;
    while (at > 0 && word.ptr[at - 1] != '@')
        at--;
    if (at < 2)
        return false;
    Slice domain = skip(word, at);
    for (size_t i = 0; i < domain.len; i += len) {
        uint32_t c = jinja_text_at(domain, i, &len);
        if (!jinja_is_word(c) && (i == 0 || (c != '.' && c != '-')))
            return false;
        dot = c == '.' ? i : dot;
    }
    return dot != SIZE_MAX && is_run_of(skip(domain, dot + 1), 1, SIZE_MAX, jinja_is_word);
}

/* ---- Brackets around a word ---- */

static size_t count_of(Slice text, const char *what)
{
    size_t len = strlen(what), count = 0;
    for (size_t at = 0; at + len <= text.len;) {
        bool here = memcmp(text.ptr + at, what, len) == 0;
        count += here;
        at += here ? len : 1;
    }
    return count;
}

/* Length of the opening brackets at the start. */
static size_t head_length(Slice word)
{
    size_t at = 0;
    for (;;) {
        if (at < word.len && (word.ptr[at] == '(' || word.ptr[at] == '<'))
            at++;
        else if (slice_starts_with(skip(word, at), SLICE("&lt;")))
            at += 4;
        else
            return at;
    }
}

/* Length without the closing brackets and punctuation at the end. */
static size_t length_before_tail(Slice word)
{
    for (;;) {
        if (word.len > 0 && strchr(")>.,\n", word.ptr[word.len - 1]) && word.ptr[word.len - 1])
            word.len--;
        else if (slice_ends_with(word, SLICE("&gt;")))
            word.len -= 4;
        else
            return word.len;
    }
}

/* Takes closing brackets back out of the tail that something in the middle opens. */
static void balance(Slice *middle, Slice *tail)
{
    static const char *const pairs[][2] = {{"(", ")"}, {"<", ">"}, {"&lt;", "&gt;"}};
    for (size_t i = 0; i < ARRAY_COUNT(pairs); i++) {
        const char *end = pairs[i][1];
        size_t opened = count_of(*middle, pairs[i][0]), length = strlen(end);
        if (opened <= count_of(*middle, end))
            continue;
        size_t closing = count_of(*tail, end);
        for (size_t n = opened < closing ? opened : closing; n > 0; n--) {
            size_t at = 0;
            while (memcmp(tail->ptr + at, end, length) != 0)
                at++;
            middle->len += at + length;
            *tail = skip(*tail, at + length);
        }
    }
}

/* ---- Writing ---- */

static void append_shown(Buffer *out, const LinkStyle *style, Slice url)
{
    int64_t count = (int64_t)utf8_count(url), shown = style->trim;
    if (count <= shown) {
        buffer_append_slice(out, url);
        return;
    }
    shown = shown < 0 ? count + shown : shown; /* a negative limit counts from the end */
    url.len = shown > 0 ? jinja_text_offset(url, (size_t)shown) : 0;
    buffer_append_slice(out, url);
    buffer_append_text(out, "...");
}

static void append_link(Buffer *out, const LinkStyle *style, const char *prefix, Slice target)
{
    buffer_append_text(out, "<a href=\"");
    buffer_append_text(out, prefix);
    buffer_append_slice(out, target);
    buffer_append_byte(out, '"');
    buffer_append_slice(out, style->attributes);
    buffer_append_byte(out, '>');
}

static bool has_more_scheme(const LinkStyle *style, Slice word)
{
    for (size_t i = 0; style->schemes && i < style->schemes->count; i++) {
        Slice scheme = style->schemes->items[i].as.string;
        if (word.len > scheme.len && slice_starts_with(word, scheme))
            return true;
    }
    return false;
}

static void append_middle(Buffer *out, const LinkStyle *style, Slice word)
{
    const LinkStyle plain = {.trim = INT64_MAX};
    Slice shown = word;
    if (is_url(word)) {
        bool scheme =
            slice_starts_with(word, SLICE("https://")) || slice_starts_with(word, SLICE("http://"));
        append_link(out, style, scheme ? "" : "https://", word);
        append_shown(out, style, word);
        buffer_append_text(out, "</a>");
        return;
    }
    bool mailto = slice_starts_with(word, SLICE("mailto:"));
    if (mailto && is_address(skip(word, 7))) {
        append_link(out, &plain, "", word);
        shown = skip(word, 7);
    } else if (!slice_starts_with(word, SLICE("www.")) && !slice_starts_with(word, SLICE("@")) &&
               !(word.len > 0 && memchr(word.ptr, ':', word.len)) && is_address(word)) {
        append_link(out, &plain, "mailto:", word);
    } else if (has_more_scheme(style, word)) {
        append_link(out, style, "", word);
    } else {
        buffer_append_slice(out, word);
        return;
    }
    buffer_append_slice(out, shown);
    buffer_append_text(out, "</a>");
}

static bool append_words(JinjaMachine *m, const LinkStyle *style, Slice text)
{
    size_t len;
    for (size_t at = 0; at < text.len;) {
        size_t end = at;
        while (end < text.len && !jinja_is_space(jinja_text_at(text, end, &len)))
            end += len;
        Slice word = {text.ptr + at, end - at};
        size_t head = head_length(word);
        Slice middle = skip(word, head), tail;
        middle.len = length_before_tail(middle);
        tail = skip(word, head + middle.len);
        buffer_append(&m->text, word.ptr, head);
        balance(&middle, &tail);
        append_middle(&m->text, style, middle);
        buffer_append_slice(&m->text, tail);
        for (at = end; at < text.len && jinja_is_space(jinja_text_at(text, at, &len)); at += len)
            buffer_append(&m->text, text.ptr + at, len);
        size_t schemes = style->schemes ? style->schemes->count + style->scheme_bytes / 64 : 0;
        if (!jinja_charge(m, 1 + schemes + word.len / 4 + style->attributes.len / 64))
            return false;
    }
    return true;
}

/* ---- Arguments ---- */

static bool add_token(JinjaMachine *m, JinjaList *tokens, Slice token)
{
    JinjaValue value = jinja_string(token);
    size_t at = 0;
    for (; at < tokens->count; at++) {
        int order;
        if (!jinja_compare(m, &tokens->items[at], &value, "<", &order))
            return false;
        if (order == 0)
            return true;
        if (order > 0)
            break;
    }
    if (!jinja_list_append(m, tokens, &value))
        return false;
    for (size_t i = tokens->count - 1; i > at; i--)
        tokens->items[i] = tokens->items[i - 1];
    tokens->items[at] = value;
    return true;
}

/* rel="..." of sorted words, always with noopener; then target="...". */
static bool make_attributes(JinjaMachine *m, Slice rel, bool nofollow, Slice target, Slice *out)
{
    JinjaValue tokens, made;
    size_t len;
    if (!jinja_list_new(m, JINJA_LIST, 4, &tokens) ||
        !add_token(m, tokens.as.list, SLICE("noopener")) ||
        (nofollow && !add_token(m, tokens.as.list, SLICE("nofollow"))))
        return false;
    for (size_t at = 0; at < rel.len;) {
        size_t end = at;
        while (end < rel.len && !jinja_is_space(jinja_text_at(rel, end, &len)))
            end += len;
        if (end > at && !add_token(m, tokens.as.list, (Slice){rel.ptr + at, end - at}))
            return false;
        at = end;
        if (at < rel.len) {
            jinja_text_at(rel, at, &len);
            at += len;
        }
    }
    size_t mark = m->text.len;
    for (size_t i = 0; i < tokens.as.list->count; i++) {
        buffer_append_text(&m->text, i == 0 ? " rel=\"" : " ");
        if (!jinja_append_escaped(m, &m->text, tokens.as.list->items[i].as.string))
            return false;
    }
    buffer_append_byte(&m->text, '"');
    if (target.len > 0) {
        buffer_append_text(&m->text, " target=\"");
        if (!jinja_append_escaped(m, &m->text, target))
            return false;
        buffer_append_byte(&m->text, '"');
    }
    if (!jinja_text_finish(m, mark, &made))
        return false;
    *out = made.as.string;
    return true;
}

static bool is_scheme_character(uint32_t c)
{
    return c == '.' || c == '+' || c == '-' || jinja_is_word(c);
}

/* name: with up to two slashes behind */
static bool read_schemes(JinjaMachine *m, const JinjaValue *value, LinkStyle *style)
{
    JinjaValue list;
    if (value->kind == JINJA_ABSENT || value->kind == JINJA_NONE)
        return true;
    if (!jinja_to_list(m, value, &list))
        return false;
    for (size_t i = 0; i < list.as.list->count; i++) {
        const JinjaValue *item = &list.as.list->items[i];
        if (item->kind != JINJA_STRING)
            return jinja_fail(m, "urlize: a scheme must be str, not %s", jinja_type_name(item));
        Slice name = item->as.string;
        style->scheme_bytes += name.len;
        for (size_t slashes = 0; slashes < 2 && slice_ends_with(name, SLICE("/")); slashes++)
            name.len--;
        bool colon = slice_ends_with(name, SLICE(":"));
        name.len -= colon;
        if (!colon || !is_run_of(name, 2, SIZE_MAX, is_scheme_character))
            return jinja_fail(m, "'%.*s' is not a valid URI scheme prefix.",
                              SLICE_ARG(item->as.string));
    }
    style->schemes = list.as.list;
    return true;
}

/* urlize(trim_url_limit, nofollow, target, rel, extra_schemes) */
bool jinja_filter_urlize(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    LinkStyle style = {.trim = INT64_MAX};
    Slice target, rel, text;
    JinjaValue escaped;
    if (!jinja_arg_integer(m, call, 0, INT64_MAX, &style.trim) ||
        !jinja_arg_string(m, call, 2, SLICE(""), &target) ||
        !jinja_arg_string(m, call, 3, SLICE(""), &rel) ||
        !make_attributes(m, rel, jinja_arg_truth(call, 1, false), target, &style.attributes) ||
        !read_schemes(m, &call->args[4], &style) || !jinja_to_markup(m, &call->self, &escaped))
        return false;
    text = escaped.as.string;
    size_t mark = m->text.len;
    if (!append_words(m, &style, text) || !jinja_text_finish(m, mark, out))
        return false;
    out->detail = m->autoescape;
    return true;
}
