/* One reply: sampler, decoder and stop matcher in a row.
 *
 *   logits -> sampler -> id -> decoder -> piece of text -> stop matcher -> text that is certain
 *
 * A piece passes the scan of the marks on its way, which tells reasoning and calls: they go past
 * the stop matcher, and reasoning is counted.
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

    Markup markup;
    bool has_marks;
    MarkupScan scan; /* has seen what the decoder gave out */
    int64_t reasoning_budget;
    size_t reasoning_tokens;
    size_t mark_tokens; /* of them the last ones, that may be the beginning of the closing mark */
    TokenList forced;   /* what comes next, whatever the logits say */
    size_t forced_at;
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
        .reasoning_budget = -1,
    };
}

/* ---- What is certain ---- */

/* Finds out whether it is certain what comes next: the closing mark when the budget is used up, or
 * what the constraint leaves no choice about. */
static bool look_ahead(Generation *generation, Error *err)
{
    bool is_used_up = generation->scan.region == MARKUP_REASONING &&
                      generation->reasoning_budget >= 0 &&
                      generation->reasoning_tokens >= (size_t)generation->reasoning_budget;
    if (generation->forced_at < generation->forced.count)
        return true;
    generation->forced.count = generation->forced_at = 0;
    TokenList *forced = &generation->forced;
    if (!(is_used_up ? tokenizer_encode(generation->decoder.tokenizer,
                                        generation->markup.think_close, false, forced, err)
                     : sampler_append_forced(&generation->sampler, forced, err)))
        return false;
    /* A tokenizer may have tokens that the model has not. */
    for (size_t i = 0; i < forced->count; i++) {
        if ((size_t)forced->ids[i] >= generation->sampler.vocab_size)
            forced->count = i;
    }
    return true;
}

/* A token led from the region before to the scan's. The marks themselves are not counted. */
static void count_reasoning(Generation *generation, MarkupRegion before)
{
    if (before != MARKUP_REASONING)
        return;
    if (generation->scan.region != MARKUP_REASONING) {
        generation->reasoning_tokens -= generation->mark_tokens;
        return;
    }
    generation->reasoning_tokens++;
    if (markup_scan_held(&generation->scan) > 0)
        generation->mark_tokens++;
    else
        generation->mark_tokens = 0;
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
    generation->markup = options->markup;
    generation->has_marks = markup_has_marks(&options->markup);
    generation->reasoning_budget = options->reasoning_budget;
    markup_scan_init(&generation->scan, &options->markup);
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
    if (!look_ahead(generation, err))
        goto fail;
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
    token_list_reset(&generation->forced);
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
        LogprobEntry ready = *entry;
        ready.text_end = (size_t)end;
        logprob_list_append(&generation->ready, &ready, bytes);
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

/* Text of one region: only content can hold a stop string. */
static bool pass_run(Generation *generation, Slice run, bool is_content, Buffer *text, Error *err)
{
    if (is_content)
        return stop_match_push(&generation->stop, run, text, err);
    if (!generation->stop.matched) {
        stop_match_flush(&generation->stop, text);
        buffer_append_slice(text, run);
    }
    return true;
}

static bool pass_regions(Generation *generation, Slice piece, Buffer *text, Error *err)
{
    size_t start = 0;
    bool was_content = generation->scan.region == MARKUP_CONTENT;
    for (size_t i = 0; i < piece.len; i++) {
        markup_scan_step(&generation->markup, &generation->scan, piece.ptr[i], NULL);
        bool is_content = generation->scan.region == MARKUP_CONTENT;
        if (is_content == was_content)
            continue;
        Slice run = {piece.ptr + start, i + 1 - start};
        if (!pass_run(generation, run, was_content, text, err))
            return false;
        start = i + 1;
        was_content = is_content;
    }
    Slice rest = {piece.ptr + start, piece.len - start};
    return rest.len == 0 || pass_run(generation, rest, was_content, text, err);
}

/* Hands the decoder's piece to the stop matcher. */
static bool pass_piece(Generation *generation, Buffer *text, Error *err)
{
    size_t before = text->len;
    Slice piece = buffer_view(&generation->piece);
    if (!buffer_check(&generation->piece, "text of a token", err))
        return false;
    generation->decoded += piece.len;
    if (!(generation->has_marks ? pass_regions(generation, piece, text, err)
                                : stop_match_push(&generation->stop, piece, text, err)))
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
    MarkupRegion region = (MarkupRegion)generation->scan.region;
    buffer_clear(&generation->piece);
    if (!token_decoder_push(&generation->decoder, id, &generation->piece, err) ||
        !pass_piece(generation, text, err))
        return false;
    count_reasoning(generation, region);
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

/* The chosen token's way to text. */
static bool accept_id(Generation *generation, int32_t id, Buffer *text, Error *err)
{
    if (is_end_token(generation, id))
        return generation_end(generation, FINISH_STOP, text, err);
    if (!push_token(generation, id, text, err))
        return false;
    if (generation->finish == FINISH_NONE && constraint_is_finished(generation))
        return generation_end(generation, FINISH_STOP, text, err);
    if (generation->finish == FINISH_NONE && generation->token_count >= generation->max_tokens)
        return generation_end(generation, FINISH_LENGTH, text, err);
    return (generation->finish != FINISH_NONE || look_ahead(generation, err)) &&
           buffer_check(text, "generated text", err);
}

static bool is_forced(const Generation *generation)
{
    return generation->forced_at < generation->forced.count;
}

static bool accept_forced(Generation *generation, int32_t *id, Buffer *text, Error *err)
{
    *id = generation->forced.ids[generation->forced_at++];
    return sampler_force(&generation->sampler, *id, err) && accept_id(generation, *id, text, err);
}

bool generation_step(Generation *generation, float *logits, int32_t *id, Buffer *text, Error *err)
{
    assert(generation->finish == FINISH_NONE);
    if (generation->logprobs && !keep_raw_logits(generation, logits, err))
        return false;
    if (is_forced(generation))
        return accept_forced(generation, id, text, err);
    return sampler_choose(&generation->sampler, logits, id, err) &&
           accept_id(generation, *id, text, err);
}

bool generation_is_plain(const Generation *generation, float *temperature, double draws[2])
{
    RandomStream random = generation->sampler.random;
    *temperature = generation->sampler.temperature;
    draws[0] = draws[1] = 0;
    if (*temperature > 0) {
        draws[0] = random_uniform(&random);
        draws[1] = random_uniform(&random);
    }
    return !generation->logprobs && !is_forced(generation) &&
           sampler_is_plain(&generation->sampler);
}

bool generation_accept(Generation *generation, int32_t id, Buffer *text, Error *err)
{
    assert(generation->finish == FINISH_NONE);
    if (generation->sampler.temperature > 0)
        random_uniform(&generation->sampler.random); /* the draw that chose it */
    return accept_id(generation, id, text, err);
}

bool generation_take_forced(Generation *generation, int32_t *id, bool *took, Buffer *text,
                            Error *err)
{
    assert(generation->finish == FINISH_NONE);
    *took = is_forced(generation) && !generation->logprobs; /* those want logits of each token */
    return !*took || accept_forced(generation, id, text, err);
}

FinishReason generation_finish_reason(const Generation *generation)
{
    return generation->finish;
}

size_t generation_token_count(const Generation *generation)
{
    return generation->token_count;
}

size_t generation_reasoning_count(const Generation *generation)
{
    return generation->reasoning_tokens;
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
