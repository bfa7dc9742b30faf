"""Layouts with some parts fixed: the search among the rest, and a useful error when none is left.

A constraint is a part of a layout (`--tp 8`, `--recompute full`) that the search must keep. Where no legal layout has
it, the error names the conflicting part and its legal values, or batches that divide.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from puna.core.errors import PunaError, nearest
from puna.model.layout import RECOMPUTE, SHARDING
from puna.plan.equations.columns import take
from puna.plan.equations.constants import STACKS
from puna.plan.layouts.defaults import batches_near
from puna.plan.layouts.predict import Choice, Question, choose, choose_among
from puna.plan.layouts.search import SearchResult, legal_layouts, search

# Parts of a layout that may be fixed, and their names in messages.
CONSTRAINABLE = {
    "tp": "tp",
    "cp": "cp",
    "pp": "pp",
    "vp": "vp",
    "dp": "dp",
    "ep": "ep",
    "micro_batch": "micro-batch",
    "sharding": "sharding",
    "recompute": "recompute",
}
_KINDS = {"sharding": SHARDING, "recompute": RECOMPUTE}


def read_constraints(given: Mapping[str, int | str | None]) -> dict[str, int]:
    """Convert constraints from options (None: not given) to columns of the search, with names as indices.

    Raises PunaError for an unknown kind and a size below 1.
    """
    constraints = {}
    for name in CONSTRAINABLE:
        value = given.get(name)
        if value is None:
            continue
        option = f"--{name.replace('_', '-')}"
        kinds = _KINDS.get(name)
        if kinds:
            if value not in kinds:
                raise PunaError(f"{option} {value} is not known.", nearest(str(value), kinds))
            constraints[name] = kinds.index(str(value))
        elif int(value) < 1:
            raise PunaError(f"{option} {value} is not possible.", "Give a whole number of at least 1.")
        else:
            constraints[name] = int(value)
    return constraints


def choose_constrained(question: Question, constraints: Mapping[str, int], *, runners_up: int = 4) -> Choice:
    """Choose the best layout that keeps `constraints` (columns of `LayoutColumns` and their values).

    Raises PunaError where none is left, naming the conflicting part and its legal values.
    """
    try:
        if not constraints:
            return choose(question, runners_up=runners_up)
        found = search(question.workload())
    except PunaError as error:
        raise _with_batches(question, error) from None
    layouts = found.jobs.layout
    keep = np.all([np.asarray(getattr(layouts, name)) == value for name, value in constraints.items()], axis=0)
    if not keep.any():
        raise _no_such_layout(question, found, constraints)
    rows = np.flatnonzero(keep)
    left = SearchResult(
        replace(found.jobs, layout=take(layouts, rows)),
        found.step_seconds[rows],
        found.memory_bytes[rows],
        found.fits[rows],
    )
    return choose_among(question, left, runners_up=runners_up)


def constraint_text(name: str, value: int) -> str:
    """A constraint in words: "sharding zero3"."""
    codes = _KINDS.get(name)
    return f"{CONSTRAINABLE[name]} {codes[value] if codes else value}"


# -- errors ----------------------------------------------------------------------------------------------------------


def _with_batches(question: Question, error: PunaError) -> PunaError:
    """The search's error, with batches that have a layout where the batch is the problem."""
    if not str(error).startswith("No layout of"):
        return error
    found = []
    for batch in batches_near(question.batch, question.accelerators):
        try:
            legal_layouts(replace(question, batch=batch).workload())
        except PunaError:
            continue
        found.append(f"{batch:,}")
        if len(found) == 2:
            break
    message = (
        f"No layout of {question.accelerators:,} accelerators on stack {question.stack} can share a batch of "
        f"{question.batch:,} sequences of {question.seq_len:,} tokens."
    )
    if found:
        return PunaError(message, f"A --batch of {' or '.join(found)} can be shared.")
    fewer = 2 ** int(math.log2(question.accelerators))
    while fewer > 1:
        try:
            legal_layouts(replace(question, accelerators=fewer).workload())
        except PunaError:
            fewer //= 2
            continue
        kind = question.accelerator.name
        return PunaError(message, f"--fleet {fewer}x{kind} can; more accelerators need a larger --batch.")
    return PunaError(message, "Take fewer accelerators, or a larger --batch.")


def _no_such_layout(question: Question, found: SearchResult, constraints: Mapping[str, int]) -> PunaError:
    """The error that names the conflicting constraint and its legal values."""
    count, batch = question.accelerators, question.batch
    parallel = {name: constraints.get(name) for name in ("tp", "cp", "pp", "dp")}
    if not STACKS[question.stack].model_parallel:
        parallel |= {name: parallel[name] or 1 for name in ("tp", "cp", "pp")}
    sizes = [size for size in parallel.values() if size]
    if count % math.prod(sizes) or (len(sizes) == 4 and math.prod(sizes) != count):
        told = " x ".join(f"{name} {size}" for name, size in parallel.items() if size)
        return PunaError(f"{told} does not divide {count:,} accelerators.", "Change the layout or the fleet.")
    if parallel["dp"] or len(sizes) == 3:  # the number of data-parallel ranks is settled
        ranks = parallel["dp"] or count // math.prod(sizes)
        each = ranks * constraints.get("micro_batch", 1)
        if batch % each:
            size = constraints.get("micro_batch")
            at = f"dp {ranks}" + (f" x micro-batch {size}" if size else "")
            below, above = max(each, batch // each * each), -(-batch // each) * each
            hint = f"Make it {below:,}" + (f" or {above:,}" if above != below else "") + ", or change the layout."
            return PunaError(f"A batch of {batch:,} sequences is not divisible by {at}.", hint)
    layouts = found.jobs.layout
    for name, value in constraints.items():
        others = [np.asarray(getattr(layouts, key)) == fixed for key, fixed in constraints.items() if key != name]
        rows = np.all(others, axis=0) if others else np.ones(len(found), dtype=bool)
        legal = sorted({int(size) for size in np.asarray(getattr(layouts, name))[rows]})
        if legal:
            rest = ", ".join(constraint_text(key, fixed) for key, fixed in constraints.items() if key != name)
            could = ", ".join(constraint_text(name, size).removeprefix(f"{CONSTRAINABLE[name]} ") for size in legal)
            return PunaError(
                f"No legal layout of stack {question.stack} has {constraint_text(name, value)}"
                + (f" with {rest}." if rest else "."),
                f"{CONSTRAINABLE[name]} could be {could}.",
            )
    told = ", ".join(constraint_text(name, value) for name, value in constraints.items())
    return PunaError(f"No legal layout of stack {question.stack} has {told}.", "Leave some of it to the search.")
