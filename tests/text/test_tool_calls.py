"""Calls are found in each family's way to write them, however the text is cut; what is no call stays text."""

import json

import pytest

from gguf_moe.text.call_formats import find_format
from gguf_moe.text.reasoning import Kind, splitter_for
from gguf_moe.text.tool_calls import ToolCall

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "tags": {"type": "array"},
        "unit": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]
PARIS = {"city": 'Paris "x"\n</b>', "days": 3, "tags": ["a", "b c"]}
JSON = json.dumps(PARIS)
WEATHER, NOW = ("weather", PARIS), ("now", {})


def bar(words):
    return "<\uff5c" + words.replace(" ", "\u2581") + "\uff5c>"


def deepseek(*calls):
    return bar("tool calls begin") + "\n".join(calls) + bar("tool calls end")


def r1(name, arguments):
    head = bar("tool call begin") + "function" + bar("tool sep")
    return f"{head}{name}\n```json\n{arguments}\n```" + bar("tool call end")


def v31(name, arguments):
    return bar("tool call begin") + name + bar("tool sep") + arguments + bar("tool call end")


def dsml(word, opening="<"):
    return f"{opening}\uff5cDSML\uff5c{word}>"


# Of each family what a template shows of it, and how its model writes a call of weather and one of now.
FAMILIES = {
    "hermes": (
        "<tool_call> </tool_call>",
        f'<tool_call>\n{{"name": "weather", "arguments": {JSON}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    ),
    "qwen3-coder": (
        "<tool_call> </tool_call> <function= <parameter=",
        '<tool_call>\n<function=weather>\n<parameter=city>\nParis "x"\n</b>\n</parameter>\n<parameter=days>\n'
        '3\n</parameter>\n<parameter=tags>\n["a", "b c"]\n</parameter>\n</function>\n</tool_call>\n'
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
    ),
    "glm": (
        "<tool_call> </tool_call> <arg_key>",
        '<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris "x"\n</b></arg_value>\n'
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
        '<arg_key>tags</arg_key><arg_value>["a", "b c"]</arg_value>\n</tool_call>\n'
        "<tool_call>now\n</tool_call>",
    ),
    "minimax": (
        '<minimax:tool_call> <invoke name="',
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Paris "x"\n</b></parameter>\n'
        '<parameter name="days">3</parameter>\n<parameter name="tags">["a", "b c"]</parameter>\n</invoke>\n'
        '<invoke name="now">\n</invoke>\n</minimax:tool_call>',
    ),
    "deepseek-r1": (bar("tool sep") + "```json", deepseek(r1("weather", JSON), r1("now", "{}"))),
    "deepseek-v3.1": (bar("tool sep"), deepseek(v31("weather", JSON), v31("now", "{}"))),
    "deepseek-v3.2": (
        "\uff5cDSML\uff5c function_calls>",
        f'{dsml("function_calls")}\n{dsml("invoke name=")[:-1]}"weather">\n'
        f'{dsml("parameter name=")[:-1]}"city" string="true">Paris "x"\n</b>{dsml("parameter", "</")}\n'
        f'{dsml("parameter name=")[:-1]}"days" string="false">3{dsml("parameter", "</")}\n'
        f'{dsml("parameter name=")[:-1]}"tags" string="false">["a", "b c"]{dsml("parameter", "</")}\n'
        f'{dsml("invoke", "</")}\n{dsml("invoke name=")[:-1]}"now">\n{dsml("invoke", "</")}\n'
        f"{dsml('function_calls', '</')}",
    ),
    "kimi": (
        "<|tool_calls_section_begin|>",
        f"<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{JSON}"
        "<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
    ),
    "gemma": (
        "<|tool_call>call:",
        '<|tool_call>call:weather{city:<|"|>Paris "x"\n</b><|"|>,days:3,tags:[<|"|>a<|"|>,<|"|>b c<|"|>]}'
        "<tool_call|><|tool_call>call:now{}<tool_call|>",
    ),
    "granite": (
        "<|tool_call|>",
        f'<|tool_call|>[{{"name": "weather", "arguments": {JSON}}}, {{"name": "now", "arguments": {{}}}}]',
    ),
    "mistral-nemo": (
        "[TOOL_CALLS]",
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {JSON}}}, {{"name": "now", "arguments": {{}}}}]',
    ),
    "mistral-small": (
        "[TOOL_CALLS] [CALL_ID] [ARGS]",
        f"[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{JSON}[TOOL_CALLS]now[CALL_ID]a1b2c3d4f[ARGS]{{}}",
    ),
    "devstral": ("[TOOL_CALLS] [ARGS]", f"[TOOL_CALLS]weather[ARGS]{JSON}[TOOL_CALLS]now[ARGS]{{}}"),
    "llama": (
        '"parameters": dictionary',
        f'{{"name": "weather", "parameters": {JSON}}}; {{"name": "now", "parameters": {{}}}}',
    ),
    "llama with its tag": (
        '"parameters": dictionary',
        f'<|python_tag|>{{"name": "weather", "parameters": {JSON}}}'
        '<|python_tag|>{"type": "function", "name": "now", "parameters": {}}',
    ),
    "gpt-oss": (
        "<|channel|> <|message|>",
        f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{JSON}<|call|>"
        "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}",
    ),
}


def parts(template, pieces, tools=TOOLS):
    """What an answer in pieces has, neighbours of one kind together: (kind, text or what is called)."""
    splitter = splitter_for(template, "assistant\n", tools)
    found = []
    for segment in [*(s for piece in pieces for s in splitter.push(piece)), *splitter.flush()]:
        if segment.call:
            found.append((segment.kind, (segment.call.name, json.loads(segment.call.arguments))))
        elif found and found[-1][0] is segment.kind:
            found[-1] = (segment.kind, found[-1][1] + segment.text)
        else:
            found.append((segment.kind, segment.text))
    return found


