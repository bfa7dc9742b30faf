"""Validate the planner: errors of its predictions for published runs.

A family is one (source, model, precision); its rows are near copies, so every family counts once. `predict_rows`
predicts a whole runs file; `validate` compares the predictions with measurements and with the simplest baseline, a
constant MFU per accelerator and precision that learns from the same rows.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from puna.core.errors import PunaError
from puna.model.layout import RECOMPUTE
from puna.plan.equations.constants import Values, constants_for, interval, load_constants
from puna.plan.equations.cost import PARTS, step_time, total_seconds
from puna.plan.equations.memory import memory, reserved, rules_columns
from puna.plan.evidence.fit import FitData, family_weights, predict_seconds, prepare, weighted_quantile
from puna.plan.evidence.published_runs import PublishedRun, read_runs

GIB = 2**30
# Groups of layouts of one model on the same accelerators that are ranked: at least this many, with this spread.
RANKED_LAYOUTS, RANKED_SPREAD = 8, 2.0


@dataclass(frozen=True)
class ErrorSummary:
    """Errors of a set of rows with equal weight per family; shares, not percent."""

    name: str
    rows: int
    families: int
    median: float
    mean: float
    p90: float
    coverage: float  # share of rows inside their 80 % interval
    rival_median: float  # of the constant MFU, learned from the development rows without the row's family
    rival_p90: float


@dataclass(frozen=True)
class Ranking:
    """How well layouts of one model are ordered, and the cost of choosing the predicted best."""

    name: str
    layouts: int
    spread: float  # slowest over fastest, measured
    spearman: float
    regret: float  # measured time of the predicted best over the measured best, less 1


@dataclass(frozen=True)
class Validation:
    """A validation. errors: predicted over measured less 1, one per measured row."""

    path: Path
    scores: tuple[ErrorSummary, ...]
    rankings: tuple[Ranking, ...]
    rows: tuple[PublishedRun, ...]
    seconds: np.ndarray
    errors: np.ndarray
    memory: tuple[tuple[str, float, float], ...]  # (row, measured GiB, predicted GiB)

    def families(self) -> list[tuple[tuple[str, str, str], int, float, float]]:
        """(family, rows, mean error, mean absolute error), worst first."""
        groups: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for row, error in zip(self.rows, self.errors, strict=True):
            groups[row.family].append(float(error))
        table = [(f, len(e), float(np.mean(e)), float(np.mean(np.abs(e)))) for f, e in groups.items()]
        return sorted(table, key=lambda line: -line[3])


def predict_rows(path: Path, *, values: Values | None = None) -> list[dict[str, Any]]:
    """Predict every row of a runs file, as plain values with units in their names.

    step_s with the ends of its 80 % interval, tokens/s, TFLOP/s and MFU in both conventions of attention, peak memory,
    the layout as it was read (what the source does not print is chosen, see `published_runs`), seconds by part.
    """
    rows = read_runs(path)
    values = load_constants() if values is None else values
    data = prepare(rows)
    seconds = predict_seconds(data, values)
    parts = step_time(data.jobs, constants_for(values, data.owners))
    needed = reserved(memory(data.jobs, rules_columns([rows[i].stack for i in data.row])))
    chosen = _chosen(data, np.asarray(total_seconds(parts)))
    return [
        _told(row, seconds[i], chosen[i], data, {name: parts[name] for name in PARTS}, needed)
        for i, row in enumerate(rows)
    ]


def _chosen(data: FitData, seconds: np.ndarray) -> list[np.ndarray]:
    """Candidates of each row's fastest reading: one, or none and full recomputation."""
    readings = np.bincount(data.reading, weights=data.weight * seconds)
    best: dict[int, int] = {}
    for candidate, (row, reading) in enumerate(zip(data.row, data.reading, strict=True)):
        if row not in best or readings[reading] < readings[data.reading[best[row]]]:
            best[int(row)] = candidate
    return [np.flatnonzero(data.reading == data.reading[best[row]]) for row in range(len(data.rows))]


