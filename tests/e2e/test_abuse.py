"""Hostile bytes: thousands of broken, truncated and slow requests. The server answers each cleanly or closes,
never with a success that was not deserved or with a 500, loses no descriptor and no memory, and goes on serving."""
import asyncio
import json
import os
import random
import re

import pytest

from conftest import ASAN_BINARY, BINARY, TINY_MODELS, TSAN_BINARY, Server
from test_serving import get, metric, resident_bytes, wait_until_quiet

TINY = TINY_MODELS / "llama3-q4-g64"
BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}).encode()
HOST = b"Host: localhost\r\n"


def chat(body, fields=b"", path=b"/v1/chat/completions"):
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + fields + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(*chunks):
    return (b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
            + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n")


# Requests with the only statuses that are right for them; 0 is a close without an answer.
KNOWN = [
    (chat(BODY), {200}),
    (chunked(BODY[:7], BODY[7:]), {200}),
    (b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n", {200}),
    (b"GET http://localhost/v1/models HTTP/1.1\r\n" + HOST + b"\r\n", {200}),
    (b"GET /v1/models HTTP/1.0\r\n\r\n", {200}),
    (b"HEAD /props HTTP/1.1\r\n" + HOST + b"\r\n", {200}),
    (b"OPTIONS /anything HTTP/1.1\r\n" + HOST + b"\r\n", {204}),
    (b"GET /health HTTP/1.1\r\n\r\n", {400}),
    (b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n", {400}),
    (b"GET /health HTTP/1.1\r\n" + HOST + b"no colon\r\n\r\n", {400}),
    (b"GET /health HTTP/1.1\r\n" + HOST + b"x-a : b\r\n\r\n", {400}),
    (b"GET /health HTTP/1.1\r\n" + HOST + b"x-a: b\x01\r\n\r\n", {400}),
    (b"GET /health HTTP/2.0\r\n" + HOST + b"\r\n", {400, 505}),
    (b"GET /health HTTP/1.7\r\n" + HOST + b"\r\n", {400, 505}),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 60 + b"\r\n\r\n", {0, 400, 505}),
    (b"GARBAGE\r\n\r\n", {0, 400}),
    (b"GET /../health HTTP/1.1\r\n" + HOST + b"\r\n", {404}),
    (b"GET /%2e%2e/health HTTP/1.1\r\n" + HOST + b"\r\n", {404}),
    (b"GET //health HTTP/1.1\r\n" + HOST + b"\r\n", {404}),
    (b"DELETE /health HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
    (b"B\xc3\xa4H /health HTTP/1.1\r\n" + HOST + b"\r\n", {400, 405}),
    (b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"\r\n", {411}),
    (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {414}),
    (b"GET /health HTTP/1.1\r\n" + HOST + b"x: y\r\n" * 130 + b"\r\n", {431}),
    (b"GET /health HTTP/1.1\r\n" + HOST + b"x: " + b"y" * 70000 + b"\r\n\r\n", {431}),
    (chat(BODY, b"Content-Encoding: gzip\r\n"), {415}),
    (b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999\r\n\r\n", {413}),
    (b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", {400}),
    (b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Content-Length: 1e1\r\n\r\n", {400}),
    (b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n{}  ", {400}),
    (b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
     + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
    (b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", {400}),
    (b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
     + b"f" * 30 + b"\r\n", {400, 413}),
    (b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", {403}),
    (b"GET /health HTTP/1.1\r\n" + HOST + b"Origin: https://evil.example\r\n\r\n", {403}),
    (chat(b"{" * 300), {400}),
    (chat(b"[" * 300 + b"]" * 300), {400}),
    (chat(b'{"messages":[{"role":"user","content":"\xff"}]}'), {400}),
    (chat(b'{"messages":[{"role":"user","content":"\\udc00"}]}'), {400}),
    (chat(b'{"messages":' + b"[" * 256 + b"]" * 256 + b"}"), {400}),
    (chat(BODY[:-1] + b',"temperature":1e999}'), {400}),
    (chat(b'{"prompt":[-1]}', path=b"/v1/completions"), {400}),
    (chat(b'{"tokens":[99999999]}', path=b"/detokenize"), {400}),
]
# What mutated requests may be answered with: by chance they may be right, but never our own fault.
POSSIBLE = {0, 200, 204, 400, 401, 403, 404, 405, 411, 413, 414, 415, 431, 503, 505}


async def exchange(port, data, dice, slow=False, cut=False):
    """Sends the bytes, maybe in drips, maybe closing without waiting; the status, or 0 for a close."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if slow:
            for at in range(0, len(data), max(1, len(data) // 8)):
                writer.write(data[at:at + max(1, len(data) // 8)])
                await writer.drain()
                await asyncio.sleep(dice.random() * 0.05)
        else:
            writer.write(data)
        if cut:
            await asyncio.sleep(dice.random() * 0.01)
            return None
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        except asyncio.TimeoutError:
            return None  # mutated to something that is not complete: the server rightly waits
        except asyncio.IncompleteReadError as error:
            assert error.partial == b"", error.partial
            return 0
        status = int(re.match(rb"HTTP/1\.1 (\d\d\d) ", head).group(1))
        if status == 100:
            return None
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        body = await asyncio.wait_for(reader.readexactly(int(length.group(1))), 20) \
            if length and not data.startswith(b"HEAD") else b""
        if body and b"application/json" in head:
            json.loads(body)
        return status
    except (ConnectionResetError, BrokenPipeError):
        return 0
    finally:
        writer.transport.abort()


def mutate(data, dice):
    data = bytearray(data)
    for _ in range(dice.randrange(1, 6)):
        at = dice.randrange(len(data) + 1)
        choice = dice.randrange(5)
        if choice == 0 and at < len(data):
            data[at] = dice.randrange(256)
        elif choice == 1:
            del data[at:at + dice.randrange(1, 9)]
        elif choice == 2:
            data[at:at] = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 9)))
        elif choice == 3:
            data[at:at] = data[max(0, at - 12):at]
        else:
            data[at:at] = dice.choice([b"\r\n", b"\n", b"\0", b" ", b":", b"\r\n\r\n", b"%00", b"\xff"])
    return bytes(data)


async def abuse_worker(port, count, dice, wrong, seen):
    for _ in range(count):
        kind = dice.random()
        data, right = dice.choice(KNOWN)
        if kind < 0.35:
            status = await exchange(port, data, dice, slow=dice.random() < 0.1)
        elif kind < 0.5:
            status, right = await exchange(port, data[:dice.randrange(len(data))], dice, cut=True), POSSIBLE
        elif kind < 0.9:
            # Ends the connection's input, so that nothing is waited for.
            status, right = await exchange(port, mutate(data, dice) + b"\r\n\r\n" * 3, dice,
                                           cut=dice.random() < 0.8), POSSIBLE
        else:
            noise = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 600)))
            status, right = await exchange(port, noise, dice, cut=True), POSSIBLE
        if status is not None:
            seen[status] = seen.get(status, 0) + 1
            if status not in right:
                wrong.append((status, data[:200]))


def open_files(server):
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


async def abuse(server, count, workers):
    dice = random.Random(11)
    wrong, seen = [], {}
    files = open_files(server)
    for data, right in KNOWN:
        status = await exchange(server.port, data, dice)
        assert status in right, (status, data[:200])
    levels = []
    for share in (0.4, 0.6):
        await asyncio.gather(*(abuse_worker(server.port, int(count * share / workers), random.Random(i), wrong, seen)
                               for i in range(workers)))
        await wait_until_quiet(server.port, 10)
        levels.append(resident_bytes(server))
    assert not wrong, wrong[:5]
    assert not set(seen) - POSSIBLE and seen.get(200, 0) > 0
    for _ in range(60):
        if open_files(server) <= files + 2:
            break
        await asyncio.sleep(0.25)
    assert open_files(server) <= files + 2, "descriptors are lost"
    assert (await get(server.port, "/health"))[0] == 200
    assert await exchange(server.port, chat(BODY), dice) == 200
    return levels


def test_10000_hostile_requests():
    served = Server(model=TINY)
    try:
        early, late = asyncio.run(abuse(served, 10000, 48))
        assert late < early + (8 << 20), "memory grows with abuse"
    finally:
        assert served.stop() == 0


@pytest.mark.parametrize("binary", [ASAN_BINARY, TSAN_BINARY], ids=["asan", "tsan"])
def test_hostile_requests_under_sanitizers(binary):
    served = Server(binary=binary, model=TINY)
    try:
        asyncio.run(abuse(served, 1200, 16))
    finally:
        assert served.stop() == 0


def test_other_addresses_need_a_key():
    from conftest import run
    result = run("serve", TINY, "--host", "0.0.0.0", "--port", "0")
    assert result.returncode == 2 and "--api-key" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_key():
    import openai
    served = Server("--api-key", "sk-one", "--api-key", "sk-two", model=TINY)
    try:
        for key in ("sk-one", "sk-two"):
            client = openai.OpenAI(base_url=served.url + "/v1", api_key=key, max_retries=0)
            assert client.models.list().data
        client = openai.OpenAI(base_url=served.url + "/v1", api_key="sk-three", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    finally:
        assert served.stop() == 0


def test_log_has_a_line_for_each_request_and_no_text():
    served = Server(model=TINY)
    secret = json.dumps({"messages": [{"role": "user", "content": "xylophone"}], "max_tokens": 3}).encode()
    try:
        async def send():
            dice = random.Random(1)
            assert await exchange(served.port, chat(secret), dice) == 200
            assert await exchange(served.port, chat(b'{"xylophone":'), dice) == 400
        asyncio.run(send())
    finally:
        assert served.stop() == 0
    lines = [line for line in served.lines if " request id=req_" in line]
    assert len(lines) == 2
    lines.sort(key=lambda line: "status=400" in line)  # a line follows its answer, on the thread of its connection
    assert re.search(r'method="POST" route=/v1/chat/completions status=200 ms=[\d.]+ choices=1 prompt_tokens=\d+ '
                     r'cached_tokens=\d+ completion_tokens=\d queue_ms=[\d.]+ ttft_ms=[\d.]+ finish=\w+$', lines[0])
    assert "status=400" in lines[1] and "error=invalid_json" in lines[1]
    assert "xylophone" not in "".join(served.lines)


def test_a_log_that_nobody_reads_does_not_stop_the_server():
    import subprocess
    reader, writer = os.pipe()
    process = subprocess.Popen([BINARY, "serve", str(TINY), "--port", "0"], stderr=writer)
    os.close(writer)
    try:
        line = b""
        while b"/v1" not in line:
            line += os.read(reader, 200)
        port = int(re.search(rb"127\.0\.0\.1:(\d+)", line).group(1))

        async def send():
            for _ in range(1500):
                assert (await get(port, "/health"))[0] == 200
        asyncio.run(send())
    finally:
        process.terminate()
        assert process.wait(15) == 0
        os.close(reader)
