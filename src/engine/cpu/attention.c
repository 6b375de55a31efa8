/* Attention of a batch: cut into tiles, and these into parts; the segments of a part, merged. */
#include "attention_codes.h"

#include <assert.h>
#include <math.h>

enum {
    PARTS_PER_THREAD = 6,  /* enough that the last ones end together */
    TILE_QUERIES_MIN = 48, /* tiles are not cut smaller than this for the threads' sake */
    PARTIAL_FLOATS_MAX = 4 << 20,
    ROWS_AHEAD = 3, /* rows of q and out are asked for so long before their turn */
};

typedef struct Tile {
    uint32_t slice;
    uint32_t first_token; /* within the slice */
    uint32_t n_tokens;
    uint32_t first_part; /* of a split run: index of its first (head, segments) part */
    uint32_t first_slot; /* of its first (head, segment) state */
} Tile;

/* Running state of a tile's queries, as in AttentionTile. */
typedef struct State {
    float *maxima, *sums, *output;
} State;

typedef struct WorkerScratch {
    float *queries, *key_block, *value_block;
    size_t *positions;
    int16_t *query_codes; /* where keys are codes */
    AttentionQueryScale *query_scales;
    const void *foreseen; /* keys that the part before expected this one to begin with */
    State segment, total;
} WorkerScratch;

struct AttentionScratch {
    AttentionShape shape;
    size_t padded_dim, group; /* group: query heads of a KV head */
    size_t tile_tokens;       /* most tokens of a tile */
    size_t tile_queries;      /* tile_tokens * group */
    size_t threads;
    WorkerScratch *workers; /* [threads] */
    float *worker_memory;
    size_t *position_memory;
    int16_t *code_memory; /* NULL unless keys are codes */
    AttentionQueryScale *scale_memory;
    float *partials; /* states of split segments */
    size_t partial_floats;
    size_t slot_queries;  /* queries of a state in partials, in the current split */
    size_t part_segments; /* of a part of the current split, at most */
    Tile *tiles;
    size_t n_tiles;
    const AttentionSlice *slices;
    size_t bytes;
};

/* ---- Scratch ---- */

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

static float *take_floats(float **at, size_t count)
{
    float *taken = *at;
    *at += round_up(count, 16);
    return taken;
}

static State take_state(float **at, size_t n_queries, size_t padded_dim)
{
    State state;
    state.maxima = take_floats(at, n_queries);
    state.sums = take_floats(at, n_queries);
    state.output = take_floats(at, n_queries * padded_dim);
    return state;
}

/* All factors are bounded by the model's limits: at most 2^20 values of all heads of a token. */
static size_t worker_floats(const AttentionScratch *s)
{
    size_t rows = round_up(s->tile_queries * s->padded_dim, 16);
    size_t vector = round_up(s->tile_queries, 16);
    size_t blocks = s->shape.kv_type == KV_F16 ? 2 * KV_BLOCK * s->padded_dim : 0;
    return 3 * rows + 4 * vector + blocks;
}

static void lay_out_workers(AttentionScratch *s)
{
    float *at = s->worker_memory;
    for (size_t i = 0; i < s->threads; i++) {
        WorkerScratch *w = &s->workers[i];
        w->queries = take_floats(&at, s->tile_queries * s->padded_dim);
        if (s->shape.kv_type == KV_F16) {
            w->key_block = take_floats(&at, KV_BLOCK * s->padded_dim);
            w->value_block = take_floats(&at, KV_BLOCK * s->padded_dim);
        }
        w->segment = take_state(&at, s->tile_queries, s->padded_dim);
        w->total = take_state(&at, s->tile_queries, s->padded_dim);
        w->positions = s->position_memory + i * s->tile_queries;
        if (s->code_memory) {
            size_t first = i * s->tile_queries;
            w->query_codes =
                s->code_memory + first * attention_query_codes(s->shape.kv_type, s->padded_dim);
            w->query_scales =
                s->scale_memory + first * attention_query_scales(s->shape.kv_type, s->padded_dim);
        }
    }
}

