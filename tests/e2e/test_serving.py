"""Many at once: mixed streams through the official client and raw sockets, and a soak of mixed load.

MLX_SERVE_SOAK_SECONDS sets the length of the soak (60 by default; 600 for a long one), of which at least the
first 30 are warm-up: by then every slot has had its longest sequence, and the allocator its pages."""
import asyncio
import json
import os
import random
import time

import openai
import pytest

from conftest import ASAN_BINARY, BINARY, MODEL, TINY_MODELS, TSAN_BINARY, Server

SOAK_SECONDS = float(os.environ.get("MLX_SERVE_SOAK_SECONDS", "60"))
TINY = TINY_MODELS / "smollm2-bf16"
TOPICS = ["the sea", "a clock", "winter", "bread", "a lighthouse", "the moon", "old maps", "a violin"]


def request_for(number, tokens):
    """The fields of one of many different requests, each with a fixed answer: greedy, or with a seed."""
    topic = TOPICS[number % len(TOPICS)]
    padding = "Remember this: " + "one two three four. " * (8 * (number % 5))
    fields = {"messages": [{"role": "user", "content": f"{padding}Tell me about {topic}, number {number}."}],
              "max_tokens": tokens // 4 + number * 7 % tokens}
    if number % 3 == 1:
        fields.update(temperature=0.9, top_p=0.95, seed=number)
    elif number % 3 == 2:
        fields.update(repetition_penalty=1.1, stop=["\n\n"])
    return fields


async def ask(client, fields, stream):
    """(text, finish_reason) of one choice."""
    if not stream:
        reply = await client.chat.completions.create(model="any", **extend(fields))
        choice = reply.choices[0]
        return choice.message.content, choice.finish_reason
    text, reason = "", None
    async for chunk in await client.chat.completions.create(model="any", stream=True, **extend(fields)):
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            reason = chunk.choices[0].finish_reason or reason
    return text, reason


def extend(fields):
    """Fields that the client does not know go into the extra body."""
    known = {key: value for key, value in fields.items() if key != "repetition_penalty"}
    extra = {key: value for key, value in fields.items() if key == "repetition_penalty"}
    return {**known, "extra_body": extra}


async def leave_stream(client, fields, chunks):
    """Closes a stream through the client after some chunks."""
    stream = await client.chat.completions.create(model="any", stream=True, **extend(fields))
    async for _ in stream:
        chunks -= 1
        if chunks <= 0:
            break
    await stream.close()


async def hang_up(port, fields, stream, seconds):
    """A raw socket that sends a request and vanishes, whatever the server is doing then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({**fields, "stream": stream, "max_tokens": 2000, "ignore_eos": True}).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
                 + body)
    await writer.drain()
    await asyncio.sleep(seconds)
    writer.transport.abort()


async def get(port, path):
    """(status, body) of a GET."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    data = await reader.read()
    writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


async def metric(port, name):
    _, text = await get(port, "/metrics")
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " "))


async def wait_until_quiet(port, seconds):
    deadline = time.monotonic() + seconds
    while await metric(port, "mlx_serve_requests_running") + await metric(port, "mlx_serve_requests_waiting"):
        assert time.monotonic() < deadline, "requests that nobody waits for are still running"
        await asyncio.sleep(0.1)


def make_client(server):
    return openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=300)


async def mixed_streams(server, count, tokens):
    client = make_client(server)
    requests = [request_for(number, tokens) for number in range(count)]
    serial = [await ask(client, fields, number % 2) for number, fields in enumerate(requests)]
    leavers = [leave_stream(client, request_for(100 + i, tokens), 2 + i) for i in range(count // 8)]
    leavers += [hang_up(server.port, request_for(200 + i, tokens), i % 2, 0.05 * i) for i in range(count // 4)]
    together = await asyncio.gather(*(ask(client, fields, True) for fields in requests), *leavers)
    assert together[:count] == serial
    await wait_until_quiet(server.port, 4)
    await client.close()


def test_32_mixed_streams_equal_their_serial_results():
    served = Server("--parallel", "16")
    try:
        asyncio.run(mixed_streams(served, 32, 40))
    finally:
        assert served.stop() == 0


@pytest.mark.parametrize("binary", [ASAN_BINARY, TSAN_BINARY], ids=["asan", "tsan"])
def test_mixed_streams_under_sanitizers(binary):
    served = Server("--parallel", "4", binary=binary, model=TINY)
    try:
        asyncio.run(mixed_streams(served, 12, 16))
    finally:
        assert served.stop() == 0


def resident_bytes(server):
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


async def soak_worker(server, client, expected, until, dice, counts):
    while time.monotonic() < until:
        number = dice.randrange(len(expected))
        kind = dice.random()
        fields = request_for(number, 24)
        if kind < 0.7:
            assert await ask(client, fields, dice.random() < 0.7) == expected[number]
            counts["answered"] += 1
        elif kind < 0.8:
            await leave_stream(client, fields, dice.randrange(1, 8))
        elif kind < 0.9:
            await hang_up(server.port, fields, dice.random() < 0.5, dice.random() * 0.3)
        elif kind < 0.95:
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(model="any", messages=[], max_tokens=1)
        else:
            assert (await get(server.port, dice.choice(["/health", "/metrics", "/slots", "/v1/models"])))[0] == 200


async def soak(server, seconds, workers):
    """Returns resident memory after warm-up and at the end."""
    client = make_client(server)
    dice = random.Random(5)
    counts = {"answered": 0}
    expected = [await ask(client, request_for(number, 24), False) for number in range(24)]
    levels = []
    warm_up = max(30, seconds * 0.35)
    for part in (warm_up, max(20, seconds - warm_up)):
        until = time.monotonic() + part
        await asyncio.gather(*(soak_worker(server, client, expected, until, dice, counts) for _ in range(workers)))
        await wait_until_quiet(server.port, 4)
        levels.append(resident_bytes(server))
    await client.close()
    assert counts["answered"] > 2 * workers
    return levels


def test_soak_keeps_memory_and_loses_nothing():
    # Little KV memory, so that all of it has been written to before the warm-up ends.
    served = Server("--parallel", "8", "--kv-memory", "96M")
    try:
        warm, end = asyncio.run(soak(served, SOAK_SECONDS, 12))
        assert end <= warm * 1.02, f"{warm} bytes after warm-up, {end} at the end"
    finally:
        assert served.stop() == 0


@pytest.mark.parametrize("stream", [False, True])
def test_hang_ups_are_noticed_in_every_state(stream):
    """One slot: of three requests that vanish one decodes or prefills and two wait."""
    async def check(server):
        fields = {"messages": [{"role": "user", "content": "word " * 1500}]}
        await asyncio.gather(*(hang_up(server.port, fields, stream, 0.3) for _ in range(3)))
        await wait_until_quiet(server.port, 2.5)
        assert await metric(server.port, "mlx_serve_requests_cancelled_total") == 3

    served = Server("--parallel", "1")
    try:
        asyncio.run(check(served))
    finally:
        assert served.stop() == 0
