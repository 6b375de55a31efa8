"""Every fixture model, damaged in more than 30 ways: one clear line, at once, under ASan and UBSan."""
import json
import os
import shutil
import struct
import subprocess

import pytest

from conftest import ASAN_BINARY, TINY_MODELS

FIXTURES = sorted(p.parent.name for p in TINY_MODELS.glob("*/tokenizer.json"))
CPU_SECONDS = 1.0


class Directory:
    """A copy of a fixture and the ways to change it."""

    def __init__(self, source, target):
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("golden.json"))
        self.path = target
        self.shard = sorted(target.glob("model*.safetensors"))[0]

    def read(self, name="config.json"):
        return json.loads((self.path / name).read_text())

    def config(self, **changes):
        """Sets keys where the text model's are; a value may be a function of the old one."""
        root = self.read()
        text = root.get("text_config", root)
        for key, value in changes.items():
            text[key] = value(text.get(key)) if callable(value) else value
        (self.path / "config.json").write_text(json.dumps(root))

    def quantization(self, **changes):
        root = self.read()
        if "quantization" not in root:
            return pytest.skip
        root["quantization"].update(changes)
        root.pop("quantization_config", None)
        (self.path / "config.json").write_text(json.dumps(root))

    def header(self, change=lambda header: None, raw=None):
        image = self.shard.read_bytes()
        size, = struct.unpack("<Q", image[:8])
        header = json.loads(image[8:8 + size])
        skipped = change(header)
        text = (raw(header) if raw else json.dumps(header)).encode()
        self.shard.write_bytes(struct.pack("<Q", len(text)) + text + image[8 + size:])
        return skipped

    def names(self):
        image = self.shard.read_bytes()
        size, = struct.unpack("<Q", image[:8])
        return [n for n in json.loads(image[8:8 + size]) if n != "__metadata__"]

    def first(self, ending):
        """A tensor of the text model in the first shard."""
        names = sorted(n for n in self.names() if n.endswith(ending) and "layers." in n and "vision" not in n)
        return names[0] if names else None

    def index(self, value):
        (self.path / "model.safetensors.index.json").write_text(value if isinstance(value, str) else json.dumps(value))

    def drop_index(self):
        """It is optional, and would be the first to notice that a tensor is gone."""
        (self.path / "model.safetensors.index.json").unlink(missing_ok=True)

    def cut(self, name, keep):
        path = self.path / name
        data = path.read_bytes()
        path.write_bytes(data[:keep if keep >= 0 else len(data) + keep])


def tensor_change(ending, **fields):
    """Changes fields of the first tensor with that ending; a value may be a function of the old one."""
    def apply(d):
        name = d.first(ending)
        if not name:
            return pytest.skip

        def change(header):
            for key, value in fields.items():
                header[name][key] = value(header[name][key]) if callable(value) else value
        return d.header(change)
    return apply


def turn_shape(d):
    def change(header):
        name = next(n for n in sorted(header) if n.endswith("_proj.weight") and "layers." in n
                    and "vision" not in n and header[n]["shape"] != header[n]["shape"][::-1])
        header[name]["shape"].reverse()
    return d.header(change)


def rename(ending, new):
    def apply(d):
        name = d.first(ending)
        if not name:
            return pytest.skip
        d.drop_index()
        return d.header(lambda header: header.update({name[:-len(ending)] + new: header.pop(name)}))
    return apply


def module_entry(value):
    """An entry of `quantization` for the first quantised module that contradicts its tensors."""
    def apply(d):
        name = d.first(".scales")
        return d.quantization(**{name[:-len(".scales")]: value}) if name else pytest.skip
    return apply


def share_offsets(header):
    a, b = [v for k, v in header.items() if k != "__metadata__" and v["shape"]][:2]
    b["data_offsets"] = a["data_offsets"]


def duplicate_key(header):
    name = next(n for n in header if n != "__metadata__")
    return json.dumps(header)[:-1] + ", " + json.dumps(name) + ": " + json.dumps(header[name]) + "}"


def replace_shard(make):
    def apply(d):
        d.shard.unlink()
        make(d.shard)
    return apply


