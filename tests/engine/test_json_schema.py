"""What JSON schemas become as grammars: their own references, annotations, best effort, and what strict promises."""

import json
import pathlib
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, create_model

from puna.core.errors import PunaError
from puna.engine.grammar import Function, Grammar, Grammars
from puna.text.tokenizer import Tokenizer, train_tokenizer

Fits = Callable[[Grammar, str], bool]


@pytest.fixture(scope="module")
def fits() -> Fits:
    """Whether a text is whole under a grammar."""
    tokenizer: Tokenizer = train_tokenizer(['{"name": "get_tree", "arguments": {"kids": []}}\n  ' * 40], 300)
    grammars = Grammars(tokenizer, tokenizer.eos_ids)

    def check(grammar: Grammar, text: str) -> bool:
        matcher = grammars.matcher(grammar)
        return matcher.inner.consume_tokens(tokenizer.encode(text)) and matcher.inner.is_accepting()

    return check


def call(name: str, arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


class Node(BaseModel):
    v: int
    kids: "list[Node]" = []


TREE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["v", "kids"],
    "additionalProperties": False,
}
LEAF = {"v": 1, "kids": []}


# -- white space -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ['{"v":1,"kids":[]}', '{ "v" : 1 ,\n"kids" : [\n{"v": 2, "kids":[ ] } ] }'])
def test_one_space_or_line_break_between_tokens(fits: Fits, text: str) -> None:
    assert fits(Grammar.json_schema(TREE), text)
    assert fits(Grammar.json_schema(), text)
    assert fits(Grammar.call([Function("a", TREE)]), f'{{ "name" : "a" ,\n"arguments" : {text} }}')


