"""Start and stop several processes of one run on this machine together.

Sets what torchrun would set (RANK, WORLD_SIZE, MASTER_ADDR, ...), so the same training code runs here, under torchrun
and under a cluster's launcher. torchrun itself restarts workers and gives them 30 seconds to exit, which suits a
cluster. On one machine the user decides: the first Ctrl-C (or SIGTERM) is forwarded once, so that every process saves
and exits, however long that takes, and the second one is forwarded too.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import FrameType

from puna.train.measure.device import cores

# When one process has failed, the others get this long to fail by themselves (they usually meet the same error, and
# end cleanly). Then they are killed, because otherwise they would wait for it forever.
_GRACE_SECONDS = 10.0


def launch(command: Sequence[str], processes: int) -> int:
    """Run `command` as `processes` processes of one run and wait for them.

    Returns the exit code of the run. A single process runs unchanged, without a process group. Process 0 keeps this
    terminal; of the others only the last output of one that failed by itself is shown. All of them end when this
    process does, however it ends (on Linux).
    """
    first = {} if processes == 1 else _environment(processes)
    with tempfile.TemporaryFile() as quiet:
        workers = []
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            streams = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": quiet}
            workers.append(
                subprocess.Popen(
                    command,
                    env=os.environ | first | own,
                    start_new_session=True,  # otherwise the terminal's Ctrl-C would reach them a second time
                    preexec_fn=_end_with_parent if sys.platform == "linux" else None,
                    **streams,  # type: ignore[call-overload]
                )
            )
        code = _wait(workers)
        if code and workers[0].returncode in (0, -signal.SIGKILL):
            quiet.seek(0)
            sys.stderr.write(quiet.read().decode(errors="replace")[-4000:])
        return code


def _wait(workers: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all workers, forwarding SIGINT and SIGTERM.

    Returns the first failure's exit code, or 0.
    """
    asked: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    failed, since = 0, 0.0
    try:
        while None in (codes := [worker.poll() for worker in workers]):
            failures = [code for code in codes if code]
            if failures and not failed:
                failed, since = failures[0], time.monotonic()
            leaving = asked and failed in (128 + signal.SIGINT, 128 + signal.SIGTERM)
            if failed and not leaving and time.monotonic() - since > _GRACE_SECONDS:
                break
            time.sleep(0.05)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    failed = failed or next((worker.returncode for worker in workers if worker.returncode), 0)
    return failed if failed >= 0 else 128 - failed


def _environment(processes: int) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # The processes share the cores; by default each would start a thread on every core.
    environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    # All processes are local: gloo does not need this machine's name or network.
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", loopback)
    return environment


def _end_with_parent() -> None:
    """In a new child on Linux: be killed when the parent ends (prctl(2), PR_SET_PDEATHSIG = 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
