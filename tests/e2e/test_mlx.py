"""The program with its MLX engine: golden logits, and the API. On MLX's CPU device unless there is a GPU."""
import array
import asyncio
import base64
import json

import openai
import pytest

from conftest import BINARY, TINY_MODELS, Server, run
from test_serving import metric

pytestmark = pytest.mark.skipif(
    run("logits", TINY_MODELS / "llama3-q4-g64", "--tokens", 1, "--backend", "mlx", "--json").returncode != 0,
    reason="this build of " + BINARY + " has no MLX engine")


@pytest.mark.parametrize("name", ["llama3-q4-g64", "gemma3-mm-q4-g64", "qwen3-q4-g32"])
def test_golden_logits(name):
    golden = json.loads((TINY_MODELS / name / "golden.json").read_text())
    prompt = golden["prompts"][-1]
    result = run("logits", TINY_MODELS / name, "--tokens", ",".join(map(str, prompt["tokens"])), "--backend", "mlx",
                 "--positions", "all", "--greedy", 32, "--precision", "f32", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    for expected in prompt["positions"]:
        values = array.array("f", base64.b64decode(expected["logits_f32_b64"]))
        logits = found["positions"][expected["pos"]]["logits"]
        assert max(abs(a - b) for a, b in zip(values, logits, strict=True)) <= 1e-4 * expected["std"]
    assert found["greedy"] == prompt["greedy"]["ids"]


@pytest.fixture(scope="module")
def served():
    server = Server("--backend", "mlx", "--precision", "f32", "--parallel", 4, model=TINY_MODELS / "llama3-q4-g64")
    yield server
    assert server.stop() == 0


def test_the_api_answers_as_with_the_cpu_engine(served):
    """Greedy alone, several at once, streamed, and with a seed: the same text from both engines."""
    cpu = Server("--backend", "cpu", "--precision", "f32", model=TINY_MODELS / "llama3-q4-g64")
    try:
        texts = []
        for server in (served, cpu):
            client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)
            ask = client.chat.completions.create
            shared = {"model": "default", "max_tokens": 24}
            messages = [[{"role": "user", "content": "hello " * n}] for n in (1, 3, 7)]
            greedy = [ask(messages=m, **shared) for m in messages]
            streams = [ask(messages=m, stream=True, **shared) for m in messages]
            streamed = ["".join(c.choices[0].delta.content or "" for c in s if c.choices) for s in streams]
            assert streamed == [g.choices[0].message.content for g in greedy]
            seeded = ask(messages=messages[0], temperature=1.0, seed=7, **shared)
            texts.append([*streamed, seeded.choices[0].message.content, greedy[0].usage.completion_tokens])
        assert texts[0] == texts[1]
    finally:
        assert cpu.stop() == 0


def test_memory_of_the_device_is_reported(served):
    in_use, peak = (asyncio.run(metric(served.port, f"mlx_serve_device_{name}")) for name in ("bytes", "peak_bytes"))
    assert 0 < in_use <= peak


def test_a_prompt_is_answered():
    result = run("--model", TINY_MODELS / "llama3-q4-g64", "--prompt", "hi", "--max-tokens", 5, "--backend", "mlx")
    assert result.returncode == 0, result.stderr
    assert "decode" in result.stderr
