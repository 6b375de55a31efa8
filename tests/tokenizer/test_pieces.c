/* SentencePiece models of the BPE kind, against ids and text recorded from the `sentencepiece`
 * package (make_pieces.py): with and without byte fallback, a compiled map of characters, removal
 * of extra spaces, user-defined and control pieces. */
#include "json.h"
#include "tokenizer.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { BYTES_MAX = 1 << 24 };

#define PIECES TEST_DATA_DIR "/tokenizer/pieces/"

static Tokenizer *open_model(const char *name)
{
    char path[PATH_BYTES_MAX];
    Tokenizer *tokenizer;
    Error err;
    snprintf(path, sizeof(path), PIECES "%s.model", name);
    if (!tokenizer_open(path, &tokenizer, &err))
        fail_msg("%s", err.message);
    return tokenizer;
}

static void assert_ids(const TokenList *got, const JsonValue *want, const char *name, size_t number)
{
    bool same = got->count == want->as.array.count;
    for (size_t i = 0; same && i < got->count; i++) {
        int64_t id;
        assert_true(json_to_int64(&want->as.array.items[i], &id));
        same = got->ids[i] == id;
    }
    if (!same)
        fail_msg("%s, case %zu: other ids", name, number);
}

static void check_case(const Tokenizer *tokenizer, const JsonValue *items, const char *name,
                       size_t number)
{
    TokenList ids = {0};
    Buffer whole, joined;
    TokenDecoder decoder;
    buffer_init(&whole, BYTES_MAX);
    buffer_init(&joined, BYTES_MAX);
    assert_true(tokenizer_encode(tokenizer, items[0].as.string, false, &ids, NULL));
    assert_ids(&ids, &items[1], name, number);
    assert_true(tokenizer_decode(tokenizer, ids.ids, ids.count, false, &whole, NULL));
    if (items[2].kind == JSON_STRING && !slice_equal(buffer_view(&whole), items[2].as.string))
        fail_msg("%s, case %zu: '%.*s', expected '%.*s'", name, number,
                 SLICE_ARG(buffer_view(&whole)), SLICE_ARG(items[2].as.string));
    token_decoder_init(&decoder, tokenizer, false);
    for (size_t i = 0; i < ids.count; i++)
        assert_true(token_decoder_push(&decoder, ids.ids[i], &joined, NULL));
    assert_true(token_decoder_finish(&decoder, &joined, NULL));
    assert_true(slice_equal(buffer_view(&whole), buffer_view(&joined)));
    token_list_reset(&ids);
    buffer_reset(&whole);
    buffer_reset(&joined);
}

static void check_model(const JsonValue *item)
{
    const char *name = json_get(item, SLICE("name"))->as.string.ptr;
    const JsonValue *cases = json_get(item, SLICE("cases"));
    Tokenizer *tokenizer = open_model(name);
    TokenList ids = {0};
    int64_t bos;
    for (size_t i = 0; i < cases->as.array.count; i++)
        check_case(tokenizer, cases->as.array.items[i].as.array.items, name, i);
    assert_true(json_to_int64(json_get(item, SLICE("bos")), &bos));
    assert_true(tokenizer_encode(tokenizer, SLICE(""), true, &ids, NULL));
    assert_int_equal(ids.count, bos >= 0);
    assert_true(bos < 0 || ids.ids[0] == bos);
    token_list_reset(&ids);
    tokenizer_free(tokenizer);
}

static void test_recorded(void **state)
{
    (void)state;
    Buffer file;
    Arena arena;
    const JsonValue *items = NULL;
    buffer_init(&file, BYTES_MAX);
    arena_init(&arena, BYTES_MAX);
    assert_true(file_read(PIECES "cases.json", BYTES_MAX, &file, NULL));
    assert_true(json_parse(buffer_view(&file), &arena, &items, NULL));
    assert_true(items->as.array.count > 0);
    for (size_t i = 0; i < items->as.array.count; i++)
        check_model(&items->as.array.items[i]);
    arena_reset(&arena);
    buffer_reset(&file);
}

/* What prompts are written with: control pieces are found in the text, and left out on demand. */
static void test_control_pieces(void **state)
{
    (void)state;
    Tokenizer *tokenizer = open_model("rules");
    int32_t control = tokenizer_find_token(tokenizer, SLICE("[CTL]"));
    TokenList ids = {0};
    Buffer text;
    buffer_init(&text, BYTES_MAX);
    assert_true(control >= 0 && tokenizer_is_special(tokenizer, control));
    assert_true(tokenizer_encode(tokenizer, SLICE("[CTL]the"), false, &ids, NULL));
    assert_int_equal(ids.ids[0], control);
    assert_true(tokenizer_decode(tokenizer, ids.ids, ids.count, true, &text, NULL));
    assert_true(slice_equal(buffer_view(&text), SLICE("the")));
    buffer_reset(&text);
    token_list_reset(&ids);
    tokenizer_free(tokenizer);
}

static void test_unigram_is_refused(void **state)
{
    (void)state;
    Tokenizer *tokenizer;
    Error err = {0};
    assert_false(tokenizer_open(PIECES "unigram.model", &tokenizer, &err));
    assert_null(tokenizer);
    assert_int_equal(err.code, ERROR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "unigram.model: "));
    assert_non_null(strstr(err.message, "tokenizer.json of type BPE"));
}

static void use(Slice model, bool must_load)
{
    Tokenizer *tokenizer = NULL;
    TokenList ids = {0};
    Error err = {0};
    bool ok = tokenizer_create_pieces(model, "m", &tokenizer, &err);
    assert_true(ok == (tokenizer != NULL) && ok == (err.code == ERROR_NONE));
    assert_true(ok || !must_load);
    if (ok && !tokenizer_encode(tokenizer, SLICE(" ab<sep>\xef\xac\x81 the  x"), true, &ids, &err))
        assert_int_equal(ids.count, 0);
    token_list_reset(&ids);
    tokenizer_free(tokenizer);
}

/* Cut off at every byte, and with each byte changed: an error or a tokenizer, never more. */
static void test_damage(void **state)
{
    (void)state;
    Buffer file;
    buffer_init(&file, BYTES_MAX);
    assert_true(file_read(PIECES "rules.model", BYTES_MAX, &file, NULL));
    for (size_t len = 0; len < file.len; len += 7)
        use((Slice){file.ptr, len}, false);
    for (size_t i = 0; i < file.len; i += 3) {
        char was = file.ptr[i];
        file.ptr[i] = (char)(was ^ (char)(1 << i % 8));
        use(buffer_view(&file), false);
        file.ptr[i] = was;
    }
    use(buffer_view(&file), true);
    buffer_reset(&file);
}

static void test_allocations(void **state)
{
    (void)state;
    Buffer file;
    buffer_init(&file, BYTES_MAX);
    assert_true(file_read(PIECES "rules.model", BYTES_MAX, &file, NULL));
    fault_fail_allocation(UINT64_MAX);
    use(buffer_view(&file), true);
    uint64_t count = fault_allocation_count();
    assert_true(count > 10);
    for (uint64_t n = 1; n <= count; n++) {
        fault_fail_allocation(n);
        use(buffer_view(&file), false);
        fault_fail_allocation(0);
    }
    buffer_reset(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recorded),           cmocka_unit_test(test_control_pieces),
        cmocka_unit_test(test_unigram_is_refused), cmocka_unit_test(test_damage),
        cmocka_unit_test(test_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
