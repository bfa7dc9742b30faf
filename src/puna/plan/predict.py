"""One job, answered: what a step takes and needs, how sure that is, and what it rests on.

`predict` costs one layout of one job; `choose` searches for it. Both return a `Prediction`, plain numbers that the
brief, the page, `--json` and `puna train` all read. Intervals come from how far predictions of whole families of
published runs were off when the constants had been fitted without them (see `fit`); sensitivities from asking again
with one assumption moved by a plausible amount.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from puna.core.errors import PunaError
from puna.plan.cost import PARTS, step_time, total_seconds
from puna.plan.hardware import Accelerator
from puna.plan.jobs import PRECISIONS, Jobs, Layouts, device_of
from puna.plan.memory import fits, memory, rules_for
from puna.plan.search import Found, Workload, distinct, jobs_for, layout_at, legal_layouts, search
from puna.plan.shape import Shape
from puna.plan.stacks import STACKS, Values, constants_for, find_stack, generation_value, interval, load_constants


@dataclass(frozen=True)
class Question:
    """What is asked: a model, on how many of which accelerators, in what batches."""

    model: str
    shape: Shape
    accelerator: Accelerator
    accelerators: int
    seq_len: int
    batch: int
    precision: str = "bf16"
    stack: str = "megatron-core"
    nic_gbit_per_s: float | None = None

    def workload(self) -> Workload:
        """The same as columns for the cost model. Raises PunaError for an unknown stack or precision.

        A precision that the accelerator has not is one, too; fp16 runs as bf16 does.
        """
        self.accelerator.peak_tflops(self.precision)
        return Workload(
            shape=self.shape,
            device=device_of(self.accelerator, nic_gbit_per_s=self.nic_gbit_per_s),
            generation=self.accelerator.generation,
            accelerators=self.accelerators,
            seq_len=self.seq_len,
            batch=self.batch,
            precision=PRECISIONS.index("bf16" if self.precision == "fp16" else self.precision),
            stack=find_stack(self.stack),
        )


@dataclass(frozen=True)
class Sensitivity:
    """What the step would be if one assumption were otherwise."""

    assumption: str
    change: str
    step_seconds: float


@dataclass(frozen=True)
class Prediction:
    """One layout of a job. seconds and bytes by part; low and high are the ends of the 80 % interval of the step."""

    question: Question
    layout: Mapping[str, Any]
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
        """Whether that is no more than the accelerator has."""
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
        """Model FLOPs utilisation against the dense peak of the job's precision, in either convention of attention."""
        question = self.question
        flops = self.tokens_per_second * float(question.shape.flops_per_token(question.seq_len, causal=causal))
        return flops / (question.accelerator.peak_tflops(question.precision) * 1e12 * question.accelerators)


@dataclass(frozen=True)
class Choice:
    """The best layout of a question, the runners-up, and all that were looked at."""

    best: Prediction
    runners_up: tuple[Prediction, ...]
    found: Found

    @property
    def fitting(self) -> int:
        """How many of the legal layouts fit."""
        return int(self.found.fits.sum())


def choose(question: Question, *, values: Values | None = None, runners_up: int = 4) -> Choice:
    """Search all legal layouts. When none fits the best is the one that needs least memory, and says so.

    Raises PunaError when no layout is legal.
    """
    values = load_constants() if values is None else values
    workload = question.workload()
    found = search(workload, values, rules_for(question.stack))
    rows = distinct(found, 1 + runners_up) or [int(np.argmin(found.memory_bytes))]
    best, *others = [_at(question, found.jobs.layout, row, values) for row in rows]
    return Choice(replace(best, sensitivities=sensitivities(question, best.layout, values)), tuple(others), found)


def predict(question: Question, layout: Mapping[str, Any], *, values: Values | None = None) -> Prediction:
    """One given layout. Raises PunaError when it does not multiply out or the batch does not divide."""
    values = load_constants() if values is None else values
    given = Layouts(**layout)
    if int(given.accelerators) != question.accelerators:
        raise PunaError(
            f"tp {given.tp} x cp {given.cp} x pp {given.pp} x dp {given.dp} is {int(given.accelerators)} accelerators, "
            f"but the fleet has {question.accelerators}.",
            "Change the layout or the fleet.",
        )
    if question.batch % (int(given.dp) * int(given.micro_batch)):
        ranks, size = int(given.dp), int(given.micro_batch)
        raise PunaError(
            f"A batch of {question.batch} sequences is not divisible by dp {ranks} x micro-batch {size}.",
            f"Make the batch a multiple of {ranks * size}, or change the layout.",
        )
    columns = Layouts(**{name: np.array([value]) for name, value in vars(given).items()})
    result = _at(question, columns, 0, values)
    return replace(result, sensitivities=sensitivities(question, result.layout, values))


