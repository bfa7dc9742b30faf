"""Predict a step of one job: its time and memory, their uncertainty, and the assumptions that matter.

`predict` costs one layout of a job; `choose` searches for the best. Both give a `Prediction`, plain numbers that the
terminal, the HTML page, `--json` and `puna train` all read. Intervals come from the errors of predictions for whole
families of published runs with constants fitted without them (see `evidence.fit`); sensitivities from predicting again
with one assumption changed by a plausible amount.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from puna.core.errors import PunaError
from puna.model.layout import Layout
from puna.plan.equations.columns import PRECISIONS, device_columns
from puna.plan.equations.constants import STACKS, interval
from puna.plan.equations.cost import PARTS, total_seconds
from puna.plan.equations.cost_model import CostModel
from puna.plan.equations.hardware import Accelerator
from puna.plan.equations.memory import fits
from puna.plan.equations.shape import Shape
from puna.plan.layouts.convert import from_columns, to_columns
from puna.plan.layouts.search import SearchResult, Workload, distinct, jobs_for, search


@dataclass(frozen=True)
class Question:
    """The question to plan: a model, its accelerators and its batches."""

    model: str
    shape: Shape
    accelerator: Accelerator
    accelerators: int
    seq_len: int
    batch: int
    precision: str = "bf16"
    costs: CostModel = field(default_factory=CostModel)
    nic_gbit_per_s: float | None = None

    @property
    def stack(self) -> str:
        """The software stack."""
        return self.costs.stack

    def workload(self) -> Workload:
        """The question as input of the cost model; fp16 counts as bf16.

        Raises PunaError for a precision that is unknown or that the accelerator does not have.
        """
        self.accelerator.peak_tflops(self.precision)
        return Workload(
            shape=self.shape,
            device=device_columns(self.accelerator, nic_gbit_per_s=self.nic_gbit_per_s),
            generation=self.accelerator.generation,
            accelerators=self.accelerators,
            seq_len=self.seq_len,
            batch=self.batch,
            precision=PRECISIONS.index("bf16" if self.precision == "fp16" else self.precision),
            costs=self.costs,
        )


@dataclass(frozen=True)
class Sensitivity:
    """The step's time with one assumption changed."""

    assumption: str
    change: str
    step_seconds: float


@dataclass(frozen=True)
class Prediction:
    """A predicted step: seconds and bytes by part; low and high end the 80 % interval of its time."""

    question: Question
    layout: Layout
    seconds: Mapping[str, float]
    memory: Mapping[str, float]
    low: float
    high: float
    sensitivities: tuple[Sensitivity, ...] = ()

    @property
    def step_seconds(self) -> float:
        """Seconds of one optimizer step."""
        return sum(self.seconds.values())

    @property
    def memory_bytes(self) -> float:
        """Peak bytes on the fullest accelerator."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether it fits into the accelerator's memory."""
        return bool(fits(dict(self.memory), self.question.accelerator.usable_bytes))

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all accelerators."""
        return self.question.batch * self.question.seq_len

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all accelerators together."""
        return self.tokens_per_step / self.step_seconds

    def mfu(self, *, causal: bool) -> float:
        """Model FLOPs utilization relative to the dense peak of the job's precision.

        causal: count half of attention's square, else all of it.
        """
        question = self.question
        flops = self.tokens_per_second * float(question.shape.flops_per_token(question.seq_len, causal=causal))
        return flops / (question.accelerator.peak_tflops(question.precision) * 1e12 * question.accelerators)


@dataclass(frozen=True)
class Choice:
    """The best layout of a question, the runners-up, and all that were searched."""

    best: Prediction
    runners_up: tuple[Prediction, ...]
    found: SearchResult

    @property
    def fitting(self) -> int:
        """How many of the legal layouts fit."""
        return int(self.found.fits.sum())


def choose(question: Question, *, runners_up: int = 4) -> Choice:
    """Search all legal layouts. Where none fits, the best is the one that needs least memory.

    Raises PunaError when no layout is legal.
    """
    return choose_among(question, search(question.workload()), runners_up=runners_up)


def choose_among(question: Question, found: SearchResult, *, runners_up: int = 4) -> Choice:
    """Predict the best layout of a search and the runners-up."""
    rows = distinct(found, 1 + runners_up) or [int(np.argmin(found.memory_bytes))]
    best, *others = (from_columns(found.jobs.layout, row) for row in rows)
    return Choice(predict(question, best), tuple(_corrected(_bare(question, layout)) for layout in others), found)


