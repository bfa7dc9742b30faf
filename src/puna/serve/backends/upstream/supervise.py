"""Runs a command until it ends or standard input does: `python supervise.py COMMAND …`.

It is run as a file, so that it imports nothing else from Puna and needs little memory.
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
    """Run the command and return its exit code.

    It leads a process group, which is ended with it.
    """
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def end_with_input() -> None:
        # Not sys.stdin: the waiting thread would hold its lock while the interpreter shuts down.
        while os.read(0, 4096):
            pass
        _signal(child.pid, signal.SIGTERM)
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            _signal(child.pid, signal.SIGKILL)

    threading.Thread(target=end_with_input, daemon=True).start()
    code = child.wait()
    _signal(child.pid, signal.SIGKILL)  # processes it left behind
    return code


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
