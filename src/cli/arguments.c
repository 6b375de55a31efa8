/* One table says everything about an option: its name, which commands take it, how its value is
 * read and where it goes, and its line of help. Without a command word, --serve means
 * serve, and all else run. Both --name VALUE and --name=VALUE are accepted; "--" ends the options.
 */
#include "cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum OptionKind {
    OPTION_FLAG,
    OPTION_INT,
    OPTION_BYTES,
    OPTION_LIST, /* of whole numbers, with commas between */
    OPTION_DOUBLE,
    OPTION_TEXT,
    OPTION_REPEATED, /* once more each time it is given */
    OPTION_CHOICE
} OptionKind;

#define AT(field) offsetof(Arguments, field)
#define FOR(command) (1U << COMMAND_##command)
#define LOADS (FOR(RUN) | FOR(SERVE) | FOR(BENCH) | FOR(LOGITS) | FOR(PERPLEXITY))
#define READS_MODEL (LOADS | FOR(INFO) | FOR(TOKENIZE) | FOR(DETOKENIZE) | FOR(RENDER))

typedef struct Option {
    const char *name;
    OptionKind kind;
    unsigned commands;
    size_t offset;
    int64_t min, max;  /* of a number */
    const char *value; /* placeholder in the help, or the choices "a|b|c" in enum order */
    const char *help;
} Option;

