"""This machine's GPUs or CPU, and what `puna plan calibrate` has measured on them.

GPUs are found by nvidia-smi and looked up in the catalogue; a CPU is described from /proc/cpuinfo, every figure an
estimate. Measured figures of a calibration replace these. `evidence.calibrated` turns a calibration into constants of
the cost model. No torch here: plans must start at once.
"""

import csv
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from puna.core.errors import PunaError
from puna.core.files import write_text
from puna.core.recipe import Config
from puna.plan.equations.hardware import OWN, Accelerator, AcceleratorGroup, catalogue


class Products(Config):
    """Rate of a training product (a forward one and its two gradients) of (rows, inputs) x (inputs, outputs).

    Seconds = 6·rows·inputs·outputs / tflops / 1e12 · (1 + half/rows)·(1 + half/inputs)·(1 + half/outputs), as `cost`.
    """

    tflops: float = Field(gt=0, description="rate of an infinitely large product, TFLOP/s")
    half_size: float = Field(ge=0, description="a dimension of this length halves the rate")


class AttentionRate(Config):
    """Causal attention, forward and backward together, at one size; its FLOPs are those of the triangle, 3.5 passes."""

    seq_len: int = Field(gt=0, description="tokens that attend to each other")
    head_dim: int = Field(gt=0, description="width of a head")
    tflops: float = Field(gt=0, description="rate, TFLOP/s")


class LossRate(Config):
    """The loss's passes over the logits of a chunk: 20 bytes a logit, as `cost` counts them."""

    vocab: int = Field(gt=0, description="logits of a token")
    gb_per_s: float = Field(gt=0, description="rate, GB/s")


class Calibration(Config):
    """Measurements of one device; names shared with `Accelerator` mean the same. None: not measured."""

    device: str = Field(description="the device's name, as nvidia-smi or /proc/cpuinfo give it")
    date: str = Field(description="when it was measured, YYYY-MM-DD")
    versions: str = Field("", description="software it was measured with")
    matmul_tflops: float | None = Field(None, gt=0, description="best bf16 product, TFLOP/s")
    matmul_fp32_tflops: float | None = Field(None, gt=0, description="best fp32 product, TFLOP/s")
    matmul_fp8_tflops: float | None = Field(None, gt=0, description="best fp8 product, TFLOP/s")
    attention_tflops: float | None = Field(None, gt=0, description="best causal attention, forward, TFLOP/s")
    stream_gb_per_s: float | None = Field(None, gt=0, description="device memory bandwidth, GB/s")
    products: Products | None = Field(None, description="training products in bf16, over sizes")
    products_fp32: Products | None = Field(None, description="training products in fp32, over sizes")
    attention: tuple[AttentionRate, ...] = Field((), description="attention in bf16, over sizes")
    attention_fp32: tuple[AttentionRate, ...] = Field((), description="attention in fp32, over sizes")
    muon_tflops: float | None = Field(None, gt=0, description="Muon's products of stacked matrices, TFLOP/s")
    loss: tuple[LossRate, ...] = Field((), description="passes over logits, over vocabularies")
    gate_gb_per_s: float | None = Field(None, gt=0, description="SiLU times another tensor, fp32, GB/s")
    launch_seconds: float | None = Field(None, gt=0, description="time of one operation on one number")
    allreduce_gb_per_s: float | None = Field(None, gt=0, description="bus bandwidth within the host, GB/s")
    allgather_gb_per_s: float | None = Field(None, gt=0, description="bus bandwidth within the host, GB/s")
    latency_seconds: float | None = Field(None, gt=0, description="an all-reduce of one number within the host")


# Parts of nvidia-smi's product names and the catalogue's names; the first match counts.
_PRODUCTS = (
    ("GB300", "gb300"),
    ("GB200", "gb200"),
    ("B300", "b300"),
    ("B200", "b200"),
    ("H800", "h800-sxm"),
    ("H200", "h200"),
    ("H100 PCIe", "h100-pcie"),
    ("H100", "h100-sxm"),
    ("A100-SXM4-40GB", "a100-40g"),
    ("A100-SXM", "a100-80g"),
    ("A100 80GB PCIe", "a100-pcie"),
    ("RTX 4090", "rtx4090"),
    ("RTX 5090", "rtx5090"),
)

