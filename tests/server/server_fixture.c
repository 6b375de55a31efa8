#include "server_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <cmocka.h>

static const char TEMPLATE[] =
    "{%- for m in messages %}"
    "{%- if m.role == 'system' and not loop.first %}"
    "{{- raise_exception('System message must be first') }}"
    "{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\\n' + (m.content or '') + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    "{%- if enable_thinking is defined %}{{- '[on]' if enable_thinking else '[off]' }}{%- endif %}";

static Tokenizer *tokenizer;
static ChatTemplate *chat;

int server_tests_setup(void **state)
{
    (void)state;
    Error err;
    struct rlimit limit;
    /* Both ends of many connections live in this process. */
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max < 8192 ? limit.rlim_max : 8192;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (!tokenizer_open(TEST_DATA_DIR "/generate/bytes-tokenizer.json", &tokenizer, &err) ||
        !chat_template_create(slice_of(TEMPLATE), "test", SLICE_EMPTY, SLICE_EMPTY, &chat, &err)) {
        print_error("%s\n", err.message);
        return -1;
    }
    return 0;
}

int server_tests_teardown(void **state)
{
    (void)state;
    chat_template_free(chat);
    tokenizer_free(tokenizer);
    return 0;
}

void fixture_init(Fixture *fixture)
{
    fixture->is_loading = false;
    fixture_init_with(fixture, NULL);
}

void fixture_init_with(Fixture *fixture, const ServerOptions *options)
{
    Error err = {0};
    fake_engine_init(&fixture->fake, 100000);
    SchedulerOptions scheduling = {.slots = SLOTS, .max_context = CONTEXT};
    ServerOptions serving = {.host = "127.0.0.1",
                             .model_id = SLICE("tiny"),
                             .model_name = SLICE("tiny-model-4bit"),
                             .log_file = -1};
    if (options) {
        serving = *options;
        serving.model_id = SLICE("tiny");
        serving.model_name = SLICE("tiny-model-4bit");
        serving.log_file = -1;
    }
    if (!scheduler_create(&fixture->fake.engine, tokenizer, &fixture->fake.config, &scheduling,
                          &fixture->scheduler, &err) ||
        !server_start(&serving, &fixture->server, &err))
        fail_msg("%s", err.message);
    fixture->model = (ServerModel){fixture->scheduler, tokenizer, chat, CONTEXT, FAKE_VOCAB};
    if (!fixture->is_loading)
        server_set_model(fixture->server, &fixture->model);
    fixture->tokenizer = tokenizer;
    fixture->chat = chat;
    fixture->port = server_port(fixture->server);
    assert_int_not_equal(fixture->port, 0);
}

void fixture_reset(Fixture *fixture)
{
    server_stop(fixture->server, 1);
    scheduler_free(fixture->scheduler);
    assert_int_equal(atomic_load(&fixture->fake.sequences), 0);
    assert_false(atomic_load(&fixture->fake.misused));
}

/* ---- JSON ---- */

const JsonValue *parse_json(const Buffer *text, Arena *arena)
{
    const JsonValue *value;
    Error err = {0};
    arena_init(arena, 64 << 20);
    if (!json_parse(buffer_view(text), arena, &value, &err))
        fail_msg("%s in %.*s", err.message, SLICE_ARG(buffer_view(text)));
    return value;
}

const JsonValue *value_at(const JsonValue *value, const char *path)
{
    while (value && *path) {
        size_t length = strcspn(path, ".");
        if (value->kind == JSON_ARRAY) {
            size_t index = strtoul(path, NULL, 10);
            value = index < value->as.array.count ? &value->as.array.items[index] : NULL;
        } else {
            value = json_get(value, (Slice){path, length});
        }
        path += length + (path[length] == '.');
    }
    return value;
}

Slice text_at(const JsonValue *value, const char *path)
{
    const JsonValue *found = value_at(value, path);
    if (!json_is(found, JSON_STRING)) {
        const JsonValue *message = json_get(json_get(value, SLICE("error")), SLICE("message"));
        fail_msg("%s is no string; %.*s", path,
                 SLICE_ARG(json_is(message, JSON_STRING) ? message->as.string : SLICE_EMPTY));
    }
    return found->as.string;
}

