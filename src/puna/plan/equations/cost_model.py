"""The cost model of one software stack: fitted constants, memory rules and facts of the stack in one object.

`cost` and `memory` are equations; a `CostModel` holds what they need to know about a stack, and every question carries
one through search, prediction and suggestions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from puna.model.layout import Layout
from puna.plan.equations.columns import JobColumns
from puna.plan.equations.constants import (
    STACKS,
    Owners,
    Stack,
    Values,
    constants_for,
    find_stack,
    generation_value,
    load_constants,
)
from puna.plan.equations.cost import step_time
from puna.plan.equations.memory import memory, rules_for
from puna.plan.equations.shape import Number

# Seconds by part of one step in a layout -> the same, where more is known of a run than the equations say.
Correction = Callable[[Layout, Mapping[str, float]], dict[str, float]]


@dataclass(frozen=True)
class CostModel:
    """Time and memory of training steps with one software stack. Raises PunaError for an unknown stack.

    values: the fitted constants (`load_constants`), or a calibration's. correct: applied to the seconds of every
    predicted layout (`evidence.calibrated`).
    """

    stack: str = "megatron-core"
    values: Values = field(default_factory=load_constants, repr=False, hash=False)
    correct: Correction | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        find_stack(self.stack)

    @property
    def facts(self) -> Stack:
        """What the stack can do."""
        return STACKS[self.stack]

    def for_stack(self, stack: str) -> "CostModel":
        """The same constants for another stack."""
        return replace(self, stack=stack)

    def uncorrected(self) -> "CostModel":
        """The same without the correction."""
        return replace(self, correct=None)

    def with_value(self, name: str, value: float) -> "CostModel":
        """With one constant changed, such as "torchtitan.data_hidden"."""
        return replace(self, values={**self.values, name: value})

    def scaled(self, generation: str, quantity: str, factor: float) -> "CostModel":
        """With a constant of a generation of accelerators times `factor`."""
        value = generation_value(self.values, generation, quantity) * factor
        return self.with_value(f"{generation}.{quantity}", value)

    def step_parts(self, jobs: JobColumns, generation: str) -> dict[str, Number]:
        """Seconds of one optimizer step by part; `jobs` are all of one generation and precision."""
        return step_time(jobs, constants_for(self.values, self._owners(generation, jobs.precision)))

    def memory_parts(self, jobs: JobColumns) -> dict[str, Number]:
        """Peak bytes on the fullest accelerator by part."""
        return memory(jobs, rules_for(self.stack))

    def product_share(self, generation: str, precision: int) -> float:
        """The share of the bf16 peak that large matrix products reach."""
        return float(constants_for(self.values, self._owners(generation, precision)).matmul_bf16)

    def _owners(self, generation: str, precision: Any) -> Owners:
        return Owners(((self.stack, generation, int(precision)),), 0)
