"""Tools and reasoning with the real client, over tiny models with random weights and templates of each family:
whatever the model would like to say, calls fit their schemas."""
import json
import os
import re

import jsonschema
import openai
import pydantic
import pytest

from conftest import Server, TINY_MODELS

TURNS = """
{%- for m in messages %}
{%- if m.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
{%- for call in m.tool_calls or [] %}{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": '
+ (call.function.arguments | tojson) + '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
TOOLS_LINE = """{%- if tools %}{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}"""
TEMPLATES = {
    "hermes": TOOLS_LINE + TURNS,
    "generic": TURNS.replace("tool_calls", "calls_of_old"),
    "mistral": TOOLS_LINE + TURNS.replace("\\n<tool_call>\\n", "[TOOL_CALLS][").replace("\\n</tool_call>", "]"),
    "mistral-args": "{# [TOOL_CALLS]f[ARGS] #}" + TOOLS_LINE + TURNS,
    "llama": "{# \"parameters\": ipython #}" + TOOLS_LINE + TURNS,
    "gemma": "{# <start_of_turn> #}" + TURNS.replace("tool_call", "old_call"),
    "gemma4": "{# <|tool_call>call:f{}<tool_call|> #}" + TOOLS_LINE + TURNS,
}
THINKING = TURNS + """{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}
{%- elif open_thinking is defined %}{{- '<think>\\n' }}{%- endif %}"""
MARKS = re.compile("</?think>")
CALL_MARKS = {"hermes": "</?tool_call>", "generic": "</?tool_call>", "mistral": r"\[TOOL_CALLS\]",
              "mistral-args": r"\[TOOL_CALLS\]|\[ARGS\]", "llama": r"<\|python_tag\|>", "gemma": "```tool_call",
              "gemma4": r"<\|tool_call>|<tool_call\|>"}
HELLO = [{"role": "user", "content": "What is the weather?"}]


def tool(name, properties, **more):
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": parameters, **more}}


WEATHER = tool("get_weather", {"city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]},
                               "days": {"type": "integer", "minimum": 1, "maximum": 14}}, strict=True)
TIME = tool("get_time", {"zone": {"type": "string", "maxLength": 6, "pattern": "^[a-z]+$"}})
TOOLS = [WEATHER, TIME]
SCHEMAS = {t["function"]["name"]: t["function"]["parameters"] for t in TOOLS}


def model_with(directory, template, base="qwen3-q4-g32"):
    for file in (TINY_MODELS / base).iterdir():
        if file.name not in ("golden.json", "chat_template.jinja"):
            os.symlink(file, directory / file.name)
    (directory / "chat_template.jinja").write_text(template)
    return directory


def serve(tmp_path_factory, template, base="qwen3-q4-g32"):
    served = Server(model=model_with(tmp_path_factory.mktemp("model"), template, base))
    return served, openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module", params=TEMPLATES)
def family(request, tmp_path_factory):
    served, client = serve(tmp_path_factory, TEMPLATES[request.param])
    yield request.param, client
    assert served.stop() == 0


@pytest.fixture(scope="module")
def hermes(tmp_path_factory):
    served, client = serve(tmp_path_factory, TEMPLATES["hermes"])
    yield client
    assert served.stop() == 0


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    served, client = serve(tmp_path_factory, THINKING)
    yield client
    assert served.stop() == 0


def ask(client, messages=HELLO, **options):
    options.setdefault("max_tokens", 300)
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def check_calls(calls, schemas=SCHEMAS):
    assert calls
    for call in calls:
        assert re.fullmatch(r"call_[A-Za-z0-9]{24}", call.id)
        jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
    assert len({call.id for call in calls}) == len(calls)


def collect(stream):
    """The choices of a stream as whole messages, with the order of deltas checked."""
    choices = {}
    for chunk in stream:
        for choice in chunk.choices:
            told = choices.setdefault(choice.index, {"content": "", "reasoning": "", "calls": [], "finish": None, "logprobs": []})
            assert told["finish"] is None
            delta = choice.delta
            told["content"] += delta.content or ""
            told["reasoning"] += getattr(delta, "reasoning_content", None) or ""
            for call in delta.tool_calls or []:
                if call.id:
                    assert call.index == len(told["calls"]) and call.type == "function" and call.function.arguments == ""
                    told["calls"].append({"id": call.id, "name": call.function.name, "arguments": ""})
                else:
                    assert call.index == len(told["calls"]) - 1 and call.function.name is None
                told["calls"][-1]["arguments"] += call.function.arguments
            if choice.logprobs:
                told["logprobs"] += choice.logprobs.content
            told["finish"] = choice.finish_reason
    return choices


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 7, "n": 4}, {"temperature": 1.2, "seed": 3, "top_p": 0.9}])
def test_required_calls_are_valid(family, options):
    _, client = family
    reply = ask(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, **options)
    for choice in reply.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert len(choice.message.tool_calls) == 1
        check_calls(choice.message.tool_calls)


def test_named_calls_only_that_tool(family):
    _, client = family
    for name in SCHEMAS:
        reply = ask(client, tools=TOOLS, tool_choice={"type": "function", "function": {"name": name}}, temperature=1.0, seed=1)
        calls = reply.choices[0].message.tool_calls
        assert [call.function.name for call in calls] == [name]
        check_calls(calls)


def test_streams_say_the_same(family):
    _, client = family
    for options in ({}, {"temperature": 1.3, "seed": 5, "n": 3}):
        whole = ask(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, **options)
        streamed = collect(ask(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, stream=True, **options))
        for choice in whole.choices:
            told = streamed[choice.index]
            assert told["finish"] == choice.finish_reason
            assert told["content"] == ""
            assert [(c["name"], c["arguments"]) for c in told["calls"]] == [
                (c.function.name, c.function.arguments) for c in choice.message.tool_calls]


def test_markup_never_leaks(family):
    name, client = family
    for seed in range(12):
        reply = ask(client, tools=TOOLS, temperature=1.4, seed=seed, max_tokens=60, n=2)
        for choice in reply.choices:
            assert not re.search(CALL_MARKS[name], choice.message.content or "")


def test_call_that_the_model_opens(hermes):
    """The opening mark is one token here; a bias makes the model choose it."""
    bias = {"616": 100}
    reply = ask(hermes, tools=TOOLS, logit_bias=bias, parallel_tool_calls=False)
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    check_calls(choice.message.tool_calls)
    streamed = collect(ask(hermes, tools=TOOLS, logit_bias=bias, parallel_tool_calls=False, stream=True))[0]
    assert streamed["calls"][0]["arguments"] == choice.message.tool_calls[0].function.arguments


def test_parallel_calls(hermes):
    """No end token but after a call: a bias against it keeps the calls coming."""
    reply = ask(hermes, tools=[WEATHER], tool_choice="required", logit_bias={"613": -100, "615": -100}, max_tokens=400)
    calls = reply.choices[0].message.tool_calls
    assert len(calls) > 1
    check_calls(calls[:-1])
    assert reply.choices[0].finish_reason in ("length", "tool_calls")


def test_allowed_tools(hermes):
    for mode in ("required", "auto"):
        choice = {"type": "allowed_tools", "allowed_tools": {
            "mode": mode, "tools": [{"type": "function", "function": {"name": "get_time"}}]}}
        for seed in range(4):
            reply = ask(hermes, tools=TOOLS, tool_choice=choice, temperature=1.4, seed=seed, parallel_tool_calls=False)
            calls = reply.choices[0].message.tool_calls or []
            assert mode == "auto" or len(calls) == 1
            assert {call.function.name for call in calls} <= {"get_time"}


def test_none_calls_nothing(hermes):
    reply = ask(hermes, tools=TOOLS, tool_choice="none", max_tokens=40)
    assert reply.choices[0].message.tool_calls is None
    free = ask(hermes, max_tokens=40)
    assert free.choices[0].message.tool_calls is None


def test_cut_inside_a_call_is_length(hermes):
    """At every length: a call is there once its name is certain, and the reason is length until it is complete."""
    options = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    whole = ask(hermes, **options)
    total = whole.usage.completion_tokens
    arguments = whole.choices[0].message.tool_calls[0].function.arguments
    for limit in range(1, total):
        choice = ask(hermes, max_tokens=limit, **options).choices[0]
        assert choice.finish_reason == "length"
        for call in choice.message.tool_calls or []:
            assert arguments.startswith(call.function.arguments)
        assert not choice.message.content


def test_special_tokens_are_marks(tmp_path_factory):
    """<|python_tag|> is a special token of this tokenizer: it opens a call, and is not in the content."""
    served, client = serve(tmp_path_factory, TEMPLATES["llama"].replace("#}", "<|python_tag|> #}", 1), "llama3-q4-g64")
    try:
        choice = ask(client, tools=TOOLS, logit_bias={"599": 100}, parallel_tool_calls=False).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        check_calls(choice.message.tool_calls)
    finally:
        assert served.stop() == 0


def test_streaming_helper(hermes):
    """The client's own reader of streams, which parses arguments against the model of the tool."""
    with hermes.chat.completions.stream(model="tiny", messages=HELLO, tools=[openai.pydantic_function_tool(GetWeather)],
                                        tool_choice="required", parallel_tool_calls=False, max_tokens=400) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.tool_calls[0].function.parsed_arguments, GetWeather)
    assert any(event.type == "tool_calls.function.arguments.delta" for event in events)
    with hermes.chat.completions.stream(model="tiny", messages=HELLO, response_format=Plan, max_tokens=400) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Plan)


