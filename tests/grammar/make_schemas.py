"""Writes tests/data/grammar/schemas.jsonl: {"name", "schema"} lines, every one enforceable.

Three kinds: keywords alone and in pairs, written out systematically; schemas as programs send them (function
arguments, forms, records, configurations, extraction, as pydantic and zod print them); adversarial ones (recursion,
merging, look-alike alternatives, awkward names and numbers). Run it after changing it: python3 make_schemas.py
"""
import json
import os

cases = {}


def add(name, schema):
    assert name not in cases, name
    cases[name] = schema


def obj(required=None, extra=False, **properties):
    schema = {"type": "object", "properties": properties, "additionalProperties": extra}
    if required is None:
        required = list(properties)
    if required:
        schema["required"] = required
    return schema


STR, INT, NUM, BOOL, NULL = ({"type": t} for t in ("string", "integer", "number", "boolean", "null"))


def arr(items, **more):
    return {"type": "array", "items": items, **more}


# ---- Keywords ----

for t in ("string", "integer", "number", "boolean", "null", "object", "array"):
    add(f"type {t}", {"type": t})
add("types", {"type": ["string", "null"]})
add("types of numbers", {"type": ["integer", "number", "boolean"]})
add("any", {})
add("true", True)
for low, high in [(0, 0), (0, 1), (1, 9), (5, 17), (10, 99), (99, 101), (-1, 1), (-17, -5), (-100, 100), (0, 255),
                  (1900, 2100), (-273, 5500), (7, 123456), (2**31 - 1, 2**31 + 5), (0, 2**53)]:
    add(f"integer {low}..{high}", {"type": "integer", "minimum": low, "maximum": high})
for low in (0, 1, 18, -5, 1000):
    add(f"integer from {low}", {"type": "integer", "minimum": low})
    add(f"integer to {low}", {"type": "integer", "maximum": low})
    add(f"integer above {low}", {"type": "integer", "exclusiveMinimum": low})
add("integer between fractions", {"type": "integer", "minimum": 1.5, "maximum": 7.2})
for low, high in [(0, 1), (-1, 1), (0.5, 2.75), (-90, 90), (-180, 180), (0, 100), (36.5, 42.25), (-0.001, 0.001),
                  (1e-7, 2e-7), (99.99, 100.01)]:
    add(f"number {low}..{high}", {"type": "number", "minimum": low, "maximum": high})
    add(f"number inside {low}..{high}", {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high})
add("number from 0", {"type": "number", "minimum": 0})
add("number above 0", {"type": "number", "exclusiveMinimum": 0})
add("number below 0", {"type": "number", "exclusiveMaximum": 0})
add("number to -2.5", {"type": "number", "maximum": -2.5})
for m in (1, 2, 3, 5, 7, 10, 16, 25, 60, 100, 997, 1000, 1500):
    add(f"multiple of {m}", {"type": "integer", "multipleOf": m})
    add(f"multiple of {m} in range", {"type": "integer", "multipleOf": m, "minimum": -3000, "maximum": 5 * m + 1})
add("multiple of 2.5", {"type": "integer", "multipleOf": 2.5})
for low, high in [(0, 0), (0, 3), (1, 1), (2, 5), (8, 64), (0, 280), (3, None)]:
    schema = {"type": "string", "minLength": low}
    if high is not None:
        schema["maxLength"] = high
    add(f"string of {low}..{high}", schema)
for p in [r"^[a-z]+$", r"^\d{3}-\d{4}$", r"[0-9]", r"^(foo|bar)+$", r"^[A-Z][a-z]*( [A-Z][a-z]*)*$", r"^#[0-9a-fA-F]{6}$",
          r"^\+?[1-9]\d{1,14}$", r"a.c", r"^$", r"^.{2,4}$", r"^[^\s@]+@[^\s@]+\.[^\s@]+$", r"^v\d+\.\d+\.\d+$",
          r"^(?:[a-z0-9]+-)*[a-z0-9]+$", r"^\w+$", r"\\", r"^\"$", r"^[äöü]+$", r"^[\u4e00-\u9fff]{1,4}$", r"^\S+$",
          r"^(a|ab)(c|bcd)$", r"x*$", r"^a?b?c?$", r"^[^\"\\]*$", r"\n", r"^[\w.-]+$", r"^\$\{[A-Z_]+\}$"]:
    add(f"pattern {p}", {"type": "string", "pattern": p})
