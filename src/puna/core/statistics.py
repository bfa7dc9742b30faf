"""Intervals for measured shares. Pure Python."""

import math
from collections.abc import Sequence


def wilson(successes: float, trials: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a share (1927), 95 % by default: sound for small counts and for 0 and 100 %.

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
    """Wilson's 95 % interval for the mean of shares, one for each problem that was tried several times.

    Tries of one problem resemble each other, so they count as fewer: the trials are those whose binomial variance is
    the variance found between problems (Kish's effective sample size), and no fewer than the problems.
    """
    count = len(shares)
    if not count:
        return 0.0, 1.0
    mean = sum(shares) / count
    between = sum((share - mean) ** 2 for share in shares) / max(1, count - 1) / count
    trials = max(float(count), mean * (1 - mean) / between) if between > 0 else float(count)
    return wilson(mean * trials, trials)
