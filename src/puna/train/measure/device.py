"""Find the device of a run, the cores it may use, and the limits that a container sets."""

import os
from pathlib import Path


def best_device() -> str:
    """ "cuda" or "mps" when torch finds one, otherwise "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def cores() -> int:
    """CPU cores this process may use.

    This is its affinity mask, lowered by the container's quota (at least 1).
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_numbers("cpu.max")
    if len(quota) == 2 and quota[1]:
        allowed = min(allowed, max(1, round(quota[0] / quota[1])))
    return allowed


def cgroup_numbers(name: str) -> list[int]:
    """The numbers in a control file of this process's cgroup (v2) or of the v1 tree.

    [] if missing or "max".
    """
    for folder in (cgroup_folder(), Path("/sys/fs/cgroup")):
        try:
            words = (folder / name).read_text(encoding="utf-8").split()
        except OSError:
            continue
        if all(word.isdigit() for word in words):
            return [int(word) for word in words]
    return []


def cgroup_folder() -> Path:
    """This process's cgroup v2 folder (line "0::/path" of /proc/self/cgroup)."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    path = next((line[3:] for line in lines if line.startswith("0::")), "/")
    return Path("/sys/fs/cgroup", path.lstrip("/"))
