/* What compare_operations asks of both engines: one operation of a layer, on given inputs. */
#ifndef OPERATIONS_H
#define OPERATIONS_H

#include "base.h"
#include "model.h"

enum { N_TOKENS = 40, ROTATION_OFFSET = 1000 };

typedef enum OperationKind {
    OPERATION_EMBEDDING,  /* ids [N_TOKENS] -> [N_TOKENS, hidden] */
    OPERATION_NORM,       /* x [N_TOKENS, hidden] by the first layer's input norm */
    OPERATION_PRODUCT,    /* x [n_tokens, cols] -> [n_tokens, rows] */
    OPERATION_ROTATION,   /* x [N_TOKENS, heads, head_dim], positions from ROTATION_OFFSET, table
                             `layer` */
    OPERATION_ATTENTION,  /* x, y, z: q, k, v [N_TOKENS, heads, head_dim] from position 0 */
    OPERATION_ACTIVATION, /* act(x) * y, [count] */
    OPERATION_EXPERTS     /* x [N_TOKENS, hidden] */
} OperationKind;

typedef enum OperationMatrix { MATRIX_Q, MATRIX_V, MATRIX_DOWN, MATRIX_HEAD } OperationMatrix;

typedef struct Operation {
    OperationKind kind;
    const char *name;
    size_t layer;
    const int32_t *ids;
    const float *x, *y, *z;
    OperationMatrix matrix;
    size_t n_tokens, cols, rows; /* of a product */
    const float *bias;           /* of a product, or NULL */
    double *expected;            /* [count] */
    size_t count;
} Operation;

void *cpu_side_open(const Model *model, bool is_f32);
void cpu_side_run(void *side, const Operation *operation, float *out);
void cpu_side_close(void *side);

void *mlx_side_open(const Model *model, bool is_f32);
void mlx_side_run(void *side, const Operation *operation, float *out);
void mlx_side_close(void *side);

/* These end the program. */
void require(bool ok, const Error *err);
void *allocate(size_t count, size_t size);

#endif