static const Option options[] = {
    {"model", OPTION_TEXT, READS_MODEL, AT(model), 0, 0, "DIR", "model directory"},
    {"prompt", OPTION_TEXT, FOR(RUN), AT(prompt), 0, 0, "TEXT", "what to answer (default: Hello)"},
    {"max-tokens", OPTION_INT, FOR(RUN), AT(max_tokens), 1, INT32_MAX, "N",
     "longest reply in tokens (default: 100)"},
    {"temp", OPTION_DOUBLE, FOR(RUN) | FOR(SERVE), AT(temp), 0, 2, "F",
     "sampling temperature, 0 to 2 (default: 0, greedy)"},
    {"seed", OPTION_INT, FOR(RUN), AT(seed), INT64_MIN, INT64_MAX, "N",
     "makes sampling repeatable"},
    {"raw", OPTION_FLAG, FOR(RUN), AT(raw), 0, 0, NULL,
     "continue the prompt, without a chat template"},
    {"port", OPTION_INT, FOR(SERVE), AT(port), 0, 65535, "N", "port to serve on (default: 8080)"},
    {"host", OPTION_TEXT, FOR(SERVE), AT(host), 0, 0, "ADDRESS",
     "address to bind; others than loopback need a key (default: 127.0.0.1)"},
    {"api-key", OPTION_REPEATED, FOR(SERVE), AT(api_keys), 0, 0, "KEY",
     "requests need this key; may be given several times"},
    {"insecure", OPTION_FLAG, FOR(SERVE), AT(insecure), 0, 0, NULL,
     "bind any address without a key"},
    {"cors-origin", OPTION_REPEATED, FOR(SERVE), AT(cors_origins), 0, 0, "ORIGIN",
     "pages from there may use the server, too (* for all)"},
    {"allowed-host", OPTION_REPEATED, FOR(SERVE), AT(allowed_hosts), 0, 0, "NAME",
     "a name that clients may call the server by, beside the local ones"},
    {"strict-model", OPTION_FLAG, FOR(SERVE), AT(strict_model), 0, 0, NULL,
     "refuse requests for another model"},
    {"strict-fields", OPTION_FLAG, FOR(SERVE), AT(strict_fields), 0, 0, NULL,
     "refuse requests with unknown fields"},
    {"alias", OPTION_TEXT, FOR(SERVE), AT(alias), 0, 0, "NAME",
     "model id to serve under (default: the model's type)"},
    {"parallel", OPTION_INT, FOR(SERVE) | FOR(INFO), AT(parallel), 1, 256, "N",
     "requests answered at once (default: 4)"},
    {"kv-memory", OPTION_BYTES, FOR(SERVE), AT(kv_memory), 1 << 20, INT64_MAX, "SIZE",
     "memory for keys and values, as in 2G (default: --parallel contexts, at most half of what is "
     "free, or 256M)"},
    {"no-prefix-cache", OPTION_FLAG, FOR(SERVE), AT(no_prefix_cache), 0, 0, NULL,
     "compute every prompt from its start"},
    {"ctx", OPTION_INT, FOR(RUN) | FOR(SERVE) | FOR(INFO) | FOR(PERPLEXITY), AT(ctx), 1, INT32_MAX,
     "N", "context in tokens (default: the model's, at most 8192; perplexity: 1024)"},
    {"backend", OPTION_CHOICE, LOADS | FOR(INFO), AT(backend), 0, 0, "auto|cpu|mlx",
     "engine (default: auto)"},
    {"precision", OPTION_CHOICE, LOADS, AT(precision), 0, 0, "int12|int16|int8|f32",
     "activations: int8 is fastest, f32 the reference (default: int12)"},
    {"kv-bits", OPTION_CHOICE, LOADS | FOR(INFO), AT(kv_bits), 0, 0, "16|8",
     "of keys and values in the cache: 8 halves their memory (default: 16, with f32 32)"},
    {"threads", OPTION_INT, LOADS, AT(threads), 1, 1024, "N",
     "worker threads (default: the cores that this process may use)"},
    {"file", OPTION_TEXT, FOR(PERPLEXITY), AT(input), 0, 0, "FILE", "text to predict"},
    {"out", OPTION_TEXT, FOR(IMPORT), AT(out), 0, 0, "DIR", "directory to write"},
    {"template", OPTION_TEXT, FOR(RENDER), AT(template_file), 0, 0, "FILE",
     "chat template to render"},
    {"schema", OPTION_TEXT, FOR(GRAMMAR), AT(schema), 0, 0, "FILE", "a JSON Schema"},
    {"regex", OPTION_TEXT, FOR(GRAMMAR), AT(regex), 0, 0, "R", "a regular expression"},
    {"gbnf", OPTION_TEXT, FOR(GRAMMAR), AT(gbnf), 0, 0, "FILE", "a GBNF grammar"},
    {"tokens", OPTION_TEXT, FOR(LOGITS), AT(tokens), 0, 0, "1,2,3", "prompt as token ids"},
    {"positions", OPTION_CHOICE, FOR(LOGITS), AT(positions), 0, 0, "last|all",
     "whose logits to print (default: last)"},
    {"greedy", OPTION_INT, FOR(LOGITS), AT(greedy), 0, 1 << 20, "N",
     "also N greedy tokens (default: 0)"},
    {"shape", OPTION_TEXT, FOR(BENCH), AT(shape), 0, 0, "NAME",
     "instead of MODEL: random weights of a known model's shape, made in memory"},
    {"bits", OPTION_INT, FOR(BENCH), AT(bits), 2, 16, "N",
     "of a shape's weights: 2 to 6, 8, or 16 for bfloat16 (default: 4)"},
    {"group-size", OPTION_INT, FOR(BENCH), AT(group_size), 32, 128, "N",
     "of a shape's weights: 32, 64 or 128 (default: 64)"},
    {"prefill", OPTION_LIST, FOR(BENCH), AT(prefill), 1, 1 << 20, "N,...",
     "prompt tokens (default: 512)"},
    {"decode", OPTION_INT, FOR(BENCH), AT(decode), 1, 1 << 20, "N", "decoded tokens (default: 64)"},
    {"depth", OPTION_LIST, FOR(BENCH), AT(depth), 0, 1 << 20, "N,...",
     "tokens of context at which decoding starts (default: 0)"},
    {"batch", OPTION_LIST, FOR(BENCH), AT(batch), 1, 256, "N,...",
     "sequences decoded at once (default: 1)"},
    {"repeat", OPTION_INT, FOR(BENCH), AT(repeat), 1, 1000, "N",
     "measurements, of which the median is printed (default: 3)"},
    {"json", OPTION_FLAG,
     FOR(TOKENIZE) | FOR(DETOKENIZE) | FOR(RENDER) | FOR(LOGITS) | FOR(BENCH) | FOR(INFO) |
         FOR(PERPLEXITY) | FOR(GRAMMAR),
     AT(json), 0, 0, NULL, "one JSON object a line"},
    {"csv", OPTION_FLAG, FOR(BENCH), AT(csv), 0, 0, NULL, "comma-separated values"},
    {"verbose", OPTION_FLAG, FOR(IMPORT), AT(verbose), 0, 0, NULL,
     "a line for each tensor on stderr"},
};

