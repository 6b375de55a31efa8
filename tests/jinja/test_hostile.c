/* Templates that try to take all time, memory or stack: each ends soon, with a limit's message.
 *
 * The limit on steps is what bounds time, so every built-in has to charge for what it does; each
 * case here repeats one that works on large values as often as the limit allows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "jinja.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

enum {
    STEPS_MAX = JINJA_STEPS_MAX / 5, /* what the time below is for */
    SECONDS_MAX = 8,    /* processor time of one case, under the sanitizers on a slow machine */
    PEAK_MIB_MAX = 640, /* values, output, scratch text and a copy, with room for doubling */
};

static const char variables_text[] = "{\"xs\":[1,2,3],\"d\":{\"a\":1,\"b\":{\"c\":\"x\"}}}";

/* Repeats PART in loops until the steps are used. */
#define FOREVER(PREPARE, PART)                                                                     \
    PREPARE "{% for i in range(100000) %}{% for j in range(100000) %}" PART "{% endfor %}{% "      \
            "endfor %}"
#define LONG "{% set s = 'x' * 1000000 %}{% set t = 'x' * 999999 ~ 'y' %}"
#define MANY "{% set l = range(100000)|list %}"
#define DEEP                                                                                       \
    "{% set n = namespace(v=[]) %}{% for i in range(30) %}{% set n.v = [n.v, n.v] %}{% endfor %}"

