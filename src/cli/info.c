/* info: what a model directory holds and what running it takes, before any of it is spent. The
 * engine is not opened. */
#include "info.h"

#include <string.h>

static InfoKind *find_kind(InfoReport *report, const char *name)
{
    for (size_t i = 0; i < report->n_kinds; i++) {
        if (strcmp(report->kinds[i].name, name) == 0)
            return &report->kinds[i];
    }
    InfoKind *kind = &report->kinds[report->n_kinds++];
    kind->name = name;
    return kind;
}

static void add_module(InfoReport *report, const char *name, const WeightMatrix *matrix)
{
    if (!matrix->weight)
        return;
    InfoKind *kind = find_kind(report, name);
    DType dtype = matrix->scales ? matrix->scales->dtype : matrix->weight->dtype;
    kind->bytes += weight_matrix_bytes(matrix);
    size_t i = 0;
    while (i < kind->n_layouts &&
           (kind->layouts[i].mode != matrix->mode || kind->layouts[i].bits != matrix->bits ||
            kind->layouts[i].group_size != matrix->group_size || kind->layouts[i].dtype != dtype))
        i++;
    if (i == INFO_LAYOUTS_MAX)
        i--;
    if (i == kind->n_layouts)
        kind->layouts[kind->n_layouts++] = (InfoLayout){.mode = matrix->mode,
                                                        .bits = matrix->bits,
                                                        .group_size = matrix->group_size,
                                                        .dtype = dtype};
    kind->layouts[i].count++;
}

static void collect_modules(InfoReport *report)
{
    const Model *model = report->loaded->model;
    const ModelWeights *weights = &model->weights;
    add_module(report, "embed_tokens", &weights->embedding);
    for (uint32_t i = 0; i < model->config.num_hidden_layers; i++) {
        const LayerWeights *layer = &weights->layers[i];
        add_module(report, "q_proj", &layer->q);
        add_module(report, "k_proj", &layer->k);
        add_module(report, "v_proj", &layer->v);
        add_module(report, "o_proj", &layer->o);
        add_module(report, "gate_proj", &layer->gate);
        add_module(report, "up_proj", &layer->up);
        add_module(report, "down_proj", &layer->down);
        add_module(report, "router", &layer->router);
        add_module(report, "expert gate_proj", &layer->expert_gate);
        add_module(report, "expert up_proj", &layer->expert_up);
        add_module(report, "expert down_proj", &layer->expert_down);
    }
    if (!model->config.tie_word_embeddings)
        add_module(report, "lm_head", &weights->head);
}

/* What the keys and values of one token take, by what the layers see. */
static void collect_kv(InfoReport *report)
{
    const ModelConfig *config = &report->loaded->model->config;
    size_t layer = engine_kv_layer_bytes(config, ENGINE_PRECISION_INT12, (unsigned)report->kv_bits);
    for (uint32_t i = 0; i < config->num_hidden_layers; i++) {
        uint32_t window = config->layers[i].sliding_window;
        report->sliding_layers += window > 0;
        report->kv_growing_bytes += window > 0 ? 0 : layer;
        report->kv_bytes_per_token += layer;
        if (window > report->sliding_window)
            report->sliding_window = window;
    }
}

static bool collect(const Arguments *arguments, InfoReport *report, Error *err)
{
    collect_modules(report);
    report->kv_bits = arguments->kv_bits == 8 ? 8 : 16;
    collect_kv(report);
    report->parallel = (size_t)arguments->parallel;
    report->backend = engine_choose_backend(arguments->backend, report->backend_reason,
                                            sizeof(report->backend_reason));
    size_t sequence;
    if (!loaded_model_context(report->loaded, arguments, &report->ctx, err) ||
        !engine_kv_bytes(&report->loaded->model->config, ENGINE_PRECISION_INT12, report->kv_bits,
                         report->ctx, &sequence, err))
        return false;
    if (!size_multiply(sequence, report->parallel, &report->kv_bytes))
        return error_set(err, ERROR_LIMIT, "KV cache of %zu sequences: size does not fit",
                         report->parallel);
    return true;
}

int command_info(const Arguments *arguments)
{
    Error err = {0};
    LoadedModel loaded;
    if (!loaded_model_open(arguments, LOAD_TEXT, &loaded, &err))
        return report_error(&err);
    InfoReport report = {.loaded = &loaded};
    bool ok = collect(arguments, &report, &err);
    if (ok && arguments->json)
        ok = info_print_json(&report, &err);
    else if (ok)
        info_print_text(&report);
    loaded_model_close(&loaded);
    return ok ? EXIT_DONE : report_error(&err);
}
