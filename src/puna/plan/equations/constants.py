"""The fitted constants: what each software stack reaches on each generation of accelerators.

constants.toml holds them, each with its range over refits that leave one family of runs out; `evidence.fit` writes it.
A generation's constant times a stack's factor gives a field of `cost.Constants`. Facts about a stack (whether it uses
flash attention, how many bytes it reduces gradients in) are not fitted; they are in `STACKS`.
"""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from puna.core.errors import PunaError, nearest
from puna.plan.equations.columns import PRECISIONS
from puna.plan.equations.cost import Constants

CONSTANTS = Path(__file__).with_name("constants.toml")


@dataclass(frozen=True)
class Stack:
    """Facts about one software stack.

    parent: the stack whose constants are assumed before any row of this one is seen. shardings, recomputations: the
    choices of a search. model_parallel: whether it has tensor, context and pipeline parallelism. rails: whether a
    collective uses all network cards of a node at once.
    """

    description: str
    parent: str | None = None
    flash: bool = True
    gradient_bytes: int = 4
    overlaps_data: bool = True
    overlaps_tensor: bool = True
    overlaps_pipeline: bool = True
    rails: bool = True
    model_parallel: bool = True
    shardings: tuple[str, ...] = ("zero1",)
    recomputations: tuple[str, ...] = ("none", "full")


_NO_OVERLAP: dict[str, Any] = dict.fromkeys(("overlaps_data", "overlaps_tensor", "overlaps_pipeline"), False)
_MEGATRON = Stack("NeMo and Megatron-Core, 24.07 to 25.02", gradient_bytes=2)
_OLD = replace(
    _MEGATRON,
    flash=False,
    gradient_bytes=2,
    **_NO_OVERLAP,
    shardings=("ddp",),
    recomputations=("none", "selective", "full"),
)
_TORCH = Stack(
    "torchtitan with FSDP2 and compile",
    overlaps_tensor=False,
    shardings=("zero2", "zero3", "hsdp"),
    recomputations=("none", "ops", "full"),
)
_XLA = replace(_MEGATRON, parent="megatron-core", gradient_bytes=2, shardings=("zero3",))


def _child(base: Stack, parent: str, description: str, **facts: Any) -> Stack:
    return replace(base, parent=parent, description=description, **facts)


STACKS = {
    "megatron-2021": replace(_OLD, description="Megatron-LM of arXiv 2104.04473: no flash attention"),
    "megatron-2022": _child(_OLD, "megatron-2021", "Megatron-LM of arXiv 2205.05198"),
    "megatron-deepspeed": _child(_OLD, "megatron-2021", "Megatron-DeepSpeed, 2021 to 2022"),
    "deepspeed-zero3": _child(
        _OLD, "megatron-2021", "ZeRO-3 of arXiv 2104.04473", overlaps_data=True, rails=False, shardings=("zero3",)
    ),
    "metaseq": _child(_OLD, "megatron-2021", "metaseq of OPT-175B", overlaps_data=True),
    "megatron-core": _MEGATRON,
    "megatron-core-early": _child(_MEGATRON, "megatron-core", "Megatron-Core before NeMo 24.07"),
    "megatron-core-25.04": _child(_MEGATRON, "megatron-core", "NeMo 25.04, the first on Blackwell"),
    "megatron-2023": _child(_MEGATRON, "megatron-core", "Megatron-LM of 2023", gradient_bytes=4, **_NO_OVERLAP),
    "megascale": _child(_MEGATRON, "megatron-2023", "MegaScale, arXiv 2402.15627", gradient_bytes=4),
    "llama3": _child(
        _MEGATRON,
        "megatron-core",
        "Meta's trainer, arXiv 2407.21783",
        gradient_bytes=4,
        overlaps_tensor=False,
        shardings=("zero2",),  # section 3.3.2: FSDP that does not reshard after the forward pass
    ),
    "megatron-bridge-2025": _child(_MEGATRON, "megatron-core", "Megatron-Bridge 25.09 and 25.11"),
    "megatron-bridge-26.02": _child(_MEGATRON, "megatron-bridge-2025", "Megatron-Bridge 26.02 and 26.04"),
    "megatron-bridge-26.06": _child(_MEGATRON, "megatron-bridge-26.02", "Megatron-Bridge 26.06 and later"),
    "maxtext": replace(_XLA, description="MaxText on GPUs, 2024", recomputations=("none", "ops", "full")),
    "paxml": _child(_XLA, "maxtext", "PaxML on GPUs, 2024"),
    "torchtitan": _TORCH,
    "torchtitan-2025": _child(_TORCH, "torchtitan", "torchtitan of 2025, with a compiled loss"),
    "torchtitan-async": _child(_TORCH, "torchtitan", "torchtitan with asynchronous TP", overlaps_tensor=True),
    "torchtitan-eager": _child(_TORCH, "torchtitan", "torchtitan without compile"),
    "composer": _child(
        _TORCH, "torchtitan", "Composer, FSDP, Triton attention, 2023", gradient_bytes=2, model_parallel=False
    ),
    "fsdp": _child(_TORCH, "torchtitan", "PyTorch FSDP1 with compile, 2024", gradient_bytes=2, model_parallel=False),
    "puna": _child(
        _TORCH,
        "torchtitan",
        "Puna itself: FSDP2 and compile",
        model_parallel=False,
        shardings=("ddp", "zero3", "hsdp"),
    ),
}
DEFAULT_STACK = "puna"

