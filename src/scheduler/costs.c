/* What a step costs, learnt from the steps before.
 *
 * A stream's normal step is a pass that only decodes, so that is what a step with prompts is held
 * against. Such a pass takes what it took in the good ones: a neighbour's noise must not pass for
 * the normal step. What prompts add costs what it cost in the worse of the recent ones. */
#include "state.h"

/* A step with prompts may take so many times what it takes without; streams are promised 4. Tokens
 * that go along in a pass are bounded beforehand, by what they are expected to cost; parts of a
 * held pass by the clock, which is surer. */
static const double RIDE_STRETCH = 2.5, STEP_STRETCH = 2.8;
/* How far a measurement moves an estimate. While prompts enter, a stream's normal step is what it
 * was before: that the stream grows meanwhile is followed slowly. */
static const double DECODE_RISE = 0.05, DECODE_RISE_BESIDE = 0.0005, DECODE_FALL = 0.3;
static const double TOKEN_RISE = 0.5, TOKEN_FALL = 0.1;
static const double PART_RISE = 0.3, PART_FALL = 0.1;

/* A held pass is so long that at least so many of its parts fit into a step: with fewer, more of
 * the step is left unused by the part that does not fit any more. */
static const double PARTS_OF_A_STEP = 2;

enum {
    RIDE_TOKENS_FIRST = 4, /* while nothing is known of their cost */
    /* Kernels for many rows may cost a whole tile for one row more, and only fewer tokens still go
     * through those for few. */
    RIDE_TOKENS_LEAST = 1,
    HELD_TOKENS_FIRST = 32,
    HELD_TOKENS_LEAST = 16,
};

static size_t cost_class(size_t rows)
{
    size_t class = 0;
    while (class + 1 < SCHEDULER_COST_CLASSES && (size_t)1 << class < rows)
        class ++;
    return class;
}

static void learn(double *estimate, double measured, double rise, double fall)
{
    if (*estimate <= 0)
        *estimate = measured;
    else
        *estimate += (measured - *estimate) * (measured > *estimate ? rise : fall);
}

double costs_decode(const StepCosts *costs, size_t n_decode)
{
    return costs->decode[cost_class(n_decode)];
}

double costs_step(const StepCosts *costs, size_t n_decode)
{
    return STEP_STRETCH * costs_decode(costs, n_decode);
}

size_t costs_ride_tokens(const StepCosts *costs, size_t n_decode)
{
    double seconds = (RIDE_STRETCH - 1) * costs_decode(costs, n_decode);
    if (seconds <= 0)
        return 0; /* this pass measures it */
    if (costs->token <= 0)
        return RIDE_TOKENS_FIRST;
    double tokens = seconds / costs->token;
    if (tokens >= SCHEDULER_PREFILL_CHUNK)
        return SCHEDULER_PREFILL_CHUNK;
    return tokens > RIDE_TOKENS_LEAST ? (size_t)tokens : RIDE_TOKENS_LEAST;
}

/* A power of two: kernels take so many rows at a time, and others cost as much as the next one. */
size_t costs_held_tokens(const StepCosts *costs, size_t n_decode)
{
    double seconds = (STEP_STRETCH - 1) * costs_decode(costs, n_decode);
    size_t tokens = HELD_TOKENS_LEAST;
    if (costs->part_token <= 0)
        return HELD_TOKENS_FIRST;
    while (tokens < SCHEDULER_PREFILL_CHUNK &&
           PARTS_OF_A_STEP * costs_part(costs, 2 * tokens) <= seconds)
        tokens *= 2;
    return tokens;
}

double costs_part(const StepCosts *costs, size_t n_tokens)
{
    return costs->part_token * (double)n_tokens;
}

void costs_learn_pass(StepCosts *costs, const Batch *pass, double seconds)
{
    double *decode = &costs->decode[cost_class(pass->n_decode)];
    if (pass->n_decode == 0)
        return;
    if (pass->n_prefill == 0)
        learn(decode, seconds, pass->is_beside_prompts ? DECODE_RISE_BESIDE : DECODE_RISE,
              DECODE_FALL);
    else if (*decode > 0 && seconds > *decode)
        learn(&costs->token, (seconds - *decode) / (double)pass->n_prefill, TOKEN_RISE, TOKEN_FALL);
}

void costs_learn_part(StepCosts *costs, size_t n_tokens, double seconds)
{
    learn(&costs->part_token, seconds / (double)n_tokens, PART_RISE, PART_FALL);
}

void costs_learn_held(StepCosts *costs, size_t n_tokens, double seconds)
{
    learn(&costs->token, seconds / (double)n_tokens, TOKEN_RISE, TOKEN_FALL);
}
