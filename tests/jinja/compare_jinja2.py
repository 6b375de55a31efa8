#!/usr/bin/env python3
"""Random templates, rendered by jinja2 and by a binary, which must agree.

    compare_jinja2.py --bin build/release/mlx-serve [--count 2000] [--seed 1] [--jobs 2] [--save FILE]

Needs jinja2 3.1.6. The environment is that of tests/data/jinja/make_cases.py. A template is built from a grammar of
statements and expressions that mostly fit in type, now and then not; text and whitespace around tags are random too.
Prompts must be equal; where jinja2 fails the binary must fail, with the same text if raise_exception spoke. Integers
beyond 64 bits are outside of what the binary promises: a difference is not counted when it says so itself. Known and left
alone: jinja2 folds constant expressions before it looks at autoescape or for unknown filters, which shows once in thousands.
--save keeps the templates that differ, one JSON object a line."""
import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "data/jinja"))
import make_cases  # noqa: E402

warnings.simplefilter("ignore")
REQUEST = {
    "now": "2026-01-02T03:04:05",
    "messages": [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "Hi, it's <b>é</b>"},
                 {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.5}}}]}],
    "tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True,
    "kwargs": {
        "n": 7, "z": 0, "neg": -3, "f": 2.5, "s": "héllo wörld", "t": "  padded\n", "e": "", "u": "ÀßΣ x_y-z 12", "yes": True,
        "no": False, "nil": None, "xs": [3, 1, 2], "words": ["beta", "Alpha", "gamma", "alpha"], "mixed": [1, "a", None, 2.5, True],
        "d": {"b": 1, "A": 2, "items": "shadowed", "k": "v"}, "rows": [{"k": "x", "v": 2, "o": {"z": 1}}, {"k": "Y", "v": 1}, {"k": "x", "v": 3}],
        "tree": [{"name": "a", "kids": [{"name": "b", "kids": []}, {"name": "c", "kids": [{"name": "d", "kids": []}]}]}],
        "emoji": "a👍🏽\u200bb\u2028c", "nested": [[1, 2], [3, [4]], []], "lines": "one\n  two\r\n\n three\tx",
    },
}
STRINGS = ["s", "t", "e", "u", "emoji", "lines", "words[0]", "messages[1].content", "bos_token", "messages[0]['role']", "rows[1].k"]
LISTS = ["xs", "words", "mixed", "rows", "messages", "nested", "tree", "words[1:]", "range(4)", "range(5, 0, -2)", "d.values()", "d.keys()",
         "d.items()", "(1, 'b', 2.5)", "[]", "'héy'", "d", "[xs, words]"]
WORDS = ["word", "a", "well-known", "re-e-mail", "--", "---", "end.--next", "a-b", "-x", "x-", "é-à-ü", "2-3-x", "it's", "\\u00a0", "longwordthatdoesnotfit",
         "x--y", "a--", "e-", "über-groß", "1-2", "_a-b_", "...", "ab-c-de"]
LINKS = ["http://example.com", "https://a.b.example.org/x?y=1&z#f", "www.example.com", "www.x-y.info:80/p", "example.com", "foo.net,", "(http://a.de/(b))", "<https://x.io>",
         "HTTP://Example.COM/", "a@b.com", "mailto:a.b@c-d.org", "@a.b", "a@b", "a:b@c.com", "http://127.0.0.1:8080/a", "http://[::1]/", "https://[fe80:0:0::1%]", "ftp://x.org/",
         "tel:123", "http://localhost", "http://x.y:123456", "www.", "http://a..b", "xn--p1ai.com", "https://xn--e1a.xn--p1ai/ü", "((a.com))", "&lt;b.org&gt;", "x.museum",
         "http://a.com).", "it.com:", "a_b.gov/?", "http://\u017fs.com", "«b.com»", "1.2.3.4", "http://1.2.3.4.5", "a@b.c-d", "a@b.c.", "http://u@h.com", "//b.com", "b.com#x"]
TEXTS = ["a", " ", "\n", "  \n", "\t", "x y\n", "\n\n  ", "é", "{", "}", "%", "#", "- ", "'", "<b>"]


