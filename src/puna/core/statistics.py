"""Intervals for measured shares, and comparisons of two models on the same items. Pure Python."""

import math
import random
from collections.abc import Sequence

Z95 = 1.959964
"""Standard deviations on each side of a normal mean that contain 95 %."""


def wilson(successes: float, trials: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a share (1927), 95 % by default: valid for small counts and for 0 and 100 %.

    Returns (low, high); (0, 1) without trials.
    """
    if trials <= 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low, high = ((centre + sign * half) / (1 + z * z / trials) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def clustered(shares: Sequence[float]) -> tuple[float, float]:
    """Wilson's 95 % interval for the mean of shares, one share for each problem that was tried several times.

    Attempts at one problem are alike, so they count as fewer: the number of trials is the one whose binomial variance
    is the variance found between problems (Kish's effective sample size), but at least the number of problems.
    """
    count = len(shares)
    if not count:
        return 0.0, 1.0
    mean = sum(shares) / count
    between = sum((share - mean) ** 2 for share in shares) / max(1, count - 1) / count
    trials = max(float(count), mean * (1 - mean) / between) if between > 0 else float(count)
    return wilson(mean * trials, trials)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, of `samples` drawn with `right` right ones.

    1 - C(samples - right, k) / C(samples, k), arXiv 2107.03374, section 2.1.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {right} right among {samples}")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that two paired shares are equal, from the items that only one of them got right.

    McNemar (1947), by the binomial distribution with p = 1/2.
    """
    trials, fewer = only_first + only_second, min(only_first, only_second)
    if not trials:
        return 1.0
    tail = sum(math.comb(trials, count) for count in range(fewer + 1)) / 2**trials
    return min(1.0, 2 * tail)


def paired_interval(differences: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean difference over items: the percentile bootstrap (Efron 1979), seeded.

    Where all differences are equal, resampling finds no spread; the interval is then as wide as Wilson's for 0 of as
    many. Returns (-1, 1) without items.
    """
    if not differences:
        return -1.0, 1.0
    if min(differences) == max(differences):
        margin = wilson(0, len(differences))[1]
        return max(-1.0, differences[0] - margin), min(1.0, differences[0] + margin)
    draw, count = random.Random(seed), len(differences)
    means = sorted(math.fsum(draw.choices(differences, k=count)) / count for _ in range(resamples))
    return means[round(0.025 * (resamples - 1))], means[round(0.975 * (resamples - 1))]
