"""Help pages of the command line: descriptions keep their lines, and nothing is broken inside a word.

A description may have lines of two columns, three or more spaces apart: an example and what it does. They are laid out
for the terminal's width; other paragraphs are filled.
"""

import argparse
import re
import textwrap
from typing import Any

_WIDEST_EXAMPLE = 38


class Parser(argparse.ArgumentParser):
    """An argument parser, and the parsers of its actions, with the help pages of this module."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(*args, **options)


class HelpFormatter(argparse.HelpFormatter):
    """argparse's formatter with paragraphs, lines of two columns and whole words."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for block in re.split(r"\n\s*\n", text.strip()):
            if lines:
                lines.append("")
            lines += _two_columns(block.splitlines(), width) if re.search(r"\S {3,}\S", block) else _wrap(block, width)
        return "\n".join(indent + line if line else line for line in lines)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrap(text, width)


def _two_columns(lines: list[str], width: int) -> list[str]:
    """Lines of two columns, their second parts aligned; on its own line where the first part is too long."""
    rows = [re.fullmatch(r"( *\S.*?) {3,}(\S.*)", line) for line in lines]
    firsts = [len(row[1]) for row in rows if row and len(row[1]) <= _WIDEST_EXAMPLE]
    left = max(firsts, default=0) + 3
    laid_out = []
    for line, row in zip(lines, rows, strict=True):
        if not row:
            laid_out += _wrap(line, width) if line == line.lstrip() else [line]
            continue
        second = _wrap(row[2], max(20, width - left))
        if len(row[1]) < left:
            laid_out.append(f"{row[1]:<{left}}{second.pop(0)}")
        else:
            laid_out.append(row[1])
        laid_out += [" " * left + part for part in second]
    return laid_out


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)
