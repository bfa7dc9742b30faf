"""Direct preference optimisation, with Llama 3's two changes, and IPO, SimPO and KTO.

The reference is the model that the stage starts from; its log probabilities are computed once, before the first step.
Headers and end tokens do not count in either answer, because both have them and the loss would pull them in opposite
directions (Llama 3 saw repeated tails and answers that broke off). A fifth of the chosen answer's cross entropy
preserves the format.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from puna.core.console import progress
from puna.train import parallel
from puna.train.objective import SCORE, Metrics
from puna.tune.heldout import measure_stage
from puna.tune.preference import losses
from puna.tune.preference.pairs import Judged, Preference, read_judged, read_preferences
from puna.tune.preference.ranked import Ranked, formatting, numbers_of_step, ranked_of, read_ranked
from puna.tune.preference.recipe import DPORecipe
from puna.tune.rows.packing import AnswerRows, collate, token_logprobs
from puna.tune.stage import Stage, StageObjective, run_stage


class DPOBatch(NamedTuple):
    """A micro-batch.

    reference: (answers,) log probabilities. mismatched: prompts with the next prompt's answers.
    """

    rows: AnswerRows
    good: Tensor
    reference: Tensor
    mismatched: AnswerRows | None
    mismatched_reference: Tensor | None
    items: int
    items_everywhere: int
    chosen_tokens_everywhere: int


class DPO(StageObjective):
    """The objective of preference optimisation."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        recipe = stage.recipe
        assert isinstance(recipe, DPORecipe)
        self.recipe, self.config = recipe, recipe.dpo
        self.alone = recipe.dpo.loss == "kto"
        self.form = torch.tensor(formatting(stage.tokenizer), device=stage.device)
        data, longest, drop = recipe.data, recipe.train.seq_len, recipe.data.overlong == "drop"

        def ids(prompt: Any, answers: Any, item: Judged | Preference, good: bool = True) -> Ranked | None:
            return ranked_of(prompt, answers, item.tools, stage.tokenizer, longest, drop=drop, good=good)

        if self.alone:
            self.items, self.heldout, self.notes = read_ranked(
                data.files,
                read_judged,
                lambda item: ids(item.prompt, [item.answer], item, item.good),
                data.heldout,
                lambda item: item.prompt,
            )
        else:
            self.items, self.heldout, self.notes = read_ranked(
                data.files,
                read_preferences,
                lambda item: ids(item.prompt, [item.answers[0], item.answers[-1]], item),
                data.heldout,
                lambda item: item.prompt,
            )
        self.everyone = [*self.items, *self.heldout]
        count = len(self.everyone) if self.alone else 0
        self.mismatched = [_moved(self.everyone, number, longest) for number in range(count)]
        self.reference = self._reference(self.everyone)
        self.mismatched_reference = self._reference(self.mismatched)

    # -- batches -----------------------------------------------------------------------------------------------------

    def batch(self, data_step: int) -> Sequence[DPOBatch]:
        """This process's preferences of the step."""
        train, share = self.recipe.train, self.stage.share
        numbers = numbers_of_step(len(self.items), train.batch, data_step, train.seed)
        tokens = sum(sum(self.items[number].answers[0].mask) for number in numbers if self.items[number].good)
        parts = []
        for index in range(share.micro_batches):
            first = share.first + index * share.rows
            parts.append(self._part(numbers[first : first + share.rows], train.batch, max(1, tokens)))
        return parts

    def _part(self, numbers: Sequence[int], everywhere: int, tokens: int) -> DPOBatch:
        device, longest = self.stage.device, self.recipe.train.seq_len
        chosen = [self.everyone[number] for number in numbers]
        reference = torch.tensor([value for number in numbers for value in self.reference[number]], device=device)
        moved = reference_moved = None
        if self.alone:
            moved = _rows([self.mismatched[number] for number in numbers], longest, device)
            values = [value for number in numbers for value in self.mismatched_reference[number]]
            reference_moved = torch.tensor(values, device=device)
        good = torch.tensor([item.good for item in chosen], device=device)
        rows = _rows(chosen, longest, device)
        return DPOBatch(rows, good, reference, moved, reference_moved, len(numbers), everywhere, tokens)

    # -- the loss ----------------------------------------------------------------------------------------------------

    def loss(self, network: nn.Module, batch: DPOBatch) -> tuple[Tensor, Metrics]:
        """The preference loss plus the chosen answers' cross entropy.

        Both are a share of the batch's loss.
        """
        each, chosen_nll, measures = self._losses(network, batch)
        share = 1.0 / batch.items_everywhere
        nll = chosen_nll / batch.chosen_tokens_everywhere
        measures = {name: value * share for name, value in measures.items()}
        loss = each.sum() * share + self.config.nll * nll
        return loss, {**measures, "nll": nll.detach(), "preference": each.sum().detach() * share}

    def _losses(self, network: nn.Module, batch: DPOBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute losses of preferences, cross entropy of chosen answers, and measures.

        Returns (loss of each preference, cross entropy summed over chosen tokens, measures summed over preferences).
        """
        config = self.config
        tokens = self._logps(network, batch.rows)
        counted = self._counted(batch.rows)
        matrix = batch.rows.matrix(tokens)  # (answers, longest)
        logps, lengths = (matrix * counted).sum(1), counted.sum(1).clamp_min(1)
        ratio = logps - batch.reference
        if self.alone:
            assert batch.mismatched is not None
            assert batch.mismatched_reference is not None
            with torch.no_grad():
                moved = batch.mismatched.matrix(self._logps(network, batch.mismatched))
                moved_logps = (moved * self._counted(batch.mismatched)).sum(1)
                kl = (moved_logps - batch.mismatched_reference).mean().clamp_min(0)
            weights = (config.good_weight, config.bad_weight)
            each = losses.kto(logps, batch.reference, batch.good, kl, config.beta, weights)
            nll = -(matrix.sum(1) * batch.good).sum()
            right = (ratio > kl) == batch.good
            measures = {"accuracy": right.float().sum(), "kl": kl * batch.items}
            return each, nll, measures
        chosen, rejected = logps[0::2], logps[1::2]
        first, second = batch.reference[0::2], batch.reference[1::2]
        if config.loss == "ipo":
            each = losses.ipo(chosen, rejected, first, second, lengths[0::2], lengths[1::2], config.beta)
        elif config.loss == "simpo":
            each = losses.simpo(chosen, rejected, lengths[0::2], lengths[1::2], config.beta, config.gamma)
        else:
            each = losses.dpo(chosen, rejected, first, second, config.beta)
        rewards = config.beta * ratio.detach()
        measures = {
            "accuracy": (rewards[0::2] > rewards[1::2]).float().sum(),
            "chosen_reward": rewards[0::2].sum(),
            "rejected_reward": rewards[1::2].sum(),
        }
        return each, -matrix[0::2].sum(), measures

    def _logps(self, network: nn.Module, rows: AnswerRows) -> Tensor:
        """Log probability of every token of the answers, (tokens,)."""
        chunk = self.recipe.train.loss_chunk

        def head(hidden: Tensor, weight: Tensor) -> Tensor:
            return token_logprobs(hidden, weight, rows.source, rows.target, chunk)[0]

        logps: Tensor = network(rows.ids, positions=rows.positions, mask=rows.document_mask(), head=head)
        return logps

    def _counted(self, rows: AnswerRows) -> Tensor:
        """(answers, longest), 1 where a token counts in the preference."""
        if not self.config.mask_format:
            return rows.mask
        text = (~torch.isin(rows.target, self.form)).float()
        return rows.matrix(text)

    @torch.no_grad()
    def _reference(self, items: Sequence[Ranked]) -> list[list[float]]:
        """The reference's log probabilities of each answer of each item; processes share the work."""
        stage, rows = self.stage, self.stage.share.rows
        chunks = [list(range(start, min(len(items), start + rows))) for start in range(0, len(items), rows)]
        mine = chunks if stage.sharded else chunks[stage.world.data_rank :: stage.world.data_size]
        found: dict[int, list[float]] = {}
        for numbers in _shown(mine, stage.world.first and len(items) > 64):
            laid = _rows([items[number] for number in numbers], self.recipe.train.seq_len, stage.device)
            with stage.autocast():
                matrix = laid.matrix(self._logps(stage.model, laid)) * self._counted(laid)
            values = iter(matrix.sum(1).tolist())
            found |= {number: [next(values) for _ in items[number].answers] for number in numbers}
        if not stage.sharded:
            everyone = parallel.gather_over_ranks(found, stage.world)
            found = {number: values for part in everyone for number, values in part.items()}
        return [found[number] for number in range(len(items))]

    # -- measuring and state -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """Loss and accuracy on held-out preferences, and accuracy on held-out problems.

        The latter is the score.
        """
        measures: dict[str, float] = {}
        if self.heldout:
            numbers = list(range(len(self.items), len(self.items) + len(self.heldout)))
            rows, sums = self.stage.share.rows, {"loss": 0.0, "accuracy": 0.0}
            for start in range(0, len(numbers), rows):
                part = self._part(numbers[start : start + rows], len(numbers), 1)
                with self.stage.autocast():
                    each, _, found = self._losses(self.stage.model, part)
                sums["loss"] += float(each.sum())
                sums["accuracy"] += float(found["accuracy"])
            measures = {name: value / len(numbers) for name, value in sums.items()}
            measures[SCORE] = measures["accuracy"]
        return measures | measure_stage(self.stage, self.recipe.measure)

    def state(self) -> dict[str, Any]:
        """Empty: batches are functions of the step alone."""
        return {"items": len(self.items)}


def _rows(items: Sequence[Ranked], seq_len: int, device: torch.device) -> AnswerRows:
    return collate([row for item in items for row in item.rows(seq_len)], device)


def _moved(items: Sequence[Ranked], number: int, seq_len: int) -> Ranked:
    """An item's prompt with the next item's answer, from which KTO estimates the drift."""
    prompt, answer = items[number].prompt, items[(number + 1) % len(items)].answers[0]
    room = max(1, seq_len - len(prompt))
    return Ranked(prompt, [answer.__class__(answer.ids[:room], answer.mask[:room], answer.logprobs[:room], False)])


def _shown(chunks: Sequence[list[int]], show: bool) -> Iterable[list[int]]:
    if not show:
        yield from chunks
        return
    with progress(transient=True) as bar:
        task = bar.add_task("log probabilities of the reference", total=len(chunks))
        for chunk in chunks:
            yield chunk
            bar.advance(task)


def run(recipe: DPORecipe, run_dir: Path, **options: Any) -> dict[str, Any]:
    """Optimise; options and result are those of `tune.stage.run_stage`."""
    return run_stage(recipe, run_dir, DPO, **options)
