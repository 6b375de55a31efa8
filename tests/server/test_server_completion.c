/* Completions, several choices, log-probabilities, and the routes around the text of a prompt. */
#include "server_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void post(Fixture *fixture, const char *path, const char *body, Reply *reply)
{
    client_exchange(fixture->port, "POST", path, "", body, reply);
}

/* The parsed answer, which has to be a success. */
static const JsonValue *post_ok(Fixture *fixture, const char *path, const char *body, Reply *reply,
                                Arena *arena)
{
    post(fixture, path, body, reply);
    if (reply->status != 200)
        fail_msg("%s %s: %d %.*s", path, body, reply->status, SLICE_ARG(buffer_view(&reply->body)));
    return parse_json(&reply->body, arena);
}

static void assert_text(const JsonValue *body, size_t choice, const char *prefix,
                        const char *prompt, size_t max)
{
    char path[64];
    Buffer expected;
    bool ended;
    size_t n_prompt;
    expected_reply(prompt, false, max, &expected, &ended, &n_prompt);
    snprintf(path, sizeof(path), "choices.%zu.text", choice);
    Slice text = text_at(body, path);
    assert_true(slice_starts_with(text, slice_of(prefix)));
    Slice rest = {text.ptr + strlen(prefix), text.len - strlen(prefix)};
    if (!slice_equal(rest, buffer_view(&expected)))
        fail_msg("'%.*s', expected '%.*s'", SLICE_ARG(rest), SLICE_ARG(buffer_view(&expected)));
    snprintf(path, sizeof(path), "choices.%zu.index", choice);
    assert_int_equal(number_at(body, path), choice);
    snprintf(path, sizeof(path), "choices.%zu.finish_reason", choice);
    assert_slice(text_at(body, path), ended ? "stop" : "length");
    buffer_reset(&expected);
}

/* ---- Completions ---- */

