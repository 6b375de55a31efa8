/* models: which names mean the model, and the routes that tell what is served. */
#ifndef SERVER_MODELS_H
#define SERVER_MODELS_H

#include "http.h"

/* Whether a name of a request selects the model; "" does. A server that is not strict serves every
 * name. False with the 404. */
bool models_select(const Server *server, Slice name, HttpError *error) WARN_UNUSED;

#endif
