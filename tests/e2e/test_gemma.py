"""Gemma-3-270M, real weights. Runs only where MLX_SERVE_GEMMA_GGUF names the file (240 MB, Gemma's terms, never
redistributed): tests/reference/compare_llama.py tells where it comes from."""
import hashlib
import os
import re

import pytest

from conftest import run

GGUF = os.environ.get("MLX_SERVE_GEMMA_GGUF")
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

pytestmark = pytest.mark.skipif(not GGUF, reason="MLX_SERVE_GEMMA_GGUF does not name a gemma-3-270m-q4_k_m.gguf")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with open(GGUF, "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256
    directory = tmp_path_factory.mktemp("gemma") / "model"
    result = run("import", GGUF, "--out", directory)
    assert result.returncode == 0, result.stderr
    worst = re.search(r"largest relative error of a converted tensor: (\S+)", result.stdout + result.stderr)
    assert 0 < float(worst.group(1)) < 5e-3
    return directory


def test_continues_sensibly(model):
    result = run("run", model, "The capital of France is", "--raw", "--max-tokens", 24)
    assert result.returncode == 0
    assert result.stdout.startswith(" the capital of the country of France. It is the largest city in France")


def test_info(model):
    text = run("info", model).stdout
    assert "gemma3_text, 18 layers" in text and "512 tokens in 15 of 18 layers" in text
    assert "5-bit affine, group 32" in text and "BOS <bos>, EOS <eos>" in text