def _told(
    row: PublishedRun, seconds: float, own: np.ndarray, data: FitData, parts: dict[str, np.ndarray], needed: Any
) -> dict[str, Any]:
    low, high = interval(row.accelerator.generation, mixture=bool(row.shape.experts))
    layout, first, weight = data.jobs.layout, own[0], data.weight[own]
    tokens = row.batch * row.seq_len
    flops = {
        name: float(row.shape.flops_per_token(row.seq_len, causal=name == "causal")) for name in ("causal", "full")
    }
    rate = tokens / seconds / row.gpus
    peak = data.jobs.peak_flops()[first]
    recomputed = {RECOMPUTE[int(layout.recompute[i])]: round(float(data.weight[i]), 3) for i in own}
    told: dict[str, Any] = {
        "id": row.id,
        "src": row.source,
        "model": row.model,
        "gpu": row.accelerator.name,
        "gpus": row.gpus,
        "precision": row.values["precision"],
        "split": row.split,
        "stack": row.stack,
        "step_s": float(seconds),
        "step_s_low": float(seconds * low),
        "step_s_high": float(seconds * high),
        "tok_s_gpu": float(rate),
        "model_tflops_gpu": float(rate * flops["full" if row.full_square else "causal"] / 1e12),
        "model_tflops_gpu_causal": float(rate * flops["causal"] / 1e12),
        "model_tflops_gpu_full": float(rate * flops["full"] / 1e12),
        "mfu_causal_pct": float(100 * rate * flops["causal"] / peak),
        "mfu_full_pct": float(100 * rate * flops["full"] / peak),
        "peak_tflops": float(peak / 1e12),
        "mem_gib": float(np.sum(weight * np.asarray(needed)[own]) / GIB),
        "layout": {
            name: int(np.asarray(getattr(layout, name))[first])
            for name in ("tp", "cp", "pp", "vp", "dp", "ep", "micro_batch")
        }
        | {"recompute": recomputed},
        "parts_s": {name: float(np.sum(weight * values[own])) for name, values in parts.items()},
    }
    if row.step_seconds is not None:
        told |= {"measured_step_s": row.step_seconds, "error_pct": 100 * (seconds / row.step_seconds - 1)}
    return told


def validate(path: Path, *, values: Values | None = None, seconds: np.ndarray | None = None) -> Validation:
    """Score predictions for the measured rows of a runs file.

    seconds: predictions to score instead of the shipped constants' (those of a cross-validation), one for each measured
    row. Raises PunaError when nothing was measured.
    """
    rows = [row for row in read_runs(path) if row.step_seconds is not None]
    if seconds is not None:
        rows = [row for row in rows if row.split == "dev"]
    if not rows:
        raise PunaError(f"{path}: no row has a measured time.", "Give 'measured' with step_s, tok_s_gpu or TFLOP/s.")
    values = load_constants() if values is None else values
    predicted = predict_seconds(prepare(rows), values) if seconds is None else seconds
    measured = np.array([row.step_seconds for row in rows], dtype=float)
    errors = predicted / measured - 1
    rival = constant_mfu(rows) / measured - 1
    inside = np.array([_covers(row, time) for row, time in zip(rows, predicted, strict=True)])
    dense = np.array([not row.shape.experts for row in rows])
    known = np.array([row.accelerator.generation in ("ampere", "hopper") for row in rows])
    dev = np.array([row.split == "dev" for row in rows])
    sets = [
        ("dense, A100 and H100, development rows", dense & known & dev),
        ("mixtures and newer accelerators, development rows", ~(dense & known) & dev),
        ("all development rows", dev),
        ("dense, A100 and H100, rows never fitted", dense & known & ~dev),
        ("mixtures and newer accelerators, rows never fitted", ~(dense & known) & ~dev),
        ("all rows never fitted", ~dev),
    ]
    scores = [_score(name, rows, mask, errors, rival, inside) for name, mask in sets if mask.any()]
    return Validation(
        path, tuple(scores), tuple(rankings(rows, predicted)), tuple(rows), predicted, errors, _memory(rows)
    )


