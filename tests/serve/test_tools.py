"""Tools: schemas of their own, dialogues with odd calls in them, and answers that are cut off."""

import json
from typing import Any

import jsonschema
import pytest

MESSAGES = [{"role": "user", "content": "What is the time in the harbour?"}]
TREE = {
    "type": "object",
    "properties": {"op": {"enum": ["sum", "max"]}, "of": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
    "required": ["op", "of"],
    "additionalProperties": False,
}
BY_DEFINITION = {
    "$ref": "#/$defs/T",
    "$defs": {"T": {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"]}},
}
BY_PROPERTY = {
    "properties": {"a": {"enum": [1, 2]}, "b": {"$ref": "#/properties/a"}, "c": {"enum": [{"$ref": "#"}]}},
    "required": ["a", "b", "c"],
    "additionalProperties": False,
}


def tool(name: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


def chat(live, **body: Any):
    return live.post("/v1/chat/completions", {"messages": MESSAGES, "temperature": 0, "max_tokens": 200, **body})


def call_of(answer) -> tuple[str, dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls", choice
    function = choice["message"]["tool_calls"][0]["function"]
    return function["name"], json.loads(function["arguments"])


# -- schemas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [TREE, BY_DEFINITION, BY_PROPERTY], ids=["root", "definition", "property"])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "calculate"}}])
def test_a_forced_calls_schema_has_its_own_root(live, schema: dict[str, Any], choice: object) -> None:
    other = tool("o", {"maxProperties": 0, "$defs": {"T": {}}})
    finished = []
    for seed in range(6):
        options = {"seed": seed, "temperature": 1.0, "max_tokens": None}
        answer = chat(live, tools=[tool("calculate", schema), other], tool_choice=choice, **options)
        assert answer.status_code == 200, answer.text
        if answer.json()["choices"][0]["finish_reason"] == "tool_calls":
            finished.append(call_of(answer))
    assert finished
    for name, arguments in finished:
        jsonschema.validate(arguments, schema if name == "calculate" else {"maxProperties": 0})


def test_what_passes_in_a_response_format_passes_in_a_tool(live) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", **BY_PROPERTY}}}
    answer = chat(live, response_format=form)
    assert answer.status_code == 200, answer.text
    jsonschema.validate(json.loads(answer.json()["choices"][0]["message"]["content"]), BY_PROPERTY)


ORDINARY: list[dict[str, Any]] = [
    {"type": "string", "format": "path", "maxLength": 3},
    {"type": "integer", "format": "int32", "minimum": 0, "maximum": 9},
    {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 2},
    {"type": "array", "items": {"enum": [1, 2]}, "contains": {"const": 1}, "maxItems": 2},
    {"enum": ["a", "b"], "not": {"const": "c"}},
    {"type": "string", "pattern": "^(?!admin)", "maxLength": 3},
]


def whole(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": schema}, "required": ["x"], "additionalProperties": False}


@pytest.mark.parametrize("schema", ORDINARY)
def test_ordinary_schemas_are_not_refused(live, schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": whole(schema)}}
    assert chat(live, response_format=form).status_code == 200
    assert chat(live, structured_outputs={"json": whole(schema)}).status_code == 200
    assert chat(live, tools=[tool("f", whole(schema))], tool_choice="required").status_code == 200
    text = {"format": {"type": "json_schema", "name": "x", "schema": whole(schema)}}
    assert live.post("/v1/responses", {"input": "Hello", "text": text, "max_output_tokens": 50}).status_code == 200


@pytest.mark.parametrize("schema", ORDINARY[2:])
def test_what_strict_cannot_promise_is_refused_by_name(live, schema: dict[str, Any]) -> None:
    (keyword,) = {"uniqueItems", "contains", "not", "pattern"} & {*schema}
    named = {"name": "x", "schema": whole(schema), "strict": True}
    for answer, param in (
        (chat(live, response_format={"type": "json_schema", "json_schema": named}), "response_format"),
        (chat(live, tools=[tool("f", whole(schema), strict=True)], tool_choice="required"), "tools"),
        (
            live.post("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema", **named}}}),
            "response_format",
        ),
    ):
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert keyword in error["message"]
        assert error["param"] == param


def test_arguments_are_an_object(live) -> None:
    answer = chat(live, tools=[tool("f", {"type": "string"})], tool_choice="required")
    assert answer.status_code == 400
    assert "'f'" in answer.json()["error"]["message"]
    for schema in (
        {},
        {"properties": {}, "additionalProperties": False},
        {"type": ["object", "null"], "maxProperties": 0},
    ):
        name, arguments = call_of(chat(live, tools=[tool("f", {**schema, "maxProperties": 0})], tool_choice="required"))
        assert (name, arguments) == ("f", {})
