"""Intervals for measured shares. Pure Python."""

import math


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
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
