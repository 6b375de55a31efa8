/* Templates as data: each file of tests/data/jinja holds a request and cases of template and
 * expected text or error. The expectations come from jinja2, see make_cases.py there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "jinja.h"

static Slice text_of(const JsonValue *object, const char *key)
{
    const JsonValue *value = json_get_present(object, key);
    return json_is(value, JSON_STRING) ? value->as.string : SLICE_EMPTY;
}

static bool contains(const char *message, Slice part)
{
    return slice_find(slice_of(message), part, 0) != SIZE_MAX;
}

/* Renders one case; on failure err tells why. */
static bool render(Slice source, const JsonValue *request, const char *now, Buffer *out, Error *err)
{
    JinjaTemplate *tmpl;
    JinjaContext context = {
        .variables = request, .more = json_get(request, SLICE("kwargs")), .now_text = now};
    if (!jinja_template_create(source, "case", &tmpl, err))
        return false;
    bool ok = jinja_template_render(tmpl, &context, out, err);
    jinja_template_free(tmpl);
    return ok;
}

static unsigned check_case(const JsonValue *test, const JsonValue *request, const char *now)
{
    Error err = {.code = ERROR_NONE};
    Buffer out;
    buffer_init(&out, 1 << 20);
    Slice source = text_of(test, "template");
    bool rendered = render(source, request, now, &out, &err);
    const JsonValue *wanted = json_get(test, SLICE("prompt"));
    bool ok = wanted ? rendered && slice_equal(buffer_view(&out), wanted->as.string)
                     : !rendered && contains(err.message, text_of(test, "error"));
    if (!ok)
        print_error("template: %.*s\n  got %s: %.*s\n  expected: %.*s\n", SLICE_ARG(source),
                    rendered ? "text" : "error",
                    SLICE_ARG(rendered ? buffer_view(&out) : slice_of(err.message)),
                    SLICE_ARG(wanted ? wanted->as.string : text_of(test, "error")));
    buffer_reset(&out);
    return !ok;
}

static void check_file(const char *name)
{
    char path[PATH_BYTES_MAX];
    Error err = {.code = ERROR_NONE};
    Arena arena;
    Buffer bytes;
    const JsonValue *data = NULL;
    arena_init(&arena, 64 << 20);
    buffer_init(&bytes, 16 << 20);
    assert_true(path_join(path, sizeof(path), TEST_DATA_DIR "/jinja", name, &err));
    assert_true(file_read(path, 16 << 20, &bytes, &err));
    assert_true(json_parse(buffer_view(&bytes), &arena, &data, &err));
    const JsonValue *request = json_get_present(data, "request"),
                    *cases = json_get_present(data, "cases");
    assert_true(json_is(cases, JSON_ARRAY));
    assert_true(cases->as.array.count > 0);
    unsigned failed = 0;
    for (size_t i = 0; i < cases->as.array.count; i++) {
        const JsonValue *own = json_get_present(&cases->as.array.items[i], "request");
        const JsonValue *used = own ? own : request;
        Slice now = text_of(used, "now");
        failed += check_case(&cases->as.array.items[i], used, now.len ? now.ptr : NULL);
    }
    buffer_reset(&bytes);
    arena_reset(&arena);
    assert_int_equal(failed, 0);
}

static void test_constructs(void **state)
{
    (void)state;
    check_file("constructs.json");
}

static void test_families(void **state)
{
    (void)state;
    check_file("families.json");
}

static void test_language(void **state)
{
    (void)state;
    check_file("language.json");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_constructs),
        cmocka_unit_test(test_families),
        cmocka_unit_test(test_language),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
