"""A warm process, seen from outside: starting it by the best plan this machine allows, and handing it jobs.

`inside` is its other end. A job travels as sealed files in memory, what it writes comes back through pipes that are
read while it runs and cut at the limit.
"""

import json
import os
import secrets
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from puna.core.errors import PunaError
from puna.sandbox import plain
from puna.sandbox.result import Limits, Result, ended, known_level, level_of, read_values

PLANS = {"isolated": ("user", "root", "plain"), "confined": ("plain",), "limits": ("plain",)}
ANSWER_SECONDS = 30.0  # beyond an evaluation's own limit, the warm process has this long to answer on a busy machine


@dataclass
class Sandbox:
    """A warm process and the walls its evaluations stand behind. One evaluation at a time.

    ceiling: raise no more walls than this level has. walls: every wall's name and why it is missing, "" if it stands.
    """

    ceiling: str = "isolated"
    walls: dict[str, str] = field(default_factory=dict, init=False)
    level: str = field(default="none", init=False)
    plan: str = field(default="plain", init=False)

    def __post_init__(self) -> None:
        known_level(self.ceiling)
        if not sys.platform.startswith("linux"):
            raise PunaError(
                f"The sandbox's level on {sys.platform} is 'none': untrusted code runs on Linux only.",
                "Use a Linux machine, a virtual one or a container.",
            )
        refused: dict[str, str] = {}
        for plan in PLANS.get(self.ceiling, ("plain",)):
            if plan == "root" and os.geteuid():
                continue
            hello = self._start(plan)
            if "walls" in hello:
                self.plan, self.walls = plan, hello["walls"]
                break
            refused[plan] = hello["failed"]
            self.close()
        if plan == "plain" and refused:
            why = "; ".join(refused.values())
            self.walls |= dict.fromkeys(("user", "pid", "net", "ipc", "root", "tmpfs"), why)
        elif "user" in refused:
            self.walls["user"] = refused["user"]
        self.level = level_of(self.walls)

    def run(
        self,
        source: str,
        *,
        function: str = "",
        inputs: Sequence[Sequence[Any]] = (),
        stdin: str = "",
        limits: Limits | None = None,
    ) -> Result:
        """One evaluation; see `run_python`. Raises PunaError when a wall that stood before could not be raised."""
        limits = limits or Limits()
        nonce = secrets.token_hex(16)
        texts = encoded_inputs(function, inputs)
        job = {"source": source, "function": function, "inputs": texts, "nonce": nonce}
        caught, report = self._evaluate(json.dumps(job).encode(), stdin.encode(errors="replace"), limits)
        if "error" in report:
            self.close()
            raise PunaError(f"The sandbox could not raise its walls: {report['error']}.", "Run: puna sandbox check")
        reason, answers = read_values(caught.pop("values"), nonce, len(texts))
        stdout, stderr = (caught[name].decode(errors="replace") for name in ("stdout", "stderr"))
        return Result(
            values=answers,
            stdout=stdout,
            stderr=stderr,
            exit=report["status"],
            seconds=report["seconds"],
            cpu_seconds=report["cpu_seconds"],
            level=self.level,
            walls=tuple(name for name, why in self.walls.items() if not why),
            reason=ended(report, limits) or reason,
        )

    def close(self) -> None:
        """End the warm process and all that runs below it."""
        self._line.close()
        self._process.kill()
        self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()

    @property
    def alive(self) -> bool:
        """Whether the warm process still runs."""
        return self._process.poll() is None

    def processes(self) -> int:
        """How many processes live below the warm one now, itself included: the same before and after an evaluation."""
        return len(family(self._process.pid))

    def folders(self) -> list[str]:
        """Working folders that exist now, where evaluations get one instead of a file system of their own."""
        pattern = f"puna-sandbox-{self._process.pid}-*"
        return sorted(str(path) for path in Path(tempfile.gettempdir()).glob(pattern))

    def _start(self, plan: str) -> dict[str, Any]:
        """Start a fresh interpreter that enters the room by `plan`; returns its first words."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # As root: a user of its own for every warm process, so that limits count apart and none can touch another.
        uid = 0 if os.geteuid() else 60000 + secrets.randbelow(5000)
        where = str(Path(__file__).resolve().parents[2])
        code = (
            f"import sys; sys.path.append({where!r}); from puna.sandbox import inside; "
            f"inside.main({theirs.fileno()}, {plan!r}, {self.ceiling!r}, {uid})"
        )
        # A fixed hash seed: the same code gives the same order of a set in every evaluation.
        self._process = subprocess.Popen(
            [os.path.realpath(sys.executable), "-s", "-S", "-B", "-X", "utf8", "-c", code],
            env={"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self._line = ours
        ours.settimeout(ANSWER_SECONDS)
        try:
            hello = ours.recv(65536)
        except (TimeoutError, ConnectionError):
            hello = b""
        if hello:
            return json.loads(hello)
        self._process.kill()
        assert self._process.stderr
        last = (self._process.stderr.read().decode(errors="replace").strip().splitlines() or ["no answer"])[-1]
        return {"failed": last}

    def _evaluate(self, job: bytes, stdin: bytes, limits: Limits) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Hand over one job; returns what came out of its pipes (cut at the limit) and the warm process' report."""
        names = ("stdout", "stderr", "values")
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in names]
        files = [_sealed(job), _sealed(stdin), *(writing for _, writing in pipes)]
        try:
            socket.send_fds(self._line, [json.dumps(asdict(limits)).encode()], files)
        except OSError:
            return dict.fromkeys(names, b""), {"error": "the warm process is gone"}
        finally:
            for file in files:
                os.close(file)
        readers = {reading: name for (reading, _), name in zip(pipes, names, strict=True)}
        try:
            return self._collect(readers, limits)
        finally:
            for reading in readers:
                os.close(reading)

    def _collect(self, readers: dict[int, str], limits: Limits) -> tuple[dict[str, bytes], dict[str, Any]]:
        caught = {name: bytearray() for name in readers.values()}
        waiting = select.poll()
        waiting.register(self._line, select.POLLIN)
        for reading in readers:
            os.set_blocking(reading, False)
            waiting.register(reading, select.POLLIN)
        report: dict[str, Any] = {}
        cancelled = False
        latest = time.monotonic() + limits.seconds + ANSWER_SECONDS
        while not report:
            ready = waiting.poll(max(0.0, latest - time.monotonic()) * 1000)
            if not ready:
                report = {"error": "the warm process does not answer"}
            for file, _ in ready:
                if file == self._line.fileno():
                    try:
                        message = self._line.recv(65536)
                    except ConnectionError:
                        message = b""
                    report = json.loads(message) if message else {"error": "the warm process ended"}
                elif _drain(file, caught[readers[file]], limits.output_bytes, waiting) and not cancelled:
                    cancelled = True
                    self._line.send(b"cancel")
        over = ""
        for reading, name in readers.items():
            if _drain(reading, caught[name], limits.output_bytes, None):
                over = name
        if over and "error" not in report:
            report["over"] = over
        return {name: bytes(data[: limits.output_bytes]) for name, data in caught.items()}, report


def encoded_inputs(function: str, inputs: Sequence[Sequence[Any]]) -> list[str]:
    """The arguments of each call as text. Raises PunaError where they are not plain data."""
    try:
        return [plain.encode(list(arguments)) for arguments in inputs]
    except (TypeError, ValueError) as error:
        raise PunaError(f"The inputs of '{function}' are not plain data: {error}.", "See puna.sandbox.plain.") from None


def family(pid: int) -> list[int]:
    """A process of this machine and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit():
                stat = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
                parents.setdefault(int(stat[1]), []).append(int(entry))
        except OSError:
            continue  # ended meanwhile
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def _drain(file: int, into: bytearray, limit: int, waiting: "select.poll | None") -> bool:
    """Read what is there; True once more than `limit` bytes came, of which no more than one read's worth is kept."""
    while True:
        try:
            data = os.read(file, 1 << 16)
        except BlockingIOError:
            break
        if not data:
            if waiting:
                waiting.unregister(file)
            break
        if len(into) <= limit:
            into += data
        elif waiting:
            break
    return len(into) > limit


def _sealed(data: bytes) -> int:
    """A file in memory with these bytes, which nobody can change any more."""
    import fcntl

    file = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, 0xF)  # no sealing, shrinking, growing, writing
    return file
