"""Measure what this device reaches over a grid of sizes.

This covers products, attention, the loss, memory and collectives. `puna plan calibrate` stores the result where
`plan.machine` finds it, and every later plan for this machine uses it. A training run measures a few of the sizes again
before it starts (`train.measure.machine`): a laptop on battery is not the same device as the one on the desk. This
lives here and not in `plan`, which must work without torch.
"""

import contextlib
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from puna.core.errors import PunaError
from puna.core.load import busy, other_load
from puna.plan.equations.hardware import Accelerator
from puna.plan.evidence.local_device import (
    AttentionRate,
    Calibration,
    LossRate,
    accelerator_here,
    device_here,
    write_calibration,
)
from puna.train.measure.collectives import collective_rates
from puna.train.measure.device import best_device, cores

FAR_OFF = 5
"""A measurement this many times faster or slower than the estimate is rejected as disturbed."""

# Products (rows, inputs, outputs); the fastest counts as the device's peak. Squares show what it can reach; the long,
# narrow ones are what the feed-forward of a small Llama computes.
_BEST = {
    "cpu": ((1024, 1024, 1024), (4096, 256, 688), (4096, 688, 256)),
    "gpu": ((4096, 4096, 4096), (8192, 8192, 8192), (8192, 4096, 14336)),
}
# Products (rows, inputs, outputs) of linear layers in training, attention's (seq_len, head_dim), and the vocabulary of
# the loss. A quick calibration uses only the first ones.
_LAYERS = {
    "cpu": (
        (1024, 256, 688),
        (512, 64, 176),
        (1024, 256, 256),
        (1024, 512, 1376),
        (512, 128, 344),
        (4096, 256, 688),
        (4096, 688, 256),
        (1024, 256, 4096),
        (4096, 320, 864),
        (1024, 1024, 1024),
    ),
    "gpu": (
        (8192, 4096, 4096),
        (8192, 1024, 1024),
        (8192, 4096, 14336),
        (2048, 2048, 2048),
        (8192, 14336, 4096),
        (16384, 8192, 8192),
        (2048, 1024, 4096),
        (16384, 2048, 8192),
    ),
}
_ATTENTION = {
    "cpu": ((512, 64), (256, 64), (1024, 64), (512, 32), (128, 64), (2048, 64), (512, 128)),
    "gpu": ((4096, 128), (1024, 128), (8192, 128), (4096, 64), (2048, 128), (16384, 128)),
}
_VOCABULARIES = {"cpu": (4096, 16384, 1024, 65536), "gpu": (32768, 131072, 8192)}
_MUON = {"cpu": 256, "gpu": 2048}
_QUICK = {"layers": 4, "attention": 5, "vocabularies": 2}
# Rounds over all operations, seconds for each operation in a round, and seconds after which no quick round begins.
_ROUNDS, _BUDGET = 12, 0.05
_QUICK_ROUNDS, _QUICK_BUDGET, _QUICK_LIMIT = 3, 0.005, 10.0
_COPIED_NUMBERS = {"cpu": 2**24, "gpu": 2**28}


