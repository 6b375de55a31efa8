/* connections: what each open connection is waiting for, and for how long it may.
 *
 * libmicrohttpd's own timeout only knows silence. A head that drips in byte by byte, and a client
 * that falls silent within a body, are looked after here: the watcher's thread finds them, writes
 * the 408 straight to the socket and shuts it, which makes libmicrohttpd close the connection. That
 * is safe because a connection whose time has run out takes no further request, and because the
 * socket stays open while the connection is in the list. Everything is guarded by the server's
 * mutex. Threads: any. */
#ifndef SERVER_CONNECTIONS_H
#define SERVER_CONNECTIONS_H

#include "http.h"

typedef enum ConnectionPhase {
    CONNECTION_IDLE, /* between requests, or within a head */
    CONNECTION_BODY, /* a body is expected */
    CONNECTION_BUSY  /* a request is being answered */
} ConnectionPhase;

struct HttpConnection {
    int socket;
    ConnectionPhase phase;
    uint64_t bytes_before; /* received up to the end of the present or last request */
    double since; /* IDLE: when the first byte of a head was noticed, or 0; BODY: the last bytes */
    bool timed_out;
    bool is_surplus; /* came when there were SERVER_CONNECTIONS_MAX already */
    HttpConnection *next, *previous;
};

/* NULL without memory: such a connection is served, but not timed. */
HttpConnection *connections_add(Server *server, int socket, bool is_surplus);
/* The connection is about to be closed. Accepts NULL. */
void connections_remove(Server *server, HttpConnection *connection);
/* False when its time has run out: the connection is to be closed. Accepts NULL. */
bool connections_enter(Server *server, HttpConnection *connection,
                       ConnectionPhase phase) WARN_UNUSED;
/* A request has arrived whole: its bytes, head and body as sent, or 0 when they are not known (the
 * framing of chunks). Once a request. Accepts NULL. */
void connections_account(Server *server, HttpConnection *connection, uint64_t request_bytes);
/* Looks for connections whose time has run out. False when there is nothing to time. */
bool connections_check(Server *server);

#endif
