/* What the program and the MLX engine's shared object agree on.
 *
 * The MLX engine is a shared object of its own, so that the program starts, and is small, where
 * there is no MLX. It is found by name beside the program, in ../lib/mlx-serve, or where the build
 * installs it, and it exports one function. Program and object pass each other structs by layout:
 * both must come from one build, which `build` makes sure of. */
#ifndef ENGINE_MLX_PLUGIN_H
#define ENGINE_MLX_PLUGIN_H

#include "engine.h"

#define MLX_PLUGIN_FILE "mlx-serve-mlx.so"
#define MLX_PLUGIN_SYMBOL "engine_plugin_entry"

/* Changes whenever a struct of engine.h, model.h or weights.h does. */
#define MLX_PLUGIN_BUILD                                                                           \
    (sizeof(Model) ^ sizeof(LayerWeights) << 12 ^ sizeof(EngineOps) << 24 ^                        \
     sizeof(EngineDescription) << 32 ^ sizeof(EngineOptions) << 40)

typedef struct MlxPlugin {
    const char *version; /* MLX_SERVE_VERSION */
    uint64_t build;      /* MLX_PLUGIN_BUILD */
    /* Is there a GPU that MLX can use? Its name, or why there is none, goes to text. */
    bool (*has_gpu)(char *text, size_t size);
    bool (*open)(const Model *model, const EngineOptions *options, Engine **out, Error *err);
} MlxPlugin;

typedef const MlxPlugin *(*MlxPluginEntry)(void);

/* loader.c. The plugin, loaded once and never unloaded (MLX keeps threads); NULL with the reason
 * when it is not there or not of this build. Inference thread or main, not both at once. */
const MlxPlugin *mlx_plugin_load(Error *err) WARN_UNUSED;

#endif
