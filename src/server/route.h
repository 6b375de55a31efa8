/* route: which handler answers a path. */
#ifndef SERVER_ROUTE_H
#define SERVER_ROUTE_H

#include "http.h"

struct Route {
    const char *path; /* ends in '/' when an id follows */
    bool is_post;     /* else GET (and HEAD) */
    void (*handle)(HttpRequest *request);
};

/* For counters and logs: a route's number, below METRICS_ROUTES_MAX; NULL (there was none) has the
 * number route_count(). route_at is the inverse. */
size_t route_count(void);
size_t route_index(const Route *route);
const Route *route_at(size_t index);
/* The path with "{id}" for what it leaves open, "other" for NULL. Returns label. */
enum { ROUTE_LABEL_MAX = 64 };
const char *route_label(const Route *route, char label[ROUTE_LABEL_MAX]);

/* Finds the route of request->path and sets request->route (and path_id). False with the 404 or
 * 405. */
bool route_find(HttpRequest *request) WARN_UNUSED;

/* Handlers. */
void models_handle_list(HttpRequest *request);
void models_handle_get(HttpRequest *request);
void status_handle_health(HttpRequest *request);
void status_handle_root(HttpRequest *request);
void status_handle_version(HttpRequest *request);
void status_handle_props(HttpRequest *request);
void status_handle_slots(HttpRequest *request);
void metrics_handle(HttpRequest *request);
void text_handle_tokenize(HttpRequest *request);
void text_handle_detokenize(HttpRequest *request);
void text_handle_apply_template(HttpRequest *request);
void chat_handle(HttpRequest *request);
void completion_handle(HttpRequest *request);

#endif
