/* Private to cli: what `info` found out, between collecting (info.c) and printing (info_print.c).
 */
#ifndef CLI_INFO_H
#define CLI_INFO_H

#include "loaded_model.h"

enum {
    INFO_LAYOUTS_MAX = 16, /* distinct layouts of one kind of module; more are counted together */
    INFO_KINDS_MAX = 16,
};

/* One way in which modules of a kind are stored. */
typedef struct InfoLayout {
    QuantMode mode;
    uint32_t bits, group_size; /* 0 when dense */
    DType dtype;               /* of the scales, or of the dense values */
    size_t count;              /* modules stored so */
} InfoLayout;

typedef struct InfoKind {
    const char *name; /* as in the tensors' names: "q_proj" */
    InfoLayout layouts[INFO_LAYOUTS_MAX];
    size_t n_layouts;
    size_t bytes;
} InfoKind;

typedef struct InfoReport {
    const LoadedModel *loaded;
    InfoKind kinds[INFO_KINDS_MAX];
    size_t n_kinds;
    size_t ctx, parallel;
    size_t sliding_layers;
    uint32_t sliding_window; /* the largest; 0: none */
    unsigned kv_bits;
    size_t kv_bytes_per_token; /* of all layers */
    size_t kv_growing_bytes;   /* of the layers that see everything: beyond the window */
    EngineBackend backend;     /* that would run it */
    char backend_reason[ENGINE_REASON_MAX];
    size_t kv_bytes; /* parallel sequences of ctx tokens, as the engine reserves */
} InfoReport;

void info_print_text(const InfoReport *report);
bool info_print_json(const InfoReport *report, Error *err) WARN_UNUSED;

#endif
