"""Run untrusted Python in isolation: `run_python`, whose results name the level of isolation they had.

The sandbox returns values, never verdicts. Untrusted code gets a function's inputs and sends what the function
returned; `compare.same`, outside, decides whether that is right. Its process therefore contains nothing to steal or to
change: neither expected values nor the comparison. The levels, each including all above it:

    none      not Linux: nothing runs
    limits    resource limits; no capabilities, open files or environment; root drops its privileges
    confined  + an allowlist of system calls (seccomp), and confined file access (Landlock, or a root of its own)
    isolated  + namespaces for processes, network, mounts and IPC; a root of its own; a new /tmp of limited size

PUNA_SANDBOX sends evaluations elsewhere: through bubblewrap, to a container, to another machine (see `remote`).
"""

import atexit
import os
import threading
from collections.abc import Sequence
from typing import Any

from puna.core.errors import SandboxError
from puna.sandbox.remote import RemoteSandbox, place
from puna.sandbox.result import LEVELS, Limits, Result, known_level
from puna.sandbox.worker import Sandbox


def run_python(
    source: str,
    *,
    function: str = "",
    inputs: Sequence[Sequence[Any]] = (),
    stdin: str = "",
    limits: Limits | None = None,
    floor: str = "confined",
) -> Result:
    """Run `source` as a program, or execute it and call `function(*arguments)` for each of `inputs`.

    Arguments and values are plain data (see `child.typed_json`). Raises PunaError when this machine cannot reach level
    `floor`, or inputs are not plain. Successive evaluations share a worker process; concurrent threads get one each.
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
_idle: list[Sandbox | RemoteSandbox] = []


def _take(floor: str) -> Sandbox | RemoteSandbox:
    """An idle worker, or a new one. Raises PunaError when its level is below `floor`."""
    known_level(floor)
    with _lock:
        idle, _idle[:] = _idle[:], []
        sandbox = next((one for one in idle if one.alive), None)
        _idle.extend(one for one in idle if one is not sandbox and one.alive)
    sandbox = sandbox or (RemoteSandbox(place()) if place() else Sandbox())
    if LEVELS.index(sandbox.level) < LEVELS.index(floor):
        missing = "; ".join(f"{name}: {why}" for name, why in sandbox.walls.items() if why)
        sandbox.close()
        raise SandboxError(
            f"This machine's sandbox reaches level '{sandbox.level}', below the floor '{floor}' ({missing}).",
            "Allow user namespaces (Docker: seccomp=unconfined) or lower the floor. See: puna sandbox check",
        )
    return sandbox


def _forget() -> None:
    """Drop the workers in a forked child: they belong to the parent, and sharing them would mix up results."""
    _idle.clear()


def _close_all() -> None:
    while _idle:
        _idle.pop().close()


os.register_at_fork(after_in_child=_forget)
atexit.register(_close_all)
