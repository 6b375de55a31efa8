"""The `logits` and `tokenize` commands against reference values, through the program's own interface."""
import array
import base64
import json
import math

import pytest

from conftest import TINY_MODELS, run

LLAMA_FIXTURES = ["llama3-q4-g64", "llama2-mixed-sharded", "smollm2-bf16", "mistral-q8-g64"]


def softmax(values):
    top = max(values)
    weights = [math.exp(v - top) for v in values]
    total = sum(weights)
    return [w / total for w in weights]


def divergence(golden, found):
    p, q = softmax(golden), softmax(found)
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


@pytest.mark.parametrize("name", LLAMA_FIXTURES)
@pytest.mark.parametrize("precision", ["f32", "int16", "int12", "int8"])
def test_logits(name, precision):
    golden = json.loads((TINY_MODELS / name / "golden.json").read_text())
    for prompt in golden["prompts"]:
        result = run("logits", TINY_MODELS / name, "--tokens", ",".join(map(str, prompt["tokens"])),
                     "--positions", "all", "--greedy", 32, "--precision", precision, "--json")
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
        assert found["tokens"] == prompt["tokens"]
        by_position = {p["pos"]: p["logits"] for p in found["positions"]}
        for expected in prompt["positions"]:
            values = array.array("f", base64.b64decode(expected["logits_f32_b64"]))
            logits = by_position[expected["pos"]]
            assert len(logits) == golden["vocab_size"]
            worst = max(abs(a - b) for a, b in zip(values, logits))
            if precision == "f32":
                assert worst <= 1e-4 * expected["std"]
                assert divergence(values, logits) <= 1e-8
            else:
                assert divergence(values, logits) <= 1e-3
                chosen = logits.index(max(logits))
                assert values[expected["argmax"]] - values[chosen] <= 0.05 * expected["std"]
        if precision == "f32":
            assert found["greedy"] == prompt["greedy"]["ids"]


@pytest.mark.parametrize("name", LLAMA_FIXTURES)
def test_tokenizer(name):
    golden = json.loads((TINY_MODELS / name / "golden.json").read_text())["tokenizer"]
    requests = [{"text": case["text"], "add_special": special}
                for case in golden["encode"] for special in (False, True)]
    result = run("tokenize", TINY_MODELS / name, "--json", input="".join(json.dumps(r) + "\n" for r in requests))
    answers = [json.loads(line)["ids"] for line in result.stdout.splitlines()]
    expected = [case[key] for case in golden["encode"] for key in ("ids", "ids_with_special")]
    assert answers == expected
