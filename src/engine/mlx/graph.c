#include "graph.h"

#include <stdio.h>

/* ---- Failures ---- */

/* The first message since it was last cleared: what follows a failure only repeats it. */
static _Thread_local char first_message[ERROR_MESSAGE_MAX];

static void remember_message(const char *message, void *data)
{
    (void)data;
    if (first_message[0] == '\0')
        snprintf(first_message, sizeof first_message, "%s", message);
}

void graph_install_error_handler(void)
{
    mlx_set_error_handler(remember_message, NULL, NULL);
}

static bool fail_with_message(const char *what, Error *err)
{
    error_set(err, ERROR_INTERNAL, "%s: MLX: %s", what,
              first_message[0] ? first_message : "out of memory");
    first_message[0] = '\0';
    return false;
}

bool graph_status(int status, const char *what, Error *err)
{
    return status == 0 || fail_with_message(what, err);
}

bool graph_check(const Graph *g, const char *what, Error *err)
{
    return !g->failed || fail_with_message(what, err);
}

/* ---- Handles ---- */

void graph_init(Graph *g, mlx_stream stream)
{
    *g = (Graph){.stream = stream};
}

void graph_release(Graph *g)
{
    for (size_t i = 0; i < g->n_held; i++)
        mlx_array_free(g->held[i]);
    g->n_held = 0;
    g->failed = false;
}

void graph_free(Graph *g)
{
    graph_release(g);
    memory_free(g->held);
    g->held = NULL;
    g->capacity = 0;
}

mlx_array graph_take_result(Graph *g, int status, mlx_array result)
{
    void *list = g->held;
    if (status != 0)
        g->failed = true;
    if (!memory_grow_array(&list, g->n_held, &g->capacity, sizeof *g->held)) {
        mlx_array_free(result);
        g->failed = true;
        return mlx_array_new();
    }
    g->held = list;
    g->held[g->n_held++] = result;
    return result;
}

/* Evaluates call, which fills r, unless the graph has failed before. */
#define GRAPH_DO(g, call)                                                                          \
    mlx_array r = mlx_array_new();                                                                 \
    return graph_take_result(g, (g)->failed ? 0 : (call), r)

mlx_array graph_adopt(Graph *g, mlx_array owned)
{
    return graph_take_result(g, owned.ctx ? 0 : 1, owned);
}

mlx_array graph_keep(Graph *g, mlx_array a)
{
    mlx_array own = mlx_array_new();
    if (!g->failed && mlx_array_set(&own, a) != 0)
        g->failed = true;
    return own;
}

/* ---- Making ---- */

mlx_array graph_data(Graph *g, const void *data, mlx_dtype type, const int *shape, size_t dims)
{
    if (g->failed)
        return mlx_array_new();
    return graph_adopt(g, mlx_array_new_data(data, shape, (int)dims, type));
}

mlx_array graph_zeros(Graph *g, const int *shape, size_t dims, mlx_dtype type)
{
    GRAPH_DO(g, mlx_zeros(&r, shape, dims, type, g->stream));
}

mlx_array graph_range(Graph *g, size_t first, size_t end)
{
    GRAPH_DO(g, mlx_arange(&r, (double)first, (double)end, 1.0, MLX_INT32, g->stream));
}

mlx_array graph_scalar(Graph *g, float value, mlx_dtype type)
{
    if (g->failed)
        return mlx_array_new();
    return graph_cast(g, graph_adopt(g, mlx_array_new_float32(value)), type);
}

/* ---- Shapes ---- */

mlx_array graph_cast(Graph *g, mlx_array a, mlx_dtype type)
{
    GRAPH_DO(g, mlx_astype(&r, a, type, g->stream));
}

mlx_array graph_reshape(Graph *g, mlx_array a, const int *shape, size_t dims)
{
    GRAPH_DO(g, mlx_reshape(&r, a, shape, dims, g->stream));
}

mlx_array graph_transpose(Graph *g, mlx_array a, const int *axes, size_t dims)
{
    GRAPH_DO(g, mlx_transpose_axes(&r, a, axes, dims, g->stream));
}

typedef struct Box {
    int first[GRAPH_DIMS_MAX], end[GRAPH_DIMS_MAX], step[GRAPH_DIMS_MAX];
    size_t dims;
} Box;

/* All of a, but rows [first, end) of axis. */
static Box make_box(mlx_array a, int axis, int first, int end)
{
    Box box = {.dims = mlx_array_ndim(a)};
    for (size_t i = 0; i < box.dims && i < GRAPH_DIMS_MAX; i++) {
        bool chosen = (int)i == axis;
        box.first[i] = chosen ? first : 0;
        box.end[i] = chosen ? end : mlx_array_dim(a, (int)i);
        box.step[i] = 1;
    }
    return box;
}

mlx_array graph_slice(Graph *g, mlx_array a, int axis, int first, int end)
{
    if (g->failed)
        return mlx_array_new();
    Box box = make_box(a, axis, first, end);
    GRAPH_DO(
        g, mlx_slice(&r, a, box.first, box.dims, box.end, box.dims, box.step, box.dims, g->stream));
}

