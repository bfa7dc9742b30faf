"""Runs model code for tasks: only in the sandbox, and only plain values come back."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from puna.core.errors import PunaError

if TYPE_CHECKING:
    from puna.sandbox.run import Result

FLOOR = "confined"
"""The minimum isolation for model code, unless a recipe asks for more."""
CPU_SECONDS, SECONDS = 1.0, 5.0
"""A task's program needs milliseconds. The limit is CPU time, so that scores do not depend on the machine's load."""


def run(
    source: str, *, function: str = "", inputs: Sequence[Sequence[Any]] = (), floor: str = FLOOR
) -> "Result | None":
    """Run a program, or one of its functions on each input. Returns None if the program broke its sandbox.

    Raises PunaError if this machine's isolation is below `floor`, never for anything that a program does.
    """
    from puna.sandbox.run import Limits, run_python

    limits = Limits(cpu_seconds=CPU_SECONDS, seconds=SECONDS, output_bytes=1 << 16)
    try:
        return run_python(source, function=function, inputs=inputs, limits=limits, floor=floor)
    except PunaError:
        require(floor)  # raises again unless the program caused it
        return None


def require(floor: str = FLOOR) -> None:
    """Raise PunaError if this machine's isolation is below `floor`."""
    from puna.sandbox.run import run_python

    run_python("", floor=floor)
