"""The wire format to the letter: what streams say against what whole replies say, chunk by chunk, and answers that
clients of other servers build on."""
import http.client
import json

import pytest

from conftest import Server, TINY_MODELS

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
EMOJI = [{"role": "user", "content": "Repeat exactly: 😀🎉中文字é"}]


def request(server, method, path, body=None, headers=None):
    """(status, bytes, headers)"""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request(method, path, None if body is None else json.dumps(body), headers or {})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, text, response.headers


def post(server, path, body):
    status, text, _ = request(server, "POST", path, body)
    assert status == 200, text
    return json.loads(text)


def events(server, path, body):
    """The JSON of a stream's events: one line each, [DONE] behind them, one id and time throughout."""
    status, text, headers = request(server, "POST", path, {**body, "stream": True})
    assert status == 200 and headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "no-cache" and headers["X-Accel-Buffering"] == "no"
    assert text.endswith(b"\n\n")
    lines = [line for line in text.decode()[:-2].split("\n\n") if line != ": keep-alive"]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    assert lines.pop() == "data: [DONE]"
    found = [json.loads(line[6:]) for line in lines]
    assert len({(e["id"], e["created"], e["model"], e["system_fingerprint"], e["object"]) for e in found}) == 1
    return found


def split_usage(found, whole, wants_usage):
    """The events with choices; the one with usage has the counts of the whole reply, all others have null."""
    if not wants_usage:
        assert not any("usage" in event for event in found)
        return found
    *rest, last = found
    assert last["choices"] == [] and "timings" in last
    for key in ("prompt_tokens", "completion_tokens", "total_tokens", "completion_tokens_details"):
        assert last["usage"][key] == whole["usage"][key]
    assert all(event["usage"] is None for event in rest)
    return rest


def with_usage(body, wants_usage):
    return {**body, "stream_options": {"include_usage": True}} if wants_usage else body


