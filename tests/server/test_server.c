#include "fake_engine.h"
#include "http_client.h"
#include "json.h"
#include "server.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

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

enum { SLOTS = 3, CONTEXT = 9000 };

static Tokenizer *tokenizer;
static ChatTemplate *chat;

typedef struct Fixture {
    FakeEngine fake;
    Scheduler *scheduler;
    Server *server;
    uint16_t port;
} Fixture;

static int setup(void **state)
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

static int teardown(void **state)
{
    (void)state;
    chat_template_free(chat);
    tokenizer_free(tokenizer);
    return 0;
}

static void fixture_init(Fixture *fixture)
{
    Error err = {0};
    fake_engine_init(&fixture->fake, 100000);
    SchedulerOptions scheduling = {.slots = SLOTS, .max_context = CONTEXT};
    ServerOptions serving = {
        .host = "127.0.0.1", .model_id = SLICE("tiny"), .max_context = CONTEXT};
    if (!scheduler_create(&fixture->fake.engine, tokenizer, &fixture->fake.config, &scheduling,
                          &fixture->scheduler, &err) ||
        !server_start(&serving, fixture->scheduler, tokenizer, chat, &fixture->server, &err))
        fail_msg("%s", err.message);
    fixture->port = server_port(fixture->server);
    assert_int_not_equal(fixture->port, 0);
}

static void fixture_reset(Fixture *fixture)
{
    server_stop(fixture->server, 1);
    scheduler_free(fixture->scheduler);
    assert_int_equal(atomic_load(&fixture->fake.sequences), 0);
    assert_false(atomic_load(&fixture->fake.misused));
}

