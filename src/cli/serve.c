#include "cli.h"

#include "loaded_model.h"
#include "scheduler.h"
#include "server.h"

#include <signal.h>
#include <stdio.h>

enum { GRACE_SECONDS = 5 };

/* Sleeps until SIGINT or SIGTERM. The signals are blocked in every thread and let through only
 * inside sigsuspend, so that none can slip in between the look at the flag and the sleep. */
static void wait_for_stop(const sigset_t *unblocked)
{
    while (!stop_requested())
        sigsuspend(unblocked);
}

static bool serve(const Arguments *arguments, const LoadedModel *loaded, const sigset_t *unblocked,
                  Error *err)
{
    Scheduler *scheduler = NULL;
    Server *server = NULL;
    size_t context;
    if (!loaded_model_context(loaded, arguments, &context, err))
        return false;
    SchedulerOptions scheduling = {.slots = (size_t)arguments->parallel, .max_context = context};
    if (!scheduler_create(loaded->engine, loaded->tokenizer, &loaded->model->config, &scheduling,
                          &scheduler, err))
        return false;
    ServerOptions options = {
        .host = arguments->host,
        .port = (uint16_t)arguments->port,
        .model_id =
            slice_of(arguments->alias ? arguments->alias : loaded->model->config.model_type),
        .temperature = (float)arguments->temp,
        .max_context = context,
    };
    bool ok = server_start(&options, scheduler, loaded->tokenizer, loaded->chat, &server, err);
    if (ok) {
        fprintf(stderr, "mlx-serve: %s at http://%s:%u/v1 (Ctrl-C stops)\n", arguments->model,
                arguments->host, (unsigned)server_port(server));
        wait_for_stop(unblocked);
        fprintf(stderr, "mlx-serve: stopping\n");
        server_stop(server, GRACE_SECONDS);
    }
    scheduler_free(scheduler);
    return ok;
}

int command_serve(const Arguments *arguments)
{
    Error err = {0};
    LoadedModel loaded;
    sigset_t stops, unblocked;
    sigemptyset(&stops);
    sigaddset(&stops, SIGINT);
    sigaddset(&stops, SIGTERM);
    /* Before any thread starts, so that all inherit the mask. */
    sigprocmask(SIG_BLOCK, &stops, &unblocked);
    if (!loaded_model_open(arguments, LOAD_ENGINE | LOAD_TEXT, &loaded, &err))
        return report_error(&err);
    bool ok = serve(arguments, &loaded, &unblocked, &err);
    loaded_model_close(&loaded);
    return ok ? EXIT_DONE : report_error(&err);
}
