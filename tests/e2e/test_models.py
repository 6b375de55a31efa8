"""What the program says about models before and after running them: info, perplexity, limits."""
import json
import math
import shutil

import pytest

from conftest import MODEL, TINY_MODELS, Server, run

FIXTURES = sorted(p.parent.name for p in TINY_MODELS.glob("*/tokenizer.json"))


def info(model, *options):
    result = run("info", model, "--json", *options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", FIXTURES)
def test_info(name):
    config = json.loads((TINY_MODELS / name / "config.json").read_text())
    text = config.get("text_config", config)
    found = info(TINY_MODELS / name)
    assert found["model_type"] == config["model_type"]
    assert found["num_hidden_layers"] == text["num_hidden_layers"]
    assert found["context"] == text.get("max_position_embeddings", found["context"])
    files = sum(p.stat().st_size for p in (TINY_MODELS / name).glob("model*.safetensors"))
    assert 0.9 * files <= found["weight_bytes"] + found["skipped_bytes"] <= files
    in_modules = sum(kind["bytes"] for kind in found["quantization"].values())
    assert 0.9 * found["weight_bytes"] <= in_modules <= found["weight_bytes"]
    assert found["eos_token_ids"] and found["eos_token"] and found["bos_token"] is not None or "qwen" in name
    assert found["chat_template"] == "model"
    assert run("info", TINY_MODELS / name).stdout.startswith("architecture   " + found["model_type"])


def test_info_names_layouts_by_kind():
    found = info(TINY_MODELS / "llama2-mixed-sharded")["quantization"]
    layouts = {(l["bits"], l["group_size"]) if l["mode"] == "affine" else l["dtype"]
               for l in found["down_proj"]["layouts"]}
    assert layouts == {(5, 64), (6, 32), "F16"}
    modes = {l["mode"] for kind in info(TINY_MODELS / "llama-fpmodes")["quantization"].values() for l in kind["layouts"]}
    assert modes >= {"affine", "mxfp4", "mxfp8", "nvfp4"}


def test_info_counts_kv_memory():
    small, large = (info(MODEL, "--ctx", ctx, "--parallel", 1) for ctx in (1024, 4096))
    assert large["kv_bytes"] == pytest.approx(4 * small["kv_bytes"], rel=0.01)
    assert small["kv_bytes"] == pytest.approx(1024 * small["kv_bytes_per_token"], rel=0.1)
    assert info(MODEL, "--ctx", 1024, "--parallel", 3)["kv_bytes"] == 3 * small["kv_bytes"]
    eight = info(MODEL, "--ctx", 1024, "--parallel", 1, "--kv-bits", 8)
    assert eight["kv_bits"] == 8 and small["kv_bits"] == 16
    assert 0.5 < eight["kv_bytes"] / small["kv_bytes"] < 0.54  # a byte, and a scale for 64
    assert eight["kv_bytes"] == pytest.approx(1024 * eight["kv_bytes_per_token"], rel=0.01)
    # Sliding layers stop growing at their window and a chunk.
    short, long = (info(TINY_MODELS / "gemma3-text-q4-g64", "--ctx", ctx, "--parallel", 1) for ctx in (4096, 8192))
    grown = long["kv_bytes"] - short["kv_bytes"]
    assert grown == pytest.approx(4096 * long["kv_bytes_per_token_beyond_window"], rel=0.05)
    assert 0 < long["kv_bytes_per_token_beyond_window"] < long["kv_bytes_per_token"]


def test_vision_tensors_are_told_in_one_line():
    for command in (["info"], ["logits", "--tokens", "5", "--json"]):
        result = run(command[0], TINY_MODELS / "gemma3-mm-q4-g64", *command[1:])
        assert result.returncode == 0
        line, = result.stderr.splitlines()
        assert "skipping 9 tensors" in line and "multi_modal_projector" in line
    assert run("info", TINY_MODELS / "llama3-q4-g64").stderr == ""


def windowed_loss(model, ids, window, bos):
    """The definition in src/cli/perplexity.c, from the logits command's numbers."""
    prefix = [bos] if bos is not None else []
    room, losses, scored, start = window - len(prefix), [], 1 - len(prefix), 0
    while scored < len(ids):
        part = prefix + ids[start:start + room]
        result = run("logits", model, "--tokens", ",".join(map(str, part)), "--positions", "all", "--json",
                     "--precision", "f32")
        logits = [p["logits"] for p in json.loads(result.stdout)["positions"]]
        for at in range(len(prefix) + scored - start, len(part)):
            row = logits[at - 1]
            top = max(row)
            losses.append(top + math.log(sum(math.exp(v - top) for v in row)) - row[part[at]])
        scored, start = start + len(part) - len(prefix), start + max(room // 2, 1)
    return losses


@pytest.mark.parametrize("name", ["llama3-q4-g64", "qwen3-q4-g32"])
@pytest.mark.parametrize("window", [2, 3, 24, 1000])
def test_perplexity(tmp_path, name, window):
    text = "The quick brown fox jumps over the lazy dog. " * (2 if window > 8 else 1)
    (tmp_path / "text").write_text(text)
    encode = [{"text": t, "add_special": special} for t, special in ((text, False), ("", True))]
    answers = run("tokenize", TINY_MODELS / name, "--json", input="".join(json.dumps(r) + "\n" for r in encode)).stdout
    ids, special = (json.loads(line)["ids"] for line in answers.splitlines())
    losses = windowed_loss(TINY_MODELS / name, ids, window, special[0] if special else None)
    result = run("perplexity", TINY_MODELS / name, "--file", tmp_path / "text", "--ctx", window, "--precision", "f32",
                 "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["tokens"] == len(losses) == len(ids) - (not special)
    assert found["nll"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]), rel=1e-9)


def test_precisions_predict_alike(tmp_path):
    text = tmp_path / "text"
    text.write_text((TINY_MODELS / "README.md").read_text()[:4000])
    loss = {p: json.loads(run("perplexity", MODEL, "--file", text, "--ctx", 512, "--precision", p, "--json").stdout)
            for p in ("f32", "int16", "int12", "int8")}
    assert loss["int12"]["perplexity"] == pytest.approx(loss["f32"]["perplexity"], rel=1e-3)
    assert loss["int16"]["perplexity"] == pytest.approx(loss["f32"]["perplexity"], rel=1e-4)
    assert loss["int8"]["perplexity"] == pytest.approx(loss["f32"]["perplexity"], rel=1e-2)


def test_perplexity_refusals(tmp_path):
    (tmp_path / "empty").write_text("")
    for arguments, code, part in ((["--file", tmp_path / "empty"], 1, "0 tokens"), ([], 2, "--file"),
                                  (["--file", tmp_path / "none"], 1, "none"),
                                  (["--file", tmp_path / "empty", "--ctx", 1 << 20], 2, "context")):
        result = run("perplexity", TINY_MODELS / "qwen3-q4-g32", *arguments)
        line, = result.stderr.splitlines()
        assert result.returncode == code and part in line


def test_prompt_too_long_names_both_counts():
    result = run("run", MODEL, "--ctx", 64, "word " * 100)
    line, = result.stderr.splitlines()
    assert result.returncode == 1 and "context 64" in line
    counted = int(line.split("prompt is ")[1].split()[0])
    served = Server("--ctx", 64)
    try:
        import openai
        client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError) as refusal:
            client.chat.completions.create(model="x", messages=[{"role": "user", "content": "word " * 100}])
        assert refusal.value.code == "context_length_exceeded"
        assert str(counted) in str(refusal.value) and "64" in str(refusal.value)
    finally:
        served.stop()


def test_other_model_types_are_refused_with_the_list(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(TINY_MODELS / "qwen3-q4-g32", model)
    config = json.loads((model / "config.json").read_text())
    config["model_type"] = "mamba2"
    (model / "config.json").write_text(json.dumps(config))
    line, = run("info", model).stderr.splitlines()
    assert "mamba2" in line
    for name in ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "gemma3", "phi3"):
        assert name in line
