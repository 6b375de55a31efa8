/* perplexity: how well the model predicts a text, as one figure.
 *
 *   nll = - mean of ln p(token | what precedes it in its window),  perplexity = exp(nll)
 *
 * The text is encoded once and walked in windows of `ctx` tokens that overlap by half. A token is
 * scored in the first window that holds it, so every one is scored exactly once, and beyond the
 * first window with at least half a window before it. Where the tokenizer begins a text with BOS,
 * each window begins with it too; BOS is not scored, and without one neither is the first token.
 * Memory: the text, its ids, one window's KV cache and LOGITS_ROWS logit vectors. The distribution
 * is over all rows of the output matrix, in double. */
#include "cli.h"

#include "json.h"
#include "loaded_model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    TEXT_BYTES_MAX = 64 << 20,
    WINDOW_DEFAULT = 1024,
    LOGITS_ROWS = 32, /* positions scored at once */
};

typedef struct Scoring {
    Engine *engine;
    EngineSequence *sequence;
    size_t vocab_size;
    float *logits;   /* [LOGITS_ROWS, vocab_size] */
    int32_t *window; /* [window_max], BOS included */
    size_t window_max;
    size_t n_scored;
    double nll; /* sum so far */
} Scoring;

/* - ln softmax(logits)[id] */
static double token_loss(const float *logits, size_t count, int32_t id)
{
    double most = (double)logits[0], sum = 0;
    for (size_t i = 1; i < count; i++)
        most = (double)logits[i] > most ? (double)logits[i] : most;
    for (size_t i = 0; i < count; i++)
        sum += exp((double)logits[i] - most);
    return most + log(sum) - (double)logits[id];
}

/* Scores tokens [from, count) of the window; from >= 1, since a token is predicted by the one
 * before. */
static bool score_window(Scoring *s, size_t from, size_t count, Error *err)
{
    if (!engine_sequence_truncate(s->engine, s->sequence, 0, err))
        return false;
    if (from > 1) {
        EngineRow context = {s->sequence, s->window, from - 1, ENGINE_LOGITS_NONE};
        if (!engine_forward(s->engine, &context, 1, NULL, err))
            return false;
    }
    for (size_t at = from; at < count && !stop_requested();) {
        size_t rows = count - at < LOGITS_ROWS ? count - at : LOGITS_ROWS;
        EngineRow row = {s->sequence, s->window + at - 1, rows, ENGINE_LOGITS_ALL};
        if (!engine_forward(s->engine, &row, 1, s->logits, err))
            return false;
        for (size_t i = 0; i < rows; i++)
            s->nll += token_loss(s->logits + i * s->vocab_size, s->vocab_size, s->window[at + i]);
        s->n_scored += rows;
        at += rows;
    }
    return true;
}

/* prefix: 1 when every window begins with bos. */
static bool score_text(Scoring *s, const TokenList *text, size_t prefix, int32_t bos, Error *err)
{
    size_t room = s->window_max - prefix, step = room > 1 ? room / 2 : 1;
    size_t scored = 1 - prefix; /* without BOS nothing predicts the first token */
    if (prefix)
        s->window[0] = bos;
    for (size_t start = 0; scored < text->count && !stop_requested(); start += step) {
        size_t left = text->count - start;
        size_t count = left < room ? left : room;
        memcpy(s->window + prefix, text->ids + start, count * sizeof *text->ids);
        if (!score_window(s, prefix + scored - start, prefix + count, err))
            return false;
        scored = start + count;
    }
    if (stop_requested())
        return error_set(err, ERROR_CANCELLED, "interrupted");
    return true;
}

