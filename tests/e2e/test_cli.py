"""The command line as a new user meets it."""
import csv
import json
import os
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


def test_wordless_form_answers():
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
    (["serve", MODEL, "--kv-memory", "2 "], "--kv-memory"),
    (["serve", MODEL, "--kv-memory", "2 B"], "--kv-memory"),
    (["serve", MODEL, "--kv-memory", "2GG"], "--kv-memory"),
    (["serve", MODEL, "--kv-memory", "9000000T"], "--kv-memory"),
    (["serve", MODEL, "--kv-memory", "1K"], "--kv-memory"),
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
])
def test_failures_are_one_line(arguments, part):
    assert part in one_line(run(*arguments), 1)


def test_prompt_beyond_the_context():
    line = one_line(run("--model", MODEL, "--ctx", 64, "--prompt", "word " * 100), 1)
    assert "64" in line


def test_prompt_that_cannot_be_read(tmp_path):
    directory = os.open(tmp_path, os.O_RDONLY)
    assert "standard input" in one_line(run("run", MODEL, stdin=directory), 1)
    os.close(directory)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        for arguments in (["info", MODEL], ["info", MODEL, "--json"], ["logits", MODEL, "--tokens", "1", "--json"],
                          ["run", MODEL, "Hello", "--max-tokens", "2"]):
            result = subprocess.run([BINARY, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
            assert result.returncode == 1 and "cannot write to standard output" in result.stderr


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


def test_info():
    info = run("info", MODEL)
    assert info.returncode == 0
    assert "llama, 30 layers" in info.stdout and "4-bit affine, group 32" in info.stdout


BENCH_FIELDS = {"model", "backend", "threads", "prefill", "depth", "batch", "prefill_tps", "decode_tps",
                "peak_rss_bytes", "weight_bytes", "read_gbps", "int8_gmacs", "prefill_share", "decode_share"}


def check_figures(figures):
    assert BENCH_FIELDS <= figures.keys()
    for name in ("prefill_tps", "decode_tps", "read_gbps", "int8_gmacs", "prefill_share", "decode_share"):
        assert figures[name] > 0
    assert figures["peak_rss_bytes"] > figures["weight_bytes"] > 0
    for name in ("prefill_tps", "decode_tps"):
        assert figures[name + "_min"] <= figures[name] <= figures[name + "_max"]


def test_bench_of_a_model():
    bench = run("bench", TINY_MODELS / "llama3-q4-g64", "--prefill", "32", "--decode", 4, "--json")
    figures = json.loads(bench.stdout)
    check_figures(figures)
    assert (figures["prefill"], figures["depth"], figures["batch"]) == (32, 0, 1)
    assert bench.stderr == ""  # progress is for terminals


def test_bench_of_a_shape():
    arguments = ["bench", "--shape", "smollm2-135m", "--prefill", "8,16", "--depth", "0,32", "--batch", "1,3",
                 "--decode", 2, "--repeat", 1, "--threads", 1]
    lines = [json.loads(line) for line in run(*arguments, "--json").stdout.splitlines()]
    assert [(x["prefill"], x["depth"], x["batch"]) for x in lines] == [
        (p, d, b) for p in (8, 16) for d in (0, 32) for b in (1, 3)]
    for figures in lines:
        check_figures(figures)
    assert lines[0]["model"] == "smollm2-135m" and lines[0]["threads"] == 1
    # 134.5 M weights, 4 bits and a 64th part of two 16-bit numbers each
    assert lines[0]["weight_bytes"] == pytest.approx(134.5e6 * 4.5 / 8, rel=0.01)
    rows = list(csv.DictReader(run(*arguments, "--csv").stdout.splitlines()))
    assert len(rows) == 8 and rows[0].keys() == lines[0].keys()
    assert [row["depth"] for row in rows] == [str(x["depth"]) for x in lines]
    table = run(*arguments).stdout
    assert "smollm2-135m" in table and "GB/s" in table and "peak" in table


@pytest.mark.parametrize("arguments, part", [
    (["bench"], "--shape"),
    (["bench", MODEL, "--shape", "qwen3-4b"], "--shape"),
    (["bench", "--shape", "gpt-5"], "qwen3-4b"),
    (["bench", "--shape", "qwen3-4b", "--depth", "0,x"], "x"),
    (["bench", "--shape", "qwen3-4b", "--depth", "0,"], "--depth"),
    (["bench", "--shape", "qwen3-4b", "--batch", "0"], "--batch"),
    (["bench", "--shape", "qwen3-4b", "--batch", ",".join(["1"] * 33)], "--batch"),
])
def test_bench_usage(arguments, part):
    assert part in one_line(run(*arguments), 2)


def test_bench_refusals():
    assert "context" in one_line(run("bench", "--shape", "smollm2-135m", "--depth", "8192"), 1)
    assert "7 bits" in one_line(run("bench", "--shape", "smollm2-135m", "--bits", "7"), 1)


def test_interrupted_bench():
    process = subprocess.Popen([BINARY, "bench", "--shape", "smollm2-135m", "--decode", "4000"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1 and out == "" and "interrupted" in err
