/* Any bytes as one safetensors file: refused with a message, or every view lies inside the file,
 * has the bytes its shape says, is found by its name, and binds and reads as a matrix if its form
 * allows. */
#include <stdlib.h>
#include <string.h>

#include "weights.h"

static void require(bool fact)
{
    if (!fact)
        abort(); /* libFuzzer's way to report */
}

static void read_matrix(const TensorSet *set, const TensorView *view)
{
    enum { MODULE_MAX = 64, COLS_MAX = 4096 };
    static float row[COLS_MAX];
    char module[MODULE_MAX];
    size_t suffix = strlen(".weight");
    if (!slice_ends_with(view->name, SLICE(".weight")) || view->n_dims < 2 ||
        view->name.len - suffix >= MODULE_MAX)
        return;
    memcpy(module, view->name.ptr, view->name.len - suffix);
    module[view->name.len - suffix] = '\0';
    size_t experts = view->n_dims == 3 ? (size_t)view->shape[0] : 1;
    size_t rows = (size_t)view->shape[view->n_dims - 2];
    static const size_t cols[] = {16, 32, 64, 96, 128, 256};
    for (size_t i = 0; i < ARRAY_COUNT(cols); i++) {
        Error err = {0};
        WeightMatrix matrix;
        if (!weight_matrix_bind(set, module, experts, rows, cols[i], NULL, &matrix, &err)) {
            require(err.code != ERROR_NONE && err.message[0] != '\0');
            continue;
        }
        weight_matrix_read_row(&matrix, experts - 1, rows - 1, row);
        require(weight_matrix_bytes(&matrix) <= tensor_set_bytes(set));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Error err = {0};
    TensorSet *set;
    if (!tensor_set_create((Slice){(const char *)data, size}, "fuzz", &set, &err)) {
        require(set == NULL && err.code != ERROR_NONE && err.message[0] != '\0');
        return 0;
    }
    size_t total = 0;
    for (size_t i = 0; i < tensor_set_count(set); i++) {
        const TensorView *view = tensor_set_at(set, i);
        require(view->data >= data && view->data + view->n_bytes <= data + size);
        require(tensor_set_find(set, view->name) == view);
        char shape[SHAPE_TEXT_MAX];
        require(strlen(tensor_shape_text(view, shape)) < SHAPE_TEXT_MAX);
        total += view->n_bytes;
        if (dtype_size(view->dtype) > 0) {
            size_t elements;
            require(size_product(view->shape, view->n_dims, &elements));
            require(elements * dtype_size(view->dtype) == view->n_bytes);
        }
        read_matrix(set, view);
    }
    require(total == tensor_set_bytes(set));
    tensor_set_close(set);
    return 0;
}
