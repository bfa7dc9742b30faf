"""Every kind of source is read whole; what is broken is counted or named."""

import bz2
import gzip
import json
import lzma
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.data.document import Document, Drops
from puna.data.reading.file_types import matches
from puna.data.reading.sources import list_inputs, read_documents
from puna.data.recipe import SourceConfig

ROWS = [
    {"text": "first story", "licence": "CC0", "kind": "story", "title": "One"},
    {"text": "zweite Geschichte: Größe 七", "licence": "MIT", "kind": "story", "title": "Two"},
    {"text": "a poem", "licence": None, "kind": "poem", "title": "Three"},
]


def read(path: Path | str, invalid_utf8: str = "drop", **fields: Any) -> tuple[list[Document], Drops]:
    source = SourceConfig.model_validate({"name": "s", "path": str(path), "licence": "X", **fields})
    drops = Drops()
    inputs = list_inputs(source)
    return [d for _, d in read_documents(source, inputs, invalid_utf8, drops) if d is not None], drops


def jsonl() -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, compression="zstd")
    return path


@pytest.mark.parametrize(
    ("ending", "pack"),
    [
        ("", bytes),
        (".zst", zstandard.compress),
        # Two frames, as `cat a.zst b.zst` makes them.
        (".zst", lambda data: zstandard.compress(data[:50]) + zstandard.compress(data[50:])),
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".bz2", bz2.compress),
    ],
)
def test_jsonl_in_every_packing(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"rows.jsonl{ending}"
    path.write_bytes(pack(jsonl()))
    documents, _ = read(path)
    assert [d.text for d in documents] == [row["text"] for row in ROWS]
    assert [d.licence for d in documents] == ["CC0", "MIT", "X"]
    assert documents[0].name == f"rows.jsonl{ending}:1"


def test_parquet_with_filters_and_names(parquet: Path) -> None:
    documents, drops = read(parquet, where={"kind": "story"}, name_field="title")
    assert [(d.name, d.text, d.licence) for d in documents] == [
        ("One", "first story", "CC0"),
        ("Two", "zweite Geschichte: Größe 七", "MIT"),
    ]
    assert drops.counts == {"s": {"where": [1, 0]}}
    documents, _ = read(parquet, where={"kind": ["poem", "song"], "title": "Three"}, limit=5)
    assert [d.text for d in documents] == ["a poem"]
    assert len(read(parquet, limit=2)[0]) == 2


def test_a_folder_is_read_in_order_without_hidden_and_excluded_files(tmp_path: Path) -> None:
    for name in ("b.py", "a.md", "sub/c.txt", "sub/deep/d.rs", ".git/e.py", "node_modules/f.js", "x.bin", "sub/.g.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"content of {name}")
    documents, _ = read(tmp_path, exclude=["node_modules"])
    assert [d.name for d in documents] == ["a.md", "b.py", "sub/c.txt", "sub/deep/d.rs"]
    assert [d.is_code for d in documents] == [False, True, False, True]
    assert [d.name for d in read(tmp_path, glob=["*.py", "*.rs"])[0]] == ["b.py", "sub/deep/d.rs"]
    assert [d.name for d in read(tmp_path, glob=["sub/*"])[0]] == ["sub/c.txt"]
    assert [d.name for d in read(tmp_path / "**" / "*.txt")[0]] == ["sub/c.txt"]
    assert [d.name for d in read(tmp_path / "b.py")[0]] == ["b.py"]


def test_the_standard_library_without_its_tests() -> None:
    source = SourceConfig(name="python", kind="python-stdlib")
    names = [item.name for item in list_inputs(source)]
    assert names == sorted(names)
    assert {"ast.py", "json/decoder.py", "asyncio/tasks.py"} <= set(names)
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    library = Path(sysconfig.get_paths()["stdlib"])
    [document] = [
        d
        for _, d in read_documents(source, [i for i in list_inputs(source) if i.name == "ast.py"], "drop", Drops())
        if d
    ]
    assert document.text == (library / "ast.py").read_text(encoding="utf-8")
    assert document.is_code


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="|\0")).filter(str.strip), min_size=1))
def test_separated_documents_come_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "separated.txt"
    path.write_bytes("\n|\n".join(texts).encode("utf-8"))
    documents, _ = read(path, separator="|")
    bare = [text.strip("\n") for text in texts]
    # A byte-order mark at the very start of a file is not text.
    assert [d.text.lstrip("\ufeff") for d in documents] == [text.lstrip("\ufeff") for text in bare]


def test_binary_files_among_text_are_counted_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
    (tmp_path / "text.txt").write_text("text")
    documents, drops = read(tmp_path)
    assert [d.name for d in documents] == ["text.txt"]
    assert drops.counts["s"]["binary"][0] == 1


