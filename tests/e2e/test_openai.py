"""The API through the official client."""
import concurrent.futures

import openai
import pytest

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


def test_models(client):
    models = client.models.list()
    assert [model.id for model in models.data] == ["llama"]
    assert models.data[0].owned_by == "mlx-serve"
    assert client.models.retrieve("llama").id == "llama"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_chat(client):
    reply = client.chat.completions.create(model="llama", messages=CAPITAL, max_tokens=40)
    assert reply.object == "chat.completion"
    assert reply.id.startswith("chatcmpl-") and reply.id[len("chatcmpl-"):].isdigit()
    choice, = reply.choices
    assert "Paris" in choice.message.content
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert 0 < reply.usage.completion_tokens < 40


def test_length_limit(client):
    reply = client.chat.completions.create(
        model="any", messages=[{"role": "user", "content": "Count from one to one hundred."}], max_tokens=5)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 5


def test_streaming_equals_plain(client):
    plain = client.chat.completions.create(model="llama", messages=CAPITAL, max_tokens=40)
    chunks = list(client.chat.completions.create(
        model="llama", messages=CAPITAL, max_tokens=40, stream=True,
        stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == "stop" and not any(reasons[:-1])
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1
    pieces = [c for c in chunks if c.choices and c.choices[0].delta.content]
    assert len(pieces) > 3, "tokens must be sent as they come"


def test_seed_repeats_sampling(client):
    def sample(seed):
        reply = client.chat.completions.create(
            model="llama", messages=[{"role": "user", "content": "Tell me a story."}],
            max_tokens=24, temperature=1.0, seed=seed)
        return reply.choices[0].message.content

    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in range(5)}) > 1


def test_stop_string(client):
    reply = client.chat.completions.create(model="llama", messages=CAPITAL, max_tokens=40, stop=["Paris"])
    assert "Paris" not in reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"


def test_two_at_once(client):
    prompts = ["What is the capital of France?", "What colour is the sky?", "Say hello.",
               "Name a fruit.", "What is two plus two?", "Who wrote Hamlet?"]

    def ask(prompt):
        reply = client.chat.completions.create(
            model="llama", messages=[{"role": "user", "content": prompt}], max_tokens=32)
        return reply.choices[0].message.content

    alone = [ask(prompt) for prompt in prompts]
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(ask, prompts))
    assert together == alone


@pytest.mark.parametrize("fields, code, param", [
    ({"messages": []}, "empty_array", "messages"),
    ({"temperature": 3}, "decimal_above_max_value", "temperature"),
    ({"temperature": "hot"}, "invalid_type", "temperature"),
    ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
    ({"max_tokens": 2 ** 31}, "integer_above_max_value", "max_tokens"),
    ({"max_tokens": 2 ** 63}, "integer_above_max_value", "max_tokens"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"role": "user", "content": "word " * 20000}]}, "context_length_exceeded", "messages"),
])
def test_refusals(client, fields, code, param):
    body = {"model": "llama", "messages": CAPITAL, **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.code == code
    assert caught.value.param == param
    assert client.chat.completions.create(model="llama", messages=CAPITAL, max_tokens=1)
