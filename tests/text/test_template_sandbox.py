"""What a chat template must not be able to do: reach Python, or take more time or memory than its budget."""

import json
import os
import subprocess
import sys

import pytest

from gguf_moe.errors import TemplateError
from gguf_moe.text.chat_template import MAX_SOURCE_LENGTH, ChatTemplate

LOOP = "{%% for i in range(99999) %%}%s{%% endfor %%}"
LARGE = "{% set a = 'a' * 1000000 %}"
# Lists that hold the one before twice: their printed form is 2 ** 60 long.
SHARED = "{% set a = (1,) %}{% set b = (1,) %}" + "{% set a = (a, a) %}{% set b = (b, b) %}" * 60

NESTED = "{% set ns = namespace(x=(1,)) %}"

ATTACKS = {
    "loops": LOOP % (LOOP % (LOOP % "")),
    "loops with a test": "{% for i in range(99999) if false %}{% endfor %}" * 1000,
    "recursive loop": "{% for i in range(3) recursive %}{{ loop(range(3)) }}{% endfor %}",
    "recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "doubling macro": "{% macro m(n) %}{{ m(n-1) ~ m(n-1) if n }}{% endmacro %}{{ m(99) }}",
    "doubling calls": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 40 + "x" + "{% endcall %}" * 40,
    "recursive block": "{% block a %}{{ self.a() }}{% endblock %}",
    "range": "{{ range(10 ** 9) | list }}",
    "many ranges": LOOP % "{% set x = range(99999) | list %}",
    "stacked filters": "{{ range(99999)" + " | map('int')" * 300 + " | list }}",
    "repeated text": "{{ 'a' * 10 ** 9 }}",
    "repeated list": "{{ [1] * 10 ** 9 }}",
    "repeated markup": "{{ ('a' | safe) * 10 ** 9 }}",
    "power": "{{ 7 ** (10 ** 9) }}",
    "squares": "{% set ns = namespace(x=9) %}" + LOOP % "{% set ns.x = ns.x * ns.x %}",
    "large number": "{{ ('f' * 1000000) | int(0, 16) // 7 }}",
    "doubled with +": "{% set ns = namespace(x='aa') %}" + LOOP % "{% set ns.x = ns.x + ns.x %}",
    "doubled with ~": "{% set ns = namespace(x='aa') %}" + LOOP % "{% set ns.x = ns.x ~ ns.x %}",
    "doubled by set": "{% set x = 'aaaa' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "doubled by join": "{% set ns = namespace(x='aa') %}" + LOOP % "{% set ns.x = [ns.x, ns.x] | join %}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent of an argument": "{{ '%*d' % (10 ** 9, 1) }}",
    "many fields": LARGE + "{{ ('%(a)s' * 100000) % {'a': a} }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format width": "{{ '{:1000000000d}'.format(1) }}",
    "format width of an argument": "{{ '{:{}}'.format(1, 10 ** 9) }}",
    "center": "{{ 'a' | center(2 * 10 ** 9) }}",
    "ljust": "{{ 'a'.ljust(3 * 10 ** 9) }}",
    "zfill": "{{ 'a'.zfill(3 * 10 ** 9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10 ** 9) }}",
    "indent": "{{ ('\n' * 1000000) | indent(100000) }}",
    "replace": LARGE + "{{ a.replace('a', a) }}",
    "replace nothing": LARGE + "{{ a | replace('', a) }}",
    "join": LARGE + "{{ range(90000) | join(a) }}",
    "join method": LARGE + "{{ a.join(a) }}",
    "join method of an iterator": LARGE + "{{ a.join(['b'] * 90000 | select) }}",
    "list of characters": NESTED + LARGE + LOOP % "{% set ns.x = [ns.x, a | list] %}",
    "bytes of a number": "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "starred text": LARGE + "{{ namespace(*(a * 20)) }}",
    "split": NESTED + LARGE + LOOP % "{% set ns.x = [ns.x, a.split('a')] %}",
    "strip": LARGE + "{{ a.strip('b' * 500000 ~ 'a') }}",
    "trim": LARGE + "{{ a | trim(chars='b' * 500000 ~ 'a') }}",
    "rfind": LARGE + "{{ a.rfind('a' * 50000 ~ 'b' ~ 'a' * 50000) }}",
    "round up": "{{ 1 | round(10 ** 9, 'ceil') }}",
    "round to many digits": "{{ 5 | round(-(10 ** 9)) }}",
    "nested JSON": "{{ ('[' * 100000) | from_json }}",
    "many values of JSON": NESTED + LOOP % "{% set ns.x = [ns.x, ('[' ~ '{},' * 1000 ~ '1]') | from_json] %}",
    "json indent": "{{ [1, 2] | tojson(indent=10 ** 9) }}",
    "json separators": LARGE + "{{ range(9999) | list | tojson(separators=(a, a)) }}",
    "output": LARGE + LOOP % "{{ a }}",
    "slices": LARGE + LOOP % "{% set b = a[1:] %}",
    "comparisons": LARGE + "{% set b = 'a' * 1000000 %}" + LOOP % "{% if a == b %}{% endif %}",
    "searches": LARGE + LOOP % "{% if 'ab' in a %}{% endif %}",
    "sorting": LOOP % "{{ range(99999) | sort | length }}",
    "arguments": "{% macro m() %}{% endmacro %}" + LOOP % "{{ m(*range(99999)) }}",
    "shared lists": SHARED + "{{ a }}",
    "shared lists as JSON": SHARED + "{{ a | tojson }}",
    "shared lists compared": SHARED + "{{ a == b }}",
    "shared lists tested": SHARED + "{{ a is eq(b) }}",
    "shared lists as keys": SHARED + "{{ {a: 1} }}",
    "shared lists looked up": SHARED + "{{ {}[a] }}{{ {}.get(a) }}",
    "shared lists as attributes": SHARED + "{{ [{}] | map(attribute=a) | list }}",
    "shared lists in an iterator": SHARED + "{{ dict([[a, 1]] | select) }}",
    "deep lists": NESTED + LOOP % "{% set ns.x = (ns.x,) %}" + "{{ {ns.x: 1} }}",
    "list that holds itself": "{% set a = [] %}{% set _ = a.append(a) %}{{ a }}",
    "list that grows": "{% set a = [1] %}{% for i in a %}{% set _ = a.append(i) %}{% endfor %}",
    "lists that grow": "{% set a = [] %}" + LOOP % "{% set _ = a.append([i]) %}" + LOOP % "{{ a }}",
    "deep iterators": NESTED + LOOP % "{% set ns.x = ns.x | map('int') %}" + "{{ ns.x | list }}",
    "date": "{{ strftime_now('%1000000000d') }}",
    "lipsum": "{{ lipsum(n=10 ** 6) }}",
    "a payment taken back": "{{ [-10 ** 15] | map('budget 0') | list }}" + LOOP % (LOOP % ""),
    "nested loops": "{% for i in range(9) %}" * 3000 + "{% endfor %}" * 3000,
    "nested parentheses": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "long sum": "{{ " + "1+" * 40000 + "1 }}",
    "long chain": "{% if 0 %}" + "{% elif 0 %}" * 9000 + "{% endif %}",
    "long source": "a" * (MAX_SOURCE_LENGTH + 1),
}  # fmt: skip

