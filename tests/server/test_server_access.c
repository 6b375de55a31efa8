/* Who may use the server, what it says while the model loads, its names, its clocks. */
#include "server_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

/* ---- Keys ---- */

static const char *const KEYS[] = {"sk-first", "sk-second-key"};
static const ServerOptions WITH_KEYS = {.api_keys = KEYS, .n_api_keys = ARRAY_COUNT(KEYS)};

static void keys_are_needed(void **state)
{
    (void)state;
    static const struct {
        const char *method, *path, *fields;
        int status;
    } cases[] = {
        {"GET", "/v1/models", "", 401},
        {"GET", "/v1/models", "Authorization: Bearer sk-first\r\n", 200},
        {"GET", "/v1/models", "authorization: bEaReR   sk-second-key\r\n", 200},
        {"GET", "/v1/models", "x-api-key: sk-second-key\r\n", 200},
        {"GET", "/v1/models", "x-api-key:\tsk-second-key\t\r\n", 200},
        {"GET", "/v1/models", "Authorization: Bearer sk-first \t\r\n", 200},
        {"GET", "/v1/models", "Authorization: Bearer wrong\r\nx-api-key: sk-first\r\n", 200},
        {"GET", "/v1/models", "Authorization: Bearer sk-firs\r\n", 401},
        {"GET", "/v1/models", "Authorization: Bearer sk-first1\r\n", 401},
        {"GET", "/v1/models", "Authorization: Bearer \r\n", 401},
        {"GET", "/v1/models", "Authorization: Basic sk-first\r\n", 401},
        {"GET", "/v1/models", "Authorization: sk-first\r\n", 401},
        {"GET", "/v1/models", "x-api-key: \r\n", 401},
        {"GET", "/no/such/route", "", 401}, /* the key comes before the route */
        {"DELETE", "/v1/models", "", 401},
        {"GET", "/metrics", "", 401},
        {"GET", "/", "", 200},
        {"GET", "/health", "", 200},
        {"GET", "/v1/health", "Authorization: Bearer wrong\r\n", 200},
        {"OPTIONS", "/v1/models", "", 204},
    };
    Fixture fixture = {0};
    Reply reply;
    char text[512];
    fixture_init_with(&fixture, &WITH_KEYS);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        client_exchange(fixture.port, cases[i].method, cases[i].path, cases[i].fields, NULL,
                        &reply);
        if (reply.status != cases[i].status)
            fail_msg("%s %s %s: %d", cases[i].method, cases[i].path, cases[i].fields, reply.status);
        if (reply.status == 401) {
            assert_error(&reply, 401, "invalid_api_key", NULL);
            assert_string_equal(reply_field(&reply, "WWW-Authenticate", text), "Bearer");
        }
        reply_reset(&reply);
    }
    /* Refused before its body has come, and before its size is looked at. */
    client_exchange(fixture.port, "POST", "/v1/chat/completions",
                    "Origin: http://localhost\r\nContent-Length: 99999999\r\n", NULL, &reply);
    assert_error(&reply, 401, "invalid_api_key", NULL);
    assert_string_equal(reply_field(&reply, "Access-Control-Allow-Origin", text),
                        "http://localhost");
    reply_reset(&reply);
    fixture_reset(&fixture);
}

/* ---- Origins and hosts ---- */

static void origins_and_hosts_can_be_added(void **state)
{
    (void)state;
    static const char *const origins[] = {"https://chat.example:8443"}, *const any[] = {"*"};
    static const char *const hosts[] = {"models.lan"};
    ServerOptions options = {
        .cors_origins = origins, .n_cors_origins = 1, .allowed_hosts = hosts, .n_allowed_hosts = 1};
    static const struct {
        const char *fields;
        int status;
    } cases[] = {
        {"Origin: https://chat.example:8443\r\n", 200},
        {"Origin: https://chat.example\r\n", 403},
        {"Origin: http://localhost:1\r\n", 200},
        {"Origin: https://chat.example:8443 \r\n", 200},
        {"Origin: *\r\n", 403},
    };
    Fixture fixture = {0};
    Reply reply;
    char text[512];
    fixture_init_with(&fixture, &options);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        client_exchange(fixture.port, "GET", "/health", cases[i].fields, NULL, &reply);
        assert_int_equal(reply.status, cases[i].status);
        reply_reset(&reply);
    }
    client_exchange(fixture.port, "GET", "http://MODELS.lan:99/health", "", NULL, &reply);
    assert_int_equal(reply.status, 200);
    reply_reset(&reply);
    client_exchange(fixture.port, "GET", "HTTP://models.lan/health", "", NULL, &reply);
    assert_int_equal(reply.status, 200);
    reply_reset(&reply);
    static const char *const foreign[] = {"http://models.lan.evil/health",
                                          "HTTPS://models.lan.evil/health"};
    for (size_t i = 0; i < ARRAY_COUNT(foreign); i++) {
        client_exchange(fixture.port, "GET", foreign[i], "", NULL, &reply);
        assert_error(&reply, 403, "host_not_allowed", NULL);
        reply_reset(&reply);
    }
    fixture_reset(&fixture);
    options.cors_origins = any;
    fixture_init_with(&fixture, &options);
    client_exchange(fixture.port, "GET", "/health", "Origin: https://any.example\r\n", NULL,
                    &reply);
    assert_int_equal(reply.status, 200);
    assert_string_equal(reply_field(&reply, "Access-Control-Allow-Origin", text),
                        "https://any.example");
    reply_reset(&reply);
    fixture_reset(&fixture);
}

