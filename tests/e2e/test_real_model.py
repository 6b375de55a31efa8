"""What the imported model must keep: its tokenizer's ids, and logits near the float32 ones."""
import json
import math

import pytest

from conftest import MODEL, ROOT, run
from test_golden import divergence

PROMPT = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
CASES = json.loads((ROOT / "tests/data/tokenizer/smollm2.json").read_text())


def ask(command, requests):
    result = run(command, MODEL, "--json", input="".join(json.dumps(r) + "\n" for r in requests))
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_ids_are_hugging_faces():
    cases = CASES["encode"]
    requests = [{"text": case["text"], "add_special": special} for case in cases for special in (False, True)]
    expected = [ids for case in cases for ids in (case["ids"], case.get("ids_special", case["ids"]))]
    assert [answer["ids"] for answer in ask("tokenize", requests)] == expected


@pytest.mark.parametrize("stream", [False, True])
def test_text_is_hugging_faces(stream):
    cases = [(c.get("ids_special", c["ids"]), c["decode"]) for c in CASES["encode"]]
    cases += [(c["ids"], c["text"]) for c in CASES["decode"]]
    answers = ask("detokenize", [{"ids": ids, "stream": stream} for ids, _ in cases])
    found = ["".join(a["chunks"]) if stream else a["text"] for a in answers]
    assert found == [text for _, text in cases]


def logits(precision):
    result = run("logits", MODEL, "--tokens", ",".join(map(str, PROMPT)), "--positions", "all",
                 "--precision", precision, "--json")
    return [p["logits"] for p in json.loads(result.stdout)["positions"]]


@pytest.mark.parametrize("precision", ["int12", "int16"])
def test_default_precision_is_near_float32(precision):
    for reference, found in zip(logits("f32"), logits(precision), strict=True):
        assert all(map(math.isfinite, found))
        assert divergence(reference, found) <= 1e-3
        mean = sum(reference) / len(reference)
        std = math.sqrt(sum((v - mean) ** 2 for v in reference) / len(reference))
        best, chosen = reference.index(max(reference)), found.index(max(found))
        assert reference[best] - reference[chosen] <= 0.05 * std
