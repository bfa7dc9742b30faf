"""Find the recipe, run directory and function of a stage.

Imports torch only once they are known.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.core.errors import PunaError, RecipeError
from puna.core.recipe import check, read_toml
from puna.data.corpus import Corpus
from puna.model.hub import model_directory
from puna.train.recipe import RunRecipe
from puna.train.run.directory import RECIPE, check_free, finished_event
from puna.tune.recipe import STAGES, StageBase, load_stage, stage_schema
from puna.tune.rows.dialogues import require_file


def new_stage(
    path: Path, overrides: Sequence[str], run_dir: Path | None, *, stage: str, first: bool = True
) -> tuple[StageBase, Path]:
    """Resolve the recipe of a new run of a stage and its directory (default: runs/<name>).

    first: whether this process checks the directory; only one of the processes of a run may.
    Raises PunaError when the recipe is wrong, or the directory contains a run or is in use.
    """
    recipe = load_stage(path, overrides, stage=stage).value
    run_dir = run_dir or Path("runs") / recipe.run_name
    if first:
        check_free(run_dir)
        if (run_dir / RECIPE).exists() or (run_dir / "checkpoints").exists():
            raise PunaError(
                f"{run_dir} already contains a run.",
                f"Resume it (puna tune {stage} --resume {run_dir}), or start another with --run-dir or name=NAME.",
            )
    return recipe, run_dir


def resumed_stage(run_dir: Path, overrides: Sequence[str], *, stage: str, first: bool = True) -> StageBase:
    """Resolve the recipe of a resumed stage.

    Raises PunaError when there is no such run, or it is in use. What its checkpoints depend on is checked against them
    when they are read.
    """
    path = run_dir / RECIPE
    if not path.is_file():
        raise PunaError(f"{run_dir} has no run to resume ({RECIPE} is missing).", "Check the path.")
    if first:
        check_free(run_dir)
    if "stage" not in read_toml(path):
        raise PunaError(f"{run_dir} is a pretraining run.", f"Use puna train --resume {run_dir}.")
    return load_stage(path, overrides, stage=stage).value


def settled(recipe: StageBase) -> StageBase:
    """The recipe with model directories where it names runs.

    Raises PunaError when a model, a file or a corpus is missing, before torch is loaded.
    """
    if not recipe.model and recipe.stage != "average":
        raise RecipeError("No model was given.", f"Use: puna tune {recipe.stage} RECIPE MODEL.")
    change: dict[str, Any] = {
        key: str(model_directory(place))
        for key in ("model", "teacher", "reward_model")
        if (place := getattr(recipe, key, ""))
    }
    if parts := getattr(recipe, "models", ()):
        change["models"] = tuple(part.model_copy(update={"path": str(model_directory(part.path))}) for part in parts)
    for file in _files(recipe.model_dump()):
        require_file(Path(file))
    if corpus := getattr(recipe, "corpus", ""):
        Corpus.open(Path(corpus))
    return recipe.model_copy(update=change)


def _files(values: Mapping[str, Any]) -> Iterator[str]:
    """The paths under every key `files` of a recipe, those of its sections too."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _files(value)
        elif key == "files":
            yield from (str(file["path"] if isinstance(file, Mapping) else file) for file in value)


def finished_stage(run_dir: Path, recipe: StageBase) -> dict[str, Any] | None:
    """The last event of a finished run of a stage, where `recipe` asks for no more steps; else None."""
    return finished_event(run_dir, recipe) if isinstance(recipe, RunRecipe) else None


def check_stage(tree: dict[str, Any], name: str) -> StageBase:
    """Validate a stage's recipe from plain values. Raises PunaError naming `name`."""
    return check(stage_schema(tree.get("stage"), name), tree, name)


def runner(stage: str) -> Callable[..., dict[str, Any]]:
    """Return the function that runs a stage.

    Its signature is (recipe, run_dir, resume=, observers=) -> last event.
    """
    function: Callable[..., dict[str, Any]] = importlib.import_module(STAGES[stage][2]).run
    return function