/* ---- Loading ---- */

static void loading_is_told(void **state)
{
    (void)state;
    Fixture fixture = {.is_loading = true};
    Reply reply;
    Arena arena;
    const ServerOptions options = {0};
    fixture_init_with(&fixture, &options);
    client_exchange(fixture.port, "GET", "/health", "", NULL, &reply);
    assert_int_equal(reply.status, 503);
    const JsonValue *body = parse_json(&reply.body, &arena);
    assert_slice(text_at(body, "error.message"), "Loading model");
    assert_slice(text_at(body, "error.type"), "unavailable_error");
    assert_int_equal(number_at(body, "error.code"), 503);
    assert_true(json_is(value_at(body, "error.param"), JSON_NULL));
    arena_reset(&arena);
    reply_reset(&reply);
    static const char *const paths[] = {"/v1/models", "/v1/models/tiny", "/props", "/slots"};
    for (size_t i = 0; i < ARRAY_COUNT(paths); i++) {
        client_exchange(fixture.port, "GET", paths[i], "", NULL, &reply);
        assert_error(&reply, 503, "model_loading", NULL);
        reply_reset(&reply);
    }
    /* What needs no model is answered: the metrics, and everything wrong with a request. */
    client_exchange(fixture.port, "GET", "/metrics", "", NULL, &reply);
    assert_int_equal(reply.status, 200);
    reply_reset(&reply);
    post_chat(&fixture, "{", &reply);
    assert_error(&reply, 400, "invalid_json", NULL);
    reply_reset(&reply);
    post_chat(&fixture, "{" HELLO ",\"max_tokens\":0}", &reply);
    assert_error(&reply, 400, "integer_below_min_value", "max_tokens");
    reply_reset(&reply);
    post_chat(&fixture, "{" HELLO ",\"logit_bias\":{\"99999\":1}}", &reply);
    assert_error(&reply, 503, "model_loading", NULL);
    reply_reset(&reply);
    static const char *const routes[] = {"/v1/completions", "/tokenize", "/detokenize",
                                         "/apply-template"};
    for (size_t i = 0; i < ARRAY_COUNT(routes); i++) {
        client_exchange(fixture.port, "POST", routes[i], "",
                        "{\"prompt\":\"a\",\"tokens\":[1]," HELLO "}", &reply);
        assert_error(&reply, 503, "model_loading", NULL);
        reply_reset(&reply);
    }
    server_set_model(fixture.server, &fixture.model);
    client_exchange(fixture.port, "GET", "/v1/health", "", NULL, &reply);
    assert_int_equal(reply.status, 200);
    reply_reset(&reply);
    post_chat(&fixture, "{" HELLO ",\"max_tokens\":5}", &reply);
    assert_completion(&reply, PROMPT("Hi"), 5, false);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

/* ---- Strictness ---- */

static void names_of_the_model(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        bool is_known;
    } cases[] = {{"tiny", true},
                 {"tiny:latest", true},
                 {"tiny-model-4bit", true},
                 {"mlx-serve", true},
                 {"default:latest", true},
                 {"", true},
                 {"tiny-model-4bit:latest", true},
                 {"gpt-4o", false},
                 {"tiny:latest:latest", false},
                 {"tin", false},
                 {"../tiny", false}};
    const ServerOptions strict = {.strict_model = true};
    for (int pass = 0; pass < 2; pass++) {
        Fixture fixture = {0};
        fixture_init_with(&fixture, pass ? &strict : NULL);
        for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
            Reply reply;
            char body[256];
            snprintf(body, sizeof(body), "{" HELLO ",\"max_tokens\":1,\"model\":\"%s\"}",
                     cases[i].name);
            post_chat(&fixture, body, &reply);
            if (pass && !cases[i].is_known)
                assert_error(&reply, 404, "model_not_found", "model");
            else
                assert_int_equal(reply.status, 200);
            reply_reset(&reply);
        }
        /* The routes around the text of a prompt know the same names. */
        static const char *const routes[] = {"/tokenize", "/detokenize", "/apply-template"};
        for (size_t i = 0; i < ARRAY_COUNT(routes) * 2; i++) {
            Reply reply;
            char body[256];
            snprintf(body, sizeof(body),
                     "{\"content\":\"a\",\"tokens\":[97]," HELLO ",\"model\":\"%s\"}",
                     i % 2 ? "tiny" : "gpt-4o");
            client_exchange(fixture.port, "POST", routes[i / 2], "", body, &reply);
            if (pass && i % 2 == 0)
                assert_error(&reply, 404, "model_not_found", "model");
            else
                assert_int_equal(reply.status, 200);
            reply_reset(&reply);
        }
        fixture_reset(&fixture);
    }
}