int64_t number_at(const JsonValue *value, const char *path)
{
    int64_t number = -1;
    const JsonValue *found = value_at(value, path);
    if (!found || !json_to_int64(found, &number))
        fail_msg("%s is no integer", path);
    return number;
}

void assert_slice(Slice found, const char *expected)
{
    if (!slice_equal(found, slice_of(expected)))
        fail_msg("found '%.*s', expected '%s'", SLICE_ARG(found), expected);
}

void assert_error(const Reply *reply, int status, const char *code, const char *param)
{
    Arena arena;
    char text[512];
    if (reply->status != status)
        fail_msg("status %d, expected %d %s: %.*s", reply->status, status, code,
                 SLICE_ARG(buffer_view(&reply->body)));
    const JsonValue *error = value_at(parse_json(&reply->body, &arena), "error");
    assert_true(json_is(error, JSON_OBJECT));
    assert_int_equal(error->as.object.count, 4);
    assert_slice(text_at(error, "code"), code);
    assert_slice(text_at(error, "type"), status < 500 ? "invalid_request_error" : "server_error");
    assert_true(text_at(error, "message").len > 0);
    if (param)
        assert_slice(text_at(error, "param"), param);
    else
        assert_true(json_is(value_at(error, "param"), JSON_NULL));
    assert_string_equal(reply_field(reply, "Content-Type", text), "application/json");
    assert_memory_equal(reply_field(reply, "x-request-id", text), "req_", 4);
    arena_reset(&arena);
}

/* ---- Chat ---- */

void send_post(Client *client, const char *head, const char *body)
{
    char request[1024];
    int size = snprintf(request, sizeof(request), "%sContent-Length: %zu\r\n\r\n%s", head,
                        strlen(body), body);
    assert_in_range(size, 1, sizeof(request) - 1);
    assert_true(client_send_text(client, request));
}

void post_chat(Fixture *fixture, const char *body, Reply *reply)
{
    client_exchange(fixture->port, "POST", "/v1/chat/completions", "", body, reply);
}

void expected_reply(const char *prompt, bool never_ends, size_t max, Buffer *out, bool *ended,
                    size_t *n_prompt)
{
    TokenList tokens = {0};
    Error err;
    buffer_init(out, 1 << 24);
    assert_true(tokenizer_encode(tokenizer, slice_of(prompt), false, &tokens, &err));
    *n_prompt = tokens.count;
    char *to = buffer_extend(out, max);
    assert_non_null(to);
    out->len = fake_reply(tokens.ids, tokens.count, never_ends, to, max, ended);
    token_list_reset(&tokens);
}

void assert_completion(const Reply *reply, const char *prompt, size_t max, bool never_ends)
{
    Arena arena;
    Buffer expected;
    bool ended;
    size_t n_prompt;
    if (reply->status != 200)
        fail_msg("status %d: %.*s", reply->status, SLICE_ARG(buffer_view(&reply->body)));
    expected_reply(prompt, never_ends, max, &expected, &ended, &n_prompt);
    const JsonValue *body = parse_json(&reply->body, &arena);
    assert_memory_equal(text_at(body, "id").ptr, "chatcmpl-", 9);
    assert_slice(text_at(body, "object"), "chat.completion");
    assert_slice(text_at(body, "model"), "tiny");
    assert_int_equal(text_at(body, "system_fingerprint").len, 11);
    assert_true(number_at(body, "created") > 1600000000);
    assert_int_equal(number_at(body, "choices.0.index"), 0);
    assert_slice(text_at(body, "choices.0.message.role"), "assistant");
    Slice content = text_at(body, "choices.0.message.content");
    if (!slice_equal(content, buffer_view(&expected)))
        fail_msg("content '%.*s', expected '%.*s'", SLICE_ARG(content),
                 SLICE_ARG(buffer_view(&expected)));
    assert_true(json_is(value_at(body, "choices.0.logprobs"), JSON_NULL));
    assert_slice(text_at(body, "choices.0.finish_reason"), ended ? "stop" : "length");
    assert_int_equal(number_at(body, "usage.prompt_tokens"), n_prompt);
    assert_int_equal(number_at(body, "usage.completion_tokens"), expected.len);
    assert_int_equal(number_at(body, "usage.total_tokens"), n_prompt + expected.len);
    int64_t cached = number_at(body, "usage.prompt_tokens_details.cached_tokens");
    assert_in_range(cached, 0, n_prompt - 1);
    assert_int_equal(number_at(body, "timings.cache_n"), cached);
    assert_int_equal(number_at(body, "usage.completion_tokens_details.reasoning_tokens"), 0);
    assert_int_equal(number_at(body, "timings.prompt_n"), n_prompt - (size_t)cached);
    assert_int_equal(number_at(body, "timings.predicted_n"), expected.len);
    assert_true(json_is_number(value_at(body, "timings.predicted_per_second")));
    buffer_reset(&expected);
    arena_reset(&arena);
}

