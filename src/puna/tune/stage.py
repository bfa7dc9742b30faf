"""Run a tuning stage in the training loop: its initial weights, its records, its start."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.core import files
from puna.core.errors import PunaError
from puna.model.config import ModelConfig
from puna.model.store import load_lineage
from puna.train import parallel
from puna.train.factory import FromCheckpoint, ModelFactory
from puna.train.loop import Loop
from puna.train.measure.clock import peak_memory
from puna.train.measure.machine import Machine
from puna.train.objective import Objective
from puna.train.planning.memory import MemoryEstimate, check_fits
from puna.train.run_state import Observer, RunState
from puna.tune.lora import LoRA
from puna.tune.memory import advice_on_memory, predict_stage_memory
from puna.tune.recipe import StageRecipe

Stage = RunState[StageRecipe]
"""The run of a stage, for its objective."""


class StageObjective(Objective):
    """An objective of tuning. `stage` is its run."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.stage = stage
        recipe = stage.recipe
        self.command = f"puna tune {recipe.stage}"
        self.knows_its_rows = recipe.knows_its_rows
        self.ends_with_best = recipe.train.final == "best"

    def fingerprint(self) -> dict[str, Any]:
        """See `Objective`."""
        recipe = self.stage.recipe
        return {
            "stage": recipe.stage,
            "model": self.stage.config.model_dump(mode="json", exclude={"preset"}),
            "parent": str(recipe.model),
            "lora": recipe.lora.model_dump(mode="json"),
            "train.batch": recipe.train.batch,
            "train.seq_len": recipe.train.seq_len,
            "train.seed": recipe.train.seed,
            "optimizer.kind": recipe.optimizer.kind,
        }

    def lineage(self) -> dict[str, Any]:
        """See `Objective`."""
        recipe = self.stage.recipe
        parent = Path(recipe.model)
        return {
            "stage": recipe.stage,
            "recipe": recipe.model_dump(mode="json"),
            "parent": {"path": str(parent), **_known(load_lineage(parent))},
            "step": self.stage.step,
            "tokens": round(self.stage.tokens),
        }

    def start_facts(self) -> dict[str, Any]:
        """The name of the stage, and the measures that the live view shows."""
        return {"stage": self.stage.recipe.stage, "shown": list(self.shown)}

    def end_facts(self, measures: dict[str, Any]) -> dict[str, Any]:
        """Which weights are kept, and why the stage ended early."""
        stage = self.stage
        return {
            "stage": stage.recipe.stage,
            "final_step": stage.step,
            "best": stage.best,
            "finished": stage.finished,
        }


def run_stage(
    recipe: StageRecipe,
    run_dir: Path,
    make_objective: Callable[[Stage], Objective],
    *,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    factory: Callable[[Path], ModelFactory] = FromCheckpoint,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Run a stage to its end or until interrupted.

    Return the last event ("end" or "interrupted").

    make_objective: called once with the stage, whose network then has its initial weights. factory: creates the network
    from the model directory that the stage starts from. For the rest see `train.pretrain.train`.
    Raises PunaError for anything in recipe, model, checkpoint or machine that does not fit, before the first step.
    """
    with parallel.join_world() as world, contextlib.ExitStack() as stack:
        if world.first:
            stack.enter_context(files.lock_directory(run_dir))
        stage = prepare_stage(recipe, run_dir, world, factory=factory, machine=machine, observers=observers)
        return Loop(stage, make_objective).run(resume=resume)


def prepare_stage(
    recipe: StageRecipe,
    run_dir: Path,
    world: parallel.World,
    *,
    factory: Callable[[Path], ModelFactory] = FromCheckpoint,
    machine: Machine | None = None,
    observers: Sequence[Observer] = (),
) -> Stage:
    """Create a stage whose network has its initial weights; see `run_stage`."""
    if not recipe.model:
        raise PunaError("The recipe has no model to start from.", 'Set model = "models/...".')
    network = factory(Path(recipe.model))
    context = network.config.max_position_embeddings
    if recipe.train.seq_len > context:
        raise PunaError(
            f"train.seq_len = {recipe.train.seq_len} is longer than the context of {recipe.model}, {context} tokens.",
            "Lower it, or extend the model's context first (stage 'extend').",
        )
    if recipe.lora.rank:
        network = LoRA(network, recipe.lora)
    return RunState(recipe, run_dir, world, network, fit=_fit, machine=machine, observers=observers)


def _fit(recipe: StageRecipe, config: ModelConfig, machine: Machine, world: parallel.World) -> MemoryEstimate:
    held = peak_memory(world.device)
    memory = predict_stage_memory(recipe, config, device_type=world.device.type, world_size=world.size, held=held)
    check_fits(recipe.as_training(config), memory, machine, advice_on_memory(recipe))
    return memory


def _known(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a parent's lineage that is copied."""
    return {key: lineage[key] for key in ("stage", "step", "tokens", "corpus") if lineage.get(key) is not None}
