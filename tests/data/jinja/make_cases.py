#!/usr/bin/env python3
"""Writes language.json and families.json: templates with what jinja2 makes of them.

    python3 make_cases.py      (needs jinja2 3.1.6)

The environment is the one chat templates are written for: immutable sandbox, trim_blocks, lstrip_blocks,
loop controls, a generation tag, tojson without HTML escapes, raise_exception and strftime_now.
A case whose rendering raises is stored with an empty error (any message), or with the raised text when
the template raised it itself."""
import datetime
import json
import os

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = os.path.dirname(os.path.abspath(__file__))


class Raised(jinja2.exceptions.TemplateError):
    pass


class Namespace(jinja2.utils.Namespace):
    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        Namespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name):
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def make_environment(now):
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise Raised(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["namespace"] = Namespace
    env.globals["strftime_now"] = lambda f: datetime.datetime.fromisoformat(now).strftime(f)
    return env


def make_case(template, request):
    variables = {k: v for k, v in request.items() if k not in ("kwargs", "now")}
    variables.update(request.get("kwargs", {}))
    case = {"template": template}
    try:
        case["prompt"] = make_environment(request["now"]).from_string(template).render(**variables)
    except Raised as e:
        case["error"] = str(e)
    except Exception:
        case["error"] = ""
    return case


def write(name, request, cases):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        f.write('{"request": ' + json.dumps(request, ensure_ascii=False) + ',\n"cases": [\n')
        f.write(",\n".join(json.dumps(c, ensure_ascii=False) for c in cases))
        f.write("\n]}\n")


LANGUAGE_REQUEST = {
    "now": "2026-01-02T03:04:05",
    "kwargs": {
        "n": 7, "big": 9007199254740993, "long": 123456789012345678901234567890, "neg_long": -9223372036854775809,
        "html": "<b>it's</b>", "f": 2.5, "s": "héllo wörld", "t": "  padded\n", "e": "",
        "yes": True, "no": False, "nil": None, "xs": [3, 1, 2], "words": ["beta", "Alpha", "gamma", "alpha"],
        "d": {"b": 1, "A": 2, "items": "shadowed"}, "rows": [{"k": "x", "v": 2, "o": {"z": 1}}, {"k": "Y", "v": 1}, {"k": "x", "v": 3}],
        "tree": [{"name": "a", "kids": [{"name": "b", "kids": []}, {"name": "c", "kids": [{"name": "d", "kids": []}]}]}],
    },
}

LANGUAGE = r"""
{{ 1 + 2 * 3 - 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }}
{{ 9223372036854775807 - 1 }} {{ big + 1 }} {{ 3.0 }} {{ 1e22 }} {{ 1e-7 }} {{ 0.1 + 0.2 }} {{ 1e16 }} {{ 123456789012345.0 }}
{{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 7 / 2 }} {{ 1 == 1.0 }} {{ true + 1 }} {{ not 0 }}
{{ 0x1f }} {{ 0b101 }} {{ 0o17 }} {{ 1_000 }} {{ 1.5e3 }}
{{ 1 < 2 < 3 }} {{ 1 < 2 > 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ (1, 2) == (1, 2) }} {{ [1] == (1,) }}
{{ 'a' in 'cat' }} {{ 2 in xs }} {{ 'b' in d }} {{ 9 not in xs }} {{ not 9 in xs }}
{{ yes and 'x' }} {{ no or 'y' }} {{ nil and 1 }} {{ e or nil or 0 }}
{{ 'a' if n > 3 else 'b' }} {{ 'a' if n > 9 else 'b' if n > 8 else 'c' }} [{{ 'z' if no }}]
{{ -n|abs }} {{ -3|abs }} {{ 5 - 2|int }} {{ '3'|int + 4 }} {{ 'a' ~ 1 + 2 ~ 'b' }} {{ n is number and s is string }}
{{ not yes is none }} {{ n is divisibleby 7 }} {{ n is divisibleby(2) }} {{ n is not odd }} {{ xs is sameas xs }}
{{ s[0] }}{{ s[-1] }}{{ s[1:4] }}{{ s[::-1] }}{{ s[::2] }}{{ s[7:] }}{{ s[-3:-1] }}{{ s[99:] }}|{{ s[99] }}|{{ s|length }}
{{ xs[1:] }}{{ xs[::-1] }}{{ xs[-2:] }}{{ xs[:-1] }}{{ xs[5:] }}{{ xs[0:3:2] }}{{ xs[-1:0:-1] }}
{{ d['items'] }} {{ d.b }} {{ d['A'] }} {{ d.zzz }} {{ d.get('zzz', 4) }} {{ d.keys()|list }} {{ d.values()|list }} {{ d.items()|list }} {{ d.keys() }}
{{ rows[0].o.z }} {{ rows[1].o.z is defined }}
{{ rows.0.k }} {{ (1, 2).1 }} {{ ('a',) }} {{ () }} {{ {} }} {{ [] }} {{ {'a': [1, {'b': none}], 2: 'x'} }}
{{ "it's" }} {{ ["it's", 'say "hi"', "both ' and \"", 'tab\t', 'nl\n', 'é', '\u200b', '\x07'] }}
{{ 'a' 'b' "c" }} {{ '\x41\u00e9\101\q' }} {{ 'line\
joined' }}
{% for x in xs %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.cycle('a', 'b') }}{{ ',' if not loop.last }}{% endfor %}
{% for x in xs if x > 1 %}{{ loop.index0 }}{{ x }}{{ loop.length }}{{ loop.first }}{{ loop.last }} {% else %}none{% endfor %}
{% for x in xs if x > 9 %}{{ x }}{% else %}none{% endfor %}
{% for x in [1,1,2,2,1] %}{{ loop.changed(x) }} {% endfor %}
{% for a, b in [(1, 2), (3, 4)] %}{{ a }}-{{ b }};{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a + b + c }}{% endfor %}
{% for k, v in d|dictsort %}{{ k }}={{ v }} {% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in 'hé' %}<{{ c }}>{% endfor %}
{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in xs %}{% break %}{% else %}else{% endfor %}{% for x in xs %}{% if x > 1 %}{% continue %}{% endif %}{% else %}else{% endfor %}
{{ missing|truncate(5) }}{{ xs|truncate(5) }} {{ 'a\tb'.expandtabs(4) }} {{ [missing, missing]|sort|length }} {{ yes|round }}
{{ nil[1:] }}
{% for x in range(10, 0, -3) %}{{ x }} {% endfor %}{{ range(5)|list }}{{ range(2, 4)[1] }}{{ range(3)|length }}
{% for n in tree recursive %}{{ n.name }}{{ loop.depth }}{% if n.kids %}({{ loop(n.kids) }}){% endif %}{% endfor %}
{% for x in xs %}{% for y in xs %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}
{% for x in xs %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}
{% set a = 1 %}{% if yes %}{% set a = 2 %}{% endif %}{{ a }}{% for i in xs %}{% set a = 9 %}{% endfor %}{{ a }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = 1, 2 %}{{ c }}{% set (x, y) = [5, 6] %}{{ x + y }}
{% set ns = namespace(n=0, l=[]) %}{% for x in xs %}{% set ns.n = ns.n + x %}{% set ns.l = ns.l + [x * 2] %}{% endfor %}{{ ns.n }}{{ ns.l }}{{ ns.zz }}
{% set x %}a{{ n }}b{% endset %}[{{ x }}]{% set y | upper | replace('A', 'Q') %}a{{ n }}b{% endset %}[{{ y }}]
{% macro m(a, b=2, c='z') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }} {{ m(1, c='q') }} {{ m(a=5) }} [{{ m() }}]
{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, k=4) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(zz=2) }}
{% macro fact(k) %}{% if k < 2 %}1{% else %}{{ k * fact(k - 1)|int }}{% endif %}{% endmacro %}{{ fact(10) }}
{% macro box(t) %}[{{ t }}:{{ caller() }}]{% endmacro %}{% call box('x') %}in{{ n }}{% endcall %}
{% macro each(l) %}{% for i in l %}{{ caller(i, loop.index) }};{% endfor %}{% endmacro %}{% call(i, j) each(xs) %}{{ i * 10 }}@{{ j }}{% endcall %}
{% macro a() %}{{ glob }}{% endmacro %}{% set glob = 'late' %}{{ a() }}
{% for q in xs %}{% macro in_loop() %}{{ q }}{% endmacro %}{{ in_loop() }}{% endfor %}
{% filter upper %}abc {{ s }}{% endfilter %} {% filter trim|replace('b', 'c') %}  bb {% endfilter %}|
{% with a = 1, b = n %}{{ a + b }}{% endwith %}{{ a is defined }} {% with %}{% set z = 1 %}{% endwith %}{{ z is defined }}
{% raw %}{{ not }} {% evaluated %}{% endraw %} {%- raw -%} x {%- endraw %} y
{# comment {{ x }} #}a{#- c -#} b {% generation %}gen{{ n }}{% endgeneration %} {% block body %}blk{% endblock %} {% print n, 'x' %}
    {% if yes %}
  kept
    {% endif %}
 tail  {%+ if yes %} x{% endif %}
{% if yes -%}
   a
{%- endif %}  b {{- ' c ' -}} d
{{ words|sort }} {{ words|sort(reverse=true) }} {{ words|sort(case_sensitive=true) }} {{ rows|sort(attribute='v')|map(attribute='v')|list }} {{ rows|sort(attribute='k,v')|map(attribute='v')|join }}
{{ words|unique|list }} {{ words|unique(case_sensitive=true)|list }} {{ words|min }} {{ words|max }} {{ xs|sum }} {{ rows|sum(attribute='v') }} {{ []|max }} {{ rows|sum('v', 10) }}
{{ words|first }}{{ words|last }}{{ []|first }}{{ words|reverse|list }}{{ 'abc'|reverse }}{{ words|join('-') }}{{ rows|join(',', attribute='k') }}{{ [1, none, 'x']|join('|') }}
{{ rows|map(attribute='o.z', default='?')|list }} {{ words|map('upper')|join(' ') }} {{ words|map('replace', 'a', 'o')|list }} {{ ['1', '2']|map('int')|sum }}
{{ xs|select('gt', 1)|list }} {{ xs|reject('odd')|list }} {{ [0, 1, '']|select|list }} {{ rows|selectattr('o')|list|length }} {{ rows|selectattr('k', 'eq', 'x')|map(attribute='v')|list }} {{ rows|rejectattr('o', 'defined')|map(attribute='k')|list }} {{ words|select('in', ['beta'])|list }}
{{ rows|groupby('k')|length }} {% for k, g in rows|groupby('k') %}{{ k }}:{{ g|map(attribute='v')|list }} {% endfor %}
{% for g in rows|groupby('k') %}{{ g.grouper }}={{ g.list|length }}{{ g['list'] == g[1] }} {% endfor %}{{ rows|groupby('k')|map(attribute='list')|map('length')|list }}
{% set g = rows|groupby('k')|first %}{{ g }}{{ g.index('x') }}{{ g.foo }}{{ g[:2].list }}{{ (d.items()|first).list }}{{ g|tojson }}
{{ xs|batch(2)|list }} {{ xs|batch(2, 0)|list }} {{ range(7)|slice(3)|list }} {{ xs|slice(2, 'f')|list }}
{{ d|dictsort }} {{ d|dictsort(reverse=true) }} {{ d|items|list }} {{ d|length }} {{ d|list }} {{ {'x': 2, 'y': 1}|dictsort(by='value') }}
{{ s|upper }} {{ s|capitalize }} {{ 'hello big-world (x)'|title }} {{ 'HELLO'|lower }} {{ 'straße'|upper }} {{ 'ΑΣ'|lower }} {{ "it's a dog".title() }}
[{{ t|trim }}] [{{ 'xxaxx'|trim('x') }}] {{ 'aaa'|replace('a', 'b', 2) }} {{ 'abc'|replace('', '-') }} {{ 'a b  c'|wordcount }} [{{ 'mid'|center(9) }}]
{{ 'a\nb\n\nc'|indent }}|{{ 'a\nb\n\nc'|indent(2, true) }}|{{ 'a\n\nc'|indent('> ', blank=true) }}|{{ 'a\n'|indent(1) }}
{{ 'foo bar baz qux'|truncate(9) }} {{ 'foo bar baz qux'|truncate(9, true) }} {{ 'foo bar baz qux'|truncate(11) }} {{ 'foo bar baz qux'|truncate(11, false, '..', 0) }}
{{ '42'|int }} {{ '4.7'|int }} {{ 'x'|int }} {{ 'x'|int(-1) }} {{ '0x1A'|int(0, 16) }} {{ 'ff'|int(base=16) }} {{ nil|int }} {{ 3.9|int }} {{ -3.9|int }} {{ '1.5'|float }} {{ 'y'|float }} {{ '1e3'|float }} {{ 3|float }} {{ ' 7 '|int }}
{{ 42.55|round }} {{ 42.55|round(1, 'floor') }} {{ 42.5|round }} {{ 2.675|round(2) }} {{ 7|round }} {{ 1234|round(-2) }} {{ 4.1|round(0, 'ceil') }} {{ 5|abs }} {{ -2.5|abs }}
{{ missing|default('m') }} {{ nil|default('m') }} {{ nil|default('m', true) }} {{ e|d('x', boolean=true) }} [{{ missing|default }}] {{ missing.x|default('deep') }}
{{ missing|length }} {{ missing|list }} {{ missing ~ 'x' }} [{{ missing|upper }}] {{ missing == missing2 }} {{ missing is iterable }} {{ missing|join }}
{{ '%s and %d and %5.2f|%-5s|%05d|%x|%r' % ('a', 3, 2.5, 'ab', 42, 255, 'q') }} {{ '%s'|format(n) }} {{ '%(a)s'|format(a=1) }} {{ '100%%' % () }}
{{ '{} {1} {0}'.format(1, 2) }}
{{ '{0} {1} {k}'.format(1, 2, k='z') }} {{ '{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}|{:,}|{:x}|{:+d}|{!r}'.format('a', 'b', 'c', 42, 3.14159, 1234567, 255, 5, 'q') }} {{ '{{}}'.format() }} {{ '{a.b} {c[x]}'.format(a={'b': 1}, c={'x': 2}) }}
{{ s.upper() }} {{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a b c'.rsplit(' ', 1) }} {{ ' a b c '.split(none, 1) }} {{ 'a\nb\r\nc'.splitlines() }} {{ 'k=v=w'.partition('=') }} {{ 'k=v=w'.rpartition('=') }}
{{ 'abcabc'.find('c') }} {{ 'abcabc'.rfind('c') }} {{ 'abc'.find('z') }} {{ 'aXbX'.count('X') }} {{ 'abc'.index('b') }} {{ 'xab'.removeprefix('x') }} {{ 'abx'.removesuffix('x') }} {{ '-'.join(['a', 'b']) }} {{ '7'.zfill(3) }} {{ 'a'.ljust(3, '.') }}{{ 'a'.rjust(3) }} {{ 'ab'.center(5, '*') }}
{{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.startswith('b', 1) }} {{ 'abc'.endswith('bc') }} {{ '12'.isdigit() }} {{ 'ab'.isalpha() }} {{ ''.isdigit() }} {{ ' '.isspace() }} {{ 'Ab'.swapcase() }} {{ 'AB'.isupper() }} {{ 'xxhixx'.strip('x') }} {{ 'xxhixx'.lstrip('x') }}
{{ [1, 2, 1].count(1) }} {{ [1, 2].index(2) }} {{ (1, 2).index(2) }}
{{ d|tojson }} {{ rows|tojson(indent=2) }} {{ s|tojson(ensure_ascii=true) }} {{ {'b': 1, 'a': [1.5, nil, yes]}|tojson(sort_keys=true, separators=(',', ':')) }} {{ [[], {}]|tojson(indent=1) }} {{ {1: 2, none: 3, true: 4, 1.5: 5}|tojson }} {{ '😀\x7f\x00'|tojson(ensure_ascii=true) }}
{{ '<b>'|e }} {{ '<b>'|safe }} {{ ('<b>'|safe) + '<i>' }} {{ '&lt;<p> x  y</p>'|striptags }} {{ 'a b/ü'|urlencode }} {{ {'a b': 'c&d'}|urlencode }} {{ {'id': 'x"', 'no': none}|xmlattr }} {{ 1000000|filesizeformat }} {{ 123|filesizeformat }}
{{ n is defined }}{{ zz is undefined }}{{ nil is none }}{{ n is integer }}{{ yes is integer }}{{ f is float }}{{ yes is number }}{{ d is mapping }}{{ xs is sequence }}{{ s is sequence }}{{ d is sequence }}{{ n is iterable }}{{ xs is iterable }}{{ 'ab' is lower }}{{ 'AB' is upper }}{{ range is callable }}{{ 'upper' is filter }}{{ 'nope' is filter }}{{ 'odd' is test }}{{ 2 is in xs }}{{ 3 is gt 2 }}{{ 3 is eq 3 }}{{ xs|map('abs') is sequence }}
{% if yes %}{{ n }}{% elif no %}x{% else %}y{% endif %}{% if nil %}a{% elif n == 7 %}b{% else %}c{% endif %}
{% if no %}{{ x|no_such_filter }}{% endif %}ok {{ (x|no_such) if no else 'fine' }}
{{ x|no_such_filter }}
{% if yes %}{{ x|no_such_filter }}{% endif %}
{% for x in xs %}{{ x is no_such_test }}{% endfor %}
{{ nil.attr is undefined }} {{ n.attr is undefined }} {{ s.attr is undefined }} {{ xs.attr is undefined }} {{ xs['a'] is undefined }} {{ d[xs] is undefined }}
{{ missing.attr }}
{{ missing['k'] }}
{{ d.missing.attr }}
{{ missing + 1 }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ nil + 'a' }}
{{ [] + 'a' }}
{{ 1 / 0 }}
{{ 1 < 'a' }}
{{ missing() }}
{{ n() }}
{{ nil|length }}
{{ xs|map('upper')|length }}
{% for x in nil %}{% endfor %}
{% for x in 5 %}{% endfor %}
{% for a, b in [1] %}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{% endfor %}
{% set x.y = 1 %}
{{ {xs: 1} }}
{{ xs|tojson(1, 2, 3, 4, 5) }}
{{ s|upper(1) }}
{{ 'abc'.nope() }}
{{ raise_exception('no ' ~ n) }}
{{ namespace(_x=1) }}
{{ range(100001) }}
{% for x in xs
{{ 1 +
{% if %}{% endif %}
{% if yes %}
{% endif %}
{% nonsense %}
{{ 'open }}
{{ (1 }}
{{ a b }}
{{ 1 if }}
{% set 1 = 2 %}
{% macro m(a=1, b) %}{% endmacro %}
{# open
{% raw %} open
{% break %}
{{ ]  }}
{% for x in xs %}{% endif %}
{{ strftime_now('%Y-%m-%d %d %b %Y %B %H:%M:%S %A %j %%') }}
{% set it = d.items() %}{{ it|list|length }}{{ it|list|length }}{% set g = xs|map('string') %}{{ g|join }}{{ g|join }}.
{{ dict(a=1, b=2) }} {{ dict([('x', 1)], y=2) }} {{ joiner is defined }}{% set j = joiner('|') %}{{ j() }}a{{ j() }}b{{ j() }}c{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.next() }}{{ c.next() }}
{{ m(*[1, 2]) if no else [1, 2]|join(*['-']) }}{% macro k(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ k(*[1], **{'b': 2}) }}
{{ [1, 2, 3]|map('string')|list }} {{ (n|string)[0] }} {{ ((1))|int }} {{ 'x' * 3 }} {{ [0] * 3 }} {{ 3 * 'ab' }} {{ 'x' * -1 }}|
{{ d == {'A': 2, 'b': 1, 'items': 'shadowed'} }} {{ none == nil }} {{ 'a' != 1 }} {{ [1, [2]] == [1.0, [2]] }}
{% set v = 'a' %}{% set w %}{% set v = 'b' %}{{ v }}{% endset %}{{ v }}{{ w }}
{{ -0.5|round }} {{ -0.5|round(0, 'ceil') }} {{ 0.4|round(0, 'floor') }} {{ '-0'|float }} {{ '31 Bytes'|float }} {{ '1.5x'|int }} {{ 'x'|int(7, 99) }} {{ 'inf'|int }}
{{ ''|int }} {% macro nothing() %}{% endmacro %}{{ nothing()|int }} {{ nothing()|float }}|
{{ range(-3, 0, -1) }} {{ range(-1) }} {{ range(1, 10, 4) }} {{ range(10)[2:7:2] }} {{ range(5)[::-1] }} {{ range(0) == range(3, 3) }}
{{ '{:>6}|{:<6}|{:05}|{:d}'.format(true, false, true, true) }} {{ '{:c}{:c}'.format(233, 65) }} {{ '%c%c' % ('x', 233) }} {{ '%%' % missing }} {{ '[%s]' % missing }}
{{ '{:x}'.format(1.5) }}
{{ '{:d}'.format(1.0) }}
{{ '{:.3}'.format(7) }}
{{ '{:+}'.format('a') }}
{{ '%x' % 1.5 }}
{{ '%c' % 'ab' }}
{{ '%d' % missing }}
{{ '%.3d %+.3d %05.3d|%0-5d|%-05x|%3c|%-3c|%a' % (5, -5, 5, 7, 255, 'é', 'é', 'aé€😀') }}{{ '{!a}'.format('é') }}
{{ '{:.3}|{:.3}|{:.1}|{:.8}|{:.2}'.format(100.0, 2.0, 2.5, 2.0, 0.00001) }} {{ '{:n}|{:.3n}'.format(2.5, 1234.5) }} {{ '%#x %#.3g %#.0f' % (255, 1, 2) }}
{{ '{:010,}|{:04,}|{:08,.1f}|{:+09_}|{:010_x}|{:_x}'.format(1234, 1, 1234.5, 1234, 48879, 11259375) }} {{ '{:,.1E}'.format(1e7) }}
{{ '{:<05}|{:^05}|{:>05}|{:*<05}|{:05}'.format('a', 1, 2, 3, -4) }}
{{ '{:,x}'.format(5) }}
{{ missing|replace('', '-') }}{{ ''|replace('', '-') }}{{ missing|replace('a', '-') }}
{{ 'ǆ'.title() }}{{ 'ß'.title() }}{{ 'ﬁx'.capitalize() }}{{ 'ŉx'.title() }}{{ 'ǳßx'|title }}{{ 'მამა'.title() }}{{ 'მამა'|title }}{{ 'ᾳ'.title() }} {{ 'ΐὐᾳﬓẖ'.upper() }} {{ 'ǅⅷⅧ'.swapcase() }}
{{ 'ΑΣ'.capitalize() }}{{ 'ΑΣ ΒΣ'.title() }}{{ 'ΑΣ'|title }} {{ 'ΑΣ.'.lower() }}{{ 'aΣ\u0301b'.lower() }}{{ 'aΣ\u0301'.lower() }} {{ 'Α\'Σ'.lower() }}{{ 'ΑΣ.Β'.lower() }}{{ '\'Σ'.lower() }}{{ 'ΑΣʰ'.lower() }}{{ '1Σ'.lower() }}
{{ 'ª'.islower() }} {{ 'ⅷ'.islower() }} {{ 'Ⅷ' is upper }} {{ 'ª'.istitle() }} {{ 'Ⅷ'.istitle() }} {{ 'ǅ'.istitle() }} {{ 'ʰ' is lower }}
{{ 1e999|int }}
{{ 'AΣ'.casefold() }} {{ 'ﬀŉſẞ'.casefold() }} {{ 'ΑΣ bΣ'.title() }} {{ '中a ªb'.title() }} {{ "x3y it's".title() }}
{{ 'Ab Cd'.istitle() }}{{ 'AB'.istitle() }}{{ ''.istitle() }}{{ 'a1 _'.isidentifier() }}{{ 'é_1'.isidentifier() }}{{ '1a'.isidentifier() }}{{ 'a\u00a0'.isprintable() }}{{ ''.isprintable() }}{{ ''.isascii() }}
{{ '²'.isdigit() }}{{ '²'.isdecimal() }}{{ '½'.isdigit() }}{{ '½'.isnumeric() }}{{ '三'.isnumeric() }}{{ '三'.isalpha() }}{{ '②'.isdigit() }}{{ 'a½'.isalnum() }}{{ '٣'.isdecimal() }}
{% set c = cycler('a', 'b') %}{{ c.current }}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.current }}
{% macro m(a, b=1) %}{{ kwargs }}{{ varargs }}{% endmacro %}{{ m.name }}{{ m.arguments }}{{ m.catch_kwargs }}{{ m.catch_varargs }}{{ m.caller }}{{ m.zz is undefined }}
{% macro m() %}{{ kwargs }}{% endmacro %}{% call m() %}x{% endcall %}
{% macro outer() %}{% macro inner() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ inner(1, k=2) }}{% endmacro %}{{ outer(3, q=4) }}
{% macro m(a) %}{{ a }}{% endmacro %}{% if no %}{{ m(a=1, a=2) }}{% endif %}
{{ 'a well-known phrase--with dashes, extraordinarilylong'|wordwrap(8) }}|{{ 'one two\nthree  four'|wordwrap(5, wrapstring='|') }}|{{ 'unbreakable x-y'|wordwrap(6, false) }}|{{ 're-mark'|wordwrap(4, break_on_hyphens=false) }}|{{ ''|wordwrap(0) }}
{{ 'x'|wordwrap(0) }}
{{ 5|wordwrap }}
{{ 'see http://a.org/x?y=1, (www.b.com) or c.net. mail d@e.fr, mailto:f@g.de <h.info> 1.2.3.4 http://1.2.3.4:80/ http://[::1]/ x.museum'|urlize }}
{{ 'http://example.org/long/path ftp://x tel:1'|urlize(12, true, '_blank', 'x', ['ftp://', 'tel:']) }} {{ html|urlize }} {{ ('a.com'|safe)|urlize(0) }} {{ 'a.com/(b) ((c.com))'|urlize }}
{{ 'x'|urlize(extra_schemes=['x']) }}
{{ d|pprint }} {{ rows|pprint }} {{ [s * 4, (1,), {}, words * 6]|pprint }}
{{ {'key': 'the quick brown fox jumps over the lazy dog and then some more words follow it', 2: none, none: [1.5, true]}|pprint }} {{ ('a b ' * 30)|pprint }} {{ missing|pprint }} {{ html|e|pprint }}
{{ [n]|random }}{{ ('x',)|random }}[{{ []|random }}][{{ ''|random }}]{{ range(1)|random }}
{{ n|random }}
{{ long }} {{ neg_long }} {{ [long]|tojson }} {{ long|string|length }} {{ -long }} {{ neg_long|abs }} {{ long > 5 }} {{ long == long }} {{ neg_long < -9223372036854775807 }} {{ long is integer }} {{ long + 0.5 }} {{ '%d' % long }} {{ '{:,}'.format(long) }} {{ long|float }} {{ {long: 1}[long] }} {{ [long, 1.0, neg_long]|sort }}
{{ 1e22|int }} {{ '%d' % 1e22 }} {{ big / 3 }} {{ 9223372036854775807 / 10 }} {{ 9223372036854775807|round(-2) }} {{ big|round(-1) }} {{ 25|round(-1) }} {{ 35|round(-1) }} {{ -25|round(-1) }} {{ big|round(2, 'ceil') }}
{% autoescape true %}{{ html }} {{ html|safe }} {{ html|e }} {{ html ~ '<' ~ n }} {{ (html|e) ~ html }} {{ [html] }} {{ d|tojson }} {{ [html, html|safe]|join('<') }} {{ [html]|join('<'|safe) }} {{ html|replace('<', '>') }} {{ html|urlize }} {{ d|xmlattr }} {{ missing }}<{% endautoescape %}{{ html }}
{% macro m(a) %}<{{ a }}>{% endmacro %}{% autoescape yes %}{{ m(html) }}{% set x %}<{{ html }}{% endset %}{{ x }}{% filter upper %}<{{ html }}{% endfilter %}{% autoescape false %}{{ html }}{% endautoescape %}{% endautoescape %}{{ m(html) is escaped }}{{ x is defined }}
{% autoescape true %}{% macro m(a) %}<{{ a }}>{{ caller() }}{% endmacro %}{% call m(html) %}{{ html }}<{% endcall %}{% for t in tree recursive %}<{{ t.name ~ html }}{{ loop(t.kids) }}{% endfor %}{% block b %}{{ html }}{% endblock %}{% generation %}{{ html }}{% endgeneration %}{% endautoescape %}
{% for x in xs %}{% autoescape true %}{% if x == 1 %}{% break %}{% endif %}{% endautoescape %}{% endfor %}{{ html }}{{ [html]|join }}
{{ (html|safe).upper() is escaped }} {{ ((html|safe) * 2).split('<') }} {{ (html|safe)[:3] ~ '<' }} {{ ('<%s>'|safe) % html }} {{ ('<{}>{:>5}'|safe).format(html, '<') }} {{ ('<'|safe).join([html, 5]) }} {{ (html|safe).replace('b', '<') }} {{ (html|safe).partition('>') }} {{ (html|safe)|truncate(5) }} {{ ('%r %d'|safe) % (html, 5) }} {{ (html|safe)|list|first is escaped }}
{{ ('%x'|safe) % 5 }}
{% filter length %}abc{% endfilter %}
{% filter first %}{% endfilter %}
text {#
text {% raw %}
text {#-
""".strip("\n")

# Cases that span lines are joined here: a line that opens a block without closing it continues.
MULTILINE_STARTS = ("{{ 'a' 'b'", "    {% if yes", "{% if yes -%}", "  kept", "    {% endif %}", "   a")


def language_templates():
    out, held = [], ""
    for line in LANGUAGE.split("\n"):
        held = held + "\n" + line if held else line
        if line.startswith(MULTILINE_STARTS):
            continue
        out.append(held)
        held = ""
    return out


CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content or '' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and reasoning %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content.lstrip('\\n') }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function if call.function else call %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- elif message.content is mapping or (message.content is iterable and message.content is not string) %}
        {{- message.content | tojson }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + message.content + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
    {%- set first = (messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text']) + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set first = "" -%}{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS][" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}{%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]" + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "tool_calls" or message.tool_calls is defined %}
        {{- "[TOOL_CALLS][" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {{- ', "id": "' + tool_call.id[-9:] + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- message["content"] + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS]{"content": ' + message.content|string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
"""

TOOL_LOOP = """{%- macro type_of(p) %}{% if p.type is string %}{{ p.type }}{% elif p.anyOf %}{% for o in p.anyOf %}{{ type_of(o) }}{{ ' | ' if not loop.last }}{% endfor %}{% else %}any{% endif %}{% endmacro -%}
{%- for tool in tools or [] %}
// {{ tool.function.description | default('no description') }}
type {{ tool.function.name }} = (_: {
{% for name, p in (tool.function.parameters.properties | default({})).items() %}
  {{ name }}{{ '?' if name not in (tool.function.parameters.required or []) }}: {{ type_of(p) }}{% if p.enum %} // {{ p.enum | join(' or ') }}{% endif %}

{% endfor %}
}) => any;
{% endfor -%}
{%- for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role | upper }}: {% generation %}{{ m.content if m.content is string else m.content | map(attribute='text') | join }}{% endgeneration %}{{ '\\n' if not loop.last }}{% endfor %}
"""

TOOLS = [
    {"type": "function", "function": {"name": "lookup", "description": "Find \"it\".", "parameters": {
        "type": "object", "properties": {"word": {"type": "string"}, "lang": {"type": "string", "enum": ["en", "dé"]},
                                         "n": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}, "required": ["word"]}}},
    {"type": "function", "function": {"name": "noop", "parameters": {"type": "object", "properties": {}}}},
]
CALL = {"id": "call_123456789", "type": "function", "function": {"name": "lookup", "arguments": {"word": "Käse", "n": 2.0}}}
CONVERSATIONS = [
    [{"role": "user", "content": " Hi there \n"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"},
     {"role": "assistant", "content": "<think>\nhm\n</think>\n\nOne."}, {"role": "user", "content": "Two — \"ok\"?"}],
    [{"role": "user", "content": "Find"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
     {"role": "tool", "tool_call_id": "call_123456789", "content": "{\"found\": true}"},
     {"role": "assistant", "reasoning_content": "so", "content": "Found."}],
    [{"role": "user", "content": [{"type": "text", "text": " A "}, {"type": "text", "text": "B"}]}],
    [{"role": "assistant", "content": "first"}],
]


def family_cases():
    cases = []
    for template in (CHATML, LLAMA, GEMMA, MISTRAL, TOOL_LOOP):
        for i, messages in enumerate(CONVERSATIONS):
            for tools in (None, TOOLS):
                request = {"messages": messages, "tools": tools, "documents": None, "bos_token": "<s>", "eos_token": "</s>",
                           "add_generation_prompt": i % 2 == 0, "kwargs": {"enable_thinking": False} if tools else {},
                           "now": "2026-01-02T03:04:05"}
                case = make_case(template, request)
                case["request"] = request
                cases.append(case)
    return cases


if __name__ == "__main__":
    write("language.json", LANGUAGE_REQUEST, [make_case(t, LANGUAGE_REQUEST) for t in language_templates()])
    write("families.json", {}, family_cases())