/* Room for queries as codes. */
static bool create_codes(AttentionScratch *s)
{
    const KvType type = s->shape.kv_type;
    if (!kv_is_codes(type))
        return true;
    size_t queries = s->threads * s->tile_queries;
    size_t codes = attention_query_codes(type, s->padded_dim) * sizeof *s->code_memory;
    size_t scales = attention_query_scales(type, s->padded_dim) * sizeof *s->scale_memory;
    s->code_memory = memory_allocate_array(queries, codes);
    s->scale_memory = memory_allocate_array(queries, scales);
    s->bytes += queries * (codes + scales);
    return s->code_memory && s->scale_memory;
}

bool attention_scratch_create(AttentionShape shape, size_t max_tokens, size_t max_context,
                              size_t threads, AttentionScratch **out, Error *err)
{
    *out = NULL;
    AttentionScratch *s = memory_allocate_zeroed(1, sizeof *s);
    if (!s)
        return error_no_memory(err, "attention scratch");
    s->shape = shape;
    s->padded_dim = round_up(shape.head_dim, KV_VALUE_UNIT);
    s->group = shape.n_heads / shape.n_kv_heads;
    s->tile_tokens = s->group < ATTENTION_TILE_QUERIES ? ATTENTION_TILE_QUERIES / s->group : 1;
    s->tile_queries = s->tile_tokens * s->group;
    s->threads = threads;
    /* Enough for one token per thread at the longest context, within reason. */
    size_t segments = max_context / ATTENTION_SEGMENT + 2;
    size_t per_segment = shape.n_heads * (s->padded_dim + 2);
    s->partial_floats =
        segments < PARTIAL_FLOATS_MAX / per_segment ? segments * per_segment : PARTIAL_FLOATS_MAX;
    if (threads == 1)
        s->partial_floats = 0;
    size_t worker_bytes = worker_floats(s) * sizeof(float);
    size_t floats, positions = s->tile_queries * threads;
    bool fits = size_multiply(threads, worker_bytes, &floats);
    s->workers = memory_allocate_zeroed(threads, sizeof *s->workers);
    s->worker_memory = fits ? memory_allocate_aligned(64, floats) : NULL;
    s->position_memory = memory_allocate_array(positions, sizeof *s->position_memory);
    s->partials = memory_allocate_array(s->partial_floats, sizeof *s->partials);
    s->tiles = memory_allocate_array(max_tokens, sizeof *s->tiles);
    if (!s->workers || !s->worker_memory || !s->position_memory || !s->partials || !s->tiles ||
        !create_codes(s)) {
        attention_scratch_free(s);
        return error_no_memory(err, "attention scratch");
    }
    s->bytes += floats + positions * sizeof *s->position_memory +
                s->partial_floats * sizeof *s->partials + max_tokens * sizeof *s->tiles;
    lay_out_workers(s);
    *out = s;
    return true;
}

void attention_scratch_free(AttentionScratch *s)
{
    if (!s)
        return;
    memory_free(s->tiles);
    memory_free(s->partials);
    memory_free(s->scale_memory);
    memory_free(s->code_memory);
    memory_free(s->position_memory);
    memory_free(s->worker_memory);
    memory_free(s->workers);
    memory_free(s);
}

size_t attention_scratch_bytes(const AttentionScratch *scratch)
{
    return scratch->bytes;
}

/* ---- Running ---- */

/* Tokens of a tile: as many as there is room for, unless threads would be left without one. */
static size_t tokens_per_tile(const AttentionScratch *s, size_t n_tokens)
{
    size_t wanted = PARTS_PER_THREAD * s->threads, tokens = s->tile_tokens;
    while (tokens > 1 && tokens * s->group > TILE_QUERIES_MIN &&
           n_tokens * s->shape.n_kv_heads / tokens < wanted)
        tokens = (tokens + 1) / 2;
    return tokens;
}

void attention_plan(AttentionScratch *s, const AttentionSlice *slices, size_t n_slices)
{
    size_t n_tokens = 0;
    for (size_t i = 0; i < n_slices; i++)
        n_tokens += slices[i].n_tokens;
    size_t tile_tokens = tokens_per_tile(s, n_tokens);
    s->slices = slices;
    s->n_tiles = 0;
    for (size_t i = 0; i < n_slices; i++) {
        for (size_t t = 0; t < slices[i].n_tokens; t += tile_tokens) {
            size_t left = slices[i].n_tokens - t;
            size_t count = left < tile_tokens ? left : tile_tokens;
            s->tiles[s->n_tiles++] = (Tile){
                .slice = (uint32_t)i, .first_token = (uint32_t)t, .n_tokens = (uint32_t)count};
        }
    }
}

