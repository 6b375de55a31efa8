/* Pre-tokenisers cut pieces into smaller ones. Those of the file are taken apart at load into a
 * chain of four kinds of step; a piece runs down the chain depth first, and what leaves the last
 * step is a word for BPE. So no list of words is ever kept, and a text of any size needs only the
 * buffers of steps that change it. */
#include "internal.h"

/* ---- Loading ---- */

/* NULL when there are too many. */
static PreTokenizerStep *add_step(PreTokenizer *pre, PreTokenizerKind kind, Error *err)
{
    if (pre->count == COMPONENTS_MAX) {
        error_set(err, ERROR_LIMIT, "more than %d pre_tokenizers", COMPONENTS_MAX);
        return NULL;
    }
    PreTokenizerStep *step = &pre->steps[pre->count++];
    *step = (PreTokenizerStep){.kind = kind, .behavior = SPLIT_ISOLATED};
    return step;
}

static bool read_behavior(const JsonValue *config, SplitBehavior *out, Error *err)
{
    static const char *const names[] = {
        [SPLIT_REMOVED] = "Removed",
        [SPLIT_ISOLATED] = "Isolated",
        [SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
        [SPLIT_CONTIGUOUS] = "Contiguous",
    };
    Slice name = SLICE_EMPTY;
    if (!json_read_string(config, "behavior", &name, err))
        return false;
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        if (slice_equal(name, slice_of(names[i]))) {
            *out = (SplitBehavior)i;
            return true;
        }
    }
    int shown = name.len < 60 ? (int)name.len : 60;
    return error_set(err, ERROR_UNSUPPORTED, "behavior '%.*s' is not known", shown,
                     name.ptr ? name.ptr : "");
}

static bool load_split(PreTokenizer *pre, const JsonValue *config, Error *err)
{
    PreTokenizerStep *step = add_step(pre, PRE_SPLIT, err);
    return step && json_read_bool(config, "invert", &step->invert, err) &&
           read_behavior(config, &step->behavior, err) &&
           component_read_pattern(config, &step->pattern, err);
}

static bool load_digits(PreTokenizer *pre, const JsonValue *config, Error *err)
{
    PreTokenizerStep *step = add_step(pre, PRE_SPLIT, err);
    bool individual = false;
    if (!step || !json_read_bool(config, "individual_digits", &individual, err))
        return false;
    pattern_init_class(&step->pattern, UNICODE_NUMERIC);
    step->behavior = individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
    return true;
}

static bool load_punctuation(PreTokenizer *pre, const JsonValue *config, Error *err)
{
    PreTokenizerStep *step = add_step(pre, PRE_SPLIT, err);
    if (!step)
        return false;
    pattern_init_class(&step->pattern, UNICODE_PUNCTUATION);
    return !json_get_present(config, "behavior") || read_behavior(config, &step->behavior, err);
}

static bool load_byte_level(PreTokenizer *pre, const JsonValue *config, Error *err)
{
    bool add_prefix_space = true, use_regex = true;
    if (!json_read_bool(config, "add_prefix_space", &add_prefix_space, err) ||
        !json_read_bool(config, "use_regex", &use_regex, err))
        return false;
    if (add_prefix_space && !add_step(pre, PRE_PREFIX_SPACE, err))
        return false;
    if (use_regex) {
        PreTokenizerStep *step = add_step(pre, PRE_SPLIT, err);
        if (!step)
            return false;
        pattern_init_scanner(&step->pattern, SCANNER_GPT2);
    }
    return add_step(pre, PRE_BYTE_MAP, err) != NULL;
}

static bool read_prepend_scheme(const JsonValue *config, PrependScheme *out, Error *err)
{
    Slice name = SLICE_EMPTY;
    bool add_prefix_space = true;
    if (!json_read_string(config, "prepend_scheme", &name, err) ||
        !json_read_bool(config, "add_prefix_space", &add_prefix_space, err))
        return false;
    if (!name.ptr)
        *out = add_prefix_space ? PREPEND_ALWAYS : PREPEND_NEVER;
    else if (slice_equal(name, SLICE("always")))
        *out = PREPEND_ALWAYS;
    else if (slice_equal(name, SLICE("first")))
        *out = PREPEND_FIRST;
    else if (slice_equal(name, SLICE("never")))
        *out = PREPEND_NEVER;
    else
        return error_set(err, ERROR_INVALID, "prepend_scheme '%.*s' is not known",
                         name.len < 60 ? (int)name.len : 60, name.ptr);
    if (name.ptr && !add_prefix_space && *out != PREPEND_NEVER)
        return error_set(err, ERROR_INVALID, "add_prefix_space contradicts prepend_scheme");
    return true;
}

