/* gguf_import_fixture: tiny GGUF models, the directory that an import writes, and its comparison
 * with what was put into the model. Whatever is not as expected ends the test. */
#ifndef GGUF_IMPORT_FIXTURE_H
#define GGUF_IMPORT_FIXTURE_H

#include "gguf_reference.h"
#include "json.h"

enum { HIDDEN = 256, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 64, VOCAB = 12 };

/* ---- A place for files ---- */

typedef struct Place {
    char root[64], gguf[96], directory[96];
} Place;

void place_make(Place *place);
void place_path(const Place *place, const char *name, char path[256]);
/* Removes the files of an import. */
void place_clean(const Place *place);
/* Fails when anything unexpected was left behind. */
void place_remove(const Place *place);
/* Writes the GGUF file and imports it. */
bool place_import(const Place *place, const GgufBuilder *gguf, GgufImportReport *report,
                  Error *err);

/* ---- Models ---- */

/* A tensor of the model, as it is in the GGUF file. */
typedef struct Source {
    char gguf[64], mlx[96];
    const BlockFormat *format;
    size_t rows, cols; /* rows 0: a vector */
    Buffer blocks;
} Source;

typedef struct Model {
    GgufBuilder gguf;
    Source sources[64];
    size_t count;
    uint32_t noise;
} Model;

void put_byte_level_tokenizer(GgufBuilder *gguf, const char *pre);
/* The key ARCHITECTURE.SUFFIX; then all that a model of so many layers needs. */
void put_dim(GgufBuilder *gguf, const char *architecture, const char *suffix, uint32_t value);
void put_dims(GgufBuilder *gguf, const char *architecture, uint32_t layers);

const BlockFormat *format_named(const char *name);
void model_init(Model *model);
void model_free(Model *model);
/* A tensor of random blocks under its two names; rows 0: a vector. The result is of the model. */
Source *model_put(Model *model, const char *gguf, const char *mlx, const BlockFormat *format,
                  size_t rows, size_t cols);
/* One layer's matrices and norms, formats taken in turn from `formats`. */
void model_put_layer(Model *model, unsigned layer, const char *const *formats, size_t n_formats,
                     bool is_gemma);
/* Embedding, last norm and, unless NULL, head, in these formats. */
void model_put_ends(Model *model, const char *embedding, const char *head);

/* ---- Reading what was written ---- */

/* Every tensor of the model and no other; norm_shift is what vectors must have lost. */
void compare_model(const Place *place, const Model *model, bool is_llama, float norm_shift);

typedef struct Document {
    Buffer text;
    Arena arena;
    const JsonValue *root;
} Document;

void document_open(Document *document, const Place *place, const char *name);
void document_close(Document *document);
/* The value at a path of keys and indices, as compact JSON, compared as text. */
void expect_json(const Document *document, const char *path, const char *expected);

#endif
