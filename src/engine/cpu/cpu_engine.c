/* The CPU engine behind the seam: opening, sequences, and the cutting of calls into passes.
 *
 * A forward call is checked whole before anything changes; after that nothing can fail, since all
 * memory is there already. Rows then fill passes of at most max_batch_tokens tokens in order, so
 * that a long row may span several passes and a pass may hold many short rows.
 *
 * A held pass writes keys and values layer by layer beyond the lengths of its sequences, which grow
 * at its end. Until then nothing else knows of it, so that a sequence can leave it at any time. */
#include "cpu_engine.h"

#include <stdio.h>
#include <string.h>

static CpuEngine *as_cpu(Engine *engine)
{
    return (CpuEngine *)(void *)engine;
}

static void cpu_close(Engine *engine)
{
    CpuEngine *cpu = as_cpu(engine);
    cpu_pass_free(&cpu->held);
    cpu_pass_free(&cpu->whole);
    cpu_scratch_free(&cpu->scratch);
    cpu_weights_free(cpu);
    cpu_pool_free(cpu->pool);
    kv_pool_reset(&cpu->kv);
    memory_free(cpu);
}

static void cpu_describe(const Engine *engine, EngineDescription *out)
{
    const CpuEngine *cpu = (const CpuEngine *)(const void *)engine;
    const ModelConfig *config = &cpu->model->config;
    *out = (EngineDescription){
        .backend = "cpu",
        .weight_bytes = cpu->weight_bytes,
        .scratch_bytes = cpu->scratch.bytes + cpu->whole.bytes + cpu->held.bytes,
        .kv_bytes_per_token = kv_bytes_per_token(config, cpu->kv.type),
        .kv_bytes_max = cpu->kv.limit_bytes,
        .kv_slides = cpu->kv.largest_window > 0,
        .max_sequence_tokens = kv_pool_fitting_tokens(&cpu->kv, config->max_position_embeddings),
        .max_batch_tokens = cpu->max_batch_tokens,
        .vocab_size = config->vocab_size,
        .max_context = config->max_position_embeddings,
        .threads = cpu->threads};
    snprintf(out->device, sizeof out->device, "%s, %zu thread%s",
             instruction_set_name(cpu->instruction_set), cpu->threads,
             cpu->threads == 1 ? "" : "s");
}

/* ---- The held pass ---- */

/* Rows [first + count, end) of a buffer of the pass take the place of those from first on. */
static void close_gap(void *rows, size_t first, size_t count, size_t end, size_t row_bytes)
{
    uint8_t *to = (uint8_t *)rows + first * row_bytes;
    memmove(to, to + count * row_bytes, (end - first - count) * row_bytes);
}

static void remove_slice(CpuPass *pass, const ModelConfig *c, size_t index)
{
    size_t first = pass->slices[index].first_token, count = pass->slices[index].n_tokens;
    size_t n_tokens = pass->n_tokens, n_wanted = 0;
    close_gap(pass->x, first, count, n_tokens, c->hidden_size * sizeof *pass->x);
    for (size_t i = 0; i < MODEL_ROPE_TABLES; i++) {
        size_t bytes = c->rope[i].rotary_dims / 2 * sizeof(float);
        close_gap(pass->cosines[i], first, count, n_tokens, bytes);
        close_gap(pass->sines[i], first, count, n_tokens, bytes);
    }
    close_gap(pass->tokens, first, count, n_tokens, sizeof *pass->tokens);
    close_gap(pass->token_slice, first, count, n_tokens, sizeof *pass->token_slice);
    close_gap(pass->slices, index, 1, pass->n_slices, sizeof *pass->slices);
    close_gap(pass->slice_sequence, index, 1, pass->n_slices, sizeof *pass->slice_sequence);
    pass->n_tokens -= count;
    pass->n_slices--;
    for (size_t i = index; i < pass->n_slices; i++)
        pass->slices[i].first_token -= count;
    for (size_t t = first; t < pass->n_tokens; t++)
        pass->token_slice[t]--;
    for (size_t i = 0; i < pass->n_wanted; i++) {
        uint32_t token = pass->wanted[i];
        if (token < first || token >= first + count)
            pass->wanted[n_wanted++] = token < first ? token : token - (uint32_t)count;
    }
    pass->n_wanted = n_wanted;
}

/* The sequence is about to change, or to go. */
static void leave_held_pass(CpuEngine *cpu, EngineSequence *sequence)
{
    size_t index = 0;
    if (!sequence->is_held)
        return;
    while (cpu->held.slice_sequence[index] != sequence)
        index++;
    remove_slice(&cpu->held, &cpu->model->config, index);
    kv_cache_cancel(&sequence->cache);
    sequence->is_held = false;
}

