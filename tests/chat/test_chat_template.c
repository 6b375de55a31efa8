/* Where a model's template is found, the defaults, and what happens to messages before rendering.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chat.h"

typedef struct Case {
    Arena arena;
    Buffer out;
    Error err;
    ChatRequest request;
} Case;

static void case_init(Case *test, const char *messages)
{
    *test = (Case){.err = {.code = ERROR_NONE}};
    arena_init(&test->arena, 1 << 20);
    buffer_init(&test->out, 1 << 20);
    assert_true(json_parse(slice_of(messages), &test->arena, &test->request.messages, &test->err));
}

static void case_reset(Case *test)
{
    buffer_reset(&test->out);
    arena_reset(&test->arena);
}

static bool render(Case *test, const ChatTemplate *tmpl)
{
    buffer_clear(&test->out);
    return chat_template_render(tmpl, &test->request, &test->arena, &test->out, &test->err);
}

static void check_out(Case *test, const char *expected)
{
    buffer_append_byte(&test->out, '\0');
    assert_string_equal(test->out.ptr, expected);
}

/* Renders messages through source and compares. */
static void check(const char *source, const char *messages, bool join, const char *expected)
{
    Case test;
    ChatTemplate *tmpl;
    case_init(&test, messages);
    test.request.for_reply = join;
    assert_true(
        chat_template_create(slice_of(source), "t", SLICE("<s>"), SLICE_EMPTY, &tmpl, &test.err));
    bool ok = render(&test, tmpl);
    if (!ok)
        print_error("%s\n", test.err.message);
    assert_true(ok);
    check_out(&test, expected);
    chat_template_free(tmpl);
    case_reset(&test);
}

static const char dump[] = "{% for m in messages %}{{ m | tojson }}{% endfor %}";

static void test_reasoning(void **state)
{
    (void)state;
    check(dump, "[{\"role\":\"a\",\"reasoning\":\"r\"}]", false,
          "{\"thinking\": \"r\", \"role\": \"a\", \"reasoning\": \"r\", \"reasoning_content\": "
          "\"r\"}");
    check(dump, "[{\"role\":\"a\",\"thinking\":\"t\",\"reasoning_content\":null}]", false,
          "{\"thinking\": \"t\", \"role\": \"a\", \"reasoning_content\": \"t\"}");
    check(dump, "[{\"thinking\":\"t\",\"reasoning_content\":\"c\"}]", true,
          "{\"thinking\": \"t\", \"reasoning_content\": \"c\"}");
    check(dump, "[{\"role\":\"a\",\"thinking\":null}]", false,
          "{\"role\": \"a\", \"thinking\": null}");
}

static void test_content(void **state)
{
    (void)state;
    const char *parts =
        "[{\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]";
    check("{{ messages[0].content + '!' }}", parts, true, "ab!");
    check("{{ messages[0].content | length }}", parts, false, "2");
    check("{{ messages[0].content }}",
          "[{\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
          "{\"type\":\"refusal\",\"refusal\":\"no\"}]}]",
          true, "ano");
    check("{{ messages[0].content | length }}",
          "[{\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"image\"}]}]", true, "2");
    check("{{ messages[0].content }}", "[{\"content\":[]}]", true, "[]");
    check("{{ messages[0].content }}", "[{\"content\":null}]", true, "None");
}

static void test_tool_calls(void **state)
{
    (void)state;
    const char *call = "[{\"tool_calls\":[{\"id\":\"1\",\"function\":{\"name\":\"f\","
                       "\"arguments\":\"{\\\"x\\\": [1]}\"}}]}]";
    const char *show = "{{ messages[0].tool_calls[0].function.arguments is mapping }}"
                       "{{ messages[0].tool_calls[0].function.arguments }}";
    check(show, call, true, "True{'x': [1]}");
    check(show, call, false, "False{\"x\": [1]}");
    check(show, "[{\"tool_calls\":[{\"function\":{\"arguments\":\"{oops\"}}]}]", true,
          "False{oops");
    check(show, "[{\"tool_calls\":[{\"function\":{\"arguments\":\"\"}}]}]", true, "True{}");
    check(show, "[{\"tool_calls\":[{\"function\":{\"arguments\":\"\"}}]}]", false, "False");
    check("{{ messages[0].tool_calls }}", "[{\"tool_calls\":[5, {\"function\":1}]}]", true,
          "[5, {'function': 1}]");
}

static void test_variables(void **state)
{
    (void)state;
    check("{{ tools is none }}{{ documents is none }}{{ bos_token }}{{ eos_token is defined }}"
          "{{ add_generation_prompt }}",
          "[]", false, "TrueTrue<s>FalseFalse");
    Case test;
    ChatTemplate *tmpl;
    const JsonValue *bos, *kwargs;
    case_init(&test, "[]");
    assert_true(json_parse(SLICE("null"), &test.arena, &bos, &test.err));
    assert_true(json_parse(SLICE("{\"k\": 1, \"tools\": [2]}"), &test.arena, &kwargs, &test.err));
    test.request.bos_token = bos;
    test.request.kwargs = kwargs;
    test.request.now_text = "2026-01-02T03:04:05";
    assert_true(chat_template_create(
        SLICE("{{ bos_token is defined }}{{ k }}{{ tools }}{{ strftime_now('%H') }}"), "t",
        SLICE("<s>"), SLICE_EMPTY, &tmpl, &test.err));
    assert_true(render(&test, tmpl));
    check_out(&test, "False1[2]03");
    chat_template_free(tmpl);
    case_reset(&test);
}

