"""Scores a file of answers: JSON lines, each with a problem or its seed, and the answer.

    {"task": "planning.grid", "level": 3, "seed": 7, "answer": "answer: UULD"}
    {"problem": {…as `puna tasks sample --json` prints it…}, "answer": "…"}

A problem in a row must be the one that this version makes from its seed: a file cannot bring its own right answer, and
an old file is rejected instead of being scored by different rules.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from puna.core.errors import PunaError
from puna.core.statistics import wilson
from puna.tasks.catalogue import baseline, find
from puna.tasks.contract import Problem, Verdict, canonical

MAX_COMPLAINTS = 20
"""Bad rows that are named; the rest is only counted."""


class ScoredRow(NamedTuple):
    """A problem and the verdict on its answer."""

    problem: Problem
    verdict: Verdict


class LevelScores(NamedTuple):
    """The scores of one task and level. solved: the share solved, with its 95 % interval `low` to `high`."""

    task: str
    level: int
    problems: int
    solved: float
    low: float
    high: float
    score: float
    constant: float


def read_rows(path: Path) -> list[tuple[Problem, str]]:
    """Read the problems and answers of a file. Raises PunaError naming every bad row, one sentence each."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise PunaError(f"{path} cannot be read ({reason}).", "Give a file of JSON lines.") from None
    rows, complaints = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(line))
        except PunaError as error:
            complaints.append(f"{path}, line {number}: {error}")
    if complaints:
        more = len(complaints) - MAX_COMPLAINTS
        rest = [f"{more:,} more lines are bad."] if more > 0 else []
        raise PunaError("\n".join([*complaints[:MAX_COMPLAINTS], *rest]))
    if not rows:
        raise PunaError(f"{path} has no rows.", 'A row is {"task": …, "level": …, "seed": …, "answer": …}.')
    return rows


def _row(line: str) -> tuple[Problem, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PunaError(f"This is not JSON ({str(error)[:80]}).") from None
    if not isinstance(row, dict):
        raise PunaError("This is not a JSON object.")
    if not isinstance(row.get("answer"), str):
        raise PunaError("'answer' is missing or is not a text.")
    named = row.get("problem", row)
    if not isinstance(named, dict) or not isinstance(named.get("task"), str):
        raise PunaError("'task' is missing or is not a name.")
    missing = [key for key in ("level", "seed") if key not in named]
    if missing:
        raise PunaError(f"'{missing[0]}' is missing.")
    problem = find(named["task"]).sample(named["seed"], named["level"])
    if "problem" in row and not _equal(named, problem):
        raise PunaError("The problem is not the one that this version makes from its task, level and seed.")
    return problem, row["answer"]


def _equal(plain: dict[str, Any], problem: Problem) -> bool:
    return json.dumps(plain, sort_keys=True, ensure_ascii=True, separators=(",", ":")) == canonical(problem)


def score_rows(rows: Iterable[tuple[Problem, str]]) -> list[ScoredRow]:
    """Check every answer. Raises PunaError if programs must be checked and there is no sandbox."""
    return [ScoredRow(problem, find(problem.task).check(problem, answer)) for problem, answer in rows]


def table(scored: Iterable[ScoredRow], *, constants: int = 100) -> list[LevelScores]:
    """Sum up by task and level. constants: problems on which the best constant answer is measured."""
    groups: dict[tuple[str, int], list[Verdict]] = {}
    for problem, verdict in scored:
        groups.setdefault((problem.task, problem.level), []).append(verdict)
    lines = []
    for (task, level), verdicts in sorted(groups.items()):
        count, solved = len(verdicts), sum(verdict.passed for verdict in verdicts)
        mean = sum(verdict.score for verdict in verdicts) / count
        constant = baseline(task, level, constants).score
        lines.append(LevelScores(task, level, count, solved / count, *wilson(solved, count), mean, constant))
    return lines