typedef struct CommandWord {
    const char *name;
    const char *usage;
    const char *help;
} CommandWord;

static const CommandWord commands[COMMAND_COUNT] = {
    [COMMAND_HELP] = {"help", "[COMMAND]", "this text, or a command's options"},
    [COMMAND_VERSION] = {"version", "", "the version"},
    [COMMAND_RUN] = {"run", "MODEL [PROMPT]", "answer a prompt on the terminal"},
    [COMMAND_SERVE] = {"serve", "MODEL", "serve the OpenAI-compatible API"},
    [COMMAND_INFO] = {"info", "MODEL", "what a model directory holds and needs"},
    [COMMAND_BENCH] = {"bench", "MODEL | --shape NAME",
                       "measure speed against the machine's limits"},
    [COMMAND_IMPORT] = {"import", "FILE.gguf --out DIR",
                        "write a GGUF file as an MLX model directory"},
    [COMMAND_TOKENIZE] = {"tokenize", "MODEL --json", "JSON lines of text to token ids"},
    [COMMAND_DETOKENIZE] = {"detokenize", "MODEL --json", "JSON lines of token ids to text"},
    [COMMAND_RENDER] = {"render", "--template FILE|--model DIR --json",
                        "JSON lines of chats to prompts"},
    [COMMAND_LOGITS] = {"logits", "MODEL --tokens 1,2,3 --json", "a prompt's logits as JSON"},
    [COMMAND_PERPLEXITY] = {"perplexity", "MODEL --file FILE",
                            "how well the model predicts a text"},
    [COMMAND_GRAMMAR] = {"grammar", "--schema FILE|--regex R|--gbnf FILE",
                         "JSON lines of text: do they fit the constraint"},
};

void arguments_print_help(Command about)
{
    if (about == COMMAND_HELP) {
        printf("usage: mlx-serve --model DIR [--prompt TEXT] [--max-tokens N] [--temp F]\n"
               "       mlx-serve --model DIR --serve [--port N]\n"
               "       mlx-serve COMMAND ...\n\n"
               "Runs MLX-format language models and serves them over HTTP.\n\ncommands:\n");
        for (int i = 0; i < COMMAND_COUNT; i++)
            printf("  %-11s %-36s %s\n", commands[i].name, commands[i].usage, commands[i].help);
        printf("\n`mlx-serve help COMMAND` lists a command's options.\n");
        return;
    }
    printf("usage: mlx-serve %s %s\n\n%s\n\n", commands[about].name, commands[about].usage,
           commands[about].help);
    for (size_t i = 0; i < ARRAY_COUNT(options); i++) {
        if (!(options[i].commands & 1U << about))
            continue;
        char left[64];
        snprintf(left, sizeof(left), "--%s %s", options[i].name,
                 options[i].value ? options[i].value : "");
        printf("  %-26s %s\n", left, options[i].help);
    }
}

static bool parse_int(const Option *option, const char *text, int64_t *out, Error *err)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (*text == '\0' || *end != '\0' || strchr(" \t\n\v\f\r", *text))
        return error_set(err, ERROR_USAGE, "--%s: \"%.100s\" is not a whole number", option->name,
                         text);
    if (errno == ERANGE || value < option->min || value > option->max)
        return error_set(err, ERROR_USAGE, "--%s: %.100s is not between %lld and %lld",
                         option->name, text, (long long)option->min, (long long)option->max);
    *out = value;
    return true;
}

