/* Added tokens that a directory lists beside tokenizer.json or tokenizer.model. The ids are what
 * transformers 5.24 gives, but for those that it would invent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tokenizer.h"

static const char *const FILES[] = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json",
                                    "added_tokens.json", "special_tokens_map.json"};

/* a b c x of the model, <a> added; ids from 5 on are free. */
static const char TOKENIZER[] =
    "{\"added_tokens\": [{\"id\": 4, \"content\": \"<a>\", \"special\": true}], \"model\": "
    "{\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"<x>\": 3, \"<\": 8}, "
    "\"merges\": []}}";

static void put_bytes(const char *directory, const char *name, Slice content)
{
    char path[PATH_BYTES_MAX];
    assert_true(path_join(path, sizeof(path), directory, name, NULL));
    assert_true(file_write(path, content, NULL));
}

static void put_file(const char *directory, const char *name, const char *content)
{
    put_bytes(directory, name, slice_of(content));
}

static int setup(void **state)
{
    static char directory[64];
    strcpy(directory, "/tmp/mlx-serve-extra-tokens-XXXXXX");
    assert_non_null(mkdtemp(directory));
    put_file(directory, "tokenizer.json", TOKENIZER);
    *state = directory;
    return 0;
}

static int teardown(void **state)
{
    char path[PATH_BYTES_MAX];
    for (size_t i = 0; i < ARRAY_COUNT(FILES); i++) {
        assert_true(path_join(path, sizeof(path), *state, FILES[i], NULL));
        unlink(path);
    }
    return rmdir(*state);
}

static Tokenizer *open_model(const char *directory)
{
    Tokenizer *tokenizer;
    Error err = {.code = ERROR_NONE};
    if (!tokenizer_open_model(directory, &tokenizer, &err))
        fail_msg("%s", err.message);
    return tokenizer;
}

static void check_ids(const Tokenizer *tokenizer, const char *text, const int32_t *ids,
                      size_t count)
{
    TokenList list = {0};
    assert_true(tokenizer_encode(tokenizer, slice_of(text), false, &list, NULL));
    assert_int_equal(list.count, count);
    assert_memory_equal(list.ids, ids, count * sizeof(*ids));
    token_list_reset(&list);
}

