/* HTTP around the dialect: routes, heads, framing, bodies and connections. */
#include "server_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

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
        const JsonValue *list = parse_json(&reply.body, &arena);
        assert_int_equal(list->as.object.count, 2);
        assert_slice(text_at(list, "object"), "list");
        assert_int_equal(value_at(list, "data")->as.array.count, 1);
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
        assert_slice(text_at(parse_json(&reply.body, &arena), "id"), "tiny");
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
                                CHAT_HEAD "Content-Length: 5\r\nContent-Encoding: gzip\r\n\r\n",
                                "invalid_request"),
                     415);
    assert_int_equal(raw_status(&fixture,
                                CHAT_HEAD "Content-Length: 5\r\nContent-Encoding: gzip\r\n"
                                          "Content-Encoding: identity\r\n\r\n",
                                "invalid_request"),
                     415);
    assert_int_equal(raw_status(&fixture,
                                "GET /health HTTP/1.1\r\nHost: localhost \r\n"
                                "Content-Encoding: Identity\t\r\n\r\n",
                                NULL),
                     200);
    assert_int_equal(
        raw_status(&fixture, CHAT_HEAD "Content-Length: 40000000\r\n\r\n", "request_too_large"),
        413);
    assert_int_equal(
        raw_status(&fixture, CHAT_HEAD "Content-Length: 99999999999999999999999\r\n\r\n", NULL) /
            100,
        4);
    assert_int_equal(raw_status(&fixture, CHAT_HEAD "Content-Length: -5\r\n\r\n", NULL), 400);
    assert_int_equal(raw_status(&fixture, CHAT_HEAD "Content-Length: 5x\r\n\r\n12345", NULL), 400);
    assert_int_equal(
        raw_status(&fixture, CHAT_HEAD "Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345", NULL),
        400);
    assert_int_equal(raw_status(&fixture,
                                CHAT_HEAD
                                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                                NULL),
                     400);
    assert_int_equal(raw_status(&fixture, CHAT_HEAD "Transfer-Encoding: gzip\r\n\r\n", NULL), 400);
    assert_int_equal(raw_status(&fixture,
                                CHAT_HEAD "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
                                NULL),
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
    client_send_text(&client, CHAT_HEAD "Transfer-Encoding: chunked\r\n\r\n");
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
    snprintf(head, sizeof(head), CHAT_HEAD "Expect: 100-continue\r\nContent-Length: %zu\r\n\r\n",
             strlen(body));
    client_send_text(&client, head);
    assert_true(client_wait_for(&client, "HTTP/1.1 100 Continue\r\n\r\n"));
    client_send_text(&client, body);
    client_read_reply(&client, &reply, false);
    assert_completion(&reply, PROMPT("Hi"), 4, false);
    reply_reset(&reply);
    client_close(&client);
    /* A refusal comes instead of it. */
    assert_int_equal(
        raw_status(&fixture, CHAT_HEAD "Expect: 100-continue\r\nContent-Length: 40000000\r\n\r\n",
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
    client_send_text(&client, CHAT_HEAD "Content-Length: 41943040\r\n\r\n");
    send_megabytes(&client, 40, false);
    client_read_reply(&client, &reply, false);
    assert_error(&reply, 413, "request_too_large", NULL);
    reply_reset(&reply);
    client_close(&client);
    client_open(&client, fixture.port);
    client_send_text(&client, CHAT_HEAD "Transfer-Encoding: chunked\r\n\r\n");
    send_megabytes(&client, 40, true);
    client_send_text(&client, "0\r\n\r\n");
    client_read_reply(&client, &reply, false);
    assert_error(&reply, 413, "request_too_large", NULL);
    reply_reset(&reply);
    client_close(&client);
    /* At the limit: blanks are not JSON, but the size is fine. */
    client_open(&client, fixture.port);
    client_send_text(&client, CHAT_HEAD "Content-Length: 33554432\r\n\r\n");
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
        buffer_append_format(&requests, CHAT_HEAD "Content-Length: %zu\r\n\r\n%s", strlen(body),
                             body);
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

/* Given a pattern, only the tests whose names match it run. */
int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_and_health_answer),
        cmocka_unit_test(unknown_routes_and_methods),
        cmocka_unit_test(origins_and_hosts_are_checked),
        cmocka_unit_test(heads_are_bounded),
        cmocka_unit_test(framing_is_strict),
        cmocka_unit_test(chunked_bodies_in_small_pieces),
        cmocka_unit_test(expect_continue_is_answered),
        cmocka_unit_test(large_bodies_are_refused_and_readable),
        cmocka_unit_test(pipelined_requests_are_answered_in_order),
    };
    return cmocka_run_group_tests(tests, server_tests_setup, server_tests_teardown);
}