static void pause_milliseconds(long milliseconds)
{
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static SchedulerStatistics statistics_of(Fixture *fixture)
{
    SchedulerStatistics statistics;
    scheduler_statistics(fixture->scheduler, &statistics);
    return statistics;
}

/* Seconds until nothing runs or waits; fails the test after limit. */
static void wait_until_quiet(Fixture *fixture, double limit)
{
    double start = clock_monotonic_seconds();
    for (;;) {
        SchedulerStatistics statistics = statistics_of(fixture);
        if (statistics.running == 0 && statistics.waiting == 0)
            return;
        if (clock_monotonic_seconds() - start > limit)
            fail_msg("after %g seconds %zu run and %zu wait", limit, statistics.running,
                     statistics.waiting);
        pause_milliseconds(5);
    }
}

static void wait_until_running(Fixture *fixture, size_t running, size_t waiting)
{
    for (int i = 0; i < 3000; i++) {
        SchedulerStatistics statistics = statistics_of(fixture);
        if (statistics.running >= running && statistics.waiting >= waiting)
            return;
        pause_milliseconds(5);
    }
    fail_msg("%zu jobs should run and %zu wait", running, waiting);
}

/* ---- JSON ---- */

static const JsonValue *parse(const Buffer *text, Arena *arena)
{
    const JsonValue *value;
    Error err = {0};
    arena_init(arena, 64 << 20);
    if (!json_parse(buffer_view(text), arena, &value, &err))
        fail_msg("%s in %.*s", err.message, SLICE_ARG(buffer_view(text)));
    return value;
}

/* "choices.0.message.content" */
static const JsonValue *at(const JsonValue *value, const char *path)
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

static Slice text_at(const JsonValue *value, const char *path)
{
    const JsonValue *found = at(value, path);
    if (!json_is(found, JSON_STRING)) {
        const JsonValue *message = json_get(json_get(value, SLICE("error")), SLICE("message"));
        fail_msg("%s is no string; %.*s", path,
                 SLICE_ARG(json_is(message, JSON_STRING) ? message->as.string : SLICE_EMPTY));
    }
    return found->as.string;
}

static int64_t number_at(const JsonValue *value, const char *path)
{
    int64_t number = -1;
    const JsonValue *found = at(value, path);
    if (!found || !json_to_int64(found, &number))
        fail_msg("%s is no integer", path);
    return number;
}

static void assert_slice(Slice found, const char *expected)
{
    if (!slice_equal(found, slice_of(expected)))
        fail_msg("found '%.*s', expected '%s'", SLICE_ARG(found), expected);
}

/* All four keys, and nothing else. param NULL: null. */
static void assert_error(const Reply *reply, int status, const char *code, const char *param)
{
    Arena arena;
    char text[512];
    if (reply->status != status)
        fail_msg("status %d, expected %d %s: %.*s", reply->status, status, code,
                 SLICE_ARG(buffer_view(&reply->body)));
    const JsonValue *error = at(parse(&reply->body, &arena), "error");
    assert_true(json_is(error, JSON_OBJECT));
    assert_int_equal(error->as.object.count, 4);
    assert_slice(text_at(error, "code"), code);
    assert_slice(text_at(error, "type"), status < 500 ? "invalid_request_error" : "server_error");
    assert_true(text_at(error, "message").len > 0);
    if (param)
        assert_slice(text_at(error, "param"), param);
    else
        assert_true(json_is(at(error, "param"), JSON_NULL));
    assert_string_equal(reply_field(reply, "Content-Type", text), "application/json");
    assert_memory_equal(reply_field(reply, "x-request-id", text), "req_", 4);
    arena_reset(&arena);
}

/* ---- Chat ---- */

#define HEAD "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"

static void send_post(Client *client, const char *head, const char *body)
{
    char request[1024];
    int size = snprintf(request, sizeof(request), "%sContent-Length: %zu\r\n\r\n%s", head,
                        strlen(body), body);
    assert_in_range(size, 1, sizeof(request) - 1);
    assert_true(client_send_text(client, request));
}

static void post_chat(Fixture *fixture, const char *body, Reply *reply)
{
    client_exchange(fixture->port, "POST", "/v1/chat/completions", "", body, reply);
}

/* The engine's reply to a prompt text. */
static void expected_reply(const char *prompt, bool never_ends, size_t max, Buffer *out,
                           bool *ended, size_t *n_prompt)
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

static void assert_completion(const Reply *reply, const char *prompt, size_t max, bool never_ends)
{
    Arena arena;
    Buffer expected;
    bool ended;
    size_t n_prompt;
    if (reply->status != 200)
        fail_msg("status %d: %.*s", reply->status, SLICE_ARG(buffer_view(&reply->body)));
    expected_reply(prompt, never_ends, max, &expected, &ended, &n_prompt);
    const JsonValue *body = parse(&reply->body, &arena);
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
    assert_true(json_is(at(body, "choices.0.logprobs"), JSON_NULL));
    assert_slice(text_at(body, "choices.0.finish_reason"), ended ? "stop" : "length");
    assert_int_equal(number_at(body, "usage.prompt_tokens"), n_prompt);
    assert_int_equal(number_at(body, "usage.completion_tokens"), expected.len);
    assert_int_equal(number_at(body, "usage.total_tokens"), n_prompt + expected.len);
    assert_int_equal(number_at(body, "usage.prompt_tokens_details.cached_tokens"), 0);
    assert_int_equal(number_at(body, "usage.completion_tokens_details.reasoning_tokens"), 0);
    assert_int_equal(number_at(body, "timings.prompt_n"), n_prompt);
    assert_int_equal(number_at(body, "timings.predicted_n"), expected.len);
    assert_true(json_is_number(at(body, "timings.predicted_per_second")));
    buffer_reset(&expected);
    arena_reset(&arena);
}

#define PROMPT(text) "<|im_start|>user\n" text "<|im_end|>\n<|im_start|>assistant\n"

static void chat_answers_with_the_engines_text(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    fixture_init(&fixture);
    post_chat(&fixture, "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}", &reply);
    assert_completion(&reply, PROMPT("Hi"), 256, false);
    reply_reset(&reply);
    atomic_store(&fixture.fake.never_ends, true);
    post_chat(
        &fixture,
        "{\"messages\":[{\"role\":\"developer\",\"content\":\"Be brief\"},{\"role\":\"user\","
        "\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}],"
        "\"max_tokens\":9,\"max_completion_tokens\":5.0,\"ignore_eos\":true,\"user\":null,"
        "\"chat_template_kwargs\":{\"enable_thinking\":true},\"enable_thinking\":false,"
        "\"n\":1,\"tools\":[],\"tool_choice\":\"auto\",\"logprobs\":false,\"model\":\"gpt-4o\","
        "\"response_format\":{\"type\":\"text\"},\"store\":true,\"metadata\":{\"a\":1}}",
        &reply);
    assert_completion(&reply, "<|im_start|>system\nBe brief<|im_end|>\n" PROMPT("ab") "[off]", 5,
                      true);
    char text[512];
    assert_string_equal(reply_field(&reply, "x-ignored-fields", text), "");
    reply_reset(&reply);
    atomic_store(&fixture.fake.never_ends, false);
    post_chat(
        &fixture,
        "{\"wizard\":1,\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"temperature\":null,"
        "\"max_tokens\":3,\"bad\\r\\nname\":2,\"reasoning_effort\":\"low\"}",
        &reply);
    assert_string_equal(reply_field(&reply, "x-ignored-fields", text), "wizard, bad??name");
    assert_completion(&reply, PROMPT("Hi") "[on]", 3, false);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

static void options_reach_the_sampler(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Arena arena;
    fixture_init(&fixture);
    /* A ban of all letters but z leaves z, which the bias lifts above the rest. */
    post_chat(&fixture,
              "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"logit_bias\":{\"122\":100},"
              "\"max_tokens\":6}",
              &reply);
    if (reply.status != 200)
        fail_msg("%.*s", SLICE_ARG(buffer_view(&reply.body)));
    const JsonValue *body = parse(&reply.body, &arena);
    assert_slice(text_at(body, "choices.0.message.content"), "zzzzzz");
    assert_slice(text_at(body, "choices.0.finish_reason"), "length");
    arena_reset(&arena);
    reply_reset(&reply);
    post_chat(&fixture,
              "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"logit_bias\":{\"122\":100},"
              "\"max_tokens\":6,\"stop\":[\"zzz\"]}",
              &reply);
    body = parse(&reply.body, &arena);
    assert_slice(text_at(body, "choices.0.message.content"), "");
    assert_slice(text_at(body, "choices.0.finish_reason"), "stop");
    assert_int_equal(number_at(body, "usage.completion_tokens"), 3);
    arena_reset(&arena);
    reply_reset(&reply);
    Buffer first;
    buffer_init(&first, 1 << 16);
    for (int i = 0; i < 3; i++) { /* same seed, same text; another seed, another */
        char request[256];
        snprintf(request, sizeof(request),
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"temperature\":2,\"top_"
                 "p\":0.9,"
                 "\"seed\":%s,\"max_tokens\":40,\"ignore_eos\":true}",
                 i < 2 ? "18446744073709551615" : "-3");
        post_chat(&fixture, request, &reply);
        body = parse(&reply.body, &arena);
        Slice content = text_at(body, "choices.0.message.content");
        if (i == 0)
            buffer_append_slice(&first, content);
        assert_int_equal(slice_equal(content, buffer_view(&first)), i < 2);
        arena_reset(&arena);
        reply_reset(&reply);
    }
    buffer_reset(&first);
    fixture_reset(&fixture);
}

/* ---- Streams ---- */

typedef struct Stream {
    Buffer text;
    size_t deltas, comments;
    bool began, ended, done, has_usage, has_null_usage;
    char finish[32], code[64], id[64];
    int64_t completion_tokens;
} Stream;

static void read_choice(Stream *stream, const JsonValue *chunk)
{
    const JsonValue *delta = at(chunk, "choices.0.delta");
    assert_true(json_is(delta, JSON_OBJECT));
    assert_false(stream->ended);
    assert_int_equal(number_at(chunk, "choices.0.index"), 0);
    assert_true(json_is(at(chunk, "choices.0.logprobs"), JSON_NULL));
    if (!stream->began) {
        assert_slice(text_at(delta, "role"), "assistant");
        assert_slice(text_at(delta, "content"), "");
        stream->began = true;
        return;
    }
    assert_null(at(delta, "role"));
    if (json_is(at(chunk, "choices.0.finish_reason"), JSON_STRING)) {
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
    const JsonValue *chunk = parse(&json, &arena);
    if (at(chunk, "error")) {
        snprintf(stream->code, sizeof(stream->code), "%.*s",
                 SLICE_ARG(text_at(chunk, "error.code")));
    } else {
        assert_slice(text_at(chunk, "object"), "chat.completion.chunk");
        assert_slice(text_at(chunk, "model"), "tiny");
        if (stream->id[0])
            assert_slice(text_at(chunk, "id"), stream->id);
        snprintf(stream->id, sizeof(stream->id), "%.*s", SLICE_ARG(text_at(chunk, "id")));
        if (at(chunk, "choices")->as.array.count == 0) {
            assert_true(stream->ended);
            stream->has_usage = true;
            stream->completion_tokens = number_at(chunk, "usage.completion_tokens");
            assert_true(json_is(at(chunk, "timings"), JSON_OBJECT));
        } else {
            read_choice(stream, chunk);
            stream->has_null_usage = json_is(at(chunk, "usage"), JSON_NULL);
        }
    }
    arena_reset(&arena);
    buffer_reset(&json);
}

static void read_events(Stream *stream, Slice body)
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

static void streams_carry_the_same_text(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Stream stream;
    Buffer expected;
    bool ended;
    size_t n_prompt;
    char text[512];
    fixture_init(&fixture);
    post_chat(&fixture,
              "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"stream\":true,"
              "\"stream_options\":{\"include_usage\":true,\"more\":1}}",
              &reply);
    assert_int_equal(reply.status, 200);
    assert_string_equal(reply_field(&reply, "Content-Type", text), "text/event-stream");
    assert_string_equal(reply_field(&reply, "Cache-Control", text), "no-cache");
    assert_string_equal(reply_field(&reply, "X-Accel-Buffering", text), "no");
    assert_string_equal(reply_field(&reply, "Transfer-Encoding", text), "chunked");
    read_events(&stream, buffer_view(&reply.body));
    expected_reply(PROMPT("Hi"), false, 256, &expected, &ended, &n_prompt);
    assert_true(slice_equal(buffer_view(&stream.text), buffer_view(&expected)));
    assert_string_equal(stream.finish, ended ? "stop" : "length");
    assert_true(stream.done && stream.has_usage && stream.has_null_usage);
    assert_int_equal(stream.completion_tokens, expected.len);
    buffer_reset(&stream.text);
    buffer_reset(&expected);
    reply_reset(&reply);

    /* Without include_usage there is no usage key; a character arrives whole. */
    post_chat(&fixture,
              "{\"messages\":[{\"role\":\"user\",\"content\":\"\\u0002\"}],\"stream\":true,"
              "\"max_tokens\":31}",
              &reply);
    read_events(&stream, buffer_view(&reply.body));
    assert_false(stream.has_usage || stream.has_null_usage);
    assert_true(utf8_is_valid(buffer_view(&stream.text)));
    assert_true(stream.text.len >= 30);
    assert_string_equal(stream.finish, "length");
    buffer_reset(&stream.text);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

static void tokens_are_sent_as_they_come(void **state)
{
    (void)state;
    Fixture fixture;
    Client client;
    fixture_init(&fixture);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.delay_microseconds, 100000);
    client_open(&client, fixture.port);
    const char body[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"stream\":true,"
                        "\"max_tokens\":12}";
    send_post(&client, HEAD, body);
    double start = clock_monotonic_seconds(), most = 0, last = start;
    size_t arrivals = 0;
    while (slice_find(buffer_view(&client.input), SLICE("[DONE]"), 0) == SIZE_MAX) {
        assert_true(client_receive(&client));
        double now = clock_monotonic_seconds();
        most = now - last > most ? now - last : most;
        last = now;
        arrivals++;
    }
    assert_true(arrivals >= 10);
    assert_true(most < 0.35);
    assert_true(last - start > 1.0);
    client_close(&client);
    fixture_reset(&fixture);
}

static void http_1_0_streams_until_close(void **state)
{
    (void)state;
    Fixture fixture;
    Client client;
    Reply reply;
    Stream stream;
    char text[512];
    fixture_init(&fixture);
    client_open(&client, fixture.port);
    send_post(&client, "POST /v1/chat/completions HTTP/1.0\r\n",
              "{\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}");
    client_read_reply(&client, &reply, false);
    assert_int_equal(reply.status, 200);
    assert_string_equal(reply_field(&reply, "Transfer-Encoding", text), "");
    read_events(&stream, buffer_view(&reply.body));
    assert_true(stream.done);
    buffer_reset(&stream.text);
    reply_reset(&reply);
    client_close(&client);
    fixture_reset(&fixture);
}

static void silent_streams_get_comments(void **state)
{
    (void)state;
    Fixture fixture;
    Client client;
    fixture_init(&fixture);
    atomic_store(&fixture.fake.hold, true);
    client_open(&client, fixture.port);
    send_post(&client, "POST /chat/completions HTTP/1.1\r\nHost: localhost\r\n",
              "{\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}");
    double start = clock_monotonic_seconds();
    assert_true(client_wait_for(&client, "\"role\":\"assistant\""));
    assert_true(client_wait_for(&client, "\n: keep-alive\n\n"));
    double waited = clock_monotonic_seconds() - start;
    assert_true(waited > 4.5 && waited < 6.5);
    atomic_store(&fixture.fake.hold, false);
    assert_true(client_wait_for(&client, "[DONE]"));
    client_close(&client);
    fixture_reset(&fixture);
}

/* ---- Errors of fields ---- */

#define HELLO "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]"

typedef struct BadBody {
    const char *body, *code, *param;
} BadBody;

static const BadBody BAD_BODIES[] = {
    /* JSON */
    {"", "invalid_json", NULL},
    {"{", "invalid_json", NULL},
    {"{\"messages\":[],}", "invalid_json", NULL},
    {"{'messages':[]}", "invalid_json", NULL},
    {"{" HELLO "} x", "invalid_json", NULL},
    {"{" HELLO ",\"temperature\":NaN}", "invalid_json", NULL},
    {"{" HELLO ",\"seed\":01}", "invalid_json", NULL},
    {"{" HELLO ",\"user\":\"\xff\"}", "invalid_json", NULL},
    {"{" HELLO ",\"user\":\"\\ud800\"}", "invalid_json", NULL},
    {"{" HELLO ",\"user\":\"a\nb\"}", "invalid_json", NULL},
    {"[]", "invalid_type", NULL},
    {"\"text\"", "invalid_type", NULL},
    {"null", "invalid_type", NULL},
    /* messages */
    {"{}", "missing_required_parameter", "messages"},
    {"{\"messages\":null}", "missing_required_parameter", "messages"},
    {"{\"messages\":[]}", "empty_array", "messages"},
    {"{\"messages\":\"Hi\"}", "invalid_type", "messages"},
    {"{\"messages\":[1]}", "invalid_type", "messages[0]"},
    {"{\"messages\":[{\"content\":\"Hi\"}]}", "missing_required_parameter", "messages[0].role"},
    {"{\"messages\":[{\"role\":1,\"content\":\"Hi\"}]}", "invalid_type", "messages[0].role"},
    {"{\"messages\":[{\"role\":\"wizard\",\"content\":\"Hi\"}]}", "invalid_value",
     "messages[0].role"},
    {"{\"messages\":[{\"role\":\"user\"}]}", "missing_required_parameter", "messages[0].content"},
    {"{\"messages\":[{\"role\":\"assistant\",\"content\":null}]}", "missing_required_parameter",
     "messages[0].content"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":5}]}", "invalid_type", "messages[0].content"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", "empty_array", "messages[0].content"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[\"a\"]}]}", "invalid_type",
     "messages[0].content[0]"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}]}",
     "unsupported_value", "messages[0].content[0].type"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"file\"}]}]}", "unsupported_value",
     "messages[0].content[0].type"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"smell\"}]}]}", "invalid_value",
     "messages[0].content[0].type"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}",
     "missing_required_parameter", "messages[0].content[0].text"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"refusal\",\"refusal\":\"x\"}]}]}",
     "invalid_value", "messages[0].content[0].type"},
    {"{\"messages\":[{\"role\":\"tool\",\"content\":\"1\"}]}", "missing_required_parameter",
     "messages[0].tool_call_id"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"name\":1}]}", "invalid_type",
     "messages[0].name"},
    {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{}]}]}", "missing_required_parameter",
     "messages[0].tool_calls[0].id"},
    {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"a\",\"function\":{\"name\":"
     "\"f\","
     "\"arguments\":{}}}]}]}",
     "invalid_type", "messages[0].tool_calls[0].function.arguments"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"system\",\"content\":\"b\"}]"
     "}",
     "invalid_value", "messages"},
    /* numbers */
    {"{" HELLO ",\"max_tokens\":0}", "integer_below_min_value", "max_tokens"},
    {"{" HELLO ",\"max_tokens\":2147483648}", "integer_above_max_value", "max_tokens"},
    {"{" HELLO ",\"max_tokens\":1e999}", "integer_above_max_value", "max_tokens"},
    {"{" HELLO ",\"max_tokens\":1.5}", "invalid_type", "max_tokens"},
    {"{" HELLO ",\"max_tokens\":\"5\"}", "invalid_type", "max_tokens"},
    {"{" HELLO ",\"max_tokens\":true}", "invalid_type", "max_tokens"},
    {"{" HELLO ",\"max_completion_tokens\":-1}", "integer_below_min_value",
     "max_completion_tokens"},
    {"{" HELLO ",\"temperature\":-0.1}", "decimal_below_min_value", "temperature"},
    {"{" HELLO ",\"temperature\":2.1}", "decimal_above_max_value", "temperature"},
    {"{" HELLO ",\"temperature\":1e999}", "decimal_above_max_value", "temperature"},
    {"{" HELLO ",\"temperature\":\"1\"}", "invalid_type", "temperature"},
    {"{" HELLO ",\"top_p\":1.01}", "decimal_above_max_value", "top_p"},
    {"{" HELLO ",\"top_p\":-1}", "decimal_below_min_value", "top_p"},
    {"{" HELLO ",\"top_k\":-2}", "integer_below_min_value", "top_k"},
    {"{" HELLO ",\"min_p\":2}", "decimal_above_max_value", "min_p"},
    {"{" HELLO ",\"repetition_penalty\":0}", "decimal_below_min_value", "repetition_penalty"},
    {"{" HELLO ",\"repetition_penalty\":11}", "decimal_above_max_value", "repetition_penalty"},
    {"{" HELLO ",\"repetition_context_size\":-1}", "integer_below_min_value",
     "repetition_context_size"},
    {"{" HELLO ",\"presence_penalty\":2.5}", "decimal_above_max_value", "presence_penalty"},
    {"{" HELLO ",\"frequency_penalty\":-2.5}", "decimal_below_min_value", "frequency_penalty"},
    {"{" HELLO ",\"seed\":1.5}", "invalid_type", "seed"},
    {"{" HELLO ",\"seed\":18446744073709551616}", "integer_above_max_value", "seed"},
    {"{" HELLO ",\"logit_bias\":[]}", "invalid_type", "logit_bias"},
    {"{" HELLO ",\"logit_bias\":{\"x\":1}}", "invalid_value", "logit_bias"},
    {"{" HELLO ",\"logit_bias\":{\"999\":1}}", "invalid_value", "logit_bias"},
    {"{" HELLO ",\"logit_bias\":{\"5\":101}}", "decimal_above_max_value", "logit_bias.5"},
    {"{" HELLO ",\"stop\":5}", "invalid_type", "stop"},
    {"{" HELLO ",\"stop\":[1]}", "invalid_type", "stop[0]"},
    {"{" HELLO ",\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]}", "array_above_max_length", "stop"},
    {"{" HELLO ",\"ignore_eos\":1}", "invalid_type", "ignore_eos"},
    /* the rest */
    {"{" HELLO ",\"model\":5}", "invalid_type", "model"},
    {"{" HELLO ",\"stream\":\"yes\"}", "invalid_type", "stream"},
    {"{" HELLO ",\"stream_options\":{}}", "invalid_value", "stream_options"},
    {"{" HELLO ",\"stream\":true,\"stream_options\":{\"include_usage\":1}}", "invalid_type",
     "stream_options.include_usage"},
    {"{" HELLO ",\"n\":0}", "integer_below_min_value", "n"},
    {"{" HELLO ",\"n\":17}", "integer_above_max_value", "n"},
    {"{" HELLO ",\"n\":2}", "unsupported_parameter", "n"},
    {"{" HELLO ",\"logprobs\":true}", "unsupported_parameter", "logprobs"},
    {"{" HELLO ",\"top_logprobs\":2}", "invalid_value", "top_logprobs"},
    {"{" HELLO ",\"tools\":[{}]}", "unsupported_parameter", "tools"},
    {"{" HELLO ",\"tools\":{}}", "invalid_type", "tools"},
    {"{" HELLO ",\"tool_choice\":\"required\"}", "unsupported_parameter", "tool_choice"},
    {"{" HELLO ",\"tool_choice\":\"maybe\"}", "invalid_value", "tool_choice"},
    {"{" HELLO ",\"response_format\":{\"type\":\"json_object\"}}", "unsupported_parameter",
     "response_format"},
    {"{" HELLO ",\"response_format\":{\"type\":\"xml\"}}", "invalid_value", "response_format.type"},
    {"{" HELLO ",\"response_format\":{}}", "missing_required_parameter", "response_format.type"},
    {"{" HELLO ",\"modalities\":[\"audio\"]}", "unsupported_value", "modalities"},
    {"{" HELLO ",\"audio\":{}}", "unsupported_value", "audio"},
    {"{" HELLO ",\"functions\":[]}", "unsupported_parameter", "functions"},
    {"{" HELLO ",\"guided_regex\":\"a\"}", "unsupported_parameter", "guided_regex"},
    {"{" HELLO ",\"grammar\":\"a\"}", "unsupported_parameter", "grammar"},
    {"{" HELLO ",\"reasoning_budget_tokens\":5}", "unsupported_parameter",
     "reasoning_budget_tokens"},
    {"{" HELLO ",\"reasoning_effort\":\"huge\"}", "invalid_value", "reasoning_effort"},
    {"{" HELLO ",\"enable_thinking\":\"no\"}", "invalid_type", "enable_thinking"},
    {"{" HELLO ",\"chat_template_kwargs\":1}", "invalid_type", "chat_template_kwargs"},
};