mlx_array graph_slice_update(Graph *g, mlx_array a, mlx_array update, int axis, int first, int end)
{
    if (g->failed)
        return mlx_array_new();
    Box box = make_box(a, axis, first, end);
    GRAPH_DO(g, mlx_slice_update(&r, a, update, box.first, box.dims, box.end, box.dims, box.step,
                                 box.dims, g->stream));
}

mlx_array graph_concatenate(Graph *g, const mlx_array *parts, size_t count, int axis)
{
    if (g->failed)
        return mlx_array_new();
    mlx_array r = mlx_array_new();
    mlx_vector_array list = mlx_vector_array_new_data(parts, count);
    int status = mlx_concatenate_axis(&r, list, axis, g->stream);
    mlx_vector_array_free(list);
    return graph_take_result(g, status, r);
}

mlx_array graph_take(Graph *g, mlx_array a, mlx_array indices, int axis)
{
    GRAPH_DO(g, mlx_take_axis(&r, a, indices, axis, g->stream));
}

mlx_array graph_take_along(Graph *g, mlx_array a, mlx_array indices, int axis)
{
    GRAPH_DO(g, mlx_take_along_axis(&r, a, indices, axis, g->stream));
}

mlx_array graph_contiguous(Graph *g, mlx_array a)
{
    GRAPH_DO(g, mlx_contiguous(&r, a, false, g->stream));
}

mlx_array graph_repeat(Graph *g, mlx_array a, int times, int axis)
{
    GRAPH_DO(g, mlx_repeat_axis(&r, a, times, axis, g->stream));
}

/* ---- Arithmetic ---- */

#define GRAPH_UNARY(name, operation)                                                               \
    mlx_array graph_##name(Graph *g, mlx_array a)                                                  \
    {                                                                                              \
        GRAPH_DO(g, operation(&r, a, g->stream));                                                  \
    }
#define GRAPH_BINARY(name, operation)                                                              \
    mlx_array graph_##name(Graph *g, mlx_array a, mlx_array b)                                     \
    {                                                                                              \
        GRAPH_DO(g, operation(&r, a, b, g->stream));                                               \
    }

GRAPH_BINARY(add, mlx_add)
GRAPH_BINARY(multiply, mlx_multiply)
GRAPH_BINARY(divide, mlx_divide)
GRAPH_BINARY(matmul, mlx_matmul)
GRAPH_BINARY(less, mlx_less)
GRAPH_BINARY(greater_equal, mlx_greater_equal)
GRAPH_BINARY(and, mlx_logical_and)
GRAPH_BINARY(floor_divide, mlx_floor_divide)
GRAPH_UNARY(negative, mlx_negative)
GRAPH_UNARY(tanh, mlx_tanh)
GRAPH_UNARY(exp, mlx_exp)
GRAPH_UNARY(sigmoid, mlx_sigmoid)

mlx_array graph_where(Graph *g, mlx_array condition, mlx_array a, mlx_array b)
{
    GRAPH_DO(g, mlx_where(&r, condition, a, b, g->stream));
}

mlx_array graph_clip(Graph *g, mlx_array a, mlx_array least, mlx_array most)
{
    GRAPH_DO(g, mlx_clip(&r, a, least, most, g->stream));
}

mlx_array graph_softmax(Graph *g, mlx_array a, int axis)
{
    GRAPH_DO(g, mlx_softmax_axis(&r, a, axis, true, g->stream));
}

mlx_array graph_sum(Graph *g, mlx_array a, int axis, bool keep_axis)
{
    GRAPH_DO(g, mlx_sum_axis(&r, a, axis, keep_axis, g->stream));
}

mlx_array graph_max(Graph *g, mlx_array a, int axis)
{
    GRAPH_DO(g, mlx_max_axis(&r, a, axis, true, g->stream));
}

mlx_array graph_cumsum(Graph *g, mlx_array a, int axis)
{
    GRAPH_DO(g, mlx_cumsum_axis(&r, a, axis, false, true, (mlx_optional_dtype){0}, g->stream));
}

mlx_array graph_argmax(Graph *g, mlx_array a, int axis)
{
    GRAPH_DO(g, mlx_argmax_axis(&r, a, axis, false, g->stream));
}

mlx_array graph_argsort(Graph *g, mlx_array a, int axis)
{
    GRAPH_DO(g, mlx_argsort_axis(&r, a, axis, g->stream));
}

mlx_array graph_argpartition(Graph *g, mlx_array a, int kth, int axis)
{
    GRAPH_DO(g, mlx_argpartition_axis(&r, a, kth, axis, g->stream));
}

mlx_array graph_rms_norm(Graph *g, mlx_array x, mlx_array weight, float eps)
{
    GRAPH_DO(g, mlx_fast_rms_norm(&r, x, weight, eps, g->stream));
}