static void test_wrong_messages(void **state)
{
    (void)state;
    const char *wrong[] = {"{}", "[1]", "\"x\""};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        Case test;
        ChatTemplate *tmpl;
        case_init(&test, wrong[i]);
        assert_true(
            chat_template_create(SLICE("x"), "t", SLICE_EMPTY, SLICE_EMPTY, &tmpl, &test.err));
        assert_false(render(&test, tmpl));
        assert_int_equal(test.err.code, ERROR_INVALID);
        assert_non_null(strstr(test.err.message, "messages"));
        assert_int_equal(test.out.len, 0);
        chat_template_free(tmpl);
        case_reset(&test);
    }
}

/* ---- Models on disk ---- */

static void put_file(const char *directory, const char *name, const char *content)
{
    char path[PATH_BYTES_MAX];
    assert_true(path_join(path, sizeof(path), directory, name, NULL));
    assert_true(file_write(path, slice_of(content), NULL));
}

static void remove_file(const char *directory, const char *name)
{
    char path[PATH_BYTES_MAX];
    assert_true(path_join(path, sizeof(path), directory, name, NULL));
    unlink(path);
}

static const char conversation[] =
    "[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\",\"content\":\" U \"},"
    "{\"role\":\"assistant\",\"content\":null},{\"role\":\"user\",\"content\":"
    "[{\"type\":\"text\",\"text\":\"V\"}]}]";

static void check_model(const char *directory, const char *model_type, bool is_default,
                        const char *expected)
{
    Case test;
    ChatTemplate *tmpl;
    case_init(&test, conversation);
    test.request.add_generation_prompt = true;
    bool ok = chat_template_open(directory, slice_of(model_type), &tmpl, &test.err);
    if (!ok)
        print_error("%s\n", test.err.message);
    assert_true(ok);
    assert_int_equal(chat_template_is_default(tmpl), is_default);
    assert_true(chat_template_source(tmpl).len > 0);
    assert_true(render(&test, tmpl));
    check_out(&test, expected);
    chat_template_free(tmpl);
    case_reset(&test);
}

static void test_open(void **state)
{
    char directory[] = "/tmp/mlx-serve-chat-XXXXXX";
    (void)state;
    assert_non_null(mkdtemp(directory));
    check_model(directory, "llama", true,
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n U "
                "<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
                "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n");
    put_file(directory, "tokenizer_config.json",
             "{\"bos_token\": {\"content\": \"<bos>\"}, \"eos_token\": \"</s>\"}");
    check_model(
        directory, "gemma3_text", true,
        "<bos><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\n<end_of_turn>\n"
        "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n");
    put_file(directory, "tokenizer_config.json",
             "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"T\"}, {\"name\": "
             "\"default\", \"template\": "
             "\"D{{ eos_token }}\"}], \"eos_token\": \"</s>\"}");
    check_model(directory, "llama", false, "D</s>");
    put_file(directory, "tokenizer_config.json",
             "{\"chat_template\": \"string\", \"bos_token\": null}");
    check_model(directory, "llama", false, "string");
    put_file(directory, "chat_template.jinja", "file {{ bos_token is defined }}\n");
    check_model(directory, "llama", false, "file False");
    Error err = {.code = ERROR_NONE};
    ChatTemplate *tmpl;
    put_file(directory, "chat_template.jinja", "{% if %}");
    assert_false(chat_template_open(directory, SLICE("llama"), &tmpl, &err));
    assert_non_null(strstr(err.message, "chat_template.jinja:1:"));
    assert_null(tmpl);
    put_file(directory, "tokenizer_config.json", "{");
    assert_false(chat_template_open(directory, SLICE("llama"), &tmpl, &err));
    assert_non_null(strstr(err.message, "tokenizer_config.json"));
    remove_file(directory, "chat_template.jinja");
    remove_file(directory, "tokenizer_config.json");
    rmdir(directory);
}

static void test_failing_allocations(void **state)
{
    (void)state;
    bool done = false;
    for (uint64_t nth = 1; !done; nth++) {
        Case test;
        ChatTemplate *tmpl = NULL;
        case_init(&test, conversation);
        test.request.for_reply = true;
        arena_reset(
            &test.arena); /* below, every allocation is counted; the messages are parsed again */
        Error err = {.code = ERROR_NONE};
        fault_fail_allocation(nth);
        bool ok = json_parse(slice_of(conversation), &test.arena, &test.request.messages, &err) &&
                  chat_template_create(SLICE("{{ messages }}"), "t", SLICE("b"), SLICE("e"), &tmpl,
                                       &err) &&
                  chat_template_render(tmpl, &test.request, &test.arena, &test.out, &err);
        done = fault_allocation_count() < nth;
        fault_fail_allocation(0);
        assert_int_equal(ok, done);
        assert_int_equal(err.code, done ? ERROR_NONE : ERROR_MEMORY);
        chat_template_free(tmpl);
        case_reset(&test);
        assert_true(nth < 1000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reasoning),           cmocka_unit_test(test_content),
        cmocka_unit_test(test_tool_calls),          cmocka_unit_test(test_variables),
        cmocka_unit_test(test_wrong_messages),      cmocka_unit_test(test_open),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
