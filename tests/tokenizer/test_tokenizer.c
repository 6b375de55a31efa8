/* Against ids and text recorded from Hugging Face's library: small tokenizers of known models
 * (models.json), and one tokenizer for each option of the pipeline (pipelines.json, written by
 * make_pipeline_cases.py). A file of the latter form may be given as argument instead. */
#include "json.h"
#include "tokenizer.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { ARENA_BYTES = 1 << 30, TEXT_BYTES = 1 << 30 };

static const char *pipelines_path = TEST_DATA_DIR "/tokenizer/pipelines.json";

/* ---- Recorded cases ---- */

static void read_ids(const JsonValue *array, TokenList *out)
{
    *out = (TokenList){0};
    for (size_t i = 0; i < array->as.array.count; i++) {
        int64_t id;
        assert_true(json_to_int64(&array->as.array.items[i], &id));
        assert_true(token_list_append(out, (int32_t)id, NULL));
    }
}

static void assert_ids(const TokenList *got, const TokenList *want, const char *name, size_t number)
{
    bool same = got->count == want->count &&
                (got->count == 0 || memcmp(got->ids, want->ids, got->count * sizeof(int32_t)) == 0);
    if (same)
        return;
    print_error("%s, case %zu\n   got:", name, number);
    for (size_t i = 0; i < got->count; i++)
        print_error(" %d", (int)got->ids[i]);
    print_error("\n  want:");
    for (size_t i = 0; i < want->count; i++)
        print_error(" %d", (int)want->ids[i]);
    print_error("\n");
    fail();
}

static void assert_text(Slice got, Slice want, const char *name, size_t number)
{
    if (slice_equal(got, want))
        return;
    fail_msg("%s, case %zu\n   got: '%.*s'\n  want: '%.*s'", name, number, SLICE_ARG(got),
             SLICE_ARG(want));
}

static void check_encoding(const Tokenizer *tokenizer, Slice text, bool add_special,
                           const TokenList *want, const char *name, size_t number)
{
    TokenList got = {0};
    Error err;
    if (!tokenizer_encode(tokenizer, text, add_special, &got, &err))
        fail_msg("%s, case %zu: %s", name, number, err.message);
    assert_ids(&got, want, name, number);
    token_list_reset(&got);
}

/* Whole and in pieces, the decoder moved to a copy after every push. The exact bytes of the tokens
 * are the text where nothing had to be repaired. */
static void check_decoding(const Tokenizer *tokenizer, const TokenList *ids, bool skip_special,
                           Slice want, const char *name, size_t number)
{
    Buffer whole, joined, exact;
    TokenDecoder decoder;
    buffer_init(&exact, TEXT_BYTES);
    buffer_init(&whole, TEXT_BYTES);
    buffer_init(&joined, TEXT_BYTES);
    assert_true(tokenizer_decode(tokenizer, ids->ids, ids->count, skip_special, &whole, NULL));
    assert_text(buffer_view(&whole), want, name, number);
    token_decoder_init(&decoder, tokenizer, skip_special);
    for (size_t i = 0; i < ids->count; i++) {
        TokenDecoder copy = decoder;
        size_t before = joined.len;
        assert_true(token_decoder_append_bytes(&copy, ids->ids[i], &exact, NULL));
        assert_true(token_decoder_push(&copy, ids->ids[i], &joined, NULL));
        assert_true(utf8_is_valid((Slice){joined.ptr + before, joined.len - before}));
        decoder = copy;
    }
    assert_true(token_decoder_finish(&decoder, &joined, NULL));
    assert_text(buffer_view(&joined), want, name, number);
    if (slice_find(want, SLICE("\xef\xbf\xbd"), 0) == SIZE_MAX)
        assert_text(buffer_view(&exact), want, name, number);
    buffer_reset(&exact);
    buffer_reset(&whole);
    buffer_reset(&joined);
}

