/* One reply: sampler, decoder and stop matcher in a row.
 *
 *   logits -> sampler -> id -> decoder -> piece of text -> stop matcher -> text that is certain
 *
 * Every id but an end token goes through all stages. Ending flushes the later stages in order, so
 * the text given out is the decoded reply up to the stop string, whole characters only.
 *
 * Log-probabilities follow their text: an entry waits in `waiting` until the decoder has given out
 * all of its token's text (`ends` tells where in the text that was) and the stop matcher has let it
 * pass. */
#include "generate.h"

#include "sampler.h"
#include "stop_match.h"

#include <assert.h>
#include <string.h>

/* Text of one token: a token's content is bounded by tokenizer.json's own size. */
enum { GENERATION_PIECE_BYTES_MAX = 64 << 20 };

/* The end of a token that ends within a character. */
enum { END_UNKNOWN = -1 };

struct Generation {
    Sampler sampler;
    TokenDecoder decoder;
    StopMatch stop;
    Buffer piece; /* scratch: what the decoder gave for one token */
    int32_t *eos; /* empty with ignore_eos: the sampler never chooses them */
    size_t n_eos;
    size_t max_tokens, token_count;
    FinishReason finish;

    bool logprobs;
    uint32_t top_logprobs;
    float *raw_logits;        /* [vocab_size] of the step, before the sampler clobbers them */
    size_t decoded, released; /* bytes of text out of the decoder, and out of the stop matcher */
    LogprobList waiting, ready;
    int64_t *ends; /* [count of waiting] bytes of text up to the token's end, or END_UNKNOWN */
    size_t ends_capacity;
    size_t last_end; /* of the newest entry that left waiting */
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
    generation->logprobs = options->logprobs;
    generation->top_logprobs = options->top_logprobs;
    logprob_list_init(&generation->waiting);
    logprob_list_init(&generation->ready);
    token_decoder_init(&generation->decoder, tokenizer, options->skip_special);
    if (!sampler_init(&generation->sampler, options, eos, n_eos, prompt, n_prompt, vocab_size,
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
    memory_free(generation->ends);
    logprob_list_reset(&generation->ready);
    logprob_list_reset(&generation->waiting);
    memory_free(generation->raw_logits);
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

/* ---- Log-probabilities ---- */

static bool keep_raw_logits(Generation *generation, const float *logits, Error *err)
{
    size_t count = generation->sampler.vocab_size;
    if (!generation->raw_logits)
        generation->raw_logits = memory_allocate_array(count, sizeof(*logits));
    if (!generation->raw_logits)
        return error_no_memory(err, "log-probabilities");
    memcpy(generation->raw_logits, logits, count * sizeof(*logits));
    return true;
}

/* Measures the chosen token; the decoder has not seen it yet. */
static bool add_entry(Generation *generation, int32_t id, Error *err)
{
    LogprobEntry entry;
    size_t count = logprob_list_count(&generation->waiting);
    logprob_measure(generation->raw_logits, generation->sampler.vocab_size, id,
                    generation->top_logprobs, &entry);
    buffer_clear(&generation->piece);
    if (!token_decoder_append_bytes(&generation->decoder, id, &generation->piece, err))
        return false;
    if (!memory_grow_array((void **)&generation->ends, count, &generation->ends_capacity,
                           sizeof(*generation->ends)))
        return error_no_memory(err, "log-probabilities");
    generation->ends[count] = END_UNKNOWN;
    logprob_list_append(&generation->waiting, &entry, buffer_view(&generation->piece));
    return logprob_list_check(&generation->waiting, err);
}

/* The decoder holds nothing back: the text of all waiting tokens is complete. */
static void settle_ends(Generation *generation)
{
    size_t count = logprob_list_count(&generation->waiting);
    while (count > 0 && generation->ends[count - 1] == END_UNKNOWN)
        generation->ends[--count] = (int64_t)generation->decoded;
}

/* The first entries whose text is out become ready. After a match the rest is what the stop string
 * took: only a token that began before it stays, with the bytes before it. */
static bool release_entries(Generation *generation, Error *err)
{
    LogprobList *waiting = &generation->waiting;
    size_t count = logprob_list_count(waiting), done = 0;
    bool over = generation->finish != FINISH_NONE;
    for (; done < count; done++) {
        const LogprobEntry *entry = logprob_list_get(waiting, done);
        Slice bytes = logprob_list_bytes(waiting, entry);
        int64_t end = generation->ends[done];
        bool is_out = end != END_UNKNOWN && (size_t)end <= generation->released;
        if (!is_out && !over)
            break;
        if (generation->stop.matched && (!is_out || generation->last_end >= generation->released)) {
            size_t left = generation->released - generation->last_end;
            if (left == 0)
                break;
            bytes.len = bytes.len < left ? bytes.len : left;
            end = (int64_t)generation->released;
        }
        generation->last_end = (size_t)end;
        logprob_list_append(&generation->ready, entry, bytes);
    }
    if (over || done == count) {
        logprob_list_clear(waiting);
    } else if (done > 0) {
        size_t cut = logprob_list_get(waiting, done)->bytes_at;
        buffer_remove_front(&waiting->entries, done * sizeof(LogprobEntry));
        buffer_remove_front(&waiting->bytes, cut);
        for (size_t i = 0; i < count - done; i++)
            ((LogprobEntry *)(void *)waiting->entries.ptr)[i].bytes_at -= cut;
        memmove(generation->ends, generation->ends + done,
                (count - done) * sizeof(*generation->ends));
    }
    return logprob_list_check(&generation->ready, err);
}

/* ---- Text ---- */

/* Hands the decoder's piece to the stop matcher. */
static bool pass_piece(Generation *generation, Buffer *text, Error *err)
{
    size_t before = text->len;
    if (!buffer_check(&generation->piece, "text of a token", err))
        return false;
    generation->decoded += generation->piece.len;
    if (!stop_match_push(&generation->stop, buffer_view(&generation->piece), text, err))
        return false;
    generation->released += text->len - before;
    if (generation->stop.matched)
        generation->finish = FINISH_STOP;
    return true;
}

/* Flushes all stages; the finish reason is reason, unless the last text completes a stop string. */
static bool flush_text(Generation *generation, FinishReason reason, Buffer *text, Error *err)
{
    buffer_clear(&generation->piece);
    if (!token_decoder_finish(&generation->decoder, &generation->piece, err) ||
        !pass_piece(generation, text, err))
        return false;
    if (generation->finish == FINISH_NONE) {
        size_t before = text->len;
        stop_match_flush(&generation->stop, text);
        generation->released += text->len - before;
        generation->finish = reason;
    }
    return true;
}

bool generation_end(Generation *generation, FinishReason reason, Buffer *text, Error *err)
{
    if (generation->finish != FINISH_NONE)
        return true;
    if (!flush_text(generation, reason, text, err))
        return false;
    if (generation->logprobs) {
        settle_ends(generation);
        if (!release_entries(generation, err))
            return false;
    }
    return buffer_check(text, "generated text", err);
}

/* A token that is not the end: through decoder and stop matcher. */
static bool push_token(Generation *generation, int32_t id, Buffer *text, Error *err)
{
    generation->token_count++;
    if (generation->logprobs && !add_entry(generation, id, err))
        return false;
    buffer_clear(&generation->piece);
    if (!token_decoder_push(&generation->decoder, id, &generation->piece, err) ||
        !pass_piece(generation, text, err))
        return false;
    if (!generation->logprobs)
        return true;
    if (generation->decoder.pending_len == 0 || generation->finish != FINISH_NONE)
        settle_ends(generation);
    return release_entries(generation, err);
}

static bool constraint_is_finished(const Generation *generation)
{
    const Constraint *constraint = generation->sampler.constraint;
    return constraint && constraint->ops->is_finished(constraint);
}

bool generation_step(Generation *generation, float *logits, int32_t *id, Buffer *text, Error *err)
{
    assert(generation->finish == FINISH_NONE);
    if (generation->logprobs && !keep_raw_logits(generation, logits, err))
        return false;
    return sampler_choose(&generation->sampler, logits, id, err) &&
           generation_accept(generation, *id, text, err);
}

bool generation_takes_argmax(const Generation *generation)
{
    return !generation->logprobs && sampler_is_argmax(&generation->sampler);
}

bool generation_accept(Generation *generation, int32_t id, Buffer *text, Error *err)
{
    assert(generation->finish == FINISH_NONE);
    if (is_end_token(generation, id))
        return generation_end(generation, FINISH_STOP, text, err);
    if (!push_token(generation, id, text, err))
        return false;
    if (generation->finish == FINISH_NONE && constraint_is_finished(generation))
        return generation_end(generation, FINISH_STOP, text, err);
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

int32_t generation_stop_index(const Generation *generation)
{
    return generation->stop.matched ? generation->stop.matched_index : -1;
}

void generation_take_logprobs(Generation *generation, LogprobList *out)
{
    logprob_list_move(out, &generation->ready);
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
