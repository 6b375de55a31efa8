/* constraint: what a request's fields ask for, compiled.
 *
 * Compiled grammars are kept by the server, so that a schema that comes with every request is
 * compiled once. The vocabulary of masks is made with the first constrained request after the model
 * is there; while there is none, grammars are compiled without it, for the sake of the errors. */
#ifndef SERVER_CONSTRAINT_H
#define SERVER_CONSTRAINT_H

#include "fields.h"
#include "http.h"

/* What binds a reply. */
typedef struct ConstraintPlan {
    const ConstraintFields *content;
    const ToolFields *tools; /* may be NULL: no calls */
    /* Of the reply, as constraint_plan_markup has set it; NULL: the reply has no parts. */
    const Markup *markup;
} ConstraintPlan;

/* The model's marks, cut to those that count in a reply of this plan behind this prompt. */
void constraint_plan_markup(const ConstraintPlan *plan, const ServerModel *model, Slice prompt,
                            Markup *out);
/* *out is NULL when the reply is free, or no model is there yet. Schema keywords that were ignored
 * are told in x-ignored-fields. The caller frees *out with constraint_free. */
bool constraint_open(HttpRequest *request, const ConstraintPlan *plan, Constraint **out,
                     HttpError *error) WARN_UNUSED;
/* Compiles each schema of the plan by itself, for the errors alone. */
bool constraint_check(const ConstraintPlan *plan, HttpError *error) WARN_UNUSED;
/* When the server ends. */
void constraint_store_reset(ConstraintStore *store);

#endif
