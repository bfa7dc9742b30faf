"""What one evaluation may take, what came of it, and the levels: the words the sandbox is asked and answers in."""

import secrets
import signal
from dataclasses import asdict, dataclass
from typing import Any

from puna.core.errors import PunaError, nearest
from puna.sandbox import plain

LEVELS = ("none", "limits", "confined", "isolated")


@dataclass(frozen=True)
class Limits:
    """What one evaluation may take. CPU seconds are the fair limit; wall seconds end what sleeps."""

    cpu_seconds: float = 4  # whole seconds, rounded up
    seconds: float = 10.0  # wall clock
    memory_bytes: int = 256 << 20  # address space
    disk_bytes: int = 16 << 20  # all files together where /tmp is a sized tmpfs, each file where it is not
    files: int = 256  # in /tmp, where that is a sized tmpfs
    open_files: int = 64
    tasks: int = 16  # threads (and processes, where the level allows any)
    output_bytes: int = 1 << 20  # of stdout, stderr and values each

    def __post_init__(self) -> None:
        bad = next((name for name, value in asdict(self).items() if not value > 0), None)
        if bad:
            raise PunaError(f"Limits: {bad} = {getattr(self, bad)} leaves nothing to run in.", "Give a number above 0.")


@dataclass(frozen=True)
class Answer:
    """What the function gave for one input: a plain value, or the exception it raised (kind and message)."""

    value: Any = None
    error: str = ""


@dataclass(frozen=True)
class Result:
    """One evaluation. reason is "" when it went to its end, else one phrase about what ended it.

    values: an `Answer` for each input, shorter when it ended early, empty when the pipe held what the harness does not
    write. exit: exit code, or minus the signal. walls: the names of those that stood.
    """

    values: tuple[Answer, ...]
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
        """Whether it went to its end."""
        return not self.reason


def level_of(walls: dict[str, str]) -> str:
    """The level that these walls (name -> why it is missing, or "") make."""
    stands = {name for name, why in walls.items() if not why}
    if not {"rlimits", "no_new_privs", "capabilities", "uid"} <= stands:
        return "none"
    if "seccomp" not in stands or not {"landlock", "root"} & stands:
        return "limits"
    return "isolated" if {"pid", "net", "ipc", "root", "tmpfs"} <= stands else "confined"


def ended(report: dict[str, Any], limits: Limits) -> str:
    """What ended an evaluation from outside, as a phrase; "" when it ended by itself."""
    if "over" in report:
        return f"output: more than {limits.output_bytes:,} bytes of {report['over']}"
    if report["timeout"]:
        return f"time: more than {limits.seconds:g} s"
    if report["status"] in (-signal.SIGKILL, -signal.SIGXCPU) and report["cpu_seconds"] >= limits.cpu_seconds * 0.9:
        return f"time: more than {limits.cpu_seconds:g} s of CPU"
    if report["status"] < 0:
        return f"crash: {signal.Signals(-report['status']).name}"
    return ""


def read_values(data: bytes, nonce: str, wanted: int) -> tuple[str, tuple[Answer, ...]]:
    """Answers from what the values' pipe held, strictly: our nonce, every index once and in order, then the end."""
    answers: list[Answer] = []
    lines = data.split(b"\n")
    if lines.pop():
        lines.append(b"")  # a line cut short: whoever wrote it was ended
    for number, line in enumerate(lines):
        words = line.split(b" ", 3)
        if not line and number == len(lines) - 1:
            break
        if not secrets.compare_digest(words[0], nonce.encode()):
            return "forged: the pipe held what the harness does not write", ()
        try:
            if words[1:] == [b"end"] and number == len(lines) - 1:
                missing = len(answers) < wanted
                return ("" if not missing else "exit: left before every value was sent"), tuple(answers)
            if words[2] == b"x" and number == 0:
                return f"source: {plain.decode(words[3])}", ()
            if int(words[1]) != len(answers) or len(answers) >= wanted or words[2] not in (b"v", b"e"):
                raise ValueError
            value = plain.decode(words[3])
        except (ValueError, IndexError):
            return "forged: the pipe held what the harness does not write", ()
        answers.append(Answer(value) if words[2] == b"v" else Answer(error=str(value)))
    return "exit: left before the harness did", tuple(answers)


def known_level(level: str) -> None:
    if level not in LEVELS:
        raise PunaError(f"The sandbox has no level '{level}'.", nearest(level, LEVELS))
