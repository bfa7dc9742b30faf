"""Slows down guessing: after several failed attempts from one address, further ones are rejected for a while."""

import time
from collections import deque

from puna.web.errors import ApiError

ATTEMPTS, SECONDS = 10, 300.0
MOST_ADDRESSES = 10_000


class Throttle:
    """Counts failed attempts by address. For the event loop's thread only."""

    def __init__(self) -> None:
        self._failures: dict[str, deque[float]] = {}

    def check(self, address: str) -> None:
        """Raise ApiError 429 when this address has failed too often."""
        failures = self._recent(address)
        if len(failures) >= ATTEMPTS:
            wait = max(1, round(failures[0] + SECONDS - time.monotonic()))
            raise ApiError(
                429,
                f"Too many failed attempts. Try again in {wait} seconds.",
                code="too_many_attempts",
                headers={"retry-after": str(wait)},
            )

    def failed(self, address: str) -> None:
        """Count a failed attempt."""
        if len(self._failures) >= MOST_ADDRESSES:
            for known in [known for known in self._failures if not self._recent(known)]:
                del self._failures[known]
        self._failures.setdefault(address, deque(maxlen=ATTEMPTS)).append(time.monotonic())

    def _recent(self, address: str) -> deque[float]:
        failures = self._failures.get(address, deque())
        while failures and failures[0] < time.monotonic() - SECONDS:
            failures.popleft()
        return failures
