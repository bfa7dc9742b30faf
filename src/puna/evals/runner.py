"""Runs benchmarks on an engine and writes the result of each item as soon as it is known.

The output folder has `settings.json`, the settings of everything in it, and `items.jsonl`, one line for each item. A
stopped run continues; one with different settings is refused. The score of an item depends only on the item,
the model and the settings: a limit takes a fixed sample (by a hash of the item's name, so that a larger one contains
the smaller), random numbers follow from names, and the engine always computes in the same shapes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from puna.core.errors import PunaError
from puna.core.files import disk_errors, lock_directory, read_json, write_json
from puna.engine.generate import Engine
from puna.evals.contract import MAX_ANSWER, Benchmark, Choices, Item, MultiTurn, Score, Text, Transcript
from puna.evals.generation import MultiTurnSamples, Sampling, TextSamples, converse, likelihoods, write

Row = dict[str, Any]

CHUNK = 32
"""The number of items asked together, and lost at most if a run is stopped."""
MAX_SHOWN = 4000
"""The length of a question or an answer that is kept, in characters."""

OnProgress = Callable[[Benchmark, int, int], None]
"""Called with the benchmark, the items done and the items in all."""


def chosen(benchmark: Benchmark, items: Sequence[Item], limit: int | None) -> list[Item]:
    """Return the items to run, in a fixed pseudo-random order; at most `limit` of them.

    Raises PunaError if two items have the same name.
    """
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise PunaError(f"{benchmark.name} has two items named '{item.id}'.", "Fetch its file again.")
        seen.add(item.id)
    ordered = sorted(items, key=lambda item: hashlib.sha256(f"{benchmark.name}/{item.id}".encode()).digest())
    return ordered if limit is None else ordered[:limit]


def run(
    engine: Engine,
    benchmarks: Sequence[tuple[Benchmark, Sequence[Item]]],
    folder: Path,
    *,
    settings: dict[str, Any],
    chat: bool = False,
    sampling: Sampling = Sampling(),  # noqa: B008 (a constant)
    chunk: int = CHUNK,
    on_progress: OnProgress | None = None,
) -> dict[str, list[Row]]:
    """Ask and score the items of each benchmark. Returns their rows by the benchmark's name, in the items' order.

    settings: everything that the results depend on besides the benchmarks, as plain JSON; stored in the folder, and
    compared with what is stored. chat: whether the model was trained to chat. Items that the folder has already are not
    asked again. Raises PunaError for a folder with different settings, a damaged one, or one in use.
    """
    with lock_directory(folder):
        _check_settings(folder, settings)
        done = _read(folder / "items.jsonl")
        with disk_errors(folder), open(folder / "items.jsonl", "a", encoding="utf-8") as file:
            for benchmark, items in benchmarks:
                open_items = [item for item in items if (benchmark.name, item.id) not in done]
                for start in range(0, len(open_items), chunk):
                    if on_progress:
                        on_progress(benchmark, len(items) - len(open_items) + start, len(items))
                    part = open_items[start : start + chunk]
                    for row in _ask(engine, benchmark, part, chat=chat, sampling=sampling):
                        _append(file, row)
                        done[benchmark.name, row["id"]] = row
                if on_progress:
                    on_progress(benchmark, len(items), len(items))
    return {benchmark.name: [done[benchmark.name, item.id] for item in items] for benchmark, items in benchmarks}


def scored(benchmark: Benchmark, item: Item, response: Any) -> Score:
    """Score any response. If the scorer fails, the score is 0 with the reason; a scorer never ends a run.

    Raises PunaError only if a program must be run and there is no sandbox.
    """
    if isinstance(response, str) and len(response) > MAX_ANSWER:
        return Score(0.0, "", f"longer than {MAX_ANSWER:,} characters")
    try:
        return benchmark.score(item, response)
    except PunaError:
        raise
    except (Exception, RecursionError) as error:
        return Score(0.0, "", f"the scorer failed ({type(error).__name__})")


def _ask(
    engine: Engine, benchmark: Benchmark, items: Sequence[Item], *, chat: bool, sampling: Sampling
) -> Iterator[Row]:
    """Yield a row for each item. Items of the same kind are asked together."""
    pairs = [
        pair
        for item in items
        if isinstance(item.ask, Choices)
        for pair in zip(item.ask.contexts, item.ask.continuations, strict=True)
    ]
    likely = iter(likelihoods(engine, pairs))
    texts = {f"{benchmark.name}/{item.id}": item.ask for item in items if isinstance(item.ask, Text)}
    written = iter(write(engine, [*texts.values()], [*texts], chat=chat, sampling=sampling))
    turns = {f"{benchmark.name}/{item.id}": item.ask for item in items if isinstance(item.ask, MultiTurn)}
    held = iter(converse(engine, [*turns.values()], [*turns], sampling=sampling))
    for item in items:
        row: Row = {"benchmark": benchmark.name, "id": item.id, "group": item.group}
        if isinstance(item.ask, Choices):
            found = [next(likely) for _ in item.ask.continuations]
            score = scored(benchmark, item, [one.likelihood for one in found])
            row |= _judged(score) | {
                "logprobs": [one.likelihood.logprob for one in found],
                "cut": max(one.cut for one in found),
            }
            shown = item.ask.contexts[0]
        else:
            done: TextSamples | MultiTurnSamples = next(held) if isinstance(item.ask, MultiTurn) else next(written)
            answer, samples, cut = done
            row |= _judged(scored(benchmark, item, answer)) | _said(answer)
            row |= {"samples": [_judged(scored(benchmark, item, one)) for one in samples], "cut": cut}
            shown = item.ask.prompt
        yield row | {"question": (item.body or shown)[-MAX_SHOWN:], "target": _shown(item)}


def _judged(score: Score) -> Row:
    return {
        "value": float(score.value),
        "answer": score.answer[:MAX_SHOWN],
        "reason": score.reason,
        "parts": dict(score.parts),
    }


def _said(response: str | Transcript) -> Row:
    """The model's answer, and for dialogues with tools all messages."""
    if isinstance(response, str):
        return {"response": response[:MAX_SHOWN]}
    talk = [{**message, "content": message["content"][:MAX_SHOWN]} for message in response.messages]
    return {"response": response.answer[:MAX_SHOWN], "conversation": talk}