@given(at=st.integers(0, 100), gap=st.sampled_from(["  ", "\n\n", " \n", "\t", "\r\n", " " * 9]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_more_white_space_never(fits: Fits, at: int, gap: str) -> None:
    tokens = [
        "{",
        '"v"',
        ":",
        "1",
        ",",
        '"kids"',
        ":",
        "[",
        "{",
        '"v"',
        ":",
        "2",
        ",",
        '"kids"',
        ":",
        "[",
        "]",
        "}",
        "]",
        "}",
    ]
    at %= len(tokens) + 1
    text = "".join([*tokens[:at], gap, *tokens[at:]])
    assert not fits(Grammar.json_schema(TREE), text)
    assert not fits(Grammar.json_schema(), text)
    assert not fits(Grammar.json_schema({"type": "object"}), text)
    assert not fits(Grammar.call([Function("a", TREE)]), f'{{"name":"a","arguments":{text}}}')


def test_spaces_within_a_text_are_its_own(fits: Fits) -> None:
    assert fits(Grammar.json_schema({"type": "string"}), '"a    b"')


# -- references ------------------------------------------------------------------------------------------------------

POINTERS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "the root": (TREE, {"v": 1, "kids": [LEAF]}, {"v": 1, "kids": [{"name": "a", "arguments": LEAF}]}),
    "a root that is a reference": (Node.model_json_schema(), {"v": 1, "kids": [{"v": 2}]}, {"v": 1, "kids": [1]}),
    "a property": (
        {"properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}}, "required": ["a", "b"]},
        {"a": 1, "b": 2},
        {"a": 1, "b": "x"},
    ),
    "definitions": (
        {"properties": {"a": {"$ref": "#/definitions/x"}}, "required": ["a"], "definitions": {"x": {"type": "null"}}},
        {"a": None},
        {"a": 1},
    ),
    "escaped": (
        {"properties": {"a": {"$ref": "#/$defs/x~1y%25"}}, "required": ["a"], "$defs": {"x/y%": {"type": "null"}}},
        {"a": None},
        {"a": 1},
    ),
    "a place of one's own": (
        {"properties": {"a": {"$ref": "#/components/x"}}, "required": ["a"], "components": {"x": {"const": 3}}},
        {"a": 3},
        {"a": 4},
    ),
    "an anchor": (
        {"properties": {"a": {"$ref": "#here"}}, "required": ["a"], "$defs": {"x": {"$anchor": "here", "const": 3}}},
        {"a": 3},
        {"a": 4},
    ),
    "an id": (
        {
            "$id": "https://example.com/s.json",
            "properties": {"a": {"$ref": "#/$defs/x"}},
            "required": ["a"],
            "$defs": {"x": {"const": 3}},
        },
        {"a": 3},
        {"a": 4},
    ),
    "a reference that is data": (
        {"properties": {"a": {"enum": [{"$ref": "#/$defs/x"}, {"$defs": 1}]}}, "required": ["a"], "$defs": {"x": {}}},
        {"a": {"$ref": "#/$defs/x"}},
        {"a": {"$ref": "#/$defs/tool0_x"}},
    ),
    "a property named like a keyword": (
        {"properties": {"$ref": {"type": "string"}, "pattern": {"type": "integer"}}, "required": ["$ref", "pattern"]},
        {"$ref": "#/$defs/x", "pattern": 1},
        {"$ref": 1, "pattern": 1},
    ),
}


@pytest.mark.parametrize("name", POINTERS)
def test_references_start_at_a_functions_own_root(fits: Fits, name: str) -> None:
    schema, right, wrong = POINTERS[name]
    jsonschema.validate(right, schema)
    alone = Grammar.json_schema({"type": "object", **schema})
    # The second function has definitions of the same names.
    both = Grammar.call([Function("get", schema), Function("other", Node.model_json_schema())])
    assert fits(alone, json.dumps(right))
    assert not fits(alone, json.dumps(wrong))
    assert fits(both, call("get", right))
    assert not fits(both, call("get", wrong))
    assert fits(both, call("other", LEAF))
    assert not fits(both, call("nobody", right))


def test_names_are_any_text(fits: Fits) -> None:
    grammar = Grammar.call([Function('a "b" \\ größe', {"type": "object"}), Function("/x/", {"type": "object"})])
    assert fits(grammar, '{"name":' + json.dumps('a "b" \\ größe', ensure_ascii=False) + ',"arguments":{"a":1}}')
    assert fits(grammar, call("/x/", {}))
    assert not fits(grammar, call("x", {}))


# -- formats, best effort, strict ------------------------------------------------------------------------------------


def text_of(**keywords: Any) -> dict[str, Any]:
    schema = {"type": "string", **keywords}
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "form",
    ["path", "password", "binary", "byte", "int32", "int64", "float", "double", "regex", "iri", "uri-reference",
     "json-pointer", "base64", "directory-path", "ipv4network", "color", "phone", "cuid2", "whatever you like"],
)  # fmt: skip
def test_an_unknown_format_is_an_annotation(fits: Fits, form: str, strict: bool) -> None:
    grammar = Grammar.json_schema(text_of(format=form, maxLength=5), strict=strict)
    assert fits(grammar, '{"a": "x y"}')
    assert not fits(grammar, '{"a": "too long"}')
    assert fits(Grammar.json_schema({"type": "integer", "format": form}, strict=strict), "12")


def test_pydantics_own_types(fits: Fits) -> None:
    kinds = {"path": pathlib.Path, "secret": SecretStr, "data": bytes, "price": Decimal, "kind": Literal["x", 1]}
    schema = create_model("M", **{name: (kind, ...) for name, kind in kinds.items()}).model_json_schema()
    text = '{"path": "/tmp", "secret": "s", "data": "d", "price": 3.5, "kind": "x"}'
    assert fits(Grammar.json_schema(schema, strict=False), text)
    assert fits(Grammar.call([Function("buy", schema)]), f'{{"name": "buy", "arguments": {text}}}')


def test_a_known_format_is_enforced(fits: Fits) -> None:
    grammar = Grammar.json_schema(text_of(format="date"), strict=False)
    assert fits(grammar, '{"a": "2026-12-01"}')
    assert not fits(grammar, '{"a": "soon"}')


ARRAY = {"type": "array", "items": {"type": "integer"}}
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
# A schema, a text that fits what remains of it, a text that does not, and what strict cannot promise.
BEST_EFFORT: list[tuple[dict[str, Any], str, str, str]] = [
    ({**ARRAY, "uniqueItems": True}, "[1, 2]", '["a"]', "uniqueItems"),
    ({**ARRAY, "contains": {"const": 1}, "minContains": 2}, "[1, 1]", '["a"]', "contains"),
    ({**OBJECT, "not": {"required": ["b"]}}, '{"a": 1}', '{"a": "1"}', "not"),
    ({**OBJECT, "if": {"required": ["b"]}, "then": {}, "else": {}}, '{"a": 1}', '{"a": "1"}', "if"),
    ({**OBJECT, "dependentRequired": {"a": ["b"]}}, '{"a": 1, "b": 2}', '{"b": 1}', "dependentRequired"),
    ({**OBJECT, "propertyNames": {"pattern": "^a"}}, '{"a": 1}', '{"b": 1}', "propertyNames"),
    ({**OBJECT, "unevaluatedProperties": False}, '{"a": 1}', '{"b": 1}', "unevaluatedProperties"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "1.5", '"1"', "oneOf"),
    (text_of(pattern="^(?!admin)[a-z]+$", minLength=2), '{"a": "bob"}', '{"a": "b"}', "pattern"),
    (text_of(pattern=r"^(a)\1$"), '{"a": "aa"}', '{"a": 1}', "pattern"),
    (text_of(pattern=r"\bfoo\b"), '{"a": "foo"}', '{"a": 1}', "pattern"),
    ({"type": "integer", "minimum": -(2**63), "maximum": 9}, "-5", "10", "minimum"),
    ({"type": "number", "minimum": 0, "maximum": 1e300}, "5.5", "-1", "maximum"),
    (
        {"type": "object", "patternProperties": {"^(?!x)": {"type": "integer"}}, "additionalProperties": False},
        '{"a": 1}',
        '{"a": "b"}',
        "patternProperties",
    ),
    (
        {"type": "object", "patternProperties": {"^a": {"type": "integer"}, "b$": {"type": "null"}}},
        '{"a": 1}',
        "[]",
        "patternProperties",
    ),
    (
        {
            "type": "object",
            "properties": {"n": {"$ref": "#", "type": "object"}, "v": {"type": "integer"}},
            "required": ["v"],
            "additionalProperties": False,
        },
        '{"n": {"v": 1}, "v": 2}',
        '{"n": {"v": "x"}, "v": 2}',
        "type next to a circular",
    ),
]


@pytest.mark.parametrize("case", BEST_EFFORT, ids=lambda case: case[3])
def test_best_effort_unless_strict(fits: Fits, case: tuple[dict[str, Any], str, str, str]) -> None:
    schema, right, wrong, name = case
    jsonschema.validate(json.loads(right), schema)
    nested = {"type": "object", "properties": {"x": schema}, "required": ["x"], "additionalProperties": False}
    if "$ref" not in json.dumps(schema):
        assert fits(Grammar.json_schema(nested, strict=False), f'{{"x": {right}}}')
    grammar = Grammar.json_schema(schema, strict=False)
    assert fits(grammar, right)
    assert not fits(grammar, wrong)
    for strict in (lambda: Grammar.json_schema(schema), lambda: Grammar.call([Function("f", schema, strict=True)])):
        with pytest.raises(PunaError, match="strict") as raised:
            strict()
        assert name in str(raised.value)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "more", [{"nullable": True}, {"x-order": 1}, {"example": "v"}, {"discriminator": {"x": "v"}}, {"deprecated": True}]
)
def test_an_unknown_keyword_says_nothing(fits: Fits, more: dict[str, Any], strict: bool) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#", **more}, {"type": "null"}]}},
        "required": ["v", "next"],
    }
    grammar = Grammar.json_schema(schema, strict=strict)
    assert fits(grammar, '{"v": 1, "next": {"v": 2, "next": null}}')
    assert not fits(grammar, '{"v": 1, "next": {"v": "x", "next": null}}')
    with pytest.raises(PunaError, match="uniqueItems"):
        Grammar.json_schema({**schema, "properties": {**schema["properties"], "a": {**ARRAY, "uniqueItems": True}}})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "any"},
        {"type": 3},
        {"$ref": "#/$defs/none"},
        {"$ref": "https://example.com/x"},
        {"minLength": "a"},
        {"type": "integer", "minimum": 5, "maximum": 1},
        {"enum": []},
        {"type": "object", "required": ["a"], "properties": {"a": False}},
    ],
)
def test_what_no_text_can_fulfil_is_refused(schema: dict[str, Any]) -> None:
    for strict in (True, False):
        with pytest.raises(PunaError):
            Grammar.json_schema(schema, strict=strict)
