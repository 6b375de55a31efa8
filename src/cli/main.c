#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t stop_signal;

static void handle_stop(int signal_number)
{
    (void)signal_number;
    /* A second signal ends the process at once, should an orderly end hang. */
    if (stop_signal)
        _Exit(EXIT_FAILED);
    stop_signal = 1;
}

bool stop_requested(void)
{
    return stop_signal != 0;
}

static void install_signal_handlers(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    sigemptyset(&action.sa_mask);
    action.sa_handler = handle_stop; /* no SA_RESTART: a blocked read returns */
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    action.sa_handler = SIG_IGN; /* a gone reader is a write error, not a death */
    sigaction(SIGPIPE, &action, NULL);
}

static void *watch_for_stop(void *argument)
{
    const sigset_t *signals = argument;
    int received;
    if (sigwait(signals, &received) != 0 || received == SIGUSR1)
        return NULL;
    log_write("stopping: the model was still loading");
    _Exit(EXIT_DONE);
}

bool stop_watch_begin(sigset_t *signals, pthread_t *watch)
{
    return pthread_create(watch, NULL, watch_for_stop, signals) == 0;
}

void stop_watch_end(pthread_t watch)
{
    pthread_kill(watch, SIGUSR1);
    pthread_join(watch, NULL);
}

bool write_output(Buffer *text, Error *err)
{
    if (!buffer_check(text, "output", err))
        return false;
    if (text->len > 0 &&
        (fwrite(text->ptr, 1, text->len, stdout) != text->len || fflush(stdout) != 0))
        return error_set(err, ERROR_IO, "cannot write to standard output");
    buffer_clear(text);
    return true;
}

int report_error(const Error *err)
{
    fprintf(stderr, "mlx-serve: %s\n", err->message);
    return err->code == ERROR_USAGE ? EXIT_USAGE : EXIT_FAILED;
}

static int run_command(const Arguments *arguments)
{
    switch (arguments->command) {
    case COMMAND_RUN:
        return command_run(arguments);
    case COMMAND_SERVE:
        return command_serve(arguments);
    case COMMAND_INFO:
        return command_info(arguments);
    case COMMAND_BENCH:
        return command_bench(arguments);
    case COMMAND_IMPORT:
        return command_import(arguments);
    case COMMAND_TOKENIZE:
        return command_tokenize(arguments);
    case COMMAND_DETOKENIZE:
        return command_detokenize(arguments);
    case COMMAND_RENDER:
        return command_render(arguments);
    case COMMAND_LOGITS:
        return command_logits(arguments);
    case COMMAND_PERPLEXITY:
        return command_perplexity(arguments);
    case COMMAND_GRAMMAR:
        return command_grammar(arguments);
    case COMMAND_VERSION:
        printf("mlx-serve %s\n", MLX_SERVE_VERSION);
        return EXIT_DONE;
    case COMMAND_HELP:
    case COMMAND_COUNT:
        break;
    }
    arguments_print_help(arguments->help_for);
    return EXIT_DONE;
}

int main(int argc, char **argv)
{
    Arguments arguments;
    Error err = {0};
    if (!arguments_parse(argc, argv, &arguments, &err))
        return report_error(&err);
    install_signal_handlers();
    int code = run_command(&arguments);
    if (fflush(stdout) != 0 && code == EXIT_DONE) {
        fprintf(stderr, "mlx-serve: cannot write to standard output\n");
        return EXIT_FAILED;
    }
    return code;
}
