"""Apply the layout of a plan (`puna plan ... --json`) to a training recipe.

The best layout is under "best", or under "run" for the plan of a budget. Data-parallel sizes, sharding, micro-batch and
recomputation come from it; everything else stays as in the recipe.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.core.errors import PunaError
from puna.core.files import read_json
from puna.core.units import format_count
from puna.model.layout import Layout, LayoutConfig
from puna.plan.equations.hardware import find_accelerator
from puna.plan.layouts.convert import PLAN_HINT, from_json
from puna.train.recipe import Recipe

# A plan whose parameter count differs by more than this is a plan for another model.
_SAME_MODEL = 0.05


def apply_plan(recipe: Recipe, path: Path, processes: int) -> tuple[Recipe, str]:
    """Apply the layout of the plan in `path`.

    Returns the new recipe and a sentence that says what was applied. Raises PunaError for a file that is not a plan, a
    plan for another model or number of processes, and a layout that the trainer does not support.
    """
    tree = _plan(path)
    layout = _layout(tree, path)
    if layout.ep > 1:
        raise PunaError(
            f"{path} has a layout with ep {layout.ep}, which this version's trainer does not run.",
            "Plan a dense model: it has no experts to spread.",
        )
    if layout.processes != processes:
        raise PunaError(
            f"{path} is a plan for {layout.processes} processes, but {processes} are running.",
            f"Start {layout.processes} (--nproc {layout.processes}, or as many under your launcher), or plan for "
            f"{processes}.",
        )
    _check_model(tree, recipe, path)
    if recipe.train.batch % (layout.data_parallel * layout.micro_batch):
        raise PunaError(
            f"{path} has {layout.data_parallel} processes with micro-batches of {layout.micro_batch}, which do not "
            f"divide the recipe's train.batch = {recipe.train.batch}.",
            "Plan with the recipe's batch, or change train.batch.",
        )
    values = layout.recipe_values()
    sizes = LayoutConfig(**values["layout"])
    if problem := sizes.problem_with(recipe.model, recipe.train.seq_len):
        raise PunaError(f"{path} does not fit the recipe: {problem}.", "Plan the recipe itself.")
    names = [name for name in ("tp", "cp", "pp", "virtual_stages") if getattr(sizes, name) > 1]
    taken = f"From {path}: " + ", ".join(
        [f"layout.{name} = {getattr(sizes, name)}" for name in ("dp_replicate", "dp_shard", *names)]
        + [f"train.micro_batch = {layout.micro_batch}", f"train.recompute = {values['train']['recompute']}."]
    )
    if processes > 1 and layout.sharding in ("zero1", "zero2"):
        taken += f" The plan has {layout.sharding}; the trainer also shards weights."
    if layout.recompute == "blocks":
        taken += " The plan recomputes every second block; the trainer recomputes all of them."
    train = recipe.train.model_copy(update=values["train"])
    return recipe.model_copy(update={"layout": sizes, "train": train}), taken


def _plan(path: Path) -> Mapping[str, Any]:
    """The plan of one run; a plan for a budget nests it one level deeper."""
    tree = read_json(path)
    if not isinstance(tree, Mapping):
        raise PunaError(f"{path} is not a plan.", PLAN_HINT)
    run = tree.get("run")
    return run if isinstance(run, Mapping) else tree


def _layout(tree: Mapping[str, Any], path: Path) -> Layout:
    best = tree.get("best")
    layout = best.get("layout") if isinstance(best, Mapping) else tree.get("layout")
    if not isinstance(layout, Mapping):
        raise PunaError(f"{path} is not a plan: it has no best layout.", PLAN_HINT)
    hybrid = layout.get("sharding") == "hsdp" and "dp_shard" not in layout
    domain = find_accelerator(str(tree.get("accelerator", ""))).link_domain if hybrid else None
    return from_json(layout, path, domain)


def _check_model(tree: Mapping[str, Any], recipe: Recipe, path: Path) -> None:
    planned, own = tree.get("parameters"), recipe.model.num_parameters()
    if isinstance(planned, int | float) and abs(planned / own - 1) > _SAME_MODEL:
        raise PunaError(
            f"{path} plans a model of {format_count(planned)} parameters, but the recipe has {format_count(own)}.",
            "Plan the recipe itself: puna plan RECIPE --json > plan.json",
        )