static void bad_bodies_are_named(void **state)
{
    (void)state;
    Fixture fixture;
    fixture_init(&fixture);
    for (size_t i = 0; i < ARRAY_COUNT(BAD_BODIES); i++) {
        Reply reply;
        char text[512];
        post_chat(&fixture, BAD_BODIES[i].body, &reply);
        Slice code = slice_of(BAD_BODIES[i].code);
        if (reply.status != 400 || slice_find(buffer_view(&reply.body), code, 0) == SIZE_MAX)
            fail_msg("%s: %d %.*s", BAD_BODIES[i].body, reply.status,
                     SLICE_ARG(buffer_view(&reply.body)));
        assert_error(&reply, 400, BAD_BODIES[i].code, BAD_BODIES[i].param);
        assert_string_equal(reply_field(&reply, "Connection", text), "");
        reply_reset(&reply);
    }
    assert_int_equal(atomic_load(&fixture.fake.passes), 0);
    fixture_reset(&fixture);
}

static void deep_and_long_bodies_are_refused(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Buffer body;
    fixture_init(&fixture);
    buffer_init(&body, 64 << 20);
    for (int i = 0; i < 300; i++)
        buffer_append_byte(&body, '[');
    buffer_append_byte(&body, '\0');
    post_chat(&fixture, body.ptr, &reply);
    assert_error(&reply, 400, "invalid_json", NULL);
    reply_reset(&reply);

    buffer_clear(&body);
    buffer_append_text(&body, "{\"messages\":[{\"role\":\"user\",\"content\":\"");
    for (int i = 0; i < CONTEXT; i++)
        buffer_append_byte(&body, 'y');
    buffer_append_text(&body, "\"}]}");
    buffer_append_byte(&body, '\0');
    post_chat(&fixture, body.ptr, &reply);
    assert_error(&reply, 400, "context_length_exceeded", "messages");
    assert_true(slice_find(buffer_view(&reply.body), SLICE("9019"), 0) != SIZE_MAX);
    assert_true(slice_find(buffer_view(&reply.body), SLICE("9000"), 0) != SIZE_MAX);
    reply_reset(&reply);
    buffer_reset(&body);
    fixture_reset(&fixture);
}

