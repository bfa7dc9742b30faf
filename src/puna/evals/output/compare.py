"""Compares two models on the same items: the difference, its interval, and whether chance explains it.

Both models answered the same questions, so differences are taken item by item, which is much sharper than comparing two
intervals. The interval is a paired bootstrap over items; where every value is 0 or 1, McNemar's exact test is added.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from puna.core.errors import PunaError
from puna.core.statistics import mcnemar, paired_interval

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def compare(ours: Rows, others: Rows) -> list[dict[str, Any]]:
    """Return a row for each common benchmark: items, both means, difference, interval, and p where it is defined.

    Raises PunaError if the results have no item in common.
    """
    found = []
    for name, rows in ours.items():
        theirs = {row["id"]: row for row in others.get(name, ())}
        pairs = [(row["value"], theirs[row["id"]]["value"]) for row in rows if row["id"] in theirs]
        if not pairs:
            continue
        differences = [one - other for one, other in pairs]
        binary = all(value in (0.0, 1.0) for pair in pairs for value in pair)
        found.append(
            {
                "benchmark": name,
                "items": len(pairs),
                "value": math.fsum(one for one, _ in pairs) / len(pairs),
                "other": math.fsum(other for _, other in pairs) / len(pairs),
                "difference": math.fsum(differences) / len(pairs),
                "interval": list(paired_interval(differences)),
                "only_ours": sum(one > other for one, other in pairs),
                "only_theirs": sum(one < other for one, other in pairs),
                "p": mcnemar(sum(one > other for one, other in pairs), sum(one < other for one, other in pairs))
                if binary
                else None,
            }
        )
    if not found:
        raise PunaError(
            "The two results have no item in common.", "Measure both models with the same --suite and --limit."
        )
    return found
