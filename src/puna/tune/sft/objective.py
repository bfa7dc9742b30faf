"""Supervised fine-tuning: cross entropy of the assistant's messages, on packed rows.

The loss of a step is the mean over all counted tokens of its global batch, however they are spread over rows,
micro-batches and processes. A batch without any counted token would have a loss of 0, which looks like success, so it
is an error.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from puna.core.errors import PunaError
from puna.model.llama import DocumentMask
from puna.train.loss import IGNORE, CrossEntropyHead
from puna.train.objective import SCORE, Metrics
from puna.tune.heldout import measure_stage
from puna.tune.rows.examples import Mixture, PackedRows, best_fit, example_of, sources_of, to_tensors
from puna.tune.sft.recipe import SFTRecipe
from puna.tune.stage import Stage, StageObjective, run_stage


class SFTBatch(NamedTuple):
    """A micro-batch: packed rows, a scale, and measures of its share.

    scale: 1 / (counted tokens of the global batch).
    """

    rows: PackedRows
    scale: float
    measures: dict[str, float]


class SFT(StageObjective):
    """The objective of supervised fine-tuning."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        recipe = stage.recipe
        assert isinstance(recipe, SFTRecipe)
        self.recipe = recipe
        self.fills_its_rows = not recipe.lora.rank
        train = recipe.train
        sources, heldout = sources_of(recipe.data, train.seed)
        drop = recipe.data.overlong == "drop"
        self.mixture = Mixture(sources, stage.tokenizer, train.seq_len, seed=train.seed, drop=drop)
        made = [example_of(dialogue, stage.tokenizer, train.seq_len, drop=drop) for dialogue in heldout]
        self.heldout = [example for example in made if example is not None]

    def batch(self, data_step: int) -> Sequence[SFTBatch]:
        """This process's rows of the next batch."""
        train, share = self.recipe.train, self.stage.share
        examples, truncated = self.mixture.rows(train.batch)
        packed = to_tensors(examples, train.seq_len)
        learned = int((packed.targets != IGNORE).sum())
        if not learned:
            raise PunaError("A batch has no token to learn.", "Check the data, or raise train.seq_len.")
        count = sum(map(len, examples))
        measures = {
            "fill": sum(len(e.inputs) for row in examples for e in row) / packed.ids.numel(),
            "truncated": truncated / count,
            "learned": float(learned),
        }
        parts = []
        everywhere = share.micro_batches * self.stage.world.data_size
        for index in range(share.micro_batches):
            first = share.first + index * share.rows
            rows = PackedRows(*(tensor[first : first + share.rows] for tensor in packed))
            parts.append(SFTBatch(rows, 1.0 / learned, {name: value / everywhere for name, value in measures.items()}))
        return parts

    def loss(self, network: nn.Module, batch: SFTBatch) -> tuple[Tensor, Metrics]:
        """Cross entropy of the rows, as a share of the global batch's mean."""
        loss, _ = packed_loss(self.stage, network, batch.rows, batch.scale)
        return loss, batch.measures

    def state(self) -> dict[str, Any]:
        """The state of the mixture."""
        return self.mixture.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of the mixture."""
        self.mixture.restore(state)

    def evaluate(self, step: int) -> dict[str, float]:
        """Loss on held-out dialogues and accuracy on held-out problems, if the recipe has them."""
        measures = {}
        if self.heldout:
            measures["loss"] = self._heldout_loss()
            measures[SCORE] = -measures["loss"]
        return measures | measure_stage(self.stage, self.recipe.measure)

    @torch.no_grad()
    def _heldout_loss(self) -> float:
        train = self.recipe.train
        packed = best_fit([len(example.inputs) for example in self.heldout], train.seq_len, len(self.heldout))
        total, count = 0.0, 0
        for start in range(0, len(packed), self.stage.share.rows):
            chunk = [[self.heldout[index] for index in row] for row in packed[start : start + self.stage.share.rows]]
            rows = to_tensors(chunk, train.seq_len)
            with self.stage.autocast():
                total += float(packed_loss(self.stage, self.stage.model, rows, 1.0)[1])
            count += int((rows.targets != IGNORE).sum())
        return total / count


def packed_loss(stage: Stage, network: nn.Module, rows: PackedRows, scale: float) -> tuple[Tensor, Tensor]:
    """Cross entropy summed over the targets of packed rows, times `scale`.

    Returns (for backward, for logging).
    """
    train, device = stage.recipe.train, stage.device
    # Flash attention with variable lengths supports only bf16.
    mask = DocumentMask.build(rows.documents, device, dense=True if train.precision == "fp32" else None)
    learned = (rows.targets.flatten() != IGNORE).nonzero().flatten()  # found on the CPU, without a device sync
    targets, place = rows.targets.flatten()[learned].to(device), learned.to(device)
    factor = torch.tensor(scale, device=device)

    # Prompts need no logits: with short answers that is most of the head's work.
    head = CrossEntropyHead(targets, factor, train.loss_chunk, place=place)
    loss: tuple[Tensor, Tensor] = network(rows.ids.to(device), mask=mask, head=head)
    return loss


def run(recipe: SFTRecipe, run_dir: Path, **options: Any) -> dict[str, Any]:
    """Fine-tune; options and result are those of `tune.stage.run_stage`."""
    return run_stage(recipe, run_dir, SFT, **options)
