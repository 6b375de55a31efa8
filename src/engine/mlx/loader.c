/* Finds and loads the MLX engine's shared object. */
#include "plugin.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#if defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

/* The folder of the running program, without the last slash; false where that is unknown. */
static bool program_folder(char *out, size_t size)
{
#if defined(__APPLE__)
    uint32_t room = (uint32_t)size;
    if (_NSGetExecutablePath(out, &room) != 0)
        return false;
#else
    ssize_t length = readlink("/proc/self/exe", out, size - 1);
    if (length <= 0)
        return false;
    out[length] = '\0';
#endif
    char *slash = strrchr(out, '/');
    if (!slash)
        return false;
    *slash = '\0';
    return true;
}

static void *open_object(Error *err)
{
    static const char *const places[] = {"", "/../lib/mlx-serve"};
    char folder[PATH_BYTES_MAX], path[PATH_BYTES_MAX + 64];
    error_set(err, ERROR_UNSUPPORTED, "built without the mlx engine");
    for (size_t i = 0; program_folder(folder, sizeof folder) && i < ARRAY_COUNT(places); i++) {
        snprintf(path, sizeof path, "%s%s/%s", folder, places[i], MLX_PLUGIN_FILE);
        if (!file_exists(path))
            continue;
        void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (object)
            return object;
        error_set(err, ERROR_UNSUPPORTED, "the mlx engine cannot be loaded: %s", dlerror());
    }
    return NULL;
}

const MlxPlugin *mlx_plugin_load(Error *err)
{
    static const MlxPlugin *loaded; /* written once, before threads use the engine */
    if (loaded)
        return loaded;
    void *object = open_object(err);
    if (!object)
        return NULL;
    MlxPluginEntry entry = NULL;
    void *symbol = dlsym(object, MLX_PLUGIN_SYMBOL);
    if (symbol)
        memcpy(&entry, &symbol, sizeof entry);
    const MlxPlugin *plugin = entry ? entry() : NULL;
    if (!plugin || strcmp(plugin->version, MLX_SERVE_VERSION) != 0 ||
        plugin->build != MLX_PLUGIN_BUILD) {
        error_set(err, ERROR_UNSUPPORTED, "%s is of another build than this program",
                  MLX_PLUGIN_FILE);
        dlclose(object);
        return NULL;
    }
    loaded = plugin;
    return loaded;
}