# A CPU's rough figures, for plans before anything was measured: typical of server and desktop parts of 2022-2026
# (EPYC 9654: 12 channels of DDR5-4800 and 360 W for 96 cores; Ryzen 7950X: 2 channels of DDR5-5200, 170 W for 16).
_CPU_GB_PER_S_PER_CORE, _CPU_WATTS_PER_CORE = 5.0, 6.0


def this_machine() -> AcceleratorGroup:
    """This machine's GPUs, or its CPU as one accelerator, without torch.

    A CPU's peaks are estimates (see `sources`). Figures of a calibration replace those of the catalogue.
    Raises PunaError for GPUs that the catalogue does not have.
    """
    cards = _cards()
    kind = "cuda" if cards else "cpu"
    accelerator = calibrated(accelerator_here(kind), read_calibration(device_here(kind)))
    return AcceleratorGroup(count=max(1, len(cards)), accelerator=accelerator)


def device_here(kind: str) -> str:
    """The name under which measurements of this machine's GPUs ("cuda") or CPU (any other kind) are stored."""
    cards = _cards() if kind == "cuda" else []
    return cards[0] if cards else cpu(_text("/proc/cpuinfo")).name


def accelerator_here(kind: str) -> Accelerator:
    """This machine's kind of GPU ("cuda") or its CPU (any other kind), before anything was measured.

    Raises PunaError for a GPU that the catalogue does not have, with how to describe it.
    """
    cards = _cards() if kind == "cuda" else []
    if not cards:
        return cpu(_text("/proc/cpuinfo"))
    known = next((name for product, name in _PRODUCTS if product in cards[0]), None)
    if known is None:
        raise PunaError(
            f"This machine's GPU, {cards[0]}, is not in the catalogue of accelerators.",
            f"Describe it in a file such as my-gpu.toml and plan with --fleet {len(cards)}xmy-gpu.toml:\n{OWN}",
        )
    return catalogue()[known]


