/* Replies taken apart, for each family of models, cut at every character; and tools for templates
 * that know none. */
#include "chat.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { TEXT_MAX = 4096 };

/* What came out, joined: content as it is, <r:...> reasoning, <f:...> a call, <a:...> arguments. */
typedef struct Parts {
    char text[TEXT_MAX];
    size_t length;
    ChatPartKind last;
    size_t calls;
} Parts;

static void put(Parts *parts, Slice text)
{
    assert_true(parts->length + text.len < TEXT_MAX);
    memcpy(parts->text + parts->length, text.ptr, text.len);
    parts->length += text.len;
    parts->text[parts->length] = '\0';
}

static void take(void *context, const ChatPart *part)
{
    static const char *const begins[] = {"<r:", "", "<f:", "<a:"};
    Parts *parts = context;
    assert_true(part->text.len > 0);
    assert_true(utf8_is_valid(part->text));
    bool goes_on = parts->length > 0 && part->kind == parts->last && part->kind != CHAT_PART_CALL;
    if (part->kind == CHAT_PART_CALL)
        assert_int_equal(part->call, parts->calls++);
    if (!goes_on && parts->length > 0 && parts->last != CHAT_PART_CONTENT)
        put(parts, SLICE(">"));
    if (!goes_on)
        put(parts, slice_of(begins[part->kind]));
    put(parts, part->text);
    parts->last = part->kind;
}

static void finish(Parts *parts)
{
    if (parts->length > 0 && parts->last != CHAT_PART_CONTENT)
        put(parts, SLICE(">"));
}

/* Markup of a template that writes `signs`. */
static Markup markup_of(const char *signs)
{
    Error err = {0};
    ChatTemplate *tmpl;
    if (!chat_template_create(slice_of(signs), "t", SLICE_EMPTY, SLICE_EMPTY, &tmpl, &err))
        fail_msg("%s", err.message);
    Markup markup = *chat_template_markup(tmpl);
    chat_template_free(tmpl);
    return markup;
}

/* Takes text apart in pieces: [0, first), [first, second), the rest. */
static void take_apart(const Markup *markup, const char *text, size_t first, size_t second,
                       Parts *parts)
{
    ChatReply reply;
    Error err = {0};
    const ChatPartTaker taker = {take, parts};
    Slice pieces[] = {
        {text, first}, {text + first, second - first}, {text + second, strlen(text) - second}};
    *parts = (Parts){0};
    chat_reply_init(&reply, markup);
    for (size_t i = 0; i < 3; i++)
        assert_true(chat_reply_push(&reply, pieces[i], &taker, &err));
    chat_reply_finish(&reply, &taker);
    assert_int_equal(reply.at, strlen(text));
    assert_int_equal(reply.n_calls, parts->calls);
    finish(parts);
    chat_reply_reset(&reply);
}

static bool is_border(const char *text, size_t at)
{
    return ((unsigned char)text[at] & 0xc0) != 0x80;
}

/* Every way of cutting it into three. */
static void check(const Markup *markup, const char *text, const char *expected)
{
    size_t n = strlen(text);
    static Parts parts;
    for (size_t i = 0; i <= n; i++) {
        for (size_t k = i; k <= n; k++) {
            if (!is_border(text, i) || !is_border(text, k))
                continue;
            take_apart(markup, text, i, k, &parts);
            if (strcmp(parts.text, expected) != 0)
                fail_msg("cut at %zu and %zu: %s, expected %s", i, k, parts.text, expected);
        }
    }
}

#define HERMES "{# <tool_call> <think> #}"

static void test_hermes(void **state)
{
    (void)state;
    Markup markup = markup_of(HERMES);
    check(&markup, "Hello, <b>you</b> <tool", "Hello, <b>you</b> <tool");
    check(&markup,
          "\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\\\"{\"}}\n</tool_call>",
          "<f:f><a:{\"a\": \"}\\\"{\"}>");
    check(&markup,
          "x\n<tool_call>\n{\"name\": \"f-1\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n"
          "{\"name\": \"g\", \"arguments\": {\"l\": [1, {}]}}\n</tool_call>",
          "x\n<f:f-1><a:{}><f:g><a:{\"l\": [1, {}]}>");
    check(&markup,
          "<think>a <tool_call> b</think>\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}",
          "<r:a <tool_call> b><f:f><a:{}>");
    check(&markup, "<think>é</think>\n\nü", "<r:é>\n\nü");
}

