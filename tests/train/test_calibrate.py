"""Measuring a device: all figures are present, fits recover known values, and plans use stored results."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from puna.core.errors import PunaError
from puna.plan.evidence.local_device import Calibration, calibration_path, this_machine
from puna.train.measure import calibrate, collectives
from puna.train.measure import microbenchmarks as rates

SMALL = {"layers": ((64, 32, 64), (64, 64, 32), (128, 64, 64)), "attention": ((64, 32), (32, 32), (64, 16))}
FIGURES = ("matmul_tflops", "matmul_fp32_tflops", "attention_tflops", "stream_gb_per_s", "gate_gb_per_s", "muon_tflops")


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sizes that take no time, and a separate folder for the results."""
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(calibrate, "FAR_OFF", math.inf)  # products this small are slow
    for name, sizes in (
        ("_BEST", ((64, 64, 64),)),
        ("_LAYERS", SMALL["layers"]),
        ("_ATTENTION", SMALL["attention"]),
        ("_VOCABULARIES", (64, 256)),
        ("_COPIED_NUMBERS", 2**12),
        ("_MUON", 32),
    ):
        monkeypatch.setitem(getattr(calibrate, name), "cpu", sizes)
    for name, value in (("_ROUNDS", 2), ("_BUDGET", 0.0), ("_QUICK_ROUNDS", 1), ("_QUICK_BUDGET", 0.0)):
        monkeypatch.setattr(calibrate, name, value)
    monkeypatch.setitem(collectives._QUICK, "cpu", 2**12)


@pytest.mark.usefixtures("_small")
def test_every_figure_is_measured_and_plans_use_them() -> None:
    before = this_machine().accelerator
    found = calibrate.calibrate("cpu", quick=True)
    for name in FIGURES:
        assert 0 < getattr(found, name) < math.inf, name
    assert found.products_fp32 is not None
    assert {(rate.seq_len, rate.head_dim) for rate in found.attention_fp32} == set(SMALL["attention"])
    assert [rate.vocab for rate in found.loss] == [64, 256]
    assert found.launch_seconds
    assert found.allgather_gb_per_s
    assert "torch" in found.versions
    after = this_machine().accelerator
    assert before.stream_gb_per_s is None
    assert after.stream_gb_per_s == found.stream_gb_per_s == after.memory_gb_per_s
    assert after.allreduce_gb_per_s == found.allreduce_gb_per_s


@pytest.mark.usefixtures("_small")
def test_stopping_keeps_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "collective_rates", lambda *_, **__: {})
    calibrate.calibrate("cpu", quick=True)
    kept = calibration_path().read_bytes()
    assert json.loads(kept)

    def stop(*_: object, **__: object) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "collective_rates", stop)
    with pytest.raises(KeyboardInterrupt):
        calibrate.calibrate("cpu", quick=True)
    assert calibration_path().read_bytes() == kept


@pytest.mark.usefixtures("_small")
def test_where_bf16_is_emulated_only_its_slowness_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "has_fast_bf16", lambda _: False)
    found = calibrate.quick_rates("cpu")
    assert found.matmul_tflops
    assert found.products is None
    assert found.attention == ()
    assert found.attention_fp32
    assert found.loss


@given(
    tflops=st.floats(0.01, 1000),
    half=st.integers(0, 400),
    sizes=st.lists(st.tuples(*[st.integers(16, 8192)] * 3), min_size=3, max_size=8, unique=True),
)
def test_a_fit_recovers_the_rates_that_made_the_times(tflops: float, half: int, sizes: list[rates.Size]) -> None:
    seconds = [6 * math.prod(size) * math.prod(1 + half / one for one in size) / (tflops * 1e12) for size in sizes]
    found = rates.fit_products(sizes, seconds)
    again = [
        6 * math.prod(size) * math.prod(1 + found.half_size / one for one in size) / (found.tflops * 1e12)
        for size in sizes
    ]
    assert again == pytest.approx(seconds, rel=1e-6)


