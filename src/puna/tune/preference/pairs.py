"""Read files of preferences: ranked answers, and answers that are only good or bad.

No torch. A pair has `chosen` and `rejected`, and a prompt either in a separate key (text, messages, `conversations` or
an instruction) or, as in hh-rlhf and UltraFeedback, inside both. A third answer better than both may be given as
`edited`, as in Llama 3's annotation, and a longer ranking as `responses`, best first. The assistant page exports such
pairs; a single thumb has null on the other side and is not a pair, but KTO learns from it.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from puna.core.errors import DataError
from puna.tune.rows.dialogues import (
    Dialogue,
    Message,
    Row,
    answer_messages,
    check_messages,
    dialogues_of,
    prompt_messages,
    read_rows,
    tools_of,
)

_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")


class Preference(NamedTuple):
    """answers: at least two, best first, each a list of messages that ends with the assistant's."""

    prompt: list[Message]
    answers: list[list[Message]]
    tools: list[dict[str, Any]]
    where: str


class Judged(NamedTuple):
    """A prompt and one answer, labelled good or bad."""

    prompt: list[Message]
    answer: list[Message]
    good: bool
    tools: list[dict[str, Any]]
    where: str


def read_preferences(path: Path) -> list[Preference]:
    """Read all rankings of a file. Rows with only one side are left out.

    Raises PunaError naming file and line for a row that is not a preference or has equal sides, or when none is left.
    """
    found = [preference for row in read_rows(path) if (preference := preference_of(row)) is not None]
    if not found:
        raise DataError(f"{path} has no preferences.", "A row is {prompt, chosen, rejected}.")
    return found


def read_judged(path: Path) -> list[Judged]:
    """Read all good and bad answers of a file.

    Sources are rows with a label, single thumbs, and the sides of pairs.
    """
    found = [judged for row in read_rows(path) for judged in judged_of(row)]
    if not found:
        raise DataError(f"{path} has no judged answers.", "A row is {messages, label} or {prompt, chosen, rejected}.")
    return found


def preference_of(row: Row) -> Preference | None:
    """The ranking of a row; None when it has only one side. Raises PunaError naming the row."""
    where, value = row
    if "chosen" not in value and "rejected" not in value and "responses" not in value:
        raise DataError(f"{where}: the row has no chosen and rejected answer.", "A row is {prompt, chosen, rejected}.")
    given = value.get("responses")
    if given is None:
        given = [value.get("edited"), value.get("chosen"), value.get("rejected")]
        given = given if value.get("edited") is not None else given[1:]
        if any(answer is None for answer in given):
            return None
    if not isinstance(given, list) or len(given) < 2:
        raise DataError(f"{where}: its responses are not a ranking of two or more.", "Fix that row.")
    prompt = _prompt(row)
    sides = [_transcript(answer, where) if prompt is None else answer_messages(answer, where) for answer in given]
    if prompt and all(side[0]["role"] != "assistant" for side in sides):
        prompt = None  # UltraFeedback also has it inside the sides
    shared = _shared(sides)
    prompt, sides = [*(prompt or []), *sides[0][:shared]], [side[shared:] for side in sides]
    texts = [_said(side) for side in sides]
    for number, text in enumerate(texts):
        if text in texts[:number]:
            raise DataError(f"{where}: two of its answers are equal, so there is no preference.", "Remove that row.")
    for side in sides:
        if not side or side[0]["role"] != "assistant" or side[-1]["role"] != "assistant":
            raise DataError(f"{where}: an answer does not begin and end with the assistant.", "Fix that row.")
        check_messages([*prompt, *side], where)
    if not prompt:
        raise DataError(f"{where}: the row has no prompt.", "Fix that row.")
    return Preference(prompt, sides, tools_of(value.get("tools"), where), where)


def judged_of(row: Row) -> Iterator[Judged]:
    """The good and bad answers of a row."""
    where, value = row
    if "label" in value:
        if not isinstance(value["label"], bool):
            raise DataError(f"{where}: its label is not true or false.", "Fix that row.")
        for dialogue in dialogues_of(row):
            yield _judged(dialogue, value["label"])
        return
    sides = [side for side in ("chosen", "rejected") if value.get(side) is not None]
    prompt = _prompt(row)
    if len(sides) == 1 and prompt is not None:
        answer = answer_messages(value[sides[0]], where)
        check_messages([*prompt, *answer], where)
        yield Judged(prompt, answer, sides[0] == "chosen", tools_of(value.get("tools"), where), where)
        return
    preference = preference_of(row)
    if preference is not None:
        yield Judged(preference.prompt, preference.answers[0], True, preference.tools, where)
        yield Judged(preference.prompt, preference.answers[-1], False, preference.tools, where)


def _judged(dialogue: Dialogue, good: bool) -> Judged:
    if dialogue.messages[-1]["role"] != "assistant":
        raise DataError(f"{dialogue.where}: the dialogue does not end with the assistant.", "Fix that row.")
    return Judged(dialogue.messages[:-1], dialogue.messages[-1:], good, dialogue.tools, dialogue.where)


def _prompt(row: Row) -> list[Message] | None:
    """The prompt in a separate key; None when it is inside the answers."""
    where, value = row
    system = value.get("system") or value.get("system_prompt")
    before = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    for key in ("prompt", "conversations", "messages"):
        if value.get(key):
            return before + prompt_messages(value[key], where)
    if value.get("instruction"):
        asked = "\n\n".join(part for part in (value["instruction"], value.get("input")) if part)
        return before + prompt_messages(asked, where)
    return None


def _transcript(value: Any, where: str) -> list[Message]:
    """A complete dialogue as one side of a pair.

    It is messages, or hh-rlhf's "Human:" and "Assistant:".
    """
    if not isinstance(value, str):
        return prompt_messages(value, where)
    parts = _TRANSCRIPT.split(value)
    if len(parts) < 3 or parts[0].strip():
        raise DataError(f"{where}: its sides are not dialogues and it has no prompt.", "Fix that row.")
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": "user" if who == "Human" else "assistant", "content": text.strip()} for who, text in turns]


def _shared(sides: Sequence[list[Message]]) -> int:
    """The number of leading messages that all sides share, leaving at least one message to each."""
    count = 0
    while all(len(side) > count + 1 and side[count] == sides[0][count] for side in sides):
        count += 1
    return count


def _said(side: Sequence[Message]) -> str:
    kept = ("role", "tool_calls", "token_ids", "reasoning_content")
    return repr([(str(m.get("content") or "").strip(), [m.get(key) for key in kept]) for m in side])