static bool parse_list(const Option *option, const char *text, IntList *out, Error *err)
{
    out->count = 0;
    for (const char *at = text; at;) {
        const char *comma = strchr(at, ',');
        size_t len = comma ? (size_t)(comma - at) : strlen(at);
        char item[32];
        if (out->count == LIST_ITEMS_MAX)
            return error_set(err, ERROR_USAGE, "--%s: more than %d numbers", option->name,
                             (int)LIST_ITEMS_MAX);
        snprintf(item, sizeof(item), "%.*s", len < sizeof(item) ? (int)len : (int)sizeof(item), at);
        if (!parse_int(option, item, &out->items[out->count++], err))
            return false;
        at = comma ? comma + 1 : NULL;
    }
    return true;
}

static char upper_case(char c)
{
    return c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c;
}

/* A whole number with K, M, G or T for powers of 1024; a B may follow, and an i before it. */
static bool parse_bytes(const Option *option, const char *text, int64_t *out, Error *err)
{
    static const char units[] = "KMGT";
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    bool has_digits = *text >= '0' && *text <= '9' && errno == 0;
    const char *unit = *end ? strchr(units, upper_case(*end)) : NULL;
    int shift = unit ? (int)(unit - units + 1) * 10 : 0;
    end += unit != NULL;
    end += unit && *end == 'i' && upper_case(end[1]) == 'B';
    end += upper_case(*end) == 'B';
    if (!has_digits || *end != '\0')
        return error_set(err, ERROR_USAGE, "--%s: \"%.100s\" is not a size such as 512M or 2G",
                         option->name, text);
    if (value > option->max >> shift || value << shift < option->min)
        return error_set(err, ERROR_USAGE, "--%s: %.100s is out of range, expected at least %lld",
                         option->name, text, (long long)option->min);
    *out = value << shift;
    return true;
}

static bool parse_double(const Option *option, const char *text, double *out, Error *err)
{
    char *end;
    double value = strtod(text, &end);
    if (*text == '\0' || *end != '\0' || strchr(" \t\n\v\f\r", *text))
        return error_set(err, ERROR_USAGE, "--%s: \"%.100s\" is not a number", option->name, text);
    if (!(value >= (double)option->min && value <= (double)option->max))
        return error_set(err, ERROR_USAGE, "--%s: %.100s is not between %lld and %lld",
                         option->name, text, (long long)option->min, (long long)option->max);
    *out = value;
    return true;
}

/* Index of text among the choices "a|b|c", or -1. */
static int find_choice(const char *choices, const char *text)
{
    size_t len = strlen(text);
    int index = 0;
    for (const char *at = choices; at; index++) {
        const char *bar = strchr(at, '|');
        size_t choice_len = bar ? (size_t)(bar - at) : strlen(at);
        if (len == choice_len && memcmp(at, text, len) == 0)
            return index;
        at = bar ? bar + 1 : NULL;
    }
    return -1;
}

static bool store_choice(const Option *option, const char *text, Arguments *out, Error *err)
{
    int choice = find_choice(option->value, text);
    if (choice < 0)
        return error_set(err, ERROR_USAGE, "--%s: \"%.100s\" is not one of %s", option->name, text,
                         option->value);
    if (option->offset == AT(backend))
        out->backend = (EngineBackend)choice;
    else if (option->offset == AT(kv_bits))
        out->kv_bits = choice == 0 ? 16 : 8;
    else if (option->offset == AT(precision))
        out->precision = (EnginePrecision)choice;
    else
        out->positions = text;
    return true;
}

