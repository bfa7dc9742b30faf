"""The mean of several models' weights, tensor by tensor, in float32."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from puna.core.console import console
from puna.core.errors import PunaError
from puna.core.files import lock_directory, write_text
from puna.core.recipe import dump
from puna.model.store import DTYPES, load_config, load_lineage, read_tensor, save_model, stored_dtype, tensor_files
from puna.text.tokenizer import Tokenizer
from puna.tune.average.recipe import AverageRecipe


def average_models(paths: Sequence[Path], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """The weighted mean of each tensor, by name, float32 on the CPU.

    Weights are relative to their sum. Raises PunaError when the models do not have the same shape and tokenizer.
    """
    first, total = paths[0], sum(weights)
    config, tokenizer = load_config(first), Tokenizer.load(first).hash
    for path in paths[1:]:
        ours, other = (c.model_dump(exclude={"preset"}) for c in (config, load_config(path)))
        differs = [key for key, value in ours.items() if other[key] != value]
        if differs:
            raise PunaError(f"{path} differs from {first} in {differs[0]}.", "Average only models of the same shape.")
        if Tokenizer.load(path).hash != tokenizer:
            raise PunaError(f"{path} has a different tokenizer than {first}.", "Their embeddings are not comparable.")
    files = [tensor_files(path, config) for path in paths]
    mean = {}
    for name in files[0]:
        parts = (read_tensor(of[name], name).float() * (w / total) for of, w in zip(files, weights, strict=True))
        mean[name] = sum(parts, start=torch.zeros(()))
    return mean


def run(
    recipe: AverageRecipe,
    run_dir: Path,
    *,
    resume: bool = False,
    observers: Sequence[Callable[[dict[str, Any]], None]] = (),
) -> dict[str, Any]:
    """Write the mean of the recipe's models to run_dir/model; returns an "end" event."""
    paths, weights = [Path(part.path) for part in recipe.models], [part.weight for part in recipe.models]
    with lock_directory(run_dir):
        state = average_models(paths, weights)
        write_text(run_dir / "recipe.toml", dump(recipe))
        parents = [{"path": str(path), "stage": load_lineage(path).get("stage")} for path in paths]
        lineage = {"stage": "average", "recipe": recipe.model_dump(mode="json"), "parent": parents}
        dtype = stored_dtype(paths[0])
        assert dtype in DTYPES.values()
        tokenizer = Tokenizer.load(paths[0])
        save_model(run_dir / "model", load_config(paths[0]), state, tokenizer, dtype=dtype, lineage=lineage)
    console().print(f"Done: the mean of {len(paths)} models is in {run_dir / 'model'}.", markup=False)
    return {"kind": "end", "stage": "average", "step": 0, "models": [str(path) for path in paths]}
