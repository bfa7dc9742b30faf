"""Fit the constants of constants.toml to published runs, using development rows only.

Least squares on log(predicted / measured), every (source, model, precision) family with the same weight, residuals
beyond a few percent counted by their size and not its square (so one odd row cannot bend the rest), and every
constant held near what was expected of it: a generation's near physics, a stack's near its parent stack's. scipy is
needed for this alone.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puna.core.console import progress
from puna.core.errors import PunaError
from puna.core.files import write_text
from puna.plan.equations.columns import JobColumns, take
from puna.plan.equations.constants import (
    CHILD_SPREAD,
    COMMON,
    GENERATION,
    STACK,
    STACKS,
    Owners,
    constants_for,
    from_free,
    kind_of,
    owners,
    to_free,
    value_of,
)
from puna.plan.equations.cost import step_time, total_seconds
from puna.plan.equations.memory import memory, rules_columns, total
from puna.plan.evidence.published_runs import PublishedRun, jobs_of

NOISE = 0.04  # the same recipe on the same GPUs in another container differs by 3 to 7 %


@dataclass(frozen=True)
class FitData:
    """Prepared rows: candidate jobs, their weights, and the owners of their constants."""

    rows: Sequence[PublishedRun]
    jobs: JobColumns
    row: np.ndarray  # (jobs,) row of each candidate
    reading: np.ndarray  # (jobs,) reading of a row's layout that the candidate belongs to
    weight: np.ndarray  # (jobs,) share of the candidate in its reading
    owners: Owners


def prepare(rows: Sequence[PublishedRun]) -> FitData:
    """Candidate jobs of `rows` and their weights.

    Where a source does not print its recomputation, as many blocks are recomputed as needed to fit: the two candidates,
    none and full, are weighted accordingly. Readings that still do not fit are dropped where others do.
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
    least = np.minimum.reduceat(needed, np.flatnonzero(first))  # of each reading, with full recomputation
    fits = (least <= room[first])[reading]
    none = np.bincount(row, weights=fits, minlength=len(rows)) == 0
    keep = np.flatnonzero((fits | none[row]) & (weight > 0))
    row, reading = row[keep], np.unique(reading[keep], return_inverse=True)[1]
    jobs = take(jobs, keep)
    stacks, generations = [rows[i].stack for i in row], [rows[i].accelerator.generation for i in row]
    return FitData(rows, jobs, row, reading, weight[keep], owners(stacks, generations, jobs.precision))


def predict_seconds(data: FitData, values: Mapping[str, float]) -> np.ndarray:
    """Seconds of a step for every row: the fastest reading of its layout."""
    seconds = total_seconds(step_time(data.jobs, constants_for(values, data.owners)))
    readings = np.bincount(data.reading, weights=data.weight * seconds)
    best = np.full(len(data.rows), np.inf)
    np.minimum.at(best, data.row, readings[data.reading])
    return best


def family_weights(rows: Sequence[PublishedRun]) -> np.ndarray:
    """One over the size of each row's family, so that all families have equal weight."""
    sizes = Counter(row.family for row in rows)
    return np.array([1 / sizes[row.family] for row in rows])


def parameters(rows: Sequence[PublishedRun]) -> list[tuple[str, str]]:
    """(owner, quantity) of every constant that these rows can inform."""
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


