/* Private to cli: everything a command needs of one model directory, opened together. */
#ifndef LOADED_MODEL_H
#define LOADED_MODEL_H

#include "chat.h"
#include "cli.h"
#include "engine.h"
#include "model.h"
#include "tokenizer.h"

typedef struct LoadedModel {
    Model *model;
    Engine *engine;
    Tokenizer *tokenizer;
    ChatTemplate *chat;
} LoadedModel;

enum {
    LOAD_ENGINE = 1, /* model and engine */
    LOAD_TEXT = 2,   /* tokenizer and chat template */
};

/* parts: LOAD_*. On failure nothing stays open. */
bool loaded_model_open(const Arguments *arguments, unsigned parts, LoadedModel *out,
                       Error *err) WARN_UNUSED;
void loaded_model_close(LoadedModel *loaded);
/* --ctx, or the default: the model's context, at most DEFAULT_CONTEXT_MAX; ERROR_USAGE when --ctx
 * is more than the model has. */
enum { DEFAULT_CONTEXT_MAX = 8192 };
bool loaded_model_context(const LoadedModel *loaded, const Arguments *arguments, size_t *out,
                          Error *err) WARN_UNUSED;
/* model_type of DIR/config.json into out; empty when there is none (a tokenizer-only directory). */
enum { MODEL_TYPE_BYTES_MAX = 64 };
void read_model_type(const char *directory, char out[MODEL_TYPE_BYTES_MAX]);

#endif
