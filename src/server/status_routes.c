/* Routes that tell how the server is and what it was started with. */
#include "route.h"

#include <stdio.h>

/* The level of the Ollama API that clients may expect. */
#define OLLAMA_VERSION "0.13.0"

/* ---- Health ---- */

/* In llama-server's form, whose `code` is a number. */
static void reply_unavailable(HttpRequest *request, const char *message)
{
    JsonWriter writer;
    json_writer_init(&writer, &request->reply, 0);
    json_write_object_begin(&writer);
    json_write_key(&writer, "error");
    json_write_object_begin(&writer);
    json_write_key(&writer, "message");
    json_write_text(&writer, message);
    json_write_key(&writer, "type");
    json_write_text(&writer, "unavailable_error");
    json_write_key(&writer, "code");
    json_write_int(&writer, 503);
    json_write_key(&writer, "param");
    json_write_null(&writer);
    json_write_object_end(&writer);
    json_write_object_end(&writer);
    http_reply(request, 503, "application/json");
}

void status_handle_health(HttpRequest *request)
{
    Server *server = request->server;
    SchedulerStatistics statistics;
    char message[128];
    if (!atomic_load(&server->is_ready)) {
        reply_unavailable(request, "Loading model");
        return;
    }
    scheduler_statistics(server->model.scheduler, &statistics);
    if (!statistics.thread_alive) {
        reply_unavailable(request, "The inference thread has ended");
        return;
    }
    if (statistics.step_age_seconds > SERVER_STUCK_SECONDS) {
        snprintf(message, sizeof(message), "The inference thread has been in one step for %.0f s",
                 statistics.step_age_seconds);
        reply_unavailable(request, message);
        return;
    }
    buffer_append_text(&request->reply, "{\"status\":\"ok\"}");
    http_reply(request, 200, "application/json");
}

/* ---- Identity ---- */

void status_handle_root(HttpRequest *request)
{
    buffer_append_text(&request->reply, "Ollama is running");
    http_reply(request, 200, "text/plain");
}

void status_handle_version(HttpRequest *request)
{
    JsonWriter writer;
    json_writer_init(&writer, &request->reply, 0);
    json_write_object_begin(&writer);
    json_write_key(&writer, "version");
    json_write_text(&writer, OLLAMA_VERSION);
    json_write_key(&writer, "mlx_serve");
    json_write_text(&writer, MLX_SERVE_VERSION);
    json_write_object_end(&writer);
    http_reply(request, 200, "application/json");
}

/* ---- Properties ---- */

static void write_generation_settings(const Server *server, JsonWriter *writer)
{
    GenerationOptions defaults;
    generation_options_init(&defaults);
    json_write_object_begin(writer);
    json_write_key(writer, "n_ctx");
    json_write_uint(writer, server->model.max_context);
    json_write_key(writer, "params");
    json_write_object_begin(writer);
    json_write_key(writer, "temperature");
    json_write_float(writer, server->options.temperature);
    json_write_key(writer, "top_p");
    json_write_float(writer, defaults.top_p);
    json_write_key(writer, "top_k");
    json_write_int(writer, defaults.top_k);
    json_write_key(writer, "min_p");
    json_write_float(writer, defaults.min_p);
    json_write_key(writer, "max_tokens");
    json_write_int(writer, GENERATE_MAX_TOKENS_DEFAULT);
    json_write_object_end(writer);
    json_write_object_end(writer);
}

static void write_abilities(const ServerModel *model, JsonWriter *writer)
{
    json_write_key(writer, "modalities");
    json_write_object_begin(writer);
    json_write_key(writer, "vision");
    json_write_bool(writer, false);
    json_write_key(writer, "audio");
    json_write_bool(writer, false);
    json_write_object_end(writer);
    json_write_key(writer, "capabilities");
    json_write_array_begin(writer);
    json_write_text(writer, "completion");
    json_write_text(writer, "tools");
    if (chat_template_markup(model->chat)->think_close.len > 0)
        json_write_text(writer, "thinking");
    json_write_array_end(writer);
}

void status_handle_props(HttpRequest *request)
{
    HttpError error;
    SchedulerStatistics statistics;
    JsonWriter writer;
    const ServerModel *model = http_need_model(request, &error);
    if (!model) {
        http_reply_error(request, &error);
        return;
    }
    scheduler_statistics(model->scheduler, &statistics);
    json_writer_init(&writer, &request->reply, 0);
    json_write_object_begin(&writer);
    json_write_key(&writer, "default_generation_settings");
    write_generation_settings(request->server, &writer);
    json_write_key(&writer, "total_slots");
    json_write_uint(&writer, statistics.slots);
    json_write_key(&writer, "model_alias");
    json_write_string(&writer, request->server->options.model_id);
    json_write_key(&writer, "model_path");
    json_write_string(&writer, request->server->options.model_name);
    json_write_key(&writer, "chat_template");
    json_write_string(&writer, chat_template_source(model->chat));
    write_abilities(model, &writer);
    json_write_key(&writer, "bos_token");
    json_write_string(&writer, chat_template_bos_token(model->chat));
    json_write_key(&writer, "eos_token");
    json_write_string(&writer, chat_template_eos_token(model->chat));
    json_write_key(&writer, "build_info");
    json_write_text(&writer, "mlx-serve " MLX_SERVE_VERSION);
    json_write_object_end(&writer);
    http_reply(request, 200, "application/json");
}

static void write_slot(size_t id, size_t max_context, const SchedulerSlot *slot, JsonWriter *writer)
{
    json_write_object_begin(writer);
    json_write_key(writer, "id");
    json_write_uint(writer, id);
    json_write_key(writer, "n_ctx");
    json_write_uint(writer, max_context);
    json_write_key(writer, "is_processing");
    json_write_bool(writer, slot->is_processing);
    json_write_key(writer, "n_prompt");
    json_write_uint(writer, slot->prompt_tokens);
    json_write_key(writer, "n_decoded");
    json_write_uint(writer, slot->generated_tokens);
    json_write_object_end(writer);
}

void status_handle_slots(HttpRequest *request)
{
    HttpError error;
    JsonWriter writer;
    SchedulerSlot slots[SCHEDULER_SLOTS_MAX];
    const ServerModel *model = http_need_model(request, &error);
    if (!model) {
        http_reply_error(request, &error);
        return;
    }
    size_t count = scheduler_slots(model->scheduler, slots, SCHEDULER_SLOTS_MAX);
    json_writer_init(&writer, &request->reply, 0);
    json_write_array_begin(&writer);
    for (size_t i = 0; i < count; i++)
        write_slot(i, model->max_context, &slots[i], &writer);
    json_write_array_end(&writer);
    http_reply(request, 200, "application/json");
}