/* ---- Sequences ---- */

static bool cpu_sequence_create(Engine *engine, size_t max_tokens, EngineSequence **out, Error *err)
{
    CpuEngine *cpu = as_cpu(engine);
    *out = NULL;
    EngineSequence *sequence = memory_allocate_zeroed(1, sizeof *sequence);
    if (!sequence)
        return error_no_memory(err, "sequence");
    if (!kv_cache_create(&cpu->kv, max_tokens, &sequence->cache, err)) {
        memory_free(sequence);
        return false;
    }
    *out = sequence;
    return true;
}

static void cpu_sequence_free(Engine *engine, EngineSequence *sequence)
{
    if (!sequence)
        return;
    leave_held_pass(as_cpu(engine), sequence);
    kv_cache_free(&sequence->cache);
    memory_free(sequence);
}

static bool check_prefix(const KvCache *cache, size_t length, Error *err)
{
    if (length > cache->length)
        return error_set(err, ERROR_INVALID, "length %zu of a sequence of %zu tokens", length,
                         cache->length);
    if (!kv_cache_holds_prefix(cache, length))
        return error_set(err, ERROR_UNSUPPORTED,
                         "the sliding window has dropped keys that a sequence of %zu tokens needs",
                         length);
    return true;
}

static bool cpu_sequence_truncate(Engine *engine, EngineSequence *sequence, size_t length,
                                  Error *err)
{
    if (!check_prefix(&sequence->cache, length, err))
        return false;
    leave_held_pass(as_cpu(engine), sequence);
    return kv_cache_truncate(&sequence->cache, length, err);
}

static bool cpu_sequence_fork(Engine *engine, EngineSequence *from, size_t length,
                              size_t max_tokens, EngineSequence **out, Error *err)
{
    (void)engine;
    *out = NULL;
    if (!check_prefix(&from->cache, length, err))
        return false;
    if (length > max_tokens)
        return error_set(err, ERROR_LIMIT, "a sequence of %zu tokens cannot take %zu", max_tokens,
                         length);
    EngineSequence *fork = memory_allocate_zeroed(1, sizeof *fork);
    if (!fork)
        return error_no_memory(err, "sequence");
    if (!kv_cache_fork(&from->cache, length, max_tokens, &fork->cache, err)) {
        memory_free(fork);
        return false;
    }
    *out = fork;
    return true;
}

static void cpu_sequence_seal(Engine *engine, EngineSequence *sequence)
{
    leave_held_pass(as_cpu(engine), sequence);
    kv_cache_seal(&sequence->cache);
}

static size_t cpu_kv_bytes_used(const Engine *engine)
{
    return ((const CpuEngine *)(const void *)engine)->kv.used_bytes;
}

static bool cpu_sequence_holds_prefix(const EngineSequence *sequence, size_t length)
{
    return kv_cache_holds_prefix(&sequence->cache, length);
}

static size_t cpu_sequence_length(const EngineSequence *sequence)
{
    return sequence->cache.length;
}

/* ---- Forward ---- */

static bool check_row(CpuEngine *cpu, const EngineRow *row, Error *err)
{
    if (!row->sequence || row->n_tokens == 0 || !row->tokens)
        return error_set(err, ERROR_INVALID, "a row without a sequence or tokens");
    if (row->sequence->last_call == cpu->call)
        return error_set(err, ERROR_INVALID, "a sequence has more than one row in a call");
    row->sequence->last_call = cpu->call;
    if (row->sequence->is_held)
        return error_set(err, ERROR_INVALID, "a sequence has a row in the pass that is held");
    const KvCache *cache = &row->sequence->cache;
    if (row->n_tokens > cache->max_tokens - cache->length)
        return error_set(err, ERROR_LIMIT,
                         "a sequence of %zu tokens with room for %zu cannot take %zu",
                         cache->length, cache->max_tokens, row->n_tokens);
    uint32_t vocab = cpu->model->config.vocab_size;
    for (size_t i = 0; i < row->n_tokens; i++) {
        if (row->tokens[i] < 0 || (uint32_t)row->tokens[i] >= vocab)
            return error_set(err, ERROR_INVALID, "token id %d, expected 0 to %u", row->tokens[i],
                             vocab - 1);
    }
    return true;
}

static void clear_pass(CpuPass *pass)
{
    pass->n_tokens = pass->n_slices = pass->n_wanted = pass->layer = 0;
}