/* [text or null, ids, ids with special tokens, their text, their text without special tokens] */
static void check_case(const Tokenizer *tokenizer, const JsonValue *items, const char *name,
                       size_t number)
{
    TokenList ids, special;
    read_ids(&items[1], &ids);
    read_ids(&items[2], &special);
    if (items[0].kind == JSON_STRING) {
        check_encoding(tokenizer, items[0].as.string, false, &ids, name, number);
        check_encoding(tokenizer, items[0].as.string, true, &special, name, number);
    }
    check_decoding(tokenizer, &special, false, items[3].as.string, name, number);
    check_decoding(tokenizer, &special, true, items[4].as.string, name, number);
    token_list_reset(&ids);
    token_list_reset(&special);
}

static void write_tokenizer(const JsonValue *item, Buffer *out)
{
    JsonWriter writer;
    buffer_init(out, TEXT_BYTES);
    json_writer_init(&writer, out, 0);
    json_write_value(&writer, json_get(item, SLICE("tokenizer")));
    assert_false(out->failed);
}

typedef void ItemCheck(const JsonValue *item, Slice tokenizer_json, const char *name);

static void for_each_item(const char *path, ItemCheck *check)
{
    Buffer file, json;
    Arena arena;
    Error err;
    const JsonValue *items = NULL;
    buffer_init(&file, TEXT_BYTES);
    arena_init(&arena, ARENA_BYTES);
    if (!file_read(path, TEXT_BYTES, &file, &err) ||
        !json_parse(buffer_view(&file), &arena, &items, &err))
        fail_msg("%s", err.message);
    assert_true(items->as.array.count > 0);
    for (size_t i = 0; i < items->as.array.count; i++) {
        const JsonValue *item = &items->as.array.items[i];
        write_tokenizer(item, &json);
        check(item, buffer_view(&json), json_get(item, SLICE("name"))->as.string.ptr);
        buffer_reset(&json);
    }
    arena_reset(&arena);
    buffer_reset(&file);
}

static void check_item(const JsonValue *item, Slice json, const char *name)
{
    Tokenizer *tokenizer;
    Error err;
    if (!tokenizer_create(json, name, &tokenizer, &err))
        fail_msg("%s", err.message);
    const JsonValue *cases = json_get(item, SLICE("cases"));
    for (size_t i = 0; i < cases->as.array.count; i++)
        check_case(tokenizer, cases->as.array.items[i].as.array.items, name, i);
    tokenizer_free(tokenizer);
}

static void test_models(void **state)
{
    (void)state;
    for_each_item(TEST_DATA_DIR "/tokenizer/models.json", check_item);
}

static void test_pipelines(void **state)
{
    (void)state;
    for_each_item(pipelines_path, check_item);
}

/* ---- Failing allocations ---- */

/* decoded: what text becomes there and back, or empty: not known yet. A success has all of it. */
static bool use_tokenizer(Slice json, Slice text, Buffer *decoded)
{
    Tokenizer *tokenizer = NULL;
    TokenList ids = {0};
    Buffer out;
    Error err = {0};
    buffer_init(&out, TEXT_BYTES);
    bool ok = tokenizer_create(json, "test", &tokenizer, &err);
    assert_true(ok == (tokenizer != NULL));
    if (ok && !tokenizer_encode(tokenizer, text, true, &ids, &err)) {
        ok = false;
        assert_int_equal(ids.count, 0);
    }
    ok = ok && tokenizer_decode(tokenizer, ids.ids, ids.count, false, &out, &err);
    fault_fail_allocation(0);
    assert_true(ok || err.code == ERROR_MEMORY);
    if (ok && decoded->len == 0)
        buffer_append_slice(decoded, buffer_view(&out));
    assert_true(!ok || slice_equal(buffer_view(&out), buffer_view(decoded)));
    token_list_reset(&ids);
    buffer_reset(&out);
    tokenizer_free(tokenizer);
    return ok;
}

/* A regex that finds no memory for its JIT stack or code still works, so success is no proof of the
 * end: go on until the count of allocations is passed. */
