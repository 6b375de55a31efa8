#!/usr/bin/env python3
"""Writes formats.safetensors: a small matrix in every storage format of MLX, and products with it.

    python3 tests/data/weights/make_formats.py      (needs mlx[cpu] 0.32.4 and numpy)

mlx quantises and saves; NAME.expected [tokens, rows] is x W^T in float64 on what mx.dequantize makes of the stored
tensors in float32, NAME.magnitude the same of absolute values, the unit of rounding errors.
"""
import pathlib

import mlx.core as mx
import numpy as np

ROWS, COLS, TOKENS = 10, 256, 3
DTYPES = {"f16": mx.float16, "bf16": mx.bfloat16, "f32": mx.float32}


def main():
    mx.set_default_device(mx.cpu)
    rng = np.random.default_rng(11)
    x = rng.standard_normal((TOKENS, COLS)).astype(np.float32)
    tensors = {"x": mx.array(x)}

    def draw():
        return mx.array((rng.standard_normal((ROWS, COLS)) + 0.3).astype(np.float32))

    def add(name, parts, dense):
        tensors.update({"%s.%s" % (name, field): value for field, value in parts.items()})
        dense, wide = np.array(dense).astype(np.float64), x.astype(np.float64)
        tensors[name + ".expected"] = mx.array((wide @ dense.T).astype(np.float32))
        tensors[name + ".magnitude"] = mx.array((np.abs(wide) @ np.abs(dense).T).astype(np.float32))

    for bits in (2, 3, 4, 5, 6, 8):
        for group_size in (32, 64, 128):
            for dtype_name, dtype in DTYPES.items():
                codes, scales, biases = mx.quantize(draw().astype(dtype), group_size, bits)
                dense = mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), group_size, bits)
                add("affine-%d-%d-%s" % (bits, group_size, dtype_name),
                    {"weight": codes, "scales": scales, "biases": biases}, dense)
    for mode, bits, group_size in (("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)):
        codes, scales = mx.quantize(draw(), group_size, bits, mode=mode)
        dense = mx.dequantize(codes, scales, None, group_size, bits, mode=mode, dtype=mx.float32)
        add("%s-%d-%d-u8" % (mode, bits, group_size), {"weight": codes, "scales": scales}, dense)
    for dtype_name, dtype in DTYPES.items():
        values = draw().astype(dtype)
        add("none-0-0-%s" % dtype_name, {"weight": values}, values.astype(mx.float32))
    path = pathlib.Path(__file__).parent / "formats.safetensors"
    mx.save_safetensors(str(path), tensors)
    print(path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
