"""How busy this machine is with other programs: what a measurement must know before it is believed. No torch."""

import os
import time
from pathlib import Path


def other_load(seconds: float = 0.5) -> float:
    """How many threads of other programs want a core now, on average over `seconds` in which this process sleeps.

    Linux counts runnable threads (proc(5), loadavg, fourth field); elsewhere the load average of the last minute, of
    which this process is a part, is the nearest there is. 0.0 where the system says nothing.
    """
    counts = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            runnable = Path("/proc/loadavg").read_text(encoding="utf-8").split()[3].partition("/")[0]
            counts.append(max(0, int(runnable) - 1))  # this thread, which is reading
        except (OSError, IndexError, ValueError):
            return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        time.sleep(0.02)
    return sum(counts) / max(1, len(counts))


def busy(load: float, cores: int) -> str:
    """A sentence when other programs take more than half of the cores, else ""."""
    if load <= 0.5 * cores:
        return ""
    return (
        f"Other programs want {load:.1f} of this machine's {cores} cores now. What is measured takes longer than on a "
        "quiet machine, and differs from one minute to the next."
    )