class Writer:
    """Grammar; every method returns source text."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.names = ["n", "s", "xs"]
        self.macros = []
        self.loops = 0

    def pick(self, *choices):
        return self.rng.choice(choices)

    def chance(self, p):
        return self.rng.random() < p

    # ---- Expressions ----

    def literal_string(self):
        body = "".join(self.pick("a", "B", " ", "é", "%s", "\\n", "x", "-", "_", "1", ".", ",", "{}", "\\\\", "<", "&", "\\t", "Σ")
                       for _ in range(self.rng.randint(0, 5)))
        quote = self.pick("'", '"')
        return quote + body + (self.pick("'", "") if quote == '"' else self.pick('"', "", "")) + quote

    def prose(self, words, glue=(" ", " ", " ", "  ", "\\n", "", "\\t", "\\n\\n")):
        return '"' + "".join(self.rng.choice(words) + self.rng.choice(glue) for _ in range(self.rng.randint(0, 14))) + '"'

    def nested_literal(self, depth):
        kind = self.rng.random() * (1 if depth > 0 else 0.5)
        if kind < 0.3:
            return self.prose(WORDS)
        if kind < 0.5:
            return self.pick("1", "none", "2.5", "true", "s", "xs", "d", "emoji", "''", "'<'|e", "10 ** 15")
        items = [self.nested_literal(depth - 1) for _ in range(self.rng.randint(0, 6))]
        if kind < 0.65:
            return "[" + ", ".join(items) + "]"
        if kind < 0.75:
            return "(" + "".join(i + ", " for i in items) + ")" if items else "()"
        return "{" + ", ".join(self.pick("'k'", "'longer key'", "3", "none", "(1, 3)", "'b'", "2.5", "'é'", "(1, 2)") + ": " + i for i in items) + "}"

    def texts(self):
        return self.rng.choice([
            lambda: self.prose(WORDS) + "|wordwrap(" + self.pick("1", "4", "7", "10", "15", "30") + self.pick("", ", false", ", true, '|'", ", break_on_hyphens=false", ", false, none, false") + ")",
            lambda: self.prose(LINKS) + "|urlize" + self.pick("", "(12)", "(0)", "(-3)", "(nofollow=true)", "(20, true, '_blank')", "(rel='x a')", "(extra_schemes=['tel:', 'ftp://'])", "(target='<')"),
            lambda: self.nested_literal(3) + "|pprint",
        ])()

    def string(self, depth):
        if depth > 0 and self.chance(0.06):
            return "(" + self.texts() + ")"
        if depth <= 0:
            return self.rng.choice(STRINGS) if self.chance(0.6) else self.literal_string()
        s = lambda: self.string(depth - 1)
        i = lambda: self.integer(depth - 2)
        return self.rng.choice([
            lambda: s() + "." + self.pick("upper", "lower", "title", "capitalize", "strip", "lstrip", "rstrip", "swapcase", "casefold") + "()",
            lambda: s() + "." + self.pick("strip", "lstrip", "rstrip") + "(" + self.literal_string() + ")",
            lambda: s() + ".replace(" + s() + ", " + s() + self.pick("", ", 1", ", " + i()) + ")",
            lambda: s() + self.slice(depth),
            lambda: s() + "[" + i() + "]",
            lambda: s() + " ~ " + self.any(depth - 1),
            lambda: "(" + s() + " + " + s() + ")",
            lambda: "(" + s() + " * " + self.pick("0", "2", "3", "-1") + ")",
            lambda: s() + "|" + self.pick("upper", "lower", "title", "capitalize", "trim", "string", "safe", "e", "escape", "striptags", "urlencode", "reverse", "forceescape", "first", "last"),
            lambda: s() + "|replace(" + s() + ", " + s() + self.pick("", ", 1", ", count=2") + ")",
            lambda: s() + "|trim(" + self.literal_string() + ")",
            lambda: s() + "|truncate(" + self.pick("3", "5", "9, true", "8, false, '..'", "4, true, '', 0", "7, leeway=0", "20") + ")",
            lambda: s() + "|indent" + self.pick("", "(2)", "(width=3, first=true)", "('> ')", "(2, true, true)", "(blank=true)"),
            lambda: s() + "|center(" + self.pick("9", "20", "1") + ")",
            lambda: s() + "|wordwrap" + self.pick("(4)", "(9)", "", "(5, false)", "(width=6, wrapstring='|')", "(3, break_on_hyphens=false)"),
            lambda: self.any(depth - 1) + "|tojson" + self.pick("", "", "(indent=2)", "(ensure_ascii=true)", "(sort_keys=true)", "(separators=(',', ':'))", "(indent=0)", "(indent='-')"),
            lambda: self.any(depth - 1) + "|string",
            lambda: self.any(depth - 1) + "|pprint",
            lambda: self.any(depth - 1) + "|d(" + s() + self.pick("", ", true") + ")",
            lambda: self.sequence(depth - 1) + "|join" + self.pick("", "(', ')", "(d='-')", "(" + self.literal_string() + ")", "(',', attribute='k')", "(attribute='k')"),
            lambda: s() + ".join(" + self.sequence(depth - 1) + ")",
            lambda: "'" + self.pick("%s", "%5s|", "%-4s|", "%d", "%05.1f", "%r", "%x", "%s-%s", "%(a)s", "%%", "%+d", "%e", "%g", "%c", "%o", "%5.1f%%", "%.2s") + "' % " + self.pick(self.any(depth - 1), "(" + self.any(depth - 1) + ", " + self.any(depth - 1) + ")", "(" + self.any(depth - 1) + ",)", "{'a': " + self.any(depth - 1) + "}"),
            lambda: "'" + self.pick("%s", "%d|%s", "%5.2f") + "'|format(" + self.any(depth - 1) + self.pick("", ", " + self.any(depth - 1)) + ")",
            lambda: "'" + self.pick("{}", "{0}{0}", "{:>6}|", "{:<6}|", "{:^7}|", "{:05}", "{:.2f}", "{:,}", "{:x}", "{!r}", "{:*^9}", "{a}", "{0[0]}", "{:d}", "{:e}", "{:+}", "{:.3}", "{:%}", "{:b}", "{:g}", "{!s:>5}") + "'.format(" + self.any(depth - 1) + self.pick("", ", a=" + self.any(depth - 1)) + ")",
            lambda: s() + "." + self.pick("center", "ljust", "rjust") + "(" + self.pick("9", "12, '*'", i()) + ")",
            lambda: s() + ".zfill(" + self.pick("5", "9", "1") + ")",
            lambda: s() + "." + self.pick("removeprefix", "removesuffix") + "(" + s() + ")",
            lambda: s() + ".expandtabs(" + self.pick("", "4", "1", "0") + ")",
            lambda: "(" + s() + " if " + self.boolean(depth - 1) + self.pick("", " else " + s()) + ")",
            lambda: "strftime_now('" + self.pick("%Y-%m-%d", "%d %b %Y", "%H:%M:%S", "%j %U %p %I", "%A, %B %d", "%y%%", "%x %X", "%-d/%-m", "%e", "%D %T %F %R") + "')",
            lambda: self.macro_call(depth),
            lambda: "d" + self.pick("|xmlattr", "|urlencode", "|xmlattr(false)"),
            lambda: self.integer(depth - 1) + "|filesizeformat" + self.pick("", "(true)"),
            lambda: "loop." + self.pick("index", "first", "last", "length", "revindex", "depth", "index0", "previtem", "nextitem", "cycle('a','b')", "changed(n)") if self.loops else s(),
            lambda: s() + "|urlize" + self.pick("", "(5)", "(nofollow=true)"),
        ])()

    def integer(self, depth):
        if depth <= 0:
            return self.pick("0", "1", "2", "7", "-1", "n", "z", "neg", "10", "-3", "xs[0]", "1_000", "0x1f")
        i = lambda: self.integer(depth - 1)
        return self.rng.choice([
            lambda: "(" + i() + self.pick(" + ", " - ", " * ", " // ", " % ") + i() + ")",
            lambda: "(" + i() + " ** " + self.pick("2", "0", "3", "-1") + ")",
            lambda: i() + "|abs",
            lambda: "-" + i(),
            lambda: self.any(depth - 1) + "|int" + self.pick("", "(-1)", "(default=5)", "(0, 16)"),
            lambda: self.sequence(depth - 1) + "|" + self.pick("length", "count"),
            lambda: self.string(depth - 1) + "|" + self.pick("length", "wordcount"),
            lambda: self.string(depth - 1) + "." + self.pick("find", "rfind", "count", "index", "rindex") + "(" + self.string(depth - 1) + self.pick("", "", ", 1", ", 0, 3", ", -2") + ")",
            lambda: "xs|" + self.pick("sum", "min", "max", "first", "last"),
            lambda: "rows|sum(attribute='v'" + self.pick("", ", start=5") + ")",
            lambda: self.number(depth - 1) + "|round|int",
        ])()

    def number(self, depth):
        if depth <= 0 or self.chance(0.4):
            return self.pick("f", "2.5", "1e3", "-0.5", "0.1", "1.0", "3e-5", "1e16", "123456.789", self.integer(depth - 1))
        a, b = self.number(depth - 1), self.number(depth - 1)
        return self.pick("(" + a + self.pick(" + ", " - ", " * ", " / ", " // ", " % ") + b + ")", a + "|float", a + "|abs",
                         a + "|round" + self.pick("", "(1)", "(2, 'floor')", "(0, 'ceil')", "(-1)", "(precision=1)"),
                         self.string(depth - 1) + "|float" + self.pick("", "(1.5)"), "(" + a + " ** " + self.pick("2", "3", "-1") + ")")

    def boolean(self, depth):
        if depth <= 0:
            return self.pick("yes", "no", "true", "False", "nil", "s", "e", "xs", "not yes", "n > 3", "missing")
        a = lambda: self.any(depth - 1)
        return self.rng.choice([
            lambda: a() + self.pick(" == ", " != ") + a(),
            lambda: self.number(depth - 1) + self.pick(" < ", " > ", " <= ", " >= ") + self.number(depth - 1) + self.pick("", "", " < 9"),
            lambda: self.string(depth - 1) + self.pick(" < ", " >= ") + self.string(depth - 1),
            lambda: "not " + self.boolean(depth - 1),
            lambda: "(" + self.boolean(depth - 1) + self.pick(" and ", " or ") + self.boolean(depth - 1) + ")",
            lambda: a() + self.pick(" in ", " not in ") + self.sequence(depth - 1),
            lambda: self.string(depth - 1) + " in " + self.string(depth - 1),
            lambda: a() + " is " + self.pick("", "not ") + self.pick("defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "integer", "float", "boolean", "true", "false", "callable", "escaped", "lower", "upper"),
            lambda: self.integer(depth - 1) + " is " + self.pick("", "not ") + self.pick("odd", "even", "divisibleby 2", "divisibleby(3)", "eq 7", "gt 2", "lt(5)", "ne 1", "ge 1", "le 2", "in xs", "sameas n", "equalto 7", "greaterthan 1"),
            lambda: self.string(depth - 1) + "." + self.pick("startswith", "endswith") + "(" + self.pick(self.string(depth - 1), "('h', 'a')", "'h', 1", "'', 0, 0") + ")",
            lambda: self.string(depth - 1) + "." + self.pick("isdigit", "isalpha", "isalnum", "isspace", "islower", "isupper", "istitle", "isnumeric", "isdecimal", "isascii", "isidentifier", "isprintable") + "()",
            lambda: "'" + self.pick("upper", "nope", "tojson", "odd") + "' is " + self.pick("filter", "test"),
        ])()

    def slice(self, depth):
        part = lambda: self.pick("", "", "1", "-1", "2", "-2", "n", "0", "99", "none")
        return "[" + part() + ":" + part() + self.pick("", "", ":", ":-1", ":2", ":-2") + "]"

    def sequence(self, depth):
        if depth <= 0:
            return self.rng.choice(LISTS)
        q = lambda: self.sequence(depth - 1)
        test = lambda: self.pick("'odd'", "'string'", "'gt', 1", "'in', xs", "'none'", "'defined'", "'eq', 'a'", "'number'", "'mapping'", "'sequence'", "'divisibleby', 2", "")
        attribute = lambda: self.pick("'k'", "'v'", "'o'", "'o.z'", "'role'", "'content'", "0", "1", "'name'")
        return self.rng.choice([
            lambda: q() + self.slice(depth),
            lambda: q() + "|list",
            lambda: q() + "|reverse|list",
            lambda: q() + "|sort" + self.pick("", "(reverse=true)", "(case_sensitive=true)", "(attribute='v')", "(attribute='k,v')", "(true)"),
            lambda: q() + "|unique" + self.pick("", "(true)", "(attribute='k')") + "|list",
            lambda: q() + "|" + self.pick("select", "reject") + "(" + test() + ")" + "|list",
            lambda: self.pick("rows", "messages", q()) + "|" + self.pick("selectattr", "rejectattr") + "(" + attribute() + self.pick("", ", 'defined'", ", 'eq', 'x'", ", 'gt', 1", ", '==', 'user'", ", 'string'") + ")" + "|list",
            lambda: q() + "|map(" + self.pick("'upper'", "'string'", "'int'", "'length'", "'trim'", "'default', 'q'", "'tojson'", "attribute='k'", "attribute='o.z', default='?'", "'replace', 'a', 'b'", "'first'", "'list'", "attribute=0", "'abs'", "'e'", "'round', 1", "'join', '-'") + ")" + "|list",
            lambda: q() + "|batch(" + self.pick("2", "3, 'x'", "1") + ")|list",
            lambda: q() + "|slice(" + self.pick("2", "3, 'x'", "4") + ")|list",
            lambda: "d|" + self.pick("dictsort", "items|list", "dictsort(true)", "dictsort(by='value')", "dictsort(reverse=true)", "list", "dictsort(false, 'key', true)"),
            lambda: q() + "|groupby(" + attribute() + self.pick("", ", default='x'", ", case_sensitive=true") + ")",
            lambda: self.string(depth - 1) + "." + self.pick("split", "rsplit") + "(" + self.pick("", self.literal_string(), "' '", "',', 1", "none, 1", "sep=' '", "maxsplit=1") + ")",
            lambda: self.string(depth - 1) + ".splitlines(" + self.pick("", "true") + ")",
            lambda: self.string(depth - 1) + "." + self.pick("partition", "rpartition") + "(" + self.pick("' '", "'a'", self.literal_string()) + ")",
            lambda: "[" + ", ".join(self.any(depth - 1) for _ in range(self.rng.randint(0, 3))) + "]",
            lambda: "(" + self.any(depth - 1) + ", " + self.any(depth - 1) + ")",
            lambda: "(" + q() + " + " + q() + ")",
            lambda: "([" + self.any(depth - 1) + "] * " + self.pick("2", "0") + ")",
            lambda: "range(" + self.integer(0) + self.pick("", ", " + self.integer(0), ", 0, -1") + ")",
            lambda: self.string(depth - 1) + "|list",
        ])()

    def mapping(self, depth):
        if depth <= 0:
            return self.pick("d", "rows[0]", "{}", "messages[0]", "tree[0]")
        items = ", ".join(self.pick("'a'", "'b'", "1", "s", "'k'", "none", "true", "(1, 2)") + ": " + self.any(depth - 1) for _ in range(self.rng.randint(0, 3)))
        return self.pick("{" + items + "}", "dict(a=" + self.any(depth - 1) + ")", "dict(d, z=1)", "namespace(a=1)", "dict(d.items())")

    def any(self, depth):
        if depth <= 0:
            return self.pick("n", "s", "f", "xs", "d", "nil", "yes", "missing", "none", "true", "e", "1.0", "rows", "mixed", self.rng.choice(self.names))
        kind = self.rng.random()
        if kind < 0.3:
            return self.string(depth)
        if kind < 0.45:
            return self.integer(depth)
        if kind < 0.55:
            return self.number(depth)
        if kind < 0.7:
            return self.boolean(depth)
        if kind < 0.88:
            return self.sequence(depth)
        if kind < 0.94:
            return self.mapping(depth)
        return self.access(depth)

    def access(self, depth):
        return self.pick(self.mapping(depth - 1) + self.pick(".k", "['k']", ".a", "['b']", ".get('A')", ".get('q', 4)", ".missing", ".items()", ".keys()|list", ".items", "['items']", "|length", "|attr('k')", ".copy()", "|list"),
                         self.sequence(depth - 1) + "[" + self.integer(0) + "]", "rows[" + self.integer(0) + "]." + self.pick("k", "o.z", "zz", "zz.y"),
                         self.any(depth - 1) + self.pick(".zz", "['zz']", "[0]", ".0", "()"), "mixed.index(" + self.any(0) + ")", "xs.count(" + self.any(0) + ")")

    def macro_call(self, depth):
        if not self.macros:
            return self.string(depth - 1)
        return self.rng.choice(self.macros) + "(" + ", ".join(self.pick("", "", "a=", "b=", "q=") + self.any(0) for _ in range(self.rng.randint(0, 3))) + ")"

    # ---- Statements ----

    def open(self, what, close="%}", begin="{%"):
        return begin + self.pick("", "", "", "-", "-", "+") + self.pick(" ", "", "\n ") + what + self.pick(" ", "") + self.pick("", "", "-", "+" if close == "%}" else "") + close

    def tag(self, what):
        return self.open(what)

    def text(self):
        return "".join(self.rng.choice(TEXTS) for _ in range(self.rng.randint(0, 4)))

    def print(self, depth):
        return "{{" + self.pick("", "-", " ") + " " + self.any(depth) + " " + self.pick("", "-", "") + "}}"

    def body(self, depth):
        return "".join(self.text() + self.statement(depth) for _ in range(self.rng.randint(1, 3))) + self.text()

    def name(self):
        name = self.pick("v", "w", "x", "n", "s", "q")
        self.names.append(name)
        return name

    def statement(self, depth):
        if depth <= 0 or self.chance(0.35):
            return self.print(self.rng.randint(0, 3))
        makers = [self.make_if, self.make_for, self.make_for, self.make_set, self.make_set, self.make_macro, self.make_call, self.make_filter,
                  self.make_with, self.make_comment, self.make_raw, self.make_namespace, self.make_recursive, self.make_small]
        return self.rng.choice(makers)(depth - 1)

    def make_if(self, depth):
        out = self.tag("if " + self.boolean(2)) + self.body(depth)
        for _ in range(self.rng.randint(0, 2)):
            out += self.tag("elif " + self.boolean(1)) + self.body(depth)
        if self.chance(0.5):
            out += self.tag("else") + self.body(depth)
        return out + self.tag("endif")

    def make_for(self, depth):
        name = self.name()
        head = self.pick("for %s in %s" % (name, self.sequence(self.rng.randint(0, 2))), "for k, v in d.items()", "for %s in %s" % (name, self.sequence(0)),
                         "for k, v in " + self.sequence(2))
        if self.chance(0.25):
            head += " if " + self.boolean(1)
        self.loops += 1
        body = self.body(depth)
        if self.chance(0.3):
            body += self.tag("if " + self.boolean(1)) + self.tag(self.pick("break", "continue")) + self.tag("endif") + self.text()
        self.loops -= 1
        if self.chance(0.25):
            body += self.tag("else") + self.body(depth - 1)
        return self.tag(head) + body + self.tag("endfor")

    def make_recursive(self, depth):
        inner = self.text() + "{{ x.name }}" + self.pick("", "{{ loop.depth }}", "{{ loop.depth0 }}", "{{ loop.index }}") + self.text()
        return self.tag("for x in tree recursive") + inner + "{{ loop(x.kids)" + self.pick("", "|upper", "|trim") + " }}" + self.tag("endfor")

    def make_set(self, depth):
        if self.chance(0.3):
            out = self.tag("set " + self.pick("v", "w", "x") + self.pick("", " | upper", " | trim | replace('a', 'b')")) + self.body(depth) + self.tag("endset")
            return out + self.print(1)
        value = self.any(2)
        return self.tag(self.pick("set %s = %s" % (self.name(), value), "set v, w = %s, %s" % (value, self.any(1)), "set v = %s, 1" % value, "set (v, w) = " + self.sequence(1)))

    def make_macro(self, depth):
        name = self.pick("m1", "m2")
        loops, self.loops = self.loops, 0
        params = self.pick("", "a", "a, b=1", "a, b='x', c=a", "a=none, b=xs")
        extra = self.pick("", "", "{{ varargs }}", "{{ kwargs }}", "{{ caller() if caller else '' }}", "{{ a }}|{{ b }}")
        out = self.tag("macro %s(%s)" % (name, params)) + self.body(depth) + extra + self.tag("endmacro")
        self.loops = loops
        self.macros.append(name)
        return out + self.text() + "{{ " + self.macro_call(1) + " }}" + self.pick("", "{{ %s.name }}{{ %s.arguments }}" % (name, name))

    def make_call(self, depth):
        if not self.macros:
            return self.make_macro(depth)
        return self.tag("call" + self.pick("", "(a)", "(a, b=2)") + " " + self.macro_call(1)) + self.body(depth) + self.tag("endcall")

    def make_filter(self, depth):
        return self.tag("filter " + self.pick("upper", "trim", "replace('a', 'b')|upper", "indent(2)", "length", "title|trim", "e")) + self.body(depth) + self.tag("endfilter")

    def make_with(self, depth):
        return self.tag("with " + self.pick("", "v = " + self.any(1), "v = 1, w = v", "n = n")) + self.body(depth) + self.tag("endwith")

    def make_comment(self, depth):
        return "{#" + self.pick("", "-", "+") + self.pick(" c ", " {{ x }} ", "\n", "") + self.pick("", "-", "+") + "#}"

    def make_raw(self, depth):
        return self.tag("raw") + self.pick(" {{ x }} ", "\n {% if %}\n ", "{# c #}", "") + self.tag("endraw")

    def make_namespace(self, depth):
        out = self.tag("set ns = namespace(" + self.pick("", "a=1", "a=n, b=[]", "d") + ")")
        loop = self.tag("for x in xs") + self.tag("set ns.a = " + self.pick("x", "ns.a + x", "(ns.a or 0) + 1", self.any(1))) + self.tag("endfor")
        return out + loop + "{{ ns.a }}" + self.pick("", "{{ ns.zz }}", "{{ ns }}", "{{ ns.a is defined }}")

    def make_small(self, depth):
        return self.pick(self.tag("generation") + self.body(depth) + self.tag("endgeneration"), self.tag("block b%d" % self.rng.randrange(10 ** 6)) + self.body(0) + self.tag("endblock"),
                         self.tag("print " + self.any(1) + self.pick("", ", 2")), self.tag("if " + self.boolean(1)) + "{{ raise_exception(" + self.pick("'no'", "s ~ n", self.any(1)) + ") }}" + self.tag("endif"),
                         self.tag("set c = cycler(1, 'b')") + "{{ c.next() }}{{ c.current }}{{ c.next() }}", self.tag("set j = joiner('; ')") + "{{ j() }}a{{ j() }}b",
                         self.tag("autoescape " + self.pick("false", "true", "true", "yes", "no", "n > 3")) + self.body(self.rng.randint(0, 1)) + self.tag("endautoescape"), self.tag("do xs.append(1)"))

    def template(self):
        return self.body(self.rng.randint(1, 3))


def expect(template):
    case = make_cases.make_case(template, REQUEST)
    case.pop("template")
    return case


def ask(binary, template, folder, index):
    path = os.path.join(folder, "%d.jinja" % index)
    with open(path, "w", encoding="utf-8", newline="") as f:
        f.write(template)
    run = subprocess.run([binary, "render", "--template", path, "--json"], input=json.dumps(REQUEST).encode() + b"\n",
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    os.unlink(path)
    if run.returncode < 0 or run.returncode > 2:
        return {"error": "died with %d: %s" % (run.returncode, run.stderr[-300:]), "died": True}
    if run.returncode or not run.stdout:
        return {"error": run.stderr.decode()}
    return json.loads(run.stdout.decode())


def agrees(want, got):
    if got.get("died"):
        return False
    if "64 bits" in got.get("error", ""):
        return True
    if "prompt" in want:
        return got.get("prompt") == want["prompt"]
    return "error" in got and want["error"] in got["error"]


def volatile(case):
    """Addresses and the like, which no two runs share."""
    return " at 0x" in case.get("prompt", "") or " object at " in case.get("prompt", "")


def try_one(job):
    binary, seed, folder = job
    template = Writer(seed).template()
    want = expect(template)
    if volatile(want):
        return seed, template, want, None
    return seed, template, want, ask(binary, template, folder, seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--save")
    args = parser.parse_args()
    rendered = failed = differ = 0
    save = open(args.save, "w", encoding="utf-8") if args.save else None
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ProcessPoolExecutor(args.jobs) as pool:
        jobs = ((args.bin, args.seed * 10 ** 7 + i, folder) for i in range(args.count))
        for seed, template, want, got in pool.map(try_one, jobs, chunksize=50):
            if got is None:
                continue
            rendered += "prompt" in want
            failed += "error" in want
            if not agrees(want, got):
                differ += 1
                if save:
                    save.write(json.dumps({"seed": seed, "template": template, "want": want, "got": got}) + "\n")
                if differ <= 10:
                    print("DIFFER", seed, json.dumps(template), "\n  jinja2:", json.dumps(want)[:600], "\n  binary:", json.dumps(got)[:600])
    print("%d rendered, %d failed as expected or not, %d differ" % (rendered, failed, differ))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
