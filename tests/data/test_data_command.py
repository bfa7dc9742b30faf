"""`puna data` as a person or a script types it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from puna.cli.main import main


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for number in range(5):
        text = f"Document number {number} says what no other says. " + " ".join(str(number * i) for i in range(80))
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    path = tmp_path / "recipe.toml"
    path.write_text(
        'name = "mine"\n[[sources]]\nname = "texts"\npath = "texts"\nlicence = "CC0-1.0"\n'
        "[tokenizer]\nvocab_size = 300\n"
    )
    return path


def test_build_and_inspect(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "corpus"
    assert (
        main(["data", "build", str(recipe), f"root={tmp_path}", "filters.min_bytes=10", "-o", str(out), "--json"]) == 0
    )
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["splits"]["train"]["documents"] == 5
    assert manifest["recipe"]["filters"]["min_bytes"] == 10
    assert main(["data", "inspect", str(out), "--json", "--verify"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["licences"]["train"]["CC0-1.0"]["documents"] == 5
    assert sum(row["documents"] for row in summary["document_tokens"]) == 5
    assert sum(row["tokens"] for row in summary["document_tokens"]) == manifest["splits"]["train"]["tokens"]
    assert len(summary["documents"]) == 3
    assert all(document["start"].startswith("Document number") for document in summary["documents"])
    assert main(["data", "inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    for expected in ("CC0-1.0", "Document number", "texts", "█"):
        assert expected in shown


def test_bad_input_is_one_sentence_and_code_2(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "corpus")
    for arguments in (
        ["build", str(recipe), "root=/nowhere", "-o", out],
        ["build", str(recipe), f"root={tmp_path}", "sedd=1", "-o", out],
        ["build", str(tmp_path / "recipes.toml"), "-o", out],
        ["inspect", str(tmp_path)],
    ):
        assert main(["data", *arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("puna data: ")
    assert not Path(out).exists()


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[sources]]\nname = "python"\nkind = "python-stdlib"\n[tokenizer]\nvocab_size = 16384\n')
    command = [sys.executable, "-m", "puna", "data", "build", str(recipe), "-o", str(tmp_path / "corpus")]
    # Where the tests run as a background job, SIGINT is ignored and children inherit that.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".corpus.*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