ESCAPES = {
    "undefined function": "{{ nosuch() }}",
    "class": "{{ ''.__class__.__mro__ }}",
    "class by filter": "{{ (''|attr('__class__')).mro() }}",
    "class by item": "{{ ''['__class__']['__mro__'] }}",
    "class by format": "{{ '{0.__class__.__mro__[1]}'.format(1) }}",
    "class by map": "{{ ['']|map(attribute='__class__.__mro__')|first|first }}",
    "globals": "{{ raise_exception.__globals__['re'] }}",
    "environment": "{{ strftime_now.__self__.budget }}",
    "include": "{% include '/etc/hostname' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'base' %}",
}

RENDER_ALL = """
import json, resource, sys
from gguf_moe.errors import TemplateError
from gguf_moe.text.chat_template import ChatTemplate
import gguf_moe.text.sandbox

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, source in json.loads(open(sys.argv[1]).read()).items():
    try:
        ChatTemplate(source, bos_token="", eos_token="").render([])
        sys.exit(f"{name}: rendered")
    except TemplateError as error:
        if len(str(error)) > 500:
            sys.exit(f"{name}: {error}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    if grown > 200:
        sys.exit(f"{name}: {grown} MB")
"""


@pytest.mark.parametrize("source", ESCAPES.values(), ids=ESCAPES)
def test_the_sandbox_holds(source):
    with pytest.raises(TemplateError):
        ChatTemplate(source, bos_token="<s>", eos_token="</s>").render([])


def test_attacks_stop_within_the_budget(tmp_path):
    attacks = tmp_path / "attacks.json"
    attacks.write_text(json.dumps(ATTACKS))
    done = subprocess.run(
        [sys.executable, "-O", "-c", RENDER_ALL, str(attacks)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=2 * len(ATTACKS),
    )
    assert done.returncode == 0, done.stderr
