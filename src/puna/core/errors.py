"""Errors a person can act on, and a tree of them that a program can catch.

    PunaError                 anything wrong with what Puna was given; the message says what, where and what to do
    ├── RecipeError           a recipe, an override or a setting does not fit
    ├── DataError             a corpus, a dialogue or another data file is missing, damaged or does not fit
    │   └── MissingFiles      a benchmark's files are not here
    ├── ModelError            a model directory, its tokenizer or a checkpoint cannot be used
    ├── OutOfMemoryError      this machine has too little memory for what was asked
    ├── PluginError           a plugin does not exist, does not import or registers something that does not fit
    ├── SandboxError          untrusted code cannot be run behind the walls that were asked for
    ├── EngineError           a step of the engine failed; the requests of that step are lost
    └── DeadlineError         a request was not finished in the time it was given

The command line prints a `PunaError` as one sentence and exits with 2. Any other exception is a bug in Puna and keeps
its traceback. All of these can be imported from `puna`.
"""

import difflib
import re
from collections.abc import Iterable


class PunaError(Exception):
    """One clear sentence: what is wrong, where, and what to do about it.

    message: what was found and where. hint: what to do, appended to the message after a space.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())


class RecipeError(PunaError):
    """A recipe, an override or a setting does not fit."""


class DataError(PunaError):
    """A corpus, a dialogue or another data file is missing, damaged or does not fit."""


class MissingFiles(DataError):
    """A benchmark's files are not here."""


class ModelError(PunaError):
    """A model directory, its tokenizer or a checkpoint cannot be used."""


class OutOfMemoryError(PunaError):
    """This machine has too little memory for what was asked."""


class PluginError(PunaError):
    """A plugin does not exist, does not import or registers something that does not fit."""


class SandboxError(PunaError):
    """Untrusted code cannot be run behind the walls that were asked for."""


class EngineError(PunaError):
    """A step of the engine failed; the requests of that step are lost."""


class DeadlineError(PunaError):
    """A request was not finished in the time it was given."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'?" for the known name closest to `name`, or a list of all names when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(names)}." if names else ""


def reason_of(error: BaseException) -> str:
    """What another library says went wrong, for a message of ours: one line, without the names of its classes.

    The system's own words (such as "No space left on device") where they are the cause.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    lines = str(error).strip().splitlines()
    first = lines[0].rstrip(" .:") if lines else ""
    names_a_class = re.search(
        r"\b[A-Z]\w*[a-z][A-Z]\w*|\b\w+(Error|Exception)\b| object at 0x", re.sub(r"\S+://\S+", "", first)
    )
    return first if first and not names_a_class else "the reason is not known"
