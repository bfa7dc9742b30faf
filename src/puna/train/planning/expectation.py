"""What a run predicts before its first step, and how far off the prediction was at the end."""

from dataclasses import dataclass
from typing import Any, Literal

from puna.plan.layouts.predict import Prediction
from puna.train.objective import Objective
from puna.train.planning.step_time import expected_step
from puna.train.run_state import RunState


@dataclass(frozen=True)
class Expectation:
    """Memory of one process, time of a step, and the FLOPs that MFU is computed from."""

    memory_bytes: int
    step: Prediction | None
    """None when the step time cannot be predicted."""
    tokens_per_step: int
    flops_per_token: dict[str, float]
    """By convention, full and causal attention; empty when they cannot be counted."""
    peak_flops: float | None
    """Measured rate of matrix products in the run's precision."""

    @classmethod
    def of(cls, state: RunState[Any], objective: Objective) -> "Expectation":
        """Compute the expectation for a run."""
        train, known = state.recipe.train, objective.knows_its_rows
        conventions: tuple[Literal["full", "causal"], ...] = ("full", "causal") if objective.fills_its_rows else ()
        return cls(
            memory_bytes=state.memory.total,
            step=expected_step(state.training, state.machine, state.world.size) if known else None,
            tokens_per_step=state.training.tokens_per_step,
            flops_per_token={name: state.config.flops_per_token(train.seq_len, attention=name) for name in conventions},
            peak_flops=state.machine.matmul_flops.get("fp32" if train.precision == "fp32" else "bf16"),
        )

    def predicted(self, steps: int) -> dict[str, Any]:
        """The prediction for the run's first event. steps: the remaining steps."""
        step = self.step
        return {
            "memory_bytes": self.memory_bytes,
            "step_seconds": {"low": step.low, "value": step.step_seconds, "high": step.high} if step else None,
            "step_parts_seconds": {name: part for name, part in step.seconds.items() if part} if step else None,
            "tokens_per_second": step.tokens_per_second if step else None,
            "seconds": steps * step.step_seconds if step else None,
        }

    def mfu(self, tokens_per_second: float) -> dict[str, float] | None:
        """Model FLOPs utilization by convention, at the speed of one process."""
        if not self.peak_flops or not self.flops_per_token:
            return None
        return {name: tokens_per_second * flops / self.peak_flops for name, flops in self.flops_per_token.items()}

    def over_prediction(self, memory_bytes: int, step_seconds: float | None) -> dict[str, float | None]:
        """Measured over predicted - 1, for the run's last event."""
        slower = step_seconds / self.step.step_seconds - 1 if self.step and step_seconds else None
        return {"memory": memory_bytes / self.memory_bytes - 1, "step_seconds": slower}
