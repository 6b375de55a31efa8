/* A model directory's tensors: the files mapped, their views in one array sorted by name (look-up
 * is a binary search; a model binds each name once). Names live in the set's arena, data in the
 * mappings. */
#include "tensor_set.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INDEX_BYTES_MAX = 256 << 20 };

/* Names are copied once; a name is no longer than its header. */
static const size_t names_bytes_max = (size_t)1 << 30;

static int compare_names(const void *a, const void *b)
{
    return slice_compare(((const TensorView *)a)->name, ((const TensorView *)b)->name);
}

static int compare_files(const void *a, const void *b)
{
    return strcmp(((const TensorFile *)a)->name, ((const TensorFile *)b)->name);
}

static const char *file_name(const TensorSet *set, uint32_t file)
{
    return file < set->n_files ? set->files[file].name : "?";
}

TensorSet *tensor_set_allocate(Error *err)
{
    TensorSet *set = memory_allocate_zeroed(1, sizeof(*set));
    if (!set) {
        error_no_memory(err, "the tensor set");
        return NULL;
    }
    arena_init(&set->arena, names_bytes_max);
    return set;
}

void tensor_set_close(TensorSet *set)
{
    if (!set)
        return;
    for (size_t i = 0; i < set->n_files; i++)
        file_map_close(&set->files[i].map);
    for (size_t i = 0; i < RANDOM_PATTERNS; i++)
        file_pattern_close(&set->patterns[i]);
    memory_free(set->files);
    memory_free(set->tensors.items);
    arena_reset(&set->arena);
    memory_free(set);
}

static bool add_file(TensorSet *set, const char *name, Error *err)
{
    if (set->n_files == WEIGHTS_SHARDS_MAX)
        return error_set(err, ERROR_LIMIT, "more than %d safetensors files", WEIGHTS_SHARDS_MAX);
    char *copy = arena_copy_string(&set->arena, slice_of(name));
    if (!copy || !memory_grow_array((void **)&set->files, set->n_files, &set->files_capacity,
                                    sizeof(*set->files)))
        return error_no_memory(err, "the list of safetensors files");
    set->files[set->n_files++] = (TensorFile){.name = copy};
    return true;
}

/* Sorts by name, refuses duplicates, adds up the bytes. */
static bool set_finish(TensorSet *set, Error *err)
{
    TensorView *items = set->tensors.items;
    size_t count = set->tensors.count;
    if (count > 1)
        qsort(items, count, sizeof(*items), compare_names);
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && slice_equal(items[i].name, items[i - 1].name))
            return error_set(err, ERROR_INVALID, "%s: tensor %.*s: occurs twice (also in %s)",
                             file_name(set, items[i].file), SLICE_ARG(items[i].name),
                             file_name(set, items[i - 1].file));
        if (!size_add(set->n_bytes, items[i].n_bytes, &set->n_bytes))
            return error_set(err, ERROR_LIMIT, "the tensors' bytes do not fit 64 bits");
    }
    return true;
}

bool tensor_set_create(Slice image, const char *name, TensorSet **out, Error *err)
{
    *out = NULL;
    TensorSet *set = tensor_set_allocate(err);
    if (!set)
        return false;
    if (!add_file(set, name, err) ||
        !safetensors_parse(image, name, 0, &set->arena, &set->tensors, err) ||
        !set_finish(set, err)) {
        tensor_set_close(set);
        return false;
    }
    *out = set;
    return true;
}

static bool list_files(TensorSet *set, const char *directory, Error *err)
{
    DIR *dir = opendir(directory);
    if (!dir)
        return error_set(err, errno == ENOENT || errno == ENOTDIR ? ERROR_NOT_FOUND : ERROR_IO,
                         "%s: cannot open directory: %s", directory, strerror(errno));
    bool ok = true;
    const struct dirent *entry;
    while (ok && (entry = readdir(dir))) {
        Slice name = slice_of(entry->d_name);
        if (slice_starts_with(name, SLICE("model")) && slice_ends_with(name, SLICE(".safetensors")))
            ok = add_file(set, entry->d_name, err);
    }
    closedir(dir);
    if (!ok)
        return error_prefix(err, "%s", directory);
    if (set->n_files == 0)
        return error_set(err, ERROR_NOT_FOUND,
                         "%s: no model*.safetensors: a model directory holds config.json, "
                         "tokenizer.json and model.safetensors (or shards of it)",
                         directory);
    qsort(set->files, set->n_files, sizeof(*set->files), compare_files);
    return true;
}

static bool load_files(TensorSet *set, const char *directory, Error *err)
{
    char path[PATH_BYTES_MAX];
    for (size_t i = 0; i < set->n_files; i++) {
        TensorFile *file = &set->files[i];
        if (!path_join(path, sizeof(path), directory, file->name, err) ||
            !file_map_open(path, &file->map, err))
            return false;
        Slice image = {(const char *)file->map.data, file->map.size};
        if (!safetensors_parse(image, file->name, (uint32_t)i, &set->arena, &set->tensors, err))
            return false;
    }
    return set_finish(set, err);
}

/* One entry of the index: the file must be one that was loaded and hold the tensor. Comparing with
 * the loaded names means that no path out of the index is ever opened. */
