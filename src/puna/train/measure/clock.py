"""Measure where the time and memory of a run go."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from puna.train.measure.machine import peak_process_memory, reset_peak_process_memory


def peak_memory(device: torch.device) -> int:
    """Peak memory so far: of the process on CPU, of the allocator on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_process_memory()


def reset_peak_memory(device: torch.device) -> None:
    """Start counting the peak from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak_process_memory()


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Collect garbage only at log intervals, not during a step while other ranks wait."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextlib.contextmanager
def profiler(wanted: bool, run_dir: Path) -> Iterator[Callable[[], None]]:
    """Trace steps 10 to 12 into `run_dir`/profile for Perfetto.

    Yields a function to call after each step.
    """
    if not wanted:
        yield lambda: None
        return
    from torch.profiler import profile, schedule, tensorboard_trace_handler

    plan = schedule(wait=8, warmup=2, active=3, repeat=1)
    with profile(schedule=plan, on_trace_ready=tensorboard_trace_handler(str(run_dir / "profile"))) as running:
        yield running.step


class Clock:
    """Wall-clock time by part.

    Parts are initial weights, training (including waiting for data), evaluation and checkpoints.
    """

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.seconds = {"setup": 0.0, "data": 0.0, "eval": 0.0, "checkpoint": 0.0}
        self.training_before = 0.0
        self.first_step = 0
        self.first_seconds = 0.0  # of this process's first step, which compiles
        self.intervals: list[tuple[int, float]] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def start(self, step: int) -> None:
        """Mark the start of the steps, at `step`.

        Creating initial weights counts as training, since users wait for it.
        """
        self.begin, self.first_step = time.perf_counter(), step
        if step == 0:
            self.training_before = self.seconds["setup"]

    def note(self, steps: int, seconds: float) -> None:
        """Record an interval of this many steps, excluding the first step of the process."""
        if steps > 0:
            self.intervals.append((steps, seconds))

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a typical step: the median over steps, each with the mean of its interval.

        None before any step.
        """
        left = sum(steps for steps, _ in self.intervals) / 2
        for seconds, steps in sorted((seconds / steps, steps) for steps, seconds in self.intervals):
            left -= steps
            if left <= 0:
                return seconds
        return None

    @property
    def recent_step_seconds(self) -> float | None:
        """Seconds of a recent step: the mean over the last two intervals. None before any step."""
        last = self.intervals[-2:]
        return sum(seconds for _, seconds in last) / sum(steps for steps, _ in last) if last else None

    @property
    def training_here(self) -> float:
        """Seconds of training in this process: everything but evaluation and checkpoints."""
        return time.perf_counter() - self.begin - self.seconds["eval"] - self.seconds["checkpoint"]

    @property
    def training(self) -> float:
        """Seconds of training of the whole run, including earlier processes."""
        return self.training_before + self.training_here

    def parts(self) -> dict[str, float]:
        """Seconds by part, for the end of the run."""
        return {"compute": self.training_here - self.seconds["data"], **self.seconds}
