"""Keeping count in a stage of tuning: the values of the steps since the last line in metrics.jsonl.

As in pretraining, losses and measures stay on the device until an interval ends; reading them then is the one place
where the host waits.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from puna.train.guard import decide

if TYPE_CHECKING:
    from puna.tune.loop import Stage


class StageLog:
    """Losses, norms and measures of the steps since the last line, on the device until `flush` reads them at once."""

    def __init__(self, stage: "Stage") -> None:
        self.stage = stage
        self.clear()

    def clear(self) -> None:
        """Forget what was not written."""
        self.steps: list[int] = []
        self.values: list[Tensor] = []
        self.measures: list[dict[str, Tensor]] = []
        self.mark, self.waited = self.stage.clock.training_here, self.stage.clock.seconds["data"]
        self.apart = 0

    def add(self, loss: Tensor, norm: Tensor, measures: dict[str, Tensor]) -> None:
        """Note one step (device scalars)."""
        self.steps.append(self.stage.step)
        self.values.append(torch.stack((loss, norm.float())))
        self.measures.append(measures)
        clock = self.stage.clock
        if not clock.first_seconds:
            if loss.is_cuda:
                torch.cuda.synchronize(loss.device)
            clock.first_seconds = clock.training_here
            self.apart = 1

    def flush(self) -> bool:
        """Read the interval's values and write a line; whether the guard skipped too many steps."""
        if not self.values:
            return False
        stage, clock = self.stage, self.stage.clock
        rows = torch.stack(self.values).tolist()  # the one place where the host waits for the device
        count, skipped = len(rows), stage.guard.drain()
        good = [row for index, row in enumerate(rows) if index not in skipped] or rows
        counted = [step.pop("tokens", None) for step in self.measures]
        learned = sum(stage.tokens_per_step if tokens is None else float(tokens) for tokens in counted)
        stage.tokens += learned
        measures = {name: self._merged(name) for name in dict.fromkeys(n for step in self.measures for n in step)}
        seconds, waited = clock.training_here - self.mark, clock.seconds["data"] - self.waited
        clock.note(count - self.apart, seconds - self.apart * clock.first_seconds)
        stage.emit(
            {
                "kind": "train",
                "step": stage.step,
                "tokens": round(stage.tokens),
                "loss": math.fsum(row[0] for row in good) / len(good),
                "grad_norm": rows[-1][1],
                "lr_factor": stage.lr_factor(),
                "tokens_per_second": learned / max(1e-9, seconds),
                "step_seconds": seconds / count,
                "mfu": None,
                "memory_bytes": stage.peak_memory(),
                "data_wait_share": waited / max(1e-9, seconds),
                "elapsed": clock.training,
                "metrics": measures,
            }
        )
        for index in skipped:
            loss, norm = rows[index]
            detail = f"loss {loss:.4g}, gradient norm {norm:.4g}: the update was left out"
            stage.emit({"kind": "event", "step": self.steps[index], "event": "skip", "detail": detail})
        oldest = stage.step - stage.recipe.guard.window
        stage.skipped = [s for s in (*stage.skipped, *(self.steps[index] for index in skipped)) if s > oldest]
        self.clear()
        return decide(stage.recipe.guard, stage.skipped, step=stage.step, rollbacks=stage.rollbacks).action != "none"

    def _merged(self, name: str) -> float:
        """A measure over the interval: the mean of the steps that have it, or the maximum."""
        values = torch.stack([step[name] for step in self.measures if name in step])
        return float((values.max() if name.endswith("_max") else values.mean()).item())