def cuts(text):
    """The text in two pieces, cut at each position, and in pieces of one, two and five characters."""
    yield from ([text[:i], text[i:]] for i in range(len(text) + 1))
    yield from ([text[i : i + n] for i in range(0, len(text), n)] for n in (1, 2, 5))


CALLS = [(Kind.CALL, WEATHER), (Kind.CALL, NOW)]


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_of_each_family(family):
    template, text = FAMILIES[family]
    for pieces in cuts(text):
        assert parts(template, pieces) == CALLS


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.startswith(("llama", "gpt-oss"))])
def test_text_before_calls(family):
    template, text = FAMILIES[family]
    for pieces in cuts("Let me see: <\n\n" + text):
        assert parts(template, pieces) == [(Kind.ANSWER, "Let me see: <"), *CALLS]


@pytest.mark.parametrize("family", FAMILIES)
def test_without_tools_all_is_text(family):
    template, text = FAMILIES[family]
    assert not [part for part in parts(template, [text], tools=()) if part[0] is Kind.CALL]


HERMES, CODER, NEMO, LLAMA = (FAMILIES[f][0] for f in ("hermes", "qwen3-coder", "mistral-nemo", "llama"))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (HERMES, "It is <tool_call>, not a call."),
        (HERMES, "<tool_call>\nweather(Paris)\n</tool_call> Sorry.\n"),
        (HERMES, '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
        (HERMES, '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "weather", "arguments": {"days": NaN}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "Par'),
        (HERMES, "<tool_call>" + "[" * 100_000 + "</tool_call>"),
        (HERMES, "<tool_call></tool_call>"),
        (CODER, "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</function>\n</tool_call>"),
        (NEMO, '[TOOL_CALLS][{"name": "weather"'),
        (LLAMA, '{"name": "weather", "parameters": {"city": "Par'),
        (LLAMA, '{"name": "Paul", "parameters": {}}'),
        (LLAMA, '{"names": []}'),
        (LLAMA, 'See: {"name": "now", "parameters": {}}'),
        (LLAMA, '<|python_tag|>weather.call(city="Paris")'),
        (LLAMA, " \n"),
    ],
)
def test_what_is_no_call_stays_text(template, text):
    for pieces in cuts(text) if len(text) < 1000 else ([text],):
        assert parts(template, pieces) == [(Kind.ANSWER, text)]


def test_a_malformed_message_to_a_function_stays_commentary():
    text = "<|channel|>commentary to=functions.weather<|message|>Paris<|call|>"
    for pieces in cuts(text):
        assert parts("<|channel|> <|message|>", pieces) == [(Kind.COMMENTARY, "Paris")]


def test_an_end_of_a_call_may_stand_in_its_arguments():
    city = {"city": "</tool_call> <tool_call>"}
    text = f'<tool_call>{{"name": "weather", "arguments": {json.dumps(city)}}}</tool_call>'
    for pieces in cuts(text):
        assert parts(HERMES, pieces) == [(Kind.CALL, ("weather", city))]


def test_the_last_end_may_be_missing():
    text = '<tool_call>\n{"name": "now", "arguments": {}}\n'
    for pieces in cuts(text):
        assert parts(HERMES, pieces) == [(Kind.CALL, NOW)]


def test_after_a_malformed_call_others_are_found():
    text = '<tool_call>{}</tool_call>\n<tool_call>{"name": "now", "arguments": {}}</tool_call>\nDone.'
    wanted = [(Kind.ANSWER, "<tool_call>{}</tool_call>"), (Kind.CALL, NOW), (Kind.ANSWER, "Done.")]
    for pieces in cuts(text):
        assert parts(HERMES, pieces) == wanted


def test_thoughts_are_not_calls():
    call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    for pieces in cuts(f"<think>{call}</think>\n\n{call}"):
        assert parts(HERMES + "<think>", pieces) == [(Kind.REASONING, call), (Kind.CALL, NOW)]


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("city", "75001", "75001"),
        ("city", "null", "null"),
        ("city", "", ""),
        ("days", "3", 3),
        ("days", "many", "many"),
        ("tags", "[1", "[1"),
        ("unit", "null", None),
        ("unit", "5", "5"),
        ("other", "True", True),
        ("other", "1.5", 1.5),
    ],
)
def test_arguments_without_quotes_are_what_the_schema_says(key, written, value):
    text = f"<tool_call><function=weather><parameter={key}>{written}</parameter></function></tool_call>"
    assert parts(CODER, [text]) == [(Kind.CALL, ("weather", {key: value}))]


def test_a_hostile_schema_does_no_harm():
    for parameters in ({"properties": []}, {"properties": {"a": {"type": [{}], "enum": 5, "anyOf": [[]]}}}):
        tools = [{"function": {"name": "f", "parameters": parameters}}]
        text = "<tool_call><function=f><parameter=a>5</parameter></function></tool_call>"
        assert parts(CODER, [text], tools) == [(Kind.CALL, ("f", {"a": 5}))]


def test_ids_are_the_models_own_or_new():
    splitter = splitter_for(FAMILIES["mistral-small"][0], "", TOOLS)
    segments = [*splitter.push("[TOOL_CALLS]now[CALL_ID]a1b2c3d4e[ARGS]{}"), *splitter.flush()]
    assert segments[0].call.as_openai()["id"] == "a1b2c3d4e"
    made = {ToolCall("now", "{}").id for _ in range(9)}
    assert len(made) == 9
    assert all(len(i) == 9 and i.isalnum() for i in made)


def test_a_template_that_shows_no_calls_has_no_format():
    assert find_format("{{ messages }}") is None
