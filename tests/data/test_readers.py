"""What is wrong in a file costs the document it is in; encodings, line ends and kinds of columns do not matter."""

import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.data.cleaning.decontaminate import Evaluations
from puna.data.document import Document, Drops
from puna.data.reading import chunks, records
from puna.data.reading.chunks import read_lines, split_at
from puna.data.reading.sources import list_inputs, read_documents
from puna.data.recipe import DecontaminateConfig, SourceConfig

BAD = b"two \xff"


def read(path: Path, invalid_utf8: str = "drop", **fields: Any) -> tuple[list[Document], dict[str, list[int]]]:
    source = SourceConfig.model_validate({"name": "s", "path": str(path), "licence": "X", **fields})
    drops = Drops()
    found = [d for _, d in read_documents(source, list_inputs(source), invalid_utf8, drops) if d is not None]
    return found, drops.counts.get("s", {})


def texts(path: Path, invalid_utf8: str = "drop", **fields: Any) -> list[str]:
    return [document.text for document in read(path, invalid_utf8, **fields)[0]]


def parquet_of(path: Path, column: Any) -> None:
    pq.write_table(pa.table({"text": column}), path)


def as_text(values: list[bytes | None]) -> Any:
    """A column of strings that arrow does not check."""
    return pa.array(values, pa.binary()).view(pa.string())


def damaged_file(folder: Path, kind: str) -> tuple[Path, dict[str, str]]:
    path = folder / f"rows.{kind}"
    if kind in ("txt", "txt.zst"):
        data = b"one\n<|endoftext|>\n" + BAD + b"\n<|endoftext|>\nthree\n"
        path.write_bytes(zstandard.compress(data) if kind.endswith("zst") else data)
        return path, {"separator": "<|endoftext|>"}
    if kind == "jsonl":
        path.write_bytes(b'{"text": "one"}\n{"text": "' + BAD + b'"}\n{"text": "three"}\n')
    elif kind == "json":
        path.write_bytes(b'[{"text": "one"},\n{"text": "' + BAD + b'"}, {"text": "three"}]')
    else:
        parquet_of(path, as_text([b"one", BAD, b"three"]))
    return path, {}


@pytest.mark.parametrize("kind", ["txt", "txt.zst", "jsonl", "json", "parquet"])
def test_one_bad_byte_costs_one_document(kind: str, tmp_path: Path) -> None:
    path, fields = damaged_file(tmp_path, kind)
    documents, drops = read(path, **fields)
    assert [d.text for d in documents] == ["one", "three"]
    assert drops["invalid_utf8"][0] == 1
    repaired, drops = read(path, "replace", **fields)
    assert [d.text for d in repaired] == ["one", "two \ufffd", "three"]
    assert not drops
    assert [d.name for d in documents] == [d.name for d in repaired if "two" not in d.text], "names do not shift"


def test_a_bad_byte_far_into_a_large_file_costs_one_document(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    parts = [f"Story {i} of many, long enough to fill a file.\n".encode() for i in range(60_000)]
    parts[15_196] += b"\xff"
    path.write_bytes(b"<|endoftext|>\n".join(parts))
    documents, drops = read(path, separator="<|endoftext|>")
    assert len(documents) == 59_999
    assert drops == {"invalid_utf8": [1, len(parts[15_196]) + 1]}


def test_a_nul_byte_costs_one_document_where_there_is_a_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one|t\0wo|three")
    assert texts(path, separator="|") == ["one", "three"]
    assert read(path, separator="|")[1] == {"binary": [1, 4]}


def test_a_bad_byte_in_another_field_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one", "title": "caf\xe9"}\n')
    documents, drops = read(path, name_field="title")
    assert [(d.text, d.name) for d in documents] == [("one", "caf\ufffd")]
    assert not drops


@given(st.lists(st.binary(max_size=6), max_size=6), st.sampled_from(["|", "ab", "aab", "\n\n", "\n-\n"]), st.data())
def test_parts_do_not_depend_on_where_chunks_end(parts: list[bytes], separator: str, data: st.DataObject) -> None:
    whole = separator.encode().join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in itertools.pairwise([0, *cuts, len(whole)])]
    assert list(split_at(pieces, separator)) == list(split_at([whole], separator))
    if "\n" not in separator:
        assert list(split_at(pieces, separator)) == whole.split(separator.encode())


