#include "cli.h"

#include "loaded_model.h"
#include "scheduler.h"
#include "server.h"

#include <string.h>
#include <unistd.h>

enum { GRACE_SECONDS = 5 };

/* Sleeps until SIGINT or SIGTERM. The signals are blocked in every thread and let through only
 * inside sigsuspend, so that none can slip in between the look at the flag and the sleep. */
static void wait_for_stop(const sigset_t *unblocked)
{
    while (!stop_requested())
        sigsuspend(unblocked);
}

/* Opens the model; a stop signal ends the process meanwhile. */
static bool load(const Arguments *arguments, sigset_t *stops, LoadedModel *out, Error *err)
{
    pthread_t watch;
    bool watched = stop_watch_begin(stops, &watch);
    bool ok = loaded_model_open(arguments, LOAD_ENGINE | LOAD_TEXT, out, err);
    if (watched)
        stop_watch_end(watch);
    return ok;
}

/* "models/qwen3-4b/" to "qwen3-4b". */
static Slice base_name(const char *path)
{
    Slice name = slice_of(path);
    while (name.len > 1 && name.ptr[name.len - 1] == '/')
        name.len--;
    for (size_t i = name.len; i > 0; i--) {
        if (name.ptr[i - 1] == '/' && i < name.len)
            return (Slice){name.ptr + i, name.len - i};
    }
    return name;
}

static bool start_server(const Arguments *arguments, const char *model_type, Server **out,
                         Error *err)
{
    ServerOptions options = {
        .host = arguments->host,
        .port = (uint16_t)arguments->port,
        .model_id = slice_of(arguments->alias ? arguments->alias : model_type),
        .model_name = base_name(arguments->model),
        .temperature = (float)arguments->temp,
        .strict_model = arguments->strict_model,
        .strict_fields = arguments->strict_fields,
        .api_keys = arguments->api_keys.items,
        .n_api_keys = arguments->api_keys.count,
        .cors_origins = arguments->cors_origins.items,
        .n_cors_origins = arguments->cors_origins.count,
        .allowed_hosts = arguments->allowed_hosts.items,
        .n_allowed_hosts = arguments->allowed_hosts.count,
        .log_file = STDERR_FILENO,
    };
    return server_start(&options, out, err);
}

/* Serves until a signal comes. */
static bool serve(const Arguments *arguments, const LoadedModel *loaded, Server *server,
                  const sigset_t *unblocked, Error *err)
{
    Scheduler *scheduler = NULL;
    size_t context;
    if (!loaded_model_context(loaded, arguments, &context, err))
        return false;
    SchedulerOptions scheduling = {.slots = (size_t)arguments->parallel,
                                   .max_context = context,
                                   .no_prefix_cache = arguments->no_prefix_cache};
    if (!scheduler_create(loaded->engine, loaded->tokenizer, &loaded->model->config, &scheduling,
                          &scheduler, err))
        return false;
    ServerModel model = {
        .scheduler = scheduler,
        .tokenizer = loaded->tokenizer,
        .chat = loaded->chat,
        .max_context = scheduler_max_context(scheduler),
        .vocab_size = loaded->model->config.vocab_size,
    };
    server_set_model(server, &model);
    /* In a URL, colons of an IPv6 address stand in brackets. */
    bool is_v6 = strchr(arguments->host, ':') != NULL;
    log_write("%s at http://%s%s%s:%u/v1 (Ctrl-C stops)", arguments->model, is_v6 ? "[" : "",
              arguments->host, is_v6 ? "]" : "", (unsigned)server_port(server));
    wait_for_stop(unblocked);
    log_write("stopping");
    server_stop(server, GRACE_SECONDS);
    scheduler_free(scheduler);
    return true;
}

int command_serve(const Arguments *arguments)
{
    Error err = {0};
    LoadedModel loaded = {0};
    Server *server;
    char model_type[MODEL_TYPE_BYTES_MAX];
    sigset_t stops, unblocked;
    sigemptyset(&stops);
    sigaddset(&stops, SIGINT);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGUSR1);
    /* Before any thread starts, so that all inherit the mask. */
    sigprocmask(SIG_BLOCK, &stops, &unblocked);
    read_model_type(arguments->model, model_type);
    /* The port first: it is taken or not, and whoever asks meanwhile learns that the model loads.
     */
    if (!start_server(arguments, model_type, &server, &err))
        return report_error(&err);
    bool ok = load(arguments, &stops, &loaded, &err);
    if (!ok || !serve(arguments, &loaded, server, &unblocked, &err)) {
        server_stop(server, 0);
        ok = false;
    }
    loaded_model_close(&loaded);
    return ok ? EXIT_DONE : report_error(&err);
}
