"""Calibrated cost model: Puna's own runs with rates measured on this machine.

`cost` wants shares of a datasheet's figures, fitted to published runs of large accelerators. A calibration knows this
device better: how fast training products, attention and the loss run at several sizes. `calibrated_values` expresses
that in the cost model's terms, so one set of equations serves both. Only what a calibration cannot know (how often a
block passes over memory, how many operations a step launches) is a constant here, with the runs it was fitted to.

Muon (arXiv 2502.16982) takes the place of the cost model's AdamW where a run uses it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from puna.model.layout import Layout
from puna.plan.equations.columns import PRECISIONS
from puna.plan.equations.constants import Values
from puna.plan.equations.cost_model import CostModel
from puna.plan.equations.hardware import catalogue
from puna.plan.equations.shape import Shape
from puna.plan.evidence.local_device import AttentionRate, Calibration, LossRate, Products
from puna.plan.layouts.predict import Prediction, Question, predict

# Passes of a block's element-wise work over those that `cost` counts, at the measured rate of SiLU times a tensor.
COMPILED_PASSES, EAGER_PASSES = 1.7, 4.0
# Kernel launches: of a block per micro-batch, forward and backward; of the rest of a step; of Muon per block.
LAYER_LAUNCHES, STEP_LAUNCHES, MUON_LAUNCHES = 200, 1000, 130
# Bytes that an update moves per parameter. AdamW as in `cost`; Muon without its products: momentum, look-ahead, stack,
# norm, and copying back into the weights.
ADAMW_BYTES, MUON_BYTES = 30.0, 160.0

# For a CPU that was not measured, relative to its rate of fp32 products: attention, Muon, and bytes per FLOP of SiLU
# times a tensor and of the loss. All are vector arithmetic, so they scale with it. Measured on two cores of an EPYC
# (Zen 4), 2026-11-23.
CPU_ATTENTION, CPU_MUON, CPU_GATE_BYTES, CPU_LOSS_BYTES = 0.4, 0.85, 0.17, 0.045
CPU_LAUNCH_SECONDS, CPU_HALF_SIZE = 2.6e-6, 8.0


def predict_calibrated(
    question: Question,
    layout: Layout,
    calibration: Calibration | None,
    *,
    muon_iterations: int = 0,
    compiled: bool = True,
) -> Prediction:
    """Predict a step of Puna's trainer in a given layout (see `calibrated_cost_model`).

    Raises PunaError when the layout does not fit the question.
    """
    costs = calibrated_cost_model(question, calibration, muon_iterations=muon_iterations, compiled=compiled)
    return predict(replace(question, costs=costs), layout)


def calibrated_cost_model(
    question: Question, calibration: Calibration | None, *, muon_iterations: int = 0, compiled: bool = True
) -> CostModel:
    """The cost model of `question` with the device's measured rates.

    muon_iterations: iterations of Muon's orthogonalization; 0 for AdamW. compiled: whether blocks are compiled.
    calibration: missing rates come from the catalogue, or for CPUs from estimates.
    """
    costs = CostModel(question.stack, calibrated_values(question, calibration, compiled=compiled))
    question = replace(question, costs=costs)

    def correct(layout: Layout, seconds: Mapping[str, float]) -> dict[str, float]:
        seconds = dict(seconds)
        seconds["optimizer"] = update_seconds(question, layout, calibration, muon_iterations)
        if layout.recompute == "ops":
            seconds["recompute"] = seconds["elementwise"] / 3  # Puna keeps the results of all products
        return seconds

    return replace(costs, correct=correct)


def calibrated_values(
    question: Question, calibration: Calibration | None, *, compiled: bool = True
) -> dict[str, float]:
    """The cost model's constants for this question's device, stack, precision and sizes.

    A GPU's shares are fitted to training, which a calibration of single operations does not measure: they are scaled by
    the ratio of its best product to the catalogue's. A CPU's come from the calibration alone.
    """
    values = dict(question.costs.values)
    if question.accelerator.generation != "cpu":
        return values | _scaled(question, calibration, values)
    accelerator, stack = question.accelerator, question.stack
    found = _of_cpu(question, calibration)
    fp32 = question.precision == "fp32"
    products = found.products_fp32 if fp32 else found.products
    assert products is not None  # _of_cpu fills it
    peak = accelerator.peak_tflops("fp32" if fp32 else "bf16")
    attention = _at_size(found.attention_fp32 if fp32 else found.attention, question)
    loss = _at_vocabulary(found.loss, int(question.shape.vocab))
    assert found.gate_gb_per_s
    assert found.launch_seconds
    passes = COMPILED_PASSES if compiled else EAGER_PASSES
    return values | {
        "power": 0.0,  # measured under its own power limit
        "cpu.matmul_bf16": products.tflops / peak,
        "half_size": products.half_size,
        "half_power": 0.0,
        "cpu.attention": attention / peak,
        "attention_half": 0.0,
        "recompute": 1.0,
        "memory": loss / accelerator.memory_gb_per_s,
        "link": 1.0,
        f"{stack}.matmul": 1.0,
        f"{stack}.attention": 1.0,
        f"{stack}.elementwise": passes * loss / found.gate_gb_per_s,
        f"{stack}.launch_seconds": LAYER_LAUNCHES * found.launch_seconds,
        f"{stack}.data_hidden": 0.01,  # the same cores compute and communicate
    }


def update_seconds(
    question: Question,
    layout: Layout,
    calibration: Calibration | None,
    muon_iterations: int,
) -> float:
    """Seconds of the optimizer on one rank: memory traffic, Muon's products, and launches.

    Ranks share Muon's matrices; AdamW's work is shared only where states are sharded.
    """
    shape, accelerator = question.shape, question.accelerator
    ranks = layout.data_parallel
    ways = 1 if layout.sharding == "ddp" else ranks
    blocks, rest = float(shape.block_parameters()), 2.0 * float(shape.embedding_parameters())
    if shape.tied:
        rest /= 2
    launches = float(STEP_LAUNCHES)
    if muon_iterations:
        moved = MUON_BYTES * blocks + ADAMW_BYTES * rest
        launches += MUON_LAUNCHES * float(shape.layers)
    else:
        moved = ADAMW_BYTES * (blocks + rest)
    stream = 1e9 * (calibration.stream_gb_per_s if calibration and calibration.stream_gb_per_s else 0.0)
    seconds = moved / ways / (stream or 1e9 * accelerator.memory_gb_per_s)
    on_cpu = accelerator.generation == "cpu"
    if on_cpu:
        found = _of_cpu(question, calibration)
        assert found.launch_seconds
        seconds += launches * found.launch_seconds
        assert found.products
        assert found.products_fp32
        fast = found.products.tflops > found.products_fp32.tflops  # Muon multiplies in bf16, except in fp32 runs
        through_gram = not fast or question.precision == "fp32"
        rate = CPU_MUON * found.products_fp32.tflops if fast and through_gram else found.muon_tflops
    else:
        through_gram = False
        rate = calibration.muon_tflops if calibration else None
        share = question.costs.product_share(accelerator.generation, question.workload().precision)
        rate = rate or accelerator.peak_tflops("bf16") * share
    assert rate
    if muon_iterations:
        seconds += muon_flops(shape, muon_iterations, through_gram=through_gram) / (rate * 1e12) / ranks
    return seconds


def muon_flops(shape: Shape, iterations: int, *, through_gram: bool) -> float:
    """FLOPs of orthogonalizing every matrix of the blocks once; m is the shorter side, n the longer.

    An iteration is a Gram matrix (2·m²·n), its square (2·m³) and their product with the matrix (2·m²·n).
    through_gram: in fp32 a matrix with n ≥ 2m is iterated on through its Gram matrix, as `train.optimizer` does: two
    long products, and four short ones per iteration, less three.
    """
    heads, kv_heads = float(shape.heads) * float(shape.key_dim), float(shape.kv_heads) * float(shape.key_dim)
    hidden, ffn = float(shape.hidden), float(shape.ffn)
    total = 0.0
    for one, other, count in ((hidden, heads, 2), (hidden, kv_heads, 2), (hidden, ffn, int(shape.matrices))):
        m, n = min(one, other), max(one, other)
        if through_gram and n >= 2 * m:
            flops = 4 * m * m * n + (4 * iterations - 3) * 2 * m**3
        else:
            flops = iterations * (4 * m * m * n + 2 * m**3)
        total += count * flops
    return total * float(shape.layers)


# -- what is missing -------------------------------------------------------------------------------------------------


def _of_cpu(question: Question, calibration: Calibration | None) -> Calibration:
    """A calibration with every figure that a CPU's plan needs, measured or estimated."""
    accelerator = question.accelerator
    given = calibration or Calibration(device=accelerator.name, date="")
    fp32 = given.matmul_fp32_tflops or accelerator.peak_tflops("fp32")
    bf16 = given.matmul_tflops or accelerator.peak_tflops("bf16")
    rate = fp32 * 1e3  # GFLOP/s, so bytes a FLOP give GB/s
    typical: dict[str, object] = {
        "products": Products(tflops=bf16, half_size=CPU_HALF_SIZE),
        "products_fp32": Products(tflops=fp32, half_size=CPU_HALF_SIZE),
        "attention": (AttentionRate(seq_len=512, head_dim=64, tflops=CPU_ATTENTION * fp32),),
        "attention_fp32": (AttentionRate(seq_len=512, head_dim=64, tflops=CPU_ATTENTION * fp32),),
        "muon_tflops": CPU_MUON * max(fp32, bf16),
        "loss": (LossRate(vocab=4096, gb_per_s=CPU_LOSS_BYTES * rate),),
        "gate_gb_per_s": CPU_GATE_BYTES * rate,
        "launch_seconds": CPU_LAUNCH_SECONDS,
    }
    return given.model_copy(update={name: value for name, value in typical.items() if not getattr(given, name)})


