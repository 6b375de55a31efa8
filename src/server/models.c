#include "models.h"

#include "route.h"

static void write_model(const Server *server, JsonWriter *writer)
{
    json_write_object_begin(writer);
    json_write_key(writer, "id");
    json_write_string(writer, server->options.model_id);
    json_write_key(writer, "object");
    json_write_text(writer, "model");
    json_write_key(writer, "created");
    json_write_int(writer, server->started_at);
    json_write_key(writer, "owned_by");
    json_write_text(writer, "mlx-serve");
    json_write_key(writer, "max_model_len");
    json_write_uint(writer, server->model.max_context);
    json_write_object_end(writer);
}

/* The served id, the directory's name and the two names that always mean the model, with or without
 * ":latest". */
static bool is_served_name(const Server *server, Slice name)
{
    Slice latest = SLICE(":latest");
    for (int pass = 0; pass < 2; pass++) {
        if (slice_equal(name, server->options.model_id) ||
            (name.len > 0 && slice_equal(name, server->options.model_name)) ||
            slice_equal(name, SLICE("mlx-serve")) || slice_equal(name, SLICE("default")))
            return true;
        if (!slice_ends_with(name, latest))
            return false;
        name.len -= latest.len;
    }
    return false;
}

static bool not_found(Slice name, HttpError *error)
{
    return http_error_set(error, FAULT_MODEL_NOT_FOUND, "model",
                          "The model '%.*s' is not served here.", QUOTE_ARG(name));
}

bool models_select(const Server *server, Slice name, HttpError *error)
{
    if (!server->options.strict_model || name.len == 0 || is_served_name(server, name))
        return true;
    return not_found(name, error);
}

void models_handle_list(HttpRequest *request)
{
    HttpError error;
    JsonWriter writer;
    if (!http_need_model(request, &error)) {
        http_reply_error(request, &error);
        return;
    }
    json_writer_init(&writer, &request->reply, 0);
    json_write_object_begin(&writer);
    json_write_key(&writer, "object");
    json_write_text(&writer, "list");
    json_write_key(&writer, "data");
    json_write_array_begin(&writer);
    write_model(request->server, &writer);
    json_write_array_end(&writer);
    json_write_object_end(&writer);
    http_reply(request, 200, "application/json");
}

void models_handle_get(HttpRequest *request)
{
    HttpError error;
    JsonWriter writer;
    if (!is_served_name(request->server, request->path_id)) {
        not_found(request->path_id, &error);
        http_reply_error(request, &error);
        return;
    }
    if (!http_need_model(request, &error)) {
        http_reply_error(request, &error);
        return;
    }
    json_writer_init(&writer, &request->reply, 0);
    write_model(request->server, &writer);
    http_reply(request, 200, "application/json");
}
