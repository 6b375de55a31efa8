"""The server below the client: sockets, hang-ups, signals."""
import http.client
import json
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

from conftest import ASAN_BINARY, BINARY, MODEL, TINY_MODELS, Server, run

CAPITAL = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}


def post(port, body, path="/v1/chat/completions"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", path, body if isinstance(body, (bytes, str)) else json.dumps(body),
                       {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response, text


def test_health(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/health")
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())) == (200, {"status": "ok"})


def test_an_ipv6_address_is_told_as_a_url():
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6")
    served = Server("--host", "::1", model=TINY_MODELS / "smollm2-bf16")
    with urllib.request.urlopen(served.url + "/v1/models", timeout=10) as response:
        assert json.loads(response.read())["object"] == "list"
    assert served.stop() == 0


def test_unknown_route_and_method(server):
    response, text = post(server.port, CAPITAL, "/v1/nothing")
    assert response.status == 404 and json.loads(text)["error"]["code"] == "unknown_url"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("DELETE", "/v1/chat/completions")
    response = connection.getresponse()
    assert response.status == 405 and response.getheader("Allow")
    assert json.loads(response.read())["error"]["code"] == "method_not_supported"


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"nonsense", b'{"messages":[}', b'{"messages":[],}', b'{"a":"\xff"}',
    b'{"a":"\\ud800"}', b"[" * 100000, b'{"messages":NaN}', b"\x00" * 100,
])
def test_bad_json(server, body):
    response, text = post(server.port, body)
    assert response.status == 400
    error = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] in ("invalid_json", "invalid_type")


def test_ignored_fields_are_named(server):
    response, _ = post(server.port, {**CAPITAL, "max_tokens": 1, "no_such_field": 1})
    assert response.status == 200
    assert response.getheader("x-ignored-fields") == "no_such_field"


def test_foreign_pages_are_refused(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/v1/models", headers={"Origin": "https://evil.example"})
    response = connection.getresponse()
    assert response.status == 403
    assert json.loads(response.read())["error"]["code"] == "origin_not_allowed"
    connection.close()
    connection.request("GET", "/v1/models", headers={"Host": "evil.example"})
    response = connection.getresponse()
    assert response.status == 403
    assert json.loads(response.read())["error"]["code"] == "host_not_allowed"


def stream_socket(port, max_tokens=2000):
    """A streaming request whose first bytes of text have arrived."""
    body = json.dumps({"messages": [{"role": "user", "content": "Write a very long story."}],
                       "stream": True, "max_tokens": max_tokens, "ignore_eos": True}).encode()
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
                   + str(len(body)).encode() + b"\r\n\r\n" + body)
    seen = b""
    while b'"content":"' not in seen.replace(b'"content":""', b""):
        piece = client.recv(4096)
        assert piece
        seen += piece
    return client


def test_hang_up_frees_the_slot():
    """With one slot, a second request is only answered soon if the first was cancelled."""
    served = Server("--parallel", "1")
    try:
        stream_socket(served.port, 8000).close()
        start = time.monotonic()
        response, text = post(served.port, {**CAPITAL, "max_tokens": 20})
        assert response.status == 200 and b"Paris" in text
        assert time.monotonic() - start < 10
    finally:
        assert served.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_stream_in_order(number):
    served = Server()
    client = stream_socket(served.port, 8000)
    start = time.monotonic()
    assert served.stop(number) == 0
    assert time.monotonic() - start < 10
    client.close()


def test_signal_while_loading_ends_at_once():
    """As soon as the port answers, which is before the weights are read. On a machine that has loaded by then, the
    ordinary end is as good."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([BINARY, "serve", str(MODEL), "--port", str(port)], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.002)
    start = time.monotonic()
    process.terminate()
    text = process.communicate(timeout=20)[1]
    assert process.returncode == 0
    if "still loading" in text:
        assert time.monotonic() - start < 1
    else:
        assert "Ctrl-C stops" in text and "stopping" in text


def test_port_in_use(server):
    result = run("--model", MODEL, "--serve", "--port", server.port)
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert str(server.port) in result.stderr and "in use" in result.stderr


def test_sanitized_server_survives_abuse():
    """Malformed bytes under ASan and UBSan; afterwards it still answers and ends without a report."""
    served = Server(binary=ASAN_BINARY, model=TINY_MODELS / "llama3-q4-g64")
    try:
        for data in (b"", b"\x00\xff" * 50, b"GET", b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n",
                     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /" + b"a" * 70000,
                     b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{",
                     b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
                     b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"):
            client = socket.create_connection(("127.0.0.1", served.port), timeout=5)
            client.sendall(data)
            client.close()
        for body in (b"{", b"[" * 5000, b'{"messages":[{"role":"user","content":["x"]}]}',
                     b'{"messages":[{"role":"user","content":"' + b"a" * 100000 + b'"}]}'):
            response, _ = post(served.port, body)
            assert response.status == 400
        response, text = post(served.port, {**CAPITAL, "max_tokens": 4})
        assert response.status == 200 and json.loads(text)["usage"]["completion_tokens"] <= 4
    finally:
        assert served.stop() == 0


def completion_offsets(port, body):
    """(text, tokens, text_offset) of a completion, whole and streamed."""
    whole = json.loads(post(port, body, "/v1/completions")[1])["choices"][0]
    text, tokens, offsets = "", [], []
    for event in post(port, {**body, "stream": True}, "/v1/completions")[1].decode().split("\n\n"):
        if event.startswith("data: {"):
            choice, = json.loads(event[6:])["choices"]
            text += choice["text"]
            tokens += (choice["logprobs"] or {}).get("tokens", [])
            offsets += (choice["logprobs"] or {}).get("text_offset", [])
    return (whole["text"], whole["logprobs"]["tokens"], whole["logprobs"]["text_offset"]), (text, tokens, offsets)


def test_streamed_offsets_are_those_of_the_whole():
    """Random weights give bytes that are no UTF-8, and tokens that end within a character."""
    server = Server("--threads", "1", model=TINY_MODELS / "qwen3-q4-g32")
    try:
        for prompt in ([5, 6], [7], "hello 42 hello Paris", "\\n Paris", "a <think> é"):
            body = {"prompt": prompt, "max_tokens": 24, "temperature": 0, "echo": True, "logprobs": 0}
            whole, streamed = completion_offsets(server.port, body)
            text, _, offsets = whole
            assert streamed == whole
            assert offsets == sorted(offsets) and offsets[-1] <= len(text)
    finally:
        server.stop()


def test_offsets_of_what_follows_bytes_that_are_no_text():
    """With byte fallback a run of bytes is told when it ends, in as many U+FFFD as the run has bytes."""
    server = Server("--threads", "1", model=TINY_MODELS / "phi3-q4-g64")
    try:
        bias = dict.fromkeys(("1", "173", "193", "306"), 100)  # <s>, <0xA5>, <0xB9>, a
        for seed in range(4):
            body = {"prompt": [5], "max_tokens": 100, "temperature": 2, "seed": seed, "logit_bias": bias, "logprobs": 0}
            whole, streamed = completion_offsets(server.port, body)
            text, tokens, offsets = whole
            assert set(tokens) == {"", "a", "bytes:\\xa5", "bytes:\\xb9"}
            assert streamed == whole
            at = 0
            for token, offset in zip(tokens, offsets, strict=True):
                assert token.startswith("bytes:") or offset == at or not token and offset <= at
                at += len(token) if not token.startswith("bytes:") else 1
            assert at == len(text)
    finally:
        server.stop()