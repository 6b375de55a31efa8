"""Shapes of known models, and files of random weights in them: an MLX directory, or a GGUF file.

The names and numbers are those of `mlx-serve bench --shape`. Weights are one random block repeated: speed does
not depend on their values. Writing an MLX directory needs nothing; a GGUF file needs the packages gguf and numpy.

    python3 bench/shapes.py qwen3-4b OUT_DIR [--bits 4] [--group-size 64] [--tokenizer tokenizer.json]
    python3 bench/shapes.py qwen3-4b OUT.gguf [--bits 4]                    Q4_0, or Q8_0 with --bits 8
"""
import argparse
import json
import os
import pathlib
import shutil
import struct

LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}


def shape(model_type, hidden, inner, layers, heads, kv_heads, head_dim, vocab, context, tied=True, **more):
    return dict(model_type=model_type, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, vocab_size=vocab,
                max_position_embeddings=context, tie_word_embeddings=tied, rms_norm_eps=1e-6, **more)


def gemma3(hidden, inner, layers, heads, kv_heads, vocab, context, window):
    return shape("gemma3_text", hidden, inner, layers, heads, kv_heads, 256, vocab, context, rope_theta=1000000,
                 rope_local_base_freq=10000, sliding_window=window, sliding_window_pattern=6, query_pre_attn_scalar=256)