typedef struct Run {
    AttentionScratch *scratch;
    const CpuOps *ops;
    size_t layer;
    const float *q;
    size_t q_stride;
    float *out;
    size_t out_stride;
    const AttentionSource *source;
} Run;

/* The row of q and out where a tile begins. */
static size_t token_of(const Run *run, const Tile *tile)
{
    return run->scratch->slices[tile->slice].first_token + tile->first_token;
}

/* Positions [first, end) that the tile's queries see in this layer. */
static void visible_keys(const Run *run, const Tile *tile, size_t *first, size_t *end)
{
    const AttentionSlice *slice = &run->scratch->slices[tile->slice];
    uint32_t window = slice->cache->pool->layers[run->layer].sliding_window;
    size_t position = slice->first_position + tile->first_token;
    *first = window && position >= window ? position - window + 1 : 0;
    *end = position + tile->n_tokens;
}

/* Asks for what the tile's token t has in q or out: pieces of rows, which lie far apart. */
static void ask_for_row(const Run *run, const Tile *tile, size_t kv_head, size_t t,
                        const float *rows, size_t stride)
{
    const AttentionScratch *s = run->scratch;
    if (t >= tile->n_tokens)
        return;
    size_t width = s->group * s->shape.head_dim;
    const float *row = rows + (token_of(run, tile) + t) * stride + kv_head * width;
    attention_ask_for((const uint8_t *)row, width * sizeof *row);
}

/* Queries are ordered by token, then head: positions ascend. */
static void gather_queries(const Run *run, const Tile *tile, size_t kv_head, WorkerScratch *w)
{
    const AttentionScratch *s = run->scratch;
    const AttentionSlice *slice = &s->slices[tile->slice];
    size_t head_dim = s->shape.head_dim, i = 0;
    for (size_t t = 0; t < tile->n_tokens; t++) {
        size_t token = tile->first_token + t;
        const float *row = run->q + (slice->first_token + token) * run->q_stride;
        ask_for_row(run, tile, kv_head, t + ROWS_AHEAD, run->q, run->q_stride);
        for (size_t g = 0; g < s->group; g++, i++) {
            const float *q = row + (kv_head * s->group + g) * head_dim;
            float *to = w->queries + i * s->padded_dim;
            run->ops->scale(q, head_dim, s->shape.scale, to);
            for (size_t d = head_dim; d < s->padded_dim; d++)
                to[d] = 0.0f;
            w->positions[i] = slice->first_position + token;
        }
    }
    if (w->query_codes)
        attention_quantize_queries(run->ops, s->shape.kv_type, w->queries, i, s->padded_dim,
                                   w->query_codes, w->query_scales);
}

/* Keys that a thread will meet: the first n of a head's block; NULL: none that is known of. */
typedef struct KeyRun {
    const void *keys;
    size_t n;
} KeyRun;

static const void *keys_at(const Run *run, const Tile *tile, size_t kv_head, size_t position)
{
    const KvCache *cache = run->scratch->slices[tile->slice].cache;
    return kv_cache_keys(cache, &cache->pool->layers[run->layer], kv_head, position);
}

/* Of the block that `position` lies in, up to `end`. */
static KeyRun key_run(const Run *run, const Tile *tile, size_t kv_head, size_t position, size_t end)
{
    size_t block = position / KV_BLOCK * KV_BLOCK;
    size_t n = end - block < KV_BLOCK ? end - block : KV_BLOCK;
    return (KeyRun){keys_at(run, tile, kv_head, position), n};
}

/* Few queries wait for memory, and a part's first keys nobody has asked for. */
static void prefetch_keys(const Run *run, const Tile *tile, const void *keys)
{
    attention_ask_for(keys, run->scratch->slices[tile->slice].cache->pool->head_bytes);
}

