#!/usr/bin/env python3
"""Greedy tokens of mlx_lm and of mlx-serve on one model directory, side by side.

    python3 tests/reference/compare_mlx_lm.py MODEL_DIR [--prompt TEXT] [--tokens 24] [--binary PATH]

mlx_lm computes in float32 here: on its CPU device it accumulates quantised products in the activation type, and
drifts from its own float32 in 16 bits. Needs mlx-lm (pip install mlx-lm "mlx[cpu]"); not part of ./run-tests,
because MLX is slow on a CPU. Exit status 1 when a precision of ours chooses another token.
"""
import argparse
import json
import pathlib
import subprocess
import sys

import mlx.core as mx
from mlx_lm import load
from mlx_lm.models.cache import make_prompt_cache

ROOT = pathlib.Path(__file__).resolve().parents[2]


def generate_reference(directory, prompt, count):
    model, tokenizer = load(directory)
    model.set_dtype(mx.float32)
    if tokenizer.chat_template:
        ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    else:
        ids = tokenizer.encode(prompt)
    cache, step, chosen, margins = make_prompt_cache(model), mx.array([ids]), [], []
    for _ in range(count):
        logits = model(step, cache=cache)[0, -1]
        best = mx.sort(logits)[-2:]
        chosen.append(int(mx.argmax(logits)))
        margins.append(float((best[1] - best[0]) / mx.std(logits)))
        step = mx.array([[chosen[-1]]])
    return list(ids), chosen, margins, tokenizer.decode(chosen)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt", default="What is the capital of France?")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--binary", default=str(ROOT / "build/release/mlx-serve"))
    options = parser.parse_args()
    ids, expected, margins, text = generate_reference(options.model, options.prompt, options.tokens)
    print("mlx_lm float32:", repr(text))
    print("smallest margin: %.3f std" % min(margins))
    failed = False
    for precision in ("f32", "int16", "int12", "int8"):
        result = subprocess.run(
            [options.binary, "logits", options.model, "--tokens", ",".join(map(str, ids)), "--greedy",
             str(options.tokens), "--precision", precision, "--json"], check=True, capture_output=True, text=True)
        found = json.loads(result.stdout)["greedy"]
        same = next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), len(expected))
        print("%-6s equal for %d of %d tokens" % (precision, same, len(expected))
              + ("" if same == len(expected) else " (margin there: %.3f std)" % margins[same]))
        failed = failed or (same < len(expected) and precision != "int8")
    sys.exit(failed)


if __name__ == "__main__":
    main()
