/* Private to engine/mlx: MLX's lazy graphs, written down in C without a check after each line.
 *
 * A Graph collects the handles that its operations make and the first failure among them. After a
 * failure further operations do nothing and return empty handles; the caller asks once, at the end.
 * Handles are borrowed from the graph until graph_release, but graph_keep's, which are the
 * caller's. Release before evaluating: MLX reuses an operand's memory, a KV cache's above all, only
 * while nobody else holds it.
 *
 * MLX reports failures through one handler for the whole process, which ends the process unless it
 * is replaced: graph_install_error_handler does that; the text waits in the failing thread until
 * graph_check fetches it. Threads: one Graph on one thread, the one that made its stream. */
#ifndef ENGINE_MLX_GRAPH_H
#define ENGINE_MLX_GRAPH_H

#include "base.h"

#include <mlx/c/mlx.h>

enum { GRAPH_DIMS_MAX = 5 };

typedef struct Graph {
    mlx_stream stream;
    mlx_array *held;
    size_t n_held, capacity;
    bool failed;
} Graph;

void graph_install_error_handler(void);
/* False, with MLX's own words after "what: ", when status is not 0. */
bool graph_status(int status, const char *what, Error *err) WARN_UNUSED;

void graph_init(Graph *g, mlx_stream stream);
void graph_release(Graph *g); /* frees the handles, forgets a failure, keeps the list's memory */
void graph_free(Graph *g);
/* False with the first failure since the last release. */
bool graph_check(const Graph *g, const char *what, Error *err) WARN_UNUSED;
/* A handle of the caller's own to a; mlx_array_free it. Empty when the graph has failed. */
mlx_array graph_keep(Graph *g, mlx_array a);
/* Puts a handle of the caller's own under the graph's care. */
mlx_array graph_adopt(Graph *g, mlx_array owned);
/* The same for the result of a call into MLX, with the status that it returned. */
mlx_array graph_take_result(Graph *g, int status, mlx_array owned);

/* shape: dims integers. Data are copied. */
mlx_array graph_data(Graph *g, const void *data, mlx_dtype type, const int *shape, size_t dims);
mlx_array graph_zeros(Graph *g, const int *shape, size_t dims, mlx_dtype type);
mlx_array graph_range(Graph *g, size_t first, size_t end); /* int32 */
mlx_array graph_scalar(Graph *g, float value, mlx_dtype type);

mlx_array graph_cast(Graph *g, mlx_array a, mlx_dtype type);
mlx_array graph_reshape(Graph *g, mlx_array a, const int *shape, size_t dims);
mlx_array graph_transpose(Graph *g, mlx_array a, const int *axes, size_t dims);
/* Rows [first, end) of axis. */
mlx_array graph_slice(Graph *g, mlx_array a, int axis, int first, int end);
mlx_array graph_slice_update(Graph *g, mlx_array a, mlx_array update, int axis, int first, int end);
mlx_array graph_concatenate(Graph *g, const mlx_array *parts, size_t count, int axis);
mlx_array graph_take(Graph *g, mlx_array a, mlx_array indices, int axis);
mlx_array graph_take_along(Graph *g, mlx_array a, mlx_array indices, int axis);
mlx_array graph_contiguous(Graph *g, mlx_array a);
mlx_array graph_repeat(Graph *g, mlx_array a, int times, int axis); /* each row, times times */

mlx_array graph_add(Graph *g, mlx_array a, mlx_array b);
mlx_array graph_multiply(Graph *g, mlx_array a, mlx_array b);
mlx_array graph_divide(Graph *g, mlx_array a, mlx_array b);
mlx_array graph_matmul(Graph *g, mlx_array a, mlx_array b);
mlx_array graph_less(Graph *g, mlx_array a, mlx_array b);
mlx_array graph_greater_equal(Graph *g, mlx_array a, mlx_array b);
mlx_array graph_and(Graph *g, mlx_array a, mlx_array b);
mlx_array graph_where(Graph *g, mlx_array condition, mlx_array a, mlx_array b);
mlx_array graph_floor_divide(Graph *g, mlx_array a, mlx_array b);
mlx_array graph_negative(Graph *g, mlx_array a);
mlx_array graph_tanh(Graph *g, mlx_array a);
mlx_array graph_exp(Graph *g, mlx_array a);
mlx_array graph_sigmoid(Graph *g, mlx_array a);
mlx_array graph_clip(Graph *g, mlx_array a, mlx_array least, mlx_array most);
mlx_array graph_softmax(Graph *g, mlx_array a, int axis); /* sums in float32 */
mlx_array graph_sum(Graph *g, mlx_array a, int axis, bool keep_axis);
mlx_array graph_max(Graph *g, mlx_array a, int axis); /* keeps the axis */
mlx_array graph_cumsum(Graph *g, mlx_array a, int axis);
mlx_array graph_argmax(Graph *g, mlx_array a, int axis);
mlx_array graph_argsort(Graph *g, mlx_array a, int axis);
mlx_array graph_argpartition(Graph *g, mlx_array a, int kth, int axis);
mlx_array graph_rms_norm(Graph *g, mlx_array x, mlx_array weight, float eps);

#endif