def calibrate(device: str | None = None, *, quick: bool = False) -> Calibration:
    """Measure `device` and store the result for later plans.

    device: "cpu", "cuda", "mps"; None: the best available. Takes about a minute, or some seconds with `quick`. Shows
    progress; Ctrl-C leaves the stored calibration unchanged. Raises PunaError when the result is not plausible or
    cannot be written, or when processes that measure collectives fail.
    """
    from puna.core.console import progress

    device = device or best_device()
    with progress(transient=True) as bar:
        task = bar.add_task(f"measuring {device_here(device)}", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        found = _measure(device, quick, show)
        bar.update(task, description="measuring collectives")
        found = found.model_copy(update=collective_rates(device, quick=quick))
    check_plausible(found, accelerator_here(device))
    write_calibration(found)
    return found


def check_plausible(found: Calibration, estimate: Accelerator) -> None:
    """Raise PunaError when products are more than five times faster or slower than the estimate.

    On a CPU products in fp32 are compared, because bf16 rates differ more than that between processors.
    """
    kind, measured, expected = "bf16", found.matmul_tflops, estimate.bf16_tflops
    if estimate.generation == "cpu":
        kind, measured, expected = "fp32", found.matmul_fp32_tflops, estimate.fp32_tflops or 0.0
    if not measured or not expected or 1 / FAR_OFF <= measured / expected <= FAR_OFF:
        return
    raise PunaError(
        f"Products in {kind} reach {measured * 1e3:,.0f} GFLOP/s here, but the estimate is {expected * 1e3:,.0f}: more "
        f"than {FAR_OFF} times off, so this measurement was not stored.",
        busy(other_load(), cores()) or "Run `puna plan calibrate` again when nothing else runs on this machine.",
    )


def quick_rates(device: str) -> Calibration:
    """Measure a few sizes of every operation on this device, in about three seconds.

    Nothing is stored. In a run of several processes all must call it: they measure at the same time, and then measure
    collectives.
    """
    found = _measure(device, True, lambda _done, _total: None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        found = found.model_copy(update=collective_rates(device, quick=True))
    return found


def _measure(device: str, quick: bool, show: Callable[[int, int], None]) -> Calibration:
    import torch

    from puna.train.measure import microbenchmarks as rates

    operations = _operations(device, quick)
    rounds, budget = (_QUICK_ROUNDS, _QUICK_BUDGET) if quick else (_ROUNDS, _BUDGET)
    count, total = 0, len(operations) * (rounds + 1)

    def done() -> None:
        nonlocal count
        count += 1
        show(count, total)

    limit = _QUICK_LIMIT if quick else math.inf
    seconds = rates.time_in_rounds(operations, device, rounds=rounds, budget=budget, done=done, limit=limit)
    return Calibration(
        device=device_here(device),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        versions=f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        **_figures(seconds, device),
    )


def _operations(device: str, quick: bool) -> "dict[tuple[Any, ...], Callable[[], object]]":
    """Every operation that is timed, by (what, precision, sizes...).

    Those too large for the device are left out.
    """
    import torch

    from puna.train.measure import microbenchmarks as rates

    kind = "cpu" if device == "cpu" else "gpu"
    few = {name: most if quick else None for name, most in _QUICK.items()}
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    found: dict[tuple[Any, ...], Callable[[], object]] = {}

    def add(make: Callable[..., Callable[[], object] | None], *name: Any) -> None:
        with contextlib.suppress(torch.OutOfMemoryError):
            operation = make()
            if operation:
                found[name] = operation

    precisions = ["fp32", "bf16"] if rates.has_fast_bf16(device) else ["fp32"]
    for name in precisions:
        dtype = dtypes[name]
        for size in _BEST[kind]:
            add(partial(rates.product, size, dtype, device), "product", name, size)
        for size in _LAYERS[kind][: few["layers"]]:
            add(partial(rates.training_product, size, dtype, device), "layer", name, size)
        for seq_len, head_dim in _ATTENTION[kind][: few["attention"]]:
            add(partial(rates.attention, seq_len, head_dim, dtype, device), "attention", name, seq_len, head_dim)
    if "bf16" not in precisions:  # emulated, and no run uses it; a small product shows how slow it is
        size = (256, 256, 256)
        add(partial(rates.product, size, dtypes["bf16"], device), "product", "bf16", size)
    for size in _BEST[kind]:
        add(partial(rates.fp8_product, size, device), "product", "fp8", size)
    main, longest = precisions[-1], max(_ATTENTION[kind][: few["attention"]])
    dtype = dtypes[main]
    add(partial(rates.attention_forward, *longest, dtype, device), "forward", main, *longest)
    for vocab in _VOCABULARIES[kind][: few["vocabularies"]]:
        head = (rates.LOSS_ROWS, rates.LOSS_WIDTH, vocab)
        add(partial(rates.training_product, head, dtype, device), "head", main, head)
        add(partial(rates.loss, vocab, dtype, device), "loss", main, vocab)
    add(partial(rates.muon, _MUON[kind], device), "muon", _MUON[kind])
    numbers = _COPIED_NUMBERS[kind]
    add(partial(rates.copy, numbers, device), "copy", numbers)
    add(partial(rates.gate, device), "gate")
    add(partial(rates.launches, device), "launches")
    return found


def _figures(seconds: dict[tuple[Any, ...], float], device: str) -> dict[str, Any]:
    """Compute the fields of Calibration from the seconds of each operation."""
    from puna.train.measure import microbenchmarks as rates

    found: dict[str, Any] = {}
    best: dict[str, float] = {}
    forward: list[float] = []
    layers: dict[str, list[tuple[rates.Size, float]]] = {}
    for name, value in seconds.items():
        match name:
            case "product", precision, size:
                best[precision] = max(best.get(precision, 0.0), rates.flops(size) / value / 1e12)
            case "layer", precision, size:
                layers.setdefault(precision, []).append((size, value))
            case "attention", precision, seq_len, head_dim:
                done = rates.attention_flops(seq_len, head_dim, device, backward=True)
                rate = AttentionRate(seq_len=seq_len, head_dim=head_dim, tflops=done / value / 1e12)
                field = "attention_fp32" if precision == "fp32" else "attention"
                found[field] = (*found.get(field, ()), rate)
            case "forward", _, seq_len, head_dim:
                forward.append(rates.attention_flops(seq_len, head_dim, device, backward=False) / value / 1e12)
            case "loss", precision, vocab:
                product = seconds.get(("head", precision, (rates.LOSS_ROWS, rates.LOSS_WIDTH, vocab)), 0.0)
                passes = max(value / 2, value - product)
                loss = LossRate(vocab=vocab, gb_per_s=20.0 * rates.LOSS_ROWS * vocab / passes / 1e9)
                found["loss"] = (*found.get("loss", ()), loss)
            case "muon", size:
                found["muon_tflops"] = rates.muon_flops(size) / value / 1e12
            case "copy", numbers:
                found["stream_gb_per_s"] = 8.0 * numbers / value / 1e9
            case ("gate",):
                found["gate_gb_per_s"] = 12.0 * rates.GATE_NUMBERS / value / 1e9
            case ("launches",):
                found["launch_seconds"] = value / rates.LAUNCHES
    for precision, field in (("fp32", "products_fp32"), ("bf16", "products")):
        if precision in layers:
            found[field] = rates.fit_products(*zip(*layers[precision], strict=True))
    names = {"fp32": "matmul_fp32_tflops", "bf16": "matmul_tflops", "fp8": "matmul_fp8_tflops"}
    found |= {names[precision]: rate for precision, rate in best.items()}
    if forward:
        found["attention_tflops"] = max(forward)
    return found