@pytest.mark.parametrize("where", ["plain", "jsonl", "parquet"])
def test_invalid_utf8_is_dropped_and_counted_or_replaced(tmp_path: Path, where: str) -> None:
    bad, good = b"caf\xe9 au lait", "café".encode()
    if where == "plain":
        (tmp_path / "bad.txt").write_bytes(bad)
        (tmp_path / "good.txt").write_bytes(good)
    elif where == "jsonl":
        (tmp_path / "r.jsonl").write_bytes(b'{"text": "' + bad + b'"}\n{"text": "' + good + b'"}\n')
    else:
        table = pa.table({"text": pa.array([bad, good], pa.binary()).view(pa.string())})
        pq.write_table(table, tmp_path / "r.parquet")
    documents, drops = read(tmp_path)
    assert [d.text for d in documents] == ["café"]
    assert drops.counts["s"]["invalid_utf8"][0] == 1
    documents, drops = read(tmp_path, invalid_utf8="replace")
    assert [d.text for d in documents] == ["caf\ufffd au lait", "café"]
    assert not drops.counts


def test_half_surrogate_pairs_in_json_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"text": "a\\ud800b"}\n{"text": null}\n{"text": "ok"}\n')
    documents, drops = read(tmp_path)
    assert [d.text for d in documents] == ["ok"]
    assert drops.counts["s"] == {"invalid_utf8": [1, 5], "null": [1, 0]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", b'{"text": "a"}\n{"text": \n', r"r\.jsonl, line 2 is not JSON"),
        ("r.jsonl", b'{"text": "a"}\n\n[1]\n', r"r\.jsonl, line 3 is not a JSON object"),
        ("r.jsonl", b'{"txet": "a"}\n', r"line 1 has no field 'text'\. Did you mean 'txet'"),
        ("r.jsonl", b'{"text": 5}\n', r"line 1: field 'text' is int, not text"),
        ("r.jsonl.zst", zstandard.compress(jsonl() * 50)[:-9], r"r\.jsonl\.zst is corrupt or truncated"),
        ("r.jsonl.zst", b"not zstd at all", r"r\.jsonl\.zst is corrupt or truncated"),
        ("r.jsonl.gz", gzip.compress(jsonl() * 50)[:-20], r"r\.jsonl\.gz is corrupt or truncated"),
        ("r.jsonl.gz", b"not gzip at all", r"r\.jsonl\.gz is corrupt or truncated"),
        ("r.txt.xz", lzma.compress(jsonl() * 50)[:-20], r"r\.txt\.xz is corrupt or truncated"),
        ("r.txt.bz2", b"BZh9 not bzip2 at all", r"r\.txt\.bz2 is corrupt or truncated"),
        ("r.parquet", b"PAR1 but not parquet PAR1", r"r\.parquet is a corrupt parquet file"),
    ],
)
def test_corrupt_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PunaError, match=message):
        read(tmp_path)


def test_a_parquet_file_damaged_inside_is_named_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    table = pa.table({"text": [f"{i * 7919 % 1000003} " * 40 for i in range(4000)]})
    pq.write_table(table, path, compression="zstd", row_group_size=1000, use_dictionary=False)
    data = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[middle : middle + 4000] = b"\xff" * 4000
    path.write_bytes(data)
    with pytest.raises(PunaError, match=r"r\.parquet is a corrupt parquet file \(after row \d+:"):
        read(path)


def test_missing_columns_are_named_with_the_nearest(parquet: Path) -> None:
    with pytest.raises(PunaError, match=r"has no field 'kinds'\. Did you mean 'kind'"):
        read(parquet, where={"kinds": "story"})
    with pytest.raises(PunaError, match=r"has no field 'content'"):
        read(parquet, text_field="content")


def test_missing_and_empty_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match="does not exist"):
        read(tmp_path / "nothing")
    with pytest.raises(PunaError, match="contains no file of a known type"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(PunaError, match=r"contains no file that matches \*\.py"):
        read(tmp_path, glob=["*.py"])


def test_patterns() -> None:
    assert matches("a/b/c.py", ["*.py"])
    assert matches("a/b/c.py", ["a/**/*.py"])
    assert matches("a/c.py", ["a/**/*.py"])
    assert not matches("a/b/c.py", ["a/*.py"])
    assert matches("a/tests/c.py", ["tests"], folders=True)
    assert not matches("a/tests/c.py", ["tests"])
    assert matches("docs/build/x.md", ["docs/build"], folders=True)
    assert not matches("docs/builder/x.md", ["docs/build"], folders=True)


def test_the_shared_parquet_corpora(test_data: Path) -> None:
    documents, drops = read(test_data / "corpus" / "val.parquet", where={"lang": "code"}, content="code")
    assert len(documents) == 22
    assert all(d.is_code and d.licence.startswith(("MIT", "Public domain")) for d in documents)
    assert drops.counts["s"]["where"][0] == 211 - 22
    story, _ = read(test_data / "corpus" / "tinystories_slice.txt.xz", separator="<|endoftext|>")
    assert len(story) >= 1