static bool load_metaspace(PreTokenizer *pre, const JsonValue *config, Error *err)
{
    PreTokenizerStep *step = add_step(pre, PRE_METASPACE, err);
    bool split = true;
    if (!step ||
        !component_read_character(config, "replacement", step->replacement, &step->replacement_len,
                                  err) ||
        !read_prepend_scheme(config, &step->scheme, err) ||
        !json_read_bool(config, "split", &split, err))
        return false;
    if (!split)
        return true;
    Slice replacement = {step->replacement, step->replacement_len};
    step = add_step(pre, PRE_SPLIT, err);
    if (!step)
        return false;
    step->behavior = SPLIT_MERGED_WITH_NEXT;
    return pattern_init_literal(&step->pattern, replacement, err);
}

static bool load_component(void *to, Slice type, const JsonValue *config, Error *err)
{
    bool ok;
    if (slice_equal(type, SLICE("Split")))
        ok = load_split(to, config, err);
    else if (slice_equal(type, SLICE("ByteLevel")))
        ok = load_byte_level(to, config, err);
    else if (slice_equal(type, SLICE("Digits")))
        ok = load_digits(to, config, err);
    else if (slice_equal(type, SLICE("Punctuation")))
        ok = load_punctuation(to, config, err);
    else if (slice_equal(type, SLICE("Metaspace")))
        ok = load_metaspace(to, config, err);
    else
        return component_unknown("a pre_tokenizer", type, err);
    return ok || error_prefix(err, "pre_tokenizer %.*s", SLICE_ARG(type));
}

bool pre_tokenizer_load(PreTokenizer *pre, const JsonValue *config, Error *err)
{
    if (!component_visit(config, "pre_tokenizer", "pretokenizers", load_component, pre, err))
        return false;
    if (pre->count > 0 && pre->steps[pre->count - 1].kind == PRE_BYTE_MAP) {
        pre->count--;
        pre->byte_level = true;
    }
    return true;
}

/* Metaspace "first" asks whether a piece begins where the original text does. The reference follows
 * that through the normaliser; here the first piece is taken to begin there, which holds unless
 * characters are put in, taken out or regrouped. No known model combines these. */
bool pre_tokenizer_check(const PreTokenizer *pre, const Normalizer *normalizer, Error *err)
{
    size_t first = 0;
    while (first < pre->count &&
           (pre->steps[first].kind != PRE_METASPACE || pre->steps[first].scheme != PREPEND_FIRST))
        first++;
    for (size_t i = 0; first < pre->count && i < normalizer->count; i++) {
        const NormalizerStep *step = &normalizer->steps[i];
        const Pattern *pattern = &step->pattern;
        bool moves = step->kind == NORMALIZER_PREPEND && first > 0;
        if (step->kind == NORMALIZER_REPLACE)
            moves = pattern->kind != PATTERN_LITERAL ||
                    utf8_count((Slice){pattern->literal, pattern->literal_len}) !=
                        utf8_count((Slice){step->text, step->text_len});
        if (moves)
            return error_set(err, ERROR_UNSUPPORTED,
                             "pre_tokenizer Metaspace with prepend_scheme 'first' is not supported "
                             "behind a normalizer that changes how many characters there are");
    }
    return true;
}

void pre_tokenizer_reset(PreTokenizer *pre)
{
    for (size_t i = 0; i < pre->count; i++)
        pattern_reset(&pre->steps[i].pattern);
    pre->count = 0;
}

/* ---- Running ---- */

static bool run_from(EncodeContext *context, size_t index, Slice piece, bool at_start);

/* Cuts one piece by a pattern. Matches and the text between them are events in order; the behaviour
 * says which events become one piece. The last piece is held back, for an event may still belong to
 * it. */
typedef struct Splitter {
    EncodeContext *context;
    size_t index;
    const PreTokenizerStep *step;
    Slice text;
    bool at_start;
    bool has_held, held_is_match;
    PatternMatch held;
} Splitter;

static bool emit(const Splitter *splitter, size_t start, size_t end)
{
    if (start == end)
        return true;
    Slice piece = {splitter->text.ptr + start, end - start};
    return run_from(splitter->context, splitter->index + 1, piece,
                    splitter->at_start && start == 0);
}

/* Whether the event joins the held piece; previous_match is false before the first event. */
static bool joins_held(const Splitter *splitter, bool is_match)
{
    if (!splitter->has_held)
        return false;
    switch (splitter->step->behavior) {
    case SPLIT_MERGED_WITH_PREVIOUS:
        return is_match && !splitter->held_is_match;
    case SPLIT_MERGED_WITH_NEXT:
        return !is_match && splitter->held_is_match;
    case SPLIT_CONTIGUOUS:
        return is_match == splitter->held_is_match;
    case SPLIT_REMOVED:
    case SPLIT_ISOLATED:
        break;
    }
    return false;
}

