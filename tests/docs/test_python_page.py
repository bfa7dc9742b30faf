"""docs/python.md: its examples run, in order, and it describes all of the public API."""

import re
from pathlib import Path

import pytest
from docs_support import DOCS, blocks

import puna

PAGE = "python.md"


def test_the_examples_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in blocks(PAGE):
        if block.language == "python":
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, f"docs/{PAGE}", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.count("True runs/") == 2  # a run of training and one of tuning reached their end
    assert re.search(r"^\d+\.\d days, \d", printed, re.MULTILINE)
    assert "models/nowhere does not exist." in printed


def test_every_error_is_drawn_as_the_code_has_it() -> None:
    tree = next(block.text for block in blocks(PAGE, "Errors") if block.language == "text")
    drawn = re.findall(r"(\w+) {3,}", tree)
    assert sorted(drawn) == sorted(name for name in puna.__all__ if name.endswith("Error") or name == "MissingFiles")
    doc = puna.core.errors.__doc__ or ""
    for line in tree.splitlines():
        assert line.split(maxsplit=1)[0] in doc
    for name in drawn:
        kind = getattr(puna, name)
        assert issubclass(kind, puna.PunaError)
        parent = kind.__mro__[1].__name__
        assert parent in ("PunaError", "DataError", "Exception")


def test_every_function_and_option_is_on_the_page() -> None:
    text = (DOCS / PAGE).read_text(encoding="utf-8")
    for name in (
        "load_model",
        "train_model",
        "tune_model",
        "evaluate_model",
        "plan_run",
        "include",
        "Task",
        "Benchmark",
    ):
        assert f"puna.{name}" in text, name
    known = set(puna.SamplingParams.__dataclass_fields__)
    table = text[text.index("| option |") : text.index("Close a model")]
    assert set(re.findall(r"`(\w+)`", table)) <= known
