"""Terminal output: notes and progress on stderr, results on stdout.

A command prints its result on stdout once, as a table or, with --json, as one JSON value. Everything else goes to
stderr, so a script can always pipe stdout. rich is imported when it is first used: `puna --help` does not pay for it.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@lru_cache(maxsize=2)
def console(*, stderr: bool = True) -> "Console":
    """Return the shared rich console for stdout or stderr."""
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """Print a note on stderr; rich markup is allowed."""
    console().print(text)


def progress(*, transient: bool = False) -> "Progress":
    """Return a progress bar with share, count and time left, for work that takes more than a second or two."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(),
        transient=transient,
    )


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> None:
    """Print rows as a table on stdout. Cells are plain text; numbers are right-aligned."""
    from rich.markup import escape
    from rich.table import Table

    rows = [list(row) for row in rows]
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *(
                escape(f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell))
                for cell in row
            )
        )
    console(stderr=False).print(table)


def print_json(value: Any) -> None:
    """Print one JSON value on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")
