"""Layouts of which a person fixes some parts: the search among what is left, and what to say when nothing is.

A pin is a part of a layout (`--tp 8`, `--recompute full`) that the search must keep. Where no legal layout has it the
error names the part that stands in the way and what it could be, or the batches that could be shared.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from puna.core.errors import PunaError
from puna.plan.defaults import batches_near
from puna.plan.jobs import RECOMPUTE, SHARDING, take
from puna.plan.memory import rules_for
from puna.plan.predict import Choice, Question, choose, predict
from puna.plan.search import Found, distinct, layout_at, legal_layouts, search
from puna.plan.stacks import STACKS, Values, load_constants

# Parts of a layout that a person may fix, and how a message calls them.
PINS = {
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


def pick(question: Question, pinned: Mapping[str, int], *, values: Values | None = None, runners_up: int = 4) -> Choice:
    """`predict.choose` among the layouts whose parts are as `pinned` (names of `jobs.Layouts`, values as codes there).

    Raises PunaError where none is left, naming the part that stands in the way and the values that would be legal.
    """
    values = load_constants() if values is None else values
    try:
        if not pinned:
            return choose(question, values=values, runners_up=runners_up)
        found = search(question.workload(), values, rules_for(question.stack))
    except PunaError as error:
        raise _with_batches(question, error) from None
    layouts = found.jobs.layout
    keep = np.all([np.asarray(getattr(layouts, name)) == value for name, value in pinned.items()], axis=0)
    if not keep.any():
        raise _no_such_layout(question, found, pinned)
    rows = np.flatnonzero(keep)
    left = Found(
        replace(found.jobs, layout=take(layouts, rows)),
        found.step_seconds[rows],
        found.memory_bytes[rows],
        found.fits[rows],
    )
    chosen = distinct(left, 1 + runners_up) or [int(np.argmin(left.memory_bytes))]
    best, *others = (predict(question, layout_at(left.jobs.layout, row), values=values) for row in chosen)
    return Choice(best, tuple(others), left)


def spoken_pin(name: str, value: int) -> str:
    """A pinned part as people say it: "sharding zero3"."""
    codes = {"sharding": SHARDING, "recompute": RECOMPUTE}.get(name)
    return f"{PINS[name]} {codes[value] if codes else value}"


# -- what cannot be --------------------------------------------------------------------------------------------------


def _with_batches(question: Question, error: PunaError) -> PunaError:
    """The search's error with batches that do have layouts, where it was the batch that had none."""
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


def _no_such_layout(question: Question, found: Found, pinned: Mapping[str, int]) -> PunaError:
    """Which of the pinned parts stands in the way, and what it could be."""
    count, batch = question.accelerators, question.batch
    parallel = {name: pinned.get(name) for name in ("tp", "cp", "pp", "dp")}
    if not STACKS[question.stack].model_parallel:
        parallel |= {name: parallel[name] or 1 for name in ("tp", "cp", "pp")}
    sizes = [size for size in parallel.values() if size]
    if count % math.prod(sizes) or (len(sizes) == 4 and math.prod(sizes) != count):
        told = " x ".join(f"{name} {size}" for name, size in parallel.items() if size)
        return PunaError(f"{told} does not divide {count:,} accelerators.", "Change the layout or the fleet.")
    if parallel["dp"] or len(sizes) == 3:  # the number of data-parallel ranks is settled
        ranks = parallel["dp"] or count // math.prod(sizes)
        each = ranks * pinned.get("micro_batch", 1)
        if batch % each:
            at = f"dp {ranks}" + (f" x micro-batch {pinned['micro_batch']}" if "micro_batch" in pinned else "")
            below, above = max(each, batch // each * each), -(-batch // each) * each
            hint = f"Make it {below:,}" + (f" or {above:,}" if above != below else "") + ", or change the layout."
            return PunaError(f"A batch of {batch:,} sequences is not divisible by {at}.", hint)
    layouts = found.jobs.layout
    for name, value in pinned.items():
        others = [np.asarray(getattr(layouts, key)) == fixed for key, fixed in pinned.items() if key != name]
        rows = np.all(others, axis=0) if others else np.ones(len(found), dtype=bool)
        legal = sorted({int(size) for size in np.asarray(getattr(layouts, name))[rows]})
        if legal:
            rest = ", ".join(spoken_pin(key, fixed) for key, fixed in pinned.items() if key != name)
            could = ", ".join(spoken_pin(name, size).removeprefix(f"{PINS[name]} ") for size in legal)
            return PunaError(
                f"No legal layout of stack {question.stack} has {spoken_pin(name, value)}"
                + (f" with {rest}." if rest else "."),
                f"{PINS[name]} could be {could}.",
            )
    told = ", ".join(spoken_pin(name, value) for name, value in pinned.items())
    return PunaError(f"No legal layout of stack {question.stack} has {told}.", "Leave some of it to the search.")