static void fail_each_allocation(const JsonValue *item, Slice json, const char *name)
{
    static const char text[] =
        "hello  a\xcc\xa3\xcc\x81 \xff world \xf0\x9f\x98\x80 12 <x>"
        " supercalifragilisticexpialidocious aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    (void)item;
    (void)name;
    Slice slice = {text, sizeof(text) - 1};
    Buffer decoded;
    buffer_init(&decoded, TEXT_BYTES);
    assert_true(use_tokenizer(json, slice, &decoded));
    fault_fail_allocation(UINT64_MAX);
    uint64_t last = 0;
    for (uint64_t n = 1; n <= last + 8; n++) {
        fault_fail_allocation(n);
        bool ok = use_tokenizer(json, slice, &decoded);
        uint64_t count = fault_allocation_count();
        if (ok && count > last)
            last = count;
        if (!ok && n > last)
            last = n;
    }
    assert_true(use_tokenizer(json, slice, &decoded));
    buffer_reset(&decoded);
}

static void test_allocations(void **state)
{
    (void)state;
    for_each_item(TEST_DATA_DIR "/tokenizer/models.json", fail_each_allocation);
    for_each_item(TEST_DATA_DIR "/tokenizer/pipelines.json", fail_each_allocation);
}

/* ---- Hostile files ---- */

#define MODEL(vocab, merges)                                                                       \
    "{\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges "}"
#define AB "{\"a\":0,\"b\":1,\"ab\":2}"

static void assert_refused(const char *json, const char *message)
{
    Tokenizer *tokenizer = (Tokenizer *)&tokenizer;
    Error err = {0};
    assert_false(tokenizer_create(slice_of(json), "bad.json", &tokenizer, &err));
    assert_null(tokenizer);
    if (!strstr(err.message, message) || !strstr(err.message, "bad.json"))
        fail_msg("'%s' is not in '%s'", message, err.message);
}

static void test_hostile_models(void **state)
{
    (void)state;
    assert_refused("", "");
    assert_refused("[]", "the file is not of the expected kind");
    assert_refused("{}", "no model");
    assert_refused("{\"model\":null}", "model is not of the expected kind");
    assert_refused("{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", "a model of type 'Unigram'");
    assert_refused("{\"model\":{\"vocab\":{}}}", "no merges");
    assert_refused("{\"model\":{\"merges\":[]}}", "no vocab");
    assert_refused(MODEL("{\"a\":-1}", "[]") "}", "id -1");
    assert_refused(MODEL("{\"a\":4194304}", "[]") "}", "id 4194304");
    assert_refused(MODEL("{\"a\":99999999999999999999}", "[]") "}", "id is not an integer");
    assert_refused(MODEL("{\"a\":1.5}", "[]") "}", "id is not an integer");
    assert_refused(MODEL("{\"a\":\"x\"}", "[]") "}", "not of the expected kind");
    assert_refused(MODEL("{\"a\":0,\"b\":0}", "[]") "}", "id 0 is given to two tokens");
    assert_refused(MODEL("{\"a\":0,\"a\":1}", "[]") "}", "two ids");
    assert_refused(MODEL(AB, "[\"a c\"]") "}", "merge 0: token 'c'");
    assert_refused(MODEL(AB, "[\"a b\",\"b a\"]") "}", "merge 1: token 'ba'");
    assert_refused(MODEL(AB, "[\"ab\"]") "}", "merge 0 is not two tokens");
    assert_refused(MODEL(AB, "[\"a b c\"]") "}", "merge 0 is not two tokens");
    assert_refused(MODEL(AB, "[[\"a\"]]") "}", "a merge");
    assert_refused(MODEL(AB, "[[\"a\",\"b\",\"c\"]]") "}", "a merge");
    assert_refused(MODEL(AB, "[7]") "}", "a merge");
    assert_refused(MODEL(AB, "[]") ",\"model\":{}}", "model occurs twice");
    assert_refused("{\"model\":{\"vocab\":{},\"vocab\":{}}}", "vocab occurs twice");
    assert_refused("{\"model\":{\"vocab\":{},\"merges\":[],\"dropout\":0.5}}", "dropout");
    assert_refused("{\"model\":{\"vocab\":{},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}",
                   "end_of_word_suffix");
    assert_refused(MODEL(AB, "[]"), "");
    assert_refused(MODEL(AB, "[]") "} x", "");
}

