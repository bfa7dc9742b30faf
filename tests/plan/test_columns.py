"""Columns of jobs: how a layout divides a batch, and accelerators' figures as the model reads them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.model.layout import RECOMPUTE, SHARDING
from puna.plan.equations.columns import (
    PRECISIONS,
    DeviceColumns,
    JobColumns,
    LayoutColumns,
    device_columns,
    stack_columns,
    take,
)
from puna.plan.equations.hardware import Accelerator, catalogue, find_accelerator
from puna.plan.equations.shape import Shape

LLAMA_8B = Shape(32, 4096, 32, 8, 128, 14336, 128256)
H100 = find_accelerator("h100")


def peak(device: DeviceColumns, precision: str) -> float:
    return float(np.asarray(device.peak)[PRECISIONS.index(precision)])


def test_an_h100_in_bytes_and_flops_a_second():
    device = device_columns(H100)
    assert (peak(device, "bf16"), peak(device, "fp8")) == (989e12, 1979e12)
    assert device.memory_rate == 3350e9
    assert (device.link_rate, device.link_domain) == (450e9, 8)
    assert device.nic_rate == 50e9  # 400 Gbit/s
    assert 79 * 2**30 < device.memory_bytes < 80 * 2**30


def test_the_network_can_be_ones_own():
    assert device_columns(H100, nic_gbit_per_s=100).nic_rate == 12.5e9


@pytest.mark.parametrize("accelerator", catalogue().values(), ids=lambda a: a.name)
def test_narrower_products_are_never_slower(accelerator: Accelerator):
    device = device_columns(accelerator)
    peaks = [peak(device, name) for name in ("fp32", "bf16", "fp8", "nvfp4")]
    assert peaks == sorted(peaks)
    assert peak(device, "mxfp8") == peak(device, "fp8")
    if accelerator.fp8_tflops is None:
        assert peak(device, "fp8") == peak(device, "bf16")
    for precision in PRECISIONS[:2]:
        assert peak(device, precision) == pytest.approx(accelerator.peak_tflops(precision) * 1e12)


def test_a_cpu_has_its_own_fp32_peak():
    # Without bf16 products a CPU's two peaks are the same.
    figures = {**H100.model_dump(), "name": "cpu", "generation": "cpu", "bf16_tflops": 1.0, "fp32_tflops": 1.0}
    assert peak(device_columns(Accelerator(**figures)), "fp32") == 1e12


def test_what_a_layout_makes_of_a_batch():
    # Llama 3, arXiv 2407.21783 table 4: 16M tokens in sequences of 8,192 on 16,384 GPUs, 16 of them per rank.
    layout = LayoutColumns(tp=8, cp=1, pp=16, dp=128)
    jobs = JobColumns(LLAMA_8B, device_columns(H100), layout, seq_len=8192, batch=2048)
    assert layout.accelerators == 16384
    assert jobs.micro_batches == 16
    assert jobs.tokens == 8192
    # The same at 131,072 tokens with CP 16 and DP 8.
    long = JobColumns(
        LLAMA_8B, device_columns(H100), LayoutColumns(tp=8, cp=16, pp=16, dp=8), seq_len=131072, batch=128
    )
    assert long.layout.accelerators == 16384
    assert (long.micro_batches, long.tokens) == (16, 8192)


sizes = st.sampled_from([1, 2, 4, 8])


@settings(deadline=None)
@given(sizes, sizes, sizes, st.integers(1, 32))
def test_every_token_is_somewhere(cp, dp, micro_batch, passes):
    batch = dp * micro_batch * passes
    jobs = JobColumns(
        LLAMA_8B, device_columns(H100), LayoutColumns(cp=cp, dp=dp, micro_batch=micro_batch), seq_len=4096, batch=batch
    )
    assert jobs.micro_batches * jobs.tokens * dp * cp == batch * 4096


def test_peaks_of_many_jobs_on_many_devices():
    devices = stack_columns([device_columns(find_accelerator(name)) for name in ("h100", "a100", "b200")])
    layouts = stack_columns([LayoutColumns()] * 3)
    codes = np.array([PRECISIONS.index(name) for name in ("fp8", "bf16", "nvfp4")])
    jobs = JobColumns(stack_columns([LLAMA_8B] * 3), devices, layouts, np.full(3, 8192), np.full(3, 8), codes)
    assert jobs.peak_flops() == pytest.approx([1979e12, 312e12, 9000e12])
    assert jobs.peak_of(PRECISIONS.index("bf16")) == pytest.approx([989e12, 312e12, 2250e12])
    one = JobColumns(LLAMA_8B, device_columns(H100), LayoutColumns(), 8192, 8, PRECISIONS.index("fp8"))
    assert one.peak_flops() == 1979e12
    # One device, many layouts, as in a search.
    several = JobColumns(LLAMA_8B, device_columns(H100), layouts, 8192, 8, codes[:2])
    assert several.peak_flops() == pytest.approx([1979e12, 989e12])


layouts = st.builds(
    LayoutColumns,
    tp=st.integers(1, 8),
    pp=st.integers(1, 16),
    dp=st.integers(1, 64),
    micro_batch=st.integers(1, 8),
    sharding=st.integers(0, len(SHARDING) - 1),
    recompute=st.integers(0, len(RECOMPUTE) - 1),
    sequence_parallel=st.booleans(),
)


@settings(deadline=None)
@given(st.lists(layouts, min_size=1, max_size=8), st.data())
def test_taking_rows_of_columns(rows, data):
    count = len(rows)
    jobs = JobColumns(
        stack_columns([LLAMA_8B] * count),
        stack_columns([device_columns(H100)] * count),
        stack_columns(rows),
        np.full(count, 4096),
        np.arange(count),
        np.ones(count, dtype=int),
    )
    chosen = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1)))
    some = take(jobs, chosen)
    assert list(some.batch) == list(chosen)
    assert list(some.layout.accelerators) == [rows[i].accelerators for i in chosen]
    assert list(some.layout.sequence_parallel) == [rows[i].sequence_parallel for i in chosen]
    assert some.device.peak.shape == (len(chosen), len(PRECISIONS))
