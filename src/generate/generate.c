/* One reply: sampler, decoder and stop matcher in a row.
 *
 *   logits -> sampler -> id -> decoder -> piece of text -> stop matcher -> text that is certain
 *
 * Every id but an end token goes through all stages. Ending flushes the later stages in order, so
 * the text given out is the decoded reply up to the stop string, whole characters only. */
#include "generate.h"

#include "sampler.h"
#include "stop_match.h"

#include <assert.h>

/* Text of one token: a token's content is bounded by tokenizer.json's own size. */
enum { GENERATION_PIECE_BYTES_MAX = 64 << 20 };

struct Generation {
    Sampler sampler;
    TokenDecoder decoder;
    StopMatch stop;
    Buffer piece; /* scratch: what the decoder gave for one token */
    int32_t *eos; /* empty with ignore_eos: the sampler never chooses them */
    size_t n_eos;
    size_t max_tokens, token_count;
    FinishReason finish;
};

void generation_options_init(GenerationOptions *options)
{
    *options = (GenerationOptions){
        .temperature = 0,
        .top_p = 1,
        .repetition_penalty = 1,
        .repetition_context_size = 64,
        .max_tokens = GENERATE_MAX_TOKENS_DEFAULT,
        .skip_special = true,
    };
}

bool generation_create(const Tokenizer *tokenizer, const GenerationOptions *options,
                       const int32_t *eos, size_t n_eos, const int32_t *prompt, size_t n_prompt,
                       size_t vocab_size, Generation **out, Error *err)
{
    *out = NULL;
    if (vocab_size == 0 || vocab_size > INT32_MAX)
        return error_set(err, ERROR_INVALID, "vocabulary of %zu tokens", vocab_size);
    Generation *generation = memory_allocate_zeroed(1, sizeof(*generation));
    if (!generation)
        return error_no_memory(err, "generation");
    buffer_init(&generation->piece, GENERATION_PIECE_BYTES_MAX);
    generation->max_tokens = options->max_tokens;
    generation->finish = options->max_tokens == 0 ? FINISH_LENGTH : FINISH_NONE;
    token_decoder_init(&generation->decoder, tokenizer, options->skip_special);
    size_t n_banned = options->ignore_eos ? n_eos : 0;
    if (!sampler_init(&generation->sampler, options, eos, n_banned, prompt, n_prompt, vocab_size,
                      err) ||
        !stop_match_init(&generation->stop, options->stop, options->n_stop, err))
        goto fail;
    if (n_eos > 0 && !options->ignore_eos) {
        generation->eos = memory_allocate_array(n_eos, sizeof(*eos));
        if (!generation->eos) {
            error_no_memory(err, "end tokens");
            goto fail;
        }
        for (size_t i = 0; i < n_eos; i++)
            generation->eos[generation->n_eos++] = eos[i];
    }
    *out = generation;
    return true;
fail:
    generation_free(generation);
    return false;
}

void generation_free(Generation *generation)
{
    if (!generation)
        return;
    memory_free(generation->eos);
    stop_match_reset(&generation->stop);
    sampler_reset(&generation->sampler);
    buffer_reset(&generation->piece);
    memory_free(generation);
}

static bool is_end_token(const Generation *generation, int32_t id)
{
    for (size_t i = 0; i < generation->n_eos; i++) {
        if (generation->eos[i] == id)
            return true;
    }
    return false;
}

/* Hands the decoder's piece to the stop matcher. */
static bool pass_piece(Generation *generation, Buffer *text, Error *err)
{
    if (!buffer_check(&generation->piece, "text of a token", err))
        return false;
    if (!stop_match_push(&generation->stop, buffer_view(&generation->piece), text, err))
        return false;
    if (generation->stop.matched)
        generation->finish = FINISH_STOP;
    return true;
}

bool generation_end(Generation *generation, FinishReason reason, Buffer *text, Error *err)
{
    if (generation->finish != FINISH_NONE)
        return true;
    buffer_clear(&generation->piece);
    if (!token_decoder_finish(&generation->decoder, &generation->piece, err) ||
        !pass_piece(generation, text, err))
        return false;
    if (generation->finish == FINISH_NONE) {
        stop_match_flush(&generation->stop, text);
        generation->finish = reason;
    }
    return buffer_check(text, "generated text", err);
}

bool generation_step(Generation *generation, float *logits, int32_t *id, Buffer *text, Error *err)
{
    assert(generation->finish == FINISH_NONE);
    if (!sampler_choose(&generation->sampler, logits, id, err))
        return false;
    if (is_end_token(generation, *id))
        return generation_end(generation, FINISH_STOP, text, err);
    generation->token_count++;
    buffer_clear(&generation->piece);
    if (!token_decoder_push(&generation->decoder, *id, &generation->piece, err) ||
        !pass_piece(generation, text, err))
        return false;
    if (generation->finish == FINISH_NONE && generation->token_count >= generation->max_tokens)
        return generation_end(generation, FINISH_LENGTH, text, err);
    return buffer_check(text, "generated text", err);
}

FinishReason generation_finish_reason(const Generation *generation)
{
    return generation->finish;
}

size_t generation_token_count(const Generation *generation)
{
    return generation->token_count;
}

const char *finish_reason_name(FinishReason reason)
{
    switch (reason) {
    case FINISH_NONE:
        return "none";
    case FINISH_STOP:
        return "stop";
    case FINISH_LENGTH:
        return "length";
    case FINISH_CANCELLED:
        return "cancelled";
    case FINISH_ERROR:
        break;
    }
    return "error";
}