@pytest.mark.parametrize("separator", ["<|endoftext|>", "\n<|endoftext|>\n", "\n\n"])
def test_line_ends_around_separators_do_not_matter(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    between = separator if "\n" in separator else f"\n{separator}\n"
    path.write_bytes(between.join(["one", "two\nlines", "three\n"]).replace("\n", "\r\n").encode())
    assert texts(path, separator=separator) == ["one", "two\r\nlines", "three"]


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", MARK + b"one\n|\ntwo\n"),
        ("a.jsonl", MARK + b'{"text": "one"}\n{"text": "two"}\n'),
        ("joined.jsonl", MARK + b'{"text": "one"}\r\n' + MARK + b'{"text": "two"}\r\n'),
        ("a.json", MARK + b' [{"text": "one"}, {"text": "two"}]\n'),
        ("lines.json", MARK + b'{"text": "one"}\n{"text": "two"}\n'),
        ("array.jsonl", b'[\n{"text": "one"},\n{"text": "two"}\n]\n'),
    ],
)
def test_byte_order_marks_and_arrays(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert texts(tmp_path / name, separator="|" if name.endswith("txt") else "") == ["one", "two"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.py"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_other_encodings_are_refused_by_name(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes('[{"text": "Größe"}]\n'.encode(encoding))
    with pytest.raises(PunaError, match=rf"{name} is {encoding[:6].upper()} text, not UTF-8"):
        read(tmp_path / name)


def test_a_json_file_is_never_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [{"text": "one"}]}, indent=1))
    with pytest.raises(PunaError, match=r"A \.json file holds an array of records, or one record in each line"):
        read(path)
    path.write_text('["one", "two"]')
    with pytest.raises(PunaError, match="entry 1 is not a JSON object"):
        read(path)
    assert texts(path, content="code") == ['["one", "two"]']


TEXTS = [b"one", None, "zwei Größen".encode(), b"one", BAD]
COLUMNS: dict[str, Callable[[], Any]] = {
    "string": lambda: as_text(TEXTS),
    "large_string": lambda: pa.array(TEXTS, pa.large_binary()).view(pa.large_string()),
    "string_view": lambda: as_text(TEXTS).cast(pa.string_view()),
    "binary": lambda: pa.array(TEXTS, pa.binary()),
    "large_binary": lambda: pa.array(TEXTS, pa.large_binary()),
    "binary_view": lambda: pa.array(TEXTS, pa.binary_view()),
    "dictionary": lambda: dictionary_of(pa.string()),
    "dictionary of large strings": lambda: dictionary_of(pa.large_string()),
    "dictionary of bytes": lambda: dictionary_of(pa.binary()),
}