static void test_other_families(void **state)
{
    (void)state;
    Markup markup = markup_of("{# [TOOL_CALLS] #}");
    check(&markup,
          "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"x\": 1}}, {\"name\": \"g\", "
          "\"arguments\": {}}]",
          "<f:f><a:{\"x\": 1}><f:g><a:{}>");
    markup = markup_of("{# [TOOL_CALLS] [ARGS] [THINK] #}");
    check(&markup, "[THINK]hm[/THINK]ok[TOOL_CALLS]f[ARGS]{\"x\": 1}[TOOL_CALLS]g[ARGS]{}",
          "<r:hm>ok<f:f><a:{\"x\": 1}><f:g><a:{}>");
    markup = markup_of("{# \"parameters\": ipython <|python_tag|> #}");
    check(&markup,
          "{\"name\": \"f\", \"parameters\": {\"x\": 1}}; {\"name\": \"g\", \"parameters\": {}}",
          "<f:f><a:{\"x\": 1}><f:g><a:{}>");
    check(&markup, "a<|python_tag|>{\"name\": \"f\", \"parameters\": {}}", "a<f:f><a:{}>");
    check(&markup, "see {\"name\": \"f\"", "see {\"name\": \"f\"");
    markup = markup_of("{# <start_of_turn> #}");
    check(
        &markup,
        "```tool_call\n{\"name\": \"f\", \"arguments\": {}}\n```\n```tool_call\n{\"name\": \"g\", "
        "\"arguments\": {}}\n```",
        "<f:f><a:{}><f:g><a:{}>");
    markup = markup_of("{# <|tool_call> <tool_call|> #}");
    check(&markup, "<|tool_call>call:f{\"x\": 1}<tool_call|><|tool_call>call:g{}<tool_call|>",
          "<f:f><a:{\"x\": 1}><f:g><a:{}>");
    markup = markup_of("{# <start_function_call> <end_function_call> #}");
    check(&markup, "<start_function_call>call:f{}<end_function_call>", "<f:f><a:{}>");
    markup = markup_of("{# <|tool_call|> <|/tool_call|> #}");
    check(&markup, "<|tool_call|>[{\"name\": \"f\", \"arguments\": {}}]<|/tool_call|>",
          "<f:f><a:{}>");
    markup = markup_of("{# <|tools_prefix|> <|tools_suffix|> #}");
    check(&markup, "<|tools_prefix|>[{\"f\": {\"x\": 1}}, {\"g\": {}}]<|tools_suffix|>",
          "<f:f><a:{\"x\": 1}><f:g><a:{}>");
    markup = markup_of("{# <TOOLCALL></TOOLCALL> #}");
    check(&markup, "<TOOLCALL>[{\"name\": \"f\", \"arguments\": {}}]</TOOLCALL>", "<f:f><a:{}>");
    markup = markup_of("{# <tool_calls>[</tool_calls> #}");
    check(&markup, "<tool_calls>[{\"name\": \"f\", \"arguments\": {}}]</tool_calls>",
          "<f:f><a:{}>");
    markup = markup_of("{# <tool_calls></tool_calls> #}");
    check(
        &markup,
        "<tool_calls>\n{\"name\": \"f\", \"arguments\": {}}\n{\"name\": \"g\", \"arguments\": {}}\n"
        "</tool_calls>",
        "<f:f><a:{}><f:g><a:{}>");
    markup = markup_of("{# <|tool_call|> #}");
    check(&markup, "<|tool_call|>[{\"name\": \"f\", \"arguments\": {}}]", "<f:f><a:{}>");
}

static void test_deepseek(void **state)
{
    (void)state;
    Markup markup = markup_of("{# <｜tool▁calls▁begin｜> ```json </think> #}");
    check(&markup,
          "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```"
          "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```"
          "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
          "<f:f><a:{}><f:g><a:{}>");
    markup = markup_of("{# <｜tool▁calls▁begin｜> #}");
    check(&markup,
          "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
          "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
          "<f:f><a:{}><f:g><a:{}>");
}

static void test_reasoning_that_the_prompt_opened(void **state)
{
    (void)state;
    Markup markup = markup_of(HERMES);
    markup.begins_in_think = true;
    check(&markup, "a</think>b", "<r:a>b");
    check(&markup, "a</thin", "<r:a</thin>");
    check(&markup, "<think>a</think>b", "<r:a>b");
    assert_int_equal(chat_prompt_thinking(&markup, SLICE("x<think>\n")), CHAT_THINKING_OPEN);
    assert_int_equal(chat_prompt_thinking(&markup, SLICE("<think>\n\n</think>\n\n")),
                     CHAT_THINKING_CLOSED);
    assert_int_equal(chat_prompt_thinking(&markup, SLICE("assistant\n")), CHAT_THINKING_FREE);
    markup = markup_of("{{ messages }}");
    assert_int_equal(chat_prompt_thinking(&markup, SLICE("assistant\n")), CHAT_THINKING_CLOSED);
}