def _shown(item: Item) -> str:
    """The right answer in readable form."""
    if isinstance(item.ask, Choices) and isinstance(item.target, int) and len(set(item.ask.continuations)) > 1:
        return item.ask.continuations[item.target].strip()[:MAX_SHOWN]
    if item.reference or not isinstance(item.target, str):
        return (item.reference or json.dumps(item.target, ensure_ascii=False))[:MAX_SHOWN]
    return item.target[:MAX_SHOWN]


def _append(file: IO[str], row: Row) -> None:
    file.write(json.dumps(row, ensure_ascii=True) + "\n")
    file.flush()


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / "settings.json"
    if not path.is_file():
        write_json(path, settings)
        return
    before = read_json(path)
    other = [key for key in {**_SETTINGS, **before, **settings} if before.get(key) != settings.get(key)]
    if other:
        words = ", another ".join(_difference(key, before.get(key), settings.get(key)) for key in other)
        raise PunaError(
            f"{folder} holds results that were measured with another {words}.",
            "Choose another folder with -o, or remove that one.",
        )


_SETTINGS = {
    "weights_sha256": "model (its weights differ)",
    "tokenizer_sha256": "tokenizer",
    "form": "form of asking",
    "dtype": "precision",
    "device": "device",
    "deterministic": "arithmetic",
    "samples": "number of sampled answers",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "puna": "version of Puna",
}
"""The settings in words."""
_VALUES = {("deterministic", True): "without --fast", ("deterministic", False): "with --fast"}


def _difference(key: str, before: Any, now: Any) -> str:
    """One setting in words, with both values where they say something."""
    words = _SETTINGS.get(key, key)
    if key.endswith("_sha256"):
        return words
    then, today = ("not recorded" if value is None else _VALUES.get((key, value), value) for value in (before, now))
    return f"{words} ({then}, now {today})"


def _read(path: Path) -> dict[tuple[str, str], Row]:
    """Read the stored rows. A last line that was cut off is removed; any other damage is an error."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole, _, cut = data.rpartition(b"\n")
    if cut:
        with disk_errors(path), open(path, "r+b") as file:
            file.truncate(len(data) - len(cut))
    rows = {}
    for number, line in enumerate(whole.split(b"\n"), 1):
        try:
            row = json.loads(line) if line else None
            if row is not None:
                rows[row["benchmark"], row["id"]] = row
        except (ValueError, KeyError, TypeError):
            raise PunaError(
                f"{path}, line {number} is damaged.", "Remove the line: its item is then asked again."
            ) from None
    return rows