def dictionary_of(kind: Any) -> Any:
    encoded = pa.array(TEXTS, pa.large_binary() if "large" in str(kind) else pa.binary()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(encoded.indices, encoded.dictionary.view(kind))


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_kind_of_text_column_is_text(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet_of(path, COLUMNS[kind]())
    documents, drops = read(path)
    assert [d.text for d in documents] == ["one", "zwei Größen", "one"]
    assert {reason: count for reason, (count, _) in drops.items()} == {"null": 1, "invalid_utf8": 1}
    assert texts(path, "replace")[-1] == "two \ufffd"


def test_other_columns_may_be_encoded_too(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    kinds = pa.array(["story", "poem", "story"]).dictionary_encode()
    titles = pa.array(["A", "B", "C"], pa.string_view())
    pq.write_table(pa.table({"text": ["one", "two", "three"], "kind": kinds, "title": titles}), path)
    documents, _ = read(path, where={"kind": "story"}, name_field="title")
    assert [(d.name, d.text) for d in documents] == [("A", "one"), ("C", "three")]


def test_a_column_of_nulls_or_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet_of(path, pa.nulls(2))
    assert read(path) == ([], {"null": [2, 0]})
    parquet_of(path, pa.array([1, 2]))
    with pytest.raises(PunaError, match="column 'text' is not text"):
        read(path)


def test_two_columns_of_one_name_are_refused_where_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = [pa.array(["one"]), pa.array(["eins"]), pa.array(["A"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "text", "title"]), path)
    with pytest.raises(PunaError, match=r"a\.parquet has 2 columns called 'text'"):
        read(path)
    assert texts(path, text_field="title") == ["A"]
    with pytest.raises(PunaError, match="2 columns called 'text'"):
        list(records.read_table(path))


def test_a_huge_number_in_json_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": ' + "1" * 5000 + "}\n")
    with pytest.raises(PunaError, match=r"a\.jsonl, line 2 is not JSON"):
        read(path)


class Counted(bytes):
    """Bytes that count how many of them are copied by what the reader does with them."""

    copied = 0

    def __add__(self, other: bytes) -> "Counted":
        Counted.copied += len(self) + len(other)
        return Counted(bytes(self) + bytes(other))

    def __radd__(self, other: bytes) -> "Counted":
        Counted.copied += len(self) + len(other)
        return Counted(bytes(other) + bytes(self))


def test_a_long_line_or_part_is_copied_a_few_times_however_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def pieces(count: int) -> Iterator[bytes]:
        return (Counted(b"x" * 1000) for _ in range(count))

    costs = []
    for count in (50, 500):
        monkeypatch.setattr(chunks, "read_chunks", lambda _, count=count: pieces(count))
        for found in (split_at(pieces(count), "<|end|>"), read_lines(Path("x.jsonl"))):
            Counted.copied = 0
            assert list(map(len, found)) == [count * 1000]
            costs.append(Counted.copied / (count * 1000))
    assert max(costs) < 3, costs


def test_many_small_frames_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(b'{"text": "%d"}\n' % i) for i in range(3000)))
    assert texts(path) == [str(i) for i in range(3000)]


def test_an_evaluation_set_may_have_a_mark_and_a_bad_byte(tmp_path: Path) -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    for name, content in (
        ("a.jsonl", MARK + json.dumps({"q": words}).encode() + b'\n{"q": "\xff"}\n'),
        ("a.txt", MARK + words.encode() + b"\n\xff\n"),
        ("a.json", MARK + json.dumps([{"q": words}]).encode()),
    ):
        (tmp_path / name).write_bytes(content)
        assert Evaluations(DecontaminateConfig(paths=[str(tmp_path / name)])).match(f"so {words} on")
    (tmp_path / "b.txt").write_bytes(words.encode("utf-16"))
    with pytest.raises(PunaError, match="UTF-16"):
        Evaluations(DecontaminateConfig(paths=[str(tmp_path / "b.txt")]))


def test_arrow_fills_structs_not_lists_or_maps() -> None:
    rows = [
        {"call": {"city": "Lima"}, "tags": [1, None], "empty": {"x": 1}},
        {"call": {"a": {"b": 1}}, "tags": [], "empty": {}},
    ]
    table = pa.Table.from_pylist(rows)
    pairs = pa.array([[("k", None), ("j", 1)], []], pa.map_(pa.string(), pa.int64()))
    table = table.append_column("map", pairs)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    found = [record.value for record in records.read_table(buffer)]  # type: ignore[arg-type]
    assert found == [rows[0] | {"map": {"k": None, "j": 1}}, rows[1] | {"map": {}}]
