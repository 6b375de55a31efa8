/* Hostile templates end with the named error; failing allocations leave nothing behind; messages
 * say where. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "jinja.h"

static const char variables_text[] =
    "{\"xs\":[1,2,3],\"s\":\"text\",\"d\":{\"a\":[1.5,null,true],\"b\":{\"c\":\"x\"}}}";

typedef struct Result {
    bool ok;
    Error err;
    Buffer out;
} Result;

static Result render(Slice source, uint64_t steps_max)
{
    Result result = {.err = {.code = ERROR_NONE}};
    JinjaTemplate *tmpl = NULL;
    const JsonValue *variables = NULL;
    Arena arena;
    arena_init(&arena, 1 << 20);
    buffer_init(&result.out, (size_t)128 << 20);
    if (json_parse(slice_of(variables_text), &arena, &variables, &result.err) &&
        jinja_template_create(source, "t", &tmpl, &result.err)) {
        JinjaContext context = {.variables = variables, .steps_max = steps_max};
        result.ok = jinja_template_render(tmpl, &context, &result.out, &result.err);
    } else {
        assert_null(tmpl);
    }
    jinja_template_free(tmpl);
    arena_reset(&arena);
    return result;
}

/* Expects failure with the code and a message that contains part. */
static void check_fails_slice(Slice source, ErrorCode code, const char *part)
{
    Result result = render(source, 0);
    if (result.ok || result.err.code != code || !strstr(result.err.message, part))
        print_error("%.*s: code %d, %s\n", (int)(source.len < 200 ? source.len : 200), source.ptr,
                    (int)result.err.code, result.err.message);
    assert_false(result.ok);
    assert_int_equal(result.err.code, code);
    assert_non_null(strstr(result.err.message, part));
    assert_int_equal(result.out.len, 0);
    buffer_reset(&result.out);
}

static void check_fails(const char *source, ErrorCode code, const char *part)
{
    check_fails_slice(slice_of(source), code, part);
}

static void check_renders(Slice source, const char *expected)
{
    Result result = render(source, 0);
    if (!result.ok)
        print_error("%s\n", result.err.message);
    assert_true(result.ok);
    assert_int_equal(result.out.len, strlen(expected));
    assert_memory_equal(result.out.ptr, expected, strlen(expected));
    buffer_reset(&result.out);
}

/* before, then part repeated count times, then middle, then part_after repeated, then after. */
static Buffer repeated(const char *before, const char *part, size_t count, const char *middle,
                       const char *part_after, const char *after)
{
    Buffer text;
    buffer_init(&text, 8 << 20);
    buffer_append_text(&text, before);
    for (size_t i = 0; i < count; i++)
        buffer_append_text(&text, part);
    buffer_append_text(&text, middle);
    for (size_t i = 0; i < count; i++)
        buffer_append_text(&text, part_after);
    buffer_append_text(&text, after);
    return text;
}

static void check_nesting(const char *before, const char *part, size_t count, const char *middle,
                          const char *part_after, const char *after)
{
    Buffer text = repeated(before, part, count, middle, part_after, after);
    check_fails_slice(buffer_view(&text), ERROR_LIMIT, "nest");
    buffer_reset(&text);
}

static void test_source_nesting(void **state)
{
    (void)state;
    check_nesting("{{ ", "(", 50000, "1", ")", " }}");
    check_nesting("{{ ", "[", 50000, "1", "]", " }}");
    check_nesting("{{ ", "- ", 50000, "1", "", " }}");
    check_nesting("{{ ", "not ", 50000, "1", "", " }}");
    check_nesting("{{ ", "1 if 1 else ", 5000, "1", "", " }}");
    check_nesting("", "{% if 1 %}", 5000, "x", "{% endif %}", "");
    check_nesting("", "{% for x in [1] %}", 300, "x", "{% endfor %}", "");
    Buffer text = repeated("{{ ", "(", 60, "1", ")", " }}");
    check_renders(buffer_view(&text), "1");
    buffer_reset(&text);
}

/* Chains need no nesting, but the evaluation of a long sum is deep. */
static void test_chains(void **state)
{
    (void)state;
    Buffer text = repeated("{{ 0", " + 1", 500, "", "", " }}");
    check_renders(buffer_view(&text), "500");
    buffer_reset(&text);
    text = repeated("{{ 0", " + 1", 20000, "", "", " }}");
    check_fails_slice(buffer_view(&text), ERROR_LIMIT, "evaluation depth");
    buffer_reset(&text);
    text = repeated("{% if 0 %}", "{% elif 0 %}", 20000, "{% else %}e{% endif %}", "", "");
    check_renders(buffer_view(&text), "e");
    buffer_reset(&text);
    text = repeated("{{ ('a'", " ~ 'b'", 20000, ") | length }}", "", "");
    check_renders(buffer_view(&text), "20001");
    buffer_reset(&text);
}