/* ---- Streams ---- */

static void read_choice(Stream *stream, const JsonValue *chunk)
{
    const JsonValue *delta = value_at(chunk, "choices.0.delta");
    assert_true(json_is(delta, JSON_OBJECT));
    assert_false(stream->ended);
    assert_int_equal(number_at(chunk, "choices.0.index"), 0);
    assert_true(json_is(value_at(chunk, "choices.0.logprobs"), JSON_NULL));
    if (!stream->began) {
        assert_slice(text_at(delta, "role"), "assistant");
        assert_slice(text_at(delta, "content"), "");
        stream->began = true;
        return;
    }
    assert_null(value_at(delta, "role"));
    if (json_is(value_at(chunk, "choices.0.finish_reason"), JSON_STRING)) {
        assert_int_equal(delta->as.object.count, 0);
        snprintf(stream->finish, sizeof(stream->finish), "%.*s",
                 SLICE_ARG(text_at(chunk, "choices.0.finish_reason")));
        stream->ended = true;
        return;
    }
    Slice text = text_at(delta, "content");
    assert_true(text.len > 0);
    assert_true(utf8_is_valid(text));
    buffer_append_slice(&stream->text, text);
    stream->deltas++;
}

static void read_event(Stream *stream, Slice data)
{
    Arena arena;
    Buffer json;
    assert_false(stream->done);
    if (slice_equal(data, SLICE("[DONE]"))) {
        stream->done = true;
        return;
    }
    buffer_init(&json, 1 << 24);
    buffer_append_slice(&json, data);
    const JsonValue *chunk = parse_json(&json, &arena);
    if (value_at(chunk, "error")) {
        snprintf(stream->code, sizeof(stream->code), "%.*s",
                 SLICE_ARG(text_at(chunk, "error.code")));
    } else {
        assert_slice(text_at(chunk, "object"), "chat.completion.chunk");
        assert_slice(text_at(chunk, "model"), "tiny");
        if (stream->id[0])
            assert_slice(text_at(chunk, "id"), stream->id);
        snprintf(stream->id, sizeof(stream->id), "%.*s", SLICE_ARG(text_at(chunk, "id")));
        if (value_at(chunk, "choices")->as.array.count == 0) {
            assert_true(stream->ended);
            stream->has_usage = true;
            stream->completion_tokens = number_at(chunk, "usage.completion_tokens");
            assert_true(json_is(value_at(chunk, "timings"), JSON_OBJECT));
        } else {
            read_choice(stream, chunk);
            stream->has_null_usage = json_is(value_at(chunk, "usage"), JSON_NULL);
        }
    }
    arena_reset(&arena);
    buffer_reset(&json);
}

void read_events(Stream *stream, Slice body)
{
    *stream = (Stream){0};
    buffer_init(&stream->text, 64 << 20);
    size_t start = 0;
    while (start < body.len) {
        size_t end = slice_find(body, SLICE("\n\n"), start);
        if (end == SIZE_MAX)
            fail_msg("an event is cut: %.*s", (int)(body.len - start), body.ptr + start);
        Slice event = {body.ptr + start, end - start};
        if (slice_starts_with(event, SLICE(":")))
            stream->comments++;
        else if (slice_starts_with(event, SLICE("data: ")))
            read_event(stream, (Slice){event.ptr + 6, event.len - 6});
        else
            fail_msg("no event: %.*s", SLICE_ARG(event));
        start = end + 2;
    }
}