def _covers(row: PublishedRun, predicted: float) -> bool:
    low, high = interval(row.accelerator.generation, mixture=bool(row.shape.experts))
    return low <= (row.step_seconds or math.nan) / predicted <= high


def _score(
    name: str, rows: Sequence[PublishedRun], mask: np.ndarray, errors: np.ndarray, rival: np.ndarray, inside: np.ndarray
) -> ErrorSummary:
    chosen = [row for row, take in zip(rows, mask, strict=True) if take]
    weights, off, other = family_weights(chosen), np.abs(errors[mask]), np.abs(rival[mask])
    return ErrorSummary(
        name=name,
        rows=len(chosen),
        families=len({row.family for row in chosen}),
        median=weighted_quantile(off, weights, 0.5),
        mean=float(np.average(off, weights=weights)),
        p90=weighted_quantile(off, weights, 0.9),
        coverage=float(np.average(inside[mask], weights=weights)),
        rival_median=weighted_quantile(other, weights, 0.5),
        rival_p90=weighted_quantile(other, weights, 0.9),
    )


def constant_mfu(rows: Sequence[PublishedRun]) -> np.ndarray:
    """Seconds of a step by the simplest baseline: the accelerator's usual MFU.

    The weighted median over the development rows of other families with the same accelerator and precision; where there
    are none, of the same precision, else of all.
    """
    flops = np.array([r.batch * r.seq_len * float(r.shape.flops_per_token(r.seq_len, causal=True)) for r in rows])
    peaks = np.array([r.accelerator.bf16_tflops * 1e12 * r.gpus for r in rows])
    mfu = flops / (peaks * np.array([r.step_seconds for r in rows], dtype=float))
    weights = family_weights(rows)
    usual = np.empty(len(rows))
    for i, row in enumerate(rows):
        others = np.array([r.split == "dev" and r.family != row.family for r in rows])
        same = others & np.array([r.precision == row.precision for r in rows])
        alike = same & np.array([r.accelerator.name == row.accelerator.name for r in rows])
        pool = next((mask for mask in (alike, same, others) if mask.any()), None)
        usual[i] = mfu[i] if pool is None else weighted_quantile(mfu[pool], weights[pool], 0.5)
    return flops / (peaks * usual)


def rankings(rows: Sequence[PublishedRun], seconds: np.ndarray) -> list[Ranking]:
    """Rank every large enough group of layouts of one model on the same accelerators and batch."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        name = f"{row.source} {row.model} on {row.gpus} {row.accelerator.name}"
        groups[name, row.precision, row.stack, str(row.batch)].append(i)
    result = []
    for (name, *_), own in sorted(groups.items()):
        measured = np.array([rows[i].step_seconds for i in own], dtype=float)
        spread = float(measured.max() / measured.min())
        if len(own) < RANKED_LAYOUTS or spread < RANKED_SPREAD:
            continue
        predicted = seconds[own]
        regret = float(measured[int(np.argmin(predicted))] / measured.min() - 1)
        result.append(Ranking(name, len(own), spread, spearman(predicted, measured), regret))
    return result


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's rank correlation; ties get their mean rank."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        return (last - (counts - 1) / 2)[place]

    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def _memory(rows: Sequence[PublishedRun]) -> tuple[tuple[str, float, float], ...]:
    """Rows that print their peak memory, with the prediction for it, GiB."""
    own = [row for row in rows if row.memory_gib]
    if not own:
        return ()
    data = prepare(own)
    needed = np.asarray(reserved(memory(data.jobs, rules_columns([own[i].stack for i in data.row]))))
    predicted = np.bincount(data.row, weights=data.weight * needed) / GIB
    return tuple((row.id, float(row.memory_gib or 0), float(p)) for row, p in zip(own, predicted, strict=True))
