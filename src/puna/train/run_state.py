"""The state of one run on one process, and the services that objectives use.

The state is the network, optimizer, guard, position and clock. A checkpoint stores weights, optimizer, the guard's
window and a few numbers: the step; the data step, which is ahead of it only after a roll-back skipped bad data; and the
horizon, which says how many steps there will be.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from puna.core.errors import PunaError
from puna.model.config import ModelConfig
from puna.train import parallel
from puna.train.factory import ModelFactory
from puna.train.guard import Guard
from puna.train.measure.clock import Clock, peak_memory, reset_peak_memory
from puna.train.measure.machine import Machine, measure
from puna.train.optimizer import Optimizer
from puna.train.pace import Horizon
from puna.train.parallel.fp8 import use_fp8
from puna.train.planning.memory import MemoryEstimate
from puna.train.recipe import RunRecipe, resolve_layout
from puna.train.run.metrics import MetricsLog
from puna.train.run.signals import StopRequest
from puna.train.schedule import lr_factor

R = TypeVar("R", bound=RunRecipe)
T = TypeVar("T")

Observer = Callable[[dict[str, Any]], None]
Fit = Callable[[Any, ModelConfig, Machine, parallel.World], MemoryEstimate]
"""Predicts the memory of (recipe, shape of the network) on (machine, processes); raises PunaError if it is too much."""


class RunState(Generic[R]):
    """Everything about a run except its objective."""

    def __init__(
        self,
        recipe: R,
        run_dir: Path,
        world: parallel.World,
        factory: ModelFactory,
        *,
        fit: Fit,
        machine: Machine | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Resolve the recipe on this machine, check that the run fits, and create the network.

        Raises PunaError for anything in recipe or machine that does not fit.
        """
        self.run_dir, self.observers, self.factory = run_dir, observers, factory
        self.config, self.tokenizer = factory.config, factory.tokenizer
        device = world.device
        self.layout = layout = resolve_layout(recipe.layout, recipe.train, world.size, on_cpu=device.type == "cpu")
        if problem := layout.problem_with(self.config, recipe.train.seq_len):
            raise PunaError(f"{problem}.")
        asked = recipe.train
        settled = recipe.train.model_copy(
            update={
                "precision": parallel.resolve_precision(recipe.train, device),
                "compile": "on" if parallel.resolve_compile(recipe.train, device, layout) else "off",
            }
        )
        # What the run directory stores: the layout as configured, so that a different number of processes may resume.
        self.kept_recipe = recipe.model_copy(update={"train": settled})
        self.recipe = recipe = recipe.model_copy(update={"train": settled, "layout": layout})
        self.machine = machine or measure(device.type)
        reset_peak_memory(device)  # exclude earlier work and measuring
        self.training = recipe.as_training(self.config)
        self.memory = fit(recipe, self.config, self.machine, world)
        self.world = world = parallel.arrange(world, layout)
        parallel.check_possible(world, asked)
        self.share = parallel.share_of_batch(recipe.train.batch, world)
        self.sharded = layout.dp_shard > 1 or layout.model_parallel
        self.clock = Clock()
        self._peak = 0
        self.network: nn.Module
        """What a training step calls."""
        self._make_network()
        if device.type == "cpu":
            self._peak = peak_memory(device)
            reset_peak_memory(device)  # gives the memory of counted first weights back to the system
        self.guard = Guard(recipe.guard, device)
        self.metrics: MetricsLog | None = None
        """Written by the first process once the run has started."""
        self.stop = StopRequest(first=world.first)

        self.step, self.data_step, self.rollbacks = 0, 0, 0
        self.horizon = Horizon(0)
        self.tokens = 0.0
        """Tokens learned from, up to the last line."""
        self.skipped: list[int] = []
        """Skipped steps within the guard's window, since the last roll-back."""
        self.lr_scale = 1.0
        """Factor on all learning rates, lowered by roll-backs."""
        self.best: dict[str, float] | None = None
        """{"step": ..., "score": ...} of the best held-out evaluation so far."""
        self.finished = ""
        """Why the run ends before its last step; set by an objective."""

    def _make_network(self) -> None:
        train, world = self.recipe.train, self.world
        with torch.device("meta"):
            self.model = self.factory.make()
        if train.precision == "bf16":
            self.model = self.model.to(torch.bfloat16)
        if train.fp8:
            use_fp8(self.model, world.device)
        parallel.apply_to_blocks(self.model, recompute=train.recompute, compiled=train.compile == "on")
        self.trained_parameters = sum(parameter.numel() for parameter in trainable(self.model).values())
        if self.sharded:
            self.network = parallel.spread(self.model, world, train.precision)
        with self.clock.part("setup"), torch.no_grad():
            self.model.to_empty(device=world.device)
            self.factory.fill(self.model, train.seed)
        if not self.sharded:
            self.network = parallel.replicate(self.model, world.mesh)
        parameters = trainable(self.model).items()
        twice = parallel.TIED if world.stage == self.layout.pp - 1 > 0 else ""
        self.optimizer = Optimizer(
            parameters, self.recipe.optimizer, world.mesh, bf16=train.precision != "fp32", twice=twice
        )

    # -- for objectives ----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device on which this process computes."""
        return self.world.device

    @property
    def total(self) -> int:
        """Steps of the whole run, as currently planned."""
        return self.horizon.total

    def emit(self, event: dict[str, Any]) -> None:
        """Write an event to metrics.jsonl and to the observers (first process only)."""
        if self.metrics:
            self.metrics.write(event)

    def note(self, name: str, detail: str, **more: Any) -> None:
        """Record an event at this step."""
        self.emit({"kind": "event", "step": self.step, "event": name, **more, "detail": detail})

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of forward passes; the loop calls `loss` in it."""
        return parallel.autocast(self.recipe.train.precision, self.device, sharded=self.sharded)

    def uncompiled(self) -> contextlib.AbstractContextManager[Any]:
        """Around generation."""
        return parallel.uncompiled(self.recipe.train.compile == "on")

    def from_first(self, make: Callable[[], T]) -> T:
        """Call `make` on the first process and return its result on every process."""
        return parallel.from_first(make, self.world)

    def lr_factor(self) -> float:
        """Factor on the learning rates for the next step."""
        return self.lr_scale * lr_factor(self.recipe.schedule, self.horizon.progress(self.step))

    def peak_memory(self) -> int:
        """Peak memory of training so far, bytes.

        Work done in `excluded_from_metrics` is not counted.
        """
        return max(self._peak, peak_memory(self.device))

    @contextlib.contextmanager
    def excluded_from_metrics(self) -> Iterator[None]:
        """Context for work that does not count as training, in neither time nor memory."""
        self._peak = self.peak_memory()
        try:
            with self.clock.part("eval"):
                yield
        finally:
            reset_peak_memory(self.device)

    # -- state -------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Any]:
        """The tensors of a checkpoint; loading fills them in place."""
        moved = trainable(self.model)
        return {
            "model": {name: tensor for name, tensor in self.model.state_dict().items() if name in moved},
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
        }

    def save_model(self, directory: Path, lineage: dict[str, Any]) -> None:
        """Write the weights of now as a model directory (every process takes part; the first one writes)."""
        dtype = torch.bfloat16 if self.recipe.train.precision == "bf16" else torch.float32
        if not self.factory.streams:
            state = parallel.first_state(self.model, self.world)
            if self.world.first:
                self.factory.save(directory, state, dtype=dtype, lineage=lineage)
        elif self.sharded:
            with parallel.pending_weights(self.model, self.world) as weights:
                if self.world.first:
                    self.factory.save(directory, weights, dtype=dtype, lineage=lineage)
        elif self.world.first:
            self.factory.save(directory, self.model.state_dict(), dtype=dtype, lineage=lineage)
        if dist.is_initialized():
            dist.barrier()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a run trains, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
