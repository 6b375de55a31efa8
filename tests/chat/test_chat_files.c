/* What a model's directory says about its chats: which template is taken, with and without tools,
 * and where the special tokens come from. Expectations are those of transformers 5.24. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chat.h"

static const char *const FILES[] = {
    "additional_chat_templates/tool_use.jinja",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
};

static const char FOLDER[] = "additional_chat_templates";

static void make_path(char path[PATH_BYTES_MAX], const char *directory, const char *name)
{
    assert_true(path_join(path, PATH_BYTES_MAX, directory, name, NULL));
}

static int setup(void **state)
{
    static char directory[64];
    char path[PATH_BYTES_MAX];
    strcpy(directory, "/tmp/mlx-serve-chat-files-XXXXXX");
    assert_non_null(mkdtemp(directory));
    make_path(path, directory, FOLDER);
    assert_int_equal(mkdir(path, 0700), 0);
    *state = directory;
    return 0;
}

static int teardown(void **state)
{
    char path[PATH_BYTES_MAX];
    for (size_t i = 0; i < ARRAY_COUNT(FILES); i++) {
        make_path(path, *state, FILES[i]);
        unlink(path);
    }
    make_path(path, *state, FOLDER);
    return rmdir(path) || rmdir(*state);
}

static void put_file(const char *directory, const char *name, const char *content)
{
    char path[PATH_BYTES_MAX];
    make_path(path, directory, name);
    assert_true(file_write(path, slice_of(content), NULL));
}

static ChatTemplate *open_model(const char *directory)
{
    Error err = {.code = ERROR_NONE};
    ChatTemplate *tmpl;
    bool ok = chat_template_open(directory, SLICE("llama"), &tmpl, &err);
    if (!ok)
        print_error("%s\n", err.message);
    assert_true(ok);
    return tmpl;
}

/* Renders one message; tools: JSON text, or NULL. */
static void check_prompt(const ChatTemplate *tmpl, const char *tools, bool for_reply,
                         const char *expected)
{
    Arena arena;
    Buffer out;
    Error err = {.code = ERROR_NONE};
    ChatRequest request = {.for_reply = for_reply};
    arena_init(&arena, 1 << 20);
    buffer_init(&out, 1 << 20);
    assert_true(json_parse(SLICE("[{\"role\": \"user\", \"content\": \"U\"}]"), &arena,
                           &request.messages, &err));
    assert_true(!tools || json_parse(slice_of(tools), &arena, &request.tools, &err));
    assert_true(chat_template_render(tmpl, &request, &arena, &out, &err));
    buffer_append_byte(&out, '\0');
    assert_string_equal(out.ptr, expected);
    buffer_reset(&out);
    arena_reset(&arena);
}

/* Opens the model and compares prompts without and with tools. */
static void check_model(const char *directory, const char *plain, const char *with_tools)
{
    static const char tools[] = "[{\"type\": \"function\", \"function\": {\"name\": \"f\"}}]";
    ChatTemplate *tmpl = open_model(directory);
    assert_false(chat_template_is_default(tmpl));
    check_prompt(tmpl, NULL, false, plain);
    check_prompt(tmpl, NULL, true, plain);
    check_prompt(tmpl, "[]", true, plain);
    check_prompt(tmpl, tools, false, with_tools);
    check_prompt(tmpl, tools, true, with_tools);
    chat_template_free(tmpl);
}

#define TOOLS "tools {{ tools | length }}"

static void test_named_templates(void **state)
{
    put_file(*state, "tokenizer_config.json",
             "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"" TOOLS
             "\"}, {\"name\": \"default\", \"template\": \"default\"}]}");
    check_model(*state, "default", "tools 1");
    put_file(*state, "tokenizer_config.json",
             "{\"chat_template\": {\"tool_use\": \"" TOOLS "\", \"default\": \"default\"}}");
    check_model(*state, "default", "tools 1");
    /* A file replaces all templates of the configuration. */
    put_file(*state, "chat_template.jinja", "file{% if tools %} {{ tools | length }}{% endif %}");
    check_model(*state, "file", "file 1");
    put_file(*state, "additional_chat_templates/tool_use.jinja", "beside " TOOLS);
    check_model(*state, "file", "beside tools 1");
}

static void test_template_of_processor(void **state)
{
    put_file(*state, "chat_template.json",
             "{\"chat_template\": \"old{% if tools %}!{% endif %}\"}");
    check_model(*state, "old", "old!");
    put_file(*state, "tokenizer_config.json",
             "{\"chat_template\": \"new{% if tools %}!{% endif %}\"}");
    check_model(*state, "new", "new!");
}

