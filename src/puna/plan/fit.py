"""Fits the constants of constants.toml to published runs, and only to the rows marked as development rows.

Least squares on log(predicted / measured), every (source, model, precision) family with the same weight, residuals beyond
a few percent counted by their size and not its square (so one odd row cannot bend the rest), and every constant held near
what was expected of it: a generation's near physics, a stack's near its parent stack's. scipy is needed for this alone.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from puna.core.errors import PunaError
from puna.plan.cost import step_time, total_seconds
from puna.plan.jobs import Jobs, take
from puna.plan.memory import memory, rules_columns, total
from puna.plan.runs import Row, jobs_of
from puna.plan.stacks import (
    CHILD_SPREAD,
    COMMON,
    GENERATION,
    STACK,
    STACKS,
    Owners,
    constants_for,
    from_free,
    owners,
    to_free,
    value_of,
)

NOISE = 0.05  # the same recipe on the same GPUs in another container: 3 to 7 % (planner research)


@dataclass(frozen=True)
class Data:
    """Rows made ready: their candidate jobs, what each counts, and who owns which constants."""

    rows: Sequence[Row]
    jobs: Jobs
    row: np.ndarray  # (jobs,) row of each candidate
    reading: np.ndarray  # (jobs,) reading of a row's layout that the candidate belongs to
    weight: np.ndarray  # (jobs,) share of the candidate in its reading
    owners: Owners


def prepare(rows: Sequence[Row]) -> Data:
    """Candidate jobs of `rows`, and how they count.

    Where a source does not say how much is recomputed, as many blocks are as it takes to fit: the two candidates, none
    and all of it, are weighted so. Readings that do not fit even so are left out where others do.
    """
    jobs, row = jobs_of(rows)
    parts = memory(jobs, rules_columns([rows[i].stack for i in row]))
    needed, room = np.asarray(total(parts)), np.asarray(jobs.device.memory_bytes)
    unknown = np.array([rows[i].recompute is None for i in row])
    first = ~unknown | (np.asarray(jobs.layout.recompute) == 0)  # a reading's first candidate
    reading = np.cumsum(first) - 1
    weight = np.ones(len(row))
    without, whole = np.flatnonzero(unknown & first), np.flatnonzero(unknown & ~first)
    span = np.maximum(needed[without] - needed[whole], 1.0)
    share = np.clip((needed[without] - room[without]) / span, 0, 1)
    weight[without], weight[whole] = 1 - share, share
    least = np.minimum.reduceat(needed, np.flatnonzero(first))  # of each reading, with all the recomputation there is
    fits = (least <= room[first])[reading]
    none = np.bincount(row, weights=fits, minlength=len(rows)) == 0
    keep = np.flatnonzero((fits | none[row]) & (weight > 0))
    row, reading = row[keep], np.unique(reading[keep], return_inverse=True)[1]
    jobs = take(jobs, keep)
    stacks, generations = [rows[i].stack for i in row], [rows[i].accelerator.generation for i in row]
    return Data(rows, jobs, row, reading, weight[keep], owners(stacks, generations, jobs.precision))


def predict_seconds(data: Data, values: Mapping[str, float]) -> np.ndarray:
    """Seconds of a step for every row: the fastest reading of its layout."""
    seconds = total_seconds(step_time(data.jobs, constants_for(values, data.owners)))
    readings = np.bincount(data.reading, weights=data.weight * seconds)
    best = np.full(len(data.rows), np.inf)
    np.minimum.at(best, data.row, readings[data.reading])
    return best


def family_weights(rows: Sequence[Row]) -> np.ndarray:
    """One over the size of each row's family, so that all families weigh the same."""
    sizes = Counter(row.family for row in rows)
    return np.array([1 / sizes[row.family] for row in rows])