static bool store_item(const Option *option, const char *text, RepeatedArgument *list, Error *err)
{
    if (text[0] == '\0')
        return error_set(err, ERROR_USAGE, "--%s: the value is empty", option->name);
    if (list->count == ARGUMENT_REPEATS_MAX)
        return error_set(err, ERROR_USAGE, "--%s: at most %d can be given", option->name,
                         ARGUMENT_REPEATS_MAX);
    list->items[list->count++] = text;
    return true;
}

static bool store_value(const Option *option, const char *text, Arguments *out, Error *err)
{
    char *field = (char *)out + option->offset;
    switch (option->kind) {
    case OPTION_FLAG:
        *(bool *)field = true;
        return true;
    case OPTION_INT:
        if (option->offset == AT(seed))
            out->has_seed = true;
        return parse_int(option, text, (int64_t *)(void *)field, err);
    case OPTION_LIST:
        return parse_list(option, text, (IntList *)(void *)field, err);
    case OPTION_BYTES:
        return parse_bytes(option, text, (int64_t *)(void *)field, err);
    case OPTION_DOUBLE:
        return parse_double(option, text, (double *)(void *)field, err);
    case OPTION_TEXT:
        *(const char **)(void *)field = text;
        return true;
    case OPTION_REPEATED:
        return store_item(option, text, (RepeatedArgument *)(void *)field, err);
    case OPTION_CHOICE:
        return store_choice(option, text, out, err);
    }
    return false;
}

static const Option *find_option(const char *name, size_t len)
{
    for (size_t i = 0; i < ARRAY_COUNT(options); i++) {
        if (strlen(options[i].name) == len && memcmp(options[i].name, name, len) == 0)
            return &options[i];
    }
    return NULL;
}

/* Reads the option at argv[*at] and moves *at past its value. */
static bool parse_option(int argc, char **argv, int *at, Arguments *out, Error *err)
{
    const char *name = argv[*at] + 2;
    const char *equals = strchr(name, '=');
    size_t len = equals ? (size_t)(equals - name) : strlen(name);
    const Option *option = find_option(name, len);
    if (!option)
        return error_set(err, ERROR_USAGE, "unknown option %.100s (see mlx-serve --help)",
                         argv[*at]);
    if (!(option->commands & 1U << out->command))
        return error_set(err, ERROR_USAGE, "--%s is not an option of \"%s\"", option->name,
                         commands[out->command].name);
    const char *value = equals ? equals + 1 : NULL;
    if (option->kind == OPTION_FLAG) {
        if (value)
            return error_set(err, ERROR_USAGE, "--%s takes no value", option->name);
    } else if (!value) {
        if (*at + 1 >= argc)
            return error_set(err, ERROR_USAGE, "--%s needs a value", option->name);
        value = argv[++*at];
    }
    return store_value(option, value, out, err);
}

static bool store_positional(const char *text, Arguments *out, Error *err)
{
    bool takes_model = (READS_MODEL & 1U << out->command) != 0;
    if (out->command == COMMAND_IMPORT && !out->input)
        out->input = text;
    else if (takes_model && !out->model)
        out->model = text;
    else if (out->command == COMMAND_RUN && !out->prompt)
        out->prompt = text;
    else
        return error_set(err, ERROR_USAGE, "unexpected argument \"%.100s\"", text);
    return true;
}

static int find_command(const char *word)
{
    for (int i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(commands[i].name, word) == 0)
            return i;
    }
    return -1;
}

static bool has_word(int argc, char **argv, const char *word)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], word) == 0)
            return true;
    }
    return false;
}