@pytest.mark.parametrize("wants_usage", [False, True])
@pytest.mark.parametrize("fields", [
    {"messages": CAPITAL},
    {"messages": CAPITAL, "n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 20},
    {"messages": CAPITAL, "logprobs": True, "top_logprobs": 5, "n": 2},
    {"messages": CAPITAL, "logprobs": True, "stop": ["Paris"]},
    {"messages": CAPITAL, "logprobs": True, "stop": ["pital of Fr", "is Paris"]},
    {"messages": CAPITAL, "logprobs": True, "stop": "The capital of Germany"},
    {"messages": CAPITAL, "logprobs": True, "stop": ["The capital of France is", ""], "max_tokens": 4},
    {"messages": CAPITAL, "logprobs": True, "logit_bias": {"2": 100}},
    {"messages": CAPITAL, "logprobs": True, "logit_bias": {"1": 100}, "max_tokens": 4},
    {"messages": CAPITAL, "logprobs": True, "logit_bias": {"180": 100}, "max_tokens": 5},
    {"messages": CAPITAL, "logprobs": True, "response_format": {"type": "json_object"}, "max_tokens": 20},
    *({"messages": EMOJI, "logprobs": True, "top_logprobs": 2, "max_tokens": limit} for limit in range(1, 8)),
    *({"messages": EMOJI, "logprobs": True, "temperature": 2.0, "seed": seed, "max_tokens": 30} for seed in range(4)),
])
def test_chat_stream_says_what_the_whole_reply_says(server, fields, wants_usage):
    whole = post(server, CHAT, fields)
    found = split_usage(events(server, CHAT, with_usage(fields, wants_usage)), whole, wants_usage)
    n = fields.get("n", 1)
    for index, event in enumerate(found[:n]):
        assert event["choices"] == [{"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None,
                                     "finish_reason": None}]
    told = [{"content": "", "logprobs": [], "finish": None} for _ in range(n)]
    for event in found[n:]:
        choice, = event["choices"]
        entry = told[choice["index"]]
        assert entry["finish"] is None, "nothing follows the reason"
        assert set(choice["delta"]) == (set() if choice["finish_reason"] else {"content"})
        assert choice["finish_reason"] or choice["delta"]["content"], "deltas are not empty"
        entry["content"] += choice["delta"].get("content", "")
        entry["logprobs"] += (choice["logprobs"] or {"content": []})["content"]
        entry["finish"] = choice["finish_reason"]
    for choice, entry in zip(whole["choices"], told, strict=True):
        content = choice["message"]["content"]
        assert (content, choice["finish_reason"]) == (entry["content"], entry["finish"])
        if not fields.get("logprobs"):
            assert choice["logprobs"] is None and not entry["logprobs"]
            continue
        assert choice["logprobs"] == {"content": entry["logprobs"], "refusal": None}
        assert b"".join(bytes(e["bytes"]) for e in entry["logprobs"]).decode(errors="replace") == content
        for e in entry["logprobs"]:
            values = [top["logprob"] for top in e["top_logprobs"]]
            assert e["logprob"] <= 0 and values == sorted(values, reverse=True)
            assert len(values) == fields.get("top_logprobs", 0)


@pytest.mark.parametrize("wants_usage", [False, True])
@pytest.mark.parametrize("fields", [
    {"prompt": "Hello"},
    {"prompt": ["Hello", "The"], "n": 2, "temperature": 1, "seed": 3, "max_tokens": 5},
    {"prompt": ["Hello world", "The"], "n": 2, "max_tokens": 5, "echo": True, "logprobs": 2},
    {"prompt": [[19556, 905], [504]], "max_tokens": 4, "echo": True, "logprobs": 0},
    {"prompt": "Hello world", "max_tokens": 0, "echo": True, "logprobs": 1},
    {"prompt": "Hello world", "max_tokens": 0},
    {"prompt": "1, 2, 3,", "max_tokens": 20, "stop": [" 6"], "logprobs": 1},
    {"prompt": "The capital of", "max_tokens": 20, "stop": ["ance"], "logprobs": 1},
    {"prompt": "é中文", "echo": True, "max_tokens": 6, "logprobs": 1},
])
def test_completion_stream_says_what_the_whole_reply_says(server, fields, wants_usage):
    whole = post(server, COMPLETION, fields)
    found = split_usage(events(server, COMPLETION, with_usage(fields, wants_usage)), whole, wants_usage)
    columns = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    told = [{"text": "", "finish": None, "logprobs": {column: [] for column in columns}} for _ in whole["choices"]]
    for event in found:
        choice, = event["choices"]
        entry = told[choice["index"]]
        assert entry["finish"] is None and not (choice["finish_reason"] and choice["text"])
        entry["text"] += choice["text"]
        entry["finish"] = choice["finish_reason"]
        for column in columns if choice["logprobs"] else ():
            entry["logprobs"][column] += choice["logprobs"][column]
    for choice, entry in zip(whole["choices"], told, strict=True):
        assert (choice["text"], choice["finish_reason"]) == (entry["text"], entry["finish"])
        if "logprobs" not in fields:
            assert choice["logprobs"] is None
            continue
        assert choice["logprobs"] == entry["logprobs"]
        assert (choice["logprobs"]["token_logprobs"] or [None])[0] is None or not fields.get("echo")
        for token, offset in zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True):
            assert token.startswith("bytes:") or choice["text"][offset:offset + len(token)] == token


@pytest.mark.parametrize("model", ["llama2-mixed-sharded", "mistral-q8-g64", "phi3-q4-g64"])
def test_echoed_offsets_where_a_blank_is_put_before_the_text(model):
    """Tokenizers of SentencePiece's kind: neither their BOS nor their first blank is part of the text."""
    served = Server(model=TINY_MODELS / model)
    try:
        for prompt in ("hello world", " hello", "a", "é中", "<s>hello 1", "<s><s>a <s>b", "\thello\n"):
            body = {"prompt": prompt, "echo": True, "logprobs": 0, "max_tokens": 3}
            choice = post(served, COMPLETION, body)["choices"][0]
            tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
            assert offsets == sorted(offsets), (prompt, tokens, offsets)
            assert offsets[:2] == [0, 0] and offsets[-1] <= len(choice["text"])
            assert offsets[-3] == len(prompt), (prompt, tokens, offsets)
            for token, offset in list(zip(tokens, offsets))[1:-3]:
                at = choice["text"][offset:]
                assert token.startswith("bytes:") or at.startswith(token) or at.startswith(token.removeprefix(" "))
    finally:
        assert served.stop() == 0


