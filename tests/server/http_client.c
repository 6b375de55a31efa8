#include "http_client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

void client_open(Client *client, uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    buffer_init(&client->input, 256 << 20);
    client->socket = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(client->socket >= 0);
    assert_int_equal(connect(client->socket, (struct sockaddr *)&address, sizeof(address)), 0);
}

void client_close(Client *client)
{
    close(client->socket);
    buffer_reset(&client->input);
}

bool client_send(Client *client, Slice bytes)
{
    while (bytes.len > 0) {
        ssize_t sent = send(client->socket, bytes.ptr, bytes.len, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return false;
        bytes.ptr += sent;
        bytes.len -= (size_t)sent;
    }
    return true;
}

bool client_send_text(Client *client, const char *text)
{
    return client_send(client, slice_of(text));
}

bool client_receive(Client *client)
{
    char page[65536];
    struct pollfd entry = {.fd = client->socket, .events = POLLIN};
    int ready = poll(&entry, 1, 30000);
    if (ready == 0)
        fail_msg("no answer within 30 seconds; so far: %.*s",
                 SLICE_ARG(buffer_view(&client->input)));
    ssize_t got = recv(client->socket, page, sizeof(page), 0);
    if (got <= 0)
        return false;
    buffer_append(&client->input, page, (size_t)got);
    assert_false(client->input.failed);
    return true;
}

static size_t find(const Client *client, const char *text, size_t from)
{
    return slice_find(buffer_view(&client->input), slice_of(text), from);
}

bool client_wait_for(Client *client, const char *text)
{
    while (find(client, text, 0) == SIZE_MAX) {
        if (!client_receive(client))
            return false;
    }
    return true;
}

void reply_reset(Reply *reply)
{
    buffer_reset(&reply->head);
    buffer_reset(&reply->body);
}

const char *reply_field(const Reply *reply, const char *name, char out[512])
{
    size_t length = strlen(name);
    Slice head = buffer_view(&reply->head);
    out[0] = '\0';
    for (size_t at = slice_find(head, SLICE("\r\n"), 0);
         at != SIZE_MAX && at + 2 + length < head.len;
         at = slice_find(head, SLICE("\r\n"), at + 2)) {
        const char *line = head.ptr + at + 2;
        if (strncasecmp(line, name, length) != 0 || line[length] != ':')
            continue;
        size_t end = slice_find(head, SLICE("\r\n"), at + 2);
        const char *value = line + length + 1;
        while (*value == ' ')
            value++;
        snprintf(out, 512, "%.*s", (int)(head.ptr + end - value), value);
        break;
    }
    return out;
}

/* Takes count bytes of input into the body; false when the connection ends before. */
static bool take_body(Client *client, Reply *reply, size_t count)
{
    while (client->input.len < count) {
        if (!client_receive(client))
            return false;
    }
    buffer_append(&reply->body, client->input.ptr, count);
    buffer_remove_front(&client->input, count);
    return true;
}

static void read_chunks(Client *client, Reply *reply)
{
    for (;;) {
        if (!client_wait_for(client, "\r\n")) {
            reply->closed = true;
            return;
        }
        size_t line = find(client, "\r\n", 0);
        size_t size = strtoul(client->input.ptr, NULL, 16);
        buffer_remove_front(&client->input, line + 2);
        Reply end = {0};
        if (!take_body(client, reply, size)) {
            reply->closed = true;
            return;
        }
        buffer_init(&end.body, 16);
        assert_true(take_body(client, &end, 2));
        assert_memory_equal(end.body.ptr, "\r\n", 2);
        reply_reset(&end);
        if (size == 0)
            return;
    }
}

void client_read_reply(Client *client, Reply *reply, bool head_only)
{
    char text[512];
    *reply = (Reply){0};
    buffer_init(&reply->head, 1 << 20);
    buffer_init(&reply->body, 256 << 20);
    if (!client_wait_for(client, "\r\n\r\n")) {
        reply->closed = true;
        return;
    }
    size_t end = find(client, "\r\n\r\n", 0) + 4;
    buffer_append(&reply->head, client->input.ptr, end);
    buffer_remove_front(&client->input, end);
    buffer_append_byte(&reply->head, '\0');
    reply->head.len--;
    assert_int_equal(sscanf(reply->head.ptr, "HTTP/1.%*d %d", &reply->status), 1);
    if (reply->status == 100) {
        reply_reset(reply);
        client_read_reply(client, reply, head_only);
        return;
    }
    if (!head_only && reply->status != 204) {
        if (strcmp(reply_field(reply, "Transfer-Encoding", text), "chunked") == 0) {
            read_chunks(client, reply);
        } else if (reply_field(reply, "Content-Length", text)[0]) {
            if (!take_body(client, reply, strtoul(text, NULL, 10)))
                fail_msg("the body is cut");
        } else {
            while (client_receive(client))
                ;
            assert_true(take_body(client, reply, client->input.len));
            reply->closed = true;
        }
    }
    buffer_append_byte(&reply->body, '\0');
    reply->body.len--;
    if (strcasecmp(reply_field(reply, "Connection", text), "close") == 0)
        reply->closed = true;
}

void client_exchange(uint16_t port, const char *method, const char *path, const char *fields,
                     const char *body, Reply *reply)
{
    Client client;
    Buffer request;
    buffer_init(&request, 64 << 20);
    client_open(&client, port);
    buffer_append_format(&request, "%s %s HTTP/1.1\r\nHost: localhost\r\n%s", method, path, fields);
    if (body)
        buffer_append_format(&request, "Content-Length: %zu\r\n", strlen(body));
    buffer_append_text(&request, "\r\n");
    if (body)
        buffer_append_text(&request, body);
    assert_false(request.failed);
    client_send(&client, buffer_view(&request)); /* an early refusal may close before all is sent */
    client_read_reply(&client, reply, strcmp(method, "HEAD") == 0);
    buffer_reset(&request);
    client_close(&client);
}