# Watts per TFLOP/s of bf16 peak of the part that most published runs of a generation used.
REFERENCE_WATTS = {
    "ampere": 400 / 312,
    "hopper": 700 / 989,
    "blackwell": 1200 / 2450,
    "cdna3": 750 / 1307,
    "cdna4": 1400 / 2500,
}

# Every fitted quantity: (expected value, factor of one standard deviation of the prior, lowest, highest). Shares are
# kept in (0, 1) by their logit, everything else positive by its logarithm.
GENERATION = {
    "matmul_bf16": (0.72, 1.1, 0.3, 0.95),
    "matmul_fp8": (0.62, 1.15, 0.2, 0.95),
    "matmul_mxfp8": (0.60, 1.15, 0.2, 0.95),
    "matmul_nvfp4": (0.50, 1.3, 0.15, 0.95),
    "attention": (0.50, 1.3, 0.1, 0.9),
    # Measured on large messages: A100 0.78 (all-reduce), H200 0.80 (all-gather), B200 0.76 to 0.93 (hardware.yaml's
    # book).
    "link": (0.79, 1.5, 0.3, 0.98),
}
COMMON = {
    "half_size": (100.0, 2.0, 5.0, 1000.0),
    "half_power": (0.7, 1.4, 0.1, 2.0),
    "recompute": (0.9, 1.15, 0.5, 1.0),
    "attention_half": (300.0, 2.0, 10.0, 3000.0),
    "memory": (0.80, 1.3, 0.4, 0.98),
    "nic": (0.75, 1.5, 0.3, 0.98),
    "latency_seconds": (10e-6, 2.0, 1e-6, 1e-4),
    "straggler": (0.004, 1.5, 0.0005, 0.02),
    "power": (0.3, 1.5, 0.02, 0.8),
}
STACK = {
    "matmul": (1.0, 1.06, 0.5, 1.6),
    "attention": (1.0, 1.6, 0.3, 2.5),  # kernels of these years differ by a factor of two or three
    "elementwise": (1.5, 1.4, 0.3, 8.0),
    "cast": (1.5, 1.5, 0.2, 8.0),
    "launch_seconds": (30e-6, 2.0, 1e-6, 1e-3),
    "tensor_hidden": (0.5, 2.0, 0.02, 0.98),
    "data_hidden": (0.8, 2.0, 0.02, 0.98),
    "context_hidden": (0.6, 2.0, 0.02, 0.98),
    "pipeline_hidden": (0.5, 2.0, 0.02, 0.98),
    "expert_hidden": (0.3, 3.0, 0.02, 0.98),
    "expert_moves": (1.5, 2.0, 0.3, 12.0),
    "expert_seconds": (2e-4, 4.0, 1e-6, 3e-3),
}
# A child stack has its own values of these only, which differ from its parent's by about this factor before any row of
# it is seen. The rest is its parent's.
CHILD_SPREAD = {
    "matmul": 1.08,
    "attention": 1.5,
    "elementwise": 1.35,
    "expert_moves": 2.0,
    "expert_seconds": 6.0,
    "expert_hidden": 3.0,
    "data_hidden": 2.0,
}

Values = Mapping[str, float]


@lru_cache(maxsize=4)
def load_constants(path: Path = CONSTANTS) -> dict[str, float]:
    """The fitted constants as one flat mapping such as "hopper.attention" or "torchtitan.elementwise"."""
    tree = tomllib.loads(path.read_text(encoding="utf-8"))
    flat: dict[str, float] = {}
    for group in ("common", "generation", "stack"):
        for name, entry in tree.get(group, {}).items():
            if group == "common":
                flat[name] = float(entry["value"])
            else:
                flat |= {f"{name}.{quantity}": float(value["value"]) for quantity, value in entry.items()}
    return flat


def kind_of(generation: str, *, mixture: bool) -> str:
    """The kind of job, for which prediction intervals were measured separately."""
    if mixture:
        return "mixture"
    return "dense" if generation in ("ampere", "hopper") else "dense_newer"


@lru_cache(maxsize=1)
def _widths() -> dict[str, float]:
    return {k: float(v) for k, v in tomllib.loads(CONSTANTS.read_text(encoding="utf-8"))["interval"].items()}


