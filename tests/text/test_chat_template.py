"""Chat templates: what they can do."""

import datetime
from pathlib import Path

import pytest

from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.errors import OptionError, TemplateError
from gguf_moe.text.chat_template import ChatTemplate, find_chat_template, plain_template

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
