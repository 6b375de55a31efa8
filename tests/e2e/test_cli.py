"""The command line as a new user meets it."""
import json
import signal
import subprocess
import time

import pytest

from conftest import BINARY, MODEL, TINY_MODELS, run


def one_line(result, code):
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    line, = result.stderr.strip().splitlines()
    assert line.startswith("mlx-serve: ")
    return line


def test_seed_form_answers():
    result = run("--model", MODEL, "--prompt", "What is the capital of France?", "--max-tokens", 40)
    assert result.returncode == 0
    assert "Paris" in result.stdout
    assert "tokens/s" in result.stderr and "peak memory" in result.stderr


def test_run_form_and_equals_form_agree():
    question = "What is the capital of France?"
    a = run("run", MODEL, question, "--max-tokens=12")
    b = run("--model=" + MODEL, "--prompt=" + question, "--temp", "0.0", "--max-tokens", "12")
    c = run("run", MODEL, "--max-tokens", "12", input=question)
    assert a.returncode == b.returncode == c.returncode == 0
    assert a.stdout == b.stdout == c.stdout


def test_max_tokens_and_seed():
    one = run("--model", MODEL, "--prompt", "Tell me a story.", "--max-tokens", 1)
    assert "decode 1 tokens" in one.stderr
    sampled = [run("--model", MODEL, "--prompt", "Tell me a story.", "--max-tokens", 16, "--temp", 1,
                   "--seed", seed).stdout for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_help_and_version():
    for arguments in (["--help"], ["-h"], ["help"], ["help", "serve"], ["serve", "--help"], ["--version"]):
        result = run(*arguments)
        assert result.returncode == 0 and result.stdout and not result.stderr
    assert "--port" in run("serve", "--help").stdout


@pytest.mark.parametrize("arguments, part", [
    ([], "--help"),
    (["frobnicate"], "frobnicate"),
    (["--model"], "--model"),
    (["--model", MODEL, "--nonsense"], "--nonsense"),
    (["--prompt", "hello"], "--model"),
    (["--model", MODEL, "--max-tokens", "0"], "--max-tokens"),
    (["--model", MODEL, "--max-tokens", "4294967297"], "--max-tokens"),
    (["--model", MODEL, "--max-tokens", "99999999999999999999"], "--max-tokens"),
    (["--model", MODEL, "--max-tokens", "ten"], "ten"),
    (["--model", MODEL, "--temp", "nan"], "--temp"),
    (["--model", MODEL, "--temp", "-1"], "--temp"),
    (["--model", MODEL, "--serve", "--port", "65536"], "--port"),
    (["--model", MODEL, "--serve", "--prompt", "x"], "--prompt"),
    (["serve", MODEL, "--host", "0.0.0.0"], "0.0.0.0"),
    (["logits", MODEL, "--tokens", "1,x"], "--tokens"),
    (["logits", MODEL, "--tokens", "1,999999999"], "--tokens"),
    (["import"], "import"),
])
def test_wrong_usage(arguments, part):
    assert part in one_line(run(*arguments), 2)


@pytest.mark.parametrize("arguments, part", [
    (["--model", "/no/such/place"], "/no/such/place"),
    (["--model", "/no/such/place", "--serve"], "/no/such/place"),
    (["--model", "/tmp"], "config.json"),
    (["--model", BINARY], "directory"),
    (["import", "/no/such.gguf", "--out", "/tmp/nothing"], "/no/such.gguf"),
    (["tokenize", "/no/such.json", "--json"], "/no/such.json"),
    (["render", "--template", "/no/such.jinja", "--json"], "/no/such.jinja"),
    (["--model", MODEL, "--backend", "mlx"], "mlx"),
])
def test_failures_are_one_line(arguments, part):
    assert part in one_line(run(*arguments), 1)


def test_prompt_beyond_the_context():
    line = one_line(run("--model", MODEL, "--ctx", 64, "--prompt", "word " * 100), 1)
    assert "64" in line


def test_interrupt_ends_a_reply_cleanly():
    process = subprocess.Popen([BINARY, "--model", MODEL, "--prompt", "Write a very long story.",
                                "--max-tokens", "4000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = process.stdout.read(8)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert (first + out).endswith(b"\n")
    (first + out).decode("utf-8")
    assert b"tokens/s" in err


def test_reader_that_goes_away():
    process = subprocess.Popen([BINARY, "--model", MODEL, "--prompt", "Write a very long story.",
                                "--max-tokens", "4000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(8)
    process.stdout.close()
    assert process.wait(timeout=20) == 1
    assert b"standard output" in process.stderr.read()
    process.stderr.close()


def ask_lines(command, model, requests):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in requests)
    result = run(command, "--model", model, "--json", input=text)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_lines_protocol():
    answers = ask_lines("tokenize", MODEL, [
        {"text": "Hello, world!"}, "not json\n", {"text": 5}, {"text": ""}, {"text": "caf\u00e9 \U0001f600"}])
    assert answers[0]["ids"] and "error" in answers[1] and "error" in answers[2] and answers[3] == {"ids": []}
    back = ask_lines("detokenize", MODEL, [
        {"ids": answers[4]["ids"]}, {"ids": answers[4]["ids"], "stream": True}, {"ids": [-1]}, {"ids": [1 << 40]}])
    assert back[0]["text"] == "caf\u00e9 \U0001f600"
    assert "".join(back[1]["chunks"]) == back[0]["text"] and len(back[1]["chunks"]) == len(answers[4]["ids"]) + 1
    assert "error" in back[2] and "error" in back[3]
    prompt, = ask_lines("render", MODEL, [{"messages": [{"role": "user", "content": "Hi"}],
                                           "add_generation_prompt": True}])
    assert prompt["prompt"].endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_info_and_bench():
    info = run("info", MODEL)
    assert info.returncode == 0
    assert "llama, 30 layers" in info.stdout and "4-bit affine, group 32" in info.stdout
    bench = run("bench", TINY_MODELS / "llama3-q4-g64", "--prefill", 32, "--decode", 4, "--json")
    figures = json.loads(bench.stdout)
    assert figures["prefill_tps"] > 0 and figures["decode_tps"] > 0 and figures["read_gbps"] > 0
    assert figures["depth"] == 32 and figures["batch"] == 1