/* ---- Routes and heads ---- */

static void models_and_health_answer(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Arena arena;
    char text[512];
    fixture_init(&fixture);
    static const char *const lists[] = {"/v1/models", "/models", "/v1/models?limit=5",
                                        "http://localhost:1/v1/models"};
    for (size_t i = 0; i < ARRAY_COUNT(lists); i++) {
        client_exchange(fixture.port, "GET", lists[i], "", NULL, &reply);
        assert_int_equal(reply.status, 200);
        const JsonValue *list = parse(&reply.body, &arena);
        assert_int_equal(list->as.object.count, 2);
        assert_slice(text_at(list, "object"), "list");
        assert_int_equal(at(list, "data")->as.array.count, 1);
        assert_slice(text_at(list, "data.0.id"), "tiny");
        assert_slice(text_at(list, "data.0.object"), "model");
        assert_slice(text_at(list, "data.0.owned_by"), "mlx-serve");
        assert_int_equal(number_at(list, "data.0.max_model_len"), CONTEXT);
        assert_true(reply_field(&reply, "Date", text)[0]);
        arena_reset(&arena);
        reply_reset(&reply);
    }
    static const char *const found[] = {"/v1/models/tiny", "/v1/models/t%69ny",
                                        "/v1/models/mlx-serve", "/v1/models/tiny:latest"};
    for (size_t i = 0; i < ARRAY_COUNT(found); i++) {
        client_exchange(fixture.port, "GET", found[i], "", NULL, &reply);
        assert_int_equal(reply.status, 200);
        assert_slice(text_at(parse(&reply.body, &arena), "id"), "tiny");
        arena_reset(&arena);
        reply_reset(&reply);
    }
    client_exchange(fixture.port, "GET", "/v1/models/tiny%00", "", NULL, &reply);
    assert_error(&reply, 404, "model_not_found", "model");
    reply_reset(&reply);
    client_exchange(fixture.port, "HEAD", "/v1/models", "", NULL, &reply);
    assert_int_equal(reply.status, 200);
    assert_true(strtoul(reply_field(&reply, "Content-Length", text), NULL, 10) > 50);
    reply_reset(&reply);
    client_exchange(fixture.port, "GET", "/health", "", NULL, &reply);
    assert_slice(buffer_view(&reply.body), "{\"status\":\"ok\"}");
    reply_reset(&reply);
    fixture_reset(&fixture);
}

