/* route: which handler answers a path. */
#ifndef SERVER_ROUTE_H
#define SERVER_ROUTE_H

#include "http.h"

struct Route {
    const char *path; /* ends in '/' when an id follows */
    bool is_post;     /* else GET (and HEAD) */
    void (*handle)(HttpRequest *request);
};

/* Finds the route of request->path and sets request->route (and path_id). False with the 404 or
 * 405. */
bool route_find(HttpRequest *request) WARN_UNUSED;

/* Handlers. */
void models_handle_list(HttpRequest *request);
void models_handle_get(HttpRequest *request);
void models_handle_health(HttpRequest *request);
void chat_handle(HttpRequest *request);

#endif
