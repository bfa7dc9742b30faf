"""A plan's layout for a training run: what `puna plan ... --json` found, put into the recipe.

The file is what the command printed: its best layout stands under "best", or under "run" for a plan of a budget. Taken
are the data-parallel ranks and how they shard, the micro-batch and what is recomputed; whatever else a plan says stays
the recipe's business.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.core.errors import PunaError
from puna.core.files import read_json
from puna.core.units import format_count
from puna.model.layout import Layout
from puna.plan.hardware import find_accelerator
from puna.plan.jobs import RECOMPUTE, SHARDING
from puna.train.recipe import Recipe

_PLAN_HINT = "Make one with: puna plan RECIPE --fleet 8xh100 --stack puna --json > plan.json"
# A plan of a model whose parameters differ by more is a plan of another model.
_SAME_MODEL = 0.05


def apply_plan(recipe: Recipe, path: Path, processes: int) -> tuple[Recipe, str]:
    """The recipe with the layout of the plan in `path`, and a sentence that says what was taken.

    Raises PunaError for a file that is no plan, a plan of another model or number of processes, and a layout that the
    trainer has not.
    """
    tree = _tree(path)
    layout = _layout(tree, path)
    counts = {name: _count(layout, name, path) for name in ("tp", "cp", "pp", "dp", "ep", "micro_batch")}
    beyond = [f"{name} {counts[name]}" for name in ("tp", "cp", "pp", "ep") if counts[name] > 1]
    if beyond:
        raise PunaError(
            f"{path} has a layout with {', '.join(beyond)}, which this version's trainer does not run.",
            "Plan again with --stack puna, which knows data parallelism alone.",
        )
    ranks, micro_batch = counts["dp"], counts["micro_batch"]
    if ranks != processes:
        raise PunaError(
            f"{path} is a plan for {ranks} processes, but {processes} run.",
            f"Start {ranks} (--nproc {ranks}, or as many under your launcher), or plan for {processes}.",
        )
    _check_model(tree, recipe, path)
    if recipe.train.batch % (ranks * micro_batch):
        raise PunaError(
            f"{path} has {ranks} processes with micro-batches of {micro_batch}, which do not divide the recipe's "
            f"train.batch = {recipe.train.batch}.",
            "Plan with the recipe's own batch, or change train.batch.",
        )
    sharding, recompute = _name(layout, "sharding", SHARDING, path), _name(layout, "recompute", RECOMPUTE, path)
    shard = _shard(tree, sharding, ranks)
    checkpointing = {"none": "none", "full": "full", "blocks": "full"}.get(recompute, "selective")
    own = Layout(dp_replicate=ranks // shard, dp_shard=shard)
    train = recipe.train.model_copy(update={"micro_batch": micro_batch, "checkpointing": checkpointing})
    told = (
        f"From {path}: layout.dp_replicate = {own.dp_replicate}, layout.dp_shard = {own.dp_shard}, "
        f"train.micro_batch = {micro_batch}, train.checkpointing = {checkpointing}."
    )
    if ranks > 1 and sharding in ("zero1", "zero2"):
        told += f" The plan has {sharding}; the trainer shards weights too."
    if recompute == "blocks":
        told += " The plan recomputes every second block; the trainer recomputes all of them."
    return recipe.model_copy(update={"layout": own, "train": train}), told


def _tree(path: Path) -> Mapping[str, Any]:
    tree = read_json(path)
    if not isinstance(tree, Mapping):
        raise PunaError(f"{path} is not a plan.", _PLAN_HINT)
    run = tree.get("run")
    return run if isinstance(run, Mapping) else tree


def _layout(tree: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    best = tree.get("best")
    layout = best.get("layout") if isinstance(best, Mapping) else tree.get("layout")
    if not isinstance(layout, Mapping):
        raise PunaError(f"{path} is not a plan: it has no best layout.", _PLAN_HINT)
    return layout


def _count(layout: Mapping[str, Any], name: str, path: Path) -> int:
    value = layout.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value % 1 != 0:
        raise PunaError(f"{path}: best.layout.{name} = {value!r} is not a whole number of at least 1.", _PLAN_HINT)
    return int(value)


def _name(layout: Mapping[str, Any], part: str, names: tuple[str, ...], path: Path) -> str:
    """A part that is one of some names."""
    value = layout.get(part, names[0])
    if value not in names:
        raise PunaError(f"{path}: best.layout.{part} = {value!r} is none of {', '.join(names)}.", _PLAN_HINT)
    return str(value)


def _shard(tree: Mapping[str, Any], sharding: str, ranks: int) -> int:
    """How many ranks share one copy of the states: none for ddp, a scale-up domain for hsdp, else all."""
    if sharding == "ddp":
        return 1
    if sharding != "hsdp":
        return ranks
    domain = find_accelerator(str(tree.get("accelerator", ""))).link_domain
    return max(size for size in range(1, min(ranks, domain) + 1) if ranks % size == 0)


def _check_model(tree: Mapping[str, Any], recipe: Recipe, path: Path) -> None:
    planned, own = tree.get("parameters"), recipe.model.num_parameters()
    if isinstance(planned, int | float) and abs(planned / own - 1) > _SAME_MODEL:
        raise PunaError(
            f"{path} plans a model of {format_count(planned)} parameters, but the recipe's has {format_count(own)}.",
            "Plan the recipe itself: puna plan RECIPE --json > plan.json",
        )
