"""Run the catalogue of attacks against real targets on this machine, and check what each leaves behind.

The targets are created for this: a process, files that anyone may read and write, listening sockets. An attack is
contained when it got nothing, every target is unchanged, the next evaluation is correct, and no process, file or mount
is left over.
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core.errors import PunaError
from puna.sandbox.attacks import ATTACKS, NEEDS, Attack
from puna.sandbox.compare import count_right
from puna.sandbox.remote import RemoteSandbox
from puna.sandbox.result import Result
from puna.sandbox.worker import Sandbox

HIDDEN = (3, 5, 8)
# Errors of a wrong program, not of a wall: the attack itself needs fixing.
BROKEN = ("SyntaxError", "NameError", "AttributeError", "KeyError")


@dataclass(frozen=True)
class AttackOutcome:
    """The outcome of one attack. left: what it left behind, or "". expected: whether the level promises containment."""

    name: str
    kind: str
    contained: bool
    stopped_by: str
    left: str
    seconds: float
    expected: bool

    @property
    def good(self) -> bool:
        """Whether the attack was contained, or the level does not promise it."""
        return (self.contained or not self.expected) and not self.left


@contextmanager
def targets() -> Iterator[dict[str, Any]]:
    """Create targets outside the sandbox, described by the `host` given to attacks; removed at the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="puna-check-")))
        folder.chmod(0o777)
        for name in ("secret", "victim"):
            (folder / name).write_text("SECRET")
            (folder / name).chmod(0o666)
        victim = subprocess.Popen(["sleep", "3600"], env={}, stdin=subprocess.DEVNULL)
        stack.callback(victim.wait)
        stack.callback(victim.kill)

        def listen(family: int, kind: int, address: Any) -> socket.socket:
            opened = stack.enter_context(socket.socket(family, kind))
            opened.bind(address)
            opened.setblocking(False)
            if kind == socket.SOCK_STREAM:
                opened.listen()
            return opened

        abstract = folder.name
        sockets = {
            "tcp": listen(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "udp": listen(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "unix": listen(socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "unix")),
            "datagram": listen(socket.AF_UNIX, socket.SOCK_DGRAM, str(folder / "datagram")),
            "abstract": listen(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + abstract),
        }
        for name in ("unix", "datagram"):
            (folder / name).chmod(0o777)
        yield {
            "parent": os.getpid(),
            "victim": victim.pid,
            "uid": os.getuid(),
            "folder": str(folder),
            "secret": str(folder / "secret"),
            "source": __file__,
            "tcp": sockets["tcp"].getsockname()[1],
            "udp": sockets["udp"].getsockname()[1],
            "unix": str(folder / "unix"),
            "datagram": str(folder / "datagram"),
            "abstract": abstract,
            "_sockets": sockets,
            "_victim": victim,
        }


def run_attacks(
    sandbox: Sandbox | RemoteSandbox,
    attacks: Sequence[Attack] = ATTACKS,
    *,
    on_outcome: Callable[[AttackOutcome], None] = lambda outcome: None,
) -> list[AttackOutcome]:
    """Run attacks one after another in this sandbox; `on_outcome` is called as each ends."""
    outcomes = []
    with targets() as host:
        for attack in attacks:
            before = _state(sandbox)
            outcome = _run(sandbox, attack, host, before)
            outcomes.append(outcome)
            on_outcome(outcome)
    return outcomes


def _run(
    sandbox: Sandbox | RemoteSandbox, attack: Attack, host: dict[str, Any], before: dict[str, Any]
) -> AttackOutcome:
    known = {name: value for name, value in host.items() if not name.startswith("_")}
    if attack.kind == "reward":
        result = sandbox.run(
            attack.program,
            function="solve",
            inputs=[[x] for x in HIDDEN],
            limits=attack.limits,
            stdin="no answers here",
        )
        contained = count_right(result.values, [x * x for x in HIDDEN]) < len(HIDDEN)
    else:
        result = sandbox.run(attack.program, function="attack", inputs=[[known]], limits=attack.limits)
        contained = not (result.values and result.values[0].value)
    stopped = _stopped_by(result)
    if attack.kind != "reward" and stopped.split(":")[0].removeprefix("source: ") in BROKEN:
        contained, stopped = False, f"the attack is broken: {stopped}"
    return AttackOutcome(
        attack.name,
        attack.kind,
        contained,
        stopped if contained else f"nothing: {str(result.values[:1])[:80]}",
        _left(sandbox, host, before),
        result.seconds,
        not sandbox.walls.get(NEEDS.get(attack.name, ""), ""),
    )


def _stopped_by(result: Result) -> str:
    """What stopped an attack, as one phrase."""
    if result.reason:
        return result.reason
    error = next((call.error for call in result.values if call.error), "")
    if error:
        return error
    return "the comparison, outside" if any(call.value is not None for call in result.values) else "nothing to gain"


def _left(sandbox: Sandbox | RemoteSandbox, host: dict[str, Any], before: dict[str, Any]) -> str:
    """What has changed: the next evaluation, the targets, processes, files, mounts."""
    wrong = []
    try:
        after = sandbox.run("def solve(x): return x * x", function="solve", inputs=[[x] for x in HIDDEN])
        if count_right(after.values, [x * x for x in HIDDEN]) < len(HIDDEN) or not after.ok:
            wrong.append(f"the next evaluation failed ({after.reason})")
    except PunaError as error:
        wrong.append(str(error))
    wrong += [name for name, value in _state(sandbox).items() if value != before[name]]
    folder = Path(host["folder"])
    if sorted(path.name for path in folder.iterdir()) != ["datagram", "secret", "unix", "victim"]:
        wrong.append("files in a folder outside")
    elif any((folder / name).read_text() != "SECRET" for name in ("secret", "victim")):
        wrong.append("a file outside")
    if host["_victim"].poll() is not None:
        wrong.append("a process outside was killed")
    wrong += [f"something came through {name}" for name, listening in host["_sockets"].items() if _reached(listening)]
    return "; ".join(wrong)


def _reached(listening: socket.socket) -> bool:
    try:
        if listening.type == socket.SOCK_STREAM:
            listening.accept()[0].close()
        else:
            listening.recv(100)
    except OSError:
        return False
    return True


def _state(sandbox: Sandbox | RemoteSandbox) -> dict[str, Any]:
    """State that must be the same before and after an evaluation."""
    return {
        "processes left": sandbox.processes(),
        "folders left": sandbox.folders(),
        "mounts left": Path("/proc/self/mounts").read_text(),
        "descriptors left": len(os.listdir("/proc/self/fd")),
    }


def machine() -> dict[str, Any]:
    """The system, Python and user, for the head of a report."""
    system = os.uname()
    return {
        "system": f"{system.sysname} {system.release} {system.machine}",
        "python": sys.version.split()[0],
        "user": "root" if os.geteuid() == 0 else f"an ordinary user ({os.geteuid()})",
    }
