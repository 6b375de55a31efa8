#!/usr/bin/env python3
"""The public JSON-Schema-Test-Suite against `mlx-serve grammar`.

    pip download --no-deps --no-binary jsonschema jsonschema==4.26.0
    python3 tests/reference/schema_suite.py jsonschema-4.26.0.tar.gz [--binary build/release/mlx-serve]

The source archive of the Python package `jsonschema` carries the suite. Of draft 2020-12 the required tests are run, and
those of the formats that are enforced. A schema with a keyword that cannot be enforced has to be refused by name; of the
others no invalid document may be accepted (status 1 if one is), but for oneOf, which is served as anyOf. Valid documents are counted: members of objects come in
the schema's order here, so a document in another order does not fit, though it is valid.
"""
import argparse
import collections
import json
import pathlib
import subprocess
import tarfile
import tempfile

FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")


def read_groups(archive):
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            parts = pathlib.PurePath(member.name).parts[1:]
            if parts[:3] != ("json", "tests", "draft2020-12") or not member.name.endswith(".json"):
                continue
            name = "/".join(parts[3:])
            if parts[3] == "optional" and not (parts[4] == "format" and parts[-1][:-5] in FORMATS):
                continue
            for group in json.load(tar.extractfile(member)):
                yield name, group


def text_of(value):
    return json.dumps(value, ensure_ascii=False)


def ask(binary, schema, texts):
    """None when the schema is refused, with the reason; else whether each text is accepted."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(text_of(schema))
        file.flush()
        run = subprocess.run([binary, "grammar", "--schema", file.name, "--json"], capture_output=True, text=True,
                             timeout=60, input="".join(json.dumps({"text": text}) + "\n" for text in texts))
    if run.returncode != 0:
        return None, run.stderr.strip()
    return [json.loads(line)["accepts"] for line in run.stdout.splitlines()], ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--binary", default="build/release/mlx-serve")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    count, wrong = collections.Counter(), []
    for name, group in read_groups(options.archive):
        count["schemas"] += 1
        accepted, reason = ask(options.binary, group["schema"], [text_of(test["data"]) for test in group["tests"]])
        if accepted is None:
            count["refused"] += 1
            if options.verbose:
                print(f"refused {name}: {group['description']}: {reason}")
            continue
        for test, fits in zip(group["tests"], accepted, strict=True):
            kind = "valid" if test["valid"] else "invalid"
            count[kind] += 1
            count[kind + " as told"] += fits == test["valid"]
            if fits and not test["valid"] and name == "oneOf.json":
                count["oneOf"] += 1
            elif fits and not test["valid"]:
                wrong.append(f"{name}: {group['description']}: {test['description']}: {text_of(test['data'])}")
            elif fits != test["valid"] and options.verbose:
                print(f"unreached {name}: {group['description']}: {test['description']}: {text_of(test['data'])}")
    print(f"{count['schemas']} schemas, {count['refused']} refused")
    print(f"{count['invalid as told']} of {count['invalid']} invalid documents refused; {count['oneOf']} fit several branches of a oneOf")
    print(f"{count['valid as told']} of {count['valid']} valid documents accepted")
    for line in wrong:
        print("accepted though invalid:", line)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