static void unknown_fields_can_be_refused(void **state)
{
    (void)state;
    const ServerOptions strict = {.strict_fields = true};
    Fixture fixture = {0};
    Reply reply;
    fixture_init_with(&fixture, &strict);
    post_chat(&fixture, "{" HELLO ",\"temprature\":1,\"other\":2}", &reply);
    assert_error(&reply, 400, "unknown_parameter", "temprature");
    reply_reset(&reply);
    post_chat(&fixture, "{" HELLO ",\"max_tokens\":3,\"prompt_cache_key\":\"x\",\"user\":\"u\"}",
              &reply);
    assert_completion(&reply, PROMPT("Hi"), 3, false);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

/* ---- Clocks ---- */

static void pause_milliseconds(int milliseconds)
{
    struct timespec time = {milliseconds / 1000, (milliseconds % 1000) * 1000000L};
    nanosleep(&time, NULL);
}

static void slow_requests_time_out(void **state)
{
    (void)state;
    const ServerOptions quick = {.head_seconds = 1, .body_seconds = 2};
    Fixture fixture = {0};
    Client drip, body, again, silent, pipelined;
    Reply reply;
    fixture_init_with(&fixture, &quick);
    client_open(&silent, fixture.port);
    client_open(&drip, fixture.port);
    client_open(&again, fixture.port);
    client_open(&body, fixture.port);
    double start = clock_monotonic_seconds();
    client_send_text(&body, CHAT_HEAD "Content-Length: 100\r\n\r\n{");
    /* A second request on a connection is timed, too. */
    client_send_text(&again, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client_read_reply(&again, &reply, false);
    assert_int_equal(reply.status, 200);
    reply_reset(&reply);
    client_send_text(&again, "GET /he");
    /* And one whose beginning came together with the request before it. */
    client_open(&pipelined, fixture.port);
    client_send_text(&pipelined, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal");
    client_read_reply(&pipelined, &reply, false);
    assert_int_equal(reply.status, 200);
    reply_reset(&reply);
    bool open = true;
    for (int i = 0; open && i < 100; i++) { /* a byte each tenth of a second does not help */
        open = client_send_text(&drip, i == 0 ? "G" : "a") && drip.input.len == 0;
        pause_milliseconds(100);
        if (clock_monotonic_seconds() - start > 3)
            break;
    }
    client_read_reply(&drip, &reply, false);
    assert_error(&reply, 408, "request_timeout", NULL);
    assert_true(reply.closed);
    reply_reset(&reply);
    client_read_reply(&again, &reply, false);
    assert_error(&reply, 408, "request_timeout", NULL);
    reply_reset(&reply);
    client_read_reply(&pipelined, &reply, false);
    assert_error(&reply, 408, "request_timeout", NULL);
    assert_true(reply.closed);
    reply_reset(&reply);
    client_close(&pipelined);
    client_read_reply(&body, &reply, false);
    assert_error(&reply, 408, "request_timeout", NULL);
    reply_reset(&reply);
    double took = clock_monotonic_seconds() - start;
    assert_true(took >= 2 && took < 20);
    /* One that has sent nothing is left alone. */
    client_send_text(&silent, "GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client_read_reply(&silent, &reply, false);
    assert_int_equal(reply.status, 404);
    reply_reset(&reply);
    pause_milliseconds(2000);
    client_send_text(&silent, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client_read_reply(&silent, &reply, false);
    assert_int_equal(reply.status, 200);
    reply_reset(&reply);
    client_close(&silent);
    client_close(&drip);
    client_close(&again);
    client_close(&body);
    fixture_reset(&fixture);
}

static void bodies_may_take_their_time(void **state)
{
    (void)state;
    const ServerOptions quick = {.head_seconds = 1, .body_seconds = 1};
    Fixture fixture = {0};
    Client client;
    Reply reply;
    const char text[] = "{" HELLO ",\"max_tokens\":4}";
    char head[256];
    fixture_init_with(&fixture, &quick);
    client_open(&client, fixture.port);
    snprintf(head, sizeof(head), CHAT_HEAD "Content-Length: %zu\r\n\r\n", strlen(text));
    client_send_text(&client, head);
    for (size_t i = 0; i < strlen(text); i += 10) { /* slower than the limit, but not silent */
        size_t left = strlen(text) - i;
        client_send(&client, (Slice){text + i, left < 10 ? left : 10});
        pause_milliseconds(300);
    }
    client_read_reply(&client, &reply, false);
    assert_completion(&reply, PROMPT("Hi"), 4, false);
    reply_reset(&reply);
    client_close(&client);
    fixture_reset(&fixture);
}

/* Given a pattern, only the tests whose names match it run. */
int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_are_needed),
        cmocka_unit_test(origins_and_hosts_can_be_added),
        cmocka_unit_test(loading_is_told),
        cmocka_unit_test(names_of_the_model),
        cmocka_unit_test(unknown_fields_can_be_refused),
        cmocka_unit_test(slow_requests_time_out),
        cmocka_unit_test(bodies_may_take_their_time),
    };
    return cmocka_run_group_tests(tests, server_tests_setup, server_tests_teardown);
}