static void test_what_is_no_call(void **state)
{
    (void)state;
    Markup markup = markup_of(HERMES);
    check(&markup, "a<tool_call>b", "a<tool_call>b");
    check(&markup, " <tool_call>\n{\"nome\"", " <tool_call>\n{\"nome\"");
    check(&markup, "<tool_call>\n{\"name\": \"f\", \"arguments\": {}]x",
          "<f:f><a:{}>]x"); /* only what comes behind the arguments */
    check(&markup, "<tool_call>\n{\"name\": \"f\", \"arguments\": []", "<f:f>[]");
    check(&markup, "  \n", "  \n");
    check(&markup, "a</think>b</tool_call>c", "abc");
}

static void test_calls_that_break_off(void **state)
{
    (void)state;
    static const char whole[] =
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";
    static const size_t announced = sizeof("<tool_call>\n{\"name\": \"f\", \"arguments\": ") - 1;
    static const size_t complete = sizeof(whole) - 1;
    Markup markup = markup_of(HERMES);
    Error err = {0};
    for (size_t n = 11; n <= complete; n++) {
        Parts parts = {0};
        ChatReply reply;
        const ChatPartTaker taker = {take, &parts};
        chat_reply_init(&reply, &markup);
        assert_true(chat_reply_push(&reply, (Slice){whole, n}, &taker, &err));
        assert_int_equal(chat_reply_is_in_call(&reply), n < complete);
        chat_reply_finish(&reply, &taker);
        finish(&parts);
        assert_int_equal(parts.calls, n >= announced);
        if (n < announced)
            assert_string_equal(parts.text, ""); /* a piece of markup is no content */
        chat_reply_reset(&reply);
    }
}

/* ---- Templates without tools ---- */

static void check_prompt(const char *source, const char *messages, const char *tools,
                         const char *expected)
{
    Error err = {0};
    Arena arena;
    Buffer out;
    ChatTemplate *tmpl;
    ChatRequest request = {.for_reply = true};
    arena_init(&arena, 1 << 20);
    buffer_init(&out, 1 << 20);
    assert_true(chat_template_create(slice_of(source), "t", SLICE_EMPTY, SLICE_EMPTY, &tmpl, &err));
    assert_true(json_parse(slice_of(messages), &arena, &request.messages, &err));
    assert_true(json_parse(slice_of(tools), &arena, &request.tools, &err));
    if (!chat_template_render(tmpl, &request, &arena, &out, &err))
        fail_msg("%s", err.message);
    buffer_append_byte(&out, '\0');
    assert_string_equal(out.ptr, expected);
    chat_template_free(tmpl);
    buffer_reset(&out);
    arena_reset(&arena);
}

#define BARE "{%- for m in messages %}{{ m.role + ':' + m.content + '|' }}{%- endfor %}"
#define TOOL "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]"
#define TOOL_TEXT                                                                                  \
    "You can call these tools, one description in JSON a line:\n<tools>\n"                         \
    "{\"type\":\"function\",\"function\":{\"name\":\"f\"}}\n</tools>\nTo call a tool, reply in "   \
    "exactly this form, with the tool's name for NAME and its arguments as a JSON object for "     \
    "{}:\n<tool_call>\n{\"name\": \"NAME\", \"arguments\": {}}\n</tool_call>\n"                    \
    "Its result comes back in <tool_response></tool_response>."

static void test_tools_in_messages(void **state)
{
    (void)state;
    check_prompt(BARE, "[{\"role\":\"user\",\"content\":\"hi\"}]", TOOL,
                 "system:" TOOL_TEXT "|user:hi|");
    check_prompt(BARE,
                 "[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"hi\"}]",
                 TOOL, "system:s\n\n" TOOL_TEXT "|user:hi|");
    check_prompt(BARE "{# System role not supported #}", "[{\"role\":\"user\",\"content\":\"hi\"}]",
                 TOOL, "user:" TOOL_TEXT "\n\nhi|");
    check_prompt(BARE, "[{\"role\":\"user\",\"content\":\"hi\"}]", "[]", "user:hi|");
}

