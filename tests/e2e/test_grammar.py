"""Constraints against Python: random texts of the corpus satisfy jsonschema, expressions agree with `re`."""
import json
import random
import re
import subprocess

import jsonschema
import pytest

from conftest import BINARY, ROOT

WALK = ROOT / "build/release/tests/grammar/grammar_walk"
SCHEMAS = [json.loads(line) for line in open(ROOT / "tests/data/grammar/schemas.jsonl")]
ENFORCED = ("date", "time", "date-time", "uuid", "ipv4", "email")


def format_checker():
    checker = jsonschema.FormatChecker(formats=())
    known = jsonschema.Draft202012Validator.FORMAT_CHECKER.checkers
    checker.checkers = {name: known[name] for name in ENFORCED}
    return checker


def ask(program, arguments, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    run = subprocess.run([program, *arguments], input=text, capture_output=True, text=True, timeout=300)
    return run.returncode, [json.loads(line) for line in run.stdout.splitlines()], run.stderr


def test_random_documents_validate():
    requests = [{"kind": "schema", "source": json.dumps(case["schema"]), "seed": 11, "count": 10} for case in SCHEMAS]
    code, answers, stderr = ask(WALK, [], requests)
    assert code == 0, stderr
    checked = 0
    for case, answer in zip(SCHEMAS, answers, strict=True):
        validator = jsonschema.Draft202012Validator(case["schema"], format_checker=format_checker())
        for text in answer["texts"]:
            errors = [error.message for error in validator.iter_errors(json.loads(text))]
            assert not errors, (case["name"], text, errors)
            checked += 1
    assert checked > 2000


def random_expression(random_source, depth=0):
    choice = random_source.random()
    if depth > 3 or choice < 0.4:
        return random_source.choice(["a", "b", "c", "[ab]", "[^a]", "[a-c]", ".", r"\d", r"\w", "1", "é"])
    if choice < 0.6:
        return "(" + "|".join(random_expression(random_source, depth + 1) for _ in range(random_source.randint(1, 3))) + ")"
    if choice < 0.8:
        inner = random_expression(random_source, depth + 1)
        inner = inner if len(inner) == 1 else f"(?:{inner})"
        return inner + random_source.choice(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?"])
    return "".join(random_expression(random_source, depth + 1) for _ in range(random_source.randint(1, 4)))


@pytest.mark.parametrize("seed", range(40))
def test_expressions_agree_with_re(seed):
    source = random.Random(seed)
    expression = random_expression(source)
    compiled = re.compile(expression, re.ASCII)
    texts = ["".join(source.choice("abc1é_") for _ in range(source.randint(0, 7))) for _ in range(200)]
    code, answers, stderr = ask(BINARY, ["grammar", "--regex", expression, "--json"], [{"text": text} for text in texts])
    assert code == 0, stderr
    for text, answer in zip(texts, answers, strict=True):
        assert answer["accepts"] == bool(compiled.fullmatch(text)), (expression, text)


def test_random_texts_match_re():
    expressions = [random_expression(random.Random(seed)) for seed in range(100, 160)]
    code, answers, stderr = ask(WALK, [], [{"kind": "regex", "source": e, "seed": 5, "count": 5} for e in expressions])
    assert code == 0, stderr
    for expression, answer in zip(expressions, answers, strict=True):
        for text in answer["texts"]:
            assert re.compile(expression, re.ASCII).fullmatch(text), (expression, text)


def test_what_does_not_compile_fails(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text('{"properties": {"a": {"not": {}}}}')
    code, answers, stderr = ask(BINARY, ["grammar", "--schema", str(path), "--json"], [{"text": "{}"}])
    assert code == 1 and "#/properties/a: keyword not" in stderr
    assert answers == [{"accepts": False, "error": "#/properties/a: keyword not is not supported"}]
