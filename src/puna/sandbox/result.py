"""The values around an evaluation: limits, call results, the result as a whole, and the levels of isolation."""

import secrets
import signal
from dataclasses import asdict, dataclass
from typing import Any

from puna.core.errors import PunaError, nearest
from puna.sandbox.child import typed_json

LEVELS = ("none", "limits", "confined", "isolated")


@dataclass(frozen=True)
class Limits:
    """The limits of one evaluation. CPU seconds are the fair limit; wall seconds end code that sleeps."""

    cpu_seconds: float = 4  # whole seconds, rounded up
    seconds: float = 10.0  # wall clock
    memory_bytes: int = 256 << 20  # address space
    disk_bytes: int = 16 << 20  # all files together where /tmp is a tmpfs of limited size, each file where it is not
    files: int = 256  # in /tmp, where it is a tmpfs of limited size
    open_files: int = 64
    tasks: int = 16  # threads (and processes, where the level allows any)
    output_bytes: int = 1 << 20  # of stdout, stderr and values each

    def __post_init__(self) -> None:
        bad = next((name for name, value in asdict(self).items() if not value > 0), None)
        if bad:
            raise PunaError(f"Limits: {bad} = {getattr(self, bad)} is not positive.", "Give a number above 0.")


@dataclass(frozen=True)
class CallResult:
    """The result of one call: the returned plain value, or the exception raised (type and message)."""

    value: Any = None
    error: str = ""


@dataclass(frozen=True)
class Result:
    """The result of one evaluation. reason is "" when it completed, else a phrase that says what ended it.

    values: a `CallResult` for each input; fewer if it ended early, none if the pipe contained what the harness does not
    write. exit: exit code, or minus the signal. walls: the names of those in place.
    """

    values: tuple[CallResult, ...]
    stdout: str
    stderr: str
    exit: int
    seconds: float
    cpu_seconds: float
    level: str
    walls: tuple[str, ...]
    reason: str

    @property
    def ok(self) -> bool:
        """Whether it completed."""
        return not self.reason


def level_of(walls: dict[str, str]) -> str:
    """The level that these walls (name -> why it is missing, or "") amount to."""
    present = {name for name, why in walls.items() if not why}
    if not {"rlimits", "no_new_privs", "capabilities", "uid"} <= present:
        return "none"
    if "seccomp" not in present or not {"landlock", "root"} & present:
        return "limits"
    return "isolated" if {"pid", "net", "ipc", "root", "tmpfs"} <= present else "confined"


def ended(report: dict[str, Any], limits: Limits) -> str:
    """What ended an evaluation from outside, as a phrase; "" if it ended by itself."""
    if "over" in report:
        return f"output: more than {limits.output_bytes:,} bytes of {report['over']}"
    if report["timeout"]:
        return f"time: more than {limits.seconds:g} s"
    if report["status"] in (-signal.SIGKILL, -signal.SIGXCPU) and report["cpu_seconds"] >= limits.cpu_seconds * 0.9:
        return f"time: more than {limits.cpu_seconds:g} s of CPU"
    if report["status"] < 0:
        return f"crash: {signal.Signals(-report['status']).name}"
    return ""


def read_values(data: bytes, nonce: str, wanted: int) -> tuple[str, tuple[CallResult, ...]]:
    """Parse the contents of the value pipe strictly: our nonce, every index once and in order, then the end."""
    results: list[CallResult] = []
    lines = data.split(b"\n")
    if lines.pop():
        lines.append(b"")  # a truncated line: its writer was killed
    for number, line in enumerate(lines):
        words = line.split(b" ", 3)
        if not line and number == len(lines) - 1:
            break
        if not secrets.compare_digest(words[0], nonce.encode()):
            return "forged: the pipe contained what the harness does not write", ()
        try:
            if words[1:] == [b"end"] and number == len(lines) - 1:
                missing = len(results) < wanted
                return ("" if not missing else "exit: left before every value was sent"), tuple(results)
            if words[2] == b"x" and number == 0:
                return f"source: {typed_json.decode(words[3])}", ()
            if int(words[1]) != len(results) or len(results) >= wanted or words[2] not in (b"v", b"e"):
                raise ValueError
            value = typed_json.decode(words[3])
        except (ValueError, IndexError):
            return "forged: the pipe contained what the harness does not write", ()
        results.append(CallResult(value) if words[2] == b"v" else CallResult(error=str(value)))
    return "exit: left before the harness did", tuple(results)


def known_level(level: str) -> None:
    if level not in LEVELS:
        raise PunaError(f"The sandbox has no level '{level}'.", nearest(level, LEVELS))
