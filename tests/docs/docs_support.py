"""What the tests of the documentation share: the fenced blocks of a page."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


class Block(NamedTuple):
    """A fenced block of a page: its language, its text and the line that it begins on."""

    language: str
    text: str
    line: int


def blocks(page: str, heading: str = "") -> Iterator[Block]:
    """The blocks of docs/`page`, of one section where a heading is given."""
    text = (DOCS / page).read_text(encoding="utf-8")
    start = text.index(f"## {heading}\n") if heading else 0
    end = text.find("\n## ", start + 1) if heading else -1
    for match in re.finditer(r"^```(\w+)\n(.*?)^```", text[: None if end < 0 else end], re.DOTALL | re.MULTILINE):
        if match.start() >= start:
            yield Block(match[1], match[2], text[: match.start()].count("\n") + 2)