def _scaled(question: Question, calibration: Calibration | None, values: Values) -> dict[str, float]:
    """A GPU's product shares, scaled by its best product relative to the catalogue's."""
    known = catalogue().get(question.accelerator.name)
    if calibration is None or not calibration.matmul_tflops or known is None or not known.matmul_tflops:
        return {}
    factor = calibration.matmul_tflops / known.matmul_tflops
    names = [f"{known.generation}.matmul_{name}" for name in PRECISIONS]
    return {name: values[name] * factor for name in names if name in values}


def _at_size(rates: Sequence[AttentionRate], question: Question) -> float:
    """Attention's rate for the question's sequence length and head width, TFLOP/s, interpolated.

    Log-log interpolation over sequence lengths at the most measured head width, and over widths at the one length where
    several were measured; constant beyond the ends.
    """
    spans, widths = np.array([rate.seq_len for rate in rates]), np.array([rate.head_dim for rate in rates])
    logs = np.log([rate.tflops for rate in rates])
    width = max(set(widths.tolist()), key=widths.tolist().count)
    main = np.flatnonzero(widths == width)
    main = main[np.argsort(spans[main])]
    span, head_dim = float(question.seq_len), float(question.shape.key_dim)
    result = np.interp(np.log(span), np.log(spans[main]), logs[main])
    others = sorted(set(spans[widths != width].tolist()))
    if others:
        beside = np.flatnonzero(spans == others[0])
        beside = beside[np.argsort(widths[beside])]
        at_width = np.interp(np.log([head_dim, width]), np.log(widths[beside]), logs[beside])
        result += at_width[0] - at_width[1]
    return float(np.exp(result))


def _at_vocabulary(rates: Sequence[LossRate], vocab: int) -> float:
    """The loss's rate for a vocabulary, GB/s, interpolated; constant beyond the ends."""
    ordered = sorted(rates, key=lambda rate: rate.vocab)
    logs = np.log([rate.gb_per_s for rate in ordered])
    return float(np.exp(np.interp(np.log(vocab), np.log([rate.vocab for rate in ordered]), logs)))
