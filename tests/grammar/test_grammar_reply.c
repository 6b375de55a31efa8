/* Whole replies: where marks lead, what follows them, and where a reply may end. */
#include "grammar.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define TEXT(literal) {literal, sizeof(literal) - 1}

static const Markup MARKUP = {
    .think_open = TEXT("<t>"),
    .think_close = TEXT("</t>"),
    .calls = {.triggers = {{TEXT("<call>"), false, 0}, {TEXT("{\"n\":\""), true, 6}},
              .before_name = TEXT("{\"n\":\""),
              .after_name = TEXT("\",\"a\":"),
              .after_arguments = TEXT("}"),
              .between_calls = TEXT(";"),
              .after_calls = TEXT(".")},
};

static const GrammarTool TOOLS[] = {
    {TEXT("f"),
     {.kind = GRAMMAR_JSON_SCHEMA,
      .text = TEXT("{\"type\":\"object\",\"properties\":{\"x\":{\"enum\":[1,2]}},"
                   "\"required\":[\"x\"],\"additionalProperties\":false}")}},
    {TEXT("ff"),
     {.kind = GRAMMAR_JSON_SCHEMA,
      .text = TEXT("{\"type\":\"object\",\"additionalProperties\":false}")}},
};

/* How far the text fits; then what may happen: "" a piece of a reply, "." its end, "!" nothing
 * else. */
static void check(const GrammarReply *reply, const char *text, size_t fits, const char *end)
{
    const GrammarSource source = {.kind = GRAMMAR_REPLY, .reply = reply};
    Error err = {0};
    Grammar *grammar;
    GrammarRun *run;
    size_t count = 0;
    Slice bytes = {text, strlen(text)};
    if (!grammar_create(&source, NULL, &grammar, &err))
        fail_msg("%s", err.message);
    assert_true(grammar_run_create(grammar, &run, &err));
    assert_true(grammar_run_count_bytes(run, bytes, &count, &err));
    if (count != fits)
        fail_msg("%s: %zu bytes fit, expected %zu", text, count, fits);
    bytes.len = count;
    assert_true(grammar_run_accept_bytes(run, bytes, &err));
    const char *found = grammar_run_is_finished(run) ? "!" : grammar_run_can_end(run) ? "." : "";
    if (strcmp(found, end) != 0)
        fail_msg("%s: '%s', expected '%s'", text, found, end);
    grammar_run_free(run);
    grammar_release(grammar);
}

static void check_whole(const GrammarReply *reply, const char *text, const char *end)
{
    check(reply, text, strlen(text), end);
}

static void test_free_content(void **state)
{
    (void)state;
    const GrammarReply reply = {.markup = &MARKUP, .tools = TOOLS, .n_tools = 2};
    check_whole(&reply, "", ".");
    check_whole(&reply, "any \xff text <cal", ".");
    check_whole(&reply, "x<call>", "");
    check(&reply, "x<call>{\"n\":\"g", 13, "");
    check(&reply, "x<call>{\"n\":\"f\",\"a\":{\"x\":3", 25, "");
    check_whole(&reply, "x<call>{\"n\":\"f\",\"a\":{\"x\":1}}", "");
    check_whole(&reply, "x<call>{\"n\":\"f\",\"a\":{\"x\":1}}.", "!");
    check_whole(&reply, "<call>{\"n\":\"f\",\"a\":{\"x\":1}};{\"n\":\"ff\",\"a\":{}}.", "!");
    check_whole(&reply, "<t><call> is not looked at</t>yes", ".");
    check(&reply, "{\"n\":\"z", 6, "");
    check_whole(&reply, "{\"m\":", ".");
    check_whole(&reply, "x{\"n\":\"z", ".");
}

static void test_one_call(void **state)
{
    (void)state;
    const GrammarReply reply = {.markup = &MARKUP, .tools = TOOLS, .n_tools = 2, .one_call = true};
    check(&reply, "<call>{\"n\":\"ff\",\"a\":{}};", 23, "");
    check_whole(&reply, "<call>{\"n\":\"ff\",\"a\":{}}.", "!");
}

static void test_needed_call(void **state)
{
    (void)state;
    Markup markup = MARKUP;
    markup.only_at_start = true;
    GrammarReply reply = {.markup = &markup, .tools = TOOLS, .n_tools = 1, .needs_call = true};
    check(&reply, "x", 0, "");
    check_whole(&reply, "\n\n<call>{\"n\":\"f\",\"a\":{\"x\":2}}.", "!");
    check(&reply, "\n\n\n", 2, "");
    check_whole(&reply, "<t>a<call>b</t>\n<call>{\"n\":\"f\",\"a\":{\"x\":2}}.", "!");
    check_whole(&reply, "<t>never closed", "");
    check_whole(&reply, "{\"n\":\"f\",\"a\":{\"x\":2}}.", "!");
    markup.begins_in_think = true;
    check_whole(&reply, "a", "");
    check(&reply, "a</t>b", 5, "");
    check_whole(&reply, "a</t><call>{\"n\":\"f\",\"a\":{\"x\":2}}.", "!");
    markup.think_open = markup.think_close = SLICE_EMPTY;
    markup.begins_in_think = false;
    check(&reply, "<t>", 1, "");
}

