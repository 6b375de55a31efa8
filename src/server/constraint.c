#include "constraint.h"

#include "body.h"

#include <stdio.h>

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
    const Slice *names = grammar_ignored(grammar, &count);
    body_tell_ignored(request, names, count);
}

static bool check_source(const GrammarSource *source, const char *param, HttpError *error)
{
    Grammar *grammar;
    Error err = {0};
    bool ok = grammar_create(source, NULL, &grammar, &err);
    grammar_release(grammar);
    HttpFault fault = source->kind == GRAMMAR_JSON_SCHEMA ? FAULT_JSON_SCHEMA : FAULT_GRAMMAR;
    return ok || http_error_from(error, &err, fault, fault, param);
}

static bool check_tool(const ToolFields *tools, size_t index, HttpError *error)
{
    char param[HTTP_PARAM_BYTES_MAX];
    snprintf(param, sizeof(param), "tools[%zu].function.parameters", tools->indices[index]);
    return check_source(&tools->tools[index].arguments, param, error);
}

bool constraint_check(const ConstraintPlan *plan, HttpError *error)
{
    const ToolFields *tools = plan->tools;
    if (plan->content->is_constrained &&
        !check_source(&plan->content->source, plan->content->param, error))
        return false;
    for (size_t i = 0; tools && i < tools->n_tools; i++) {
        if (!check_tool(tools, i, error))
            return false;
    }
    return true;
}

static bool has_calls(const ConstraintPlan *plan)
{
    return plan->tools && plan->tools->n_tools > 0;
}

void constraint_plan_markup(const ConstraintPlan *plan, const ServerModel *model, Slice prompt,
                            Markup *out)
{
    *out = *chat_template_markup(model->chat);
    ChatThinking thinking = chat_prompt_thinking(out, prompt);
    out->begins_in_think = thinking == CHAT_THINKING_OPEN;
    bool is_bound = plan->content->is_constrained;
    out->only_at_start = is_bound || (has_calls(plan) && plan->tools->needs_call);
    if (out->only_at_start && thinking == CHAT_THINKING_CLOSED)
        out->think_open = out->think_close = SLICE_EMPTY;
    if (!has_calls(plan))
        out->calls.stray = SLICE_EMPTY;
    for (size_t i = 0; i < MARKUP_TRIGGERS_MAX; i++) {
        /* What only looks like content at its start cannot stand beside bound content. */
        if (!has_calls(plan) ||
            (is_bound && !plan->tools->needs_call && out->calls.triggers[i].at_start))
            out->calls.triggers[i] = (MarkupTrigger){0};
    }
}

/* The tool that the message of a reply's grammar names, or n_tools. */
static size_t find_blamed(const ToolFields *tools, const Error *err)
{
    Slice message = slice_of(err->message);
    size_t i = 0;
    for (; i < tools->n_tools; i++) {
        char start[sizeof(err->message)];
        snprintf(start, sizeof(start), "tool %.*s:", SLICE_ARG(tools->tools[i].name));
        if (slice_starts_with(message, slice_of(start)))
            break;
    }
    return i;
}

/* Names the field whose schema is at fault; else all of it together is. */
static bool tell_fault(const ConstraintPlan *plan, Error *err, HttpError *error)
{
    const ToolFields *tools = plan->tools;
    size_t blamed = has_calls(plan) ? find_blamed(tools, err) : 0;
    if (has_calls(plan) && blamed < tools->n_tools) {
        if (!check_tool(tools, blamed, error))
            return false;
    } else if (plan->content->is_constrained &&
               !check_source(&plan->content->source, plan->content->param, error)) {
        return false;
    }
    bool is_schema = has_calls(plan) || plan->content->source.kind == GRAMMAR_JSON_SCHEMA;
    HttpFault fault = is_schema ? FAULT_JSON_SCHEMA : FAULT_GRAMMAR;
    return http_error_from(error, err, fault, fault,
                           has_calls(plan) ? "tools" : plan->content->param);
}

bool constraint_open(HttpRequest *request, const ConstraintPlan *plan, Constraint **out,
                     HttpError *error)
{
    Server *server = request->server;
    const ConstraintFields *content = plan->content;
    Grammar *grammar = NULL;
    GrammarCache *cache;
    Error err = {0};
    *out = NULL;
    if (!content->is_constrained && !has_calls(plan))
        return true;
    if (!atomic_load(&server->is_ready))
        return constraint_check(plan, error);
    GrammarReply reply = {.markup = plan->markup,
                          .content = content->is_constrained ? &content->source : NULL};
    if (has_calls(plan)) {
        reply.tools = plan->tools->tools;
        reply.n_tools = plan->tools->n_tools;
        reply.needs_call = plan->tools->needs_call;
        reply.one_call = plan->tools->one_call || chat_template_takes_one_call(server->model.chat);
    }
    const GrammarSource whole = {.kind = GRAMMAR_REPLY, .reply = &reply};
    bool has_parts = plan->markup && markup_has_marks(plan->markup);
    bool ok = need_cache(server, &cache, &err) &&
              grammar_cache_get(cache, has_parts ? &whole : &content->source, &grammar, &err);
    if (ok) {
        tell_ignored(request, grammar);
        ok = constraint_from_grammar(grammar, server->model.tokenizer, out, &err);
    }
    grammar_release(grammar);
    return ok || tell_fault(plan, &err, error);
}

void constraint_store_reset(ConstraintStore *store)
{
    grammar_cache_free(store->cache);
    grammar_vocabulary_release(store->vocabulary);
    pthread_mutex_destroy(&store->lock);
}
