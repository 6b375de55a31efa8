#!/usr/bin/env python3
"""Writes the fixture models of rare configurations, with the logits that mlx_lm computes for them.

    python3 tests/data/models/make_corners.py [NAME...]      (needs mlx-lm 0.32.2 and mlx[cpu] 0.32.4)

Each model has random weights, quantised by mlx and saved as mlx saves them. The golden logits come from mlx_lm's
own model classes with weights dequantised by mx.dequantize in float32: independent of this repository's code, and
free of the rounding of MLX's 16-bit products. Where mlx_lm reads an older spelling of a key than the one that a
fixture is about, the golden model gets the older one, and config.json the newer. These models have no tokenizer.
"""
import base64
import json
import pathlib
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes

HERE = pathlib.Path(__file__).parent
VOCAB = 160
GREEDY = 16
SHAPE = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, vocab_size=VOCAB, rms_norm_eps=1e-5, max_position_embeddings=256)


def affine(bits, group_size):
    return dict(group_size=group_size, bits=bits, mode="affine")


def fp(mode):
    return dict(mode=mode, **{"mxfp4": dict(bits=4, group_size=32), "mxfp8": dict(bits=8, group_size=32),
                              "nvfp4": dict(bits=4, group_size=16)}[mode])


# name: config that mlx_lm gets; dtype of the floats; quantisation of a module path (None: dense);
# global quantisation keys; changes that turn the config into the one written; changes of the tensors.
MODELS = {
    "llama-yarn-biases": dict(
        config=dict(SHAPE, model_type="llama", num_key_value_heads=None, head_dim=24, attention_bias=True,
                    mlp_bias=True, tie_word_embeddings=False, rope_theta=10000.0,
                    rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32)),
        dtype=mx.float32, default=affine(5, 32),
        quantise=lambda path: None if path == "lm_head" else affine(5, 32),
        written=dict(num_key_value_heads=None), stray_file=True),
    "mistral-window-q3": dict(
        config=dict(SHAPE, model_type="mistral", head_dim=16, tie_word_embeddings=True, sliding_window=8,
                    layer_types=["sliding_attention", "full_attention", "sliding_attention"], rope_theta=10000.0),
        dtype=mx.bfloat16, default=affine(3, 32), quantise=lambda path: affine(3, 32),
        extra={"model.layers.0.self_attn.rotary_emb.inv_freq": [8], "lm_head.weight": [VOCAB, 64],
               "vision_embedder.patch.weight": [4, 4], "vision_embedder.patch.bias": [4]}),
    "mistral3-ministral-scaling": dict(
        config=dict(model_type="mistral3",
                    text_config=dict(SHAPE, model_type="ministral3", head_dim=16, tie_word_embeddings=True,
                                     rope_parameters=dict(rope_type="yarn", type="yarn", rope_theta=1000000.0, factor=16.0,
                                                          original_max_position_embeddings=16, beta_fast=32.0,
                                                          beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0,
                                                          llama_4_scaling_beta=0.1))),
        dtype=mx.bfloat16, default=affine(4, 64), quantise=lambda path: affine(4, 64),
        extra={"vision_tower.patch_conv.weight": [4, 4], "multi_modal_projector.linear_1.weight": [4, 4]}),
    "mixtral-unstacked": dict(
        config=dict(SHAPE, model_type="mixtral", num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2,
                    tie_word_embeddings=False, rope_theta=1000000.0),
        # A seed whose routers decide by margins wide enough for 8-bit activations to pick the same experts.
        dtype=mx.float16, default=affine(4, 64), unstack=True, seed=1839,
        quantise=lambda path: affine(8, 64) if path.endswith("gate") else affine(4, 64)),
    "qwen3-vl-text": dict(
        config=dict(model_type="qwen3_vl",
                    text_config=dict(SHAPE, model_type="qwen3_vl_text", head_dim=32, tie_word_embeddings=True,
                                     rope_theta=5000000.0, rope_scaling=dict(rope_type="default", mrope_interleaved=True,
                                                                             mrope_section=[6, 5, 5]))),
        dtype=mx.bfloat16, default=affine(4, 64), quantise=lambda path: affine(4, 64),
        extra={"vision_tower.patch_embed.proj.weight": [4, 4], "language_model.lm_head.weight": [VOCAB, 64]}),
    "smollm3-unrotated-layers": dict(
        config=dict(SHAPE, model_type="smollm3", num_hidden_layers=4, tie_word_embeddings=True, rope_theta=5000000.0,
                    no_rope_layer_interval=4, no_rope_layers=[1, 0, 1, 0]),
        dtype=mx.bfloat16, default=affine(4, 32), quantise=lambda path: affine(4, 32)),
    "phi3-partial-longrope": dict(
        config=dict(SHAPE, model_type="phi3", tie_word_embeddings=False, partial_rotary_factor=0.5,
                    original_max_position_embeddings=32, rope_theta=10000.0,
                    rope_scaling=dict(type="longrope", short_factor=[1.0] * 4, long_factor=[1.0, 1.5, 3.0, 6.5])),
        dtype=mx.float16, default=affine(5, 64), quantise=lambda path: affine(5, 64),
        written=dict(partial_rotary_factor=None, rope_theta=None, rope_scaling=None,
                     original_max_position_embeddings=None,
                     rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.5,
                                          original_max_position_embeddings=32, short_factor=[1.0] * 4,
                                          long_factor=[1.0, 1.5, 3.0, 6.5]))),
    "qwen3-moe-unstacked": dict(
        config=dict(SHAPE, model_type="qwen3_moe", num_hidden_layers=4, intermediate_size=64, head_dim=16,
                    num_experts=4, num_experts_per_tok=2, decoder_sparse_step=2, mlp_only_layers=[3], moe_intermediate_size=32,
                    norm_topk_prob=False, tie_word_embeddings=True, rope_theta=1000000.0),
        dtype=mx.bfloat16, default=None, quantise=lambda path: None, unstack=True),
    "qwen3-moe-nvfp4-global": dict(
        config=dict(SHAPE, model_type="qwen3_moe", num_hidden_layers=2, head_dim=16, num_experts=4,
                    num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=64,
                    norm_topk_prob=True, tie_word_embeddings=False, rope_theta=1000000.0),
        dtype=mx.bfloat16, default=fp("nvfp4"),
        quantise=lambda path: dict(fp("nvfp4"), global_scale=True) if "switch_mlp" in path
        else affine(8, 64) if path.endswith("mlp.gate") else fp("nvfp4"), name_affine_without_mode=True),
    "qwen3-yarn-parameters": dict(
        config=dict(SHAPE, model_type="qwen3", head_dim=32, tie_word_embeddings=False,
                    rope_parameters=dict(rope_theta=100000.0, rope_type="yarn", factor=4.0,
                                         original_max_position_embeddings=256)),
        dtype=mx.float16, default=fp("mxfp4"),
        quantise=lambda path: None if path == "lm_head" else affine(2, 32) if path.endswith("v_proj")
        else fp("mxfp8") if path.endswith("down_proj") else fp("mxfp4"), name_affine_without_mode=True),
    "gemma3-text-separate-head": dict(
        config=dict(SHAPE, model_type="gemma3_text", num_hidden_layers=4, head_dim=32, rms_norm_eps=1e-6,
                    query_pre_attn_scalar=24.0, sliding_window=12, sliding_window_pattern=3, rope_theta=500000.0,
                    rope_local_base_freq=5000.0, rope_scaling=dict(rope_type="linear", factor=8.0)),
        dtype=mx.bfloat16, default=affine(6, 64), quantise=lambda path: affine(6, 64),
        written=dict(sliding_window_pattern=None, rope_theta=None, rope_local_base_freq=None, rope_scaling=None,
                     _sliding_window_pattern=3, layer_types=["sliding_attention"] * 2 + ["full_attention"]
                     + ["sliding_attention"],
                     rope_parameters=dict(
                         full_attention=dict(rope_type="linear", factor=8.0, rope_theta=500000.0),
                         sliding_attention=dict(rope_type="default", rope_theta=5000.0)))),
}