def test_logprobs_are_of_content_only(hermes):
    reply = ask(hermes, tools=TOOLS, tool_choice="required", logprobs=True, top_logprobs=2, parallel_tool_calls=False)
    assert reply.choices[0].logprobs.content == []
    same = ask(hermes, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert same.choices[0].message.tool_calls[0].function == reply.choices[0].message.tool_calls[0].function
    for seed in range(6):
        options = dict(tools=TOOLS, temperature=1.3, seed=seed, max_tokens=50, logprobs=True)
        choice = ask(hermes, **options).choices[0]
        joined = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
        assert joined.decode(errors="replace").replace("�", "") == (choice.message.content or "").replace("�", "")
        streamed = collect(ask(hermes, stream=True, **options))[0]
        assert [e.id for e in streamed["logprobs"]] == [e.id for e in choice.logprobs.content]


def test_turns_with_results(family):
    """Calls and results go back into the conversation, several turns long."""
    _, client = family
    messages = list(HELLO)
    for turn in range(3):
        message = ask(client, messages=messages, tools=TOOLS, tool_choice="required", parallel_tool_calls=False,
                      temperature=1.0, seed=turn).choices[0].message
        check_calls(message.tool_calls)
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": '{"result": 21}'})
    final = ask(client, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=10)
    assert final.choices[0].message.role == "assistant"
    again = ask(client, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=10)
    assert again.usage.prompt_tokens_details.cached_tokens > 0
    assert again.choices[0].message.content == final.choices[0].message.content


def test_prompt_is_what_apply_template_says(family):
    _, client = family
    url = str(client.base_url).replace("/v1/", "")
    prompt = client.post(url + "/apply-template", body={"messages": HELLO, "tools": TOOLS}, cast_to=object)["prompt"]
    assert "get_weather" in prompt and "get_time" in prompt
    count = client.post(url + "/tokenize", body={"content": prompt}, cast_to=object)["count"]
    assert ask(client, tools=TOOLS, max_tokens=1).usage.prompt_tokens == count


def test_many_at_once(hermes):
    """Batched calls are what each would be alone."""
    import concurrent.futures
    options = [dict(tools=TOOLS, tool_choice="required", parallel_tool_calls=False, temperature=1.2, seed=seed) for seed in range(12)]
    alone = [ask(hermes, **o).choices[0].message.tool_calls[0].function for o in options]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda o: ask(hermes, **o).choices[0].message.tool_calls[0].function, options))
    assert alone == together