def test_a_busy_machine_is_measured_by_its_warm_up_alone():
    calls = []
    operations = {"one": lambda: calls.append(1), "two": lambda: calls.append(2)}
    found = rates.time_in_rounds(operations, "cpu", rounds=3, budget=1.0, done=lambda: None, limit=-1.0)
    assert calls == [1, 2]
    assert set(found) == {"one", "two"}


def test_times_are_of_every_operation_and_one_that_memory_cannot_hold_is_left_out() -> None:
    calls = {"small": 0, "large": 0}

    def small() -> None:
        calls["small"] += 1

    def large() -> None:
        calls["large"] += 1
        raise torch.OutOfMemoryError("CUDA out of memory")

    told: list[int] = []
    operations = {"small": small, "large": large}
    found = rates.time_in_rounds(operations, "cpu", rounds=3, budget=0.0, done=lambda: told.append(1))
    assert set(found) == {"small"}
    assert calls == {"small": 4, "large": 1}
    assert len(told) == 2 * (3 + 1)


def test_operations_do_what_their_flops_say() -> None:
    def counted(run: rates.Operation) -> float:
        # Written as products: the counter does not know the CPU's own attention.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run()
        return float(counter.get_total_flops())

    size = (32, 64, 16)
    assert counted(rates.product(size, torch.float32, "cpu")) == rates.flops(size)
    assert counted(rates.training_product(size, torch.float32, "cpu")) == 3 * rates.flops(size)
    assert counted(rates.muon(32, "cpu")) == rates.muon_flops(32)
    # The counter counts the full square; half of it is needed.
    whole = counted(rates.attention_forward(64, 32, torch.float32, "cpu"))
    assert whole == 2 * rates.attention_flops(64, 32, "cpu", backward=False)
    assert rates.attention_flops(64, 32, "cpu", backward=True) == pytest.approx(3.5 * whole / 2)


def test_two_processes_exchange_over_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(collectives._QUICK, "cpu", 2**16)
    found = collectives.collective_rates("cpu", quick=True)
    assert set(found) == {"allreduce_gb_per_s", "allgather_gb_per_s", "latency_seconds"}
    assert all(0 < value < math.inf for value in found.values())
    assert Calibration(device="x", date="", **found)


def test_a_process_that_fails_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.train.run.launch.launch", lambda *_: 1)
    with pytest.raises(PunaError, match="exit code 1"):
        collectives.collective_rates("cpu")
    monkeypatch.setattr("puna.train.run.launch.launch", lambda *_: 130)
    with pytest.raises(KeyboardInterrupt):
        collectives.collective_rates("cpu")


def test_alone_there_is_nothing_to_exchange_with(monkeypatch: pytest.MonkeyPatch) -> None:
    assert collectives.collective_rates("mps") == {}
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert collectives.collective_rates("cpu") == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "cache"))
    found = calibrate.calibrate("cuda", quick=True)
    assert found.matmul_tflops is not None
    assert found.matmul_fp32_tflops is not None
    assert found.matmul_tflops > found.matmul_fp32_tflops > 1
    assert found.products is not None
    assert found.attention
    assert (found.matmul_fp8_tflops is not None) == (torch.cuda.get_device_capability() >= (8, 9))
    assert this_machine().accelerator.matmul_tflops == found.matmul_tflops


@pytest.mark.parametrize(("measured", "believed"), [(0.1, True), (0.03, True), (0.019, False), (0.6, False)])
def test_a_measurement_five_times_off_is_not_kept(measured: float, believed: bool) -> None:
    estimate = this_machine().accelerator.model_copy(update={"generation": "cpu", "fp32_tflops": 0.1})
    found = Calibration(device="x", date="2026-11-30", matmul_tflops=1e-3, matmul_fp32_tflops=measured)
    if believed:
        calibrate.check_plausible(found, estimate)
    else:
        with pytest.raises(PunaError, match="was not stored"):
            calibrate.check_plausible(found, estimate)