static void test_bound_content(void **state)
{
    (void)state;
    Markup markup = MARKUP;
    const GrammarSource content = {.kind = GRAMMAR_REGEX, .text = TEXT("ab|\"<call>\"")};
    GrammarReply reply = {.markup = &markup, .content = &content, .tools = TOOLS, .n_tools = 1};
    markup.only_at_start = true;
    check_whole(&reply, "ab", "!");
    check_whole(&reply, "\"<call>\"", "!");
    check(&reply, "abc", 2, "!");
    check_whole(&reply, "<call>{\"n\":\"f\",\"a\":{\"x\":2}}.", "!");
    check_whole(&reply, "<t>x</t>ab", "!");
    reply.n_tools = 0;
    check(&reply, "<call>", 1, "");
    check_whole(&reply, "<t>x</t>ab", "!");
}

/* What a mark opens counts, so that nobody takes for reasoning what was written as content. */
static void test_content_that_begins_like_a_mark(void **state)
{
    (void)state;
    Markup markup = MARKUP;
    const GrammarSource content = {.kind = GRAMMAR_REGEX, .text = TEXT("<t>a|<call>b|<\\w")};
    GrammarReply reply = {.markup = &markup, .content = &content, .tools = TOOLS, .n_tools = 1};
    markup.only_at_start = true;
    check_whole(&reply, "<t", ".");
    check_whole(&reply, "<t>", "");
    check_whole(&reply, "<t>a", "");
    check_whole(&reply, "<t>a</t><t>a", "!");
    check(&reply, "<call>b", 6, "");
    check_whole(&reply, "<t></t><x", "!");
}

static void test_impossible_parts(void **state)
{
    (void)state;
    const GrammarTool tools[] = {
        TOOLS[0],
        {TEXT("bad"),
         {.kind = GRAMMAR_JSON_SCHEMA,
          .text = TEXT("{\"type\":\"object\",\"properties\":{\"a\":{\"type\":"
                       "\"integer\",\"minimum\":2,\"maximum\":1}},\"required\":"
                       "[\"a\"]}")}},
    };
    const GrammarReply reply = {.markup = &MARKUP, .tools = tools, .n_tools = 2};
    const GrammarSource source = {.kind = GRAMMAR_REPLY, .reply = &reply};
    Error err = {0};
    Grammar *grammar;
    assert_false(grammar_create(&source, NULL, &grammar, &err));
    assert_int_equal(err.code, ERROR_INVALID);
    assert_non_null(strstr(err.message, "tool bad"));
    assert_null(grammar);
}

static void test_equal_replies_share_a_grammar(void **state)
{
    (void)state;
    static const Slice tokens[] = {TEXT("a"), TEXT("<")};
    Error err = {0};
    GrammarVocabulary *vocabulary;
    GrammarCache *cache;
    Grammar *one, *same, *other;
    Markup copy = MARKUP;
    GrammarReply reply = {.markup = &MARKUP, .tools = TOOLS, .n_tools = 2};
    GrammarReply again = {.markup = &copy, .tools = TOOLS, .n_tools = 2};
    GrammarSource source = {.kind = GRAMMAR_REPLY, .reply = &reply};
    assert_true(grammar_vocabulary_create(tokens, 2, &vocabulary, &err));
    assert_true(grammar_cache_create(vocabulary, &cache, &err));
    reply.tools = again.tools = NULL;
    reply.n_tools = again.n_tools = 0;
    assert_true(grammar_cache_get(cache, &source, &one, &err));
    source.reply = &again;
    assert_true(grammar_cache_get(cache, &source, &same, &err));
    copy.begins_in_think = true;
    assert_true(grammar_cache_get(cache, &source, &other, &err));
    assert_ptr_equal(one, same);
    assert_ptr_not_equal(one, other);
    grammar_release(one);
    grammar_release(same);
    grammar_release(other);
    grammar_cache_free(cache);
    grammar_vocabulary_release(vocabulary);
}

static void test_failing_allocations(void **state)
{
    (void)state;
    Markup markup = MARKUP;
    const GrammarSource content = {
        .kind = GRAMMAR_JSON_SCHEMA, .text = TEXT("{\"x-note\":1}"), .ignores_unknown = true};
    GrammarReply reply = {.markup = &markup, .tools = TOOLS, .n_tools = 2};
    const GrammarSource source = {.kind = GRAMMAR_REPLY, .reply = &reply};
    for (int bound = 0; bound < 2; bound++) {
        reply.content = bound ? &content : NULL;
        markup.only_at_start = bound;
        bool done = false;
        uint64_t n = 1;
        for (; !done && n < 5000; n++) {
            Error err = {0};
            Grammar *grammar;
            fault_fail_allocation(n);
            bool ok = grammar_create(&source, NULL, &grammar, &err);
            done = fault_allocation_count() < n;
            fault_fail_allocation(0);
            if (!ok) /* an arena does not tell a missing byte from its own limit */
                assert_true(err.code == ERROR_MEMORY || err.code == ERROR_LIMIT);
            grammar_release(grammar);
        }
        assert_true(done && n > 20);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_free_content),
        cmocka_unit_test(test_one_call),
        cmocka_unit_test(test_needed_call),
        cmocka_unit_test(test_bound_content),
        cmocka_unit_test(test_content_that_begins_like_a_mark),
        cmocka_unit_test(test_impossible_parts),
        cmocka_unit_test(test_equal_replies_share_a_grammar),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
