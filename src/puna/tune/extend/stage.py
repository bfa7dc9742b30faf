"""Long-context extension: pretraining with longer rows and slower rotary angles.

Bits per byte at the new length are measured before the first step and at the end, to show what the stage gained.
"""

from pathlib import Path
from typing import Any

from puna.core.errors import PunaError
from puna.model.store import load_config
from puna.train.pretrain import Pretraining, train
from puna.tune.extend.recipe import ExtendRecipe


class Extension(Pretraining):
    """Pretraining that is also measured before its first step."""

    evaluates_first = True
    before: float | None = None
    """Bits per byte at the new length before the first step."""

    def evaluate(self, step: int) -> dict[str, Any]:
        """See `Pretraining`."""
        measures = super().evaluate(step)
        if not step:
            self.before = measures["bits_per_byte"]
        return measures

    def state(self) -> dict[str, Any]:
        """Return the measurement before the first step."""
        return {"before": self.before}

    def restore(self, state: dict[str, Any]) -> None:
        """See `state`."""
        self.before = state.get("before")

    def end_facts(self, measures: dict[str, Any]) -> dict[str, Any]:
        """Bits per byte before and after."""
        return {**super().end_facts(measures), "before": self.before}


def run(recipe: ExtendRecipe, run_dir: Path, **options: Any) -> dict[str, Any]:
    """Extend the context; the last event has "before".

    Options and result are those of `train.pretrain.train`. Raises PunaError when the new context is not longer than the
    old one.
    """
    try:
        pretraining = recipe.as_pretraining(load_config(Path(recipe.model)))
    except ValueError as error:
        raise PunaError(f"{error}.", "Set train.seq_len to the new context of the model.") from None
    return train(pretraining, run_dir, objective=Extension, **options)
