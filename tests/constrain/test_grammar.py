"""The forms in which a caller says what a text must be."""

import json

import pytest

from gguf_moe.constrain import find_grammar
from gguf_moe.constrain.grammar import MAX_LENGTH, Kind
from gguf_moe.errors import OptionError

SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}}


@pytest.mark.parametrize(
    "options",
    [
        {"json_schema": SCHEMA},
        {"json_schema": json.dumps(SCHEMA)},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
    ],
)
def test_all_forms_of_a_schema_are_one(options):
    found = find_grammar(**options)
    assert found.kind is Kind.JSON_SCHEMA
    assert found.text == json.dumps(SCHEMA)  # in its order: that is the order of the output


def test_any_object():
    assert find_grammar(response_format={"type": "json_object"}).text == '{"type": "object"}'


@pytest.mark.parametrize(
    "options", [{}, {"response_format": {"type": "text"}}, {"grammar": "", "json_schema": None, "regex": ""}]
)
def test_free_text(options):
    assert find_grammar(**options) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"json_schema": "{"}, "the JSON schema is not JSON"),
        ({"json_schema": "[" * 100_000}, "the JSON schema is not JSON"),
        ({"json_schema": "[1]"}, "must be an object"),
        ({"json_schema": {"const": {1}}}, "cannot be written as JSON"),
        ({"regex": 7}, "regex is '7', but must be a text"),
        ({"regex": "caf\udce9"}, "regex is not Unicode"),
        ({"regex": "a" * (MAX_LENGTH + 1)}, f"at most {MAX_LENGTH}"),
        ({"response_format": {"type": "yaml"}}, "'yaml', but must be text, json_object or json_schema"),
        ({"response_format": "json"}, "'None', but must be"),
        ({"response_format": {"type": "json_schema"}}, "no json_schema.schema"),
        ({"grammar": 'root ::= "a"', "regex": "a"}, "grammar and regex exclude each other"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises(OptionError, match=message):
        find_grammar(**options)


def test_a_large_prime_that_would_take_minutes_is_refused():
    assert find_grammar(json_schema={"multipleOf": 0.01, "items": {"multipleOf": 2_000_000}})
    hidden = '{"allOf": [{"multipleOf": 997}, {"\\u006dultipleOf": 991}]}'
    for options in ({"json_schema": hidden}, {"grammar": f"start: %json {hidden}"}):
        with pytest.raises(OptionError, match="multipleOf with factors of 988027"):
            find_grammar(**options)