add("pattern and length", {"type": "string", "pattern": "^[a-z]+$", "minLength": 3, "maxLength": 6})
add("pattern anywhere and length", {"type": "string", "pattern": "[0-9]", "maxLength": 4})
for f in ("date", "time", "date-time", "uuid", "ipv4", "email"):
    add(f"format {f}", {"type": "string", "format": f})
add("format uri is ignored", {"type": "string", "format": "uri"})
add("format and length", {"type": "string", "format": "email", "maxLength": 12})
add("enum of strings", {"enum": ["red", "green", "blue"]})
add("enum of all kinds", {"enum": [None, True, 0, -1.5, "x", [], [1, {"a": None}], {"b": [], "c": {"d": 1}}]})
add("enum with type", {"type": "string", "enum": ["a", 1, "b", None]})
add("enum with limits", {"enum": [1, 5, 10, 50], "minimum": 5, "maximum": 10})
add("enum with pattern", {"enum": ["ab", "ba", "abc"], "pattern": "^a"})
add("enum of prefixes", {"enum": ["a", "ab", "abc", "abd", "b", ""]})
add("enum of awkward strings", {"enum": ["\"", "\\", "/", "\n\t\u0001", "é", "😀", "a\u2028b", "\x7f"]})
add("enum of many", {"enum": [f"value-{i * 7919 % 1000:03}" for i in range(500)]})
add("const", {"const": "fixed"})
add("const object", {"const": {"kind": "a", "n": [1, 2.5, None]}})
add("const number", {"const": 1e21})
for low, high in [(0, 0), (0, 2), (1, 1), (2, 4), (3, None), (0, 20)]:
    schema = arr(INT, minItems=low)
    if high is not None:
        schema["maxItems"] = high
    add(f"array of {low}..{high}", schema)