static void unknown_routes_and_methods(void **state)
{
    (void)state;
    static const struct {
        const char *method, *path, *body;
        int status;
        const char *code, *allow;
    } cases[] = {
        {"GET", "/nothing", NULL, 404, "unknown_url", ""},
        {"GET", "/v1/../v1/models", NULL, 404, "unknown_url", ""},
        {"GET", "//v1/models", NULL, 404, "unknown_url", ""},
        {"GET", "/v1/%6dodels", NULL, 404, "unknown_url", ""},
        {"GET", "/v1/models/", NULL, 404, "unknown_url", ""},
        {"POST", "/nothing", "{}", 404, "unknown_url", ""},
        {"GET", "/v1/chat/completions", NULL, 405, "method_not_supported", "POST, OPTIONS"},
        {"DELETE", "/v1/chat/completions", NULL, 405, "method_not_supported", "POST, OPTIONS"},
        {"BREW", "/v1/models", NULL, 405, "method_not_supported", "GET, HEAD, OPTIONS"},
        {"POST", "/v1/models", "{}", 405, "method_not_supported", "GET, HEAD, OPTIONS"},
        {"POST", "/v1/chat/completions", NULL, 411, "invalid_request", ""},
    };
    Fixture fixture;
    fixture_init(&fixture);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        Reply reply;
        char text[512];
        client_exchange(fixture.port, cases[i].method, cases[i].path, "", cases[i].body, &reply);
        assert_error(&reply, cases[i].status, cases[i].code, NULL);
        assert_string_equal(reply_field(&reply, "Allow", text), cases[i].allow);
        reply_reset(&reply);
    }
    fixture_reset(&fixture);
}

/* Sends raw bytes and returns the status of the answer, 0 for a plain close. */
static int raw_status(Fixture *fixture, const char *bytes, const char *code)
{
    Client client;
    Reply reply;
    client_open(&client, fixture->port);
    client_send_text(&client, bytes);
    client_read_reply(&client, &reply, false);
    if (code)
        assert_error(&reply, reply.status, code, NULL);
    int status = reply.status;
    reply_reset(&reply);
    client_close(&client);
    return status;
}

static void origins_and_hosts_are_checked(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    char text[512];
    fixture_init(&fixture);
    static const char *const good[] = {"http://localhost:3000", "https://127.0.0.1",
                                       "http://[::1]:8",        "app://obsidian.md",
                                       "tauri://localhost",     "vscode-webview://abc"};
    for (size_t i = 0; i < ARRAY_COUNT(good); i++) {
        char fields[256];
        snprintf(fields, sizeof(fields), "Origin: %s\r\n", good[i]);
        client_exchange(fixture.port, "GET", i % 2 ? "/nothing" : "/health", fields, NULL, &reply);
        assert_int_equal(reply.status, i % 2 ? 404 : 200);
        assert_string_equal(reply_field(&reply, "Access-Control-Allow-Origin", text), good[i]);
        assert_string_equal(reply_field(&reply, "Vary", text), "Origin");
        assert_string_equal(reply_field(&reply, "Access-Control-Expose-Headers", text),
                            "x-request-id, request-id, retry-after");
        reply_reset(&reply);
    }
    static const char *const bad[] = {
        "https://evil.example",  "http://localhost.evil.example", "null",
        "http://127.0.0.1.evil", "http://localhost:3000.evil",    ""};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        char fields[256];
        snprintf(fields, sizeof(fields), "Origin: %s\r\n", bad[i]);
        client_exchange(fixture.port, i % 2 ? "OPTIONS" : "GET", "/nothing", fields, NULL, &reply);
        assert_error(&reply, 403, "origin_not_allowed", NULL);
        assert_string_equal(reply_field(&reply, "Access-Control-Allow-Origin", text), "");
        reply_reset(&reply);
    }
    client_exchange(fixture.port, "OPTIONS", "/any",
                    "Origin: http://localhost\r\nAccess-Control-Request-Headers: x-a, x-b\r\n",
                    NULL, &reply);
    assert_int_equal(reply.status, 204);
    assert_string_equal(reply_field(&reply, "Access-Control-Allow-Methods", text),
                        "GET, POST, DELETE, OPTIONS, HEAD");
    assert_string_equal(reply_field(&reply, "Access-Control-Allow-Headers", text), "x-a, x-b");
    assert_string_equal(reply_field(&reply, "Access-Control-Max-Age", text), "86400");
    reply_reset(&reply);
    static const char *const names[] = {"evil.example", "127.0.0.1.evil", "localhost:80x",
                                        "10.0.0.1", "[::1"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        char request[256];
        snprintf(request, sizeof(request), "GET /health HTTP/1.1\r\nHost: %s\r\n\r\n", names[i]);
        assert_int_equal(raw_status(&fixture, request, "host_not_allowed"), 403);
    }
    assert_int_equal(
        raw_status(&fixture, "GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
                   "host_not_allowed"),
        403);
    assert_int_equal(raw_status(&fixture, "GET /health HTTP/1.1\r\nHost: [::1]:99\r\n\r\n", NULL),
                     200);
    assert_int_equal(
        raw_status(&fixture, "GET /health HTTP/1.1\r\nHost: LocalHost:1\r\n\r\n", NULL), 200);
    assert_int_equal(raw_status(&fixture, "GET /health HTTP/1.0\r\n\r\n", NULL), 200);
    assert_int_equal(raw_status(&fixture, "GET /health HTTP/1.1\r\n\r\n", NULL), 400);
    fixture_reset(&fixture);
}

