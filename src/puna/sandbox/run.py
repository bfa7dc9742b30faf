"""Run untrusted Python apart from everything, and know how far apart: `run_python`, and the level each result names.

Values come back, never verdicts. Untrusted code gets a function's inputs and sends what the function returned;
`compare.same`, on this side, decides whether that is right. So there is nothing in its process to steal or to flip:
neither expected values nor the comparison. Levels, each with all that stands below it:

    none      not Linux: nothing runs
    limits    resource limits; no capabilities, open files or environment; root steps down
    confined  + a list of allowed system calls (seccomp), and a wall around files (Landlock, or a root of its own)
    isolated  + namespaces for processes, network, mounts and IPC; a root of its own; a sized, emptied /tmp

PUNA_SANDBOX sends evaluations elsewhere: behind bubblewrap, into a container, to another machine (see `outer`).
"""

import atexit
import os
import threading
from collections.abc import Sequence
from typing import Any

from puna.core.errors import SandboxError
from puna.sandbox.outer import Outer, place
from puna.sandbox.result import LEVELS, Limits, Result, known_level
from puna.sandbox.warm import Sandbox


def run_python(
    source: str,
    *,
    function: str = "",
    inputs: Sequence[Sequence[Any]] = (),
    stdin: str = "",
    limits: Limits | None = None,
    floor: str = "confined",
) -> Result:
    """Run `source` as a program; or define what it defines and call `function(*arguments)` for each of `inputs`.

    Arguments and values are plain data (see `plain`). Raises PunaError when this machine cannot reach level `floor`, or
    inputs are not plain. Evaluations one after another share a warm process, those of several threads get one each.
    """
    sandbox = _take(floor)
    try:
        result = sandbox.run(source, function=function, inputs=inputs, stdin=stdin, limits=limits)
    except BaseException:
        sandbox.close()
        raise
    with _lock:
        _idle.append(sandbox)
    return result


_lock = threading.Lock()
_idle: list[Sandbox | Outer] = []


def _take(floor: str) -> Sandbox | Outer:
    """A warm process that nobody uses, or a new one. Raises PunaError when its level lies below `floor`."""
    known_level(floor)
    with _lock:
        idle, _idle[:] = _idle[:], []
        sandbox = next((one for one in idle if one.alive), None)
        _idle.extend(one for one in idle if one is not sandbox and one.alive)
    sandbox = sandbox or (Outer(place()) if place() else Sandbox())
    if LEVELS.index(sandbox.level) < LEVELS.index(floor):
        missing = "; ".join(f"{name}: {why}" for name, why in sandbox.walls.items() if why)
        sandbox.close()
        raise SandboxError(
            f"This machine's sandbox reaches level '{sandbox.level}', below the floor '{floor}' ({missing}).",
            "Allow user namespaces (Docker: seccomp=unconfined) or lower the floor. See: puna sandbox check",
        )
    return sandbox


def _forget() -> None:
    """In a forked child the warm processes are the parent's: talking to them would mix up answers."""
    _idle.clear()


def _close_all() -> None:
    while _idle:
        _idle.pop().close()


os.register_at_fork(after_in_child=_forget)
atexit.register(_close_all)
