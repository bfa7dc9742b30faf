"""Measurements of the machine: plausible rates, memory within the system's, container limits."""

import subprocess
import sys

import psutil
import pytest

from puna.train.measure import device, machine


@pytest.fixture(scope="module")
def measured() -> machine.Machine:
    return machine.measure("cpu")


def test_rates_are_those_of_a_real_machine(measured: machine.Machine) -> None:
    # From an old single core with other work on it to the fastest two-socket server.
    assert 1e8 < measured.matmul_flops["fp32"] < 1e15
    assert 0 < measured.matmul_flops["bf16"] < 1e15


def test_memory_is_within_what_the_system_has(measured: machine.Machine) -> None:
    assert 0 < measured.memory_bytes <= psutil.virtual_memory().total


def test_cores_are_within_what_the_system_has(measured: machine.Machine) -> None:
    assert 1 <= measured.cores <= psutil.cpu_count()


@pytest.mark.parametrize(("bf16", "expected"), [(380e9, "bf16"), (110e9, "fp32"), (1e9, "fp32")])
def test_bf16_is_used_only_where_it_is_clearly_faster(bf16: float, expected: str) -> None:
    found = machine.Machine("cpu", "", 2, 2**30, {"fp32": 100e9, "bf16": bf16}, True)
    assert found.fast_precision == expected


def test_a_compiler_that_fails_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")  # found on the path, but builds nothing
    machine.has_compiler.cache_clear()
    assert machine.has_compiler() is False
    machine.has_compiler.cache_clear()


def test_container_limits_are_obeyed(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name, text in (
        ("memory.max", "1000000000\n"),
        ("memory.current", "700000000\n"),
        ("memory.stat", "anon 500000000\ninactive_file 100000000\n"),
        ("cpu.max", "50000 100000\n"),
    ):
        (tmp_path / name).write_text(text)
    for module in (device, machine):
        monkeypatch.setattr(module, "cgroup_folder", lambda: tmp_path)
    assert machine.memory_bytes("cpu") == 1_000_000_000 - 700_000_000 + 100_000_000
    assert machine.cores() == 1


def test_an_unlimited_container_has_the_whole_machine(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    for module in (device, machine):
        monkeypatch.setattr(module, "cgroup_folder", lambda: tmp_path)
    assert machine.memory_bytes("cpu") > 100_000_000
    assert machine.cores() >= 1


def test_the_peak_of_memory_counts_this_process_and_can_start_again() -> None:
    script = """
import numpy
from puna.train.measure.machine import reset_peak_process_memory, peak_process_memory
before = peak_process_memory()
block = numpy.ones(40_000_000)
high = peak_process_memory()
del block
reset_peak_process_memory()
print(before, high, peak_process_memory())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, high, after = map(int, done.stdout.split())
    assert high - before > 300_000_000
    if sys.platform == "linux":
        assert after < high - 200_000_000
