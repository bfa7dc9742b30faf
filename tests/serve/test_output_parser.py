"""The model's own format, taken apart: the same however the text is cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.serve.backends.native.output_parser import OutputParser


def parsed(pieces: list[str], **options: bool) -> list[tuple[str, str, str]]:
    """(kind, name, text) with neighbours of one kind joined."""
    cut = options.pop("cut", False)
    parser = OutputParser(**{"tools": True, **options})
    found = [piece for text in pieces for piece in parser.push(text)] + parser.close(cut=cut)
    joined: list[tuple[str, str, str]] = []
    for piece in found:
        if joined and piece.kind != "call" and joined[-1][0] == piece.kind:
            joined[-1] = (piece.kind, "", joined[-1][2] + piece.text)
        else:
            joined.append((piece.kind, piece.name, piece.text))
    return joined


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello.", [("content", "", "Hello.")]),
        ("  Hello. \n", [("content", "", "  Hello. \n")]),
        ("<think>\nA thought. \n</think>\n\nHello.", [("reasoning", "", "A thought."), ("content", "", "Hello.")]),
        ("<think>never closed", [("reasoning", "", "never closed")]),
        (CALL, [("call", "f", '{"x": 1}')]),
        (f"Text.\n{CALL}\n{CALL}", [("content", "", "Text."), ("call", "f", '{"x": 1}'), ("call", "f", '{"x": 1}')]),
        (f"<think>a</think>\n\n{CALL}", [("reasoning", "", "a"), ("call", "f", '{"x": 1}')]),
        ("A \n<tool_call>no json</tool_call> B", [("content", "", "A \n<tool_call>no json</tool_call> B")]),
        ('<tool_call>{"name": "f"', [("content", "", '<tool_call>{"name": "f"')]),
        ('<tool_call>{"name": "f", "arguments": {}}', [("call", "f", "{}")]),
        ('<tool_call>{"name": 3}</tool_call>', [("content", "", '<tool_call>{"name": 3}</tool_call>')]),
        (
            '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>',
            [("call", "f", '{"x": "</tool_call>"}')],
        ),
        ("a <think> b", [("content", "", "a <think> b")]),
    ],
)
def test_what_a_text_is(text: str, expected: list[tuple[str, str, str]]) -> None:
    assert parsed([text]) == expected
    assert parsed(list(text)) == expected


def test_without_tools_a_call_is_text() -> None:
    assert parsed([CALL], tools=False) == [("content", "", CALL)]


def test_a_call_begun_by_the_prompt() -> None:
    assert parsed(['{"name": "f", "arguments": {"x": 1}}'], in_call=True) == [("call", "f", '{"x": 1}')]
    assert parsed(['{"name": "f", "argu'], in_call=True) == [("content", "", '{"name": "f", "argu')]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'Yes.\n{CALL}\n<tool_call>\n{{"name": "g', [("content", "", "Yes."), ("call", "f", '{"x": 1}')]),
        (f"{CALL}\n<tool", [("call", "f", '{"x": 1}')]),
        (f"{CALL}\n<", [("call", "f", '{"x": 1}')]),
        ("Yes. <tool_c", [("content", "", "Yes.")]),
        ("Yes, 1 <", [("content", "", "Yes, 1 <")]),
        ("<think>\nHm.\n</thi", [("reasoning", "", "Hm.")]),
        ("<thin", []),
        ('<tool_call>{"name": "f", "arguments": {}}', [("call", "f", "{}")]),
    ],
)
def test_a_text_that_a_limit_cut_off_shows_no_markup(text: str, expected: list[tuple[str, str, str]]) -> None:
    for pieces in ([text], list(text)):
        assert parsed(pieces, cut=True) == expected


TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool", "call>", "<"]
PARTS = st.sampled_from([*TAGS, *'\n "\\{}é', "word", "[]", '{"name": "f", "arguments": {"a": "b"}}', '{"name": "g"}'])


@given(st.lists(PARTS, max_size=12), st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_any_cutting_gives_the_same(parts: list[str], chance: object, tools: bool, in_call: bool) -> None:
    text = "".join(parts)
    cuts = sorted(chance.randrange(len(text) + 1) for _ in range(4))  # type: ignore[attr-defined]
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parsed([text], tools=tools, in_call=in_call)
    assert parsed(pieces, tools=tools, in_call=in_call) == whole
    assert parsed(list(text), tools=tools, in_call=in_call) == whole
    for kind, name, said in whole:
        if kind == "call":
            assert name
            assert isinstance(json.loads(said), dict)


@given(st.text(max_size=40))
def test_text_without_tags_is_text(text: str) -> None:
    if "<" not in text:
        assert "".join(said for _, _, said in parsed([text])) == text