static void test_hostile_pipelines(void **state)
{
    (void)state;
#define WITH(rest) MODEL(AB, "[]") "," rest "}"
    assert_refused(WITH("\"normalizer\":{\"type\":\"Nmt\"}"), "a normalizer of type 'Nmt'");
    assert_refused(WITH("\"normalizer\":{\"type\":\"Replace\",\"content\":\"x\"}"),
                   "'pattern' is missing");
    assert_refused(WITH("\"normalizer\":7"), "normalizer is a");
    assert_refused(WITH("\"pre_tokenizer\":{\"type\":\"Whitespace\"}"),
                   "a pre_tokenizer of type 'Whitespace'");
    assert_refused(
        WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"invert\":false,"
             "\"pattern\":{\"Regex\":\"(a\"}}"),
        "regex '(a'");
#define SPLIT_AT(regex)                                                                            \
    WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"invert\":false,"       \
         "\"pattern\":{\"Regex\":\"" regex "\"}}")
    assert_refused(SPLIT_AT("[a[bc]]"), "a class within a class is not supported");
    assert_refused(SPLIT_AT("[a-z&&[^b]]"), "an intersection of classes");
    assert_refused(SPLIT_AT("[^\\\\W_]"), "\\W is not supported");
    assert_refused(SPLIT_AT("a{1,3}+"), "'+' behind a count");
    assert_refused(SPLIT_AT("(?m:.)"), "the option m or s");
#undef SPLIT_AT
    assert_refused(
        WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":"
             "\"\"},\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\","
             "\"prepend_scheme\":\"first\",\"split\":false}"),
        "Metaspace with prepend_scheme 'first'");
    assert_refused(
        WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Odd\",\"invert\":false,"
             "\"pattern\":{\"Regex\":\"a\"}}"),
        "behavior 'Odd'");
    assert_refused(WITH("\"post_processor\":{\"type\":\"RobertaProcessing\"}"),
                   "a post_processor of type");
    assert_refused(
        WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
             "{\"id\":\"[X]\",\"type_id\":0}}],\"special_tokens\":{}}"),
        "special token '[X]' has no ids");
    assert_refused(
        WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":"
             "{\"id\":\"B\"}}],\"special_tokens\":{}}"),
        "another sequence than A");
    assert_refused(WITH("\"decoder\":{\"type\":\"CTC\"}"), "a decoder of type 'CTC'");
    assert_refused(WITH("\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},"
                        "{\"type\":\"ByteFallback\"}]}"),
                   "not supported at its place");
    assert_refused(WITH("\"added_tokens\":[{\"content\":\"x\"}]"), "id -1");
    assert_refused(WITH("\"added_tokens\":[{\"id\":9}]"), "no content");
    assert_refused(WITH("\"added_tokens\":[{\"id\":0,\"content\":\"x\"}]"),
                   "id 0 is given to two tokens");
    assert_refused(WITH("\"added_tokens\":[3]"), "an added token");
#undef WITH
}

static void test_nested_sequences(void **state)
{
    (void)state;
    Buffer json;
    Error err = {0};
    Tokenizer *tokenizer;
    for (int depth = 8; depth <= 9; depth++) {
        buffer_init(&json, TEXT_BYTES);
        buffer_append_text(&json, MODEL(AB, "[]") ",\"post_processor\":");
        for (int i = 0; i < depth; i++)
            buffer_append_text(&json, "{\"type\":\"Sequence\",\"processors\":[");
        buffer_append_text(&json, "{\"type\":\"ByteLevel\"}");
        for (int i = 0; i < depth; i++)
            buffer_append_text(&json, "]}");
        buffer_append_text(&json, "}");
        bool ok = tokenizer_create(buffer_view(&json), "deep", &tokenizer, &err);
        assert_true(ok == (depth == 8));
        assert_true(ok || err.code == ERROR_LIMIT);
        tokenizer_free(tokenizer);
        buffer_reset(&json);
    }
}

static void test_exploding_regex(void **state)
{
    (void)state;
    Tokenizer *tokenizer;
    TokenList ids = {0};
    Error err = {0};
    assert_true(tokenizer_create(
        SLICE(MODEL(AB, "[]") ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\","
                              "\"invert\":false,\"pattern\":{\"Regex\":\"(a|aa|a?a)+$(?<=c)\"}}}"),
        "bad", &tokenizer, &err));
    assert_false(tokenizer_encode(
        tokenizer, SLICE("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"), false,
        &ids, &err));
    assert_int_equal(err.code, ERROR_LIMIT);
    assert_int_equal(ids.count, 0);
    token_list_reset(&ids);
    tokenizer_free(tokenizer);
}