static bool add_event(Splitter *splitter, size_t start, size_t end, bool is_match)
{
    is_match ^= splitter->step->invert;
    if (splitter->step->behavior == SPLIT_REMOVED && is_match)
        return true;
    bool joins = joins_held(splitter, is_match);
    if (!joins && splitter->has_held && !emit(splitter, splitter->held.start, splitter->held.end))
        return false;
    if (!joins)
        splitter->held.start = start;
    splitter->held.end = end;
    splitter->has_held = true;
    splitter->held_is_match = is_match;
    return true;
}

static bool split_piece(EncodeContext *context, size_t index, Slice text, bool at_start)
{
    const Tokenizer *tokenizer = context->tokenizer;
    Splitter splitter = {.context = context,
                         .index = index,
                         .step = &tokenizer->pre_tokenizer.steps[index],
                         .text = text,
                         .at_start = at_start};
    PatternWalk walk = {0};
    size_t done = 0;
    for (;;) {
        PatternMatch match;
        bool found;
        if (!pattern_next(&splitter.step->pattern, &tokenizer->unicode, &context->patterns, text,
                          &walk, &match, &found, context->err))
            return false;
        if (!found)
            break;
        if (match.start != done && !add_event(&splitter, done, match.start, false))
            return false;
        if (!add_event(&splitter, match.start, match.end, true))
            return false;
        done = match.end;
    }
    if (done != text.len && !add_event(&splitter, done, text.len, false))
        return false;
    return !splitter.has_held || emit(&splitter, splitter.held.start, splitter.held.end);
}

/* The common case: a scanner whose matches are the pieces. */
static bool scan_piece(EncodeContext *context, size_t index, Slice text, bool at_start)
{
    const Tokenizer *tokenizer = context->tokenizer;
    ScannerKind kind = tokenizer->pre_tokenizer.steps[index].pattern.scanner;
    bool last = index + 1 == tokenizer->pre_tokenizer.count;
    for (size_t at = 0, end; at < text.len; at = end) {
        end = scanner_next(kind, &tokenizer->unicode, text, at);
        Slice word = {text.ptr + at, end - at};
        if (!(last ? bpe_encode_word(&tokenizer->bpe, &context->bpe, word, context->out,
                                     context->err)
                   : run_from(context, index + 1, word, at_start && at == 0)))
            return false;
    }
    return true;
}

static void replace_spaces(Slice text, Slice replacement, Buffer *out)
{
    size_t done = 0;
    for (size_t at = 0; (at = slice_find(text, SLICE(" "), done)) != SIZE_MAX; done = at + 1) {
        buffer_append(out, text.ptr + done, at - done);
        buffer_append_slice(out, replacement);
    }
    buffer_append(out, text.ptr + done, text.len - done);
}

/* Writes the changed piece to the step's buffer. */
static void change_text(const PreTokenizerStep *step, Slice text, bool at_start, Buffer *out)
{
    Slice replacement = {step->replacement, step->replacement_len};
    if (step->kind == PRE_PREFIX_SPACE) {
        buffer_append_byte(out, ' ');
        buffer_append_slice(out, text);
    } else if (step->kind == PRE_METASPACE) {
        bool wanted = step->scheme == PREPEND_ALWAYS || (step->scheme == PREPEND_FIRST && at_start);
        if (wanted && text.ptr[0] != ' ' && !slice_starts_with(text, replacement))
            buffer_append_slice(out, replacement);
        replace_spaces(text, replacement, out);
    } else {
        for (size_t i = 0; i < text.len; i++) {
            char bytes[UTF8_MAX];
            buffer_append(out, bytes,
                          utf8_encode(byte_level_character((unsigned char)text.ptr[i]), bytes));
        }
    }
}

static bool run_from(EncodeContext *context, size_t index, Slice piece, bool at_start)
{
    const Tokenizer *tokenizer = context->tokenizer;
    if (index == tokenizer->pre_tokenizer.count)
        return bpe_encode_word(&tokenizer->bpe, &context->bpe, piece, context->out, context->err);
    const PreTokenizerStep *step = &tokenizer->pre_tokenizer.steps[index];
    if (step->kind == PRE_SPLIT) {
        bool plain = step->pattern.kind == PATTERN_SCANNER && step->behavior == SPLIT_ISOLATED;
        return plain ? scan_piece(context, index, piece, at_start)
                     : split_piece(context, index, piece, at_start);
    }
    if (step->kind == PRE_PREFIX_SPACE && piece.ptr[0] == ' ')
        return run_from(context, index + 1, piece, at_start);
    Buffer *out = &context->steps[index];
    buffer_clear(out);
    change_text(step, piece, at_start, out);
    if (!buffer_check(out, "pre-tokenised text", context->err))
        return false;
    return run_from(context, index + 1, buffer_view(out), at_start);
}

bool pre_tokenizer_run(EncodeContext *context, Slice piece, bool at_start)
{
    return run_from(context, 0, piece, at_start);
}