static const struct {
    const char *name, *source;
    const char *message; /* part of it */
} cases[] = {
    /* Doing nothing for long. */
    {"loops", FOREVER("", ""), "exceeds"},
    {"prints", FOREVER("", "{{ '' }}"), "exceeds"},
    {"exponential macro",
     "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(90) }}",
     "exceeds"},
    {"exponential text",
     "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% else %}xxxxxxxxxxxxxxxx{% endif "
     "%}{% "
     "endmacro %}{{ m(60) }}",
     "exceeds"},
    {"mutual recursion",
     "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
     "call depth"},
    {"recursion through a caller",
     "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{% call m() "
     "%}x{% endcall %}",
     "call depth"},
    {"recursion through a default",
     "{% macro m(a=none) %}{% macro k(b=m()) %}{% endmacro %}{{ k() }}{% endmacro %}{{ m() }}",
     "depth"},
    {"exponential loop", "{% for x in [[1,1,1]] recursive %}{{ loop([[1],[1],[1]]) }}{% endfor %}",
     "exceeds"},
    {"growing while walking",
     "{% set l = [1] %}{% for x in l %}{% set _ = l.append(x) %}{% endfor %}", "exceeds"},
    {"many variables in a scope", NULL, "exceeds"},
    {"many parameters", NULL, "exceeds"},
    {"many keywords", NULL, "more than 1000 keyword arguments"},
    /* Growth. */
    {"doubling a string",
     "{% set n = namespace(s='ab') %}{% for i in range(100) %}{% set n.s = n.s ~ n.s %}{% endfor "
     "%}",
     "exceeds"},
    {"doubling a list",
     "{% set n = namespace(s=[1]) %}{% for i in range(100) %}{% set n.s = n.s + n.s %}{% endfor %}",
     "exceeds"},
    {"replacing by itself",
     "{% set n = namespace(s='aa') %}{% for i in range(100) %}{% set n.s = n.s|replace('a', n.s) "
     "%}{% endfor %}",
     "exceeds"},
    {"escaping again and again",
     "{% set n = namespace(s='&&&&&&&&') %}{% for i in range(100000) %}{% set n.s = "
     "n.s|forceescape %}{% endfor %}",
     "exceeds"},
    {"quoting again and again",
     "{% set n = namespace(s='\"') %}{% for i in range(1000) %}{% set n.s = n.s|tojson %}{% endfor "
     "%}",
     "exceeds"},
    {"captures",
     "{% set n = namespace(s='ab') %}{% for i in range(100) %}{% set c %}{{ n.s }}{{ n.s }}{% "
     "endset %}{% set n.s = c %}{% endfor %}",
     "exceeds"},
    {"range", "{{ range(1000000000) }}", "Range too big"},
    {"ranges of ranges", FOREVER("", "{{ range(100000)|list|length }}"), "exceeds"},
    {"batch", "{{ [1]|batch(1000000000000, 0)|list }}", "exceeds"},
    {"slice", "{{ [1]|slice(1000000000000)|list }}", "exceeds"},
    {"padding", "{{ 'a'.ljust(1000000000000) }}", "exceeds"},
    {"format width", "{{ '{:>1000000000000}'.format(1) }}", "exceeds"},
    {"format digits", "{{ '%.1000000000000f' % 1 }}", "exceeds"},
    {"indent", "{{ ('\\nx' * 100000)|indent(1000) }}", "exceeds"},
    {"indented JSON", DEEP "{{ n.v|tojson(indent=1000) }}", "exceeds"},
    {"power", "{{ 10 ** 1000000000000 }}", "exceeds 64 bits"},
    {"text of a shared value", DEEP "{{ n.v }}", "exceeds"},
    {"pprint of a shared value", DEEP "{{ n.v|pprint }}", "exceeds"},
    {"equality of shared values", DEEP "{% set a = n.v %}" DEEP "{{ a == n.v }}", "exceeds"},
    /* Work on long texts. */
    {"strip", FOREVER(LONG, "{{ s.strip()|length }}"), "exceeds"},
    {"strip by characters",
     "{% set s = 'x' * 1000000 %}{% set c = 'y' * 1000000 ~ 'x' %}{{ s.strip(c)|length }}",
     "exceeds"},
    {"trim by characters",
     "{% set s = 'é' * 500000 %}{% set c = 'ë' * 500000 ~ 'é' %}{{ s|trim(c)|length }}", "exceeds"},
    {"search", "{{ 'a' * 500000 ~ 'b' in 'a' * 1000000 }}", "exceeds"},
    {"search from the end", "{{ ('a' * 1000000).rfind('a' * 500000 ~ 'b') }}", "exceeds"},
    {"count", FOREVER(LONG, "{{ s.count('x') }}"), "exceeds"},
    {"prefixes", FOREVER(LONG "{% set p = (t, t, t, t, t, t, t, t) %}", "{{ s.startswith(p) }}"),
     "exceeds"},
    {"equality", FOREVER(LONG, "{{ s == t }}"), "exceeds"},
    {"order", FOREVER(LONG, "{{ s < t }}"), "exceeds"},
    {"keys", FOREVER(LONG, "{{ d[s] }}"), "exceeds"},
    {"length", FOREVER(LONG, "{{ s|length }}"), "exceeds"},
    {"index", FOREVER(LONG, "{{ s[999999] }}"), "exceeds"},
    {"tests of characters", FOREVER(LONG, "{{ s.isalpha() }}"), "exceeds"},
    {"test of case", FOREVER(LONG, "{{ s is lower }}"), "exceeds"},
    {"words", FOREVER(LONG, "{{ s|wordcount }}"), "exceeds"},
    {"integer of a long text", FOREVER("{% set s = '1' * 1000000 %}", "{{ (s ~ 'x')|int }}"),
     "exceeds"},
    {"split", FOREVER(LONG, "{{ s.split('x')|length }}"), "exceeds"},
    {"upper", FOREVER(LONG, "{{ s|upper|length }}"), "exceeds"},
    {"tags", "{{ ('<' * 1000000)|striptags|length }}", "exceeds"},
    {"links",
     FOREVER("{% set s = '(' * 200000 ~ 'a.a' * 100000 ~ ')' * 200000 %}", "{{ s|urlize|length }}"),
     "exceeds"},
    {"addresses", FOREVER("{% set s = 'a@b.' * 200000 %}", "{{ s|urlize|length }}"), "exceeds"},
    {"schemes",
     FOREVER("{% set s = 'a ' * 100000 %}{% set p = ['x' * 1000000 ~ ':'] * 50 %}",
             "{{ s|urlize(extra_schemes=p)|length }}"),
     "exceeds"},
    {"narrow wrapping", FOREVER(LONG, "{{ s|wordwrap(1)|length }}"), "exceeds"},
    {"wrapping of hyphens", FOREVER("{% set s = 'a-' * 500000 %}", "{{ s|wordwrap(9)|length }}"),
     "exceeds"},
    {"format of many fields",
     FOREVER("{% set f = '{}' * 100000 %}" MANY, "{{ f.format(*l)|length }}"), "exceeds"},
    {"format by names",
     "{% set d = {} %}{% for i in range(3000) %}{% set _ = d.update({'k' ~ i: i}) %}{% endfor %}"
     "{{ ('{k2999}' * 100000).format(**d)|length }}",
     "exceeds"},
    /* Work on long lists. */
    {"sorting long keys",
     FOREVER("{% set l = ['x' * 1000000 ~ 'a', 'x' * 1000000 ~ 'b'] * 50 %}",
             "{{ l|sort|length }}"),
     "exceeds"},
    {"membership", FOREVER(MANY, "{{ -1 in l }}"), "exceeds"},
    {"inserting in front", FOREVER("{% set l = [] %}", "{% set _ = l.insert(0, i) %}"), "exceeds"},
    {"removing keys",
     "{% set d = {} %}{% for i in range(50000) %}{% set _ = d.update({i: i}) %}{% endfor %}{% for "
     "i "
     "in range(50000) %}{% set _ = d.pop(i) %}{% endfor %}",
     "exceeds"},
    {"random", FOREVER(MANY, "{{ l|random }}"), "exceeds"},
    {"joining", FOREVER(MANY, "{{ l|join(',')|length }}"), "exceeds"},
    {"chained filters",
     FOREVER(MANY, "{{ l|map('string')|map('upper')|select|reject('none')|list|length }}"),
     "exceeds"},
    {"grouping", FOREVER(MANY, "{{ l|groupby('x', default=1)|length }}"), "exceeds"},
    {"unique", FOREVER(MANY, "{{ l|unique|list|length }}"), "exceeds"},
    {"autoescape",
     FOREVER("{% set s = '<' * 100000 %}", "{% autoescape true %}{{ s }}{% endautoescape %}"),
     "exceeds"},
};