static void test_order_of_members(void **state)
{
    (void)state;
    Tokenizer *tokenizer;
    TokenList ids = {0};
    assert_true(
        tokenizer_create(SLICE("{\"added_tokens\":[{\"id\":2,\"content\":\"ab\",\"special\":true}],"
                               "\"model\":{\"merges\":[\"a b\"],\"vocab\":" AB "}}"),
                         "x", &tokenizer, NULL));
    assert_int_equal(tokenizer_vocabulary_size(tokenizer), 3);
    assert_int_equal(tokenizer_find_token(tokenizer, SLICE("ab")), 2);
    assert_int_equal(tokenizer_find_token(tokenizer, SLICE("ba")), -1);
    assert_true(tokenizer_is_special(tokenizer, 2));
    assert_false(tokenizer_is_special(tokenizer, 1));
    assert_false(tokenizer_is_special(tokenizer, -1));
    assert_int_equal(tokenizer_token_content(tokenizer, 3).len, 0);
    assert_true(slice_equal(tokenizer_token_content(tokenizer, 1), SLICE("b")));
    assert_true(tokenizer_encode(tokenizer, SLICE("abba"), true, &ids, NULL));
    assert_int_equal(ids.count, 3);
    token_list_reset(&ids);
    tokenizer_free(tokenizer);
}

/* ---- Long words ---- */

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 16;
}

static void encode_long(const JsonValue *item, Slice json, const char *name)
{
    enum { LENGTH = 1000000 };
    Tokenizer *tokenizer;
    Buffer text, back;
    uint32_t seed = 1;
    (void)item;
    assert_true(tokenizer_create(json, name, &tokenizer, NULL));
    for (int kind = 0; kind < 3; kind++) {
        TokenList ids = {0};
        buffer_init(&text, TEXT_BYTES);
        buffer_init(&back, TEXT_BYTES);
        for (size_t i = 0; i < LENGTH; i++)
            buffer_append_byte(&text, (char)(kind == 0   ? 'a'
                                             : kind == 1 ? ' '
                                                         : 'a' + next_random(&seed) % 26));
        double start = clock_monotonic_seconds();
        assert_true(tokenizer_encode(tokenizer, buffer_view(&text), false, &ids, NULL));
        assert_true(clock_monotonic_seconds() - start <
                    30); /* n log n: well below 1 s; n^2: an hour */
        assert_true(tokenizer_decode(tokenizer, ids.ids, ids.count, false, &back, NULL));
        assert_text(buffer_view(&back), buffer_view(&text), name, (size_t)kind);
        token_list_reset(&ids);
        buffer_reset(&text);
        buffer_reset(&back);
    }
    tokenizer_free(tokenizer);
}

static void test_long_words(void **state)
{
    (void)state;
    for_each_item(TEST_DATA_DIR "/tokenizer/models.json", encode_long);
}

/* Marks in the wrong order, a million of them: ordering must not be quadratic. */
static void test_long_marks(void **state)
{
    enum { LENGTH = 500000 };
    (void)state;
    Tokenizer *tokenizer;
    TokenList ids = {0};
    Buffer text;
    buffer_init(&text, TEXT_BYTES);
    for (size_t i = 0; i < LENGTH; i++)
        buffer_append_text(&text,
                           "\xcc\x95\xcc\xa3"); /* U+0315, class 232, before U+0323, class 220 */
    assert_true(tokenizer_create(SLICE("{\"normalizer\":{\"type\":\"NFC\"},\"model\":{\"vocab\":"
                                       "{\"\xcc\x95\":0,\"\xcc\xa3\":1},\"merges\":[]}}"),
                                 "x", &tokenizer, NULL));
    double start = clock_monotonic_seconds();
    assert_true(tokenizer_encode(tokenizer, buffer_view(&text), false, &ids, NULL));
    assert_true(clock_monotonic_seconds() - start < 30);
    assert_int_equal(ids.count, 2 * LENGTH);
    for (size_t i = 0; i < ids.count; i++)
        assert_int_equal(ids.ids[i], i < LENGTH ? 1 : 0);
    token_list_reset(&ids);
    buffer_reset(&text);
    tokenizer_free(tokenizer);
}