def remove_shards(d):
    d.drop_index()
    for path in d.path.glob("model*.safetensors"):
        path.unlink()


def wrong_token_id(d):
    tokenizer = d.read("tokenizer.json")
    tokenizer["model"]["vocab"]["a token that is not there"] = 1 << 40
    (d.path / "tokenizer.json").write_text(json.dumps(tokenizer))


# What is done, and a part of the line that answers it.
DAMAGES = {
    "config missing": (lambda d: (d.path / "config.json").unlink(), "config.json"),
    "config cut": (lambda d: d.cut("config.json", -40), "config.json"),
    "config empty": (lambda d: d.cut("config.json", 0), "config.json"),
    "config a directory": (lambda d: ((d.path / "config.json").unlink(), (d.path / "config.json").mkdir()) and None,
                           "config.json"),
    "config deep": (lambda d: (d.path / "config.json").write_text('{"a":' * 100000) and None, "config.json"),
    "config a list": (lambda d: (d.path / "config.json").write_text("[]") and None, "config.json"),
    "unknown model_type": (lambda d: (d.path / "config.json").write_text(
        json.dumps({**d.read(), "model_type": "perceiver"})) and None, "perceiver"),
    "no model_type": (lambda d: (d.path / "config.json").write_text(
        json.dumps({k: v for k, v in d.read().items() if k != "model_type"})) and None, "model_type"),
    "negative hidden_size": (lambda d: d.config(hidden_size=-64), "hidden_size"),
    "huge hidden_size": (lambda d: d.config(hidden_size=1 << 62), "hidden_size"),
    "fractional hidden_size": (lambda d: d.config(hidden_size=64.5), "hidden_size"),
    "a billion layers": (lambda d: d.config(num_hidden_layers=10 ** 9), "num_hidden_layers"),
    "a layer more": (lambda d: d.config(num_hidden_layers=lambda n: n + 1, mlp_only_layers=[], layer_types=None),
                     "missing"),
    "a layer less": (lambda d: d.config(num_hidden_layers=lambda n: n - 1, layer_types=None), "not part of"),
    "no heads": (lambda d: d.config(num_attention_heads=0), "num_attention_heads"),
    "kv heads that do not divide": (lambda d: d.config(num_attention_heads=4, num_key_value_heads=3),
                                    "num_key_value_heads"),
    "vocab_size zero": (lambda d: (d.path / "config.json").write_text(json.dumps({**d.read(), "vocab_size": 0}))
                        and None, "vocab_size"),
    "negative epsilon": (lambda d: d.config(rms_norm_eps=-1e-6), "rms_norm_eps"),
    "wider MLP": (lambda d: d.config(intermediate_size=lambda n: 2 * n, moe_intermediate_size=96), "shape"),
    "rope_theta zero": (lambda d: d.config(rope_theta=0), "rope_theta"),
    "unknown rope": (lambda d: d.config(rope_scaling={"rope_type": "spiral", "factor": 2}), "spiral"),
    "a thousand ends of text": (lambda d: (d.path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": list(range(1, 1001))})) and None, "eos_token_id"),
    "generation config cut": (lambda d: d.cut("generation_config.json", -5), "generation_config.json"),
    "7 bits": (lambda d: d.quantization(bits=7), "7 bits"),
    "groups of 48": (lambda d: d.quantization(group_size=48), "groups of 48"),
    "bits of a module": (module_entry({"bits": 2, "group_size": 128}), "bits"),
    "module not quantised": (module_entry(False), ".scales: present"),
    "another format": (lambda d: (d.path / "config.json").write_text(json.dumps(
        {**{k: v for k, v in d.read().items() if k != "quantization"},
         "quantization_config": {"quant_method": "awq", "bits": 4}})) and None, "awq"),
    "no shards": (remove_shards, "safetensors"),
    "shard short of a byte": (lambda d: d.cut(d.shard.name, -1), "safetensors"),
    "shard of 4 bytes": (lambda d: d.cut(d.shard.name, 4), "safetensors"),
    "shard a pipe": (replace_shard(os.mkfifo), "safetensors"),
    "shard a link to itself": (replace_shard(lambda path: path.symlink_to(path.name)), "safetensors"),
    "header of 2^63 bytes": (lambda d: d.shard.write_bytes(struct.pack("<Q", 1 << 63) + d.shard.read_bytes()[8:])
                             and None, "header of"),
    "header deep": (lambda d: d.header(raw=lambda h: '{"a":' + "[" * 200000), "header"),
    "header without tensors": (lambda d: d.header(raw=lambda h: "{}"), "no tensors"),
    "a million dimensions": (tensor_change("layernorm.weight", shape=[1] * 1000000), "dimensions"),
    "dtype of no weight": (tensor_change("layernorm.weight", dtype="I16"), "dtype"),
    "unknown dtype": (tensor_change("layernorm.weight", dtype="Q4_K"), "Q4_K"),
    "dtype of codes": (tensor_change(".scales", dtype="I16"), "layers"),
    "shape turned": (turn_shape, "shape"),
    "flat shape": (tensor_change("_proj.weight", shape=lambda s: [s[0] * s[1] * (s[2] if len(s) > 2 else 1)]), "shape"),
    "negative shape": (tensor_change("layernorm.weight", shape=[-64]), "size"),
    "huge shape": (tensor_change("layernorm.weight", shape=[1 << 62, 1 << 62]), "64 bits"),
    "shape of 1e300": (tensor_change("layernorm.weight", shape=[1e300]), "size"),
    "offsets beyond the file": (tensor_change("layernorm.weight", data_offsets=[0, 1 << 60]), "data_offsets"),
    "offsets backwards": (tensor_change("layernorm.weight", data_offsets=lambda o: o[::-1]), "data_offsets"),
    "offsets shared": (lambda d: d.header(share_offsets), "tensor"),
    "norm missing": (rename("layernorm.weight", "layernorm.wait"), "layernorm.weight: missing"),
    "scales missing": (rename(".scales", ".scaled"), ".scales: missing"),
    "biases missing": (rename(".biases", ".biased"), ".biases: missing"),
    "name twice in a file": (lambda d: d.header(raw=duplicate_key), "tensor"),
    "name in two files": (lambda d: shutil.copy(d.shard, d.path / "model-copy.safetensors") and None, "occurs twice"),
    "tensor not accounted for": (rename("_proj.weight", "_projector.weight"), "layers"),
    "index to elsewhere": (lambda d: d.index({"weight_map": {"model.norm.weight": "../../../etc/passwd"}}), "passwd"),
    "index to itself": (lambda d: d.index({"weight_map": {"model.norm.weight": "model.safetensors.index.json"}}),
                        "index.json"),
    "index a list": (lambda d: d.index({"weight_map": ["model.safetensors"]}), "weight_map"),
    "index deep": (lambda d: d.index('{"weight_map":' + "[" * 100000), "index.json"),
    "tokenizer missing": (lambda d: (d.path / "tokenizer.json").unlink(), "tokenizer.json"),
    "tokenizer cut": (lambda d: d.cut("tokenizer.json", -100), "tokenizer.json"),
    "token id beyond 32 bits": (wrong_token_id, "tokenizer.json"),
}


def run_damaged(path):
    """Exit code, stderr and the CPU seconds that the program took (a busy machine does not count)."""
    process = subprocess.Popen([ASAN_BINARY, "--model", str(path), "--prompt", "x", "--max-tokens", "1"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    stderr = process.stderr.read()
    process.stderr.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, stderr, usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", FIXTURES)
def test_damaged(name, tmp_path):
    applied = 0
    for number, (what, (damage, part)) in enumerate(DAMAGES.items()):
        directory = Directory(TINY_MODELS / name, tmp_path / str(number))
        if damage(directory) is pytest.skip:
            continue
        code, stderr, seconds = run_damaged(directory.path)
        assert code == 1, (what, code, stderr)
        line, = stderr.splitlines()
        assert line.startswith("mlx-serve: ") and part in line, (what, line)
        assert seconds < CPU_SECONDS, (what, seconds)
        shutil.rmtree(directory.path)
        applied += 1
    assert applied >= 30


@pytest.mark.parametrize("name", FIXTURES)
def test_undamaged(name):
    code, stderr, _ = run_damaged(TINY_MODELS / name)
    assert code == 0, stderr