/* Keys [first, end) of one segment; next: the keys that the same thread meets then, or NULL. */
static void run_segment(const Run *run, const Tile *tile, size_t kv_head, WorkerScratch *w,
                        size_t first, size_t end, KeyRun next, State result)
{
    const AttentionScratch *s = run->scratch;
    const KvCache *cache = s->slices[tile->slice].cache;
    const KvLayer *layer = &cache->pool->layers[run->layer];
    AttentionTile argument = {
        .n_queries = tile->n_tokens * s->group,
        .head_dim = s->shape.head_dim,
        .padded_dim = s->padded_dim,
        .queries = w->queries,
        .positions = w->positions,
        .sliding_window = layer->sliding_window,
        .soft_cap = s->shape.soft_cap,
        .is_half = cache->pool->type == KV_F16,
        .query_codes = w->query_codes,
        .query_scales = w->query_scales,
        .first_key = first,
        .end_key = end,
        .next_keys = next.keys,
        .n_next = next.n,
        .key_block = w->key_block,
        .value_block = w->value_block,
        .maxima = result.maxima,
        .sums = result.sums,
        .output = result.output,
    };
    for (size_t at = first / KV_BLOCK * KV_BLOCK; at < end; at += KV_BLOCK) {
        argument.keys[attention_block_index(at)] = kv_cache_keys(cache, layer, kv_head, at);
        argument.values[attention_block_index(at)] = kv_cache_values(cache, layer, kv_head, at);
    }
    if (kv_is_codes(cache->pool->type))
        attention_segment_codes(&argument, cache->pool->type, run->ops);
    else
        run->ops->attention_segment(&argument);
}

/* total += part. A part that saw nothing leaves the total's bits alone. */
static void merge_state(State total, State part, size_t n_queries, size_t padded_dim)
{
    for (size_t i = 0; i < n_queries; i++) {
        float *to = total.output + i * padded_dim;
        const float *from = part.output + i * padded_dim;
        if (isinf(part.maxima[i]) && part.maxima[i] < 0.0f)
            continue;
        float max = fmaxf(total.maxima[i], part.maxima[i]);
        float old = expf(total.maxima[i] - max), fresh = expf(part.maxima[i] - max);
        for (size_t d = 0; d < padded_dim; d++)
            to[d] = to[d] * old + from[d] * fresh;
        total.sums[i] = total.sums[i] * old + part.sums[i] * fresh;
        total.maxima[i] = max;
    }
}

static void write_output(const Run *run, const Tile *tile, size_t kv_head, State total)
{
    const AttentionScratch *s = run->scratch;
    const AttentionSlice *slice = &s->slices[tile->slice];
    size_t head_dim = s->shape.head_dim, i = 0;
    for (size_t t = 0; t < tile->n_tokens; t++) {
        float *row = run->out + (slice->first_token + tile->first_token + t) * run->out_stride;
        ask_for_row(run, tile, kv_head, t + ROWS_AHEAD, run->out, run->out_stride);
        for (size_t g = 0; g < s->group; g++, i++) {
            float *to = row + (kv_head * s->group + g) * head_dim;
            run->ops->scale(total.output + i * s->padded_dim, head_dim, 1.0f / total.sums[i], to);
        }
    }
}

/* A whole tile of one KV head: all its segments in order, merged with the first. after: what the
 * thread meets then. */
static void run_head(const Run *run, const Tile *tile, size_t kv_head, KeyRun after,
                     WorkerScratch *w)
{
    const AttentionScratch *s = run->scratch;
    size_t n_queries = tile->n_tokens * s->group, first, end;
    gather_queries(run, tile, kv_head, w);
    visible_keys(run, tile, &first, &end);
    for (size_t at = first, stop; at < end; at = stop) {
        stop = (at / ATTENTION_SEGMENT + 1) * ATTENTION_SEGMENT;
        KeyRun next = stop < end ? key_run(run, tile, kv_head, stop, end) : after;
        State result = at == first ? w->total : w->segment;
        run_segment(run, tile, kv_head, w, at, stop < end ? stop : end, next, result);
        if (at > first)
            merge_state(w->total, result, n_queries, s->padded_dim);
    }
    write_output(run, tile, kv_head, w->total);
}

/* KV heads [first, end) of a tile. */
typedef struct HeadsPart {
    const Tile *tile;
    size_t first, end;
} HeadsPart;

/* Long tiles (the last) go first. */
static HeadsPart find_heads(const AttentionScratch *s, size_t part, size_t n_parts)
{
    size_t parts_per_tile = n_parts / s->n_tiles, n_kv_heads = s->shape.n_kv_heads;
    size_t reversed = n_parts - 1 - part, in_tile = reversed % parts_per_tile;
    return (HeadsPart){.tile = &s->tiles[reversed / parts_per_tile],
                       .first = in_tile * n_kv_heads / parts_per_tile,
                       .end = (in_tile + 1) * n_kv_heads / parts_per_tile};
}

