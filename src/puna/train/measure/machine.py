"""Measure how fast this machine computes, how much memory is free, whether it compiles.

Plans and MFU are based on these numbers. Nothing here comes from a datasheet: a laptop on battery, a container with
half a core and a card with a lowered power limit all get the rate that they really reach. `train.measure.calibrate`
measures the rates; torch is imported only for that.
"""

import contextlib
import ctypes
import gc
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from puna.plan.evidence.local_device import Calibration
from puna.train.measure.device import best_device as best_device
from puna.train.measure.device import cgroup_folder, cgroup_numbers
from puna.train.measure.device import cores as cores

# The gain of bf16 training must pay for its casts; below this gain over fp32 it is not worth the lost precision.
WORTHWHILE_GAIN = 1.2


@dataclass(frozen=True)
class Machine:
    """Measurements of one device.

    memory_bytes: what a new process may use now (on CPU: free memory within the container's limit; otherwise the
    device's free memory). matmul_flops: best measured FLOP/s by precision, "fp32" and "bf16". has_compiler:
    torch.compile can build its kernels here. rates: further measurements, used for predictions; None: not measured.
    """

    device: str
    name: str
    cores: int
    memory_bytes: int
    matmul_flops: dict[str, float]
    has_compiler: bool
    rates: Calibration | None = None

    @property
    def fast_precision(self) -> str:
        """ "bf16" where bf16 products are clearly faster than fp32, otherwise "fp32"."""
        gain = self.matmul_flops["bf16"] / self.matmul_flops["fp32"]
        return "bf16" if gain >= WORTHWHILE_GAIN else "fp32"


def measure(device: str | None = None) -> Machine:
    """Measure `device` ("cpu", "cuda", "mps"; None: the best available).

    Takes about three seconds. Each rate is a median of several calls, so that brief other work on the machine does not
    count.
    """
    from puna.train.measure.calibrate import quick_rates

    device = device or best_device()
    rates = quick_rates(device)
    products = {"fp32": rates.matmul_fp32_tflops, "bf16": rates.matmul_tflops}
    return Machine(
        device=device,
        name=device_name(device),
        cores=cores(),
        memory_bytes=memory_bytes(device),
        matmul_flops={name: 1e12 * rate for name, rate in products.items() if rate},
        has_compiler=has_compiler(),
        rates=rates,
    )


def memory_bytes(device: str = "cpu") -> int:
    """Bytes that a new process may use on `device` now.

    On CPU the container's limit applies if it is lower.
    """
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    limit = cgroup_numbers("memory.max") or cgroup_numbers("memory/memory.limit_in_bytes")
    used = cgroup_numbers("memory.current") or cgroup_numbers("memory/memory.usage_in_bytes")
    if limit and used:
        free = min(free, max(0, limit[0] - used[0] + _reclaimable()))
    return free


def peak_process_memory() -> int:
    """Peak resident memory of this process so far, bytes.

    Linux counts it per program (VmHWM); getrusage's number includes what the parent had when it forked this process.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def reset_peak_process_memory() -> None:
    """Start counting the peak from now on, where the system allows it.

    This excludes memory that the run did not use. Free heap memory is returned to the system first. glibc keeps it
    otherwise (half a gigabyte after a tuning stage).
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5): resets only the peak


def device_name(device: str) -> str:
    """The device's name as its manufacturer gives it, or the machine's architecture if unknown."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    if platform.system() == "Darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def has_compiler() -> bool:
    """Whether torch.compile can build CPU kernels.

    Compiles a test file that needs C++, OpenMP and Python's headers. Looking for a compiler is not enough: one without
    libgomp or Python.h is found on the path and fails later, in the middle of the first step. Inductor uses $CXX, g++
    or clang++ (torch/_inductor/config.py, cpp.cxx).
    """
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))), None)
    if compiler is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.cpp")
        source.write_text("#include <Python.h>\n#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n")
        flags = ["-shared", "-fPIC", "-fopenmp", f"-I{sysconfig.get_paths()['include']}"]
        if platform.system() == "Darwin":
            flags += ["-undefined", "dynamic_lookup"]
        command = [compiler, *flags, str(source), "-o", str(Path(folder, "try.so"))]
        try:
            return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False


def _reclaimable() -> int:
    """Bytes of file cache that count as used in the cgroup but are freed on demand."""
    for folder, name in ((cgroup_folder(), "memory.stat"), (Path("/sys/fs/cgroup/memory"), "memory.stat")):
        try:
            pairs = (line.split() for line in (folder / name).read_text(encoding="utf-8").splitlines())
        except OSError:
            continue
        return next((int(pair[1]) for pair in pairs if pair[0] in ("inactive_file", "total_inactive_file")), 0)
    return 0


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