#define CHECK_IDS(tokenizer, text, ...)                                                            \
    check_ids(tokenizer, text, (const int32_t[]){__VA_ARGS__},                                     \
              sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void test_decoder(void **state)
{
    put_file(*state, "tokenizer_config.json",
             "{\"added_tokens_decoder\": {"
             "\"4\": {\"content\": \"<a>\", \"special\": false, \"lstrip\": true}, "
             "\"5\": {\"content\": \"<|end|>\", \"special\": true, \"rstrip\": true}, "
             "\"3\": {\"content\": \"<x>\"}, "
             "\"7\": {\"content\": \"<tool>\", \"special\": false, \"normalized\": false}, "
             "\"0\": {\"content\": \"<taken>\"}, \"9\": {\"content\": \"b\"}}}");
    Tokenizer *tokenizer = open_model(*state);
    CHECK_IDS(tokenizer, "a<|end|>  b<x><tool>c", 0, 5, 1, 3, 7, 2);
    assert_true(tokenizer_is_special(tokenizer, 5));
    assert_false(tokenizer_is_special(tokenizer, 7));
    assert_int_equal(tokenizer_find_token(tokenizer, SLICE("<|end|>")), 5);
    assert_int_equal(tokenizer_vocabulary_size(tokenizer), 9);
    /* The tokenizer's file has the last word about what it holds. */
    assert_true(tokenizer_is_special(tokenizer, 4));
    CHECK_IDS(tokenizer, "a<a>b", 0, 4, 1);
    CHECK_IDS(tokenizer, "<taken>", 8, 0);
    tokenizer_free(tokenizer);
    assert_true(tokenizer_open(*state, &tokenizer, NULL));
    assert_int_equal(tokenizer_find_token(tokenizer, SLICE("<|end|>")), -1);
    tokenizer_free(tokenizer);
}

static void test_list(void **state)
{
    put_file(*state, "added_tokens.json",
             "{\"<|end|>\": 5, \"<tool>\": 6, \"<more>\": 7, \"<map>\": 10}");
    put_file(*state, "tokenizer_config.json",
             "{\"eos_token\": {\"content\": \"<|end|>\"}, \"additional_special_tokens\": "
             "[\"<other>\", {\"content\": \"<more>\"}], \"model_max_length\": 1}");
    put_file(*state, "special_tokens_map.json", "{\"pad_token\": \"<map>\"}");
    Tokenizer *tokenizer = open_model(*state);
    CHECK_IDS(tokenizer, "a<|end|>b<tool><more><map>", 0, 5, 1, 6, 7, 10);
    assert_true(tokenizer_is_special(tokenizer, 5));
    assert_false(tokenizer_is_special(tokenizer, 6));
    assert_true(tokenizer_is_special(tokenizer, 7));
    assert_true(tokenizer_is_special(tokenizer, 10));
    tokenizer_free(tokenizer);
    /* added_tokens_decoder replaces the list. */
    put_file(*state, "tokenizer_config.json", "{\"added_tokens_decoder\": {}}");
    tokenizer = open_model(*state);
    assert_int_equal(tokenizer_find_token(tokenizer, SLICE("<|end|>")), -1);
    tokenizer_free(tokenizer);
}

static void test_pieces(void **state)
{
    Buffer model, text;
    char path[PATH_BYTES_MAX];
    buffer_init(&model, 1 << 24);
    buffer_init(&text, 1 << 10);
    assert_true(file_read(TEST_DATA_DIR "/tokenizer/pieces/llama.model", 1 << 24, &model, NULL));
    put_bytes(*state, "tokenizer.model", buffer_view(&model));
    assert_true(path_join(path, sizeof(path), *state, "tokenizer.json", NULL));
    unlink(path);
    put_file(*state, "tokenizer_config.json",
             "{\"added_tokens_decoder\": {\"1\": {\"content\": \"<s>\", \"special\": true}, "
             "\"600\": {\"content\": \"<|im_start|>\", \"special\": true}, "
             "\"601\": {\"content\": \"<|im_end|>\", \"special\": true}}}");
    Tokenizer *tokenizer = open_model(*state);
    static const int32_t ids[] = {600, 283, 601, 1, 283, 2};
    check_ids(tokenizer, "<|im_start|>hello<|im_end|><s>hello</s>", ids, ARRAY_COUNT(ids));
    assert_true(tokenizer_decode(tokenizer, ids, ARRAY_COUNT(ids), true, &text, NULL));
    assert_true(slice_equal(buffer_view(&text), SLICE("hello hello")));
    assert_true(tokenizer_is_special(tokenizer, 601));
    tokenizer_free(tokenizer);
    buffer_reset(&model);
    buffer_reset(&text);
}

static void check_refused(const char *directory, const char *file, const char *content,
                          const char *message)
{
    Tokenizer *tokenizer;
    Error err = {.code = ERROR_NONE};
    put_file(directory, file, content);
    assert_false(tokenizer_open_model(directory, &tokenizer, &err));
    assert_null(tokenizer);
    if (!strstr(err.message, file) || !strstr(err.message, message))
        fail_msg("%s", err.message);
    put_file(directory, file, "{}");
}

static void test_wrong_files(void **state)
{
    static const char config[] = "tokenizer_config.json", list[] = "added_tokens.json";
    check_refused(*state, config, "{", "line 1");
    check_refused(*state, config, "{\"added_tokens_decoder\": []}", "expected an object");
    check_refused(*state, config, "{\"added_tokens_decoder\": {\"x\": {}}}", "key 'x'");
    check_refused(*state, config, "{\"added_tokens_decoder\": {\"\": {}}}", "key ''");
    check_refused(*state, config, "{\"added_tokens_decoder\": {\"99999999999999999999\": {}}}",
                  "key '9999");
    check_refused(*state, config, "{\"added_tokens_decoder\": {\"5\": {}}}", "5: no content");
    check_refused(*state, config, "{\"added_tokens_decoder\": {\"5\": {\"content\": 1}}}",
                  "content");
    check_refused(*state, config,
                  "{\"added_tokens_decoder\": {\"5\": {\"content\": \"y\", \"special\": 1}}}",
                  "special");
    check_refused(*state, list, "{\"y\": -1}", "'y'");
    check_refused(*state, list, "{\"y\": \"5\"}", "'y'");
    put_file(*state, list, "[]");
    tokenizer_free(open_model(*state));
}

static void test_failing_allocations(void **state)
{
    put_file(*state, "added_tokens.json", "{\"<|end|>\": 5, \"<tool>\": 6}");
    put_file(*state, "tokenizer_config.json", "{\"eos_token\": \"<|end|>\"}");
    bool done = false;
    for (uint64_t nth = 1; !done; nth++) {
        Tokenizer *tokenizer;
        Error err = {.code = ERROR_NONE};
        fault_fail_allocation(nth);
        bool ok = tokenizer_open_model(*state, &tokenizer, &err);
        done = fault_allocation_count() < nth;
        fault_fail_allocation(0);
        assert_int_equal(ok, done);
        assert_int_equal(err.code, done ? ERROR_NONE : ERROR_MEMORY);
        tokenizer_free(tokenizer);
        assert_true(nth < 1000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_decoder, setup, teardown),
        cmocka_unit_test_setup_teardown(test_list, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pieces, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wrong_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failing_allocations, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
