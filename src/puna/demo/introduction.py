"""The introduction on the page of the demo's model.

It has one line about what the model can do, and starter problems. Starters are held-out problems that the tuned model
solves (verified by the task's check), each with what the model wrote before tuning. They are stored under
`introduction` in the model directory's puna.json, from where the server's model card and the page read them; any model
directory may have one.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puna.core.files import read_json, write_json

ASKED = 24
"""Held-out problems of each ability that are tried as starters."""
STARTERS = 2
"""Starters per ability, at most."""
LONGEST = 400
"""Characters of an answer to show."""
VERBS = {
    "code.synthesis": "write small Python functions",
    "code.tracing": "predict what a small program prints",
    "rewriting.list": "rewrite short lists of numbers",
    "planning.grid": "find the way through a small grid",
}


def introduce(model: Path, before: Path, abilities: Sequence[dict[str, Any]], *, max_tokens: int) -> dict[str, Any]:
    """Write the introduction of `model` into its puna.json, and return it.

    model, before: model directories after and before tuning. abilities: rows of `tune_demo`.
    """
    each = [_starters(model, before, row, max_tokens=max_tokens) for row in abilities]
    # One of each ability first, because a phone shows only three.
    starters = [one for several in itertools.zip_longest(*each) for one in several if one]
    found = {"about": about(abilities), "starters": starters}
    path = model / "puna.json"
    write_json(path, {**read_json(path), "introduction": found})
    return found


def about(abilities: Sequence[dict[str, Any]]) -> str:
    """Describe in one line what the model can and cannot do.

    Includes the shares of held-out problems that it solves greedily.
    """
    shares = {row["task"]: next(s["greedy"] for s in row["stages"] if s["stage"] == row["kept"]) for row in abilities}
    able = [f"{VERBS.get(task, task)} ({share:.0%} right)" for task, share in shares.items()]
    listed = f"{', '.join(able[:-1])} and {able[-1]}" if len(able) > 1 else "".join(able)
    return f"It can {listed}. It was trained only on Python, and cannot talk about anything else."


def _starters(model: Path, before: Path, row: dict[str, Any], *, max_tokens: int) -> list[dict[str, str]]:
    """Problems that the model solves now, starting with those that it did not solve before."""
    from puna.engine.generate import load_engine
    from puna.tasks.heldout import heldout_problems
    from puna.tune.measure import answer

    problems = heldout_problems(row["task"], row["level"], ASKED)
    answers = []
    for directory in (model, before):
        engine = load_engine(directory, fast=True)
        answers.append(answer(engine, problems, max_tokens=max_tokens))
        engine.close()
    pairs = [(now, then) for now, then in zip(*answers, strict=True) if now.verdict.passed]
    pairs.sort(key=lambda pair: pair[1].verdict.passed)
    return [
        {"prompt": now.problem.prompt, "before": then.text.strip()[:LONGEST], "after": now.text.strip()[:LONGEST]}
        for now, then in pairs[:STARTERS]
    ]
