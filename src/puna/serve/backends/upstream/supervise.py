"""Run a command until it ends or standard input does: `python supervise.py COMMAND …`.

Run as a file, so that it imports nothing of Puna's and costs next to no memory.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

GRACE_SECONDS = 10.0


def main(command: Sequence[str]) -> int:
    """The command's exit code. It leads a group of its own, and the whole group is ended with it."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def end_with_input() -> None:
        # Not through sys.stdin, whose lock a thread that waits would hold while the interpreter ends.
        while os.read(0, 4096):
            pass
        _signal(child.pid, signal.SIGTERM)
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            _signal(child.pid, signal.SIGKILL)

    threading.Thread(target=end_with_input, daemon=True).start()
    code = child.wait()
    _signal(child.pid, signal.SIGKILL)  # what it started and left behind
    return code


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