static void heads_are_bounded(void **state)
{
    (void)state;
    Fixture fixture;
    Buffer head;
    fixture_init(&fixture);
    buffer_init(&head, 1 << 20);
    buffer_append_text(&head, "GET /health?");
    while (head.len < 20 << 10)
        buffer_append_byte(&head, 'q');
    buffer_append_text(&head, " HTTP/1.1\r\nHost: localhost\r\n\r\n");
    buffer_append_byte(&head, '\0');
    assert_int_equal(raw_status(&fixture, head.ptr, NULL), 414);
    buffer_clear(&head);
    buffer_append_text(&head, "GET /health?");
    while (head.len < 15 << 10)
        buffer_append_byte(&head, 'q');
    buffer_append_text(&head, " HTTP/1.1\r\nHost: localhost\r\n\r\n");
    buffer_append_byte(&head, '\0');
    assert_int_equal(raw_status(&fixture, head.ptr, NULL), 200);
    static const struct {
        size_t fields, size;
        int status;
    } cases[] = {
        {120, 10, 200}, {129, 10, 431}, {60, 1000, 200}, {70, 1000, 431}, {127, 4000, 431}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        buffer_clear(&head);
        buffer_append_text(&head, "GET /health HTTP/1.1\r\nHost: localhost\r\n");
        for (size_t f = 0; f < cases[i].fields; f++) {
            buffer_append_format(&head, "x-field-%zu: ", f);
            for (size_t b = 0; b < cases[i].size; b++)
                buffer_append_byte(&head, 'v');
            buffer_append_text(&head, "\r\n");
        }
        buffer_append_text(&head, "\r\n");
        buffer_append_byte(&head, '\0');
        assert_int_equal(raw_status(&fixture, head.ptr, NULL), cases[i].status);
    }
    buffer_reset(&head);
    fixture_reset(&fixture);
}

static void framing_is_strict(void **state)
{
    (void)state;
    Fixture fixture;
    fixture_init(&fixture);
    assert_int_equal(raw_status(&fixture,
                                HEAD "Content-Length: 5\r\nContent-Encoding: gzip\r\n\r\n",
                                "invalid_request"),
                     415);
    assert_int_equal(
        raw_status(&fixture, HEAD "Content-Length: 40000000\r\n\r\n", "request_too_large"), 413);
    assert_int_equal(
        raw_status(&fixture, HEAD "Content-Length: 99999999999999999999999\r\n\r\n", NULL) / 100,
        4);
    assert_int_equal(raw_status(&fixture, HEAD "Content-Length: -5\r\n\r\n", NULL), 400);
    assert_int_equal(raw_status(&fixture, HEAD "Content-Length: 5x\r\n\r\n12345", NULL), 400);
    assert_int_equal(
        raw_status(&fixture, HEAD "Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345", NULL),
        400);
    assert_int_equal(
        raw_status(&fixture,
                   HEAD "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", NULL),
        400);
    assert_int_equal(raw_status(&fixture, HEAD "Transfer-Encoding: gzip\r\n\r\n", NULL), 400);
    assert_int_equal(
        raw_status(&fixture, HEAD "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", NULL),
        400);
    assert_int_equal(raw_status(&fixture, "GARBAGE\r\n\r\n", NULL) / 100 % 4, 0);
    fixture_reset(&fixture);
}

/* ---- Bodies and connections ---- */

