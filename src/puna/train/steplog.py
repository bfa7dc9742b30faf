"""Keeping count while training: where the time goes, and the values of the steps since the last line.

Losses and norms stay on the device until an interval ends; reading them then is the one place where the host waits.
"""

import contextlib
import gc
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from puna.data.loader import documents_of
from puna.train.guard import decide
from puna.train.machine import forget_peak_process_memory, peak_process_memory

if TYPE_CHECKING:
    from puna.train.trainer import Trainer


def peak_memory(device: torch.device) -> int:
    """Largest memory so far: of the process on CPU, of the allocator on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_process_memory()


def forget_peak_memory(device: torch.device) -> None:
    """Let the peak count from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        forget_peak_process_memory()


@contextlib.contextmanager
def quiet_gc() -> Iterator[None]:
    """Collect garbage at log intervals, not in the middle of a step on one rank while the others wait."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class StepLog:
    """Losses and norms of the steps since the last line, on the device until `flush` reads them at once."""

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer
        self.clear()

    def clear(self) -> None:
        """Forget what was not written."""
        self.values: list[Tensor] = []
        self.data_steps: list[int] = []
        self.mark = self.trainer.clock.training_here
        self.waited = self.trainer.clock.seconds["data"]
        self.apart = 0  # steps of the interval that a usual step is not judged by

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Note one step (device scalars)."""
        self.values.append(torch.stack((loss, norm.float())))
        self.data_steps.append(self.trainer.data_step)
        clock = self.trainer.clock
        if not clock.first_seconds:
            # It compiles and allocates. Wait for it, this once, so that its time is known.
            if loss.is_cuda:
                torch.cuda.synchronize(loss.device)
            clock.first_seconds = clock.training_here
            self.apart = 1

    def flush(self) -> bool:
        """Read the interval's values, write a line, name the documents of skipped steps.

        Returns whether so many steps were skipped of late that the run should roll back or stop.
        """
        if not self.values:
            return False
        trainer, recipe = self.trainer, self.trainer.recipe
        rows = torch.stack(self.values).tolist()  # the one place where the host waits for the device
        count, first = len(rows), trainer.step - len(rows)
        skipped = {first + offset for offset in trainer.guard.drain()}
        good = [row for i, row in enumerate(rows) if first + i not in skipped] or rows
        loss = math.fsum(row[0] for row in good) / len(good)
        clock = trainer.clock
        seconds, waited = clock.training_here - self.mark, clock.seconds["data"] - self.waited
        clock.note(count - self.apart, seconds - self.apart * clock.first_seconds)
        speed = count * recipe.tokens_per_step / max(1e-9, seconds)
        rate = speed / trainer.world.size
        trainer.emit(
            {
                "kind": "train",
                "step": trainer.step,
                "tokens": trainer.step * recipe.tokens_per_step,
                "loss": _finite(loss),
                "bits_per_byte": _finite(loss / math.log(2) / trainer.bytes_per_token),
                "grad_norm": _finite(rows[-1][1]),
                "lr_factor": trainer.lr_factor(),
                "tokens_per_second": speed,
                "step_seconds": seconds / count,
                "mfu": {k: rate * v / trainer.peak for k, v in trainer.flops.items()} if trainer.peak else None,
                "memory_bytes": trainer.peak_memory(),
                "data_wait_share": waited / max(1e-9, seconds),
                "elapsed": clock.training,
            }
        )
        for step in sorted(skipped):
            self._name_documents(step, rows[step - first], self.data_steps[step - first])
        self.values, self.data_steps = [], []
        self.mark, self.waited, self.apart = clock.training_here, clock.seconds["data"], 0
        gc.collect(1)
        # Older ones no longer count, neither for the decision nor for how far back a roll-back goes.
        oldest = trainer.step - recipe.guard.window
        trainer.skipped = [step for step in (*trainer.skipped, *sorted(skipped)) if step > oldest]
        return decide(recipe.guard, trainer.skipped, step=trainer.step, rollbacks=trainer.rollbacks).action != "none"

    def _name_documents(self, step: int, row: list[float], data_step: int) -> None:
        recipe = self.trainer.recipe
        names = documents_of(
            self.trainer.corpus,
            seed=recipe.train.seed,
            step=data_step,
            rows=recipe.train.batch,
            seq_len=recipe.train.seq_len,
        )
        detail = f"loss {row[0]:.4g}, gradient norm {row[1]:.4g}: the update was left out"
        event = {"kind": "event", "step": step, "event": "skip", "detail": detail, "documents": names}
        self.trainer.emit({**event, "loss": _finite(row[0]), "grad_norm": _finite(row[1])})


class Clock:
    """Where the wall-clock goes: first weights, training (of which waiting for data), evaluation, checkpoints."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.seconds = {"setup": 0.0, "data": 0.0, "eval": 0.0, "checkpoint": 0.0}
        self.training_before = 0.0
        self.first_step = 0
        self.first_seconds = 0.0  # of this process' first step, which compiles
        self.intervals: list[tuple[int, float]] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block under `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def start(self, step: int) -> None:
        """The steps begin now, at `step`. Making first weights counts as training: whoever waits, waits for it too."""
        self.begin, self.first_step = time.perf_counter(), step
        if step == 0:
            self.training_before = self.seconds["setup"]

    def note(self, steps: int, seconds: float) -> None:
        """Remember an interval of so many steps, the first step of the process left out."""
        if steps > 0:
            self.intervals.append((steps, seconds))

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a usual step: the median over steps, each one its interval's mean. None before there is one."""
        left = sum(steps for steps, _ in self.intervals) / 2
        for seconds, steps in sorted((seconds / steps, steps) for steps, seconds in self.intervals):
            left -= steps
            if left <= 0:
                return seconds
        return None

    @property
    def recent_step_seconds(self) -> float | None:
        """Seconds of a step lately: the mean over the last two intervals. None before there is one."""
        last = self.intervals[-2:]
        return sum(seconds for _, seconds in last) / sum(steps for steps, _ in last) if last else None

    @property
    def training_here(self) -> float:
        """Seconds of training steps in this process: all but evaluation and checkpoints."""
        return time.perf_counter() - self.begin - self.seconds["eval"] - self.seconds["checkpoint"]

    @property
    def training(self) -> float:
        """Seconds of training of the whole run, earlier processes counted in."""
        return self.training_before + self.training_here

    def parts(self) -> dict[str, float]:
        """Seconds by part for the end of the run."""
        return {"compute": self.training_here - self.seconds["data"], **self.seconds}


def _finite(value: float) -> float | None:
    """JSON has no NaN: None says that a value was not finite."""
    return value if math.isfinite(value) else None
