r"""Finds the answer in a model's text: one strict parser for all tasks.

A value is written in one of these forms, which may be mixed as long as all of them agree:

1. a line that begins with `answer:` (any case; `the answer:`, `final answer:` and Markdown's `*`, `#`, `>` before it);
2. `\boxed{…}` with balanced braces;
3. if there is neither, one fenced block that is closed.

The last one counts. If another differs from it, the model hedged, and the text has no answer. Reasoning up to the last
`</think>` is ignored; reasoning that never ends leaves no answer. Numbers are ASCII digits only: a parser that accepts
every Unicode digit, rounds, or takes a number from anywhere in the text rewards noise.

A program is one closed fenced block (several that differ are a hedge), or the whole text if it begins with `def`.

Everything here takes time linear in the text and accepts any text.
"""

import re
from typing import NamedTuple

from puna.tasks.fences import fenced_blocks

MAX_VALUE = 10_000
"""The longest value or program, in characters."""
MAX_MARKS = 200
"""The most marked answers in one text; more are refused."""

# Every quantifier is bounded or followed by something that it cannot match, so no text makes the search slow.
_LINE = re.compile(r"^[ \t>*#_]{0,12}(?:the )?(?:final )?answer[*_]{0,3}[ \t]{0,4}:[*_]{0,3}", re.IGNORECASE)
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")


class Extracted(NamedTuple):
    """text: the answer, or None and the reason."""

    text: str | None
    reason: str = ""


def value(text: str) -> Extracted:
    """Return the answer to a task whose answers are values, or why there is none."""
    body = _without_reasoning(text)
    if body is None:
        return Extracted(None, "The reasoning never ended.")
    marks = _boxed(body)
    offset = 0
    for line in body.split("\n"):
        match = _LINE.match(line)
        if match:
            marks.append((offset, _trim(line[match.end() :])))
        offset += len(line) + 1
    if not marks:
        marks = [(0, block) for block in _fenced(body)]
    return _only([mark for _, mark in sorted(marks, key=lambda mark: mark[0])])


def program(text: str) -> Extracted:
    """Return the program in an answer, or why there is none. Nothing is parsed or run."""
    body = _without_reasoning(text)
    if body is None:
        return Extracted(None, "The reasoning never ended.")
    blocks = _fenced(body)
    if blocks:
        return _only(blocks)
    if body.lstrip().startswith("def "):
        return _only([body.strip()])
    return Extracted(None, "There is no fenced program.")


def integer(text: str, *, digits: int = 40) -> int | None:
    """Return an integer in canonical ASCII, with at most one full stop after it; None for anything else."""
    text = text.strip(" \t")
    text = text[:-1] if text.endswith(".") else text
    if len(text) > digits + 1 or not _INTEGER.fullmatch(text) or text == "-0":
        return None
    return int(text)


def integers(text: str, *, most: int = 1000) -> list[int] | None:
    """Return integers separated by commas or spaces, bare or in brackets (`[]` for none); None for anything else."""
    text = text.strip(" \t")
    if text.startswith("[") != text.endswith("]"):
        return None
    words = text.strip(" \t").removeprefix("[").removesuffix("]").strip()
    if not words:
        return [] if text else None
    parts = [part.strip() for part in words.split(",")] if "," in words else words.split()
    if len(parts) > most:
        return None
    numbers = [number for part in parts if (number := integer(part)) is not None and "." not in part]
    return numbers if len(numbers) == len(parts) else None


def words(text: str, *, most: int = 2000) -> list[str] | None:
    """Return words separated by spaces or commas; None for none or too many."""
    parts = text.replace(",", " ").split()
    return parts if 0 < len(parts) <= most else None


def _without_reasoning(text: str) -> str | None:
    end = text.rfind("</think>")
    body = text[end + len("</think>") :] if end >= 0 else text
    return None if "<think>" in body else body


def _boxed(text: str) -> list[tuple[int, str]]:
    r"""The content of each outermost \boxed{…} and its position; one that is not closed counts as an empty answer."""
    marks: list[tuple[int, str]] = []
    start = text.find("\\boxed{")
    while start >= 0 and len(marks) <= MAX_MARKS:
        depth, place = 1, start + len("\\boxed{")
        limit = min(len(text), place + MAX_VALUE)
        begin = place
        while place < limit and depth:
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            place += 1
        marks.append((start, _trim(text[begin : place - 1]) if not depth else ""))
        start = text.find("\\boxed{", place)
    return marks


def _fenced(text: str) -> list[str]:
    """The content of each closed fenced block."""
    return [block.content.strip("\n") for block in fenced_blocks(text) if block.closed]


def _trim(text: str) -> str:
    """Strip spaces and Markdown around a value."""
    text = text.strip()
    for mark in ("**", "`", "$"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = text[len(mark) : -len(mark)].strip()
    return text


def _only(marks: list[str]) -> Extracted:
    """Return the one answer that all marks agree on."""
    if not marks:
        return Extracted(None, "There is no answer: line.")
    if len(marks) > MAX_MARKS:
        return Extracted(None, "There are too many answers.")
    if any(mark != marks[-1] for mark in marks):
        return Extracted(None, "There are several answers that differ.")
    if not marks[-1].strip():
        return Extracted(None, "The answer is empty.")
    if len(marks[-1]) > MAX_VALUE:
        return Extracted(None, f"The answer is longer than {MAX_VALUE:,} characters.")
    return Extracted(marks[-1])