@pytest.mark.parametrize("model", ["llama2-mixed-sharded", "gemma3-text-q4-g64", "qwen3-q4-g32"])
def test_alternatives_have_one_name_each(model):
    """A letter and its byte are two tokens with one name; the likelier one has it."""
    def check(pairs):
        names = [name for name, _ in pairs]
        assert len(set(names)) == len(names), names
        return dict(pairs)

    served = Server(model=TINY_MODELS / model)
    try:
        body = {"prompt": "hello world a b c", "echo": True, "logprobs": 20, "max_tokens": 60, "temperature": 1.5, "seed": 1}
        _, text, _ = request(served, "POST", COMPLETION, body)
        found = json.loads(text, object_pairs_hook=check)["choices"][0]["logprobs"]
        for token, logprob, top in list(zip(found["tokens"], found["token_logprobs"], found["top_logprobs"]))[1:]:
            assert top[token] == logprob and 15 < len(top) <= 21
    finally:
        assert served.stop() == 0


def test_a_chat_is_the_completion_of_its_prompt(server):
    messages = [{"role": "user", "content": "Tell me about the sea."}]
    prompt = post(server, "/apply-template", {"messages": messages})["prompt"]
    tokens = post(server, "/tokenize", {"content": prompt})["tokens"]
    chat = post(server, CHAT, {"messages": messages, "max_tokens": 24})
    assert chat["usage"]["prompt_tokens"] == len(tokens)
    for given in (prompt, tokens):
        reply = post(server, COMPLETION, {"prompt": given, "max_tokens": 24})
        assert reply["choices"][0]["text"] == chat["choices"][0]["message"]["content"]


def test_the_first_choice_is_that_of_a_single_one(server):
    for seed in (0, -1, 2 ** 64 - 1, 1e19):
        fields = {"messages": CAPITAL, "temperature": 1.5, "seed": seed, "max_tokens": 12}
        many = [c["message"]["content"] for c in post(server, CHAT, {**fields, "n": 3})["choices"]]
        assert post(server, CHAT, fields)["choices"][0]["message"]["content"] == many[0]
        assert len(set(many)) > 1


def test_json_object_with_a_schema(server):
    """The form of llama-server and of others, whose users would be told nothing if the schema were left out."""
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"],
              "additionalProperties": False}
    for form in ({"type": "json_object", "schema": schema},
                 {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}):
        choice = post(server, CHAT, {"messages": CAPITAL, "response_format": form})["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert list(json.loads(choice["message"]["content"])) == ["yes"]
    form = {"type": "json_object", "schema": {}}
    text = post(server, CHAT, {"messages": CAPITAL, "response_format": form})["choices"][0]["message"]["content"]
    assert text.startswith("{")


def test_too_long_prompts_are_told_in_known_words(server):
    """LiteLLM makes its ContextWindowExceededError of them."""
    status, text, _ = request(server, "POST", CHAT, {"messages": [{"role": "user", "content": "word " * 9000}]})
    error = json.loads(text)["error"]
    assert status == 400 and error["code"] == "context_length_exceeded"
    assert "this model's maximum context length is 8192 tokens" in error["message"].lower()


def test_head_says_what_get_says(server):
    for path in ("/health", "/v1/models", "/v1/models/llama", "/props", "/version", "/", "/nothing"):
        status, text, headers = request(server, "GET", path)
        head_status, nothing, head_headers = request(server, "HEAD", path)
        assert (head_status, nothing) == (status, b"")
        same = [key for key in headers if key.lower() not in ("date", "x-request-id", "request-id")]
        assert [(key, headers[key]) for key in same] == [(key, head_headers[key]) for key in same]
        assert int(headers["Content-Length"]) == len(text)
