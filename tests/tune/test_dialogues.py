"""Files of dialogues: every common format gives the same result; anything else is reported with its line."""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from puna.core.errors import PunaError
from puna.text.chat import render
from puna.text.tokenizer import Tokenizer
from puna.tune.rows.dialogues import Row, dialogues_of, read_dialogues
from puna.tune.rows.examples import _share_of

ASKED, SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
CALL = '{"name": "look", "arguments": {"at": "sea"}}'
SHAPES: list[tuple[dict[str, Any], list[str]]] = [
    ({"messages": [ASKED, SAID]}, ["user", "assistant"]),
    ({"messages": [ASKED, SAID], "system": "Be brief."}, ["system", "user", "assistant"]),
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}, ["user", "assistant"]),
    ({"instruction": "Greet.", "input": "Hi", "output": "Hello."}, ["user", "assistant"]),
    ({"instruction": "Greet.", "context": "", "response": "Hello.", "category": "x"}, ["user", "assistant"]),
    ({"prompt": "Hi", "completion": "Hello."}, ["user", "assistant"]),
    ({"prompt": [{"role": "system", "content": "S"}, ASKED], "response": "Hello."}, ["system", "user", "assistant"]),
    ({"instruction": "A", "history": [["q", "a"]], "output": "B"}, ["user", "assistant", "user", "assistant"]),
    (
        {
            "conversations": [
                {"from": "human", "value": "Look"},
                {"from": "function_call", "value": CALL},
                {"from": "observation", "value": "blue"},
                {"from": "gpt", "value": "It is blue."},
            ],
            "tools": '[{"name": "look"}]',
        },
        ["user", "assistant", "tool", "assistant"],
    ),
]


@pytest.mark.parametrize(("row", "roles"), SHAPES)
def test_every_shape_becomes_messages(row: dict[str, Any], roles: list[str], tokenizer: Tokenizer) -> None:
    (dialogue,) = dialogues_of(Row("here", row))
    assert [message["role"] for message in dialogue.messages] == roles
    rendered = render(dialogue.messages, tokenizer, tools=dialogue.tools or None)
    learned = tokenizer.decode([i for i, learn in zip(rendered.ids, rendered.loss_mask, strict=True) if learn])
    assert learned.endswith("<|eot_id|>")


def test_an_instruction_with_instances_is_several_dialogues() -> None:
    row = {"instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}, {"input": "", "output": "0"}]}
    first, second = dialogues_of(Row("here", row))
    assert first.messages[0]["content"] == "Add.\n\n1 1"
    assert second.messages[0]["content"] == "Add."


BAD = [
    ("{", "line 2: this is not JSON"),
    ("[1]", "line 2: this is not a JSON object"),
    ('{"text": "Hi"}', "line 2: the row has text, which is not a known format"),
    ('{"messages": []}', "line 2: its messages are not a list"),
    ('{"messages": [{"role": "gpt", "content": "Hi"}]}', "line 2: message 1 has the role 'gpt'"),
    ('{"messages": [{"role": "user", "content": "Hi"}]}', "line 2: the dialogue has no message of an assistant"),
    ('{"messages": [{"role": "user", "content": 5}]}', "line 2: message 1 has no text"),
    (json.dumps({"messages": [ASKED, {"role": "assistant", "content": " "}]}), "line 2: message 2, the assistant's"),
    (
        json.dumps({"messages": [ASKED, {"role": "tool", "content": "x"}, SAID]}),
        "line 2: message 2 has the role 'tool'",
    ),
    ('{"conversations": [{"from": "alien", "value": "Hi"}]}', "line 2: turn 1 is from 'alien'"),
    ('{"conversations": [{"from": "function_call", "value": "look()"}]}', "line 2: a call or its tools are not JSON"),
    ('{"instruction": "A"}', "line 2: the row has no answer"),
    ('{"prompt": "A", "response": "  "}', "line 2: its answer is empty"),
]


@pytest.mark.parametrize(("line", "sentence"), BAD)
def test_a_bad_row_is_named_with_its_line(line: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [ASKED, SAID]}) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(PunaError) as error:
        read_dialogues(path)
    assert sentence in str(error.value)
    assert str(path) in str(error.value)