static double seconds(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

static size_t failures;

static void check(Slice source, const char *name, const char *message)
{
    Error err = {.code = ERROR_NONE};
    JinjaTemplate *tmpl = NULL;
    const JsonValue *variables = NULL;
    Arena arena;
    Buffer out;
    arena_init(&arena, 1 << 20);
    buffer_init(&out, (size_t)128 << 20);
    assert_true(json_parse(slice_of(variables_text), &arena, &variables, &err));
    double start = seconds();
    JinjaContext context = {.variables = variables, .steps_max = STEPS_MAX};
    bool ok = jinja_template_create(source, name, &tmpl, &err) &&
              jinja_template_render(tmpl, &context, &out, &err);
    double used = seconds() - start;
    jinja_template_free(tmpl);
    arena_reset(&arena);
    if (ok || used > SECONDS_MAX || out.len != 0 || !strstr(err.message, message)) {
        print_error("%s: %.1f s, %s\n", name, used, ok ? "rendered" : err.message);
        failures++;
    }
    buffer_reset(&out);
}

/* Sources that are too long to write down. */
static void build_source(const char *name, Buffer *out)
{
    const bool is_scope = strcmp(name, "many variables in a scope") == 0;
    const int names = strcmp(name, "many parameters") == 0 ? JINJA_KEYWORDS_MAX : 30000;
    buffer_append_text(out, is_scope ? "{% for x in range(100000) %}" : "{% macro m(");
    for (int i = 0; i < names; i++) {
        if (!is_scope)
            buffer_append_format(out, "%sp%d", i > 0 ? "," : "", i);
        else
            buffer_append_format(out, "{%% set v%d = 1 %%}", i);
    }
    if (is_scope) {
        buffer_append_text(out, "{% endfor %}");
        return;
    }
    buffer_append_text(out, ") %}{% endmacro %}{% for x in range(100000) %}{{ m(");
    for (int i = names - 1; i >= 0; i--)
        buffer_append_format(out, "p%d=1%s", i, i > 0 ? "," : "");
    buffer_append_text(out, ") }}{% endfor %}");
}

static void hostile_templates_end_soon(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (cases[i].source) {
            check(slice_of(cases[i].source), cases[i].name, cases[i].message);
            continue;
        }
        Buffer source;
        buffer_init(&source, 2 << 20);
        build_source(cases[i].name, &source);
        check(buffer_view(&source), cases[i].name, cases[i].message);
        buffer_reset(&source);
    }
    assert_int_equal(failures, 0);
}

/* Peak memory of all of the above; the sanitizers keep freed memory back. */
static void memory_stays_bounded(void **state)
{
    (void)state;
#ifndef SANITIZED
    struct rusage usage;
    assert_int_equal(getrusage(RUSAGE_SELF, &usage), 0);
#ifdef __APPLE__
    long mib = usage.ru_maxrss >> 20;
#else
    long mib = usage.ru_maxrss >> 10;
#endif
    if (mib > PEAK_MIB_MAX)
        print_error("peak of %ld MiB\n", mib);
    assert_true(mib <= PEAK_MIB_MAX);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_templates_end_soon),
        cmocka_unit_test(memory_stays_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
