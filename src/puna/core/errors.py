"""Errors a person can act on.

`PunaError` is for everything that is wrong with what we were given: a file, a recipe, a machine too small. The command
line prints it as one sentence and exits with 2. Any other exception is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class PunaError(Exception):
    """One clear sentence: what is wrong, where, and what to do about it.

    message: what was found and where. hint: what to do, appended to the message after a space.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'?" for the known name closest to `name`, or a list of all names when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(names)}." if names else ""