def predict(question: Question, layout: Layout) -> Prediction:
    """Predict one layout. Raises PunaError when its sizes or the batch do not divide."""
    if layout.processes != question.accelerators:
        raise PunaError(
            f"tp {layout.tp} x cp {layout.cp} x pp {layout.pp} x dp {layout.data_parallel} is {layout.processes} "
            f"accelerators, but the fleet has {question.accelerators}.",
            "Change the layout or the fleet.",
        )
    ranks, size = layout.data_parallel, layout.micro_batch
    if question.batch % (ranks * size):
        raise PunaError(
            f"A batch of {question.batch} sequences is not divisible by dp {ranks} x micro-batch {size}.",
            f"Make the batch a multiple of {ranks * size}, or change the layout.",
        )
    return _corrected(replace(_bare(question, layout), sensitivities=sensitivities(question, layout)))


def predict_step(question: Question, layout: Layout) -> Prediction:
    """The prediction without sensitivities, for comparing many questions; the layout must be legal."""
    return _corrected(_bare(question, layout))


def _bare(question: Question, layout: Layout) -> Prediction:
    """The prediction by the equations, without sensitivities or correction."""
    workload = question.workload()
    jobs = jobs_for(workload, to_columns(layout))
    parts = question.costs.step_parts(jobs, workload.generation)
    seconds = {name: float(value) for name, value in parts.items()}
    needed = {name: float(np.asarray(value)) for name, value in question.costs.memory_parts(jobs).items()}
    step = sum(seconds.values())
    low, high = interval(question.accelerator.generation, mixture=bool(question.shape.experts))
    return Prediction(question, layout, seconds, needed, step * low, step * high)


def _corrected(found: Prediction) -> Prediction:
    """The prediction with the cost model's correction, which is the same under every assumption."""
    correct = found.question.costs.correct
    if correct is None:
        return found
    seconds = correct(found.layout, found.seconds)
    more = sum(seconds.values()) - found.step_seconds
    factor = 1 + more / found.step_seconds
    lines = tuple(replace(line, step_seconds=line.step_seconds + more) for line in found.sensitivities)
    return replace(found, seconds=seconds, low=found.low * factor, high=found.high * factor, sensitivities=lines)


def sensitivities(question: Question, layout: Layout) -> tuple[Sensitivity, ...]:
    """The step's time with each important assumption changed by a plausible amount; largest effect first."""
    accelerator, costs, generation = question.accelerator, question.costs, question.accelerator.generation
    precision = "bf16" if question.precision in ("fp32", "fp16", "bf16") else question.precision
    workload, columns = question.workload(), to_columns(layout)
    device = workload.device

    def step(costs: CostModel, **changes: Any) -> float:
        changed = replace(workload, device=replace(device, **changes))
        return float(total_seconds(costs.step_parts(jobs_for(changed, columns), generation)))

    result = [
        Sensitivity(
            "rate of matrix products", "5 % lower", step(costs.scaled(generation, f"matmul_{precision}", 0.95))
        ),
        Sensitivity("rate of attention", "20 % lower", step(costs.scaled(generation, "attention", 0.8))),
        Sensitivity("network cards", "at half their rate", step(costs, nic_rate=float(device.nic_rate) / 2)),
        Sensitivity("scale-up links", "20 % slower", step(costs, link_rate=float(device.link_rate) * 0.8)),
        Sensitivity("data-parallel overlap", "none", step(costs.with_value(f"{costs.stack}.data_hidden", 0.01))),
        Sensitivity("tensor-parallel overlap", "none", step(costs.with_value(f"{costs.stack}.tensor_hidden", 0.01))),
        Sensitivity("power limit", "20 % lower", step(costs, watts=accelerator.watts * 0.8)),
    ]
    base = step(costs)
    return tuple(sorted(result, key=lambda line: -abs(line.step_seconds - base)))


def describe_layout(layout: Layout, stack: str) -> str:
    """A layout in one line: tp 8 · cp 1 · pp 16 (8 chunks each) · dp 128 zero1 · micro-batch 1."""
    words = []
    if STACKS[stack].model_parallel:
        chunks = f" ({layout.virtual_stages} chunks each)" if layout.virtual_stages > 1 else ""
        words = [f"tp {layout.tp}", f"cp {layout.cp}", f"pp {layout.pp}{chunks}"]
    words.append(f"dp {layout.data_parallel} {layout.sharding}")
    if layout.ep > 1:
        words.append(f"ep {layout.ep}")
    words.append(f"micro-batch {layout.micro_batch}")
    if layout.recompute != "none":
        words.append(f"recompute {layout.recompute}")
    return " · ".join(words)


PART_NAMES = {
    "matmul": "matrix products",
    "attention": "attention",
    "elementwise": "element-wise",
    "launch": "fixed costs",
    "recompute": "recomputation",
    "head": "vocabulary head and loss",
    "tensor": "tensor-parallel traffic, exposed",
    "context": "context-parallel traffic, exposed",
    "expert": "expert traffic, exposed",
    "pipeline": "pipeline traffic, exposed",
    "bubble": "pipeline bubble",
    "data": "data-parallel traffic, exposed",
    "optimizer": "optimizer",
    "straggler": "waiting for the slowest",
}
assert set(PART_NAMES) == set(PARTS)
