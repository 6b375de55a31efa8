/* The scan of marks: regions, marks that begin alike, marks that count at the start only. */
#include "markup.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* The text with every byte in its region's letter, complete marks as '|' at their last byte:
 * c content, r reasoning, t calls. */
static void follow(const Markup *markup, const char *text, char out[128])
{
    static const char letters[] = "crt";
    MarkupScan scan;
    size_t n = strlen(text);
    assert_true(n < 128);
    markup_scan_init(&scan, markup);
    for (size_t i = 0; i < n; i++) {
        bool is_mark = markup_scan_step(markup, &scan, text[i], NULL) > 0;
        out[i] = is_mark ? '|' : letters[scan.region];
    }
    out[n] = '\0';
}

static void check(const Markup *markup, const char *text, const char *expected)
{
    char found[128];
    follow(markup, text, found);
    assert_string_equal(found, expected);
}

static const Markup PLAIN = {
    .think_open = {"<t>", 3},
    .think_close = {"</t>", 4},
    .calls = {.triggers = {{{"<call>", 6}, false, 0}, {{"{\"n", 3}, true, 0}},
              .stray = {"</call>", 7}},
};

static void test_regions(void **state)
{
    (void)state;
    check(&PLAIN, "hello", "ccccc");
    check(&PLAIN, "<t>x</t>y", "cc|rrrr|c");
    check(&PLAIN, "a<call>b", "cccccc|t");
    check(&PLAIN, "a<call><t>", "cccccc|ttt");
    check(&PLAIN, "<t><call></t>", "cc|rrrrrrrrr|");
    check(&PLAIN, "x</t>y", "cccc|c"); /* a stray mark is a mark too */
    check(&PLAIN, "<t><t></t>", "cc|rr|rrr|");
    check(&PLAIN, "x</call>y</t>", "ccccccc|cccc|");
    check(&PLAIN, "</call>{\"n", "cccccc|cc|");
    check(&PLAIN, "<t></call>", "cc|rrrrrrr");
}

static void test_marks_that_begin_alike(void **state)
{
    (void)state;
    check(&PLAIN, "<<t>", "ccc|");
    check(&PLAIN, "<cal<call>", "ccccccccc|");
    check(&PLAIN, "<</t>", "cccc|");
    const Markup borders = {.think_open = {"aab", 3}, .think_close = {"xyxyz", 5}};
    check(&borders, "aaab", "ccc|");
    check(&borders, "aabxyxyxyz", "cc|rrrrrr|");
}

static void test_start_only(void **state)
{
    (void)state;
    check(&PLAIN, "{\"n", "cc|");
    check(&PLAIN, " \n{\"n", "cccc|");
    check(&PLAIN, "a{\"n", "cccc");
    check(&PLAIN, "{{\"n", "cccc");
    check(&PLAIN, "<{\"n", "cccc");
    check(&PLAIN, "<t>x</t>{\"n", "cc|rrrr|cc|"); /* content begins behind the reasoning */
    Markup bound = PLAIN;
    bound.only_at_start = true;
    check(&bound, "<call>", "ccccc|");
    check(&bound, "x<call><t>", "cccccccccc");
    check(&bound, "<t>x</t>\n<call>", "cc|rrrr|cccccc|");
    check(&bound, "<t>x</t>{<call>", "cc|rrrr|ccccccc");
    check(&bound, "<t>x</t><t>y</t>", "cc|rrrr|cccccccc"); /* there is one reasoning, before it */
    check(&bound, "</t>", "cccc");
    check(&bound, "</call>", "ccccccc");
    bound.begins_in_think = true;
    check(&bound, "x</t><t>", "rrrr|ccc");
}

static void test_begins_in_reasoning(void **state)
{
    (void)state;
    Markup markup = PLAIN;
    markup.begins_in_think = true;
    check(&markup, "x</t>y", "rrrr|c");
}

static void test_held(void **state)
{
    (void)state;
    MarkupScan scan;
    size_t trigger = 9;
    markup_scan_init(&scan, &PLAIN);
    static const char text[] = "a<cal";
    static const size_t held[] = {0, 1, 2, 3, 4};
    for (size_t i = 0; i < sizeof(text) - 1; i++) {
        assert_int_equal(markup_scan_step(&PLAIN, &scan, text[i], &trigger), 0);
        assert_int_equal(markup_scan_held(&scan), held[i]);
    }
    assert_int_equal(markup_scan_step(&PLAIN, &scan, 'l', &trigger), 0);
    assert_int_equal(trigger, 9);
    assert_int_equal(markup_scan_step(&PLAIN, &scan, '>', &trigger), 6);
    assert_int_equal(trigger, 0);
    assert_int_equal(markup_scan_held(&scan), 0);
}

static void test_nothing_to_look_for(void **state)
{
    (void)state;
    const Markup none = {0};
    assert_false(markup_has_marks(&none));
    assert_true(markup_has_marks(&PLAIN));
    assert_true(markup_has_calls(&PLAIN));
    check(&none, "<t><call>", "ccccccccc");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_regions),    cmocka_unit_test(test_marks_that_begin_alike),
        cmocka_unit_test(test_start_only), cmocka_unit_test(test_begins_in_reasoning),
        cmocka_unit_test(test_held),       cmocka_unit_test(test_nothing_to_look_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
