"""This machine: CPUs from /proc/cpuinfo, GPUs from nvidia-smi, and calibrations."""

import json
from pathlib import Path

import pytest

from puna.core.errors import PunaError
from puna.plan.equations.hardware import find_accelerator
from puna.plan.evidence import local_device as machine
from puna.plan.evidence.local_device import Calibration, cpu, read_calibration, this_machine, write_calibration

GENOA = """vendor_id	: AuthenticAMD
cpu family	: 25
model name	: AMD EPYC 9654
cpu MHz		: 2400.000
siblings	: 192
cpu cores	: 96
flags		: fpu avx2 fma avx512f avx512_bf16
"""
SAPPHIRE = """vendor_id	: GenuineIntel
cpu family	: 6
model name	: Intel(R) Xeon(R) Platinum 8480C
cpu MHz		: 2000.000
siblings	: 112
cpu cores	: 56
flags		: fpu avx2 fma avx512f avx512_bf16 amx_bf16
"""


@pytest.fixture(autouse=True)
def _no_cache_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def _nvidia_smi(monkeypatch: pytest.MonkeyPatch, folder: Path, names: list[str]) -> None:
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(names) + "\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def test_a_cpu_peak_is_cores_ports_lanes_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_usable_threads", lambda: 192)
    genoa = cpu(GENOA)  # 96 cores x 2 ports x 2 FLOP x 8 lanes (two halves of 512 bits) x 2.4 GHz
    assert genoa.fp32_tflops == pytest.approx(96 * 32 * 2.4e-3)
    assert genoa.bf16_tflops == pytest.approx(2 * 96 * 32 * 2.4e-3)
    assert "estimate" in genoa.sources["bf16_tflops"]
    monkeypatch.setattr(machine, "_usable_threads", lambda: 112)
    sapphire = cpu(SAPPHIRE)
    assert sapphire.fp32_tflops == pytest.approx(56 * 64 * 2.0e-3)
    assert sapphire.peak_tflops("bf16") == pytest.approx(16 * 56 * 64 * 2.0e-3)


def test_a_machine_that_tells_nothing_still_has_a_plan() -> None:
    assert cpu("").fp32_tflops


def test_without_gpus_it_is_the_cpu() -> None:
    found = this_machine()
    assert (found.count, found.accelerator.generation) == (1, "cpu")


def test_gpus_are_those_that_nvidia_smi_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _nvidia_smi(monkeypatch, tmp_path, ["NVIDIA H100 80GB HBM3"] * 8)
    found = this_machine()
    assert (found.count, found.accelerator) == (8, find_accelerator("h100"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert this_machine().count == 2
    for product, name in (
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
    ):
        _nvidia_smi(monkeypatch, tmp_path, [product])
        assert this_machine().accelerator.name == name
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


def test_an_unknown_gpu_says_how_to_describe_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _nvidia_smi(monkeypatch, tmp_path, ["NVIDIA T1000"] * 2)
    with pytest.raises(PunaError, match=r"--fleet 2xmy-gpu\.toml"):
        this_machine()


def test_what_was_measured_wins() -> None:
    guessed = this_machine().accelerator
    slow = 0.5 * (guessed.fp32_tflops or 0)
    measured = Calibration(device=guessed.name, date="2026-11-23", matmul_fp32_tflops=slow, stream_gb_per_s=33)
    write_calibration(measured)
    write_calibration(Calibration(device="another", date="2026-11-22", matmul_tflops=700))
    found = this_machine().accelerator
    assert (found.matmul_fp32_tflops, found.stream_gb_per_s, found.memory_gb_per_s) == (slow, 33, 33)
    assert found.fp32_tflops == guessed.fp32_tflops
    assert "2026-11-23" in found.sources["stream_gb_per_s"]
    assert read_calibration("another") is not None
    assert read_calibration("a third") is None
    # A measured rate cannot be above the peak, which is an estimate on a CPU.
    write_calibration(measured.model_copy(update={"matmul_fp32_tflops": 4 * slow}))
    assert this_machine().accelerator.fp32_tflops == 4 * slow


@pytest.mark.parametrize("text", ["{", "[]", '{"%s": {"colour": 3}}'])
def test_a_broken_calibration_is_a_sentence(text: str) -> None:
    name = this_machine().accelerator.name
    path = machine.calibration_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("%s", json.dumps(name)[1:-1]))
    with pytest.raises(PunaError, match="puna plan calibrate"):
        this_machine()
