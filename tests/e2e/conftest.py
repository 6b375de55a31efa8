"""The real program against the real small model. MLX_SERVE_BIN and MLX_SERVE_MODEL choose others."""
import os
import pathlib
import re
import signal
import subprocess
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("MLX_SERVE_BIN", str(ROOT / "build/release/mlx-serve"))
ASAN_BINARY = os.environ.get("MLX_SERVE_ASAN_BIN", str(ROOT / "build/asan/mlx-serve"))
TSAN_BINARY = os.environ.get("MLX_SERVE_TSAN_BIN", str(ROOT / "build/tsan/mlx-serve"))
MODEL = os.environ.get("MLX_SERVE_MODEL", str(ROOT / "models/SmolLM2-135M-Instruct"))
TINY_MODELS = ROOT / "tests/data/models"


def run(*arguments, binary=BINARY, **options):
    """Runs the program to its end; the result has text in stdout and stderr."""
    options.setdefault("timeout", 120)
    options.setdefault("stdin", subprocess.DEVNULL if "input" not in options else None)
    if options["stdin"] is None:
        del options["stdin"]
    return subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, **options)


class Server:
    """A served model on a port of the system's choice; stop() returns the exit code."""

    def __init__(self, *arguments, binary=BINARY, model=MODEL):
        self.process = subprocess.Popen(
            [binary, "serve", str(model), "--port", "0", *map(str, arguments)],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.lines = []
        self.url = None
        ready = threading.Event()
        self.reader = threading.Thread(target=self._read_lines, args=(ready,), daemon=True)
        self.reader.start()
        ready.wait()
        if not self.url:
            self.process.wait()
            raise RuntimeError("the server did not start: " + "".join(self.lines))

    def _read_lines(self, ready):
        """Keeps what the server says; it is ready with the line that has its address."""
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"(http://(?:127\.0\.0\.1|\[::1\]):(\d+))/v1", line)
            if found and not self.url:
                self.url, self.port = found.group(1), int(found.group(2))
                ready.set()
        ready.set()

    def stop(self, signal_number=signal.SIGTERM):
        self.process.send_signal(signal_number)
        deadline = time.monotonic() + 15
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            return None
        self.reader.join()
        return self.process.returncode


@pytest.fixture(scope="session")
def server():
    served = Server()
    yield served
    assert served.stop() == 0


@pytest.fixture(scope="session")
def client(server):
    import openai
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)
