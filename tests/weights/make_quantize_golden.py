#!/usr/bin/env python3
"""Golden data for affine_quantize_group: what mlx.core.quantize makes of float32 groups.

Needs mlx. Usage: make_quantize_golden.py > ../data/weights/affine-quantize.json
"""
import json
import mlx.core as mx
import numpy as np

mx.set_default_device(mx.cpu)
rng = np.random.default_rng(7)


def cases():
    for bits in (2, 3, 4, 5, 6, 8):
        for group in (32, 64, 128):
            for shift in (0.0, 0.3, -5.0):
                yield bits, group, (rng.standard_normal(group) + shift).astype(np.float32)
        yield bits, 32, np.zeros(32, np.float32)
        yield bits, 32, np.full(32, 0.75, np.float32)
        yield bits, 32, np.abs(rng.standard_normal(32)).astype(np.float32)


out = []
for bits, group, values in cases():
    w, s, b = mx.quantize(mx.array(values.reshape(1, -1)), group_size=group, bits=bits)
    out.append({"bits": bits, "values": [float(v) for v in values], "words": [int(x) for x in np.array(w)[0]],
                "scale": float(np.array(s)[0, 0]), "bias": float(np.array(b)[0, 0])})
print("[" + ",\n".join(json.dumps(c) for c in out) + "]")