def fit(
    rows: Sequence[PublishedRun], *, data: FitData | None = None, start: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Fit the constants to `rows`. Deterministic; takes seconds for a few hundred rows.

    start: initial constants (default: the expected ones). Raises PunaError without scipy or without rows.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise PunaError("Fitting needs scipy.", "Install it: pip install scipy.") from None
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
    solution = least_squares(
        residuals, np.clip(first, low + 1e-6, high - 1e-6), bounds=(low, high), ftol=1e-5, max_nfev=60
    )
    return values(solution.x)


def _felt(data: FitData, names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The constants that change the prediction of any row; others keep their expected value."""
    expected = {_key(*name): _prior(*name)[0] for name in names}
    before = predict_seconds(data, expected)

    def moved(owner: str, quantity: str) -> dict[str, float]:
        free = to_free(quantity, expected[_key(owner, quantity)])
        return {**expected, _key(owner, quantity): from_free(quantity, free + 0.1)}

    return [name for name in names if not np.array_equal(predict_seconds(data, moved(*name)), before)]


@dataclass(frozen=True)
class CrossValidation:
    """Predictions of each row without its family, and the ranges of the constants over the refits."""

    rows: Sequence[PublishedRun]
    seconds: np.ndarray  # (rows,)
    lowest: dict[str, float]  # of each constant over the refits
    highest: dict[str, float]


def cross_validate(rows: Sequence[PublishedRun], *, processes: int = 1) -> CrossValidation:
    """Leave one family out at a time: refit on the others, predict its rows.

    Takes a minute or two for seventy families. processes: concurrent refits; the result does not depend on it. Shows
    its progress.
    """
    rows = [row for row in rows if row.step_seconds is not None]
    whole = fit(rows)
    families = sorted({row.family for row in rows})
    seconds, every = np.empty(len(rows)), [whole]
    with progress(transient=True) as bar, ProcessPoolExecutor(processes) as pool:
        task = bar.add_task("refitting without each family", total=len(families))
        for own, predicted, values in pool.map(_without, *zip(*((rows, one, whole) for one in families), strict=True)):
            seconds[own] = predicted
            every.append(values)
            bar.advance(task)
    names = {name: [values[name] for values in every if name in values] for name in whole}
    lowest = {name: min(values) for name, values in names.items()}
    highest = {name: max(values) for name, values in names.items()}
    return CrossValidation(rows, seconds, lowest, highest)


def _without(
    rows: Sequence[PublishedRun], family: tuple[str, str, str], whole: Mapping[str, float]
) -> tuple[list[int], np.ndarray, dict[str, float]]:
    """Rows of `family`, their step seconds predicted without it, and the constants that did so."""
    own = [i for i, row in enumerate(rows) if row.family == family]
    values = fit([row for row in rows if row.family != family], start=whole)
    return own, predict_seconds(prepare([rows[i] for i in own]), values), values


def interval_widths(check: CrossValidation, coverage: float = 0.8) -> dict[str, float]:
    """Per kind of job the width w of the interval [t / w, t·w] that covers `coverage` of left-out families."""
    measured = np.array([row.step_seconds for row in check.rows], dtype=float)
    off = np.abs(np.log(check.seconds / measured))
    weights = family_weights(check.rows)
    kinds = np.array([kind_of(row.accelerator.generation, mixture=bool(row.shape.experts)) for row in check.rows])
    return {
        str(kind): math.exp(_conformal(off[kinds == kind], weights[kinds == kind], coverage))
        for kind in sorted(set(kinds))
    }


def _conformal(off: np.ndarray, weights: np.ndarray, coverage: float) -> float:
    """The quantile for `coverage` of new families: with n families that of (n + 1) / n as many.

    Split conformal prediction, Lei 2018, arXiv 1604.04173.
    """
    families = float(np.sum(weights))
    return weighted_quantile(off, weights, min(1.0, coverage * (families + 1) / families))


def weighted_quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The smallest value that `share` of the weight does not exceed."""
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order]) / np.sum(weights)
    return float(values[order][min(len(order) - 1, int(np.searchsorted(cumulated, share - 1e-12)))])


def write_constants(path: Path, check: CrossValidation, values: Mapping[str, float], source: str) -> None:
    """Write constants.toml: each value with its range over the refits, and the widths of the intervals."""
    families = len({row.family for row in check.rows})
    lines = [
        f"# Fitted by bench/plan_fit.py to {len(check.rows)} rows of {source}, {families} families.",
        "# low and high: over refits that leave one family out. Meanings: src/puna/plan/equations/constants.py.",
        "",
        "[interval] # predictions of families left out were within [t / width, t * width] in 80 % of cases",
        *(f"{kind} = {width:.3f}" for kind, width in interval_widths(check).items()),
    ]
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        owner, _, quantity = name.rpartition(".")
        section = "common" if not owner else ("stack" if owner in STACKS else "generation") + f'."{owner}"'
        low, high = check.lowest[name], check.highest[name]
        groups.setdefault(section, []).append(
            f"{quantity} = {{ value = {value:.5g}, low = {low:.3g}, high = {high:.3g} }}"
        )
    for section in sorted(groups):
        lines += ["", f"[{section}]", *groups[section]]
    write_text(path, "\n".join(lines) + "\n")


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
