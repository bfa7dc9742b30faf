"""A sandbox somewhere else: the same evaluations behind bubblewrap, in a container or on another machine.

PUNA_SANDBOX names the place; without it the walls of `warm` stand around a process of this machine.

    bwrap             behind bubblewrap as well, which has a root and namespaces of its own
    docker:IMAGE      in a container of an image that has Python 3.11 or newer; podman:IMAGE likewise
    ssh:HOST          on a machine where `python3 -m puna.sandbox.relay` runs
    command:WORDS     any command line that ends in the relay

The far end (`relay`) raises its own walls too. The level of a result is what stands there; the place is named among its
walls. So code can be trained on where this machine has no walls at all, such as on macOS.
"""

import json
import os
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from puna.core.errors import PunaError
from puna.sandbox import plain, room
from puna.sandbox.result import Answer, Limits, Result
from puna.sandbox.warm import ANSWER_SECONDS, encoded_inputs, family

PLACES = ("bwrap", "docker:IMAGE", "podman:IMAGE", "ssh:HOST", "command:WORDS")
START_SECONDS = 120.0  # an image may have to be unpacked first
_RELAY = ("-m", "puna.sandbox.relay")
_MEMORY, _TASKS = "1g", "256"  # of a whole container; each evaluation has less


def place() -> str:
    """Where evaluations go: PUNA_SANDBOX, or "" for a process of this machine."""
    return os.environ.get("PUNA_SANDBOX", "").strip()


def command(where: str) -> list[str]:
    """The command line that starts the relay at a place. Raises PunaError for a place that there is not."""
    kind, _, rest = where.partition(":")
    package = str(Path(__file__).resolve().parents[2])
    if where == "bwrap":
        return _bubblewrap(package)
    if kind in ("docker", "podman") and rest:
        return [
            kind, "run", "--interactive", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--user=65534:65534",
            "--cap-drop=ALL", "--security-opt=no-new-privileges", f"--memory={_MEMORY}", f"--pids-limit={_TASKS}",
            f"--volume={package}:/puna:ro", "--env=PYTHONPATH=/puna", "--env=PYTHONDONTWRITEBYTECODE=1",
            rest, "python3", *_RELAY,
        ]  # fmt: skip
    if kind == "ssh" and rest:
        return ["ssh", "-o", "BatchMode=yes", rest, "python3", *_RELAY]
    if kind == "command" and rest:
        return shlex.split(rest)
    raise PunaError(f"PUNA_SANDBOX = '{where}' is no place for a sandbox.", f"Known are {', '.join(PLACES)}.")


def _bubblewrap(package: str) -> list[str]:
    shown = [*room.readable(), sys.base_prefix, room.interpreter(), package]
    folders = [path for path in dict.fromkeys((*shown, "/usr", "/bin", "/lib", "/lib64")) if os.path.exists(path)]
    binds = [word for path in folders for word in ("--ro-bind", path, path)]
    return [
        "bwrap", "--unshare-all", "--uid", "65534", "--gid", "65534", "--die-with-parent", "--new-session",
        "--clearenv", "--setenv", "PYTHONPATH", package,
        "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", *binds, "--chdir", "/",
        room.interpreter(), "-B", *_RELAY,
    ]  # fmt: skip


class Outer:
    """A relay at a place, seen from here: what `warm.Sandbox` is for a process of this machine."""

    def __init__(self, where: str) -> None:
        self.where = where.partition(":")[0]
        words = command(where)
        if not shutil.which(words[0]):
            raise PunaError(f"PUNA_SANDBOX = '{where}' needs the program {words[0]}, which is not here.", "Install it.")
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        self._read = b""
        try:
            hello = self._line(START_SECONDS)
            if "level" not in hello:
                raise PunaError(f"The sandbox at '{where}' did not start: {hello['failed']}", "Mend that place.")
        except PunaError:
            self.close()
            raise
        self.level: str = hello["level"]
        self.walls: dict[str, str] = {**hello["walls"], self.where: ""}

    def run(
        self,
        source: str,
        *,
        function: str = "",
        inputs: Sequence[Sequence[Any]] = (),
        stdin: str = "",
        limits: Limits | None = None,
    ) -> Result:
        """One evaluation; see `run_python`."""
        limits = limits or Limits()
        texts = encoded_inputs(function, inputs)
        asked = {
            "source": source, "function": function, "inputs": texts, "stdin": stdin, "limits": asdict(limits)
        }  # fmt: skip
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # the relay is gone, as the missing answer will say
        said = self._line(limits.seconds + 2 * ANSWER_SECONDS)
        if "error" in said:
            raise PunaError(said["error"])
        try:
            values = tuple(Answer(plain.decode(value), error) for value, error in said.pop("values"))
            walls = tuple(name for name, why in self.walls.items() if not why)
            return Result(values=values, level=self.level, walls=walls, **said)
        except (TypeError, ValueError):
            self.close()
            raise PunaError(
                f"The sandbox at '{self.where}' sent what is no result.", "Use the same version there."
            ) from None

    @property
    def alive(self) -> bool:
        """Whether the relay's command still runs."""
        return self._process.poll() is None

    def processes(self) -> int:
        """How many processes of this machine belong to the relay, the command itself included."""
        return len(family(self._process.pid)) if sys.platform.startswith("linux") else 1

    def folders(self) -> list[str]:
        """Working folders of evaluations on this machine: there are none."""
        return []

    def close(self) -> None:
        """End the relay."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                try:
                    pipe.close()
                except OSError:
                    continue
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _line(self, seconds: float) -> dict[str, Any]:
        """The relay's next line. Raises PunaError when it ends or does not answer in time."""
        assert self._process.stdout
        latest = time.monotonic() + seconds
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, latest - time.monotonic()))
            data = os.read(self._process.stdout.fileno(), 1 << 20) if ready else b""
            if not data:
                raise self._gone(in_time=bool(ready))
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            return {"failed": f"it said {line[:200].decode(errors='replace')!r}."}

    def _gone(self, *, in_time: bool) -> PunaError:
        self._process.kill()
        self._process.wait()
        assert self._process.stderr
        last = (self._process.stderr.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        what = "ended" if in_time else "does not answer"
        return PunaError(f"The sandbox at '{self.where}' {what}: {last[:300]}.", "Look at that place, then try again.")
