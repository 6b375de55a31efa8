/* Many clients, slow ones, hang-ups, full queues, failures, start and stop. */
#include "server_fixture.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

#include <cmocka.h>

/* ---- Waiting ---- */

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
    send_post(client, CHAT_HEAD, body);
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
    /* What is left of them is the prefix cache's. */
    assert_int_equal(atomic_load(&fixture.fake.sequences), statistics_of(&fixture).cache_entries);
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
    Client surplus;
    client_open(&surplus, fixture.port);
    client_exchange(fixture.port, "GET", "/health", "", NULL, &reply);
    assert_error(&reply, 503, "server_overloaded", NULL);
    assert_string_equal(reply_field(&reply, "Retry-After", text), "1");
    assert_true(reply.closed);
    reply_reset(&reply);
    /* One that says nothing takes nobody's place. */
    for (size_t i = 0; i < SERVER_CONNECTIONS_MAX; i++) {
        client_send_text(&clients[i], "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client_read_reply(&clients[i], &reply, false);
        assert_int_equal(reply.status, 200);
        reply_reset(&reply);
    }
    for (size_t i = 0; i < SERVER_CONNECTIONS_MAX; i++)
        client_close(&clients[i]);
    client_close(&surplus);
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
    ServerOptions options = {
        .host = "127.0.0.1", .port = fixture.port, .model_id = SLICE("tiny"), .log_file = -1};
    assert_false(server_start(&options, &second, &err));
    snprintf(expected, sizeof(expected), "127.0.0.1:%u: address already in use", fixture.port);
    assert_int_equal(err.code, ERROR_IO);
    assert_string_equal(err.message, expected);
    assert_null(second);
    options.host = "example.com";
    assert_false(server_start(&options, &second, &err));
    assert_int_equal(err.code, ERROR_USAGE);
    options.host = "::1";
    options.port = 0;
    if (server_start(&options, &second, &err))
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

/* What a whole answer of 200 says from the member on, or an empty slice. */
static Slice find_choices(Slice answer, Slice member)
{
    size_t begin = slice_find(answer, member, 0);
    size_t end = slice_find(answer, SLICE(",\"usage\""), 0);
    if (!slice_starts_with(answer, SLICE("HTTP/1.1 200")) || begin == SIZE_MAX || end == SIZE_MAX)
        return SLICE_EMPTY;
    return (Slice){answer.ptr + begin, end - begin};
}

/* What is answered with 200 is whole from the member on. */
static void assert_whole_or_failed(const char *path, const char *body, Slice member)
{
    Fixture fixture;
    Buffer expected;
    char head[256];
    fixture_init(&fixture);
    buffer_init(&expected, 1 << 20);
    snprintf(head, sizeof(head), "POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n",
             path);
    for (uint64_t nth = 0; nth < 400; nth++) {
        Client client;
        client_open(&client, fixture.port);
        send_post(&client, head, body);
        fault_fail_allocation(nth);
        pause_milliseconds(3);
        wait_until_quiet(&fixture, 5);
        pause_milliseconds(nth > 0 ? 1 : 100);
        fault_fail_allocation(0);
        while (client_receive(&client))
            ;
        Slice choices = find_choices(buffer_view(&client.input), member);
        if (nth == 0)
            buffer_append_slice(&expected, choices);
        else if (choices.len > 0)
            assert_true(slice_equal(choices, buffer_view(&expected)));
        client_close(&client);
    }
    assert_true(expected.len > 0);
    buffer_reset(&expected);
    fixture_reset(&fixture);
}

/* Log-probabilities do not lack names or alternatives, calls no arguments. The fake engine's tokens
 * beyond ASCII are parts of characters, whose names are made. */
static void failing_allocations_leave_no_gaps(void **state)
{
    (void)state;
    assert_whole_or_failed("/v1/completions",
                           "{\"prompt\":[200,201],\"max_tokens\":3,\"echo\":true,"
                           "\"logprobs\":5,\"logit_bias\":{\"200\":9}}",
                           SLICE("\"choices\":"));
    assert_whole_or_failed("/v1/chat/completions",
                           "{" HELLO ",\"max_tokens\":3,\"logprobs\":true,\"top_logprobs\":5}",
                           SLICE("\"choices\":"));
    assert_whole_or_failed("/v1/chat/completions",
                           "{" HELLO ",\"tool_choice\":\"required\",\"parallel_tool_calls\":false,"
                           "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\","
                           "\"parameters\":{\"properties\":{\"a\":{\"const\":1}},"
                           "\"required\":[\"a\"],\"additionalProperties\":false}}}]}",
                           SLICE("\"function\":{")); /* the ids before it differ */
}

/* Given a pattern, only the tests whose names match it run. */
int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
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
        cmocka_unit_test(failing_allocations_leave_no_gaps),
    };
    return cmocka_run_group_tests(tests, server_tests_setup, server_tests_teardown);
}
