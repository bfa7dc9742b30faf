"""Slows down guessing: after several failures on a name, further attempts are rejected."""

import time
from collections import deque

from puna.web.errors import ApiError

ATTEMPTS, SECONDS = 10, 300.0
MOST_KNOWN = 10_000


class Throttle:
    """Counts failed attempts by address and name. For the event loop's thread only.

    The name is part of it because behind a reverse proxy everyone has the same address.
    """

    def __init__(self) -> None:
        self._failures: dict[str, deque[float]] = {}

    def check(self, attempt: str) -> None:
        """Raise ApiError 429 when this has failed too often."""
        failures = self._recent(attempt)
        if len(failures) >= ATTEMPTS:
            wait = max(1, round(failures[0] + SECONDS - time.monotonic()))
            raise ApiError(
                429,
                f"Too many failed attempts. Try again in {wait} seconds.",
                code="too_many_attempts",
                headers={"retry-after": str(wait)},
            )

    def failed(self, attempt: str) -> None:
        """Count a failed attempt."""
        if len(self._failures) >= MOST_KNOWN:
            for known in [known for known in self._failures if not self._recent(known)]:
                del self._failures[known]
        self._failures.setdefault(attempt, deque(maxlen=ATTEMPTS)).append(time.monotonic())

    def _recent(self, attempt: str) -> deque[float]:
        failures = self._failures.get(attempt, deque())
        while failures and failures[0] < time.monotonic() - SECONDS:
            failures.popleft()
        return failures
