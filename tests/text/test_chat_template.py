"""Chat templates: what they can do, and what they must not be able to do."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.errors import OptionError, TemplateError
from gguf_moe.text.chat_template import MAX_SOURCE_LENGTH, ChatTemplate, find_chat_template, plain_template

QUESTION = [{"role": "user", "content": "Hi <b> \u4f60"}]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Thanks"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def render(source, messages=QUESTION, **options):
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(messages, **options)


class NoTokens:
    """A tokenizer with two special tokens, and control tokens by their texts."""

    bos_id, eos_id = 1, None

    def __init__(self, control=()):
        self.control_id = dict(control).get

    @staticmethod
    def token_bytes(token_id):
        return {1: b"<s>"}[token_id]


def find(control=(), name=None, **values):
    keys = {key.replace("__", "."): value for key, value in values.items()}
    metadata = Metadata(Path("m.gguf"), keys, dict.fromkeys(keys, "str"))
    return find_chat_template(metadata, NoTokens(control), name=name)


def test_chatml():
    source = """
    {%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
    {%- endfor %}
    {%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- endif %}"""
    question = "<|im_start|>user\nHi <b> \u4f60<|im_end|>\n"
    assert render(source) == question + "<|im_start|>assistant\n"
    assert render(source, add_generation_prompt=False) == question


def test_statements_leave_no_blank_lines():
    assert render("{% if true %}\n  {% set x = 1 %}\nx{{ x }}\n  {% endif %}\ny\n") == "x1\ny"


def test_loops_can_be_left_early():
    leave = "{% if i == 1 %}{% continue %}{% elif i > 3 %}{% break %}{% endif %}"
    source = "{% for i in range(9) %}" + leave + "{{ i }}{% endfor %}"
    assert render(source) == "023"


def test_loop_variables_of_a_paid_loop():
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }}"
        "{{ loop.nextitem.role if loop.nextitem }} {% else %}none{% endfor %}"
    )
    assert render(source, CONVERSATION[:2]) == "1/2TrueFalseuser 2/2FalseTrue "
    assert render(source, []) == "none"


def test_a_namespace_carries_values_out_of_a_loop():
    source = (
        "{% set ns = namespace(found='') %}{% for m in messages if m.role == 'user' %}"
        "{% set ns.found = ns.found ~ loop.index ~ m.content %}{% endfor %}{{ ns.found }}"
    )
    assert render(source, CONVERSATION) == "12+2?2Thanks"


def test_macros_with_defaults_and_callers():
    source = (
        "{% macro say(who, what='?') %}[{{ who }}:{{ what }}{{ caller() if caller }}]{% endmacro %}"
        "{{ say('a') }}{{ say('b', what='c') }}{% call say('d') %}!{% endcall %}"
    )
    assert render(source) == "[a:?][b:c][d:?!]"


def test_the_generation_tag_has_no_effect():
    assert render("a{% generation %}{{ messages[0].role }}{% endgeneration %}b") == "auserb"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("messages[0] | tojson", '{"role": "user", "content": "Hi <b> \u4f60"}'),
        ("{'b': 1, 'a': '\u00e9'} | tojson(indent=2, ensure_ascii=True, sort_keys=True)",
         '{\n  "a": "\\u00e9",\n  "b": 1\n}'),
        ("[1, 2] | tojson(separators=(',', ':'))", "[1,2]"),
        ("(messages | map(attribute='role') | list)[::-1]", "['user']"),
        ("messages | selectattr('role', 'equalto', 'user') | list | length", "1"),
        ("messages | rejectattr('role', 'in', ['user']) | list", "[]"),
        ("'a,b'.split(',') | join('-')", "a-b"),
        ("'abc'[1:] ~ 1 ~ none", "bc1None"),
        ("'%s is %05.1f' % ('x', 2)", "x is 002.0"),
        ("'{} {name:>3}'.format(1, name='b')", "1   b"),
        ("' x '.strip().upper().ljust(3) ~ '|'", "X  |"),
        ("'a-b' | replace('-', '+') | upper", "A+B"),
        ("('{\"a\": [1, null]}' | from_json).a", "[1, None]"),
        ("2.567 | round(1) ~ ' x ' | trim ~ 'aXa'.strip('a') ~ 'a.b.c'.rsplit('.', 1)[0]", "2.6xXa.b"),
        ("'a\nb' | indent(2)", "a\n  b"),
        ("{'b': 1, 'a': 2} | dictsort", "[('a', 2), ('b', 1)]"),
        ("(3 * 'ab') ~ ([1] * 2) ~ 2 ** 10 ~ 7 % 4", "ababab[1, 1]10243"),
        ("'user' in messages[0].values() and 'x' not in 'abc' and 1 < 2 < 3", "True"),
        ("missing is defined or missing | default('none')", "none"),
        ("bos_token ~ eos_token ~ (tools is none)", "<s></s>True"),
    ],
)  # fmt: skip
def test_expressions(expression, expected):
    assert render("{{ " + expression + " }}") == expected


def test_tools_and_further_variables_reach_the_template():
    source = "{{ tools[0].function.name }} {{ enable_thinking }}"
    assert render(source, tools=TOOLS, enable_thinking=False) == "weather False"


def test_the_date():
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.date.today().year + n) for n in (-1, 0)}


def test_a_refusal_names_its_reason():
    with pytest.raises(TemplateError, match=r"refuses.*roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_an_empty_prompt_is_a_prompt():
    assert render("{# nothing #}") == ""


def test_the_template_cannot_change_the_messages():
    with pytest.raises(TemplateError, match="unsafe"):
        render("{{ messages.append(1) }}", [*QUESTION])


def test_a_template_changes_lists_that_it_has_made():
    source = "{% set ns = namespace(ids=[]) %}{% for m in messages %}{% set _ = ns.ids.append(m.role) %}"
    source += "{% endfor %}{{ ns.ids.pop(0) }} {{ ns.ids | join(' ') }}"
    assert render(source, CONVERSATION[:3]) == "system user assistant"


@pytest.mark.parametrize("change", ["messages.append(1)", "messages[0].content.pop()", "tools.pop()"])
def test_a_template_cannot_change_the_callers_lists(change):
    messages, tools = [{"role": "user", "content": ["a"]}], list(TOOLS)
    with pytest.raises(TemplateError, match=r"not callable|unsafe"):
        render("{{ " + change + " }}", messages, tools=tools)
    assert messages == [{"role": "user", "content": ["a"]}]
    assert tools == TOOLS


def test_a_broken_template_fails_when_it_is_used():
    template = find(tokenizer__chat_template="{% for %}")
    with pytest.raises(TemplateError, match="line 1: TemplateSyntaxError"):
        template.render(QUESTION)


def test_a_file_without_a_template_has_none():
    assert find(general__architecture="llama", general__name="Llama 2") is None


def test_early_mistral_files_get_their_template():
    template = find(general__architecture="llama", general__name="mistralai_Mixtral-8x7B-Instruct-v0.1")
    assert template.render(CONVERSATION) == "<s>[INST] Be brief.\n\n2+2? [/INST] 4[INST] Thanks [/INST]"


@pytest.mark.parametrize(
    "name", ["mistralai_mixtral-8x7b-v0.1", "dolphin-2.5-mixtral-8x7b", "Llama-2-7b-Instruct"]
)
def test_other_files_do_not_get_it(name):
    assert find(general__architecture="llama", general__name=name) is None


def test_a_vocabulary_with_chatmls_tokens_gets_its_template():
    tokens = {"<|im_start|>": 7, "<|im_end|>": 8}
    template = find(tokens, general__architecture="qwen3moe")
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in CONVERSATION]
    assert template.render(CONVERSATION) == "".join(turns) + "<|im_start|>assistant\n"
    assert find({"<|im_start|>": 7}, general__architecture="qwen3moe") is None


def test_user_and_model_write_one_text_in_turn_where_nothing_else_is_known():
    said = [{"role": "user", "content": "A fox"}, {"role": "assistant", "content": " ran."}]
    template = plain_template(NoTokens())
    assert template.render([*said, {"role": "user", "content": "It"}]) == "A fox ran.\n\nIt"
    assert template.render(CONVERSATION) == "Be brief.\n\n2+2?4\n\nThanks"


def test_named_templates():
    keys = {"tokenizer__chat_template": "plain", "tokenizer__chat_template__tool_use": "tools"}
    assert [find(name=name, **keys).source for name in (None, "default", "tool_use")] == [
        "plain",
        "plain",
        "tools",
    ]
    with pytest.raises(OptionError, match="no chat template named 'rag'; it has tool_use"):
        find(name="rag", **keys)
    with pytest.raises(OptionError, match="it has no named ones"):
        find(name="rag", tokenizer__chat_template="plain")


def test_a_long_conversation_fits_the_budget():
    messages = [{"role": role, "content": "word " * 500} for role in ("user", "assistant") * 100]
    source = (
        "{% set ns = namespace(text='') %}{% for m in messages %}{% if 'word' in m.content and m != 1 %}"
        "{% set ns.text = ns.text ~ m.role ~ (m.content | trim).split('</think>')[-1] %}{% endif %}"
        "{{ m | tojson }}{% endfor %}{{ ns.text }}"
    )
    assert render(source, messages).count("word") == 200 * 1000


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
        render(source)


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
