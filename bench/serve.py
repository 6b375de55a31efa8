#!/usr/bin/env python3
"""The server under load, beside llama_cpp.server (llama-cpp-python) on the same model in the same run.

    python3 bench/serve.py MODEL_DIR [--gguf FILE --python PYTHON] [--streams 16] [--tokens 64] [--rounds 3]

PYTHON is an interpreter with llama-cpp-python[server]; without --gguf only mlx-serve is measured. The two servers take
turns, one process at a time. Prints a table of medians over the rounds:

  one, many      tokens/s over all streams, each `tokens` long, at a fresh prompt of some 30 tokens, from the first
                 request to the last byte; --end-ids never end one
  TTFT           seconds to the first text of a prompt of about 2,000 tokens, new and sent again
  overhead       processor time of the HTTP threads for each streamed token: HTTP, JSON, sockets (mlx-serve)

Both get as many threads as there are processors unless --threads says otherwise. The client runs on the same ones, so
it does as little as a client can: it is woken only when 4 KB of a stream lie in its socket or the stream has ended,
keeps the bytes, and reads how many tokens they were once the time is taken. The servers send each token by itself all
the same. Needs only the standard library, and Linux for the overhead.
"""
import argparse
import http.client
import json
import os
import pathlib
import re
import selectors
import socket
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORDS = "river stone lamp cloud door winter bread glass field engine letter island copper window garden paper".split()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Served:
    """A server process, ready to answer."""

    def __init__(self, name, command, port):
        self.name, self.port = name, port
        self.output = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdout=self.output, stderr=self.output)
        deadline = time.monotonic() + 120
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.output.seek(0)
                raise SystemExit(f"{name} did not start: " + self.output.read()[-2000:].decode(errors="replace"))
            time.sleep(0.1)

    def is_ready(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/v1/models")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def front_seconds(self):
        """Processor time of libmicrohttpd's threads, which do everything but inference."""
        total = 0
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            name = (task / "comm").read_text().strip()
            if name.startswith("MHD"):
                total += int((task / "schedstat").read_text().split()[0])
        return total * 1e-9


def make_prompt(number, words):
    """Text that no other number shares a beginning with."""
    return f"Note {number}. " + " ".join(WORDS[(i * 7 + i // 16 * number + number) % len(WORDS)] for i in range(words))


def completion_request(prompt, tokens, end_ids):
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0,
                       "stream_options": {"include_usage": True},
                       "logit_bias": {token: -100 for token in end_ids}}).encode()
    return (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


class Stream:
    """One streamed completion, read without threads. The server closes the connection at its end."""

    def __init__(self, port, prompt, tokens, end_ids, wake_bytes):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wake_bytes)
        self.start = time.perf_counter()
        self.first, self.pieces = None, []
        self.socket.sendall(completion_request(prompt, tokens, end_ids))
        self.socket.setblocking(False)

    def read(self):
        """False once the stream is complete."""
        piece = self.socket.recv(1 << 16)
        self.pieces.append(piece)
        if self.first is None and re.search(rb'"text": ?"[^"]', piece):
            self.first = time.perf_counter()
        return bool(piece)

    def check(self, tokens):
        """What the server says it sent is what was asked for."""
        self.socket.close()
        data = b"".join(self.pieces)
        counted = re.findall(rb'"completion_tokens": ?(\d+)', data)
        if b"[DONE]" not in data or b'"finish_reason":"length"' not in data.replace(b": ", b":") or \
                counted and int(counted[-1]) != tokens:
            raise SystemExit("the stream is not what was asked for: " + data[-1000:].decode(errors="replace"))


def run_streams(port, prompts, tokens, end_ids, wake_bytes=4096):
    """Seconds for all of them, and the streams."""
    begin = time.perf_counter()
    streams = [Stream(port, prompt, tokens, end_ids, wake_bytes) for prompt in prompts]
    selector = selectors.DefaultSelector()
    for stream in streams:
        selector.register(stream.socket, selectors.EVENT_READ, stream)
    left = len(streams)
    while left:
        for key, _ in selector.select():
            if not key.data.read():
                left -= 1
                selector.unregister(key.fileobj)
    seconds = time.perf_counter() - begin
    for stream in streams:
        stream.check(tokens)
    return seconds, streams


def measure(served, options, round_number):
    def run(numbers, words, tokens, **how):
        return run_streams(served.port, [make_prompt(1000 * round_number + i, words) for i in numbers], tokens,
                           options.end_ids, **how)
    run([0], 20, 8)
    seconds, _ = run([1], 20, options.tokens)
    result = {"one": options.tokens / seconds}
    before = served.front_seconds()
    seconds, _ = run(range(10, 10 + options.streams), 20, options.tokens)
    result["many"] = options.tokens * options.streams / seconds
    result["overhead"] = (served.front_seconds() - before) / (options.tokens * options.streams)
    for name in ("fresh", "cached"):
        _, (stream,) = run([5], options.words, 4, wake_bytes=1)
        result[name] = stream.first - stream.start
    return result


def servers(options):
    def ours():
        port = free_port()
        return Served("mlx-serve", [options.binary, "serve", options.model, "--port", str(port), "--threads",
                                    str(options.threads), "--parallel", str(options.streams), "--ctx", "4096"], port)

    def theirs():
        port = free_port()
        return Served("llama_cpp.server", [options.python, "-m", "llama_cpp.server", "--model", options.gguf,
                                           "--port", str(port), "--n_threads", str(options.threads),
                                           "--n_threads_batch", str(options.threads), "--n_ctx", "4096",
                                           # Else a request cuts off the one that runs.
                                           "--interrupt_requests", "false"], port)
    return [ours, theirs] if options.gguf else [ours]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--gguf", help="the same model for llama_cpp.server")
    parser.add_argument("--python", default="python3")
    parser.add_argument("--binary", default=str(ROOT / "build/release/mlx-serve"))
    parser.add_argument("--end-ids", type=lambda text: text.split(","), default=["0", "2"],
                        help="token ids that end a text (default: SmolLM2's)")
    parser.add_argument("--words", type=int, default=1400, help="length of the long prompt")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    results = {}
    for number in range(options.rounds):
        for start in servers(options):
            served = start()
            try:
                results.setdefault(served.name, []).append(measure(served, options, number + 1))
            finally:
                served.stop()
    print(f"{options.streams} streams of {options.tokens} tokens, {options.threads} threads, "
          f"medians of {options.rounds} rounds")
    print(f"{'':18}{'one':>10}{'many':>10}{'many/one':>10}{'TTFT 2k':>10}{'again':>10}{'again/new':>11}{'overhead':>12}")
    for name, rounds in results.items():
        median = {key: statistics.median(result[key] for result in rounds) for key in rounds[0]}
        overhead = f"{median['overhead'] * 1e6:9.1f} us" if name == "mlx-serve" else ""
        print(f"{name:18}{median['one']:10.1f}{median['many']:10.1f}{median['many'] / median['one']:10.2f}"
              f"{median['fresh']:9.3f}s{median['cached']:9.3f}s{median['cached'] / median['fresh']:11.3f}{overhead:>12}")


if __name__ == "__main__":
    main()
