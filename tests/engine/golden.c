#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "golden.h"

#include <math.h>
#include <string.h>

const char *const GOLDEN_MODELS[] = {
    "llama3-q4-g64",
    "llama2-mixed-sharded",
    "smollm2-bf16",
    "llama-fpmodes",
    "mistral-q8-g64",
    "qwen2-q6-g64",
    "qwen3-q4-g32",
    "gemma3-text-q4-g64",
    "gemma3-mm-q4-g64",
    "gemma2-q4-g64",
    "phi3-q4-g64",
    "qwen3-moe-q4-g64",
    "llama-yarn-biases",
    "mistral-window-q3",
    "phi3-partial-longrope",
    "qwen3-moe-unstacked",
    "qwen3-moe-nvfp4-global",
    "qwen3-yarn-parameters",
    "gemma3-text-separate-head",
    "mistral3-ministral-scaling",
    "mixtral-unstacked",
    "qwen3-vl-text",
    "smollm3-unrotated-layers",
};
const size_t GOLDEN_MODEL_COUNT = ARRAY_COUNT(GOLDEN_MODELS);

static void *take(Arena *arena, size_t count, size_t size)
{
    void *memory = arena_allocate_array(arena, count, size);
    assert_non_null(memory);
    return memory;
}

static const JsonValue *member(const JsonValue *object, const char *key)
{
    const JsonValue *value = json_get_present(object, key);
    assert_non_null(value);
    return value;
}

static int32_t *read_ids(Arena *arena, const JsonValue *array, size_t *count)
{
    assert_true(json_is(array, JSON_ARRAY));
    *count = array->as.array.count;
    int32_t *ids = take(arena, *count, sizeof *ids);
    for (size_t i = 0; i < *count; i++) {
        int64_t id;
        assert_true(json_to_int64(&array->as.array.items[i], &id));
        ids[i] = (int32_t)id;
    }
    return ids;
}

static unsigned base64_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return (unsigned)(c - 'A');
    if (c >= 'a' && c <= 'z')
        return (unsigned)(c - 'a') + 26;
    if (c >= '0' && c <= '9')
        return (unsigned)(c - '0') + 52;
    return c == '+' ? 62 : 63;
}

static float *read_base64_floats(Arena *arena, Slice text, size_t count)
{
    float *out = take(arena, count, sizeof *out);
    size_t bytes = count * sizeof *out, at = 0;
    uint8_t *raw = (uint8_t *)out;
    uint32_t bits = 0;
    unsigned held = 0;
    for (size_t i = 0; i < text.len && text.ptr[i] != '='; i++) {
        bits = bits << 6 | base64_value(text.ptr[i]);
        held += 6;
        if (held >= 8) {
            held -= 8;
            assert_true(at < bytes);
            raw[at++] = (uint8_t)(bits >> held);
        }
    }
    assert_int_equal(at, bytes);
    return out;
}

static void read_positions(Golden *golden, const JsonValue *array, GoldenPrompt *prompt)
{
    prompt->n_positions = array->as.array.count;
    prompt->positions = take(&golden->arena, prompt->n_positions, sizeof *prompt->positions);
    for (size_t i = 0; i < prompt->n_positions; i++) {
        const JsonValue *item = &array->as.array.items[i];
        int64_t pos;
        assert_true(json_to_int64(member(item, "pos"), &pos));
        prompt->positions[i].pos = (size_t)pos;
        prompt->positions[i].std = json_to_double(member(item, "std"));
        prompt->positions[i].logits = read_base64_floats(
            &golden->arena, member(item, "logits_f32_b64")->as.string, golden->vocab_size);
    }
}

void golden_open(const char *model, Golden *out)
{
    Error err = {0};
    Buffer text;
    char path[PATH_BYTES_MAX];
    *out = (Golden){0};
    arena_init(&out->arena, (size_t)1 << 30);
    buffer_init(&text, (size_t)1 << 28);
    assert_true(
        path_join(out->directory, sizeof out->directory, TEST_DATA_DIR "/models", model, &err));
    assert_true(path_join(path, sizeof path, out->directory, "golden.json", &err));
    if (!file_read(path, (size_t)1 << 28, &text, &err))
        fail_msg("%s", err.message);
    const JsonValue *root;
    if (!json_parse(buffer_view(&text), &out->arena, &root, &err))
        fail_msg("%s", err.message);
    int64_t vocab;
    assert_true(json_to_int64(member(root, "vocab_size"), &vocab));
    out->vocab_size = (size_t)vocab;
    const JsonValue *prompts = member(root, "prompts");
    out->n_prompts = prompts->as.array.count;
    out->prompts = take(&out->arena, out->n_prompts, sizeof *out->prompts);
    for (size_t i = 0; i < out->n_prompts; i++) {
        const JsonValue *item = &prompts->as.array.items[i];
        const JsonValue *greedy = member(item, "greedy");
        GoldenPrompt *prompt = &out->prompts[i];
        prompt->name = member(item, "name")->as.string;
        prompt->tokens = read_ids(&out->arena, member(item, "tokens"), &prompt->n_tokens);
        prompt->greedy = read_ids(&out->arena, member(greedy, "ids"), &prompt->n_greedy);
        prompt->runners_up = member(greedy, "runners_up");
        prompt->step_std = member(greedy, "std");
        read_positions(out, member(item, "positions"), prompt);
    }
    buffer_reset(&text);
}

void golden_close(Golden *golden)
{
    arena_reset(&golden->arena);
}

static double log_sum_exp(const float *x, size_t n)
{
    double max = (double)-INFINITY, sum = 0.0;
    for (size_t i = 0; i < n; i++)
        max = (double)x[i] > max ? (double)x[i] : max; /* fmax breaks GCC 12 for Arm */
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    return max + log(sum);
}

double golden_divergence(const float *expected, const float *found, size_t n)
{
    double a = log_sum_exp(expected, n), b = log_sum_exp(found, n), sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        double p = (double)expected[i] - a, q = (double)found[i] - b;
        sum += exp(p) * (p - q);
    }
    return sum;
}

double golden_largest_difference(const float *expected, const float *found, size_t n)
{
    double largest = 0.0;
    for (size_t i = 0; i < n; i++) {
        double difference = fabs((double)expected[i] - (double)found[i]);
        if (!(difference <= largest))
            largest = difference;
    }
    return largest;
}

size_t golden_argmax(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++) {
        if (logits[i] > logits[best])
            best = i;
    }
    return best;
}

bool golden_excuses(const GoldenPrompt *prompt, size_t step, int32_t found)
{
    if (prompt->greedy[step] == found)
        return true;
    const JsonValue *runners = &prompt->runners_up->as.array.items[step];
    double limit = 0.05 * json_to_double(&prompt->step_std->as.array.items[step]);
    for (size_t i = 0; i < runners->as.array.count; i++) {
        const JsonValue *pair = &runners->as.array.items[i];
        int64_t id;
        assert_true(json_to_int64(&pair->as.array.items[0], &id));
        if (id == found && json_to_double(&pair->as.array.items[1]) <= limit)
            return true;
    }
    return false;
}