/* Finds out which command is meant and where its arguments start. */
static bool parse_command(int argc, char **argv, Arguments *out, int *first, Error *err)
{
    *first = 1;
    int word = argc > 1 ? find_command(argv[1]) : -1;
    if (word >= 0) {
        out->command = (Command)word;
        *first = 2;
    } else if (argc > 1 && argv[1][0] != '-') {
        return error_set(err, ERROR_USAGE, "unknown command \"%.100s\" (see mlx-serve --help)",
                         argv[1]);
    } else {
        out->command = has_word(argc, argv, "--serve") ? COMMAND_SERVE : COMMAND_RUN;
    }
    if (has_word(argc, argv, "--help") || has_word(argc, argv, "-h")) {
        out->help_for = word >= 0 ? out->command : COMMAND_HELP;
        out->command = COMMAND_HELP;
    } else if (out->command == COMMAND_HELP && argc > 2) {
        int about = find_command(argv[2]);
        if (about < 0)
            return error_set(err, ERROR_USAGE, "unknown command \"%.100s\"", argv[2]);
        out->help_for = (Command)about;
    } else if (has_word(argc, argv, "--version")) {
        out->command = COMMAND_VERSION;
    }
    return true;
}

static bool is_loopback(const char *host)
{
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0 ||
           strcmp(host, "localhost") == 0;
}

/* What a command cannot do without, and what it must not be asked. */
static bool check_required(const Arguments *arguments, Error *err)
{
    const char *name = commands[arguments->command].name;
    bool template_alone = arguments->command == COMMAND_RENDER && arguments->template_file;
    if (arguments->command == COMMAND_BENCH && (!arguments->model == !arguments->shape))
        return error_set(err, ERROR_USAGE,
                         "bench needs a model directory or --shape NAME, and not both");
    if ((READS_MODEL & 1U << arguments->command) && !arguments->model && !arguments->shape &&
        !template_alone)
        return error_set(err, ERROR_USAGE, "%s needs a model directory: --model DIR", name);
    if (arguments->command == COMMAND_IMPORT && (!arguments->input || !arguments->out))
        return error_set(err, ERROR_USAGE, "usage: mlx-serve import FILE.gguf --out DIR");
    if (arguments->command == COMMAND_PERPLEXITY && !arguments->input)
        return error_set(err, ERROR_USAGE, "perplexity needs --file FILE");
    if (arguments->command == COMMAND_GRAMMAR &&
        !arguments->schema + !arguments->regex + !arguments->gbnf != 2)
        return error_set(err, ERROR_USAGE, "grammar needs --schema FILE, --regex R or --gbnf FILE");
    if (arguments->command == COMMAND_LOGITS && !arguments->tokens)
        return error_set(err, ERROR_USAGE, "logits needs --tokens 1,2,3");
    if (arguments->command == COMMAND_SERVE && !is_loopback(arguments->host) &&
        arguments->api_keys.count == 0 && !arguments->insecure)
        return error_set(err, ERROR_USAGE,
                         "--host %.100s: anybody could use the server; give --api-key KEY, or "
                         "--insecure if that is wanted",
                         arguments->host);
    return true;
}

bool arguments_parse(int argc, char **argv, Arguments *out, Error *err)
{
    *out = (Arguments){
        .host = "127.0.0.1",
        .positions = "last",
        .max_tokens = 100,
        .port = 8080,
        .parallel = 4,
        .prefill = {{512}, 1},
        .decode = 64,
        .depth = {{0}, 1},
        .batch = {{1}, 1},
        .repeat = 3,
        .bits = 4,
        .group_size = 64,
    };
    if (argc < 2)
        return error_set(err, ERROR_USAGE, "no model given (see mlx-serve --help)");
    int at;
    if (!parse_command(argc, argv, out, &at, err))
        return false;
    if (out->command == COMMAND_HELP || out->command == COMMAND_VERSION)
        return true;
    bool options_ended = false;
    bool is_wordless = at == 1;
    out->prompt_from_stdin = !is_wordless;
    for (; at < argc; at++) {
        bool is_option = !options_ended && strncmp(argv[at], "--", 2) == 0;
        if (is_option && argv[at][2] == '\0')
            options_ended = true;
        else if (is_option && is_wordless && strcmp(argv[at], "--serve") == 0)
            continue;
        else if (is_option ? !parse_option(argc, argv, &at, out, err)
                           : !store_positional(argv[at], out, err))
            return false;
    }
    return check_required(out, err);
}
