#include "constraint.h"

#include "body.h"

/* The cache, made when first wanted. */
static bool need_cache(Server *server, GrammarCache **out, Error *err)
{
    ConstraintStore *store = &server->constraints;
    pthread_mutex_lock(&store->lock);
    bool ok = store->cache ||
              ((store->vocabulary || grammar_vocabulary_from_tokenizer(server->model.tokenizer,
                                                                       &store->vocabulary, err)) &&
               grammar_cache_create(store->vocabulary, &store->cache, err));
    *out = store->cache;
    pthread_mutex_unlock(&store->lock);
    return ok;
}

static void tell_ignored(HttpRequest *request, const Grammar *grammar)
{
    size_t count;
    Buffer text;
    const Slice *names = grammar_ignored(grammar, &count);
    if (count == 0)
        return;
    buffer_init(&text, GRAMMAR_IGNORED_MAX * (HTTP_QUOTE_BYTES_MAX + 2));
    for (size_t i = 0; i < count; i++)
        buffer_append_format(&text, "%s%.*s", i > 0 ? ", " : "", QUOTE_ARG(names[i]));
    http_add_header(request, "x-ignored-fields", buffer_view(&text));
    buffer_reset(&text);
}

bool constraint_open(HttpRequest *request, const ConstraintFields *fields, Constraint **out,
                     HttpError *error)
{
    Server *server = request->server;
    Grammar *grammar = NULL;
    GrammarCache *cache;
    Error err = {0};
    *out = NULL;
    if (!fields->is_constrained)
        return true;
    bool is_ready = atomic_load(&server->is_ready);
    bool ok = is_ready ? need_cache(server, &cache, &err) &&
                             grammar_cache_get(cache, &fields->source, &grammar, &err)
                       : grammar_create(&fields->source, NULL, &grammar, &err);
    if (ok) {
        tell_ignored(request, grammar);
        ok = !is_ready || constraint_from_grammar(grammar, out, &err);
    }
    grammar_release(grammar);
    HttpFault fault =
        fields->source.kind == GRAMMAR_JSON_SCHEMA ? FAULT_JSON_SCHEMA : FAULT_GRAMMAR;
    return ok || http_error_from(error, &err, fault, fault, fields->param);
}

void constraint_store_reset(ConstraintStore *store)
{
    grammar_cache_free(store->cache);
    grammar_vocabulary_release(store->vocabulary);
    pthread_mutex_destroy(&store->lock);
}
