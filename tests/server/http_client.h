/* http_client: raw sockets to 127.0.0.1 and just enough HTTP to read answers. Failures end the
 * test. */
#ifndef TESTS_HTTP_CLIENT_H
#define TESTS_HTTP_CLIENT_H

#include "base.h"

typedef struct Client {
    int socket;
    Buffer input; /* received, not yet consumed */
} Client;

typedef struct Reply {
    int status;
    Buffer head; /* status line and fields, with their line ends */
    Buffer body; /* unchunked */
    bool closed; /* the connection ended with or after this reply */
} Reply;

void client_open(Client *client, uint16_t port);
void client_close(Client *client);
/* Sends all; false when the peer has closed. */
bool client_send(Client *client, Slice bytes);
bool client_send_text(Client *client, const char *text);
/* Waits for more bytes; false at the end of the connection. Fails the test after 30 seconds. */
bool client_receive(Client *client);
/* Waits until the input holds text, or the connection ends (false). */
bool client_wait_for(Client *client, const char *text);

void reply_reset(Reply *reply);
/* Reads one reply; head_only for answers to HEAD. */
void client_read_reply(Client *client, Reply *reply, bool head_only);
/* The field's value into out, "" when absent; names are compared without case. */
const char *reply_field(const Reply *reply, const char *name, char out[512]);

/* One exchange on a connection of its own. body NULL: no body and no Content-Length. */
void client_exchange(uint16_t port, const char *method, const char *path, const char *fields,
                     const char *body, Reply *reply);

#endif
