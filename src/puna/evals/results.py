"""Sums up items into the figures of a benchmark: value, interval, sampled answers, groups and baselines.

A value is never reported alone: with it come the number of items, a 95 % interval, what guessing and the best constant
answer score on the same items, and how it was asked.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from puna.core.statistics import clustered, pass_at_k
from puna.evals.contract import Benchmark, Choices, Item
from puna.evals.runner import Row, scored

CONSTANTS_ON = 200
"""The number of items on which constant texts are scored."""
FREQUENT = 3
"""The number of most frequent reference answers that are tried as constants."""


def summarise(
    benchmark: Benchmark,
    items: Sequence[Item],
    rows: Sequence[Row],
    *,
    of: int,
    temperature: float,
    constants: bool = True,
) -> dict[str, Any]:
    """Return the result of one benchmark as plain JSON. of: the number of its items; `items` may be a sample."""
    values = [row["value"] for row in rows]
    result: dict[str, Any] = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "suites": list(benchmark.suites),
        "metric": benchmark.metric,
        "prompt": benchmark.prompt,
        "source": benchmark.source,
        "items": len(rows),
        "of": of,
        **share(values),
        "sampled": _sampled(rows, temperature),
        "baselines": baselines(benchmark, items) if constants else {"chance": chance(benchmark, items)},
        "parts": _parts(rows),
        "groups": {group: {"items": len(found), **share(found)} for group, found in sorted(_by_group(rows).items())},
        "cut": sum(row["cut"] > 0 for row in rows),
    }
    if len(result["groups"]) < 2:
        result["groups"] = {}
    if benchmark.corpus_metric is not None:
        result["whole"] = benchmark.corpus_metric(rows)
    return result


def share(values: Sequence[float]) -> dict[str, Any]:
    """Return mean and interval of values between 0 and 1; both None without values."""
    if not values:
        return {"value": None, "interval": None}
    return {"value": math.fsum(values) / len(values), "interval": list(clustered(values))}


def _sampled(rows: Sequence[Row], temperature: float) -> dict[str, Any] | None:
    """The scores of sampled answers: pass@1 and pass@k for text, the probability of the right choice for choices."""
    probabilities = [row["parts"]["probability"] for row in rows if "probability" in row["parts"]]
    if probabilities and len(probabilities) == len(rows):
        return {"samples": None, "temperature": 1.0, "pass@1": share(probabilities)}
    counts = {len(row.get("samples") or ()) for row in rows}
    if len(counts) != 1 or counts == {0}:
        return None
    [samples] = counts
    result: dict[str, Any] = {"samples": samples, "temperature": temperature}
    result["pass@1"] = share([math.fsum(one["value"] for one in row["samples"]) / samples for row in rows])
    for k in sorted({k for k in (10, 100, samples) if 1 < k <= samples}):
        right = [sum(one["value"] >= 1 for one in row["samples"]) for row in rows]
        result[f"pass@{k}"] = share([pass_at_k(samples, count, k) for count in right])
    return result


def baselines(benchmark: Benchmark, items: Sequence[Item]) -> dict[str, Any]:
    """Return what guessing scores, and the best constant answer with its score, on the same items.

    A constant is the position of one choice, or one text: the benchmark's own, the empty one, or one of the most
    frequent reference answers. Texts are scored on the first 200 items; the best of several is slightly overestimated.
    """
    best: dict[str, Any] | None = None
    if all(isinstance(item.ask, Choices) for item in items):
        if benchmark.chance is None:
            places = Counter(item.target for item in items)
            place, count = min(places.items(), key=lambda entry: (-entry[1], entry[0]))
            best = {"answer": f"always choice {place + 1}", "value": count / len(items), "items": len(items)}
    else:
        some = items[:CONSTANTS_ON]
        frequent = Counter(item.reference for item in items if item.reference)
        repeated = [text for text, count in frequent.most_common(FREQUENT) if count > 1]
        tried = dict.fromkeys([*benchmark.constants, *([] if benchmark.code else ["", *repeated])])
        for text in tried:
            value = math.fsum(scored(benchmark, item, text).value for item in some) / max(1, len(some))
            if best is None or value > best["value"]:
                best = {"answer": text, "value": value, "items": len(some)}
    return {"chance": chance(benchmark, items), "constant": best}


def chance(benchmark: Benchmark, items: Sequence[Item]) -> float:
    """Return what guessing scores on average."""
    if not items:
        return 0.0
    if benchmark.chance is not None:
        return benchmark.chance(items) if callable(benchmark.chance) else benchmark.chance
    shares = [1 / len(item.ask.continuations) if isinstance(item.ask, Choices) else 0.0 for item in items]
    return math.fsum(shares) / len(shares)


def _parts(rows: Sequence[Row]) -> dict[str, float]:
    """The mean of each part over the rows that have it."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row["parts"].items():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append(float(value))
    return {name: math.fsum(values) / len(values) for name, values in sorted(found.items())}


def _by_group(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row["group"]:
            groups.setdefault(row["group"], []).append(row["value"])
    return groups