static void test_steps(void **state)
{
    (void)state;
    const char *loops =
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    check_fails(loops, ERROR_LIMIT, "t:1: steps of one rendering exceeds 20000000");
    check_fails(
        "{% set n = namespace(l=[0]) %}{% for x in n.l %}{% set _ = n.l.append(x) %}{% endfor %}",
        ERROR_LIMIT, "exceeds");
    check_fails("{% set n = namespace(v=[]) %}{% for i in range(60) %}{% set n.v = [n.v, n.v] %}{% "
                "endfor %}"
                "{{ n.v == n.v[:] }}{{ n.v|tojson|length }}",
                ERROR_LIMIT, "exceeds");
    check_fails(
        "{% set n = namespace(v=(1,)) %}{% for i in range(60) %}{% set n.v = (n.v, n.v) %}{% "
        "endfor %}{{ {n.v: 1} }}",
        ERROR_LIMIT, "steps of one rendering exceeds");
    check_fails("{{ {(1, [2]): 1} }}", ERROR_INVALID, "unhashable type: 'list'");
    check_fails("{% set a = 'a' * 1000000 %}{% for i in range(1000) %}{{ (a + 'b') in (a + a) }}{% "
                "endfor %}",
                ERROR_LIMIT, "exceeds");
    Result result = render(SLICE("{% for i in range(100) %}{% endfor %}"), 50);
    assert_false(result.ok);
    assert_int_equal(result.err.code, ERROR_LIMIT);
    assert_non_null(strstr(result.err.message, "steps of one rendering exceeds 50"));
    buffer_reset(&result.out);
}

static void test_memory_and_output(void **state)
{
    (void)state;
    check_fails("{{ 'x' * 1000000000000 }}", ERROR_LIMIT, "memory of one rendering exceeds");
    check_fails("{{ [0] * 1000000000000000000 }}", ERROR_LIMIT, "exceeds");
    check_fails("{% set n = namespace(s='ab') %}{% for i in range(100) %}{% set n.s = n.s + n.s "
                "%}{% endfor %}",
                ERROR_LIMIT, "exceeds");
    check_fails("{% set s = 'x' * 1000000 %}{% for i in range(100) %}{{ s }}{% endfor %}",
                ERROR_LIMIT, "output bytes exceeds 67108864");
    check_fails("{% set s = 'x' * 1000000 %}{{ s.replace('', s) }}", ERROR_LIMIT, "exceeds");
    check_fails("{{ '%999999999d' % 1 }}", ERROR_LIMIT, "exceeds");
    check_fails("{{ 'a'.center(99999999999) }}", ERROR_LIMIT, "exceeds");
}

static void test_depth(void **state)
{
    (void)state;
    check_fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", ERROR_LIMIT,
                "t:1: call depth exceeds 100");
    check_fails("{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}", ERROR_LIMIT,
                "call depth");
    check_fails("{% set n = namespace(v=[]) %}{% for i in range(5000) %}{% set n.v = [n.v] %}{% "
                "endfor %}{{ n.v }}",
                ERROR_LIMIT, "nesting of printed values exceeds 400");
    check_fails("{% set l = [] %}{% set _ = l.append(l) %}{{ l|tojson }}", ERROR_LIMIT, "nesting");
    check_fails("{% set l = [] %}{% set k = [] %}{% set _ = l.append(k) %}{% set _ = k.append(l) "
                "%}{{ l == k }}",
                ERROR_LIMIT, "nesting of compared values");
    check_fails(
        "{% set n = namespace(v=(1,)) %}{% for i in range(900) %}{% set n.v = (n.v,) %}{% endfor %}"
        "{{ {n.v: 1} }}",
        ERROR_LIMIT, "nesting of a key exceeds 400");
}

/* The deepest source in the deepest recursion stays within a small stack. */
static void test_deep_macros(void **state)
{
    (void)state;
    Buffer text =
        repeated("{% macro m(n) %}{{ ", "[", 90, "m(n + 1)", "]", " }}{% endmacro %}{{ m(1) }}");
    check_fails_slice(buffer_view(&text), ERROR_LIMIT, "depth exceeds");
    buffer_reset(&text);
}

static void test_messages(void **state)
{
    (void)state;
    check_fails("a\nb {{ missing.x }}", ERROR_INVALID, "t:2: 'missing' is undefined");
    check_fails("{{ d.zz.y }}", ERROR_INVALID, "t:1: 'dict object' has no attribute 'zz'");
    check_fails("\n\n{{ raise_exception('plain') }}", ERROR_INVALID, "plain");
    check_fails("\n{% if x %}", ERROR_INVALID, "t:2: Unexpected end of template");
    check_fails("{{ x|nope }}", ERROR_INVALID, "t:1: No filter named 'nope'.");
    check_fails("{{ x is nope }}", ERROR_INVALID, "No test named 'nope'.");
    check_fails("{% include 'x' %}", ERROR_INVALID, "needs other templates");
    check_fails("{{ 9223372036854775807 + 1 }}", ERROR_INVALID, "exceeds 64 bits");
    check_fails("{{ 9223372036854775808 }}", ERROR_INVALID, "exceeds 64 bits");
    check_fails("{{ (-9223372036854775807 - 1) // -1 }}", ERROR_INVALID, "exceeds 64 bits");
    check_fails("{{ 's' + 1 }}", ERROR_INVALID, "can only concatenate str (not \"int\") to str");
    check_fails("{{ s.upper(1) }}", ERROR_INVALID, "upper takes at most 0 argument(s), 1 given");
    check_fails_slice((Slice){"\xff", 1}, ERROR_INVALID, "not valid UTF-8");
    Buffer text = repeated("", "x", JINJA_SOURCE_BYTES_MAX + 1, "", "", "");
    check_fails_slice(buffer_view(&text), ERROR_LIMIT, "exceeds 1048576");
    buffer_reset(&text);
}