def interval(generation: str, *, mixture: bool) -> tuple[float, float]:
    """Factors (low, high) on a predicted time that give its 80 % interval."""
    width = _widths()[kind_of(generation, mixture=mixture)]
    return 1 / width, width


def value_of(values: Values, owner: str, quantity: str) -> float:
    """A stack's constant: its own, or its parent's, or the expected one."""
    name: str | None = owner
    while name is not None:
        if (key := f"{name}.{quantity}") in values:
            return values[key]
        name = STACKS[name].parent
    return STACK[quantity][0]


def generation_value(values: Values, generation: str, quantity: str) -> float:
    """A generation's constant, or the expected one where none was fitted."""
    return values.get(f"{generation}.{quantity}", GENERATION[quantity][0])


def find_stack(name: str) -> str:
    """Return `name` if it is a known stack. Raises PunaError, naming the nearest one, if not."""
    if name not in STACKS:
        raise PunaError(f"Stack '{name}' is not known.", nearest(name, STACKS))
    return name


@dataclass(frozen=True)
class Owners:
    """The distinct (stack, generation, precision) whose constants apply, and which of them each job has."""

    distinct: tuple[tuple[str, str, int], ...]
    where: np.ndarray | int


def owners(stacks: Sequence[str], generations: Sequence[str], precisions: Sequence[int]) -> Owners:
    """Owners of jobs, one row per job."""
    keys = list(zip(stacks, generations, (int(precision) for precision in precisions), strict=True))
    places = {key: place for place, key in enumerate(sorted(set(keys)))}
    return Owners(tuple(places), np.array([places[key] for key in keys]))


def constants_for(values: Values, of: Owners) -> Constants:
    """Columns of constants, one row per job, or numbers that broadcast where all jobs share one owner."""

    def column(function: Callable[[str, str, int], float]) -> np.ndarray:
        return np.array([function(*key) for key in of.distinct], dtype=float)[of.where]

    def of_stack(quantity: str) -> np.ndarray:
        return column(lambda stack, _generation, _precision: value_of(values, stack, quantity))

    def of_generation(quantity: str, factor: str) -> np.ndarray:
        return column(
            lambda stack, generation, _precision: (
                generation_value(values, generation, quantity) * value_of(values, stack, factor)
            )
        )

    def fact(quantity: str) -> np.ndarray:
        return column(lambda stack, _generation, _precision: getattr(STACKS[stack], quantity))

    def matmul(stack: str, generation: str, precision: int) -> float:
        name = "bf16" if precision <= PRECISIONS.index("bf16") else PRECISIONS[precision]
        return generation_value(values, generation, f"matmul_{name}") * value_of(values, stack, "matmul")

    common = {name: values.get(name, COMMON[name][0]) for name in COMMON}
    reference = column(lambda _stack, generation, _precision: REFERENCE_WATTS.get(generation, 0.7))
    return Constants(
        reference_watts=reference,
        power=common["power"],
        matmul=column(matmul),
        matmul_bf16=of_generation("matmul_bf16", "matmul"),
        half_size=common["half_size"],
        half_power=common["half_power"],
        attention=of_generation("attention", "attention"),
        attention_half=common["attention_half"],
        recompute=common["recompute"],
        flash=fact("flash"),
        memory=common["memory"],
        elementwise=of_stack("elementwise"),
        cast=of_stack("cast"),
        launch_seconds=of_stack("launch_seconds"),
        link=column(lambda _stack, generation, _precision: generation_value(values, generation, "link")),
        nic=common["nic"],
        rails=fact("rails"),
        latency_seconds=common["latency_seconds"],
        tensor_hidden=of_stack("tensor_hidden") * fact("overlaps_tensor"),
        context_hidden=of_stack("context_hidden"),
        expert_hidden=of_stack("expert_hidden"),
        pipeline_hidden=of_stack("pipeline_hidden") * fact("overlaps_pipeline"),
        data_hidden=of_stack("data_hidden") * fact("overlaps_data"),
        gradient_bytes=fact("gradient_bytes"),
        expert_moves=of_stack("expert_moves"),
        expert_seconds=of_stack("expert_seconds"),
        straggler=common["straggler"],
    )


def is_share(quantity: str) -> bool:
    """Whether a quantity is a share in (0, 1), fitted through its logit."""
    return quantity.endswith("_hidden") or quantity in ("memory", "link", "nic")


def to_free(quantity: str, value: float) -> float:
    """A value on the unbounded scale it is fitted on."""
    return math.log(value / (1 - value)) if is_share(quantity) else math.log(value)


def from_free(quantity: str, free: float) -> float:
    """The inverse of `to_free`."""
    return 1 / (1 + math.exp(-free)) if is_share(quantity) else math.exp(free)
