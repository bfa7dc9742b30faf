"""Long-context extension: pretraining goes on with longer rows, after the rotary angles were made slower.

The trainer is pretraining's own. Bits per byte at the new length are measured before the first step and at the end, so
the stage shows what it gained.
"""

from pathlib import Path
from typing import Any

from puna.core.errors import PunaError
from puna.model.store import load_config
from puna.train.trainer import Trainer, train
from puna.tune.extend_recipe import ExtendRecipe


def run(recipe: ExtendRecipe, run_dir: Path, **options: Any) -> dict[str, Any]:
    """Extend; options and result are those of `train.trainer.train`, with "before" in the last event.

    Raises PunaError when the new context is not longer than the old one.
    """
    try:
        pretraining = recipe.as_pretraining(load_config(Path(recipe.model)))
    except ValueError as error:
        raise PunaError(f"{error}.", "Set train.seq_len to the context that the model is to have.") from None
    before: list[float] = []

    def measure(trainer: Trainer) -> None:
        before.append(trainer.evaluate(pretraining.log.eval_bytes)["bits_per_byte"])

    event = train(pretraining, run_dir, hooks={0: measure}, **options)
    return {**event, "before": before[0] if before else None}