class GetWeather(pydantic.BaseModel):
    city: str = pydantic.Field(pattern="^[A-Z][a-z]{1,5}$")
    days: int = pydantic.Field(ge=0, le=99)


class Step(pydantic.BaseModel):
    number: int = pydantic.Field(ge=0, le=9)
    done: bool


class Plan(pydantic.BaseModel):
    kind: str = pydantic.Field(pattern="^(short|long)$")
    steps: list[Step] = pydantic.Field(min_length=1, max_length=2)


def test_parsed_content(hermes, thinker):
    for client, options in ((hermes, {}), (hermes, {"temperature": 1.4, "seed": 2}), (thinker, {"temperature": 1.0, "seed": 1})):
        reply = client.chat.completions.parse(model="tiny", messages=HELLO, response_format=Plan, max_tokens=400,
                                              extra_body={"reasoning_budget_tokens": 5}, **options)
        plan = reply.choices[0].message.parsed
        assert plan.kind in ("short", "long") and 1 <= len(plan.steps) <= 2


def test_parsed_calls(hermes):
    reply = hermes.chat.completions.parse(model="tiny", messages=HELLO, tools=[openai.pydantic_function_tool(GetWeather)],
                                          tool_choice="required", parallel_tool_calls=False, max_tokens=400,
                                          temperature=1.0, seed=4)
    parsed = reply.choices[0].message.tool_calls[0].function.parsed_arguments
    assert isinstance(parsed, GetWeather)