/* The text's ids without special tokens, and whether a text begins with BOS. */
static bool encode_text(const LoadedModel *loaded, Slice text, TokenList *out, size_t *prefix,
                        int32_t *bos, Error *err)
{
    TokenList empty = {0};
    Slice name = chat_template_bos_token(loaded->chat);
    bool ok = tokenizer_encode(loaded->tokenizer, SLICE_EMPTY, true, &empty, err) &&
              tokenizer_encode(loaded->tokenizer, text, false, out, err);
    *bos = name.len > 0 ? tokenizer_find_token(loaded->tokenizer, name) : -1;
    *prefix = *bos >= 0 && empty.count > 0 && empty.ids[0] == *bos;
    token_list_reset(&empty);
    if (ok && out->count + *prefix < 2)
        return error_set(err, ERROR_INVALID, "the text has %zu token%s, expected 2 or more",
                         out->count, out->count == 1 ? "" : "s");
    return ok;
}

static bool choose_window(const LoadedModel *loaded, const Arguments *arguments, size_t *out,
                          Error *err)
{
    if (!loaded_model_context(loaded, arguments, out, err))
        return false;
    if (arguments->ctx == 0 && *out > WINDOW_DEFAULT)
        *out = WINDOW_DEFAULT;
    if (*out < 2)
        return error_set(err, ERROR_USAGE, "--ctx %zu: expected 2 or more", *out);
    return true;
}

static bool measure(const LoadedModel *loaded, Slice text, size_t window_max, Scoring *s,
                    Error *err)
{
    TokenList ids = {0};
    size_t prefix = 0;
    int32_t bos = -1;
    *s = (Scoring){.engine = loaded->engine,
                   .vocab_size = loaded->model->config.vocab_size,
                   .window_max = window_max};
    bool ok = false;
    if (!encode_text(loaded, text, &ids, &prefix, &bos, err))
        goto cleanup;
    s->logits = memory_allocate_array(s->vocab_size, LOGITS_ROWS * sizeof(float));
    s->window = memory_allocate_array(window_max, sizeof *s->window);
    if (!s->logits || !s->window) {
        error_no_memory(err, "logits");
        goto cleanup;
    }
    ok = engine_sequence_create(s->engine, window_max, &s->sequence, err) &&
         score_text(s, &ids, prefix, bos, err);
cleanup:
    engine_sequence_free(s->engine, s->sequence);
    memory_free(s->window);
    memory_free(s->logits);
    token_list_reset(&ids);
    return ok;
}

static bool print_result(const Scoring *s, bool json, Error *err)
{
    double nll = s->nll / (double)s->n_scored;
    if (!json) {
        printf("perplexity %.4f (%.6f nats a token) over %zu tokens in windows of %zu\n", exp(nll),
               nll, s->n_scored, s->window_max);
        return true;
    }
    Buffer out;
    JsonWriter writer;
    buffer_init(&out, 4096);
    json_writer_init(&writer, &out, 0);
    json_write_object_begin(&writer);
    json_write_key(&writer, "tokens");
    json_write_uint(&writer, s->n_scored);
    json_write_key(&writer, "perplexity");
    json_write_double(&writer, exp(nll));
    json_write_key(&writer, "nll");
    json_write_double(&writer, nll);
    json_write_key(&writer, "window");
    json_write_uint(&writer, s->window_max);
    json_write_object_end(&writer);
    buffer_append_byte(&out, '\n');
    bool ok = write_output(&out, err);
    buffer_reset(&out);
    return ok;
}

int command_perplexity(const Arguments *arguments)
{
    Error err = {0};
    LoadedModel loaded = {0};
    Scoring scoring;
    Buffer text;
    size_t window = 0;
    buffer_init(&text, TEXT_BYTES_MAX);
    bool ok = file_read(arguments->input, TEXT_BYTES_MAX, &text, &err) &&
              loaded_model_open(arguments, LOAD_ENGINE | LOAD_TEXT, &loaded, &err) &&
              choose_window(&loaded, arguments, &window, &err) &&
              measure(&loaded, buffer_view(&text), window, &scoring, &err) &&
              print_result(&scoring, arguments->json, &err);
    loaded_model_close(&loaded);
    buffer_reset(&text);
    return ok ? EXIT_DONE : report_error(&err);
}