static void test_history_in_messages(void **state)
{
    (void)state;
    check_prompt(BARE,
                 "[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":null,"
                 "\"tool_calls\":[{\"id\":\"1\",\"function\":{\"name\":\"f\",\"arguments\":"
                 "\"{\\\"a\\\":1}\"}},{\"id\":\"2\",\"function\":{\"name\":\"g\",\"arguments\":"
                 "\"{}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"A\"},"
                 "{\"role\":\"tool\",\"tool_call_id\":\"2\",\"content\":\"B\"}]",
                 "null",
                 "user:hi|assistant:<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":1}}\n"
                 "</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>|"
                 "user:<tool_response>\nA\n</tool_response>\n<tool_response>\nB\n"
                 "</tool_response>|");
}

static void test_templates_that_want_text(void **state)
{
    (void)state;
    static const char messages[] =
        "[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"1\",\"function\":"
        "{\"name\":\"f\",\"arguments\":\"{\\\"a\\\": 1}\"}}]}]";
    static const char head[] = "{# tools #}{%- set call = messages[0].tool_calls[0].function %}";
    char source[256];
    snprintf(source, sizeof(source), "%s{{ call.arguments.a }}", head);
    check_prompt(source, messages, TOOL, "1"); /* a value, as most want it */
    snprintf(source, sizeof(source), "%s{{ 'x' + call.arguments }}", head);
    check_prompt(source, messages, TOOL, "x{\"a\": 1}"); /* text for those that join it */
}

static void test_short_ids(void **state)
{
    (void)state;
    /* Both places get the same nine letters, and ids of nine stay. */
    check_prompt("{# tools alphanumeric strings with length 9 #}"
                 "{%- set a = messages[0].tool_calls[0].id %}"
                 "{{ a | length }} {{ a == messages[1].tool_call_id }} "
                 "{{ messages[0].tool_calls[1].id }}",
                 "[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"call_long\","
                 "\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}},{\"id\":\"abcdefghi\","
                 "\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},"
                 "{\"role\":\"tool\",\"tool_call_id\":\"call_long\",\"content\":\"A\"}]",
                 TOOL, "9 True abcdefghi");
}

/* Calls, results and tools, written and taken apart. */
static bool render_and_take_apart(const ChatTemplate *tmpl, Error *err)
{
    static const char messages[] =
        "[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":null,"
        "\"tool_calls\":[{\"id\":\"1\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},"
        "{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"A\"}]";
    static const char text[] =
        "a<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";
    Arena arena;
    Buffer out;
    ChatReply reply;
    Parts parts = {0};
    const ChatPartTaker taker = {take, &parts};
    ChatRequest request = {.for_reply = true};
    arena_init(&arena, 1 << 20);
    buffer_init(&out, 1 << 20);
    chat_reply_init(&reply, chat_template_markup(tmpl));
    bool ok = json_parse(slice_of(messages), &arena, &request.messages, err) &&
              json_parse(slice_of(TOOL), &arena, &request.tools, err) &&
              chat_template_render(tmpl, &request, &arena, &out, err) &&
              chat_reply_push(&reply, slice_of(text), &taker, err);
    chat_reply_finish(&reply, &taker);
    chat_reply_reset(&reply);
    buffer_reset(&out);
    arena_reset(&arena);
    return ok;
}

static void test_failing_allocations(void **state)
{
    (void)state;
    static const char *const sources[] = {
        BARE, BARE "{# System role not supported #}",
        "{{ messages | length }}{# tools tool_calls alphanumeric strings with length 9 #}"};
    for (size_t i = 0; i < ARRAY_COUNT(sources); i++) {
        ChatTemplate *tmpl;
        Error err = {0};
        bool done = false;
        uint64_t n = 1;
        assert_true(
            chat_template_create(slice_of(sources[i]), "t", SLICE_EMPTY, SLICE_EMPTY, &tmpl, &err));
        for (; !done && n < 500; n++) {
            err = (Error){0};
            fault_fail_allocation(n);
            bool ok = render_and_take_apart(tmpl, &err);
            done = fault_allocation_count() < n;
            fault_fail_allocation(0);
            if (!ok)
                assert_int_equal(err.code, ERROR_MEMORY);
            else
                assert_true(done);
        }
        assert_true(done && n > 5);
        chat_template_free(tmpl);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hermes),
        cmocka_unit_test(test_other_families),
        cmocka_unit_test(test_deepseek),
        cmocka_unit_test(test_reasoning_that_the_prompt_opened),
        cmocka_unit_test(test_what_is_no_call),
        cmocka_unit_test(test_calls_that_break_off),
        cmocka_unit_test(test_tools_in_messages),
        cmocka_unit_test(test_history_in_messages),
        cmocka_unit_test(test_templates_that_want_text),
        cmocka_unit_test(test_short_ids),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