def make_model(config):
    model_class, args_class = _get_classes(config)
    return model_class(args_class.from_dict(dict(config)))


def random_weights(model, rng):
    """Small projections, so that errors do not grow from layer to layer, but attention that is not flat."""
    gemma = "gemma" in model.model_type

    def draw(path, old):
        if "norm" in path:
            return mx.array((0.1 * rng.standard_normal(old.shape) + (0 if gemma else 1)).astype(np.float32))
        gain = 1.0 if old.ndim == 1 else old.shape[-1] ** -0.5
        gain *= 0.1 if path.endswith("bias") else 1.2 if "q_proj" in path or "k_proj" in path else 0.7
        if "embed_tokens" in path:
            gain = 0.1
        return mx.array((gain * rng.standard_normal(old.shape)).astype(np.float32))

    model.update(tree_map_with_path(draw, model.parameters()))


def save(directory, spec, model):
    """Quantises and writes; returns the tensors as stored and what each quantised module is."""
    layouts = {}

    def predicate(path, module):
        if not hasattr(module, "to_quantized"):
            return False
        layout = spec["quantise"](path)
        if not layout or module.weight.shape[-1] % layout["group_size"]:
            return False
        layouts[path] = layout
        return layout

    model.set_dtype(spec["dtype"])
    if spec["default"]:
        nn.quantize(model, class_predicate=predicate)
    tensors = dict(tree_flatten(model.parameters()))
    stored = dict(tensors)
    if spec.get("unstack"):
        for name in [n for n in stored if "switch_mlp" in n]:
            before, after = name.split("switch_mlp")
            if "block_sparse_moe" in name:
                for new, old in ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"):
                    after = after.replace(new, old)
            for e, expert in enumerate(stored.pop(name)):
                stored[before + "experts.%d" % e + after] = expert
    rng = np.random.default_rng(5)
    for name, shape in spec.get("extra", {}).items():
        stored[name] = mx.array(rng.standard_normal(shape).astype(np.float32))
    config = dict(spec["config"])
    for key, value in spec.get("written", {}).items():
        config.pop(key, None)
        if value is not None:
            config[key] = value
    config.update(bos_token_id=1, eos_token_id=2)
    if spec["default"]:
        quantization = dict(spec["default"])
        for path, layout in layouts.items():
            if layout != spec["default"]:
                layout = dict(layout)
                if spec.get("name_affine_without_mode") and layout["mode"] == "affine":
                    del layout["mode"]
                quantization[path] = layout
        config["quantization"] = config["quantization_config"] = quantization
    directory.mkdir(exist_ok=True)
    mx.save_safetensors(str(directory / "model.safetensors"), stored, metadata={"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if spec.get("stray_file"):
        mx.save_safetensors(str(directory / "consolidated.safetensors"), {"unrelated": mx.zeros([3])})
    return tensors, layouts


def widen(tensors, layouts):
    """Every stored value in float32, codes dequantised by mlx."""
    wide = {}
    for name, value in tensors.items():
        module, _, field = name.rpartition(".")
        if module not in layouts:
            wide[name] = value.astype(mx.float32)
        elif field == "bias":
            wide[name] = value.astype(mx.float32)
        elif field == "weight":
            layout = {k: v for k, v in layouts[module].items() if k != "global_scale"}
            scales, biases = tensors[module + ".scales"], tensors.get(module + ".biases")
            if biases is not None:
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            g = tensors.get(module + ".global_scale")
            if g is None:
                wide[name] = mx.dequantize(value, scales, biases, dtype=mx.float32, **layout)
            else:
                wide[name] = mx.stack([mx.dequantize(value[e], scales[e], dtype=mx.float32, global_scale=g[e], **layout)
                                       for e in range(value.shape[0])])
    return wide


def record(prompt_name, tokens, model, positions):
    """One prompt of golden.json, in the form of the other fixtures."""
    def describe(logits):
        values = np.array(logits.astype(mx.float32))
        return values, float(values.astype(np.float64).std())

    whole = model(mx.array([tokens]))[0]
    entries = []
    for pos in positions:
        values, std = describe(whole[pos])
        entries.append({"pos": pos, "argmax": int(values.argmax()), "std": std,
                        "logits_f32_b64": base64.b64encode(values.astype("<f4").tobytes()).decode()})
    cache = make_prompt_cache(model)
    logits = model(mx.array([tokens]), cache=cache)[0, -1]
    greedy = {"ids": [], "std": [], "runners_up": []}
    for _ in range(GREEDY):
        values, std = describe(logits)
        order = np.argsort(-values)[:4]
        greedy["ids"].append(int(order[0]))
        greedy["std"].append(std)
        greedy["runners_up"].append([[int(i), float(values[order[0]] - values[i])] for i in order[1:]])
        logits = model(mx.array([[int(order[0])]]), cache=cache)[0, -1]
    return {"name": prompt_name, "tokens": tokens, "positions": entries, "greedy": greedy}


def make(name):
    spec = MODELS[name]
    rng = np.random.default_rng(spec.get("seed", sum(name.encode())))
    model = make_model(spec["config"])
    random_weights(model, rng)
    tensors, layouts = save(HERE / name, spec, model)
    reference = make_model(spec["config"])
    reference.load_weights(list(widen(tensors, layouts).items()), strict=True)
    reference.eval()
    ids = [int(i) for i in rng.integers(3, VOCAB, size=72)]
    prompts = [record("one", ids[:1], reference, [0]), record("short", ids[1:8], reference, [0, 3, 6]),
               record("long", ids, reference, [7, 8, 12, 15, 31, 32, 40, 71])]
    golden = {"format": 1, "model": name, "vocab_size": VOCAB, "prompts": prompts,
              "reference": {"method": "mlx_lm's model class, weights dequantised to float32, float32 arithmetic"}}
    (HERE / name / "golden.json").write_text(json.dumps(golden) + "\n")
    print(name, sum(f.stat().st_size for f in (HERE / name).iterdir()), "bytes")


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    for wanted in sys.argv[1:] or MODELS:
        make(wanted)