def test_content_schema_beside_tools(family):
    """Content is bound to the format, or there are calls in its place."""
    _, client = family
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {
        "type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["a"],
        "additionalProperties": False}}}
    for seed in range(6):
        message = ask(client, tools=TOOLS, response_format=form, temperature=1.4, seed=seed, parallel_tool_calls=False).choices[0].message
        if message.tool_calls:
            check_calls(message.tool_calls)
        else:
            jsonschema.validate(json.loads(message.content), form["json_schema"]["schema"])


# ---- Reasoning ----

def test_reasoning_of_an_open_block(thinker):
    options = dict(extra_body={"chat_template_kwargs": {"open_thinking": True}, "reasoning_budget_tokens": 7})
    reply = ask(thinker, max_tokens=30, **options)
    message = reply.choices[0].message
    assert message.reasoning_content and not MARKS.search(message.reasoning_content)
    assert not MARKS.search(message.content)
    assert reply.usage.completion_tokens_details.reasoning_tokens == 7
    streamed = collect(ask(thinker, max_tokens=30, stream=True, **options))[0]
    assert streamed["reasoning"] == message.reasoning_content and streamed["content"] == message.content


def test_cut_inside_reasoning(thinker):
    reply = ask(thinker, max_tokens=9, extra_body={"chat_template_kwargs": {"open_thinking": True}})
    choice = reply.choices[0]
    assert choice.finish_reason == "length" and choice.message.content == ""
    assert reply.usage.completion_tokens_details.reasoning_tokens == 9


def test_reasoning_that_the_reply_opens(thinker):
    """The model is made to write the opening mark; the budget ends what it began."""
    reply = ask(thinker, max_tokens=40, logit_bias={"618": 30}, extra_body={"reasoning_budget_tokens": 3})
    message = reply.choices[0].message
    assert reply.usage.completion_tokens_details.reasoning_tokens >= 3
    assert not MARKS.search((message.content or "") + (getattr(message, "reasoning_content", None) or ""))


def test_thinking_switched_off(thinker):
    reply = ask(thinker, max_tokens=10, extra_body={"enable_thinking": False})
    assert getattr(reply.choices[0].message, "reasoning_content", None) is None
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0


def test_no_budget_is_none_at_all(thinker):
    reply = ask(thinker, max_tokens=20, extra_body={"chat_template_kwargs": {"open_thinking": True}, "reasoning_budget_tokens": 0})
    assert getattr(reply.choices[0].message, "reasoning_content", None) is None
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize("bound, expected", [
    ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"guided_regex": "<think>[ab]{3}"}, "<think>[ab]{3}"),
    ({"guided_choice": ["</think>yes"]}, "</think>yes"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["yes", "no"]}}}},
     '"(yes|no)"')])
@pytest.mark.parametrize("kwargs", [{"open_thinking": True}, {}, {"enable_thinking": False}])
def test_constraints_begin_behind_the_reasoning(thinker, bound, expected, kwargs):
    for seed in range(3):
        reply = ask(thinker, temperature=1.3, seed=seed, extra_body={
            "reasoning_budget_tokens": 6, "chat_template_kwargs": kwargs, **bound})
        content = reply.choices[0].message.content
        assert reply.choices[0].finish_reason == "stop"
        assert re.fullmatch(expected, content)


def test_calls_behind_reasoning(thinker):
    extra = {"chat_template_kwargs": {"open_thinking": True}, "reasoning_budget_tokens": 6}
    for stream in (False, True):
        reply = ask(thinker, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, stream=stream, extra_body=extra)
        if stream:
            told = collect(reply)[0]
            assert told["reasoning"] and told["content"] == "" and len(told["calls"]) == 1 and told["finish"] == "tool_calls"
        else:
            message = reply.choices[0].message
            assert message.reasoning_content and message.content is None
            check_calls(message.tool_calls)