static bool check_index_entry(const TensorSet *set, Slice tensor, Slice file, Error *err)
{
    const TensorView *view = tensor_set_find(set, tensor);
    if (view && slice_equal(file, slice_of(set->files[view->file].name)))
        return true;
    bool is_loaded = false;
    for (size_t i = 0; i < set->n_files; i++)
        is_loaded = is_loaded || slice_equal(file, slice_of(set->files[i].name));
    if (!is_loaded)
        return error_set(err, ERROR_NOT_FOUND,
                         "names file %.*s, which is not among the directory's model*.safetensors",
                         SLICE_ARG(file));
    return error_set(err, ERROR_NOT_FOUND, "names tensor %.*s in %.*s, which %s", SLICE_ARG(tensor),
                     SLICE_ARG(file), view ? "is in another file" : "does not hold it");
}

static bool check_weight_map(const TensorSet *set, JsonReader *reader, Buffer *scratch, Error *err)
{
    JsonToken token = json_reader_next(reader);
    if (token != JSON_TOKEN_OBJECT_BEGIN)
        return token != JSON_TOKEN_ERROR &&
               error_set(err, ERROR_INVALID, "weight_map is not an object");
    while ((token = json_reader_next(reader)) == JSON_TOKEN_KEY) {
        buffer_clear(scratch);
        char *name = buffer_extend(scratch, reader->raw.len);
        if (!buffer_check(scratch, "a tensor's name", err))
            return false;
        size_t name_len = json_reader_copy_string(reader, name);
        token = json_reader_next(reader);
        if (token != JSON_TOKEN_STRING)
            return token != JSON_TOKEN_ERROR &&
                   error_set(err, ERROR_INVALID, "weight_map holds something that is not a string");
        size_t file_at = scratch->len;
        buffer_extend(scratch, reader->raw.len);
        if (!buffer_check(scratch, "a file's name", err))
            return false;
        char *file = scratch->ptr + file_at;
        size_t file_len = json_reader_copy_string(reader, file);
        if (!check_index_entry(set, (Slice){scratch->ptr, name_len}, (Slice){file, file_len}, err))
            return false;
    }
    return token == JSON_TOKEN_OBJECT_END;
}

static bool check_index_text(const TensorSet *set, Slice text, Buffer *scratch, Error *err)
{
    JsonReader reader;
    json_reader_init(&reader, text, err);
    JsonToken token = json_reader_next(&reader);
    if (token != JSON_TOKEN_OBJECT_BEGIN)
        return token != JSON_TOKEN_ERROR && error_set(err, ERROR_INVALID, "not an object");
    while ((token = json_reader_next(&reader)) == JSON_TOKEN_KEY) {
        bool is_map = slice_equal(reader.raw, SLICE("weight_map"));
        if (!(is_map ? check_weight_map(set, &reader, scratch, err)
                     : json_reader_skip_value(&reader)))
            return false;
    }
    if (token != JSON_TOKEN_OBJECT_END)
        return false;
    return json_reader_next(&reader) == JSON_TOKEN_END;
}

static bool check_index(const TensorSet *set, const char *directory, Error *err)
{
    static const char index_name[] = "model.safetensors.index.json";
    char path[PATH_BYTES_MAX];
    if (!path_join(path, sizeof(path), directory, index_name, err))
        return false;
    if (!file_exists(path))
        return true;
    Error inner = {0};
    if (!err)
        err = &inner;
    Buffer text, scratch;
    buffer_init(&text, INDEX_BYTES_MAX);
    buffer_init(&scratch, INDEX_BYTES_MAX);
    bool ok = file_read(path, INDEX_BYTES_MAX, &text, err);
    if (ok && !check_index_text(set, buffer_view(&text), &scratch, err))
        ok = error_prefix(err, "%s", index_name);
    buffer_reset(&scratch);
    buffer_reset(&text);
    return ok;
}

bool tensor_set_open(const char *directory, TensorSet **out, Error *err)
{
    *out = NULL;
    TensorSet *set = tensor_set_allocate(err);
    if (!set)
        return false;
    if (!list_files(set, directory, err) || !load_files(set, directory, err) ||
        !check_index(set, directory, err)) {
        tensor_set_close(set);
        return false;
    }
    *out = set;
    return true;
}

const TensorView *tensor_set_find(const TensorSet *set, Slice name)
{
    size_t low = 0, high = set->tensors.count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = slice_compare(set->tensors.items[middle].name, name);
        if (order == 0)
            return &set->tensors.items[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

size_t tensor_set_count(const TensorSet *set)
{
    return set->tensors.count;
}

const TensorView *tensor_set_at(const TensorSet *set, size_t index)
{
    return index < set->tensors.count ? &set->tensors.items[index] : NULL;
}

size_t tensor_set_bytes(const TensorSet *set)
{
    return set->n_bytes;
}

void tensor_set_release(const TensorSet *set, const TensorView *tensor)
{
    const FileMap *map = &set->files[tensor->file].map;
    if (map->data && tensor->n_bytes)
        file_map_release(map, (size_t)(tensor->data - map->data), tensor->n_bytes);
}

const char *tensor_shape_text(const TensorView *tensor, char out[SHAPE_TEXT_MAX])
{
    /* Eight 64-bit numbers and their commas take at most 8 * 21 + 2 bytes. */
    size_t at = 0;
    out[at++] = '[';
    for (uint32_t i = 0; i < tensor->n_dims; i++)
        at += (size_t)snprintf(out + at, SHAPE_TEXT_MAX - at, "%s%lld", i ? ", " : "",
                               (long long)tensor->shape[i]);
    out[at++] = ']';
    out[at] = '\0';
    return out;
}