/* Puts tokens [first, first + count) of the row into the pass. */
static void add_slice(CpuPass *pass, const EngineRow *row, size_t first, size_t count)
{
    size_t slice = pass->n_slices++;
    kv_cache_prepare(&row->sequence->cache, count);
    pass->slices[slice] = (AttentionSlice){.cache = &row->sequence->cache,
                                           .first_token = pass->n_tokens,
                                           .n_tokens = count,
                                           .first_position = row->sequence->cache.length};
    pass->slice_sequence[slice] = row->sequence;
    for (size_t i = 0; i < count; i++) {
        size_t token = pass->n_tokens++;
        pass->tokens[token] = row->tokens[first + i];
        pass->token_slice[token] = (uint32_t)slice;
        bool is_last = first + i + 1 == row->n_tokens;
        if (row->logits == ENGINE_LOGITS_ALL || (row->logits == ENGINE_LOGITS_LAST && is_last))
            pass->wanted[pass->n_wanted++] = (uint32_t)token;
    }
}

/* All layers have the keys and values of the pass's tokens. Empties it. */
static void end_pass(CpuPass *pass)
{
    for (size_t i = 0; i < pass->n_slices; i++)
        kv_cache_advance(&pass->slice_sequence[i]->cache, pass->slices[i].n_tokens);
    clear_pass(pass);
}

/* Runs what the pass holds and empties it. Returns where the next pass's logits go. */
static float *run_pass(CpuEngine *cpu, float *logits)
{
    size_t n_wanted = cpu->pass->n_wanted;
    if (cpu->pass->n_tokens == 0)
        return logits;
    cpu_forward_pass(cpu, logits);
    end_pass(cpu->pass);
    return n_wanted > 0 ? logits + n_wanted * cpu->model->config.vocab_size : logits;
}

static bool check_rows(CpuEngine *cpu, const EngineRow *rows, size_t n_rows, Error *err)
{
    cpu->call++;
    for (size_t i = 0; i < n_rows; i++) {
        if (!check_row(cpu, &rows[i], err))
            return false;
    }
    return true;
}

static bool check_logits_room(bool wanted, const float *logits, Error *err)
{
    if (!wanted || logits)
        return true;
    return error_set(err, ERROR_INVALID, "logits are wanted, but there is no room for them");
}

static bool cpu_forward(Engine *engine, const EngineRow *rows, size_t n_rows, float *logits,
                        Error *err)
{
    CpuEngine *cpu = as_cpu(engine);
    bool wanted = false;
    for (size_t i = 0; i < n_rows; i++)
        wanted = wanted || rows[i].logits != ENGINE_LOGITS_NONE;
    if (!check_rows(cpu, rows, n_rows, err) || !check_logits_room(wanted, logits, err))
        return false;
    cpu->pass = &cpu->whole;
    clear_pass(cpu->pass);
    for (size_t i = 0; i < n_rows; i++) {
        for (size_t done = 0; done < rows[i].n_tokens;) {
            size_t room = cpu->max_batch_tokens - cpu->pass->n_tokens;
            size_t left = rows[i].n_tokens - done;
            size_t count = left < room ? left : room;
            add_slice(cpu->pass, &rows[i], done, count);
            done += count;
            if (cpu->pass->n_tokens == cpu->max_batch_tokens)
                logits = run_pass(cpu, logits);
        }
    }
    run_pass(cpu, logits);
    return true;
}

static bool cpu_sequence_touch(Engine *engine, EngineSequence *sequence)
{
    (void)engine;
    return kv_cache_touch_ahead(&sequence->cache);
}

static bool cpu_forward_begin(Engine *engine, const EngineRow *rows, size_t n_rows, Error *err)
{
    CpuEngine *cpu = as_cpu(engine);
    size_t room = cpu->max_batch_tokens;
    if (cpu->held.n_tokens > 0)
        return error_set(err, ERROR_INVALID, "a pass is held already");
    if (!check_rows(cpu, rows, n_rows, err))
        return false;
    for (size_t i = 0; i < n_rows; i++) {
        if (rows[i].n_tokens > room)
            return error_set(err, ERROR_LIMIT, "a held pass has at most %zu tokens",
                             cpu->max_batch_tokens);
        room -= rows[i].n_tokens;
    }
    clear_pass(&cpu->held);
    for (size_t i = 0; i < n_rows; i++) {
        add_slice(&cpu->held, &rows[i], 0, rows[i].n_tokens);
        rows[i].sequence->is_held = true;
    }
    return true;
}