def test_stop_strings_are_for_content(thinker):
    """One that occurs in reasoning and in arguments ends neither."""
    extra = {"chat_template_kwargs": {"open_thinking": True}, "reasoning_budget_tokens": 12}
    plain = ask(thinker, extra_body=extra, max_tokens=40).choices[0].message
    stop = plain.reasoning_content[1]
    stopped = ask(thinker, extra_body=extra, max_tokens=40, stop=[stop]).choices[0].message
    assert stopped.reasoning_content == plain.reasoning_content
    assert stopped.content == plain.content.split(stop)[0]
    call = ask(thinker, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, extra_body=extra, stop=['"', "}"])
    check_calls(call.choices[0].message.tool_calls)


# ---- What comes back ----

ASKING = """{%- for m in messages %}
{%- if 'tool_calls' in m and m.tool_calls | length != 1 %}{{- raise_exception('not one call') }}{%- endif %}
{%- if m.tool_calls is defined %}{{- m.role + ' calls ' + (m.tool_calls[0].function.arguments | tojson) + '\\n' }}
{%- else %}{{- m.role + ' says ' + m.content + '\\n' }}{%- endif %}
{%- if m.refusal is defined or m.function_call is defined %}{{- raise_exception('not a message of ours') }}{%- endif %}
{%- endfor %}"""


def test_whole_messages_come_back(tmp_path_factory):
    """Clients send back all members of a reply, whatever they are, to templates that ask whether there is one."""
    served, client = serve(tmp_path_factory, ASKING)
    empty = {"refusal": None, "annotations": None, "audio": None, "function_call": None, "reasoning_content": None}
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    messages = [*HELLO, {"role": "assistant", "content": "Hi", "tool_calls": [], **empty}, *HELLO,
                {"role": "assistant", "content": None, "tool_calls": [call], **empty},
                {"role": "tool", "tool_call_id": "call_1", "content": "7", "tool_calls": None, "name": None}]
    try:
        prompt = client.post(served.url + "/apply-template", body={"messages": messages}, cast_to=object)["prompt"]
        user = "user says " + HELLO[0]["content"]
        assert prompt.splitlines() == [user, "assistant says Hi", user, "assistant calls {}", "tool says 7"]
        assert ask(client, messages=messages, max_tokens=2).usage.completion_tokens == 2
    finally:
        assert served.stop() == 0


# ---- Refusals ----

def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"anyOf": [{"type": "array", "items": schema}, {"type": "object", "properties": {"a": schema, "b": schema}}]}
    return schema


@pytest.mark.parametrize("schema", [
    {"type": "object", "properties": {"a": {"pattern": "^(([ab]{1,200}){1,200}c){1,200}$"}}},
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"$ref": "#/$defs/x"}}},
    {"type": "object", "properties": {"a": {"type": "string", "minLength": 5, "maxLength": 2}}, "required": ["a"]},
    {"type": "object", "properties": {name: {"type": "string", "maxLength": 2 ** 16} for name in "abcdefgh"}},
    {"type": "object", "allOf": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/n"}], "$defs": {"n": {"allOf": [{"$ref": "#/$defs/n"}]}}},
    {"type": "array"},
])
def test_hostile_schemas_end_soon(hermes, schema):
    import time
    start = time.monotonic()
    with pytest.raises(openai.BadRequestError) as caught:
        ask(hermes, tools=[TIME, {"type": "function", "function": {"name": "bad", "parameters": schema}}], max_tokens=5)
    assert caught.value.code == "invalid_json_schema"
    assert caught.value.param == "tools[1].function.parameters"
    assert time.monotonic() - start < 10


def test_unknown_keywords(hermes):
    loose = {"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer", "x-note": 1, "minimum": 1, "maximum": 2}}, "required": ["a"]}}}
    raw = hermes.chat.completions.with_raw_response.create(model="tiny", messages=HELLO, tools=[loose], tool_choice="required",
                                                           parallel_tool_calls=False, max_tokens=200)
    assert "x-note" in raw.headers["x-ignored-fields"]
    assert json.loads(raw.parse().choices[0].message.tool_calls[0].function.arguments)["a"] in (1, 2)
    amount = {"anyOf": [{"type": "number", "multipleOf": 0.01}, {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}]}
    loose["function"]["parameters"]["properties"]["a"] = amount
    raw = hermes.chat.completions.with_raw_response.create(model="tiny", messages=HELLO, tools=[loose], max_tokens=1)
    assert raw.headers["x-ignored-fields"] == "multipleOf, pattern"
    loose["function"]["strict"] = True
    with pytest.raises(openai.BadRequestError) as caught:
        ask(hermes, tools=[loose])
    assert caught.value.code == "invalid_json_schema"
