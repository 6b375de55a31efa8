/* watcher: the thread that looks at sockets nobody reads.
 *
 * While a connection waits for tokens it is suspended, and libmicrohttpd does not look at its
 * socket. Every quarter of a second the watcher polls the sockets of running tasks for the end of
 * the client: it wakes such a connection as hung up and shuts its socket, so that it ends too when
 * it is blocked in sending. It wakes streams that have been silent for too long, and times heads
 * and bodies (connections.h). It also lingers: a socket whose request was refused before its body
 * had arrived is read until the client is silent or gone, since closing it with unread bytes would
 * take the answer away from the client. With nothing to watch it sleeps. */
#ifndef SERVER_WATCHER_H
#define SERVER_WATCHER_H

#include "http.h"

bool watcher_start(Server *server, Watcher **out, Error *err) WARN_UNUSED;
void watcher_stop(Watcher *watcher); /* accepts NULL */
/* There is something to watch: a task or a connection. */
void watcher_wake(Watcher *watcher);
/* Keeps a duplicate of the socket open and empty until the client closes it, is silent for a while,
 * or has sent for too long. */
void watcher_linger(Watcher *watcher, int socket);

#endif
