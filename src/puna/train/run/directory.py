"""Resolve the recipe and the directory of a run, new or resumed.

Works without torch, so errors show immediately. A new run needs a directory without a run in it. A resumed run uses the
resolved recipe stored in its directory. It may be trained longer, logged or saved differently, or be spread over
processes differently; what its checkpoints depend on (the network, the batch, the order of the data) cannot change.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.core.console import say, say_plain
from puna.core.errors import RecipeError
from puna.core.files import lock_directory
from puna.core.recipe import load, read_toml
from puna.model.hub import model_directory
from puna.train.recipe import Recipe, RunRecipe
from puna.train.run.metrics import last_event

RECIPE = "recipe.toml"

# Keys, or sections, that cannot change when a run is resumed.
_FIXED = (
    "model",
    "start_from",
    "train.batch",
    "train.seq_len",
    "train.seed",
    "train.document_mask",
    "train.init",
    "optimizer.kind",
)


def new_run(recipe: Path, overrides: Sequence[str], run_dir: Path | None, *, first: bool = True) -> tuple[Recipe, Path]:
    """Resolve the recipe of a new run and its directory (default: runs/<name>).

    first: whether this process checks the directory; only one of the processes of a run may.
    Raises PunaError when the recipe is wrong, or the directory contains a run or is in use.
    """
    value = load(Recipe, recipe, _one_length(overrides)).value
    run_dir = run_dir or Path("runs") / value.name
    if first:
        check_free(run_dir)
    if first and ((run_dir / RECIPE).exists() or (run_dir / "checkpoints").exists()):
        raise RecipeError(
            f"{run_dir} already contains a run.",
            f"Resume it (puna train --resume {run_dir}), or start another with --run-dir DIR or name=NAME.",
        )
    return value, run_dir


def resumed_run(run_dir: Path, overrides: Sequence[str], *, first: bool = True) -> Recipe:
    """Resolve the recipe of a resumed run. first: as in `new_run`.

    Raises PunaError when there is no run, it is in use, or an override changes what its checkpoints depend on.
    """
    if not (run_dir / RECIPE).is_file():
        raise RecipeError(f"{run_dir} has no run to resume ({RECIPE} is missing).", "Check the path.")
    if first:
        check_free(run_dir)
    before = load(Recipe, run_dir / RECIPE).value
    after = load(Recipe, run_dir / RECIPE, _one_length(overrides)).value
    old, new = dict(_leaves(before.model_dump(mode="json"))), dict(_leaves(after.model_dump(mode="json")))
    for key in [*old, *(key for key in new if key not in old)]:
        fixed = any(key == name or key.startswith(name + ".") for name in _FIXED)
        # fp32 and mixed store the same fp32 weights; bf16 has different states.
        fixed |= key == "train.precision" and "bf16" in (old[key], new[key])
        if fixed and old.get(key) != new.get(key):
            raise RecipeError(
                f"{run_dir} cannot be resumed with {key} = {new.get(key)}: the run was trained with {old.get(key)}.",
                "Remove that override, or start a new run with it.",
            )
    reached = max(_checkpoint_steps(run_dir), default=0)
    promised = after.schedule.seconds and after.total_steps == before.total_steps  # the run may have added steps
    if after.total_steps < reached and not promised:
        raise RecipeError(
            f"{run_dir} already has a checkpoint of step {reached}, beyond the requested {after.total_steps} steps.",
            f"Give train.steps of at least {reached}, or start a new run.",
        )
    return after


def finished_event(run_dir: Path, recipe: RunRecipe) -> dict[str, Any] | None:
    """The last event of a run that has reached its end, where `recipe` asks for no more steps; else None.

    A run whose model was removed is not finished: resuming it writes the model again.
    """
    event = last_event(run_dir)
    if event is None or event.get("kind") != "end" or not list((run_dir / "model").glob("*.safetensors")):
        return None
    kept = read_toml(run_dir / RECIPE).get("train", {})
    same = all(kept.get(key, 0) == getattr(recipe.train, key, 0) for key in ("steps", "tokens"))
    steps = recipe.total_steps if isinstance(recipe, Recipe) else recipe.train.steps
    return event if same or steps == event["step"] else None


def say_finished(run_dir: Path, event: Mapping[str, Any], command: str) -> None:
    """Say that there is nothing to resume, and how to train longer."""
    say_plain(
        f"{run_dir} is finished, at step {event['step']:,}; its model is {run_dir / 'model'}. "
        f"To train longer: {command} --resume {run_dir} train.steps=N"
    )


def settled(recipe: Recipe) -> Recipe:
    """The recipe with its corpus built and the model directory that `start_from` means.

    Raises PunaError when one of them is missing or they do not fit, before torch is loaded.
    """
    from puna.train.run.setup import open_corpus

    if recipe.start_from:
        recipe = recipe.model_copy(update={"start_from": str(model_directory(recipe.start_from))})
    recipe = resolve_corpus(recipe)
    open_corpus(recipe)
    return recipe


def resolve_corpus(recipe: Recipe, folder: Path = Path("corpora")) -> Recipe:
    """Replace a data recipe (.toml) in `corpus` by a corpus directory, `folder`/<its name>.

    The corpus is built if it does not exist yet, which takes as long as `puna data build` takes.
    """
    if not recipe.corpus.endswith(".toml"):
        return recipe
    source = Path(recipe.corpus)
    target = folder / source.stem
    if not (target / "manifest.json").exists():
        from puna.data.build import build_corpus
        from puna.data.recipe import DataRecipe

        loaded = load(DataRecipe, source)
        say(f"Building the corpus {target} from {source} (once).")
        build_corpus(loaded.value, target)
    return recipe.model_copy(update={"corpus": str(target)})


def check_free(run_dir: Path) -> None:
    """Raise PunaError when a running process uses the run directory.

    The run itself takes the lock again.
    """
    if run_dir.exists():
        if not run_dir.is_dir():
            raise RecipeError(f"{run_dir} is a file, not a run directory.", "Choose another --run-dir.")
        with lock_directory(run_dir):
            pass


def _checkpoint_steps(run_dir: Path) -> Iterator[int]:
    for path in (run_dir / "checkpoints").glob("step-*"):
        if match := re.fullmatch(r"step-(\d+)", path.name):
            yield int(match[1])


def _one_length(overrides: Sequence[str]) -> list[str]:
    """Drop train.steps, which has priority over train.tokens, when the command line sets tokens."""
    keys = [text.partition("=")[0].strip() for text in overrides]
    extra = ["train.steps=0"] if "train.tokens" in keys and "train.steps" not in keys else []
    return [*overrides, *extra]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
