"""Load the contents of a run directory: for the report, for scripts, for comparing runs.

metrics.jsonl is required; recipe.toml and evaluation.json are read if they exist. A run can be read in any state:
finished, running, killed after one line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core.errors import PunaError
from puna.core.files import read_json
from puna.train.run.metrics import Event, read_metrics, without_abandoned

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """The contents of a run directory, prepared for drawing."""

    name: str
    start: Event  # the last one; a resumed run has several
    first_start: Event
    end: Event | None  # None while the run is unfinished
    train: list[Event]
    evals: list[Event]
    samples: list[Event]
    events: list[Event]  # skips, roll-backs, checkpoints, …
    evaluation: dict[str, Any]
    recipe: str


def load_run(run_dir: Path) -> Run:
    """Read a run directory. Raises PunaError when there is nothing to draw or a file is damaged."""
    events = read_metrics(run_dir)
    if not events:
        raise PunaError(f"{run_dir}/metrics.jsonl is empty.", "Wait for the run's first line.")
    for number, event in enumerate(events, 1):
        if not isinstance(event.get("kind"), str) or not isinstance(event.get("step", 0), int):
            raise PunaError(f"{run_dir}/metrics.jsonl, line {number} has no kind or no step.", "Fix that line.")
    events = without_abandoned(events)
    kinds: dict[str, list[Event]] = {}
    for event in events:
        kinds.setdefault(event["kind"], []).append(event)
    starts, ends = kinds.get("start", []), kinds.get("end", [])
    # A run that was resumed after its end (for more steps, say) is unfinished until it ends again.
    finished = bool(ends) and not any(e["kind"] in ("start", "train") for e in events[events.index(ends[-1]) :])
    recipe = run_dir / "recipe.toml"
    evaluation = run_dir / "evaluation.json"
    return Run(
        name=run_dir.resolve().name,
        start=starts[-1] if starts else {},
        first_start=starts[0] if starts else {},
        end=ends[-1] if finished else None,
        train=kinds.get("train", []),
        evals=kinds.get("eval", []),
        samples=kinds.get("sample", []),
        events=sorted(kinds.get("event", []) + _resumes(events), key=lambda event: int(event.get("step", 0))),
        evaluation=_checked(read_json(evaluation), evaluation) if evaluation.exists() else {},
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.exists() else "",
    )


def summary(run: Run) -> dict[str, Any]:
    """The key figures of a run; None for those it has not logged."""
    last: Event = run.train[-1] if run.train else {}
    end: Event = run.end or {}
    state, _ = status(run)
    return {
        "name": run.name,
        "stage": run.start.get("stage"),
        "status": state,
        "step": end.get("step", last.get("step", 0)),
        "total_steps": _total_steps(run),
        "tokens": end.get("tokens", last.get("tokens", 0)),
        "parameters": run.start.get("parameters"),
        "seconds": end.get("seconds", last.get("elapsed")),
        "tokens_per_second": end.get("tokens_per_second", _median(points(run.train, "tokens_per_second"))),
        "peak_memory_bytes": end.get("peak_memory_bytes", _largest(points(run.train, "memory_bytes"))),
        "loss": last.get("loss"),
        "heldout_bits_per_byte": _heldout(run),
        "mfu": {key: _median(points(run.train, "mfu", key)) for key in ("full", "causal")},
        "skips": sum(event.get("event") == "skip" for event in run.events),
        "rollbacks": sum(event.get("event") == "rollback" for event in run.events),
    }


def status(run: Run) -> tuple[str, bool]:
    """The status of the run in a few words, and whether it is a warning."""
    if run.end:
        return "finished", False
    last = next((e.get("event") for e in reversed(run.events) if e.get("event") != "checkpoint"), None)
    newest = run.train[-1]["step"] if run.train else 0
    if last in ("interrupted", "stopped") and run.events[-1]["step"] >= newest:
        return str(last), True
    return "unfinished", True


def _total_steps(run: Run) -> int | None:
    """Steps of the whole run, as last planned."""
    begun = run.start.get("step", 0)
    changed = [event["total_steps"] for event in run.events if "total_steps" in event and event["step"] >= begun]
    total: int | None = changed[-1] if changed else run.start.get("total_steps")
    return total


def _heldout(run: Run) -> float | None:
    """The result of the last full evaluation, or of the last one during the run."""
    for row in run.evaluation.get("bits_per_byte", [])[:1]:
        if row["value"] is not None:
            return float(row["value"])
    measured = points(run.evals, "bits_per_byte")
    return measured[-1][1] if measured else None


def _resumes(events: Sequence[Event]) -> list[Event]:
    """Resumed starts as events, where the run did not write one itself."""
    known = {event["step"] for event in events if event.get("event") == "resume"}
    resumed = [e["resumed_from"] for e in events if e["kind"] == "start" and e.get("resumed_from") is not None]
    return [
        {"kind": "event", "step": step, "event": "resume", "detail": f"resumed from step {step:,}"}
        for step in resumed
        if step not in known
    ]


def points(events: Sequence[Event], key: str, inner: str | None = None) -> Points:
    """(step, value) of every event that has a finite number under key."""
    out = []
    for event in events:
        value = event.get(key)
        if inner is not None:
            value = value.get(inner) if isinstance(value, dict) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            out.append((float(event.get("step", 0)), float(value)))
    return out


def _median(pairs: Points) -> float | None:
    values = sorted(y for _, y in pairs)
    return values[len(values) // 2] if values else None


def _largest(pairs: Points) -> float | None:
    return max((y for _, y in pairs), default=None)


def _checked(value: Any, path: Path) -> dict[str, Any]:
    """Check that every row of evaluation.json is complete.

    Raises PunaError naming the first that is not.
    """
    if not isinstance(value, dict):
        raise PunaError(f"{path} is not an evaluation: expected an object.", "Create it again with puna demo.")
    for part, keys in (("bits_per_byte", ("name", "value")), ("completions", ("step", "parsed", "sampled"))):
        for row in value.get(part, []):
            if not isinstance(row, dict) or any(key not in row for key in keys):
                raise PunaError(f"{path}: a row of {part} lacks one of {', '.join(keys)}.", "Create it again.")
    return value
