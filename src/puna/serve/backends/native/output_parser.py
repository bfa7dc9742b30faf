"""Parses an answer in the model's own format while it is being generated.

The format is that of `puna.text.chat`: <think>…</think> at the start, then text, and <tool_call> tags around a JSON
object for each call. Tags are read from the text, in which tokenizers with tokens for them show them too. Text may be
split anywhere without changing the result. A call is returned when it is complete; what only resembles one (not JSON,
no name, never closed) stays text as it was written.
"""

import json
import re
from typing import Literal, NamedTuple, NoReturn

from puna.text.bytelevel import END_THINK, END_TOOL_CALL, THINK, TOOL_CALL


class Piece(NamedTuple):
    """A part of an answer.

    For a call, name is the function and text its arguments, a JSON object.
    """

    kind: Literal["content", "reasoning", "call"]
    text: str
    name: str = ""


class OutputParser:
    """Takes text and returns pieces.

    tools: look for calls. in_call: the prompt ended with <tool_call>.
    """

    def __init__(self, *, tools: bool, in_call: bool = False) -> None:
        self._tools = tools
        self._state: Literal["start", "reasoning", "content", "call"] = "call" if in_call else "start"
        self._held = ""
        self._searched = 0  # how much of a call's held text is known not to contain its end
        self._opening = "" if in_call else TOOL_CALL  # the text to restore if it turns out not to be a call
        self._gap = ""  # white space before a call; part of the text only if it is not a call
        self._strip = False  # the next white space belongs to the format
        self.calls = 0
        """Calls returned so far."""

    @property
    def reasoning(self) -> bool:
        """Whether the next text belongs to the reasoning."""
        return self._state == "reasoning"

    def push(self, text: str) -> list[Piece]:
        """Add text; returns the pieces that are now certain."""
        self._held += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return pieces

    def close(self, *, cut: bool = False) -> list[Piece]:
        """End the text; returns the remaining pieces.

        cut: a length limit ended it, so a call or a tag that was not finished is dropped rather than text.
        """
        held, self._held = self._held, ""
        if cut:
            held = self._without_open_tag(held)
        pieces: list[Piece] = []
        if self._state == "call":
            call = _call(held)
            if call is not None:
                self.calls += 1
                return [call]
            if not cut:
                self._put(pieces, "content", self._gap + self._opening + held)
        elif self._state == "reasoning":
            self._put(pieces, "reasoning", held.rstrip())
        elif not (self.calls and not held.strip()):
            self._put(pieces, "content", held)
        return pieces

    def _without_open_tag(self, held: str) -> str:
        tag = {"start": THINK, "reasoning": END_THINK, "content": TOOL_CALL, "call": ""}[self._state]
        size = _open_tag(held, tag) if tag != TOOL_CALL or self._tools else 0
        rest = held[: len(held) - size]
        # A single "<" is more likely text, unless calls have been written or it begins a line, as a call does.
        return rest.rstrip() if size > 1 or (size and (self.calls or rest.endswith("\n"))) else held

    def _advance(self, pieces: list[Piece]) -> bool:
        """Advance as far as the held text allows; returns whether there may be more to parse."""
        if self._state == "start":
            begun = self._held.lstrip()
            if len(begun) < len(THINK) and THINK.startswith(begun):
                return False
            thinks = begun.startswith(THINK)
            self._state = "reasoning" if thinks else "content"
            if thinks:
                self._held, self._strip = begun[len(THINK) :], True
            return True
        if self._state == "reasoning":
            return self._until(END_THINK, "reasoning", pieces)
        if self._state == "content":
            if self._tools:
                return self._until(TOOL_CALL, "content", pieces)
            held, self._held = self._held, ""
            self._put(pieces, "content", held)
            return False
        return self._end_of_call(pieces)

    def _until(self, tag: str, kind: Literal["content", "reasoning"], pieces: list[Piece]) -> bool:
        """Emit text up to a tag; hold back white space before it and a possible prefix of it."""
        at = self._held.find(tag)
        found = at >= 0
        if not found:
            at = len(self._held) - _open_tag(self._held, tag)
        text = self._held[:at].rstrip()
        self._put(pieces, kind, text)
        if not found:
            self._held = self._held[len(text) :]
            return False
        self._gap = "" if self._strip else self._held[len(text) : at]
        self._held = self._held[at + len(tag) :]
        self._state, self._strip, self._searched = ("content", True, 0) if kind == "reasoning" else ("call", False, 0)
        return True

    def _end_of_call(self, pieces: list[Piece]) -> bool:
        while (at := self._held.find(END_TOOL_CALL, self._searched)) >= 0:
            body, after = self._held[:at], at + len(END_TOOL_CALL)
            call = _call(body)
            if call is None and _in_string(body):
                self._searched = after  # the tag is inside an argument
                continue
            if call is not None:
                self.calls += 1
                pieces.append(call)
            else:
                self._put(pieces, "content", self._gap + self._opening + self._held[:after])
            self._held, self._state, self._strip = self._held[after:], "content", call is not None
            self._opening = TOOL_CALL
            return True
        self._searched = max(self._searched, len(self._held) - len(END_TOOL_CALL) + 1)
        return False

    def _put(self, pieces: list[Piece], kind: Literal["content", "reasoning"], text: str) -> None:
        if self._strip:
            text = text.lstrip()
        if text:
            self._strip = False
            pieces.append(Piece(kind, text))


def _call(body: str) -> Piece | None:
    """The call that a JSON object describes, or None."""
    try:
        value = json.loads(body, parse_constant=_no_number)
        arguments = value.get("arguments", value.get("parameters", {})) if isinstance(value, dict) else None
        if isinstance(arguments, str):
            arguments = json.loads(arguments, parse_constant=_no_number)
        if not isinstance(arguments, dict) or not isinstance(value.get("name"), str) or not value["name"]:
            return None
    except (ValueError, RecursionError):
        return None
    return Piece("call", json.dumps(arguments, ensure_ascii=False), value["name"])


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _in_string(text: str) -> bool:
    """Whether a JSON text ends within a string."""
    return re.sub(r"\\.", "", text, flags=re.DOTALL).count('"') % 2 == 1


def _open_tag(text: str, tag: str) -> int:
    """Length of the longest suffix of `text` that is a prefix of `tag`."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)
