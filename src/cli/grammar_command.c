/* grammar: does a text fit a constraint? The automaton is the one that masks tokens while
 * generating. */
#include "cli.h"

#include "grammar.h"
#include "json_lines.h"

typedef struct GrammarCommand {
    Grammar *grammar; /* NULL: it did not compile, and every line is answered with why */
    Error fault;
} GrammarCommand;

static bool write_answer(JsonWriter *writer, bool accepts, const char *error)
{
    json_write_key(writer, "accepts");
    json_write_bool(writer, accepts);
    json_write_key(writer, "error");
    json_write_text(writer, error);
    return true;
}

static bool answer_text(void *context, const JsonValue *request, JsonWriter *writer, Arena *arena,
                        Error *err)
{
    (void)arena;
    const GrammarCommand *command = context;
    Slice text = SLICE_EMPTY;
    if (!json_get_present(request, "text"))
        return error_set(err, ERROR_INVALID, "text is missing");
    if (!json_read_string(request, "text", &text, err))
        return false;
    if (!command->grammar)
        return write_answer(writer, false, command->fault.message);
    GrammarRun *run;
    if (!grammar_run_create(command->grammar, &run, err))
        return false;
    size_t count;
    bool ok = grammar_run_count_bytes(run, text, &count, err), accepts = false;
    Error why = {0};
    if (ok && count < text.len) {
        error_set(&why, ERROR_INVALID, "byte %zu does not fit", count);
    } else if (ok) {
        ok = grammar_run_accept_bytes(run, text, err);
        accepts = ok && grammar_run_can_end(run);
        if (ok && !accepts)
            error_set(&why, ERROR_INVALID, "it cannot end here");
    }
    if (ok)
        write_answer(writer, accepts, why.message);
    grammar_run_free(run);
    return ok;
}

static bool compile(const Arguments *arguments, Grammar **out, Error *err)
{
    *out = NULL;
    GrammarSource source = {.kind = GRAMMAR_REGEX};
    if (arguments->regex) {
        source.text = slice_of(arguments->regex);
        return grammar_create(&source, NULL, out, err);
    }
    const char *path = arguments->schema ? arguments->schema : arguments->gbnf;
    source.kind = arguments->schema ? GRAMMAR_JSON_SCHEMA : GRAMMAR_GBNF;
    Buffer content;
    buffer_init(&content, GRAMMAR_SOURCE_BYTES_MAX);
    bool ok = file_read(path, GRAMMAR_SOURCE_BYTES_MAX, &content, err);
    if (ok) {
        source.text = buffer_view(&content);
        ok = grammar_create(&source, NULL, out, err);
    }
    buffer_reset(&content);
    return ok;
}

int command_grammar(const Arguments *arguments)
{
    GrammarCommand command = {0};
    Error err = {0};
    bool compiled = compile(arguments, &command.grammar, &command.fault);
    bool ok = json_lines_answer(answer_text, &command, &err);
    grammar_release(command.grammar);
    if (!compiled)
        return report_error(&command.fault);
    return ok ? EXIT_DONE : report_error(&err);
}