add("tuple", {"type": "array", "prefixItems": [STR, INT], "items": False})
add("tuple, then booleans", {"type": "array", "prefixItems": [STR], "items": BOOL, "minItems": 1, "maxItems": 3})
add("tuple without items", {"type": "array", "prefixItems": [INT, NULL]})
add("tuple, required", {"type": "array", "prefixItems": [NUM, NUM, NUM], "items": False, "minItems": 3})
add("array of anything", {"type": "array", "items": True, "maxItems": 2})
add("arrays in arrays", arr(arr(arr(BOOL))))
add("empty array only", {"type": "array", "items": False})
add("object, all required", obj(a=STR, b=INT))
add("object, none required", obj([], a=STR, b=INT, c=BOOL))
add("object, middle required", obj(["b"], a=NULL, b=NULL, c=NULL))
add("object, last required", obj(["c"], a=NULL, b=NULL, c=NULL))
add("object, open", {"type": "object", "properties": {"a": INT}})
add("object, open with schema", {"type": "object", "properties": {"a": INT}, "additionalProperties": STR})
add("map of integers", {"type": "object", "additionalProperties": INT})
add("map, not empty", {"type": "object", "additionalProperties": INT, "minProperties": 1})
add("two of three", obj([], a=NULL, b=NULL, c=NULL) | {"minProperties": 2})
add("all of three by count", obj([], a=NULL, b=INT, c=BOOL) | {"minProperties": 3})
add("required without property", {"type": "object", "properties": {"a": INT}, "required": ["z", "a"]})
add("required without property, typed", {"type": "object", "required": ["x", "y"], "additionalProperties": NUM})
add("property that cannot be", obj(["a"], a=INT, b=False))
add("empty object only", obj([]))
add("names of all kinds", obj(None, False, **{"": INT, "a b": INT, "\"": INT, "\\": INT, "ü": INT, "\n": INT, "$ref": INT}))
add("names that others avoid", {"type": "object", "properties": {"a": INT, "ab": INT, "é": INT}, "additionalProperties": NULL})
add("anyOf", {"anyOf": [STR, INT]})
add("oneOf", {"oneOf": [NULL, arr(INT, maxItems=2)]})
add("anyOf with siblings", {"type": "object", "properties": {"a": INT, "b": INT},
                             "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "additionalProperties": False})
add("anyOf in anyOf", {"anyOf": [{"anyOf": [{"const": 1}, {"const": 2}]}, {"oneOf": [{"const": 3}]}]})
add("anyOf and oneOf", {"anyOf": [{"minimum": 5}, {"maximum": -5}], "oneOf": [INT, STR]})
add("allOf of one", {"allOf": [{"type": "string", "maxLength": 2}]})
add("allOf of ranges", {"type": "integer", "allOf": [{"minimum": 3}, {"maximum": 9}, {"multipleOf": 3}]})
add("allOf of objects", {"allOf": [{"type": "object", "properties": {"a": INT}, "required": ["a"]},
                                    {"properties": {"b": STR, "a": {"minimum": 0}}, "required": ["b"]}]})
add("allOf of lengths", {"type": "string", "allOf": [{"minLength": 2}, {"maxLength": 4}, {"pattern": "^[ab]*$"}]})
add("allOf of patterns", {"type": "string", "allOf": [{"pattern": "^[a-f]+$"}, {"pattern": "ace"}, {"maxLength": 6}]})
add("no type, string limits", {"maxLength": 2})
add("no type, properties", {"properties": {"a": INT}, "required": ["a"]})
add("ref", {"$ref": "#/$defs/x", "$defs": {"x": obj(a=INT)}})
add("ref with siblings", {"$ref": "#/$defs/x", "maximum": 5, "$defs": {"x": {"type": "integer", "minimum": 0}}})
add("ref to definitions", {"type": "array", "items": {"$ref": "#/definitions/p"}, "maxItems": 3,
                            "definitions": {"p": {"type": "integer", "minimum": 1, "maximum": 3}}})
add("ref with escapes", {"$ref": "#/$defs/a~1b~0c%20d", "$defs": {"a/b~c d": BOOL}})
add("ref to a ref", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": NULL}})
add("linked list", obj(["value"], value=INT, next={"$ref": "#"}))
add("linked list with null", obj(value=INT, next={"anyOf": [{"$ref": "#"}, NULL]}))
add("tree", {"$ref": "#/$defs/node", "$defs": {"node": obj(["name"], name=STR, children=arr({"$ref": "#/$defs/node"}))}})
add("expressions", {"$ref": "#/$defs/e", "$defs": {"e": {"anyOf": [
    NUM, obj(op={"enum": ["+", "-", "*"]}, left={"$ref": "#/$defs/e"}, right={"$ref": "#/$defs/e"}),
    obj(op={"const": "neg"}, arg={"$ref": "#/$defs/e"})]}}})
add("look-alike alternatives, recursive", {"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": [
    NULL, obj(l={"$ref": "#/$defs/n"}, x=INT), obj(l={"$ref": "#/$defs/n"}, y=INT), obj(l={"$ref": "#/$defs/n"}, x=STR)]}}})
add("mutual recursion", {"$ref": "#/$defs/a", "$defs": {"a": obj(["v"], v=INT, b={"$ref": "#/$defs/b"}),
                                                         "b": obj(["w"], w=BOOL, a={"$ref": "#/$defs/a"})}})
add("merged recursion", {"allOf": [{"$ref": "#/$defs/n"}, {"required": ["id"]}], "$defs": {
    "n": {"type": "object", "properties": {"id": INT, "sub": {"$ref": "#"}}, "additionalProperties": False}}})
add("discriminated union", {"oneOf": [obj(kind={"const": k}, **{k: INT}) for k in ("circle", "square", "triangle")]})
add("union of arrays", {"anyOf": [arr(INT, minItems=1), arr(STR, minItems=1), {"type": "array", "prefixItems": [NULL], "items": False}]})
add("annotations", {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "x", "$comment": "c", "title": "T",
                     "description": "d", "default": 1, "examples": [1], "type": "integer"})

# ---- As programs send them ----

DATE, DT, EMAIL, UUID = ({"type": "string", "format": f} for f in ("date", "date-time", "email", "uuid"))
OPT = lambda s: {"anyOf": [s, NULL], "default": None}
ENUM = lambda *v: {"type": "string", "enum": list(v)}

add("get_weather", obj(location={"type": "string", "description": "City"}, unit=ENUM("celsius", "fahrenheit")))
add("search", obj(["query"], query=STR, limit={"type": "integer", "minimum": 1, "maximum": 50}, filters=arr(STR), safe=BOOL))
add("send_email", obj(["to", "subject", "body"], to=arr(EMAIL, minItems=1, maxItems=5), cc=arr(EMAIL), subject={"type": "string", "maxLength": 78},
                      body=STR, priority=ENUM("low", "normal", "high")))
add("calendar_event", {"title": "CalendarEvent", "type": "object", "properties": {
    "name": {"title": "Name", "type": "string"}, "date": {"title": "Date", "type": "string"},
    "participants": {"items": {"type": "string"}, "title": "Participants", "type": "array"}},
    "required": ["name", "date", "participants"], "additionalProperties": False})
add("math steps", obj(steps=arr({"$ref": "#/$defs/Step"}), final_answer=STR) | {"$defs": {"Step": obj(explanation=STR, output=STR)}})
add("sql query", obj(sql=STR, parameters=arr({"anyOf": [STR, NUM, BOOL, NULL]}), timeout_ms={"type": "integer", "minimum": 0, "maximum": 60000}))
add("user", obj(["id", "email"], id=UUID, email=EMAIL, name={"type": "string", "minLength": 1, "maxLength": 40}, born=DATE, created=DT, active=BOOL,
                roles=arr(ENUM("admin", "editor", "viewer"), minItems=1, maxItems=3)))
add("address", obj(["street", "city", "country"], street=STR, city=STR, zip={"type": "string", "pattern": r"^\d{5}(-\d{4})?$"},
                   country={"type": "string", "pattern": "^[A-Z]{2}$"}))
add("order", obj(order_id={"type": "string", "pattern": "^ORD-[0-9]{6}$"}, customer={"$ref": "#/$defs/C"}, lines=arr({"$ref": "#/$defs/L"}, minItems=1, maxItems=4),
                 total={"type": "number", "minimum": 0}, currency=ENUM("EUR", "USD", "CHF"), paid=BOOL)
    | {"$defs": {"C": obj(["name"], name=STR, vat=STR), "L": obj(sku={"type": "string", "pattern": "^[A-Z0-9]{4,8}$"},
                 quantity={"type": "integer", "minimum": 1, "maximum": 999}, price={"type": "number", "exclusiveMinimum": 0, "maximum": 100000})}})
add("invoice", obj(["number", "issued", "items"], number=STR, issued=DATE, due=DATE, items=arr(obj(text=STR, net=NUM, vat={"enum": [0, 7, 19]}), minItems=1), note=OPT(STR)))
add("geojson point", obj(type={"const": "Point"}, coordinates={"type": "array", "prefixItems": [{"type": "number", "minimum": -180, "maximum": 180},
                         {"type": "number", "minimum": -90, "maximum": 90}], "items": False, "minItems": 2}))
POSITION = {"type": "array", "items": NUM, "minItems": 2, "maxItems": 3}
add("geojson geometry", {"oneOf": [obj(type={"const": "Point"}, coordinates=POSITION), obj(type={"const": "LineString"}, coordinates=arr(POSITION, minItems=2)),
                                   obj(type={"const": "Polygon"}, coordinates=arr(arr(POSITION, minItems=4)))]})
add("openapi parameter", obj(["name", "in"], name=STR, **{"in": ENUM("query", "header", "path", "cookie")}, deprecated=BOOL, schema={"type": "object"}))
add("package.json", obj(["name", "version"], True, name={"type": "string", "pattern": "^[a-z0-9._-]+$", "maxLength": 214}, version={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
                        scripts={"type": "object", "additionalProperties": STR}, dependencies={"type": "object", "additionalProperties": STR}, private=BOOL))
add("docker service", obj(["image"], image=STR, ports=arr({"type": "string", "pattern": r"^\d{1,5}:\d{1,5}$"}), environment={"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
                          restart=ENUM("no", "always", "on-failure"), replicas={"type": "integer", "minimum": 0, "maximum": 100}))
add("kubernetes metadata", obj(["name"], name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 20}, namespace=STR,
                               labels={"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}}))
add("log line", obj(["ts", "level", "msg"], True, ts=DT, level=ENUM("debug", "info", "warn", "error"), msg=STR, trace={"type": "string", "pattern": "^[0-9a-f]{16}$"}))
add("settings", obj([], theme=ENUM("light", "dark", "system"), font_size={"type": "integer", "minimum": 8, "maximum": 72}, language={"type": "string", "pattern": "^[a-z]{2}(-[A-Z]{2})?$"},
                    volume={"type": "number", "minimum": 0, "maximum": 1}, shortcuts={"type": "object", "additionalProperties": arr(STR, maxItems=3)}))
add("contact form", obj(["name", "email", "message"], name={"type": "string", "minLength": 1}, email=EMAIL, phone={"type": "string", "pattern": r"^\+?[0-9 ()-]{5,20}$"},
                        message={"type": "string", "minLength": 10, "maxLength": 500}, newsletter={"type": "boolean", "default": False}))
add("survey", obj(answers=arr({"oneOf": [obj(q=INT, choice=ENUM("a", "b", "c", "d")), obj(q=INT, text={"type": "string", "maxLength": 100}), obj(q=INT, scale={"type": "integer", "minimum": 1, "maximum": 5})]}, minItems=1)))
add("sentiment", obj(sentiment=ENUM("positive", "neutral", "negative"), confidence={"type": "number", "minimum": 0, "maximum": 1}))
add("entities", obj(entities=arr(obj(text=STR, label=ENUM("PERSON", "ORG", "LOC", "DATE"), start={"type": "integer", "minimum": 0}, end={"type": "integer", "minimum": 0}))))
add("receipt", obj(["merchant", "total"], merchant=STR, date=OPT(DATE), total=NUM, tax=OPT(NUM), lines=arr(obj(["text"], text=STR, amount=NUM))))
add("recipe", obj(title=STR, servings={"type": "integer", "minimum": 1, "maximum": 12}, ingredients=arr(obj(name=STR, amount=NUM, unit=ENUM("g", "ml", "piece", "tbsp"))), steps=arr(STR, minItems=1)))
add("movie", obj(["title", "year"], title=STR, year={"type": "integer", "minimum": 1888, "maximum": 2100}, genres=arr(STR, maxItems=5), rating=OPT({"type": "number", "minimum": 0, "maximum": 10})))
add("code edit", obj(path=STR, edits=arr(obj(line={"type": "integer", "minimum": 1}, action=ENUM("insert", "delete", "replace"), text=STR), maxItems=10)))
add("shell command", obj(["command"], command=arr(STR, minItems=1), workdir=STR, timeout={"type": "number", "exclusiveMinimum": 0}))
add("browser action", {"anyOf": [obj(action={"const": "click"}, x={"type": "integer", "minimum": 0, "maximum": 4096}, y={"type": "integer", "minimum": 0, "maximum": 4096}),
                                 obj(action={"const": "type"}, text=STR), obj(action={"const": "scroll"}, dy={"type": "integer", "minimum": -2000, "maximum": 2000}),
                                 obj(action={"const": "wait"}, ms={"type": "integer", "minimum": 0, "maximum": 10000})]})
add("ui tree", {"$ref": "#/$defs/ui", "$defs": {"ui": obj(type=ENUM("div", "button", "header", "section", "field", "form"), label=STR, children=arr({"$ref": "#/$defs/ui"}),
                attributes=arr(obj(name=STR, value=STR)))}})
add("plan", obj(goal=STR, tasks=arr({"$ref": "#/$defs/T"}, minItems=1)) | {"$defs": {"T": obj(["id", "title"], id={"type": "integer", "minimum": 1}, title=STR, done={"type": "boolean"}, subtasks=arr({"$ref": "#/$defs/T"}))}})
add("network interface", obj(["name"], name={"type": "string", "pattern": "^(eth|wlan)[0-9]$"}, ipv4={"type": "string", "format": "ipv4"}, mtu={"type": "integer", "minimum": 68, "maximum": 9000, "multipleOf": 4}, up=BOOL))
add("color", {"oneOf": [{"type": "string", "pattern": "^#[0-9a-f]{3}([0-9a-f]{3})?$"}, obj(r={"type": "integer", "minimum": 0, "maximum": 255}, g={"type": "integer", "minimum": 0, "maximum": 255}, b={"type": "integer", "minimum": 0, "maximum": 255})]})
add("chess move", obj(["from", "to"], **{"from": {"type": "string", "pattern": "^[a-h][1-8]$"}}, to={"type": "string", "pattern": "^[a-h][1-8]$"}, promotion=ENUM("q", "r", "b", "n")))
add("time slot", obj(start={"type": "string", "format": "time"}, minutes={"type": "integer", "multipleOf": 15, "minimum": 15, "maximum": 480}, weekday=ENUM("mon", "tue", "wed", "thu", "fri")))
add("bank transfer", obj(iban={"type": "string", "pattern": "^[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}$"}, amount={"type": "number", "exclusiveMinimum": 0, "maximum": 50000}, reference={"type": "string", "maxLength": 140}))
add("matrix", arr(arr({"type": "number", "minimum": -1, "maximum": 1}, minItems=3, maxItems=3), minItems=3, maxItems=3))
add("key value pairs", arr({"type": "array", "prefixItems": [STR, {"type": ["string", "number", "null"]}], "items": False, "minItems": 2}))
add("translations", obj(de=STR, en=STR, fr=STR, ja=STR))
add("quiz", obj(questions=arr(obj(text=STR, options=arr(STR, minItems=4, maxItems=4), answer={"type": "integer", "minimum": 0, "maximum": 3}), minItems=1, maxItems=3)))
add("wide form", obj(["f0", "f19", "f39"], **{f"f{i}": [STR, INT, BOOL, DATE, {"type": "number", "minimum": 0}][i % 5] for i in range(40)}))
add("deep configuration", (lambda f: f(f, 12))(lambda f, n: obj(["v"], v=INT, inner=f(f, n - 1)) if n else INT))

# ---- Adversarial ----

add("half of many", obj([], **{f"p{i}": NULL for i in range(12)}) | {"minProperties": 6})
add("shared prefixes", obj([], **{"a" * i: NULL for i in range(1, 20)}))
add("names of digits", obj([], **{str(i): INT for i in range(30)}))
add("alternatives of many objects", {"anyOf": [obj(**{f"k{i % 7}": INT, f"m{i}": {"const": i}}) for i in range(40)]})
add("nested alternatives", {"anyOf": [{"anyOf": [{"anyOf": [arr({"const": i * 4 + j * 2 + k}, minItems=1, maxItems=2) for k in range(2)]} for j in range(2)]} for i in range(2)]})
add("alternatives at every property", obj(**{f"p{i}": {"anyOf": [INT, STR, NULL, arr(INT, maxItems=1)]} for i in range(10)}))
add("impossible branch", {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 4}, {"type": "string", "minLength": 3, "maxLength": 2}, {"const": "ok"}]})
add("impossible element", arr({"type": "integer", "enum": ["x"]}))
add("impossible optional recursion", obj(["a"], a=INT, loop={"type": "object", "properties": {"loop": {"$ref": "#/properties/loop"}}, "required": ["loop"]}))
add("required by one, forbidden type by other", {"anyOf": [{"allOf": [INT, STR]}, {"allOf": [NUM, INT, {"minimum": 3}]}]})
add("long strings", obj(a={"type": "string", "minLength": 200, "maxLength": 1000}, b={"type": "string", "maxLength": 5000}))
add("many items", arr({"type": "integer", "minimum": 0, "maximum": 9}, minItems=50, maxItems=300))
add("repeating pattern", {"type": "string", "pattern": "^([a-z]{1,8} ?){1,20}$"})
add("ambiguous pattern", {"type": "string", "pattern": "^(a|a|aa|aaa)*b$"})
add("pattern of many classes", {"type": "string", "pattern": "^[a-cx-z]?[^a-y]?[b-eé-ü]?[0-4]?[3-9]?$"})
add("email and pattern", {"type": "string", "format": "email", "pattern": "\\.org$"})
add("date in this century", {"type": "string", "format": "date", "pattern": "^20[2-9]"})
add("many formats", obj([], **{f"d{i}": DT for i in range(12)}, **{f"u{i}": UUID for i in range(12)}))
add("deep references", {"$ref": "#/$defs/d0", "$defs": {f"d{i}": ({"$ref": f"#/$defs/d{i + 1}"} if i % 2 else arr({"$ref": f"#/$defs/d{i + 1}"}, maxItems=1)) for i in range(40)} | {"d40": INT}})
add("wide references", obj([], **{f"p{i}": {"$ref": "#/$defs/big"} for i in range(20)}) | {"$defs": {"big": obj([], **{f"q{i}": {"$ref": "#/$defs/small"} for i in range(20)}), "small": obj([], a=INT, b=arr(STR))}})
add("combinations", {"type": "object", "allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(4)],
                     "properties": {f"{k}{i}": NULL for i in range(4) for k in "ab"}, "additionalProperties": False})
add("bounds at the edge of doubles", {"type": "number", "minimum": 0.1, "maximum": 0.30000000000000004})
add("exclusive near one", {"type": "number", "exclusiveMinimum": 0.999, "exclusiveMaximum": 1})
add("large bounds", {"type": "number", "minimum": 1e15, "maximum": 1e17})
add("tiny bounds", {"type": "number", "exclusiveMinimum": 1e-9, "maximum": 1e-8})

path = os.path.join(os.path.dirname(__file__), "..", "data", "grammar", "schemas.jsonl")
with open(path, "w") as out:
    for name, schema in cases.items():
        out.write(json.dumps({"name": name, "schema": schema}, ensure_ascii=False) + "\n")
print(len(cases))
