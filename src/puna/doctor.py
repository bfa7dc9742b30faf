"""Check this machine for Puna: what is available, what is missing, and how to get it.

Each check returns a Finding; none of them changes anything or takes more than a few seconds. torch is imported only by
the checks that need it.
"""

import importlib.util
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from puna.core.errors import PunaError
from puna.core.load import busy, other_load
from puna.core.units import format_bytes

LITTLE_DISK = 10 * 2**30
"""Free space below which a run's checkpoints soon fill the disk."""
OLD_DAYS = 90
EXTENSIONS = (
    ("avx2", "AVX2"),
    ("avx512f", "AVX-512"),
    ("avx512_vnni", "VNNI"),
    ("avx512_bf16", "BF16"),
    ("amx_bf16", "AMX"),
)
"""Flags in /proc/cpuinfo, and common names, of instructions that speed up Puna's matrix products."""


@dataclass(frozen=True)
class Finding:
    """One fact about this machine.

    state: ok, note (works, but check it) or missing. advice: what to do, or "".
    """

    name: str
    found: str
    state: str = "ok"
    advice: str = ""

    def plain(self) -> dict[str, str]:
        """As plain JSON."""
        return asdict(self)


def examine() -> list[Finding]:
    """All findings, in the order in which a person would ask."""
    checks: tuple[Callable[[], Finding], ...] = (
        software,
        processor,
        load,
        instructions,
        gpu,
        memory,
        disk,
        compiler,
        sandbox,
        calibration,
        extras,
    )
    return [check() for check in checks]


def software() -> Finding:
    """Versions of Puna, Python and torch."""
    import torch

    from puna.version import __version__

    return Finding("software", f"puna {__version__}, Python {platform.python_version()}, torch {torch.__version__}")


def processor() -> Finding:
    """The processor's name and the cores that this process may use."""
    from puna.train.measure.machine import cores, device_name

    return Finding("processor", f"{device_name('cpu')}, {_count(cores(), 'core')}")


def load() -> Finding:
    """How many cores other programs are using."""
    from puna.train.measure.machine import cores

    wanted = other_load()
    warning = busy(wanted, cores())
    found = f"other programs use {wanted:.1f} of {_count(cores(), 'core')}"
    return Finding("load", found, "note" if warning else "ok", "Measure when they have ended." if warning else "")


def instructions() -> Finding:
    """The processor's vector instructions, and the precision used for training."""
    from puna.model.torch_compat import multiplies_bfloat16

    flags = _cpu_flags()
    names = [name for flag, name in EXTENSIONS if flag in flags] or [platform.machine()]
    products = "bf16 products" if multiplies_bfloat16() else "fp32 products (no fast bf16)"
    return Finding("instructions", f"{', '.join(names)}: {products}")


def gpu() -> Finding:
    """The accelerators that torch can use."""
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    if torch.backends.mps.is_available():
        return Finding("GPU", "Apple, through MPS")
    if shutil.which("nvidia-smi"):
        advice = "Install a CUDA build of torch (pytorch.org/get-started)."
        return Finding("GPU", "found, but this torch cannot use it", "missing", advice)
    return Finding("GPU", "none: everything runs on the processor")


def memory() -> Finding:
    """Memory that a new process may use."""
    from puna.train.measure.machine import memory_bytes

    return Finding("memory", f"{format_bytes(memory_bytes())} free")


def disk() -> Finding:
    """Free space for runs and models."""
    free = shutil.disk_usage(Path.cwd()).free
    little = free < LITTLE_DISK
    advice = (
        "Free some space, or work in another folder: checkpoints of a run take several times its model."
        if little
        else ""
    )
    return Finding("disk", f"{format_bytes(free)} free in {Path.cwd()}", "note" if little else "ok", advice)


def compiler() -> Finding:
    """Whether torch.compile and the engine's kernels can be built."""
    from puna.train.measure.machine import has_compiler

    if has_compiler():
        return Finding("compiler", "C++ with OpenMP and Python's headers")
    advice = (
        "On Debian or Ubuntu: apt-get install g++ python3-dev. On macOS: xcode-select --install, brew install libomp."
    )
    return Finding("compiler", "none that works: training and generation on a CPU are slower", "missing", advice)


def sandbox() -> Finding:
    """The sandbox level for programs written by a model."""
    from puna.sandbox.remote import RemoteSandbox, place
    from puna.sandbox.worker import Sandbox

    try:
        box = RemoteSandbox(place()) if place() else Sandbox()
    except PunaError as error:
        return Finding("sandbox", str(error), "missing")
    level, missing = box.level, [name for name, why in box.walls.items() if why]
    box.close()
    if level == "isolated":
        return Finding("sandbox", "isolated: all protections work")
    advice = (
        "Find out why: puna sandbox check. bubblewrap or a container raises it: PUNA_SANDBOX=bwrap (docs/sandbox.md)."
    )
    return Finding("sandbox", f"{level}, without {', '.join(missing) or 'some walls'}", "note", advice)


def calibration() -> Finding:
    """What `puna plan calibrate` measured here, how old it is, and whether it is plausible."""
    from puna.plan.evidence.local_device import accelerator_here, calibration_path, device_here, read_calibration
    from puna.train.measure.calibrate import check_plausible
    from puna.train.measure.machine import best_device

    device, advice = best_device(), "Run `puna plan calibrate` when nothing else is running."
    try:
        found = read_calibration(device_here(device))
        if found is None:
            return Finding("calibration", "none: plans for this machine are based on estimates", "missing", advice)
        check_plausible(found, accelerator_here(device))
    except PunaError as error:
        return Finding("calibration", str(error), "note")
    days = (datetime.now(UTC).date() - date.fromisoformat(found.date)).days
    text = f"{calibration_path()}, {_count(days, 'day')} old"
    return Finding("calibration", text, "note" if days > OLD_DAYS else "ok", advice if days > OLD_DAYS else "")


def extras() -> Finding:
    """Optional packages: which of the extras are installed."""
    wanted: dict[str, list[str]] = {}
    for line in requires("puna") or []:
        match = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line)
        if match and match[2] not in ("dev", "docs"):
            wanted.setdefault(match[2], []).append(match[1])
    have = [name for name, packages in wanted.items() if all(map(_installed, packages))]
    lacking = [name for name in wanted if name not in have]
    advice = f'When one is needed: pip install "puna[{lacking[0]}]".' if lacking else ""
    return Finding("extras", f"with {', '.join(have) or 'none'}; without {', '.join(lacking) or 'none'}", "ok", advice)


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return importlib.util.find_spec(package.replace("-", "_")) is not None
    return True


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def summary(findings: list[Finding]) -> dict[str, Any]:
    """The findings and the names of what is missing, as plain JSON."""
    missing = [finding.name for finding in findings if finding.state == "missing"]
    return {"findings": [finding.plain() for finding in findings], "missing": missing}