def parameters(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(owner, quantity) of every constant that these rows can say something about."""
    generations = sorted({row.accelerator.generation for row in rows})
    names = {row.stack for row in rows}
    for name in list(names):
        while (parent := STACKS[name].parent) is not None:
            names.add(parent)
            name = parent
    precisions = {(row.accelerator.generation, row.precision) for row in rows}
    result = [("", quantity) for quantity in COMMON]
    for generation in generations:
        for quantity in GENERATION:
            precision = quantity.removeprefix("matmul_")
            if not quantity.startswith("matmul_") or (generation, precision) in precisions or precision == "bf16":
                result.append((generation, quantity))
    for name in STACKS:
        if name in names:
            own = CHILD_SPREAD if STACKS[name].parent else [quantity for quantity in STACK if quantity != "matmul"]
            result += [(name, quantity) for quantity in own]
    return result


def fit(rows: Sequence[Row], *, data: Data | None = None, start: Mapping[str, float] | None = None) -> dict[str, float]:
    """The constants that explain `rows` best. Deterministic; some seconds for a few hundred rows.

    start: constants to begin from (the expected ones otherwise). Raises PunaError without scipy or without rows.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise PunaError("Fitting needs scipy.", "Install it: pip install 'puna[fit]'.") from None
    rows = [row for row in rows if row.step_seconds is not None]
    if not rows:
        raise PunaError("There is no measured row to fit to.", "Give a runs file whose rows have 'measured'.")
    data = data or prepare(rows)
    measured = np.array([row.step_seconds for row in rows], dtype=float)
    weights = np.sqrt(family_weights(rows))
    names = _felt(data, parameters(rows))
    priors = [_prior(owner, quantity) for owner, quantity in names]

    def values(free: np.ndarray) -> dict[str, float]:
        return {_key(*name): from_free(name[1], x) for name, x in zip(names, free, strict=True)}

    def residuals(free: np.ndarray) -> np.ndarray:
        current = values(free)
        raw = np.log(predict_seconds(data, current) / measured) / NOISE
        robust = np.sign(raw) * np.sqrt(2 * (np.sqrt(1 + raw**2) - 1))  # soft L1
        held = np.empty(len(names))
        for i, ((owner, quantity), (expected, spread)) in enumerate(zip(names, priors, strict=True)):
            parent = STACKS[owner].parent if owner in STACKS else None
            centre = expected if parent is None else value_of(current, parent, quantity)
            held[i] = (free[i] - to_free(quantity, centre)) / spread
        return np.concatenate([weights * robust, held])

    low = np.array([to_free(quantity, _range(owner, quantity)[0]) for owner, quantity in names])
    high = np.array([to_free(quantity, _range(owner, quantity)[1]) for owner, quantity in names])
    first = [to_free(q, (start or {}).get(_key(o, q), e)) for (o, q), (e, _) in zip(names, priors, strict=True)]
    solution = least_squares(residuals, np.clip(first, low + 1e-6, high - 1e-6), bounds=(low, high), ftol=1e-5, max_nfev=60)
    return values(solution.x)


def _felt(data: Data, names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the constants that change the prediction of any row; the others would only stay where they are."""
    expected = {_key(*name): _prior(*name)[0] for name in names}
    before = predict_seconds(data, expected)

    def moved(owner: str, quantity: str) -> dict[str, float]:
        free = to_free(quantity, expected[_key(owner, quantity)])
        return {**expected, _key(owner, quantity): from_free(quantity, free + 0.1)}

    return [name for name in names if not np.array_equal(predict_seconds(data, moved(*name)), before)]


def leave_one_family_out(rows: Sequence[Row]) -> np.ndarray:
    """Seconds of a step for each row, predicted by constants fitted without the row's family."""
    whole = fit(rows)
    result = np.empty(len(rows))
    for family in sorted({row.family for row in rows}):
        others = [row for row in rows if row.family != family]
        own = [i for i, row in enumerate(rows) if row.family == family]
        values = fit(others, start=whole)
        result[own] = predict_seconds(prepare([rows[i] for i in own]), values)
    return result


def _key(owner: str, quantity: str) -> str:
    return f"{owner}.{quantity}" if owner else quantity


def _table(owner: str) -> Mapping[str, tuple[float, float, float, float]]:
    return COMMON if not owner else STACK if owner in STACKS else GENERATION


def _prior(owner: str, quantity: str) -> tuple[float, float]:
    expected, spread, _, _ = _table(owner)[quantity]
    if owner in STACKS and STACKS[owner].parent:
        spread = CHILD_SPREAD[quantity]
    return expected, math.log(spread)


def _range(owner: str, quantity: str) -> tuple[float, float]:
    _, _, low, high = _table(owner)[quantity]
    return low, high
