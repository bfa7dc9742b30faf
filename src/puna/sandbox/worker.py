"""The worker process, seen from outside: starts it with the best plan this machine allows, and gives it jobs.

`child.main` is its other end. A job is passed as sealed files in memory; its output comes back through pipes that are
read while it runs and truncated at the limit.
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
from puna.sandbox.child import typed_json
from puna.sandbox.result import Limits, Result, ended, known_level, level_of, read_values

PLANS = {"isolated": ("user", "root", "plain"), "confined": ("plain",), "limits": ("plain",)}
RESPONSE_SECONDS = 30.0  # on top of an evaluation's own limit, the worker's time to respond on a busy machine


@dataclass
class Sandbox:
    """A worker process and the walls around its evaluations, which run one at a time.

    ceiling: build no more walls than this level has. walls: each wall's name and why it is missing, "" if it is
    present.
    """

    ceiling: str = "isolated"
    walls: dict[str, str] = field(default_factory=dict, init=False)
    level: str = field(default="none", init=False)
    plan: str = field(default="plain", init=False)

    def __post_init__(self) -> None:
        known_level(self.ceiling)
        if not sys.platform.startswith("linux"):
            raise PunaError(
                f"The sandbox's level on {sys.platform} is 'none': untrusted code runs only on Linux.",
                "Use Linux: a machine, a virtual machine or a container.",
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
        """Run one evaluation, as `run_python`. Raises PunaError when a wall that was present could not be built."""
        limits = limits or Limits()
        nonce = secrets.token_hex(16)
        texts = encoded_inputs(function, inputs)
        job = {"source": source, "function": function, "inputs": texts, "nonce": nonce}
        caught, report = self._evaluate(json.dumps(job).encode(), stdin.encode(errors="replace"), limits)
        if "error" in report:
            self.close()
            raise PunaError(f"The sandbox could not build its walls: {report['error']}.", "Run: puna sandbox check")
        reason, values = read_values(caught.pop("values"), nonce, len(texts))
        stdout, stderr = (caught[name].decode(errors="replace") for name in ("stdout", "stderr"))
        return Result(
            values=values,
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
        """End the worker and all its descendants."""
        self._line.close()
        self._process.kill()
        self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()

    @property
    def alive(self) -> bool:
        """Whether the worker still runs."""
        return self._process.poll() is None

    def processes(self) -> int:
        """Number of processes the worker has now, including itself: the same before and after an evaluation."""
        return len(descendants(self._process.pid))

    def folders(self) -> list[str]:
        """The working folders that exist now, if evaluations get one instead of a file system of their own."""
        pattern = f"puna-sandbox-{self._process.pid}-*"
        return sorted(str(path) for path in Path(tempfile.gettempdir()).glob(pattern))

    def _start(self, plan: str) -> dict[str, Any]:
        """Start a fresh interpreter that isolates itself by `plan`; returns its first message."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # As root: a separate user for each worker, so that limits are counted separately and none can touch another.
        uid = 0 if os.geteuid() else 60000 + secrets.randbelow(5000)
        where = str(Path(__file__).resolve().parents[2])
        code = (
            f"import sys; sys.path.append({where!r}); from puna.sandbox.child import main; "
            f"main.main({theirs.fileno()}, {plan!r}, {self.ceiling!r}, {uid})"
        )
        # A fixed hash seed: the same code gets the same order of a set in every evaluation.
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
        ours.settimeout(RESPONSE_SECONDS)
        try:
            hello = ours.recv(65536)
        except (TimeoutError, ConnectionError):
            hello = b""
        if hello:
            return json.loads(hello)
        self._process.kill()
        assert self._process.stderr
        last = (self._process.stderr.read().decode(errors="replace").strip().splitlines() or ["no response"])[-1]
        return {"failed": last}

    def _evaluate(self, job: bytes, stdin: bytes, limits: Limits) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Run one job; returns the output of its pipes (truncated at the limit) and the worker's report."""
        names = ("stdout", "stderr", "values")
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in names]
        files = [_sealed(job), _sealed(stdin), *(writing for _, writing in pipes)]
        try:
            socket.send_fds(self._line, [json.dumps(asdict(limits)).encode()], files)
        except OSError:
            return dict.fromkeys(names, b""), {"error": "the worker is gone"}
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
        latest = time.monotonic() + limits.seconds + RESPONSE_SECONDS
        while not report:
            ready = waiting.poll(max(0.0, latest - time.monotonic()) * 1000)
            if not ready:
                report = {"error": "the worker does not respond"}
            for file, _ in ready:
                if file == self._line.fileno():
                    try:
                        message = self._line.recv(65536)
                    except ConnectionError:
                        message = b""
                    report = json.loads(message) if message else {"error": "the worker ended"}
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
    """The arguments of each call as text. Raises PunaError if they are not plain data."""
    try:
        return [typed_json.encode(list(arguments)) for arguments in inputs]
    except (TypeError, ValueError) as error:
        raise PunaError(
            f"The inputs of '{function}' are not plain data: {error}.", "See puna.sandbox.child.typed_json."
        ) from None


def descendants(pid: int) -> list[int]:
    """A local process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit():
                stat = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
                parents.setdefault(int(stat[1]), []).append(int(entry))
        except OSError:
            continue  # it has ended
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def _drain(file: int, into: bytearray, limit: int, waiting: "select.poll | None") -> bool:
    """Read what is there; True after more than `limit` bytes, of which at most one read's worth is kept."""
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
    """A file in memory with these bytes, sealed against any change."""
    import fcntl

    file = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, 0xF)  # no sealing, shrinking, growing, writing
    return file
