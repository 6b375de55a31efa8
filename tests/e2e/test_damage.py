"""Damaged model directories and files: one clear line each, under ASan and UBSan, within seconds."""
import json
import pathlib
import shutil
import struct

import pytest

from conftest import ASAN_BINARY, TINY_MODELS, run

SOURCE = TINY_MODELS / "llama3-q4-g64"
QUANTIZATION = {"group_size": 64, "bits": 4}
UP_PROJ = "model.layers.0.mlp.up_proj"


@pytest.fixture
def model(tmp_path):
    target = tmp_path / "model"
    shutil.copytree(SOURCE, target)
    return target


def refuse(model, *parts):
    result = run("--model", model, "--prompt", "x", "--max-tokens", 1, binary=ASAN_BINARY)
    assert result.returncode == 1, result.stderr
    line, = result.stderr.strip().splitlines()
    assert line.startswith("mlx-serve: ")
    for part in parts:
        assert part in line, line


def edit_config(model, **changes):
    path = model / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def edit_header(model, change):
    """Rewrites the safetensors header; data stay as they are."""
    path = model / "model.safetensors"
    image = path.read_bytes()
    size, = struct.unpack("<Q", image[:8])
    header = json.loads(image[8:8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + image[8 + size:])


def test_undamaged_works(model):
    result = run("--model", model, "--prompt", "x", "--max-tokens", 2, binary=ASAN_BINARY)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file(model, name):
    (model / name).unlink()
    if name == "model.safetensors":
        (model / "model.safetensors.index.json").unlink(missing_ok=True)
    refuse(model, name if name != "model.safetensors" else "safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("keep", [0, 1, 7, 100, 0.5, -1])
def test_truncated_file(model, name, keep):
    path = model / name
    data = path.read_bytes()
    size = int(len(data) * keep) if isinstance(keep, float) else keep if keep >= 0 else len(data) - 1
    path.write_bytes(data[:size])
    if name != "tokenizer_config.json" or size > 0:
        refuse(model)


@pytest.mark.parametrize("key, value", [
    ("model_type", "mamba"), ("model_type", 5), ("model_type", None),
    ("hidden_size", 0), ("hidden_size", -128), ("hidden_size", 127), ("hidden_size", 1 << 40),
    ("hidden_size", "128"), ("hidden_size", None), ("hidden_size", 1e300),
    ("num_hidden_layers", 0), ("num_hidden_layers", 5), ("num_hidden_layers", 1 << 31),
    ("num_attention_heads", 0), ("num_attention_heads", 7), ("num_key_value_heads", 3),
    ("num_key_value_heads", 16), ("head_dim", 0), ("head_dim", 15), ("head_dim", 1 << 30),
    ("intermediate_size", 64), ("vocab_size", 0), ("vocab_size", 601), ("vocab_size", -1),
    ("rms_norm_eps", -1), ("rms_norm_eps", "small"), ("rope_theta", 0),
    ("rope_scaling", {"rope_type": "cubist", "factor": 2}),
    ("rope_scaling", {"rope_type": "llama3"}), ("rope_scaling", 5),
    ("max_position_embeddings", 0), ("hidden_act", "relu6"),
    ("quantization", {**QUANTIZATION, UP_PROJ: {"group_size": 64, "bits": 7}}),
    ("quantization", {**QUANTIZATION, UP_PROJ: {"group_size": 32, "bits": 4}}),
    ("quantization", {**QUANTIZATION, UP_PROJ: {"group_size": 64, "bits": 8}}),
    ("quantization", {**QUANTIZATION, UP_PROJ: False}), ("quantization", "four"),
])
def test_wrong_config(model, key, value):
    if key == "quantization":
        edit_config(model, quantization_config=None)
    edit_config(model, **{key: value})
    refuse(model)


def test_deep_json(model):
    (model / "config.json").write_text("[" * 100000)
    refuse(model, "config.json")


@pytest.mark.parametrize("change", [
    lambda h: h["model.norm.weight"].update(dtype="I8"),
    lambda h: h["model.norm.weight"].update(dtype="Q4"),
    lambda h: h["model.norm.weight"].update(shape=[64, 2]),
    lambda h: h["model.norm.weight"].update(shape=[-128]),
    lambda h: h["model.norm.weight"].update(shape=[1 << 62, 1 << 62]),
    lambda h: h["model.norm.weight"].update(data_offsets=[0, 1 << 60]),
    lambda h: h["model.norm.weight"].update(data_offsets=[256, 0]),
    lambda h: h["model.norm.weight"].update(data_offsets=[-256, 0]),
    lambda h: h["model.norm.weight"].update(data_offsets=[0]),
    lambda h: h["model.norm.weight"].update(data_offsets=h["model.embed_tokens.weight"]["data_offsets"]),
    lambda h: h.update({"model.norm.weight": []}),
    lambda h: h.update({"model.norm.weigth": h.pop("model.norm.weight")}),
    lambda h: h.update({"model.layers.0.mlp.up_proj.scaled": h.pop("model.layers.0.mlp.up_proj.scales")}),
    lambda h: h.clear(),
])
def test_wrong_header(model, change):
    edit_header(model, change)
    refuse(model)


@pytest.mark.parametrize("size", [0, 1, 1 << 40, (1 << 64) - 1])
def test_wrong_header_length(model, size):
    path = model / "model.safetensors"
    path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
    refuse(model, "model.safetensors")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "nothing.safetensors", "", 5])
def test_wrong_index(model, name):
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": name}}))
    refuse(model)


@pytest.mark.parametrize("change", [
    lambda t: t.update(model={"type": "WordPiece", "vocab": {}}),
    lambda t: t.update(pre_tokenizer={"type": "Oracle"}),
    lambda t: t.update(normalizer={"type": "Oracle"}),
    lambda t: t.update(decoder={"type": "Oracle"}),
    lambda t: t.update(post_processor={"type": "Oracle"}),
    lambda t: t["model"]["merges"].append("no such"),
    lambda t: t["model"]["vocab"].update(huge=1 << 40),
    lambda t: t["model"]["vocab"].update(negative=-1),
    lambda t: t.update(added_tokens=[{"id": 1}]),
    lambda t: t.update(added_tokens="none"),
    lambda t: t.pop("model"),
])
def test_wrong_tokenizer(model, change):
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    change(tokenizer)
    path.write_text(json.dumps(tokenizer))
    refuse(model)


def test_template_that_does_not_parse(model):
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = "{% for x in %}"
    path.write_text(json.dumps(config))
    refuse(model, "chat_template:1:")


@pytest.mark.parametrize("data", [
    b"", b"GGUF", b"GGUF\x03\x00\x00\x00", b"GGML" + b"\x00" * 60,
    b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
    b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 1 << 62) + b"x" * 64,
    b"GGUF" + struct.pack("<IQQ", 99, 0, 0), bytes(4096),
])
def test_wrong_gguf(tmp_path, data):
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    result = run("import", path, "--out", tmp_path / "out", binary=ASAN_BINARY)
    assert result.returncode == 1
    line, = result.stderr.strip().splitlines()
    assert "bad.gguf" in line
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_pointers_of_git_lfs(model, name):
    (model / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refuse(model, name, "git lfs pull")


def test_gguf_file_as_model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    refuse(path, "model.gguf", "import")
