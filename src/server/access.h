/* access: who may use the server. A page on the web must not drive a server on its visitor's
 * machine (Origin; Host against DNS rebinding), and with keys configured, nobody without one. */
#ifndef SERVER_ACCESS_H
#define SERVER_ACCESS_H

#include "http.h"

/* Each returns false with the refusal in request->error. */

/* origins: how many Origin fields there were; an allowed one is kept in request->origin. */
bool access_check_origin(HttpRequest *request, Slice origin, size_t origins) WARN_UNUSED;
/* host and authority (of an absolute-form target) both count: a page may control either. Empty:
 * not given. */
bool access_check_host(HttpRequest *request, Slice host, Slice authority) WARN_UNUSED;
/* The values of Authorization and x-api-key. */
bool access_check_key(HttpRequest *request, Slice authorization, Slice api_key) WARN_UNUSED;

#endif
