"""What this machine can do, measured: how fast it multiplies matrices, how much memory is left, whether it compiles.

Plans and MFU stand on these numbers. Nothing here comes from a datasheet: a laptop on battery, a container with half a
core and a card with a lowered power limit all get the rate they really reach. torch is imported only to measure.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# (m, k, n) of the products that are timed. Squares show what the device can reach; the long, narrow ones are what a
# small Llama's feed-forward asks for. The best of them counts as the device's rate.
CPU_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 256, 688), (4096, 688, 256))
ACCELERATOR_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (8192, 4096, 14336))

# Training in bf16 must pay for its casts; below this gain over fp32 it is not worth its lost digits.
WORTHWHILE_GAIN = 1.2


@dataclass(frozen=True)
class Machine:
    """One device as it was found.

    memory_bytes: what a new process may use now (on CPU: free memory within the container's limit; else the device's
    free memory). matmul_flops: best measured FLOP/s by precision, "fp32" and "bf16". has_compiler: torch.compile can
    build its kernels here.
    """

    device: str
    name: str
    cores: int
    memory_bytes: int
    matmul_flops: dict[str, float]
    has_compiler: bool

    @property
    def fast_precision(self) -> str:
        """ "bf16" where bf16 products are clearly faster than fp32 ones, else "fp32"."""
        gain = self.matmul_flops["bf16"] / self.matmul_flops["fp32"]
        return "bf16" if gain >= WORTHWHILE_GAIN else "fp32"


def measure(device: str | None = None) -> Machine:
    """Measure `device` ("cpu", "cuda", "mps"; None: the best there is). Takes two or three seconds.

    Best-of-several timing, so that other work on the machine disturbs it little; it can only read too low.
    """
    device = device or best_device()
    return Machine(
        device=device,
        name=device_name(device),
        cores=cores(),
        memory_bytes=memory_bytes(device),
        matmul_flops=matmul_flops(device),
        has_compiler=has_compiler(),
    )


def best_device() -> str:
    """ "cuda" or "mps" when torch finds one, else "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def matmul_flops(device: str) -> dict[str, float]:
    """Measured FLOP/s of matrix products in fp32 and bf16 on `device`: the best over a few shapes, about a second.

    A CPU without bf16 instructions emulates them up to a hundred times slower; then a small product is enough to know,
    and its rate is returned.
    """
    import torch

    shapes = CPU_SHAPES if device == "cpu" else ACCELERATOR_SHAPES
    budget = 0.12 if device == "cpu" else 0.1
    fp32 = max(_rate(device, torch.float32, shape, budget) for shape in shapes)
    bf16 = _rate(device, torch.bfloat16, (256, 256, 256), budget / 2)
    if device != "cpu" or bf16 > fp32 / 4:
        bf16 = max(_rate(device, torch.bfloat16, shape, budget) for shape in shapes)
    return {"fp32": fp32, "bf16": bf16}


def cores() -> int:
    """CPU cores this process may use: its affinity mask, lowered by the container's quota (at least 1)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_numbers("cpu.max")
    if len(quota) == 2 and quota[1]:
        allowed = min(allowed, max(1, round(quota[0] / quota[1])))
    return allowed


def memory_bytes(device: str = "cpu") -> int:
    """Bytes a new process may use on `device` now; on CPU the container's limit counts when it is the lower one."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    limit = _cgroup_numbers("memory.max") or _cgroup_numbers("memory/memory.limit_in_bytes")
    used = _cgroup_numbers("memory.current") or _cgroup_numbers("memory/memory.usage_in_bytes")
    if limit and used:
        free = min(free, max(0, limit[0] - used[0] + _reclaimable()))
    return free


def peak_process_memory() -> int:
    """Largest resident memory of this process so far, bytes.

    Linux counts it for this program (VmHWM); getrusage's number also knows what the parent had when it forked us.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def forget_peak_process_memory() -> None:
    """Let the peak count from now on, where the system allows it: what went before was not the run's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5): resets the peak, nothing else


def device_name(device: str) -> str:
    """The device's name as its maker gives it, or the machine's architecture where none is known."""
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
    """Whether torch.compile can build CPU kernels: a C++ compiler with OpenMP and Python's headers, tried on a file.

    Tried rather than looked up: a compiler without libgomp or Python.h is found on the path and fails later, in the
    middle of the first step. Inductor takes $CXX, g++ or clang++ (torch/_inductor/config.py, cpp.cxx).
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


def _rate(device: str, dtype: "torch.dtype", shape: tuple[int, int, int], budget: float) -> float:
    """FLOP/s of one product (m, k) x (k, n): 2·m·k·n over the shortest time seen within `budget` seconds."""
    import torch

    m, k, n = shape
    left = torch.randn(m, k, device=device).to(dtype)
    right = torch.randn(k, n, device=device).to(dtype)
    wait: Callable[[], None] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)

    def product() -> None:
        left @ right
        wait()

    with torch.inference_mode():
        times = _times(product, budget)
    return 2.0 * m * k * n / min(times)


def _times(run: Callable[[], object], budget: float, least: int = 3) -> list[float]:
    """Seconds of each call of `run` after one warm-up call: at least `least` calls, then until `budget` is spent.

    A call that alone takes the whole budget is not repeated.
    """
    started = time.perf_counter()
    run()
    warmup = time.perf_counter() - started
    if warmup > 4 * budget:
        return [warmup]
    times: list[float] = []
    while len(times) < least or sum(times) < budget:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return times


def _cgroup_numbers(name: str) -> list[int]:
    """The numbers in a control file of this process's cgroup (v2) or of the v1 tree; [] for none or "max"."""
    for folder in (_cgroup_folder(), Path("/sys/fs/cgroup")):
        try:
            words = (folder / name).read_text(encoding="utf-8").split()
        except OSError:
            continue
        if all(word.isdigit() for word in words):
            return [int(word) for word in words]
    return []


def _cgroup_folder() -> Path:
    """This process's cgroup v2 folder (line "0::/path" of /proc/self/cgroup)."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    path = next((line[3:] for line in lines if line.startswith("0::")), "/")
    return Path("/sys/fs/cgroup", path.lstrip("/"))


def _reclaimable() -> int:
    """Bytes of file cache that count as used in the cgroup but go when memory is asked for."""
    for folder, name in ((_cgroup_folder(), "memory.stat"), (Path("/sys/fs/cgroup/memory"), "memory.stat")):
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