def test_arrays_parquet_and_packed_files_are_read_alike(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    rows = [{"prompt": f"Q{i}", "response": f"A{i}"} for i in range(5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    read = [
        [d.messages for d in read_dialogues(tmp_path / n)] for n in ("a.jsonl", "b.json", "c.jsonl.xz", "d.parquet")
    ]
    assert read[0] == read[1] == read[2] == read[3]
    (tmp_path / "e.parquet").write_bytes((tmp_path / "d.parquet").read_bytes()[:100])
    (tmp_path / "f.jsonl").write_text("\n", encoding="utf-8")
    for name, sentence in (
        ("e.parquet", "not a complete parquet file"),
        ("f.jsonl", "has no dialogues"),
        ("g.jsonl", "does not exist"),
        ("a.txt", "not a file of dialogues"),
    ):
        (tmp_path / "a.txt").touch()
        with pytest.raises(PunaError, match=sentence):
            read_dialogues(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dolly_fixture.jsonl", 12),
        ("glaive_toolcall_en_demo.json.xz", 300),
        ("reason_tool_use_demo_50.jsonl.xz", 50),
        ("gpteacher_roleplay.json.xz", 1923),
        ("self_instruct_seed_tasks.jsonl.xz", 175),
        ("kto_en_demo.json.xz", 300),
    ],
)
def test_real_files_render_whole(name: str, count: int, test_data: Path, tokenizer: Tokenizer) -> None:
    dialogues = read_dialogues(test_data / "chat" / name)
    assert len(dialogues) == count
    for dialogue in dialogues[:100]:
        assert any(render(dialogue.messages, tokenizer, tools=dialogue.tools or None).loss_mask)


def learned(row: dict[str, Any], tokenizer: Tokenizer) -> str:
    """All that is learned from a row, joined."""
    found = []
    for dialogue in dialogues_of(Row("here", row)):
        ids, mask = render(dialogue.messages, tokenizer, tools=dialogue.tools or None)
        found.append(tokenizer.decode([i for i, learn in zip(ids, mask, strict=True) if learn], skip_special=True))
    return " ".join(found)


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}])
def test_a_message_that_is_not_to_be_learned_is_not(mark: dict[str, Any], tokenizer: Tokenizer) -> None:
    turns = [
        ASKED,
        {"role": "assistant", "content": "Wrong."} | mark,
        ASKED,
        {"role": "assistant", "content": "Right."},
    ]
    assert learned({"messages": turns}, tokenizer) == "Right."
    said = {"from": "gpt", "value": "Right."}
    sharegpt = [
        {"from": "human", "value": "Hi"},
        said | {"value": "Wrong."} | mark,
        {"from": "human", "value": "Hi"},
        said,
    ]
    assert learned({"conversations": sharegpt}, tokenizer) == "Right."
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'} | mark
    called = [{"from": "human", "value": "Hi"}, call, {"from": "observation", "value": "1"}, said]
    assert learned({"conversations": called}, tokenizer) == "Right."


def test_weights_that_say_to_learn_and_weights_that_say_nothing(tokenizer: Tokenizer) -> None:
    for mark in ({"weight": 1}, {"weight": 1.0}, {"weight": None}, {"train": True}):
        assert learned({"messages": [ASKED | mark, SAID | mark]}, tokenizer) == SAID["content"]
    for mark, found in (({"weight": 0.5}, "weight 0.5"), ({"weight": "0"}, "weight '0'"), ({"train": 2}, "train 2")):
        with pytest.raises(PunaError, match=f"here: message 2 has the {found}. Known are 0"):
            dialogues_of(Row("here", {"messages": [ASKED, SAID | mark]}))


