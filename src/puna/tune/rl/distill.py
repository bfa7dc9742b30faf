"""On-policy distillation: a larger model gives its distribution at every answer token.

    problems -> engine (student) -> answers -> teacher's forward on the same rows -> reverse KL -> optimizer

The student learns on its own answers, so it learns to recover from its own mistakes, and every token has a target
instead of one reward per answer (arXiv 2306.13649). The divergence is KL(student | teacher) over the whole vocabulary
at each token that the student chose, exact instead of estimated from the chosen token. Rewards are measured but not
used. The teacher must have the student's tokenizer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from puna.core.errors import PunaError
from puna.model.llama import LlamaForCausalLM
from puna.model.store import load_model
from puna.text.tokenizer import Tokenizer
from puna.tune.rl.collect import Collector, summary
from puna.tune.rl.recipe import DistillRecipe
from puna.tune.rl.rewards import Check
from puna.tune.rl.updates import MicroBatch, TimeBreakdown, Update, micro_batches, plan_updates
from puna.tune.rows.packing import AnswerRows, grouped
from puna.tune.stage import Stage, StageObjective, run_stage


def run(recipe: DistillRecipe, run_dir: Path, *, resume: bool = False, **options: Any) -> dict[str, Any]:
    """Run the stage; see `run_stage`, whose last event is returned."""
    return run_stage(recipe, run_dir, partial(Distill, recipe=recipe), resume=resume, **options)


class Distill(StageObjective):
    """The objective of on-policy distillation."""

    def __init__(self, stage: Stage, recipe: DistillRecipe, check: Check | None = None) -> None:
        super().__init__(stage)
        self.recipe = recipe
        self.teacher = _teacher(recipe, stage)
        self.collector = Collector(stage, recipe, check)
        self.shares = TimeBreakdown(stage)
        self.queue: list[Update] = []

    def batch(self, data_step: int) -> Sequence[MicroBatch]:
        """See `Objective`."""
        self.shares.begin(self.collector.seconds)
        if not self.queue:
            self._fill(data_step)
        batches = micro_batches(self.queue.pop(0), self.stage)
        self.shares.end(self.collector.seconds)
        return batches

    def _fill(self, data_step: int) -> None:
        recipe, rollout = self.recipe, self.recipe.rollout
        self.collector.refresh()
        asked = self.collector.collect(recipe.train.batch * rollout.updates, data_step)
        self.queue = plan_updates(
            [grouped(one.prompt, one.answers, [0.0] * len(one.answers)) for one in asked],
            count=rollout.updates,
            epochs=rollout.epochs,
            seed=f"updates/{recipe.train.seed}/{data_step}",
            notes={**summary(asked), **self.shares.shares()},
        )

    def loss(self, network: nn.Module, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """See `Objective`: the mean divergence per token."""
        rows = batch.rows

        def divergence_of(hidden: Tensor, weight: Tensor) -> Tensor:
            own = hidden.flatten(0, -2)[rows.source]
            return reverse_kl(own, weight, teacher_hidden, teacher_head, chunk=self.recipe.train.loss_chunk)

        with torch.no_grad():
            teacher_hidden, teacher_head = _forward(self.teacher, rows, lambda h, w: (h.flatten(0, -2)[rows.source], w))
        divergence: Tensor = _forward(network, rows, divergence_of)
        often = rows.times[rows.answer]
        loss = (divergence * often).sum() / max(1, batch.tokens)
        measures = {"tokens": often.sum(), "reverse_kl": loss.detach()}
        return loss, {**measures, **batch.notes}

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out accuracy; see `Collector.evaluate`."""
        return self.collector.evaluate()

    def state(self) -> dict[str, Any]:
        """See `Objective`."""
        return {"queue": [update.plain() for update in self.queue], "curricula": self.collector.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Objective`."""
        self.queue = [Update.from_plain(plain) for plain in state["queue"]]
        self.collector.restore(state["curricula"])


def reverse_kl(
    hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor, *, chunk: int = 1024
) -> Tensor:
    """KL(student | teacher) of the next token at each position.

    Returns (tokens,) float32 nats, differentiable in the student. hidden: (tokens, student's width), head: (vocab,
    width); the teacher's have the teacher's width. chunk: tokens whose logits exist at once (0: all); with more than
    one chunk, each is recomputed in backward.
    """
    if not chunk or len(hidden) <= chunk:
        return _divergence(hidden, head, teacher_hidden, teacher_head)
    parts = [
        checkpoint(_divergence, own, head, other, teacher_head, use_reentrant=False)
        for own, other in zip(hidden.split(chunk), teacher_hidden.split(chunk), strict=True)
    ]
    return torch.cat(parts)


def _divergence(hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor) -> Tensor:
    student = _logprobs(hidden, head)
    with torch.no_grad():
        teacher = _logprobs(teacher_hidden, teacher_head)
    return (student.exp() * (student - teacher)).sum(-1)


def _logprobs(hidden: Tensor, head: Tensor) -> Tensor:
    return (hidden @ head.to(hidden.dtype).T).float().log_softmax(-1)


def _forward(network: nn.Module, rows: AnswerRows, head: Callable[[Tensor, Tensor], Any]) -> Any:
    return network(rows.ids, positions=rows.positions, mask=rows.document_mask(), head=head)


def _teacher(recipe: DistillRecipe, stage: Stage) -> LlamaForCausalLM:
    if not recipe.teacher:
        raise PunaError("The recipe has no teacher.", 'Set teacher = "models/...".')
    theirs = Tokenizer.load(Path(recipe.teacher))
    if theirs.hash != stage.tokenizer.hash:
        raise PunaError(
            f"{recipe.teacher} has a different tokenizer than {stage.recipe.model}, so its tokens have other meanings.",
            "Choose a teacher with the same tokenizer.",
        )
    dtype = torch.float32 if stage.recipe.train.precision == "fp32" else torch.bfloat16
    return load_model(Path(recipe.teacher), device=stage.device, dtype=dtype).requires_grad_(False)