static bool cpu_forward_continue(Engine *engine, float *logits, size_t *left, Error *err)
{
    CpuEngine *cpu = as_cpu(engine);
    CpuPass *held = &cpu->held;
    *left = 0;
    if (held->n_tokens == 0)
        return error_set(err, ERROR_INVALID, "no pass is held");
    if (!check_logits_room(held->n_wanted > 0, logits, err)) {
        while (held->n_slices > 0)
            leave_held_pass(cpu, held->slice_sequence[0]);
        return false;
    }
    *left = cpu_parts_left(cpu, held);
    for (size_t i = 0; i < held->n_slices; i++) {
        if (kv_cache_touch(&held->slice_sequence[i]->cache))
            return true;
    }
    cpu->pass = held;
    cpu_forward_part(cpu, logits);
    *left = cpu_parts_left(cpu, held);
    if (*left > 0)
        return true;
    for (size_t i = 0; i < held->n_slices; i++)
        held->slice_sequence[i]->is_held = false;
    end_pass(held);
    return true;
}

/* ---- Opening ---- */

static const EngineOps CPU_OPS = {
    .close = cpu_close,
    .describe = cpu_describe,
    .sequence_create = cpu_sequence_create,
    .sequence_free = cpu_sequence_free,
    .sequence_truncate = cpu_sequence_truncate,
    .sequence_fork = cpu_sequence_fork,
    .sequence_seal = cpu_sequence_seal,
    .kv_bytes_used = cpu_kv_bytes_used,
    .sequence_holds_prefix = cpu_sequence_holds_prefix,
    .sequence_length = cpu_sequence_length,
    .forward = cpu_forward,
    .sequence_touch = cpu_sequence_touch,
    .forward_begin = cpu_forward_begin,
    .forward_continue = cpu_forward_continue,
};

KvType cpu_kv_type(EnginePrecision precision, unsigned kv_bits, const CpuOps *ops)
{
    if (kv_bits == 8)
        return KV_INT8;
    return kv_bits == 0 && precision == ENGINE_PRECISION_F32 ? KV_F32 : ops->kv16;
}

static bool read_options(CpuEngine *cpu, const EngineOptions *options, Error *err)
{
    cpu->threads = options->threads ? options->threads : process_usable_cores();
    cpu->max_batch_tokens =
        options->max_batch_tokens ? options->max_batch_tokens : CPU_BATCH_TOKENS_DEFAULT;
    static const ActivationPrecision precisions[] = {
        [ENGINE_PRECISION_INT12] = ACTIVATIONS_INT12,
        [ENGINE_PRECISION_INT16] = ACTIVATIONS_INT16,
        [ENGINE_PRECISION_INT8] = ACTIVATIONS_INT8,
        [ENGINE_PRECISION_F32] = ACTIVATIONS_F32,
    };
    cpu->precision = precisions[options->precision];
    if (options->kv_bits != 0 && options->kv_bits != 8 && options->kv_bits != 16)
        return error_set(err, ERROR_INVALID, "keys and values of %u bits, expected 8 or 16",
                         options->kv_bits);
    if (cpu->threads > CPU_THREADS_MAX)
        return error_set(err, ERROR_LIMIT, "%zu threads, expected at most %d", cpu->threads,
                         CPU_THREADS_MAX);
    if (cpu->max_batch_tokens > CPU_BATCH_TOKENS_MAX)
        return error_set(err, ERROR_LIMIT, "max_batch_tokens %zu, expected at most %d",
                         cpu->max_batch_tokens, CPU_BATCH_TOKENS_MAX);
    return true;
}

bool cpu_engine_open(const Model *model, const EngineOptions *options, InstructionSet best_set,
                     Engine **out, Error *err)
{
    *out = NULL;
    CpuEngine *cpu = memory_allocate_zeroed(1, sizeof *cpu);
    if (!cpu)
        return error_no_memory(err, "engine");
    cpu->base.ops = &CPU_OPS;
    cpu->model = model;
    cpu->instruction_set = cpu_kernels_select(best_set);
    cpu->ops = cpu_ops(cpu->instruction_set);
    cpu->pass = &cpu->whole;
    if (!read_options(cpu, options, err) || !cpu_pool_create(cpu->threads, &cpu->pool, err) ||
        !kv_pool_init(&cpu->kv, &model->config,
                      cpu_kv_type(options->precision, options->kv_bits, cpu->ops),
                      cpu->max_batch_tokens, options->kv_bytes_max, err) ||
        !cpu_scratch_create(cpu, err) || !cpu_pass_create(cpu, &cpu->whole, err) ||
        !cpu_pass_create(cpu, &cpu->held, err) || !cpu_weights_load(cpu, err)) {
        cpu_close(&cpu->base);
        return false;
    }
    *out = &cpu->base;
    return true;
}