/* The text before stays when a rendering fails, and a good one is appended to it. */
static void test_output_is_appended(void **state)
{
    (void)state;
    Error err = {.code = ERROR_NONE};
    JinjaTemplate *good, *bad;
    JinjaContext context = {0};
    Buffer out;
    buffer_init(&out, 1000);
    buffer_append_text(&out, "before ");
    assert_true(jinja_template_create(SLICE("x{{ 1 }}"), "good", &good, &err));
    assert_true(jinja_template_create(SLICE("y{{ 1 / 0 }}"), "bad", &bad, &err));
    assert_true(jinja_template_render(good, &context, &out, &err));
    assert_false(jinja_template_render(bad, &context, &out, &err));
    assert_string_equal(err.message, "bad:1: division by zero");
    assert_int_equal(out.len, strlen("before x1"));
    assert_memory_equal(out.ptr, "before x1", out.len);
    jinja_template_free(good);
    jinja_template_free(bad);
    jinja_template_free(NULL);
    buffer_reset(&out);
}

static void test_clock(void **state)
{
    (void)state;
    Error err = {.code = ERROR_NONE};
    JinjaTemplate *tmpl;
    Buffer out;
    buffer_init(&out, 1000);
    assert_true(jinja_template_create(
        SLICE("{{ strftime_now('%Y%m%d %H:%M:%S %a %j [%z%Z] %f') }}"), "t", &tmpl, &err));
    JinjaContext context = {.now_text = "2024-02-29T23:59:58"};
    assert_true(jinja_template_render(tmpl, &context, &out, &err));
    buffer_append_byte(&out, '\0');
    assert_string_equal(out.ptr, "20240229 23:59:58 Thu 060 [] 000000");
    context.now_text = "2024-13-29T23:59:58";
    assert_false(jinja_template_render(tmpl, &context, &out, &err));
    context.now_text = "2024";
    assert_false(jinja_template_render(tmpl, &context, &out, &err));
    context = (JinjaContext){.now_unix_seconds = 86400 * 365};
    buffer_clear(&out);
    assert_true(jinja_template_render(tmpl, &context, &out, &err));
    assert_memory_equal(out.ptr, "197", 3);
    jinja_template_free(tmpl);
    buffer_reset(&out);
}

static void test_failing_allocations(void **state)
{
    (void)state;
    const Slice source = SLICE(
        "{% macro m(a, b=[1]) %}{{ a }}{{ b|tojson(indent=1) }}{{ varargs }}{{ kwargs }}{% "
        "endmacro %}"
        "{% set ns = namespace(t='', l=[]) %}{% for x in xs|sort(reverse=true) if x %}"
        "{% set ns.t = ns.t ~ x %}{{ loop.length }}{{ m(x, 2, 3, k=d) }}{% endfor %}"
        "{% set block | upper %}{{ s.split('e') }}{{ '{:>5}'.format(s) }}{% endset %}{{ block }}"
        "{{ d|dictsort }}{{ xs|map('string')|join(',') }}{{ xs|groupby(0)|list }}{{ 2.5 }}\\u00e9"
        "{% call m('c') %}z{% endcall %}");
    const JsonValue *variables = NULL;
    Error err = {.code = ERROR_NONE};
    Arena arena;
    arena_init(&arena, 1 << 20);
    assert_true(json_parse(slice_of(variables_text), &arena, &variables, &err));
    bool done = false;
    for (uint64_t nth = 1; !done; nth++) {
        JinjaTemplate *tmpl = NULL;
        JinjaContext context = {.variables = variables};
        Buffer out;
        buffer_init(&out, 1 << 20);
        err = (Error){.code = ERROR_NONE};
        fault_fail_allocation(nth);
        bool ok = jinja_template_create(source, "t", &tmpl, &err) &&
                  jinja_template_render(tmpl, &context, &out, &err);
        done = fault_allocation_count() < nth;
        fault_fail_allocation(0);
        if (!done) {
            assert_false(ok);
            assert_int_equal(err.code, ERROR_MEMORY);
            assert_int_equal(out.len, 0);
        }
        jinja_template_free(tmpl);
        buffer_reset(&out);
        assert_true(nth < 10000);
    }
    arena_reset(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_source_nesting), cmocka_unit_test(test_chains),
        cmocka_unit_test(test_steps),          cmocka_unit_test(test_memory_and_output),
        cmocka_unit_test(test_depth),          cmocka_unit_test(test_deep_macros),
        cmocka_unit_test(test_messages),       cmocka_unit_test(test_output_is_appended),
        cmocka_unit_test(test_clock),          cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