SHAPES = {
    "smollm2-135m": shape("llama", 576, 1536, 30, 9, 3, 64, 49152, 8192, rope_theta=100000),
    "smollm2-1.7b": shape("llama", 2048, 8192, 24, 32, 32, 64, 49152, 8192, rope_theta=130000),
    "llama3-1b": shape("llama", 2048, 8192, 16, 32, 8, 64, 128256, 131072, rope_theta=500000,
                       rope_scaling=dict(LLAMA3, factor=32)),
    "llama3-3b": shape("llama", 3072, 8192, 28, 24, 8, 128, 128256, 131072, rope_theta=500000,
                       rope_scaling=dict(LLAMA3, factor=32)),
    "llama3-8b": shape("llama", 4096, 14336, 32, 32, 8, 128, 128256, 131072, tied=False, rope_theta=500000,
                       rope_scaling=dict(LLAMA3, factor=8)),
    "qwen3-0.6b": shape("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, 40960, rope_theta=1000000),
    "qwen3-1.7b": shape("qwen3", 2048, 6144, 28, 16, 8, 128, 151936, 40960, rope_theta=1000000),
    "qwen3-4b": shape("qwen3", 2560, 9728, 36, 32, 8, 128, 151936, 40960, rope_theta=1000000),
    "qwen3-8b": shape("qwen3", 4096, 12288, 36, 32, 8, 128, 151936, 40960, tied=False, rope_theta=1000000),
    "gemma3-270m": gemma3(640, 2048, 18, 4, 1, 262144, 32768, 512),
    "gemma3-1b": gemma3(1152, 6912, 26, 4, 1, 262144, 32768, 512),
    "gemma3-4b": gemma3(2560, 10240, 34, 8, 4, 262208, 131072, 1024),
    "gemma3-12b": gemma3(3840, 15360, 48, 16, 8, 262208, 131072, 1024),
}


def matrices(c):
    """(MLX name, GGUF name, rows, columns) of every matrix."""
    hidden, inner, dim = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    yield "model.embed_tokens", "token_embd", c["vocab_size"], hidden
    if not c["tie_word_embeddings"]:
        yield "lm_head", "output", c["vocab_size"], hidden
    for i in range(c["num_hidden_layers"]):
        for mlx, gguf, rows, cols in (
                ("self_attn.q_proj", "attn_q", q, hidden), ("self_attn.k_proj", "attn_k", kv, hidden),
                ("self_attn.v_proj", "attn_v", kv, hidden), ("self_attn.o_proj", "attn_output", hidden, q),
                ("mlp.gate_proj", "ffn_gate", inner, hidden), ("mlp.up_proj", "ffn_up", inner, hidden),
                ("mlp.down_proj", "ffn_down", hidden, inner)):
            yield "model.layers.%d.%s" % (i, mlx), "blk.%d.%s" % (i, gguf), rows, cols


def vectors(c):
    """(MLX name, GGUF name, length) of every norm."""
    hidden, dim = c["hidden_size"], c["head_dim"]
    is_gemma = c["model_type"].startswith("gemma3")
    yield "model.norm", "output_norm", hidden
    for i in range(c["num_hidden_layers"]):
        names = [("input_layernorm", "attn_norm", hidden)]
        if is_gemma:
            names += [("post_attention_layernorm", "post_attention_norm", hidden),
                      ("pre_feedforward_layernorm", "ffn_norm", hidden),
                      ("post_feedforward_layernorm", "post_ffw_norm", hidden)]
        else:
            names += [("post_attention_layernorm", "ffn_norm", hidden)]
        if is_gemma or c["model_type"] == "qwen3":
            names += [("self_attn.q_norm", "attn_q_norm", dim), ("self_attn.k_norm", "attn_k_norm", dim)]
        for mlx, gguf, length in names:
            yield "model.layers.%d.%s" % (i, mlx), "blk.%d.%s" % (i, gguf), length


BLOCK = 1 << 20  # bytes that are repeated


def write_repeated(file, block, size):
    for at in range(0, size, len(block)):
        file.write(block[:min(len(block), size - at)])


def write_mlx(name, directory, bits, group_size, tokenizer=None):
    """config.json and model.safetensors as mlx_lm.convert writes them, affine with bfloat16 scales."""
    config = dict(SHAPES[name], quantization={"bits": bits, "group_size": group_size})
    half = struct.unpack("<H", struct.pack("<f", 1 / 64)[2:])[0]  # of a bfloat16: the upper half of a float32
    minus = struct.unpack("<H", struct.pack("<f", -(2 ** bits - 1) / 128)[2:])[0]
    one = struct.pack("<f", 0.0 if name.startswith("gemma3") else 1.0)[2:]
    contents = {"U32": os.urandom(BLOCK), "scales": struct.pack("<H", half) * (BLOCK // 2),
                "biases": struct.pack("<H", minus) * (BLOCK // 2), "norm": one * (BLOCK // 2)}
    header, order, at = {}, [], 0

    def add(tensor, dtype, dims, kind):
        nonlocal at
        size = (4 if dtype == "U32" else 2)
        for n in dims:
            size *= n
        header[tensor] = {"dtype": dtype, "shape": dims, "data_offsets": [at, at + size]}
        order.append((kind, size))
        at += size

    for mlx, _, rows, cols in matrices(config):
        add(mlx + ".weight", "U32", [rows, cols * bits // 32], "U32")
        add(mlx + ".scales", "BF16", [rows, cols // group_size], "scales")
        add(mlx + ".biases", "BF16", [rows, cols // group_size], "biases")
    for mlx, _, length in vectors(config):
        add(mlx + ".weight", "BF16", [length], "norm")
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(header).encode()
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for kind, size in order:
            write_repeated(file, contents[kind], size)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    if tokenizer:
        shutil.copy(tokenizer, directory / "tokenizer.json")
        (directory / "tokenizer_config.json").write_text("{}")


def write_gguf(name, path, bits):
    """Every matrix as Q4_0 (or Q8_0): the layout of llama.cpp that has the size of MLX's 4 bits (8 bits)."""
    import gguf
    import numpy
    c = SHAPES[name]
    architecture = {"llama": "llama", "qwen3": "qwen3", "gemma3_text": "gemma3"}[c["model_type"]]
    kind = gguf.GGMLQuantizationType.Q4_0 if bits == 4 else gguf.GGMLQuantizationType.Q8_0
    block = 18 if bits == 4 else 34  # bytes of 32 weights: a float16 scale, then the codes
    blocks = numpy.frombuffer(os.urandom(block * 4096), numpy.uint8).reshape(-1, block).copy()
    blocks[:, :2] = numpy.frombuffer(numpy.float16(2 ** -6 if bits == 4 else 2 ** -10).tobytes(), numpy.uint8)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_key_length(c["head_dim"])
    writer.add_value_length(c["head_dim"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_vocab_size(c["vocab_size"])
    if "sliding_window" in c:
        writer.add_sliding_window(c["sliding_window"])
    writer.add_tokenizer_model("no_vocab")
    for _, tensor, rows, cols in matrices(c):
        row = cols // 32
        data = numpy.resize(blocks, (rows * row, block)).reshape(rows, row * block)
        writer.add_tensor(tensor + ".weight", data, raw_dtype=kind)
    for _, tensor, length in vectors(c):
        writer.add_tensor(tensor + ".weight", numpy.ones(length, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("out")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--tokenizer")
    options = parser.parse_args()
    if options.out.endswith(".gguf"):
        if options.bits not in (4, 8):
            parser.error("a GGUF file has 4 or 8 bits")
        write_gguf(options.shape, options.out, options.bits)
    else:
        write_mlx(options.shape, options.out, options.bits, options.group_size, options.tokenizer)


if __name__ == "__main__":
    main()