def _at(question: Question, layouts: Layouts, row: int, values: Values) -> Prediction:
    layout = layout_at(layouts, row)
    workload = question.workload()
    jobs = jobs_for(workload, Layouts(**layout))
    seconds = {name: float(value) for name, value in _parts(workload, jobs, values).items()}
    needed = {name: float(np.asarray(value)) for name, value in memory(jobs, rules_for(question.stack)).items()}
    step = sum(seconds.values())
    low, high = interval(question.accelerator.generation, mixture=bool(question.shape.experts))
    return Prediction(question, layout, seconds, needed, step * low, step * high)


def _parts(workload: Workload, jobs: Jobs, values: Values) -> dict[str, Any]:
    constants = constants_for(values, workload.owners())
    return step_time(jobs, constants)


def sensitivities(question: Question, layout: Mapping[str, Any], values: Values) -> tuple[Sensitivity, ...]:
    """The step under each of the assumptions that matter, moved by what is plausible; largest effect first."""
    accelerator, stack, generation = question.accelerator, question.stack, question.accelerator.generation
    precision = "bf16" if question.precision in ("fp32", "fp16", "bf16") else question.precision

    def step(asked: Question, changed: Values, **more: Any) -> float:
        workload = asked.workload()
        workload = replace(workload, device=replace(workload.device, **more)) if more else workload
        jobs = jobs_for(workload, Layouts(**layout))
        return float(total_seconds(_parts(workload, jobs, changed)))

    def scaled(quantity: str, factor: float) -> dict[str, float]:
        return {**values, f"{generation}.{quantity}": generation_value(values, generation, quantity) * factor}

    def share(key: str, value: float) -> dict[str, float]:
        return {**values, key: value}

    device = question.workload().device
    asked: list[tuple[str, str, Callable[[], float]]] = [
        (
            "rate of matrix products",
            "5 % lower",
            lambda: step(question, scaled(f"matmul_{precision}", 0.95)),
        ),
        ("rate of attention", "20 % lower", lambda: step(question, scaled("attention", 0.8))),
        ("network cards", "at half their rate", lambda: step(question, values, nic_rate=float(device.nic_rate) / 2)),
        ("scale-up links", "20 % slower", lambda: step(question, values, link_rate=float(device.link_rate) * 0.8)),
        ("data-parallel overlap", "none", lambda: step(question, share(f"{stack}.data_hidden", 0.01))),
        ("tensor-parallel overlap", "none", lambda: step(question, share(f"{stack}.tensor_hidden", 0.01))),
        ("power limit", "20 % lower", lambda: step(question, values, watts=accelerator.watts * 0.8)),
    ]
    result = [Sensitivity(name, change, ask()) for name, change, ask in asked]
    base = step(question, values)
    return tuple(sorted(result, key=lambda line: -abs(line.step_seconds - base)))


def describe_layout(layout: Mapping[str, Any], stack: str) -> str:
    """A layout in one line, as people say it: tp 8 · cp 1 · pp 16 (8 chunks) · dp 128 · micro-batch 1 · zero1."""
    from puna.plan.jobs import RECOMPUTE, SHARDING

    words = [f"{name} {layout[name]}" for name in ("tp", "cp") if STACKS[stack].model_parallel]
    if STACKS[stack].model_parallel:
        words.append(f"pp {layout['pp']}" + (f" ({layout['vp']} chunks each)" if layout["vp"] > 1 else ""))
    words.append(f"dp {layout['dp']} {SHARDING[layout['sharding']]}")
    if layout["ep"] > 1:
        words.append(f"ep {layout['ep']}")
    words.append(f"micro-batch {layout['micro_batch']}")
    if layout["recompute"]:
        words.append(f"recompute {RECOMPUTE[layout['recompute']]}")
    return " · ".join(words)


def all_legal(question: Question) -> Layouts:
    """Every layout that `choose` looks at, as columns."""
    return legal_layouts(question.workload())


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