static void completions_answer(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Arena arena;
    fixture_init(&fixture);
    const JsonValue *body =
        post_ok(&fixture, "/v1/completions", "{\"prompt\":\"abc\"}", &reply, &arena);
    assert_memory_equal(text_at(body, "id").ptr, "cmpl-", 5);
    assert_slice(text_at(body, "object"), "text_completion");
    assert_slice(text_at(body, "model"), "tiny");
    assert_true(json_is(value_at(body, "choices.0.logprobs"), JSON_NULL));
    assert_text(body, 0, "", "abc", 16);
    assert_int_equal(number_at(body, "usage.prompt_tokens"), 3);
    arena_reset(&arena);
    reply_reset(&reply);
    /* Token ids are the same prompt; several prompts, several choices of each. */
    body = post_ok(&fixture, "/completions", "{\"prompt\":[97,98,99],\"max_tokens\":7}", &reply,
                   &arena);
    assert_text(body, 0, "", "abc", 7);
    arena_reset(&arena);
    reply_reset(&reply);
    body = post_ok(&fixture, "/v1/completions",
                   "{\"prompt\":[[97,98,99],[120]],\"max_tokens\":7,\"n\":2,\"best_of\":2}", &reply,
                   &arena);
    assert_int_equal(value_at(body, "choices")->as.array.count, 4);
    for (size_t i = 0; i < 4; i++)
        assert_text(body, i, "", i < 2 ? "abc" : "x", 7);
    assert_int_equal(number_at(body, "usage.prompt_tokens"), 4);
    arena_reset(&arena);
    reply_reset(&reply);
    body = post_ok(&fixture, "/v1/completions",
                   "{\"prompt\":[\"abc\",\"q\"],\"max_tokens\":3,\"echo\":true}", &reply, &arena);
    assert_text(body, 0, "abc", "abc", 3);
    assert_text(body, 1, "q", "q", 3);
    arena_reset(&arena);
    reply_reset(&reply);
    body = post_ok(&fixture, "/v1/completions",
                   "{\"prompt\":\"abc\",\"max_tokens\":0,\"echo\":true}", &reply, &arena);
    assert_slice(text_at(body, "choices.0.text"), "abc");
    assert_slice(text_at(body, "choices.0.finish_reason"), "length");
    assert_int_equal(number_at(body, "usage.completion_tokens"), 0);
    arena_reset(&arena);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

static void completions_stream(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Buffer texts[2], expected;
    bool ended;
    size_t n_prompt, ends = 0;
    fixture_init(&fixture);
    post(&fixture, "/v1/completions",
         "{\"prompt\":[\"abc\",\"q\"],\"max_tokens\":9,\"echo\":true,\"stream\":true,"
         "\"stream_options\":{\"include_usage\":true}}",
         &reply);
    assert_int_equal(reply.status, 200);
    for (size_t i = 0; i < 2; i++)
        buffer_init(&texts[i], 1 << 16);
    Slice body = buffer_view(&reply.body);
    bool done = false, has_usage = false;
    for (size_t start = 0; start < body.len;) {
        size_t end = slice_find(body, SLICE("\n\n"), start);
        assert_int_not_equal(end, SIZE_MAX);
        Slice event = {body.ptr + start, end - start};
        start = end + 2;
        assert_true(slice_starts_with(event, SLICE("data: ")));
        assert_false(done);
        if (slice_equal(event, SLICE("data: [DONE]"))) {
            done = true;
            continue;
        }
        Arena arena;
        Buffer json;
        buffer_init(&json, 1 << 16);
        buffer_append(&json, event.ptr + 6, event.len - 6);
        const JsonValue *chunk = parse_json(&json, &arena);
        assert_slice(text_at(chunk, "object"), "text_completion");
        if (value_at(chunk, "choices")->as.array.count == 0) {
            assert_int_equal(number_at(chunk, "usage.prompt_tokens"), 4);
            has_usage = true;
        } else {
            size_t index = (size_t)number_at(chunk, "choices.0.index");
            assert_in_range(index, 0, 1);
            buffer_append_slice(&texts[index], text_at(chunk, "choices.0.text"));
            ends += json_is(value_at(chunk, "choices.0.finish_reason"), JSON_STRING);
            assert_true(json_is(value_at(chunk, "usage"), JSON_NULL));
        }
        arena_reset(&arena);
        buffer_reset(&json);
    }
    assert_true(done && has_usage);
    assert_int_equal(ends, 2);
    for (size_t i = 0; i < 2; i++) {
        const char *prompt = i ? "q" : "abc";
        expected_reply(prompt, false, 9, &expected, &ended, &n_prompt);
        assert_memory_equal(texts[i].ptr, prompt, strlen(prompt));
        assert_int_equal(texts[i].len, strlen(prompt) + expected.len);
        assert_memory_equal(texts[i].ptr + strlen(prompt), expected.ptr, expected.len);
        buffer_reset(&expected);
        buffer_reset(&texts[i]);
    }
    reply_reset(&reply);
    fixture_reset(&fixture);
}

static void completion_logprobs(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Arena arena;
    fixture_init(&fixture);
    const JsonValue *body = post_ok(
        &fixture, "/v1/completions",
        "{\"prompt\":\"abc\",\"max_tokens\":4,\"echo\":true,\"logprobs\":3,\"ignore_eos\":true}",
        &reply, &arena);
    const JsonValue *list = value_at(body, "choices.0.logprobs");
    static const char *const keys[] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++)
        assert_int_equal(value_at(list, keys[i])->as.array.count, 7);
    assert_true(json_is(value_at(list, "token_logprobs.0"), JSON_NULL));
    assert_true(json_is(value_at(list, "top_logprobs.0"), JSON_NULL));
    Slice text = text_at(body, "choices.0.text");
    for (size_t i = 0; i < 7; i++) {
        char path[64];
        snprintf(path, sizeof(path), "tokens.%zu", i);
        Slice token = text_at(list, path);
        assert_int_equal(token.len, 1);
        assert_int_equal(token.ptr[0], text.ptr[i]);
        snprintf(path, sizeof(path), "text_offset.%zu", i);
        assert_int_equal(number_at(list, path), i);
        if (i == 0)
            continue;
        snprintf(path, sizeof(path), "token_logprobs.%zu", i);
        double own = json_to_double(value_at(list, path));
        assert_true(own <= 0);
        snprintf(path, sizeof(path), "top_logprobs.%zu", i);
        const JsonValue *top = value_at(list, path);
        assert_in_range(top->as.object.count, 3, 4);
        assert_true(json_to_double(json_get(top, token)) == own);
    }
    arena_reset(&arena);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

/* A byte that begins no character shows as U+FFFD, which is a character of the text like others. */
static void offsets_count_replaced_bytes(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Arena arena;
    fixture_init(&fixture);
    const JsonValue *body =
        post_ok(&fixture, "/v1/completions",
                "{\"prompt\":\"abc\",\"max_tokens\":4,\"echo\":true,\"logprobs\":0,"
                "\"logit_bias\":{\"153\":100}}",
                &reply, &arena);
    assert_slice(text_at(body, "choices.0.text"),
                 "abc\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
    for (size_t i = 0; i < 7; i++) {
        char path[64];
        snprintf(path, sizeof(path), "choices.0.logprobs.text_offset.%zu", i);
        assert_int_equal(number_at(body, path), i);
    }
    arena_reset(&arena);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

/* ---- Chat choices ---- */

/* The prompt's log-probabilities for 16 choices are more than a stream holds back: its client is
 * told so, rather than left with half an answer. */
static void streams_tell_what_does_not_fit(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Stream stream;
    Buffer body;
    fixture_init(&fixture);
    buffer_init(&body, 1 << 16);
    buffer_append_text(&body, "{\"prompt\":\"");
    for (int i = 0; i < 6000; i++)
        buffer_append_byte(&body, (char)('a' + i % 26));
    buffer_append_text(&body, "\",\"echo\":true,\"logprobs\":20,\"n\":16,\"max_tokens\":1,"
                              "\"stream\":true}");
    buffer_append_byte(&body, '\0');
    post(&fixture, "/v1/completions", body.ptr, &reply);
    assert_int_equal(reply.status, 200);
    read_events(&stream, buffer_view(&reply.body));
    assert_string_equal(stream.code, "internal_error");
    assert_true(stream.done);
    buffer_reset(&stream.text);
    reply_reset(&reply);
    buffer_reset(&body);
    fixture_reset(&fixture);
}

static void chat_choices_and_logprobs(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Arena arena;
    fixture_init(&fixture);
    const JsonValue *body = post_ok(&fixture, "/v1/chat/completions",
                                    "{" HELLO ",\"n\":3,\"temperature\":1.5,\"seed\":5,"
                                    "\"max_tokens\":12,\"ignore_eos\":true,\"logprobs\":true,"
                                    "\"top_logprobs\":2}",
                                    &reply, &arena);
    assert_int_equal(value_at(body, "choices")->as.array.count, 3);
    assert_int_equal(number_at(body, "usage.completion_tokens"), 36);
    for (size_t i = 0; i < 3; i++) {
        char path[64];
        Buffer bytes;
        buffer_init(&bytes, 1 << 16);
        snprintf(path, sizeof(path), "choices.%zu", i);
        const JsonValue *choice = value_at(body, path);
        const JsonValue *entries = value_at(choice, "logprobs.content");
        assert_int_equal(number_at(choice, "index"), i);
        assert_int_equal(entries->as.array.count, 12);
        assert_true(json_is(value_at(choice, "logprobs.refusal"), JSON_NULL));
        for (size_t k = 0; k < 12; k++) {
            const JsonValue *entry = &entries->as.array.items[k];
            const JsonValue *list = value_at(entry, "bytes");
            for (size_t b = 0; b < list->as.array.count; b++)
                buffer_append_byte(&bytes, (char)list->as.array.items[b].as.integer);
            assert_int_equal(value_at(entry, "top_logprobs")->as.array.count, 2);
            assert_true(json_to_double(value_at(entry, "logprob")) <= 0);
            assert_true(json_to_double(value_at(entry, "top_logprobs.0.logprob")) >=
                        json_to_double(value_at(entry, "top_logprobs.1.logprob")));
        }
        /* Random bytes are not always text; then the content has U+FFFD for them. */
        Buffer repaired;
        buffer_init(&repaired, 1 << 16);
        utf8_append_repaired(&repaired, buffer_view(&bytes));
        assert_true(slice_equal(text_at(choice, "message.content"), buffer_view(&repaired)));
        buffer_reset(&repaired);
        buffer_reset(&bytes);
    }
    /* Choice 0 is the reply of a request for one. */
    Reply single;
    Arena arena_single;
    const JsonValue *one = post_ok(&fixture, "/v1/chat/completions",
                                   "{" HELLO ",\"temperature\":1.5,\"seed\":5,\"max_tokens\":12,"
                                   "\"ignore_eos\":true}",
                                   &single, &arena_single);
    assert_true(slice_equal(text_at(one, "choices.0.message.content"),
                            text_at(body, "choices.0.message.content")));
    assert_false(slice_equal(text_at(body, "choices.0.message.content"),
                             text_at(body, "choices.1.message.content")));
    arena_reset(&arena_single);
    reply_reset(&single);
    arena_reset(&arena);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

/* Also where its end was held back for a stop string, and the rest of it told before. */
static void a_streamed_entry_has_all_of_its_token(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    size_t entries = 0;
    fixture_init(&fixture);
    atomic_store(&fixture.fake.delay_microseconds, 30000); /* an event for each */
    /* With tools the text is taken apart; every token is x, 4096 times. */
    post(&fixture, "/v1/chat/completions",
         "{" HELLO ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],"
         "\"logit_bias\":{\"259\":100},\"max_tokens\":3,\"stop\":\"xQ\",\"logprobs\":true,"
         "\"stream\":true}",
         &reply);
    assert_int_equal(reply.status, 200);
    Slice body = buffer_view(&reply.body);
    for (size_t start = 0; start < body.len;) {
        size_t end = slice_find(body, SLICE("\n\n"), start);
        Slice event = {body.ptr + start + 6, end - start - 6};
        start = end + 2;
        if (slice_equal(event, SLICE("[DONE]")))
            break;
        Arena arena;
        Buffer json;
        buffer_init(&json, 1 << 20);
        buffer_append_slice(&json, event);
        const JsonValue *list = value_at(parse_json(&json, &arena), "choices.0.logprobs.content");
        for (size_t i = 0; list && i < list->as.array.count; i++, entries++)
            assert_int_equal(text_at(&list->as.array.items[i], "token").len, FAKE_LONG_BYTES);
        arena_reset(&arena);
        buffer_reset(&json);
    }
    assert_int_equal(entries, 3);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

/* ---- Errors of fields ---- */

static void bad_completions_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *body, *code, *param;
    } cases[] = {
        {"{}", "missing_required_parameter", "prompt"},
        {"{\"prompt\":null}", "missing_required_parameter", "prompt"},
        {"{\"prompt\":5}", "invalid_type", "prompt"},
        {"{\"prompt\":{}}", "invalid_type", "prompt"},
        {"{\"prompt\":[]}", "empty_array", "prompt"},
        {"{\"prompt\":[[]]}", "empty_array", "prompt[0]"},
        {"{\"prompt\":[true]}", "invalid_type", "prompt[0]"},
        {"{\"prompt\":[\"a\",1]}", "invalid_type", "prompt[1]"},
        {"{\"prompt\":[1,\"a\"]}", "invalid_type", "prompt[1]"},
        {"{\"prompt\":[1,null]}", "invalid_type", "prompt[1]"},
        {"{\"prompt\":[[1],\"a\"]}", "invalid_type", "prompt[1]"},
        {"{\"prompt\":[260]}", "integer_above_max_value", "prompt[0]"},
        {"{\"prompt\":[-1]}", "integer_below_min_value", "prompt[0]"},
        {"{\"prompt\":[1.5]}", "invalid_type", "prompt[0]"},
        {"{\"prompt\":[[1],[999]]}", "integer_above_max_value", "prompt[1][0]"},
        {"{\"prompt\":\"\"}", "invalid_value", "prompt"},
        {"{\"prompt\":\"a\",\"max_tokens\":-1}", "integer_below_min_value", "max_tokens"},
        {"{\"prompt\":\"a\",\"max_tokens\":2147483648}", "integer_above_max_value", "max_tokens"},
        {"{\"prompt\":\"a\",\"max_tokens\":\"1\"}", "invalid_type", "max_tokens"},
        {"{\"prompt\":\"a\",\"n\":0}", "integer_below_min_value", "n"},
        {"{\"prompt\":\"a\",\"n\":17}", "integer_above_max_value", "n"},
        {"{\"prompt\":\"a\",\"best_of\":2}", "invalid_value", "best_of"},
        {"{\"prompt\":\"a\",\"best_of\":true}", "invalid_type", "best_of"},
        {"{\"prompt\":\"a\",\"echo\":1}", "invalid_type", "echo"},
        {"{\"prompt\":\"a\",\"logprobs\":21}", "integer_above_max_value", "logprobs"},
        {"{\"prompt\":\"a\",\"logprobs\":-1}", "integer_below_min_value", "logprobs"},
        {"{\"prompt\":\"a\",\"logprobs\":true}", "invalid_type", "logprobs"},
        {"{\"prompt\":\"a\",\"suffix\":\"b\"}", "unsupported_parameter", "suffix"},
        {"{\"prompt\":\"a\",\"model\":1}", "invalid_type", "model"},
        {"{\"prompt\":\"a\",\"stream\":1}", "invalid_type", "stream"},
        {"{\"prompt\":\"a\",\"stream_options\":{}}", "invalid_value", "stream_options"},
        {"{\"prompt\":\"a\",\"temperature\":3}", "decimal_above_max_value", "temperature"},
        {"{\"prompt\":\"a\",\"stop\":[\"\",\"\",\"\",\"\",\"\"]}", "array_above_max_length",
         "stop"},
    };
    Fixture fixture;
    Reply reply;
    fixture_init(&fixture);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        post(&fixture, "/v1/completions", cases[i].body, &reply);
        if (reply.status != 400)
            fail_msg("%s: %d", cases[i].body, reply.status);
        assert_error(&reply, 400, cases[i].code, cases[i].param);
        reply_reset(&reply);
    }
    Buffer many;
    buffer_init(&many, 1 << 20);
    for (size_t count = 64; count <= 65; count++) {
        buffer_clear(&many);
        buffer_append_text(&many, "{\"max_tokens\":0,\"prompt\":[\"a\"");
        for (size_t i = 1; i < count; i++)
            buffer_append_text(&many, ",\"a\"");
        buffer_append(&many, "]}", 3);
        post(&fixture, "/v1/completions", many.ptr, &reply);
        if (count == 64)
            assert_int_equal(reply.status, 200);
        else
            assert_error(&reply, 400, "array_above_max_length", "prompt");
        reply_reset(&reply);
    }
    buffer_clear(&many);
    buffer_append_text(&many, "{\"prompt\":\"");
    while (many.len < CONTEXT + 20)
        buffer_append_byte(&many, 'a');
    buffer_append(&many, "\"}", 3);
    post(&fixture, "/v1/completions", many.ptr, &reply);
    assert_error(&reply, 400, "context_length_exceeded", "prompt");
    reply_reset(&reply);
    buffer_reset(&many);
    fixture_reset(&fixture);
}

/* ---- Text of a prompt ---- */

static void tokens_and_back(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Arena arena;
    fixture_init(&fixture);
    const JsonValue *body = post_ok(
        &fixture, "/tokenize", "{\"content\":\"a\\u00e9\",\"with_pieces\":true}", &reply, &arena);
    assert_int_equal(number_at(body, "count"), 3);
    assert_int_equal(number_at(body, "max_model_len"), CONTEXT);
    assert_slice(text_at(body, "tokens.0.piece"), "a");
    assert_int_equal(number_at(body, "tokens.1.piece.0"), 0xc3);
    arena_reset(&arena);
    reply_reset(&reply);
    body = post_ok(&fixture, "/tokenize", "{\"prompt\":\"abc\"}", &reply, &arena);
    assert_int_equal(number_at(body, "tokens.2"), 'c');
    arena_reset(&arena);
    reply_reset(&reply);
    body = post_ok(&fixture, "/detokenize", "{\"tokens\":[97,195,169,255]}", &reply, &arena);
    assert_slice(text_at(body, "content"), "a\xc3\xa9\xef\xbf\xbd");
    assert_slice(text_at(body, "prompt"), "a\xc3\xa9\xef\xbf\xbd");
    arena_reset(&arena);
    reply_reset(&reply);
    body =
        post_ok(&fixture, "/apply-template",
                "{" HELLO ",\"chat_template_kwargs\":{\"enable_thinking\":true}}", &reply, &arena);
    assert_slice(text_at(body, "prompt"), PROMPT("Hi") "[on]");
    arena_reset(&arena);
    reply_reset(&reply);
    body = post_ok(&fixture, "/apply-template", "{" HELLO ",\"add_generation_prompt\":false}",
                   &reply, &arena);
    assert_slice(text_at(body, "prompt"), "<|im_start|>user\nHi<|im_end|>\n");
    arena_reset(&arena);
    reply_reset(&reply);
    static const struct {
        const char *path, *body, *code, *param;
    } cases[] = {
        {"/tokenize", "{}", "missing_required_parameter", "content"},
        {"/tokenize", "{\"content\":1}", "invalid_type", "content"},
        {"/tokenize", "{\"prompt\":[]}", "invalid_type", "prompt"},
        {"/tokenize", "{\"content\":\"a\",\"add_special\":1}", "invalid_type", "add_special"},
        {"/tokenize", "{\"content\":\"a\",\"parse_special\":\"no\"}", "invalid_type",
         "parse_special"},
        {"/tokenize", "{\"content\":\"a\",\"with_pieces\":0}", "invalid_type", "with_pieces"},
        {"/detokenize", "{}", "missing_required_parameter", "tokens"},
        {"/detokenize", "{\"tokens\":\"a\"}", "invalid_type", "tokens"},
        {"/detokenize", "{\"tokens\":[\"a\"]}", "invalid_type", "tokens[0]"},
        {"/detokenize", "{\"tokens\":[1,260]}", "integer_above_max_value", "tokens[1]"},
        {"/tokenize", "{\"content\":\"a\",\"model\":1}", "invalid_type", "model"},
        {"/detokenize", "{\"tokens\":[1],\"model\":[]}", "invalid_type", "model"},
        {"/apply-template", "{" HELLO ",\"model\":true}", "invalid_type", "model"},
        {"/apply-template", "{}", "missing_required_parameter", "messages"},
        {"/apply-template", "{" HELLO ",\"tools\":{}}", "invalid_type", "tools"},
        {"/apply-template", "{" HELLO ",\"add_generation_prompt\":1}", "invalid_type",
         "add_generation_prompt"},
        {"/apply-template", "{" HELLO ",\"chat_template_kwargs\":1}", "invalid_type",
         "chat_template_kwargs"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        post(&fixture, cases[i].path, cases[i].body, &reply);
        if (reply.status != 400)
            fail_msg("%s %s: %d", cases[i].path, cases[i].body, reply.status);
        assert_error(&reply, 400, cases[i].code, cases[i].param);
        reply_reset(&reply);
    }
    fixture_reset(&fixture);
}

/* ---- Metrics ---- */

/* Value of a line that begins with name and a blank; -1 when there is none. */
static double metric(const Reply *reply, const char *name)
{
    char line[256];
    snprintf(line, sizeof(line), "\n%s ", name);
    size_t at = slice_find(buffer_view(&reply->body), slice_of(line), 0);
    return at == SIZE_MAX ? -1 : strtod(reply->body.ptr + at + strlen(line), NULL);
}

static void metrics_count(void **state)
{
    (void)state;
    static const char *const names[] = {"mlx_serve_requests_cancelled_total",
                                        "mlx_serve_prompt_tokens_total",
                                        "mlx_serve_prompt_tokens_cached_total",
                                        "mlx_serve_generation_tokens_total",
                                        "mlx_serve_requests_running",
                                        "mlx_serve_requests_waiting",
                                        "mlx_serve_slots",
                                        "mlx_serve_kv_usage_ratio",
                                        "mlx_serve_resident_bytes",
                                        "mlx_serve_uptime_seconds",
                                        "mlx_serve_time_to_first_token_seconds_count",
                                        "mlx_serve_inter_token_seconds_count",
                                        "mlx_serve_request_seconds_count"};
    Fixture fixture;
    Reply reply;
    char text[512];
    fixture_init(&fixture);
    post(&fixture, "/v1/completions", "{\"prompt\":\"abc\",\"ignore_eos\":true}", &reply);
    reply_reset(&reply);
    post(&fixture, "/v1/completions", "{", &reply);
    reply_reset(&reply);
    /* How long a request took is known a little after its answer was read. */
    client_exchange(fixture.port, "GET", "/metrics", "", NULL, &reply);
    for (int i = 0; i < 1000 && metric(&reply, "mlx_serve_request_seconds_count") < 1; i++) {
        reply_reset(&reply);
        client_exchange(fixture.port, "GET", "/metrics", "", NULL, &reply);
    }
    assert_int_equal(reply.status, 200);
    assert_string_equal(reply_field(&reply, "Content-Type", text), "text/plain; version=0.0.4");
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        char help[128];
        if (metric(&reply, names[i]) < 0)
            fail_msg("%s is missing", names[i]);
        snprintf(help, sizeof(help), "# HELP %.*s ",
                 (int)(strstr(names[i], "_count") ? strlen(names[i]) - 6 : strlen(names[i])),
                 names[i]);
        assert_int_not_equal(slice_find(buffer_view(&reply.body), slice_of(help), 0), SIZE_MAX);
    }
    assert_true(
        metric(&reply, "mlx_serve_requests_total{route=\"/v1/completions\",code=\"200\"}") == 1);
    assert_true(
        metric(&reply, "mlx_serve_requests_total{route=\"/v1/completions\",code=\"400\"}") == 1);
    assert_true(metric(&reply, "mlx_serve_prompt_tokens_total") == 3);
    assert_true(metric(&reply, "mlx_serve_generation_tokens_total") == 16);
    assert_true(metric(&reply, "mlx_serve_time_to_first_token_seconds_count") == 1);
    assert_true(metric(&reply, "mlx_serve_inter_token_seconds_count") == 15);
    assert_true(metric(&reply, "mlx_serve_request_seconds_count") == 1);
    assert_true(metric(&reply, "mlx_serve_slots") == SLOTS);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

/* Given a pattern, only the tests whose names match it run. */
int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(completions_answer),
        cmocka_unit_test(completions_stream),
        cmocka_unit_test(completion_logprobs),
        cmocka_unit_test(offsets_count_replaced_bytes),
        cmocka_unit_test(streams_tell_what_does_not_fit),
        cmocka_unit_test(chat_choices_and_logprobs),
        cmocka_unit_test(a_streamed_entry_has_all_of_its_token),
        cmocka_unit_test(bad_completions_are_named),
        cmocka_unit_test(tokens_and_back),
        cmocka_unit_test(metrics_count),
    };
    return cmocka_run_group_tests(tests, server_tests_setup, server_tests_teardown);
}
