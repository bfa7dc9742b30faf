"""Remote sandboxes: the same evaluations through bubblewrap, in a container or on another machine.

PUNA_SANDBOX names the location; without it, evaluations run in a worker process on this machine (`worker`).

    bwrap             through bubblewrap, which adds a root and namespaces of its own
    docker:IMAGE      in a container of an image with Python 3.11 or newer; likewise podman:IMAGE
    ssh:HOST          on a machine where `python3 -m puna.sandbox.relay` runs
    command:WORDS     any command line that ends in the relay

The remote end (`relay`) builds its own walls as well. The level of a result is the one reached there; the location is
listed among its walls. So untrusted code can be used from a machine without walls, such as one with macOS.
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
from puna.sandbox.child import namespaces, typed_json
from puna.sandbox.result import CallResult, Limits, Result
from puna.sandbox.worker import RESPONSE_SECONDS, descendants, encoded_inputs

PLACES = ("bwrap", "docker:IMAGE", "podman:IMAGE", "ssh:HOST", "command:WORDS")
START_SECONDS = 120.0  # an image may have to be unpacked first
_RELAY = ("-m", "puna.sandbox.relay")
_MEMORY, _TASKS = "1g", "256"  # of the whole container; each evaluation has less


def place() -> str:
    """Where evaluations run: PUNA_SANDBOX, or "" for this machine."""
    return os.environ.get("PUNA_SANDBOX", "").strip()


def command(where: str) -> list[str]:
    """The command line that starts the relay at a location. Raises PunaError for an unknown one."""
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
    raise PunaError(f"PUNA_SANDBOX = '{where}' is not a location of a sandbox.", f"Use one of {', '.join(PLACES)}.")


def _bubblewrap(package: str) -> list[str]:
    visible = [*namespaces.readable(), sys.base_prefix, namespaces.interpreter(), package]
    folders = [path for path in dict.fromkeys((*visible, "/usr", "/bin", "/lib", "/lib64")) if os.path.exists(path)]
    binds = [word for path in folders for word in ("--ro-bind", path, path)]
    return [
        "bwrap", "--unshare-all", "--uid", "65534", "--gid", "65534", "--die-with-parent", "--new-session",
        "--clearenv", "--setenv", "PYTHONPATH", package,
        "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", *binds, "--chdir", "/",
        namespaces.interpreter(), "-B", *_RELAY,
    ]  # fmt: skip


class RemoteSandbox:
    """A relay at some location, with the interface of `worker.Sandbox`."""

    def __init__(self, where: str) -> None:
        self.where = where.partition(":")[0]
        words = command(where)
        if not shutil.which(words[0]):
            raise PunaError(
                f"PUNA_SANDBOX = '{where}' needs the program {words[0]}, which is not installed.", "Install it."
            )
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        self._read = b""
        try:
            hello = self._line(START_SECONDS)
            if "level" not in hello:
                raise PunaError(f"The sandbox at '{where}' did not start: {hello['failed']}", "Check that location.")
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
        request = {
            "source": source, "function": function, "inputs": texts, "stdin": stdin, "limits": asdict(limits)
        }  # fmt: skip
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # the relay has ended, which the missing response will show
        response = self._line(limits.seconds + 2 * RESPONSE_SECONDS)
        if "error" in response:
            raise PunaError(response["error"])
        try:
            values = tuple(CallResult(typed_json.decode(value), error) for value, error in response.pop("values"))
            walls = tuple(name for name, why in self.walls.items() if not why)
            return Result(values=values, level=self.level, walls=walls, **response)
        except (TypeError, ValueError):
            self.close()
            raise PunaError(
                f"The sandbox at '{self.where}' sent an invalid result.", "Use the same version of Puna there."
            ) from None

    @property
    def alive(self) -> bool:
        """Whether the relay's command still runs."""
        return self._process.poll() is None

    def processes(self) -> int:
        """Number of local processes that belong to the relay, including the command itself."""
        return len(descendants(self._process.pid)) if sys.platform.startswith("linux") else 1

    def folders(self) -> list[str]:
        """Working folders of evaluations on this machine: none."""
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
        """Read the relay's next line. Raises PunaError when it ends or does not respond in time."""
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
            return {"failed": f"it sent {line[:200].decode(errors='replace')!r}."}

    def _gone(self, *, in_time: bool) -> PunaError:
        self._process.kill()
        self._process.wait()
        assert self._process.stderr
        last = (self._process.stderr.read().decode(errors="replace").strip().splitlines() or ["no output"])[-1]
        what = "ended" if in_time else "does not respond"
        return PunaError(f"The sandbox at '{self.where}' {what}: {last[:300]}.", "Check that location, then try again.")
