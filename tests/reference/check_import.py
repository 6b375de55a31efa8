#!/usr/bin/env python3
"""What `mlx-serve import` made of a GGUF file, tensor by tensor, against the gguf package's own dequantisation.

    python3 tests/reference/check_import.py FILE.gguf IMPORTED_DIR

Prints per block format the number of tensors, the worst relative error (rms) and the largest difference; exit status 1
when a format that maps exactly does not. Needs gguf, numpy and mlx[cpu]. Reads llama (whose q and k rows GGUF permutes)
and gemma3 files.
"""
import json
import pathlib
import sys

import gguf
import mlx.core as mx
import numpy as np

from compare_llama import NAMES

EXACT = {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}


def imported_values(tensors, name, columns):
    """Float32 values of a tensor of the directory, dequantised by mlx."""
    if name + ".scales" not in tensors:
        return np.array(tensors[name + ".weight"].astype(mx.float32))
    scales, biases = (tensors[name + field].astype(mx.float32) for field in (".scales", ".biases"))
    codes = tensors[name + ".weight"]
    return np.array(mx.dequantize(codes, scales, biases, columns // scales.shape[-1], codes.shape[-1] * 32 // columns))


def main():
    path, directory = sys.argv[1], pathlib.Path(sys.argv[2])
    tensors = mx.load(str(directory / "model.safetensors"))
    config = json.loads((directory / "config.json").read_text())
    gemma = "gemma" in config["model_type"]
    names = dict(NAMES) if gemma else dict(NAMES, ffn_norm="post_attention_layernorm")
    ends = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        parts = tensor.name.split(".")
        kind = parts[2] if parts[0] == "blk" else parts[0]
        name = "model.layers.%s.%s" % (parts[1], names[kind]) if parts[0] == "blk" else ends[kind]
        if gemma and "norm" in name:
            values = values - 1.0
        if not gemma and kind in heads:
            values = values.reshape(heads[kind], -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        off = imported_values(tensors, name, values.shape[-1]) - values
        entry = found.setdefault(tensor.tensor_type.name, [0, 0.0, 0.0])
        entry[0] += 1
        entry[1] = max(entry[1], float(np.sqrt((off ** 2).mean() / max((values ** 2).mean(), 1e-30))))
        entry[2] = max(entry[2], float(np.abs(off).max()))
    for name, (count, relative, largest) in sorted(found.items()):
        print("%-8s %4d tensors, worst relative error %.2e, largest difference %.2e" % (name, count, relative, largest))
    sys.exit(any(largest > 0 for name, (_, _, largest) in found.items() if name in EXACT))


if __name__ == "__main__":
    main()
