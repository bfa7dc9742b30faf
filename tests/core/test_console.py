"""What is printed: no word is broken, and long work reports itself in a log too."""

import io

import pytest
from rich.console import Console

from puna.core import console as module
from puna.core.console import ProgressLines, show_table

ROWS = [
    [
        "train.init",
        1_234_567,
        "normal: Gaussian, zero output projections; bigram: start as a bigram model of the corpus",
    ],
    ["optimizer.weight_decay", 5, "decoupled weight decay of the matrices [not of norms]"],
]
COLUMNS = ["key", "value", "meaning"]


def words(rows: list) -> set[str]:
    return {word for row in rows for cell in row for word in (f"{cell:,}" if isinstance(cell, int) else cell).split()}


@pytest.mark.parametrize("width", [200, 80, 60, 40, 30])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_table_breaks_no_word(width: int, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    out = Console(file=file, width=width, force_terminal=terminal, no_color=True, highlight=False)
    monkeypatch.setattr(module, "console", lambda **_: out)
    monkeypatch.setenv("COLUMNS", str(width))
    show_table(COLUMNS, ROWS, title="title")
    shown = _plain(file.getvalue())
    assert words(ROWS) <= set(shown.replace("key:", "").replace("value:", "").replace("meaning:", "").split())
    assert max(map(len, shown.splitlines())) <= width


def _plain(text: str) -> str:
    from rich.text import Text

    return Text.from_ansi(text).plain


def test_a_pipe_gets_whole_words_in_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show_table(["path", "hash"], [["runs/" + "a" * 60, "b" * 64], ["x", "y"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{'path':<65}  hash", f"runs/{'a' * 60}  {'b' * 64}", f"{'x':<65}  y"]


def test_numbers_are_aligned_right(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(["n", "count"], [["a", 1_234_567], ["b", 5]])
    assert capsys.readouterr().out.splitlines() == ["n      count", "a  1,234,567", "b          5"]


@pytest.mark.parametrize("width", [20, 37, 80])
def test_a_note_on_a_terminal_is_wrapped_between_words(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    module.console.cache_clear()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    out = module.console()
    out.file = file
    text = "The corpus uses a tokenizer of 512 tokens but model.vocab_size = 300. Set it to the corpus' own."
    module.say_plain(text)
    module.console.cache_clear()
    lines = _plain(file.getvalue()).splitlines()
    assert " ".join(" ".join(lines).split()) == text
    assert max(map(len, lines)) <= width


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_in_a_log_is_a_line_less_and_less_often() -> None:
    clock, lines = Clock(), list[str]()
    with ProgressLines(lines.append, clock) as bar:
        task = bar.add_task("documents", total=1000)
        other = bar.add_task("files")
        for second in range(1, 1001):
            clock.now = float(second)
            bar.advance(task)
            if second == 500:
                bar.update(other, completed=3)
    assert lines[0] == "documents: 0%, 2 of 1,000, 2.0 s"
    assert lines[1] == "documents: 1%, 6 of 1,000, 6.0 s"
    assert 15 < len(lines) < 25
    assert lines[-1].startswith("documents: 9")


def test_short_work_says_nothing_in_a_log() -> None:
    clock, lines = Clock(), list[str]()
    with ProgressLines(lines.append, clock) as bar:
        task = bar.add_task("documents", total=10)
        for step in range(10):
            clock.now = step / 10
            bar.advance(task)
    assert lines == []
