"""`puna tokenizer`: training on files, comparing on files and on a corpus, and what it says to bad input."""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from puna.cli.main import main
from puna.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "texts"
    place.mkdir()
    (place / "a.txt").write_text("the quick brown fox " * 50, encoding="utf-8")
    (place / "b.md").write_text("日本語 " * 50, encoding="utf-8")
    (place / "c.jsonl").write_text('{"text": "a record"}\n' * 3, encoding="utf-8")
    (place / "d.txt.xz").write_bytes(lzma.compress(b"packed text " * 20))
    return place


def train(folder: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert main(["tokenizer", "train", str(folder), "--vocab-size", "320", "-o", str(out), "--json", *more]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_train_and_eval(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], gpt2_file: Path) -> None:
    result = train(folder, tmp_path / "out", capsys)
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert result == {"path": str(tmp_path / "out"), "vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash}
    ours, theirs, file = str(tmp_path / "out"), str(gpt2_file), str(folder / "a.txt")
    arguments = ["tokenizer", "eval", ours, "--on", file, str(folder / "b.md"), "--beside", theirs]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["vocab_size"] == {ours: tokenizer.vocab_size, theirs: 50_257}
    first, second, everything = report["rows"]
    text = (folder / "a.txt").read_text()
    gpt2 = Tokenizer.load(gpt2_file)
    assert first["source"] == file
    assert first["bytes_per_token"] == {
        ours: len(text) / len(tokenizer.encode(text)),
        theirs: len(text) / len(gpt2.encode(text)),
    }
    assert everything["bytes"] == first["bytes"] + second["bytes"]
    assert everything["tokens"][ours] == first["tokens"][ours] + second["tokens"][ours]
    assert main(arguments) == 0
    assert "bytes per token" in capsys.readouterr().out


def test_a_corpus_is_measured_on_its_held_out_texts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(folder, tmp_path / "out", capsys)
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "h.txt").write_text("held out, never trained on", encoding="utf-8")
    (tmp_path / "data.toml").write_text(
        f'[[sources]]\nname = "train"\npath = "{folder}"\n'
        f'[[sources]]\nname = "held"\npath = "{tmp_path / "held"}"\nheldout = true\n'
        f'[tokenizer]\npath = "{tmp_path / "out"}"\n',
        encoding="utf-8",
    )
    corpus = str(tmp_path / "corpus")
    assert main(["data", "build", str(tmp_path / "data.toml"), "-o", corpus, "--json"]) == 0
    capsys.readouterr()
    assert main(["tokenizer", "eval", str(tmp_path / "out"), "--on", corpus, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["source"], row["bytes"]) for row in rows] == [("held", 26), ("all", 26)]
    # Training reads the other part, without the records that were found to be the same.
    assert main(["tokenizer", "train", corpus, "--vocab-size", "320", "-o", str(tmp_path / "again"), "--json"]) == 0
    texts = ["the quick brown fox " * 50, "日本語 " * 50, "a record", "packed text " * 20]
    assert json.loads(capsys.readouterr().out)["hash"] == train_tokenizer(texts, 320).hash


def test_a_tokenizer_is_not_overwritten_unless_asked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(folder, tmp_path / "out", capsys)
    before = (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert main(["tokenizer", "train", str(folder), "--vocab-size", "300", "-o", str(tmp_path / "out")]) == 2
    assert "--replace" in capsys.readouterr().err
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == before
    train(folder / "a.txt", tmp_path / "out", capsys, "--replace")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() != before


def test_bad_input_is_one_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("")
    binary.write_bytes(b"\x00\x01\x02" * 100)
    for source, size, words in (
        (str(tmp_path / "nowhere"), 320, "does not exist"),
        (str(tmp_path / "no*where"), 320, "contains no file"),
        (str(empty), 320, "no text"),
        (str(binary), 320, "binary"),
        (str(folder), 100, "Ask for at least 284"),
        (str(folder), -5, "too small"),
    ):
        out = tmp_path / "new"
        assert main(["tokenizer", "train", source, f"--vocab-size={size}", "-o", str(out)]) == 2
        message = capsys.readouterr().err
        assert words in message
        assert message.strip().count("\n") == 0
        assert not out.exists()
    assert main(["tokenizer", "eval", str(folder), "--on", str(folder)]) == 2
    assert "neither tokenizer.json nor tokenizer.model" in capsys.readouterr().err