/* The keys that a tile's head begins with. */
static KeyRun first_keys(const Run *run, const Tile *tile, size_t kv_head)
{
    size_t first, end;
    visible_keys(run, tile, &first, &end);
    return key_run(run, tile, kv_head, first, end);
}

/* One KV head of a tile. */
static void head_part(void *context, size_t part, size_t n_parts)
{
    const Run *run = context;
    HeadsPart head = find_heads(run->scratch, part, n_parts);
    WorkerScratch *w = &run->scratch->workers[cpu_pool_worker_index()];
    run_head(run, head.tile, head.first, (KeyRun){NULL, 0}, w);
}

static void expect_heads(const Run *run, const HeadsPart *heads)
{
    if (run->source)
        run->source->expect(run->source->context, token_of(run, heads->tile), heads->first,
                            heads->end);
}

static void prepare_heads(const Run *run, const HeadsPart *heads, WorkerScratch *w)
{
    const void *keys = first_keys(run, heads->tile, heads->first).keys;
    if (keys != w->foreseen) {
        prefetch_keys(run, heads->tile, keys);
        expect_heads(run, heads);
    }
    if (run->source)
        run->source->prepare(run->source->context, token_of(run, heads->tile), heads->first,
                             heads->end);
}

/* Some KV heads of a single token. These wait for memory: what the part behind needs, the one that
 * this thread most likely takes next, is asked for while this part is worked on. */
static void tokens_part(void *context, size_t part, size_t n_parts)
{
    const Run *run = context;
    HeadsPart heads = find_heads(run->scratch, part, n_parts);
    WorkerScratch *w = &run->scratch->workers[cpu_pool_worker_index()];
    KeyRun after = {NULL, 0};
    prepare_heads(run, &heads, w);
    if (part + 1 < n_parts) {
        HeadsPart next = find_heads(run->scratch, part + 1, n_parts);
        after = first_keys(run, next.tile, next.first);
        expect_heads(run, &next);
    }
    w->foreseen = after.keys;
    for (size_t head = heads.first; head < heads.end; head++) {
        KeyRun next = head + 1 < heads.end ? first_keys(run, heads.tile, head + 1) : after;
        run_head(run, heads.tile, head, next, w);
    }
}

static State partial_state(const AttentionScratch *s, size_t slot)
{
    float *at = s->partials + slot * s->slot_queries * (s->padded_dim + 2);
    return (State){at, at + s->slot_queries, at + 2 * s->slot_queries};
}

static size_t tile_segments(const Run *run, const Tile *tile)
{
    size_t first, end;
    visible_keys(run, tile, &first, &end);
    return (end - 1) / ATTENTION_SEGMENT - first / ATTENTION_SEGMENT + 1;
}

static size_t tile_parts(const AttentionScratch *s, size_t n_segments)
{
    return (n_segments + s->part_segments - 1) / s->part_segments;
}

/* Some segments of one KV head of a tile. */
static void segment_part(void *context, size_t part, size_t n_parts)
{
    const Run *run = context;
    const AttentionScratch *s = run->scratch;
    (void)n_parts;
    size_t i = s->n_tiles - 1;
    while (s->tiles[i].first_part > part)
        i--;
    const Tile *tile = &s->tiles[i];
    size_t n_segments = tile_segments(run, tile), n_runs = tile_parts(s, n_segments);
    size_t kv_head = (part - tile->first_part) / n_runs;
    size_t index = (part - tile->first_part) % n_runs * s->part_segments;
    WorkerScratch *w = &s->workers[cpu_pool_worker_index()];
    size_t first, end, base;
    visible_keys(run, tile, &first, &end);
    base = first / ATTENTION_SEGMENT;
    size_t stop = (base + index + s->part_segments) * ATTENTION_SEGMENT;
    size_t at = (base + index) * ATTENTION_SEGMENT;
    at = at > first ? at : first;
    stop = stop < end ? stop : end;
    prefetch_keys(run, tile, keys_at(run, tile, kv_head, at));
    gather_queries(run, tile, kv_head, w);
    for (size_t slot = tile->first_slot + kv_head * n_segments + index; at < stop; slot++) {
        size_t until = (at / ATTENTION_SEGMENT + 1) * ATTENTION_SEGMENT;
        until = until < stop ? until : stop;
        KeyRun next = {NULL, 0};
        if (until < stop)
            next = key_run(run, tile, kv_head, until, stop);
        run_segment(run, tile, kv_head, w, at, until, next, partial_state(s, slot));
        at = until;
    }
}

