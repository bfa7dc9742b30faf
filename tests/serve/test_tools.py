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
            "text.format",
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


# -- history ---------------------------------------------------------------------------------------------------------

ARGUMENTS: list[tuple[Any, dict[str, Any]]] = [
    ("", {}),
    (None, {}),
    ("  ", {}),
    ("null", {}),
    ('{"city": "Oslo"}', {"city": "Oslo"}),
    ('{"city": "Os', {"city": "Os"}),
    ('{"city": "Oslo", "n": [1, 2', {"city": "Oslo", "n": [1, 2]}),
    ('{"city": "Oslo", "a', {"city": "Oslo"}),
    ('{"city": "Oslo"}}', {"city": "Oslo"}),
    ('{"city": "Oslo"}{"city": "Rome"}', {"city": "Oslo"}),
    ({"city": "Oslo"}, {"city": "Oslo"}),
    ("Oslo", {"arguments": "Oslo"}),
    ("[1]", {"arguments": [1]}),
]


@pytest.mark.parametrize(("given", "read"), ARGUMENTS, ids=[str(given) for given, _ in ARGUMENTS])
def test_a_call_with_any_arguments_stays_in_the_history(live, given: Any, read: dict[str, Any]) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": given}}
    result = {"role": "tool", "tool_call_id": "c1", "content": "cut off"}
    messages = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}, result]
    assert chat(live, messages=messages, max_tokens=3).status_code == 200
    assert json.dumps(read, ensure_ascii=False) in prompt_of(live, messages)
    items = [
        {"role": "user", "content": "x"},
        {"type": "function_call", "call_id": "c1", "name": "get_time", "arguments": given},
        {"type": "function_call_output", "call_id": "c1", "output": "cut off"},
    ]
    assert live.post("/v1/responses", {"input": items, "max_output_tokens": 3}).status_code == 200


def prompt_of(live, messages: list[dict[str, Any]]) -> str:
    """What the model reads."""
    tokens = live.post("/tokenize", {"messages": messages}).json()["tokens"]
    return live.post("/detokenize", {"tokens": tokens}).json()["prompt"]


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ({"role": "assistant", "content": None}, ""),
        ({"role": "assistant"}, ""),
        ({"role": "assistant", "content": None, "refusal": "I will not."}, "I will not."),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not."}]}, "I will not."),
        (
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Yes."}],
            },
            "Yes.",
        ),
        ({"role": "assistant", "content": "Yes.", "reasoning": "Hm"}, "Hm"),
        ({"role": "assistant", "content": "Yes.", "audio": None, "function_call": None, "annotations": []}, "Yes."),
        ({"role": "assistant", "content": None, "function_call": {"name": "old", "arguments": "{}"}}, "old"),
        ({"role": "function", "name": "old", "content": "noon"}, "noon"),
        ({"role": "tool", "tool_call_id": "c", "content": None}, ""),
        ({"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "noon"}]}, "noon"),
        (
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "image_url",
        ),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": None, "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}],
            },
            '{"input": "*** Begin"}',
        ),
    ],
)
def test_whatever_stands_in_the_history_is_read(live, message: dict[str, Any], read: str) -> None:
    messages = [*MESSAGES, message, *MESSAGES]
    answer = chat(live, messages=messages, max_tokens=3)
    assert answer.status_code == 200, answer.text
    assert read in prompt_of(live, messages)


# -- answers that are cut off ----------------------------------------------------------------------------------------

CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>'


def test_a_turn_cut_off_after_a_call_says_length_and_shows_no_markup(live) -> None:
    text = f"Yes.\n{CALL}\n{CALL}"
    tools = [tool("get_time", {"type": "object"})]
    options = {"messages": MESSAGES, "tools": tools, "structured_outputs": {"choice": [text]}, "temperature": 0}
    whole = chat(live, **{**options, "max_tokens": None}).json()
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    length = whole["usage"]["completion_tokens"]
    seen = set()
    for limit in range(4, length):
        answer = chat(live, **{**options, "max_tokens": limit}).json()["choices"][0]
        calls = answer["message"].get("tool_calls") or []
        content = answer["message"]["content"] or ""
        assert answer["finish_reason"] == "length", limit
        assert "Yes.".startswith(content), (limit, content)
        assert all(json.loads(one["function"]["arguments"]) == {"city": "Oslo"} for one in calls)
        seen.add(len(calls))
    assert seen == {0, 1} or seen == {0, 1, 2}


def test_a_forced_call_that_is_cut_off_is_no_text(live) -> None:
    answer = chat(live, tools=[tool("get_time", {"type": "object"})], tool_choice="required", max_tokens=4)
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert not choice["message"]["content"]
    assert not choice["message"].get("tool_calls")