static void test_no_default(void **state)
{
    put_file(*state, "tokenizer_config.json",
             "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"R\"}, "
             "{\"name\": \"tool_use\", \"template\": \"" TOOLS "\"}]}");
    ChatTemplate *tmpl = open_model(*state);
    assert_true(chat_template_is_default(tmpl));
    check_prompt(tmpl, NULL, true, "<|im_start|>user\nU<|im_end|>\n");
    check_prompt(tmpl, "[{}]", true, "tools 1");
    chat_template_free(tmpl);
}

static void check_open_fails(const char *directory, const char *place)
{
    Error err = {.code = ERROR_NONE};
    ChatTemplate *tmpl;
    assert_false(chat_template_open(directory, SLICE("llama"), &tmpl, &err));
    assert_null(tmpl);
    assert_non_null(strstr(err.message, place));
}

static void test_damaged_files(void **state)
{
    put_file(*state, "special_tokens_map.json", "{");
    check_open_fails(*state, "special_tokens_map.json");
    put_file(*state, "special_tokens_map.json", "{}");
    put_file(*state, "chat_template.json", "");
    check_open_fails(*state, "chat_template.json");
    put_file(*state, "chat_template.json", "{}");
    put_file(*state, "additional_chat_templates/tool_use.jinja", "{% if %}");
    check_open_fails(*state, "additional_chat_templates/tool_use.jinja:1:");
    put_file(*state, "chat_template.jinja", "T");
    check_open_fails(*state, "additional_chat_templates/tool_use.jinja:1:");
}

/* The form of calls is that of the template which writes them. */
static void test_markup(void **state)
{
    put_file(*state, "chat_template.jinja", "{{ '<think>' }}");
    put_file(*state, "additional_chat_templates/tool_use.jinja",
             "{{ tools }}{{ tool_calls }}[TOOL_CALLS]");
    ChatTemplate *tmpl = open_model(*state);
    const Markup *markup = chat_template_markup(tmpl);
    assert_true(slice_equal(markup->think_open, SLICE("<think>")));
    assert_true(slice_equal(markup->calls.triggers[0].text, SLICE("[TOOL_CALLS]")));
    chat_template_free(tmpl);
}

static void check_tokens(const char *directory, const char *expected)
{
    put_file(directory, "chat_template.jinja",
             "{{ bos_token is defined }} {{ bos_token }} {{ eos_token }} {{ pad_token }} "
             "{{ unk_token }}");
    check_model(directory, expected, expected);
}

static void test_special_tokens(void **state)
{
    put_file(*state, "special_tokens_map.json",
             "{\"bos_token\": {\"content\": \"<s>\", \"lstrip\": false}, \"eos_token\": \"</s>\"}");
    check_tokens(*state, "True <s> </s>  ");
    ChatTemplate *tmpl = open_model(*state);
    assert_true(slice_equal(chat_template_bos_token(tmpl), SLICE("<s>")));
    assert_true(slice_equal(chat_template_eos_token(tmpl), SLICE("</s>")));
    chat_template_free(tmpl);
    put_file(*state, "tokenizer_config.json",
             "{\"eos_token\": \"<e>\", \"pad_token\": \"<p>\", \"unk_token\": {\"content\": "
             "\"<u>\"}}");
    check_tokens(*state, "True <s> </s> <p> <u>");
    /* Newer configurations list the added tokens, and have the last word. */
    put_file(*state, "tokenizer_config.json",
             "{\"bos_token\": null, \"eos_token\": \"<e>\", \"added_tokens_decoder\": {}}");
    check_tokens(*state, "False  <e>  ");
}

static void test_failing_allocations(void **state)
{
    put_file(*state, "chat_template.jinja", "{{ messages }}");
    put_file(*state, "additional_chat_templates/tool_use.jinja", TOOLS);
    put_file(*state, "tokenizer_config.json", "{\"bos_token\": \"<s>\"}");
    put_file(*state, "special_tokens_map.json", "{\"eos_token\": \"</s>\"}");
    bool done = false;
    for (uint64_t nth = 1; !done; nth++) {
        Error err = {.code = ERROR_NONE};
        ChatTemplate *tmpl;
        fault_fail_allocation(nth);
        bool ok = chat_template_open(*state, SLICE("llama"), &tmpl, &err);
        done = fault_allocation_count() < nth;
        fault_fail_allocation(0);
        assert_int_equal(ok, done);
        assert_int_equal(err.code, done ? ERROR_NONE : ERROR_MEMORY);
        chat_template_free(tmpl);
        assert_true(nth < 1000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_named_templates, setup, teardown),
        cmocka_unit_test_setup_teardown(test_template_of_processor, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_default, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_markup, setup, teardown),
        cmocka_unit_test_setup_teardown(test_special_tokens, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failing_allocations, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
