"""Where a run's time and memory go: the clock of its parts, and the peaks of the process or the device."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from puna.train.measure.machine import forget_peak_process_memory, peak_process_memory


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


@contextlib.contextmanager
def profiler(wanted: bool, run_dir: Path) -> Iterator[Callable[[], None]]:
    """Trace steps 10 to 12 into `run_dir`/profile for Perfetto; yields what to call after a step."""
    if not wanted:
        yield lambda: None
        return
    from torch.profiler import profile, schedule, tensorboard_trace_handler

    plan = schedule(wait=8, warmup=2, active=3, repeat=1)
    with profile(schedule=plan, on_trace_ready=tensorboard_trace_handler(str(run_dir / "profile"))) as running:
        yield running.step


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
