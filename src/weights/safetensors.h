/* One safetensors image: its header checked and turned into tensor views. Private to the room. */
#ifndef WEIGHTS_SAFETENSORS_H
#define WEIGHTS_SAFETENSORS_H

#include "weights.h"

/* Views found so far, over all files of a set; `items` grows through memory_grow_array. */
typedef struct TensorList {
    TensorView *items;
    size_t count, capacity;
} TensorList;

/* Appends every tensor of image to list, in header order; names go to arena, data stays in image.
 * file is stored in each view. Refuses what the reference implementation refuses: a header that is
 * not JSON or does not fit, unknown dtypes, sizes that do not follow from shape and dtype,
 * overlaps, holes, bytes after the last tensor. Errors name path and tensor. */
bool safetensors_parse(Slice image, const char *path, uint32_t file, Arena *arena, TensorList *list,
                       Error *err) WARN_UNUSED;

/* Little-endian integers at any alignment. */
uint64_t safetensors_read_u64(const uint8_t *from);

#endif