def cpu(cpuinfo: str) -> Accelerator:
    """This machine's CPU as one accelerator, from the text of /proc/cpuinfo; every figure is an estimate.

    fp32 peak = cores x 2 FMA ports x 2 FLOP x vector lanes x clock. AMD's cores before Zen 5 run 512-bit instructions
    as two of 256 bits (software optimization guide 57647, 2023). bf16 counts twice with AVX512-BF16 and 16 times with
    AMX (1024 multiply-adds a cycle, Intel's optimization manual 248966, 2023), else as fp32.
    """
    first = dict(_cpuinfo_pairs(cpuinfo.split("\n\n", 1)[0]))
    flags = set(first.get("flags", first.get("Features", "")).split())
    amd_halves = first.get("vendor_id") == "AuthenticAMD" and int(first.get("cpu family", "0")) < 26
    bits = 512 if "avx512f" in flags and not amd_halves else 256 if flags & {"avx2", "avx512f"} else 128
    threads = _usable_threads()
    siblings, cores = int(first.get("siblings", "1")), int(first.get("cpu cores", "1"))
    cores_used = max(1, round(threads * min(1.0, cores / siblings)))
    clock_ghz = max((float(mhz) for mhz in re.findall(r"cpu MHz\s*:\s*([\d.]+)", cpuinfo)), default=2500.0) / 1e3
    fp32_tflops = cores_used * 2 * 2 * (bits // 32) * clock_ghz / 1e3
    wider = 16 if "amx_bf16" in flags else 2 if "avx512_bf16" in flags else 1
    name = first.get("model name") or platform.processor() or platform.machine()
    memory = _memory_bytes() / 1e9
    rule = f"estimate: {cores_used} cores x 2 FMA ports x {bits} bits x {clock_ghz:.2f} GHz"
    bandwidth = max(20.0, _CPU_GB_PER_S_PER_CORE * cores_used)
    return Accelerator(
        name=f"{name} ({cores_used} cores)",
        generation="cpu",
        bf16_tflops=fp32_tflops * wider,
        fp32_tflops=fp32_tflops,
        memory_gb=memory,
        usable_gib=memory * 1e9 / 2**30,
        memory_gb_per_s=bandwidth,
        link_gb_per_s=bandwidth,
        link_domain=1,
        node_size=1,
        nic_gbit_per_s=10.0,
        watts=_CPU_WATTS_PER_CORE * cores_used,
        sources={
            "bf16_tflops": f"{rule}, bf16 at {wider} x fp32",
            "fp32_tflops": rule,
            "memory_gb": "this machine's, or the container's limit",
            "memory_gb_per_s": "estimate: 5 GB/s a core, at least 20",
            "link_gb_per_s": "estimate: processes talk through memory",
            "nic_gbit_per_s": "assumed: 10 Gbit/s Ethernet",
            "watts": "estimate: 6 W a core",
        },
    )


def has_compiler() -> bool:
    """Whether a C++ compiler is found, which compiled blocks need on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def calibration_path() -> Path:
    """The file with measurements of this machine: calibration.json in $PUNA_CACHE or ~/.cache/puna."""
    return Path(os.environ.get("PUNA_CACHE") or Path.home() / ".cache" / "puna") / "calibration.json"


def read_calibration(device: str) -> Calibration | None:
    """The calibration of `device`, or None. Raises PunaError when the file exists but cannot be read."""
    tree = _calibrations()
    if device not in tree:
        return None
    try:
        return Calibration.model_validate(tree[device])
    except ValidationError:
        raise PunaError(
            f"{calibration_path()} does not hold a valid calibration.", "Run `puna plan calibrate`."
        ) from None


def write_calibration(calibration: Calibration) -> Path:
    """Store `calibration`, replacing an older one of the same device. Returns the file."""
    path = calibration_path()
    tree = _calibrations() | {calibration.device: calibration.model_dump(exclude_none=True)}
    write_text(path, json.dumps(tree, indent=2) + "\n")
    return path


def calibrated(accelerator: Accelerator, calibration: Calibration | None) -> Accelerator:
    """`accelerator` with measured figures and their date in `sources`.

    A CPU's peaks and bandwidth are estimates: its bandwidth becomes the measured one, and its peaks are raised to at
    least what was reached.
    """
    if calibration is None:
        return accelerator
    shared = set(Calibration.model_fields) & set(Accelerator.model_fields)
    measured = calibration.model_dump(include=shared, exclude_none=True)
    if accelerator.generation == "cpu":
        reached = {"bf16_tflops": calibration.matmul_tflops, "fp32_tflops": calibration.matmul_fp32_tflops}
        measured |= {name: rate for name, rate in reached.items() if rate and rate > (getattr(accelerator, name) or 0)}
        if calibration.stream_gb_per_s:
            measured["memory_gb_per_s"] = calibration.stream_gb_per_s
        if calibration.allreduce_gb_per_s:  # used by whole copies of the weights, the default on CPUs
            measured["link_gb_per_s"] = calibration.allreduce_gb_per_s
    told = f"measured on this machine, {calibration.date} {calibration.versions}".strip()
    sources = accelerator.sources | dict.fromkeys(measured, told)
    return accelerator.model_copy(update={**measured, "sources": sources})


def _calibrations() -> dict[str, Any]:
    path = calibration_path()
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PunaError(f"{path} cannot be read ({error}).", "Delete it and run `puna plan calibrate`.") from None
    if not isinstance(tree, dict):
        raise PunaError(f"{path} is not a calibration.", "Delete it and run `puna plan calibrate`.")
    return tree


def _cards() -> list[str]:
    """Product names of this machine's visible NVIDIA GPUs, as nvidia-smi gives them; [] without any."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return []
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    names = [row[0].strip() for row in csv.reader(answer.splitlines()) if row]
    return names if visible is None else names[: len(visible.split(","))]


def _cpuinfo_pairs(text: str) -> list[tuple[str, str]]:
    lines = (line.partition(":") for line in text.splitlines())
    return [(key.strip(), value.strip()) for key, colon, value in lines if colon]


def _usable_threads() -> int:
    """Threads this process may run on: its affinity mask, lowered by the container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _text("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        allowed = min(allowed, max(1, round(int(quota[0]) / int(quota[1]))))
    return allowed


def _memory_bytes() -> int:
    """Memory of this machine, or of the container where that is less."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    return min(pages, int(limit)) if limit.isdigit() else pages


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
