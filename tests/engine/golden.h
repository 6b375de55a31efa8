/* Golden numbers of the fixture models (tests/data/models/NAME/golden.json), and the comparisons
 * that they call for. Loading fails the running test. */
#ifndef TESTS_ENGINE_GOLDEN_H
#define TESTS_ENGINE_GOLDEN_H

#include "base.h"
#include "json.h"

typedef struct GoldenPosition {
    size_t pos;
    float *logits; /* [vocab_size] */
    double std;
} GoldenPosition;

typedef struct GoldenPrompt {
    Slice name;
    int32_t *tokens;
    size_t n_tokens;
    GoldenPosition *positions;
    size_t n_positions;
    int32_t *greedy;
    size_t n_greedy;
    const JsonValue *runners_up; /* per greedy step: [[id, gap], ...] */
    const JsonValue *step_std;   /* per greedy step */
} GoldenPrompt;

typedef struct Golden {
    char directory[PATH_BYTES_MAX];
    size_t vocab_size;
    GoldenPrompt *prompts;
    size_t n_prompts;
    Arena arena;
} Golden;

extern const char *const GOLDEN_MODELS[];
extern const size_t GOLDEN_MODEL_COUNT;

void golden_open(const char *model, Golden *out);
void golden_close(Golden *golden);

/* KL(softmax(expected) || softmax(found)), and the largest difference. */
double golden_divergence(const float *expected, const float *found, size_t n);
double golden_largest_difference(const float *expected, const float *found, size_t n);
size_t golden_argmax(const float *logits, size_t n);
/* Is `found` a choice that the rules excuse at this greedy step: best, or within 0.05 std of it? */
bool golden_excuses(const GoldenPrompt *prompt, size_t step, int32_t found);

#endif
