/* cli: arguments, subcommands and terminal output. Private headers of one executable.
 *
 * arguments.c turns argv into Arguments by one table; each command is a function of Arguments in a
 * file of its own and returns an exit code. Replies and machine-readable results go to stdout,
 * everything else to stderr. Only this room decides how the process ends. */
#ifndef CLI_H
#define CLI_H

#include "base.h"
#include "engine.h"

#include <pthread.h>
#include <signal.h>

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

typedef enum Command {
    COMMAND_HELP,
    COMMAND_VERSION,
    COMMAND_RUN,
    COMMAND_SERVE,
    COMMAND_INFO,
    COMMAND_BENCH,
    COMMAND_IMPORT,
    COMMAND_TOKENIZE,
    COMMAND_DETOKENIZE,
    COMMAND_RENDER,
    COMMAND_LOGITS,
    COMMAND_PERPLEXITY,
    COMMAND_GRAMMAR,
    COMMAND_COUNT
} Command;

/* "1,2,3" */
enum { LIST_ITEMS_MAX = 32 };
typedef struct IntList {
    int64_t items[LIST_ITEMS_MAX];
    size_t count; /* >= 1 */
} IntList;

/* Of an option that may be given several times. */
enum { ARGUMENT_REPEATS_MAX = 32 };
typedef struct RepeatedArgument {
    const char *items[ARGUMENT_REPEATS_MAX];
    size_t count;
} RepeatedArgument;

typedef struct Arguments {
    Command command;
    Command help_for;   /* of COMMAND_HELP: the command asked about, or COMMAND_HELP */
    const char *model;  /* directory (or tokenizer.json for tokenize and detokenize) */
    const char *prompt; /* NULL: not given */
    const char *input;  /* import: the GGUF file; perplexity: the text */
    const char *out;    /* import: the directory */
    const char *shape;  /* bench: instead of a model */
    const char *template_file;
    const char *schema, *regex, *gbnf; /* grammar: exactly one of them */
    const char *tokens;                /* logits: "1,2,3" */
    const char *positions;
    const char *host;
    const char *alias;
    RepeatedArgument api_keys, cors_origins, allowed_hosts; /* serve */
    bool strict_model, strict_fields, insecure;             /* serve */
    int64_t max_tokens, port, threads, ctx, parallel, seed, greedy;
    int64_t decode, repeat, bits, group_size;
    int64_t kv_bits;   /* 0: the engine's choice */
    int64_t kv_memory; /* bytes; 0: chosen from what the machine has */
    IntList prefill, depth, batch;
    double temp;
    bool has_seed, raw, json, csv, verbose, no_prefix_cache;
    bool prompt_from_stdin; /* the `run` command without a prompt reads one from a pipe */
    EngineBackend backend;
    EnginePrecision precision;
} Arguments;

/* Fills out with defaults and what argv says. On error: ERROR_USAGE, the message names the
 * argument. */
bool arguments_parse(int argc, char **argv, Arguments *out, Error *err) WARN_UNUSED;
void arguments_print_help(Command about);

/* Set by SIGINT and SIGTERM; commands look at it between steps. */
bool stop_requested(void);
/* From begin to end a thread ends the process (EXIT_DONE) when a stop signal comes: for loading a
 * model, which is a long way from any look at stop_requested, holds nothing but memory and files
 * open for reading, and has promised nothing to anyone. signals: SIGINT, SIGTERM and SIGUSR1,
 * blocked in every thread; outlives the watch. What comes after the end stays pending. False: there
 * is no thread for it, so signals wait. */
bool stop_watch_begin(sigset_t *signals, pthread_t *watch);
void stop_watch_end(pthread_t watch);

/* Hands text to standard output at once, and clears it. A failed append is an error here, too. */
bool write_output(Buffer *text, Error *err) WARN_UNUSED;
/* Prints "mlx-serve: message" and returns the exit code that fits it. */
int report_error(const Error *err);

int command_run(const Arguments *arguments);
int command_serve(const Arguments *arguments);
int command_info(const Arguments *arguments);
int command_bench(const Arguments *arguments);
int command_import(const Arguments *arguments);
int command_tokenize(const Arguments *arguments);
int command_detokenize(const Arguments *arguments);
int command_render(const Arguments *arguments);
int command_logits(const Arguments *arguments);
int command_perplexity(const Arguments *arguments);
int command_grammar(const Arguments *arguments);

#endif