static void chunked_bodies_in_small_pieces(void **state)
{
    (void)state;
    Fixture fixture;
    Client client;
    Reply reply;
    fixture_init(&fixture);
    client_open(&client, fixture.port);
    const char body[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"max_tokens\":4}";
    client_send_text(&client, HEAD "Transfer-Encoding: chunked\r\n\r\n");
    for (size_t i = 0; i < strlen(body); i += 7) {
        char chunk[64];
        size_t size = strlen(body) - i < 7 ? strlen(body) - i : 7;
        snprintf(chunk, sizeof(chunk), "%zx;ext=1\r\n%.*s\r\n", size, (int)size, body + i);
        for (size_t b = 0; chunk[b]; b++) /* byte by byte */
            client_send(&client, (Slice){chunk + b, 1});
    }
    client_send_text(&client, "0\r\nTrailer: x\r\n\r\n");
    client_read_reply(&client, &reply, false);
    assert_completion(&reply, PROMPT("Hi"), 4, false);
    reply_reset(&reply);
    /* The connection goes on. */
    client_send_text(&client, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client_read_reply(&client, &reply, false);
    assert_int_equal(reply.status, 200);
    reply_reset(&reply);
    client_close(&client);
    fixture_reset(&fixture);
}

static void expect_continue_is_answered(void **state)
{
    (void)state;
    Fixture fixture;
    Client client;
    Reply reply;
    fixture_init(&fixture);
    client_open(&client, fixture.port);
    const char body[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"max_tokens\":4}";
    char head[256];
    snprintf(head, sizeof(head), HEAD "Expect: 100-continue\r\nContent-Length: %zu\r\n\r\n",
             strlen(body));
    client_send_text(&client, head);
    assert_true(client_wait_for(&client, "HTTP/1.1 100 Continue\r\n\r\n"));
    client_send_text(&client, body);
    client_read_reply(&client, &reply, false);
    assert_completion(&reply, PROMPT("Hi"), 4, false);
    reply_reset(&reply);
    client_close(&client);
    /* A refusal comes instead of it. */
    assert_int_equal(raw_status(&fixture,
                                HEAD "Expect: 100-continue\r\nContent-Length: 40000000\r\n\r\n",
                                "request_too_large"),
                     413);
    fixture_reset(&fixture);
}

static void send_megabytes(Client *client, size_t megabytes, bool chunked)
{
    char *block = malloc(1 << 20);
    assert_non_null(block);
    memset(block, ' ', 1 << 20);
    for (size_t i = 0; i < megabytes; i++) {
        if (chunked)
            client_send_text(client, "100000\r\n");
        if (!client_send(client, (Slice){block, 1 << 20}))
            break;
        if (chunked)
            client_send_text(client, "\r\n");
    }
    free(block);
}

static void large_bodies_are_refused_and_readable(void **state)
{
    (void)state;
    Fixture fixture;
    Client client;
    Reply reply;
    fixture_init(&fixture);
    /* The client sends on although it was refused, and still reads the answer. */
    client_open(&client, fixture.port);
    client_send_text(&client, HEAD "Content-Length: 41943040\r\n\r\n");
    send_megabytes(&client, 40, false);
    client_read_reply(&client, &reply, false);
    assert_error(&reply, 413, "request_too_large", NULL);
    reply_reset(&reply);
    client_close(&client);
    client_open(&client, fixture.port);
    client_send_text(&client, HEAD "Transfer-Encoding: chunked\r\n\r\n");
    send_megabytes(&client, 40, true);
    client_send_text(&client, "0\r\n\r\n");
    client_read_reply(&client, &reply, false);
    assert_error(&reply, 413, "request_too_large", NULL);
    reply_reset(&reply);
    client_close(&client);
    /* At the limit: blanks are not JSON, but the size is fine. */
    client_open(&client, fixture.port);
    client_send_text(&client, HEAD "Content-Length: 33554432\r\n\r\n");
    send_megabytes(&client, 32, false);
    client_read_reply(&client, &reply, false);
    assert_error(&reply, 400, "invalid_json", NULL);
    reply_reset(&reply);
    client_close(&client);
    fixture_reset(&fixture);
}

static void pipelined_requests_are_answered_in_order(void **state)
{
    (void)state;
    Fixture fixture;
    Client client;
    Reply reply;
    Buffer requests;
    fixture_init(&fixture);
    client_open(&client, fixture.port);
    buffer_init(&requests, 1 << 16);
    static const char *const texts[] = {"one", "two", "three"};
    for (size_t i = 0; i < 3; i++) {
        char body[256];
        snprintf(body, sizeof(body),
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}],\"max_tokens\":8}",
                 texts[i]);
        buffer_append_format(&requests, HEAD "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
        buffer_append_text(&requests, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    }
    client_send(&client, buffer_view(&requests));
    for (size_t i = 0; i < 3; i++) {
        char prompt[128];
        snprintf(prompt, sizeof(prompt), "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n",
                 texts[i]);
        client_read_reply(&client, &reply, false);
        assert_completion(&reply, prompt, 8, false);
        reply_reset(&reply);
        client_read_reply(&client, &reply, false);
        assert_slice(buffer_view(&reply.body), "{\"status\":\"ok\"}");
        reply_reset(&reply);
    }
    buffer_reset(&requests);
    client_close(&client);
    fixture_reset(&fixture);
}

/* ---- Load ---- */

static void open_chat(Fixture *fixture, Client *client, const char *content, size_t max,
                      bool stream)
{
    char body[512];
    snprintf(
        body, sizeof(body),
        "{\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}],\"max_tokens\":%zu,\"stream\":%s}",
        content, max, stream ? "true" : "false");
    client_open(client, fixture->port);
    send_post(client, HEAD, body);
}

static void hang_ups_cancel(void **state)
{
    (void)state;
    Fixture fixture;
    Client clients[5];
    fixture_init(&fixture);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.delay_microseconds, 2000);
    /* Three run, streamed and not; two wait. */
    for (size_t i = 0; i < 5; i++)
        open_chat(&fixture, &clients[i], "Hi", 8000, i % 2 == 0);
    wait_until_running(&fixture, 3, 2);
    for (size_t i = 0; i < 5; i++) {
        if (i == 1) { /* a reset instead of an orderly end */
            struct linger linger = {.l_onoff = 1, .l_linger = 0};
            setsockopt(clients[i].socket, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
        }
        client_close(&clients[i]);
    }
    wait_until_quiet(&fixture, 2);
    assert_int_equal(statistics_of(&fixture).cancelled_total, 5);
    assert_int_equal(atomic_load(&fixture.fake.sequences), 0);
    /* A client that closes only its sending side is gone as well. */
    open_chat(&fixture, &clients[0], "Hi", 8000, false);
    wait_until_running(&fixture, 1, 0);
    shutdown(clients[0].socket, SHUT_WR);
    wait_until_quiet(&fixture, 2);
    client_close(&clients[0]);
    assert_int_equal(statistics_of(&fixture).cancelled_total, 6);
    fixture_reset(&fixture);
}

static void full_queues_are_said_so(void **state)
{
    (void)state;
    Fixture fixture;
    enum { CLIENTS = SLOTS + SCHEDULER_QUEUE_MAX };
    Client *clients = calloc(CLIENTS, sizeof(*clients));
    Reply reply;
    char text[512];
    assert_non_null(clients);
    fixture_init(&fixture);
    atomic_store(&fixture.fake.hold, true);
    open_chat(&fixture, &clients[0], "Hi", 2, false);
    wait_until_running(&fixture, 1, 0);
    for (size_t i = 1; i < SLOTS + SCHEDULER_QUEUE_MAX - (SLOTS - 1); i++)
        open_chat(&fixture, &clients[i], "Hi", 2, i % 2);
    wait_until_running(&fixture, 1, SCHEDULER_QUEUE_MAX);
    post_chat(&fixture, "{" HELLO "}", &reply);
    assert_error(&reply, 503, "server_overloaded", NULL);
    assert_string_equal(reply_field(&reply, "Retry-After", text), "1");
    reply_reset(&reply);
    atomic_store(&fixture.fake.hold, false);
    for (size_t i = 0; i < SLOTS + SCHEDULER_QUEUE_MAX - (SLOTS - 1); i++) {
        client_read_reply(&clients[i], &reply, false);
        assert_int_equal(reply.status, 200);
        reply_reset(&reply);
        client_close(&clients[i]);
    }
    free(clients);
    fixture_reset(&fixture);
}

static void too_many_connections_are_said_so(void **state)
{
    (void)state;
    Fixture fixture;
    Client *clients = calloc(SERVER_CONNECTIONS_MAX, sizeof(*clients));
    Reply reply;
    char text[512];
    assert_non_null(clients);
    fixture_init(&fixture);
    for (size_t i = 0; i < SERVER_CONNECTIONS_MAX; i++) {
        client_open(&clients[i], fixture.port);
        client_send_text(&clients[i], "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client_read_reply(&clients[i], &reply, false);
        assert_int_equal(reply.status, 200);
        reply_reset(&reply);
    }
    client_exchange(fixture.port, "GET", "/health", "", NULL, &reply);
    assert_error(&reply, 503, "server_overloaded", NULL);
    assert_string_equal(reply_field(&reply, "Retry-After", text), "1");
    assert_true(reply.closed);
    reply_reset(&reply);
    for (size_t i = 0; i < SERVER_CONNECTIONS_MAX; i++)
        client_close(&clients[i]);
    for (int i = 0; i < 200; i++) { /* the server notices the closes in its own time */
        client_exchange(fixture.port, "GET", "/health", "", NULL, &reply);
        int status = reply.status;
        reply_reset(&reply);
        if (status == 200)
            break;
        assert_int_not_equal(i, 199);
        pause_milliseconds(10);
    }
    free(clients);
    fixture_reset(&fixture);
}

typedef struct Caller {
    Fixture *fixture;
    int number;
} Caller;

/* cmocka's assertions end the process when they fail here, which is a failure as well. */
static void *call_server(void *argument)
{
    Caller *caller = argument;
    for (int i = 0; i < 12; i++) {
        Client client;
        Reply reply;
        char content[64], prompt[128];
        snprintf(content, sizeof(content), "caller %d asks %d", caller->number, i);
        snprintf(prompt, sizeof(prompt), "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n",
                 content);
        bool stream = (i + caller->number) % 2;
        open_chat(caller->fixture, &client, content, 150, stream);
        client_read_reply(&client, &reply, false);
        if (stream) {
            Stream events;
            Buffer expected;
            bool ended;
            size_t n_prompt;
            read_events(&events, buffer_view(&reply.body));
            expected_reply(prompt, false, 150, &expected, &ended, &n_prompt);
            assert_true(events.done);
            assert_true(slice_equal(buffer_view(&events.text), buffer_view(&expected)));
            buffer_reset(&events.text);
            buffer_reset(&expected);
        } else {
            assert_completion(&reply, prompt, 150, false);
        }
        reply_reset(&reply);
        client_close(&client);
    }
    return NULL;
}

static void callers_get_their_own_answers(void **state)
{
    (void)state;
    enum { CALLERS = 6 };
    Fixture fixture;
    pthread_t threads[CALLERS];
    Caller callers[CALLERS];
    fixture_init(&fixture);
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (Caller){&fixture, i};
        assert_int_equal(pthread_create(&threads[i], NULL, call_server, &callers[i]), 0);
    }
    for (int i = 0; i < CALLERS; i++)
        pthread_join(threads[i], NULL);
    assert_true(atomic_load(&fixture.fake.most_rows) > 1);
    fixture_reset(&fixture);
}

static void slow_readers_delay_nobody(void **state)
{
    (void)state;
    Fixture fixture;
    Client slow;
    Reply reply;
    fixture_init(&fixture);
    /* 4096 bytes a token: sockets and the buffer of the job are full after a while. */
    open_chat(&fixture, &slow, "\\u0003", 8000, true);
    wait_until_running(&fixture, 1, 0);
    double start = clock_monotonic_seconds();
    post_chat(&fixture, "{" HELLO ",\"max_tokens\":20}", &reply);
    assert_completion(&reply, PROMPT("Hi"), 20, false);
    reply_reset(&reply);
    assert_true(clock_monotonic_seconds() - start < 5);
    wait_until_quiet(&fixture, 20);
    assert_int_equal(statistics_of(&fixture).cancelled_total, 1);
    /* What it gets in the end is a stream that says so. */
    client_read_reply(&slow, &reply, false);
    Stream stream;
    read_events(&stream, buffer_view(&reply.body));
    assert_true(stream.done);
    assert_string_equal(stream.code, "internal_error");
    assert_true(stream.text.len > SCHEDULER_JOB_TEXT_BYTES_MAX / 2);
    buffer_reset(&stream.text);
    reply_reset(&reply);
    client_close(&slow);
    fixture_reset(&fixture);
}

/* ---- Start and stop ---- */

static void engine_errors_become_answers(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Stream stream;
    fixture_init(&fixture);
    post_chat(&fixture, "{\"messages\":[{\"role\":\"user\",\"content\":\"a<|extra|>b\"}]}", &reply);
    assert_error(&reply, 500, "internal_error", NULL);
    reply_reset(&reply);
    post_chat(&fixture,
              "{\"messages\":[{\"role\":\"user\",\"content\":\"a<|extra|>b\"}],\"stream\":true}",
              &reply);
    assert_int_equal(reply.status, 200);
    read_events(&stream, buffer_view(&reply.body));
    assert_true(stream.done);
    assert_string_equal(stream.code, "internal_error");
    buffer_reset(&stream.text);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

static void stopping_lets_requests_finish(void **state)
{
    (void)state;
    Fixture fixture;
    Client whole, stream, idle;
    Reply reply;
    Stream events;
    fixture_init(&fixture);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.delay_microseconds, 10000);
    client_open(&idle, fixture.port);
    open_chat(&fixture, &whole, "Hi", 30, false);
    open_chat(&fixture, &stream, "Hi", 30, true);
    wait_until_running(&fixture, 2, 0);
    server_stop(fixture.server, 5);
    client_read_reply(&whole, &reply, false);
    assert_completion(&reply, PROMPT("Hi"), 30, true);
    reply_reset(&reply);
    client_read_reply(&stream, &reply, false);
    read_events(&events, buffer_view(&reply.body));
    assert_true(events.done);
    assert_string_equal(events.finish, "length");
    buffer_reset(&events.text);
    reply_reset(&reply);
    assert_false(client_receive(&idle));
    client_close(&whole);
    client_close(&stream);
    client_close(&idle);
    scheduler_free(fixture.scheduler);
}

static void stopping_ends_what_takes_too_long(void **state)
{
    (void)state;
    Fixture fixture;
    Client clients[5];
    Reply reply;
    fixture_init(&fixture);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.delay_microseconds, 5000);
    for (size_t i = 0; i < 5; i++)
        open_chat(&fixture, &clients[i], "Hi", 8000, i % 2);
    wait_until_running(&fixture, 3, 2);
    double start = clock_monotonic_seconds();
    server_stop(fixture.server, 0.3);
    double took = clock_monotonic_seconds() - start;
    assert_true(took >= 0.3 && took < 3);
    for (size_t i = 0; i < 5; i++) {
        client_read_reply(&clients[i], &reply, false);
        if (i % 2) {
            Stream events;
            read_events(&events, buffer_view(&reply.body));
            assert_true(events.done);
            assert_string_equal(events.code, "shutting_down");
            buffer_reset(&events.text);
        } else {
            assert_error(&reply, 503, "shutting_down", NULL);
        }
        reply_reset(&reply);
        client_close(&clients[i]);
    }
    wait_until_quiet(&fixture, 2);
    scheduler_free(fixture.scheduler);
    assert_int_equal(atomic_load(&fixture.fake.sequences), 0);
}

static void bad_addresses_are_clear_errors(void **state)
{
    (void)state;
    Fixture fixture;
    Server *second;
    Error err = {0};
    char expected[64];
    fixture_init(&fixture);
    ServerOptions options = {.host = "127.0.0.1", .port = fixture.port, .model_id = SLICE("tiny")};
    assert_false(server_start(&options, fixture.scheduler, tokenizer, chat, &second, &err));
    snprintf(expected, sizeof(expected), "127.0.0.1:%u: address already in use", fixture.port);
    assert_int_equal(err.code, ERROR_IO);
    assert_string_equal(err.message, expected);
    assert_null(second);
    options.host = "example.com";
    assert_false(server_start(&options, fixture.scheduler, tokenizer, chat, &second, &err));
    assert_int_equal(err.code, ERROR_USAGE);
    options.host = "::1";
    options.port = 0;
    if (server_start(&options, fixture.scheduler, tokenizer, chat, &second, &err))
        server_stop(second, 0);
    fixture_reset(&fixture);
}

static void failing_allocations_answer_or_close(void **state)
{
    (void)state;
    Fixture fixture;
    fixture_init(&fixture);
    for (uint64_t nth = 1; nth < 120; nth++) {
        Client client;
        bool stream = nth % 2;
        open_chat(&fixture, &client, "Hi", 3, stream);
        /* The client allocates too, so the failure strikes while the server works. */
        fault_fail_allocation(nth / 2 + 1);
        pause_milliseconds(10);
        wait_until_quiet(&fixture, 5);
        fault_fail_allocation(0);
        shutdown(client.socket, SHUT_RDWR);
        client_close(&client);
    }
    Reply reply;
    post_chat(&fixture, "{" HELLO ",\"max_tokens\":20}", &reply);
    assert_completion(&reply, PROMPT("Hi"), 20, false);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

/* Given a pattern, only the tests whose names match it run. */
int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chat_answers_with_the_engines_text),
        cmocka_unit_test(options_reach_the_sampler),
        cmocka_unit_test(streams_carry_the_same_text),
        cmocka_unit_test(tokens_are_sent_as_they_come),
        cmocka_unit_test(http_1_0_streams_until_close),
        cmocka_unit_test(silent_streams_get_comments),
        cmocka_unit_test(bad_bodies_are_named),
        cmocka_unit_test(deep_and_long_bodies_are_refused),
        cmocka_unit_test(models_and_health_answer),
        cmocka_unit_test(unknown_routes_and_methods),
        cmocka_unit_test(origins_and_hosts_are_checked),
        cmocka_unit_test(heads_are_bounded),
        cmocka_unit_test(framing_is_strict),
        cmocka_unit_test(chunked_bodies_in_small_pieces),
        cmocka_unit_test(expect_continue_is_answered),
        cmocka_unit_test(large_bodies_are_refused_and_readable),
        cmocka_unit_test(pipelined_requests_are_answered_in_order),
        cmocka_unit_test(hang_ups_cancel),
        cmocka_unit_test(full_queues_are_said_so),
        cmocka_unit_test(too_many_connections_are_said_so),
        cmocka_unit_test(callers_get_their_own_answers),
        cmocka_unit_test(slow_readers_delay_nobody),
        cmocka_unit_test(engine_errors_become_answers),
        cmocka_unit_test(stopping_lets_requests_finish),
        cmocka_unit_test(stopping_ends_what_takes_too_long),
        cmocka_unit_test(bad_addresses_are_clear_errors),
        cmocka_unit_test(failing_allocations_answer_or_close),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