/* ---- Scanners against the regex engine ---- */

/* Every piece gets a space in front, after its own spaces have been spelt as another character: so
 * the ids tell where the pieces begin. */
static Tokenizer *make_splitter(const char *regex, bool wrapped)
{
    static const char byte_level[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":%s,\"use_"
                                     "regex\":false,\"trim_offsets\":true}";
    Buffer json;
    Tokenizer *tokenizer;
    Error err;
    buffer_init(&json, TEXT_BYTES);
    buffer_append_text(
        &json, "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
               "\"behavior\":\"Isolated\",\"invert\":false,\"pattern\":{\"Regex\":\"");
    buffer_append_text(&json, wrapped ? "(?:" : "");
    for (const char *at = regex; *at; at++) {
        if (*at == '\\')
            buffer_append_byte(&json, '\\');
        buffer_append_byte(&json, *at);
    }
    buffer_append_text(&json, wrapped ? ")" : "");
    buffer_append_text(&json, "\"}},");
    buffer_append_format(&json, byte_level, "false");
    buffer_append_text(&json, ",");
    buffer_append_format(&json, byte_level, "true");
    buffer_append_text(&json, "]},\"model\":{\"merges\":[],\"vocab\":{");
    for (unsigned c = 0x21, id = 0; c <= 0x143; c++) {
        char bytes[UTF8_MAX];
        if ((c > 0x7e && c < 0xa1) || c == 0xad)
            continue;
        buffer_append_text(&json, id ? "," : "");
        json_append_string(&json, (Slice){bytes, utf8_encode(c, bytes)});
        buffer_append_format(&json, ":%u", id++);
    }
    buffer_append_text(&json, "}}}");
    if (!tokenizer_create(buffer_view(&json), regex, &tokenizer, &err))
        fail_msg("%s", err.message);
    buffer_reset(&json);
    return tokenizer;
}

static void append_random_text(Buffer *text, uint32_t *seed)
{
    static const char *const pieces[] = {"a",
                                         "b",
                                         "Z",
                                         "S",
                                         "'",
                                         "'s",
                                         "'S",
                                         "'re",
                                         "'Ll",
                                         "'ve",
                                         "'x",
                                         "1",
                                         "22",
                                         " ",
                                         " ",
                                         "  ",
                                         "\n",
                                         "\r",
                                         "\t",
                                         ".",
                                         "/",
                                         "!",
                                         "\xc5\xbf",
                                         "\xc2\xa0",
                                         "\xe3\x80\x80",
                                         "\xe2\x80\xa8",
                                         "\xcc\x81",
                                         "\xe0\xa4\xbf",
                                         "\xc7\x85",
                                         "\xca\xb0",
                                         "\xe4\xb8\xad",
                                         "\xc3\x9f",
                                         "\xc3\x89",
                                         "\xd9\xa3",
                                         "\xc2\xb2",
                                         "\xf0\x9d\x9f\x98",
                                         "\xf0\x9f\x98\x80",
                                         "\xe2\x80\x8d",
                                         "\xf0\x90\x90\x80",
                                         "_",
                                         "\x1c",
                                         "\xc2\x85",
                                         "\xe2\x91\xa0",
                                         "\xcd\xbf"};
    size_t count = next_random(seed) % 12;
    for (size_t i = 0; i < count; i++)
        buffer_append_text(text, pieces[next_random(seed) % ARRAY_COUNT(pieces)]);
}

static void compare_splitters(const char *regex)
{
    Tokenizer *scanner = make_splitter(regex, false), *engine = make_splitter(regex, true);
    uint32_t seed = 7;
    Buffer text;
    buffer_init(&text, TEXT_BYTES);
    for (size_t i = 0; i < 20000; i++) {
        TokenList got = {0}, want = {0};
        buffer_clear(&text);
        append_random_text(&text, &seed);
        assert_true(tokenizer_encode(scanner, buffer_view(&text), false, &got, NULL));
        assert_true(tokenizer_encode(engine, buffer_view(&text), false, &want, NULL));
        assert_ids(&got, &want, regex, i);
        token_list_reset(&got);
        token_list_reset(&want);
    }
    buffer_reset(&text);
    tokenizer_free(scanner);
    tokenizer_free(engine);
}

static void test_scanners(void **state)
{
    (void)state;
#define HEAD "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
#define TAIL "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
    compare_splitters(HEAD
                      "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" TAIL);
    compare_splitters(
        HEAD "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" TAIL);
    compare_splitters(
        HEAD
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" TAIL);
    compare_splitters(
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|"
        "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" TAIL);
    compare_splitters(
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+");
#undef HEAD
#undef TAIL
}

/* ---- Streaming ---- */

/* A run of fallback bytes that is too long to be held back comes out as its characters are whole.
 */
static void test_long_run(void **state)
{
    (void)state;
    enum { RUN = 3 * TOKEN_DECODER_PENDING_MAX };
    Tokenizer *tokenizer;
    TokenDecoder decoder;
    Buffer out;
    buffer_init(&out, TEXT_BYTES);
    assert_true(tokenizer_create(
        SLICE("{\"decoder\":{\"type\":\"ByteFallback\"},\"model\":{\"merges\":[],\"vocab\":"
              "{\"<0xE4>\":0,\"<0xB8>\":1,\"<0xAD>\":2}}}"),
        "x", &tokenizer, NULL));
    token_decoder_init(&decoder, tokenizer, false);
    for (int32_t i = 0; i < RUN; i++)
        assert_true(token_decoder_push(&decoder, i % 3, &out, NULL));
    Buffer byte;
    buffer_init(&byte, 10);
    assert_true(tokenizer_append_token_bytes(tokenizer, 1, &byte, NULL));
    assert_text(buffer_view(&byte), SLICE("\xb8"), "x", 0);
    buffer_reset(&byte);
    assert_true(out.len > RUN - TOKEN_DECODER_PENDING_MAX);
    assert_true(token_decoder_finish(&decoder, &out, NULL));
    assert_int_equal(out.len, RUN);
    for (size_t i = 0; i < RUN; i += 3)
        assert_memory_equal(out.ptr + i, "\xe4\xb8\xad", 3);
    buffer_reset(&out);
    tokenizer_free(tokenizer);
}

/* What Strip takes from the start is taken once, wherever a run of fallback bytes begins the text.
 */
static void test_strip_behind_run(void **state)
{
    (void)state;
    Tokenizer *tokenizer;
    assert_true(tokenizer_create(
        SLICE("{\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},"
              "{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"
              "\"model\":{\"merges\":[],\"vocab\":{\"<0xC3>\":0,\"<0xA9>\":1,\"<0x20>\":2,\" "
              "a\":3}}}"),
        "x", &tokenizer, NULL));
    static const struct {
        int32_t ids[4];
        size_t count;
        const char *text;
    } cases[] = {{{0, 1, 3}, 3, "\xc3\xa9 a"},
                 {{3, 0, 1, 3}, 4, "a\xc3\xa9 a"},
                 {{2, 3}, 2, " a"},
                 {{2, 2, 0, 1}, 4, " \xc3\xa9"},
                 {{3, 2, 3}, 3, "a  a"}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        TokenList ids = {0};
        for (size_t k = 0; k < cases[i].count; k++)
            assert_true(token_list_append(&ids, cases[i].ids[k], NULL));
        check_decoding(tokenizer, &ids, false, slice_of(cases[i].text), "strip", i);
        token_list_reset(&ids);
    }
    tokenizer_free(tokenizer);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_pipelines),
        cmocka_unit_test(test_allocations),
        cmocka_unit_test(test_hostile_models),
        cmocka_unit_test(test_hostile_pipelines),
        cmocka_unit_test(test_nested_sequences),
        cmocka_unit_test(test_exploding_regex),
        cmocka_unit_test(test_order_of_members),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_long_marks),
        cmocka_unit_test(test_scanners),
        cmocka_unit_test(test_long_run),
        cmocka_unit_test(test_strip_behind_run),
    };
    if (argc > 1)
        pipelines_path = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
