"""chrF, the character n-gram F-score of translations (Popović 2015, aclanthology.org/W15-3049), as sacrebleu counts it.

n-grams of 1 to 6 characters without white space, recall weighted twice (β = 2), counts of the corpus added up before
precision and recall are taken, orders that no text has left out. sacrebleu's signature: nrefs:1|case:mixed|eff:yes|
nc:6|nw:0|space:no. The tests compare it with sacrebleu's own numbers.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence

ORDER = 6
BETA = 2.0

Counts = tuple[tuple[int, int, int], ...]
"""For each order: the n-grams of the hypothesis, of the reference, and the common ones."""


def counts(hypothesis: str, reference: str) -> Counts:
    """Count the n-grams of one translation."""
    one, other = "".join(hypothesis.split()), "".join(reference.split())
    found = []
    for n in range(1, ORDER + 1):
        first = Counter(one[at : at + n] for at in range(len(one) - n + 1))
        second = Counter(other[at : at + n] for at in range(len(other) - n + 1))
        found.append((first.total(), second.total(), (first & second).total()))
    return tuple(found)


def score(total: Sequence[Sequence[int]]) -> float:
    """Return the chrF of counts, 0 to 1."""
    precision = recall = 0.0
    orders = 0
    for hypothesis, reference, common in total:
        if hypothesis and reference:
            precision += common / hypothesis
            recall += common / reference
            orders += 1
    if not orders or not precision + recall:
        return 0.0
    precision, recall = precision / orders, recall / orders
    return (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def corpus_score(found: Iterable[Counts]) -> float:
    """Return the chrF of all translations together."""
    return score(_added(list(found)))


def corpus_interval(found: Sequence[Counts], *, resamples: int = 300, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the corpus score: the percentile bootstrap over sentences, seeded."""
    if not found:
        return 0.0, 1.0
    draw = random.Random(seed)
    values = sorted(score(_added(draw.choices(found, k=len(found)))) for _ in range(resamples))
    return values[round(0.025 * (resamples - 1))], values[round(0.975 * (resamples - 1))]


def _added(found: Sequence[Counts]) -> list[list[int]]:
    return [[sum(one[n][part] for one in found) for part in range(3)] for n in range(ORDER)]
