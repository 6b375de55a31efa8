/* Stopping while clients do everything that clients do: many servers, each started, loaded from
 * several threads and stopped at a random moment. What must hold: the process lives, every stop is
 * soon over, and the engine has lost no sequence. Clients only tolerate: their requests may be
 * refused, cut, or not accepted at all. */
#include "server_fixture.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum { ROUNDS = 60, LOADERS = 6 };

typedef struct Load {
    uint16_t port;
    uint32_t random;
    atomic_bool *stop;
    size_t answered;
} Load;

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static void pause_microseconds(uint32_t microseconds)
{
    struct timespec time = {microseconds / 1000000, (long)(microseconds % 1000000) * 1000};
    nanosleep(&time, NULL);
}

static int connect_to(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Reads until the end, or for some time, or only the first bytes. True when any came. */
static bool read_some(int fd, bool to_the_end, const atomic_bool *stop)
{
    char page[4096];
    bool any = false;
    for (int waits = 0; waits < 100 && !atomic_load(stop);) {
        struct pollfd entry = {.fd = fd, .events = POLLIN};
        if (poll(&entry, 1, 20) == 0) {
            waits++;
            continue;
        }
        if (recv(fd, page, sizeof(page), 0) <= 0)
            return any;
        any = true;
        if (!to_the_end)
            return any;
    }
    return any;
}

static void send_request(int fd, uint32_t kind, uint32_t tokens)
{
    char request[512], body[256];
    int size = snprintf(body, sizeof(body), "{" HELLO ",\"max_tokens\":%u,\"stream\":%s,\"n\":%u}",
                        1 + tokens % 40, kind % 2 ? "true" : "false", 1 + kind % 3);
    int length =
        snprintf(request, sizeof(request),
                 CHAT_HEAD "Connection: close\r\nContent-Length: %d\r\n\r\n%s", size, body);
    size_t sent = kind % 7 == 0 ? (size_t)length / 2 : (size_t)length; /* some are cut */
    ssize_t done = send(fd, request, sent, MSG_NOSIGNAL);
    (void)done; /* the server may be gone */
}

static void *load_server(void *argument)
{
    Load *load = argument;
    while (!atomic_load(load->stop)) {
        uint32_t kind = next_random(&load->random);
        int fd = connect_to(load->port);
        if (fd < 0) {
            pause_microseconds(200);
            continue;
        }
        if (kind % 11 != 0) /* some only connect */
            send_request(fd, kind, next_random(&load->random));
        if (kind % 5 != 0) /* some hang up at once */
            load->answered += read_some(fd, kind % 3 != 0, load->stop);
        close(fd);
    }
    return NULL;
}

static void stopping_under_load_is_safe(void **state)
{
    (void)state;
    uint32_t random = 20240501;
    size_t answered = 0;
    for (int round = 0; round < ROUNDS; round++) {
        Fixture fixture;
        pthread_t threads[LOADERS];
        Load loads[LOADERS];
        atomic_bool stop = false;
        fixture_init(&fixture);
        atomic_store(&fixture.fake.delay_microseconds, (int)(next_random(&random) % 4) * 1000);
        for (size_t i = 0; i < LOADERS; i++) {
            loads[i] = (Load){fixture.port, next_random(&random), &stop, 0};
            assert_int_equal(pthread_create(&threads[i], NULL, load_server, &loads[i]), 0);
        }
        pause_microseconds(next_random(&random) % 40000);
        double start = clock_monotonic_seconds();
        server_stop(fixture.server, 1e-3 * (next_random(&random) % 10));
        assert_true(clock_monotonic_seconds() - start < 15);
        atomic_store(&stop, true);
        for (size_t i = 0; i < LOADERS; i++) {
            pthread_join(threads[i], NULL);
            answered += loads[i].answered;
        }
        scheduler_free(fixture.scheduler);
        assert_int_equal(atomic_load(&fixture.fake.sequences), 0);
        assert_false(atomic_load(&fixture.fake.misused));
    }
    assert_true(answered > ROUNDS); /* it was load */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(stopping_under_load_is_safe)};
    return cmocka_run_group_tests(tests, server_tests_setup, server_tests_teardown);
}
