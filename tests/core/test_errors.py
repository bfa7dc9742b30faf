"""Errors are one sentence, and a mistyped name is answered with the one that was meant."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.cli.main import main
from puna.core.errors import PunaError, nearest, reason_of


def test_a_hint_follows_the_message() -> None:
    assert str(PunaError("a.txt does not exist.", "Check the path.")) == "a.txt does not exist. Check the path."
    assert str(PunaError("a.txt does not exist.")) == "a.txt does not exist."


@given(st.text(string.ascii_lowercase, min_size=4, max_size=12), st.data())
def test_one_wrong_letter_still_finds_the_name(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    mistyped = name[:at] + "_" + name[at + 1 :]
    assert nearest(mistyped, [name, "0000", "1111"]) == f"Did you mean '{name}'?"


def test_a_far_name_gets_the_list_and_nothing_known_gets_nothing() -> None:
    assert nearest("zzzz", ["steps", "batch"]) == "Known: batch, steps."
    assert nearest("zzzz", []) == ""


def test_the_command_line_says_one_line_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing.toml")
    assert main(["recipe", "show", missing]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"puna recipe: {missing} does not exist."]


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokeniser"]) == 2
    assert "Did you mean 'tokenizer'?" in capsys.readouterr().err


def test_a_reason_has_no_names_of_classes() -> None:
    assert reason_of(ValueError("invalid header length")) == "invalid header length"
    assert reason_of(ValueError("404 Client Error for url: https://x.org/TinyStories.\nMore.")) == (
        "404 Client Error for url: https://x.org/TinyStories"
    )
    for text in ("", "HTTPSConnectionPool(host='x'): Max retries", "TProtocolException: bad", "<Pool object at 0x7f>"):
        assert reason_of(RuntimeError(text)) == "the reason is not known"
    error = RuntimeError("MetadataWrapper failed")
    error.__cause__ = OSError(28, "No space left on device")
    assert reason_of(error) == "No space left on device"
