"""The one way from a task to the sandbox: model code runs there, plain values come back."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from puna.core.errors import PunaError

if TYPE_CHECKING:
    from puna.sandbox.run import Result

FLOOR = "confined"
"""The least isolation that model code is run behind, unless a recipe asks for more."""
CPU_SECONDS, SECONDS = 1.0, 5.0
"""A task's program needs milliseconds. CPU time is the fair limit: scores must not depend on the machine's load."""


def run(
    source: str, *, function: str = "", inputs: Sequence[Sequence[Any]] = (), floor: str = FLOOR
) -> "Result | None":
    """Run a program, or a function of it on each input. None when the program broke the sandbox that it was in.

    Raises PunaError where this machine's isolation is below `floor`, and not for anything a program does.
    """
    from puna.sandbox.run import Limits, run_python

    limits = Limits(cpu_seconds=CPU_SECONDS, seconds=SECONDS, output_bytes=1 << 16)
    try:
        return run_python(source, function=function, inputs=inputs, limits=limits, floor=floor)
    except PunaError:
        require(floor)  # raises again unless it was the program's doing
        return None


def require(floor: str = FLOOR) -> None:
    """Raises PunaError where this machine's isolation is below `floor`."""
    from puna.sandbox.run import run_python

    run_python("", floor=floor)
