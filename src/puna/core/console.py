"""Terminal output: notes and progress on stderr, results on stdout.

A command prints its result on stdout once, as a table or, with --json, as one JSON value. Everything else goes to
stderr, so a script can always pipe stdout. rich is imported when it is first used: `puna --help` does not pay for it.

A terminal breaks a long line anywhere. So what goes to one is wrapped here, between words; a pipe gets whole lines.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from puna.core.units import format_seconds

if TYPE_CHECKING:
    from rich.console import Console

_GAP = 2  # columns between two columns of a table


@lru_cache(maxsize=2)
def console(*, stderr: bool = True) -> "Console":
    """Return the shared rich console for stdout or stderr."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    made.soft_wrap = not made.is_terminal
    return made


def say(text: str) -> None:
    """Print a note on stderr; rich markup is allowed."""
    console().print(text)


def say_plain(text: str) -> None:
    """Print a note on stderr as it is, without markup."""
    console().print(text, markup=False)


class Progress(Protocol):
    """A bar for one task or several: what commands use of rich's."""

    def add_task(self, description: str, *, total: float | None = None, completed: int = 0) -> Any:
        """Begin a task; returns its number."""

    def update(
        self,
        task_id: Any,
        *,
        total: float | None = None,
        completed: float | None = None,
        advance: float | None = None,
        description: str | None = None,
    ) -> None:
        """Say how far a task is."""

    def advance(self, task_id: Any, advance: float = 1) -> None:
        """Say that so much more of a task is done."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress(*, transient: bool = False) -> Progress:
    """Return a progress bar with share, count and time left, for work that takes more than a second or two.

    Where stderr is not a terminal, lines come instead: after 2 seconds, then less and less often, at last every minute.
    """
    if not console().is_terminal:
        return ProgressLines()
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(),
        transient=transient,
    )


class ProgressLines:
    """Progress as lines of a log. write: takes a line; clock: seconds."""

    def __init__(self, write: Callable[[str], None] = say_plain, clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._tasks: list[_Task] = []
        self._began = self._last = clock()
        self._wait = 2.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left to clean up."""

    def add_task(self, description: str, *, total: float | None = None, completed: int = 0) -> int:
        """Begin a task; returns its number."""
        self._tasks.append(_Task(description, total, completed))
        return len(self._tasks) - 1

    def update(
        self,
        task_id: int,
        *,
        total: float | None = None,
        completed: float | None = None,
        advance: float | None = None,
        description: str | None = None,
    ) -> None:
        """Say how far a task is."""
        task = self._tasks[task_id]
        task.description, task.total = description or task.description, total or task.total
        task.done = (task.done if completed is None else completed) + (advance or 0)
        now = self._clock()
        if now - self._last < self._wait:
            return
        self._last, self._wait = now, min(2 * self._wait, 60.0)
        far = f"{task.done:,.0f}"
        if task.total:
            far = f"{task.done / task.total:.0%}, {far} of {task.total:,.0f}"
        self._write(f"{task.description}: {far}, {format_seconds(now - self._began)}")

    def advance(self, task_id: int, advance: float = 1) -> None:
        """Say that so much more of a task is done."""
        self.update(task_id, advance=advance)


@dataclass
class _Task:
    description: str
    total: float | None
    done: float


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> None:
    """Print rows as a table on stdout. Cells are plain text; numbers are right-aligned.

    Cells are wrapped between words. A terminal too narrow even for the longest words gets each row as a block of lines.
    """
    rows = [list(row) for row in rows]
    cells = [[_cell(value) for value in row] for row in rows]
    out = console(stderr=False)
    if title:
        out.print(title, markup=False, style="italic")
    widths = _column_widths([list(columns), *cells], out.width)
    if widths is None and (out.is_terminal or "COLUMNS" in os.environ):
        _show_blocks(columns, cells)
        return
    widths = widths or [_longest_word(column) for column in zip(columns, *cells, strict=True)]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    for line in _table_lines(columns, widths, numeric):
        out.print(line, markup=False, style="bold", soft_wrap=True)
    for row in cells:
        for line in _table_lines(row, widths, numeric):
            out.print(line, markup=False, soft_wrap=True)


def _table_lines(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    """The lines of one row."""
    from itertools import zip_longest

    from rich.text import Text

    out = console(stderr=False)
    columns = []
    for cell, width, to_right in zip(cells, widths, right, strict=True):
        lines = Text(cell).wrap(out, max(1, width))
        for line in lines:
            line.rstrip()
            line.align("right" if to_right else "left", width)
        columns.append([line.plain for line in lines])
    rows = zip_longest(*columns)
    return [
        (" " * _GAP)
        .join(" " * width if part is None else part for part, width in zip(row, widths, strict=True))
        .rstrip()
        for row in rows
    ]


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).expandtabs(4)


def _longest_word(texts: Iterable[str]) -> int:
    from rich.cells import cell_len

    return max((cell_len(word) for text in texts for word in text.split()), default=0)


def _column_widths(cells: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Widths in which every word is whole and all columns fit into `width`; None where there are none."""
    from rich.cells import cell_len

    columns = list(zip(*cells, strict=True))
    natural = [max(cell_len(line) for text in column for line in (text.splitlines() or [""])) for column in columns]
    least = [_longest_word(column) for column in columns]
    free = width - _GAP * (len(columns) - 1)
    if sum(natural) <= free:
        return natural
    if sum(least) > free:
        return None
    # Narrow columns keep their width; the widest ones share what they leave.
    widths = [max(small, min(large, free)) for small, large in zip(least, natural, strict=True)]
    while sum(widths) > free:
        widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def _show_blocks(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    out = console(stderr=False)
    for number, row in enumerate(cells):
        if number:
            out.print()
        for name, text in zip(columns, row, strict=True):
            if text:
                out.print(f"{name}: {text}" if name else text, markup=False, soft_wrap=False)


def print_json(value: Any) -> None:
    """Print one JSON value on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")