def test_copies_with_other_weights_are_held_out_together() -> None:
    one, other = (
        dialogues_of(Row("here", {"messages": [ASKED, SAID, ASKED, SAID | mark]}))[0] for mark in ({}, {"weight": 0})
    )
    assert _share_of(one) == _share_of(other)


def test_prompt_and_completion_as_messages_learn_the_completion_alone(tokenizer: Tokenizer) -> None:
    prompt = [ASKED, {"role": "assistant", "content": "Given."}, ASKED]
    completion = [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "One."},
    ]
    row = {"prompt": prompt, "completion": completion}
    (dialogue,) = dialogues_of(Row("here", row))
    assert [m["role"] for m in dialogue.messages] == [
        "user", "assistant", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert learned(row, tokenizer) == '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>One.'
    assert learned({"prompt": "Hi", "completion": [SAID]}, tokenizer) == SAID["content"]
    assert learned({"prompt": [ASKED], "completion": SAID["content"]}, tokenizer) == SAID["content"]


def call_of(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tool_of(name: str, **properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


def test_what_arrow_fills_in_is_not_learned(tmp_path: Path, tokenizer: Tokenizer) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    rows = [
        {
            "messages": [ASKED, {"role": "assistant", "tool_calls": [call_of("weather", city="Lima")]}],
            "tools": [tool_of("weather", city={"type": "string"})],
        },
        {
            "messages": [ASKED, {"role": "assistant", "tool_calls": [call_of("add", a=1, b={"c": [1, 2]})]}],
            "tools": [tool_of("add", a={"type": "integer", "enum": [1, 2]}, b={"type": "object"})],
        },
        {"messages": [ASKED, SAID | {"weight": 0}, ASKED, SAID]},
        {"prompt": "Hi", "completion": "Hello."},
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [call_of("none")]}], "tools": [tool_of("none")]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole = [{key: row.get(key) for key in ("messages", "tools", "prompt", "completion")} for row in rows]
    parquet.write_table(arrow.Table.from_pylist(whole), tmp_path / "a.parquet")
    from_json, from_arrow = (read_dialogues(tmp_path / name) for name in ("a.jsonl", "a.parquet"))
    for ours, theirs in zip(from_json, from_arrow, strict=True):
        assert render(ours.messages, tokenizer, tools=ours.tools) == render(
            theirs.messages, tokenizer, tools=theirs.tools
        )


def test_a_null_that_somebody_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": [ASKED, {"role": "assistant", "tool_calls": [call_of("f", until=None)]}]}))
    (dialogue,) = read_dialogues(path)
    assert dialogue.messages[1]["tool_calls"][0]["function"]["arguments"] == {"until": None}


def test_encodings_of_files_of_dialogues(tmp_path: Path) -> None:
    line = json.dumps({"messages": [ASKED, SAID]})
    (tmp_path / "mark.jsonl").write_text(line + "\n" + line, encoding="utf-8-sig")
    (tmp_path / "mark.json").write_text(f"[{line}, {line}]", encoding="utf-8-sig")
    for name in ("mark.jsonl", "mark.json"):
        assert len(read_dialogues(tmp_path / name)) == 2
    (tmp_path / "wide.jsonl").write_text(line, encoding="utf-16")
    with pytest.raises(PunaError, match="is UTF-16 text, not UTF-8"):
        read_dialogues(tmp_path / "wide.jsonl")
    (tmp_path / "bad.jsonl").write_bytes(line.encode() + b'\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(PunaError, match=r"bad\.jsonl, line 2 is not UTF-8 \(byte 16\)"):
        read_dialogues(tmp_path / "bad.jsonl")


def test_a_parquet_row_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    column = arrow.array([b"Hi", b"caf\xe9"], arrow.binary()).view(arrow.string())
    parquet.write_table(arrow.table({"prompt": column, "response": ["A", "B"]}), tmp_path / "a.parquet")
    with pytest.raises(PunaError, match=r"a\.parquet, row 2 is not UTF-8"):
        read_dialogues(tmp_path / "a.parquet")