static void merge_segments(const Run *run)
{
    const AttentionScratch *s = run->scratch;
    for (size_t i = 0; i < s->n_tiles; i++) {
        const Tile *tile = &s->tiles[i];
        size_t n_segments = tile_segments(run, tile), slot = tile->first_slot;
        size_t n_queries = tile->n_tokens * s->group;
        for (size_t head = 0; head < s->shape.n_kv_heads; head++) {
            State total = partial_state(s, slot);
            for (size_t j = 1; j < n_segments; j++)
                merge_state(total, partial_state(s, slot + j), n_queries, s->padded_dim);
            write_output(run, tile, head, total);
            slot += n_segments;
        }
    }
}

/* Numbers the parts of a split run; 0 when splitting does not pay or does not fit. */
static size_t plan_split(const Run *run)
{
    AttentionScratch *s = run->scratch;
    size_t parts = 0, slots = 0, most_tokens = 0, wanted = PARTS_PER_THREAD * s->threads;
    if (s->threads == 1 || s->n_tiles * s->shape.n_kv_heads >= wanted)
        return 0;
    for (size_t i = 0; i < s->n_tiles; i++) {
        s->tiles[i].first_slot = (uint32_t)slots;
        slots += tile_segments(run, &s->tiles[i]) * s->shape.n_kv_heads;
        most_tokens = s->tiles[i].n_tokens > most_tokens ? s->tiles[i].n_tokens : most_tokens;
    }
    s->part_segments = slots > wanted ? slots / wanted : 1;
    for (size_t i = 0; i < s->n_tiles; i++) {
        s->tiles[i].first_part = (uint32_t)parts;
        parts += tile_parts(s, tile_segments(run, &s->tiles[i])) * s->shape.n_kv_heads;
    }
    s->slot_queries = most_tokens * s->group;
    size_t state = s->slot_queries * (s->padded_dim + 2);
    bool pays = parts > s->n_tiles * s->shape.n_kv_heads;
    return pays && slots <= s->partial_floats / state ? parts : 0;
}

static bool tiles_are_tokens(const AttentionScratch *s)
{
    for (size_t i = 0; i < s->n_tiles; i++) {
        if (s->tiles[i].n_tokens > 1)
            return false;
    }
    return true;
}

/* A KV head to a part, of which each thread takes the longest that is left. Single tokens, when
 * they are many, go in fewer parts, and each thread takes neighbours: it can ask for the keys that
 * it meets next. */
static void run_heads(Run *run, CpuPool *pool)
{
    const AttentionScratch *s = run->scratch;
    size_t wanted = PARTS_PER_THREAD * s->threads, parts = (wanted + s->n_tiles - 1) / s->n_tiles;
    if (!tiles_are_tokens(s)) {
        cpu_pool_run(pool, head_part, run, s->n_tiles * s->shape.n_kv_heads);
        return;
    }
    parts = parts < s->shape.n_kv_heads ? parts : s->shape.n_kv_heads;
    cpu_pool_run_shares(pool, tokens_part, run, s->n_tiles * parts);
}

bool attention_takes_source(AttentionScratch *s, size_t layer)
{
    Run run = {.scratch = s, .layer = layer};
    for (size_t i = 0; i < s->n_tiles; i++) {
        if (s->slices[s->tiles[i].slice].n_tokens > 1)
            return false;
    }
    return plan_split(&run) == 0;
}

void attention_run(AttentionScratch *s, const CpuOps *ops, size_t layer, const float *q,
                   size_t q_stride, float *out, size_t out_stride, const AttentionSource *source,
                   CpuPool *pool)
{
    assert(s->n_tiles > 0);
    Run run = {s, ops, layer, q, q_stride, out, out_stride, source};
    size_t split = plan_split(&run);
    assert(!source || (split == 0 && tiles_are_tokens(s)));
    if (split > 0) {
        cpu_pool_run(pool, segment_part, &run, split);
        merge_segments(&run);
        return;
    }
    run_heads(&run, pool);
}
