"""A reward model: the network with a scalar head, trained on rankings.

The loss is Llama 2's without the margin. As in Llama 3 a prompt and all its answers share a row; the score of an answer
is read at its last token, and every pair of a ranking counts once. On disk it is transformers'
LlamaForSequenceClassification with one label.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from puna.core.errors import PunaError
from puna.core.files import new_directory, read_json, write_json
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM, copy_whole
from puna.model.store import read_tensor, save_tensors, tensor_headers, weight_files
from puna.model.tensor_file import Pending, complete
from puna.train.factory import FromCheckpoint
from puna.train.objective import SCORE, Metrics
from puna.tune.preference.losses import bradley_terry
from puna.tune.preference.pairs import read_preferences
from puna.tune.preference.ranked import Ranked, numbers_of_step, ranked_of, read_ranked
from puna.tune.preference.recipe import RewardRecipe
from puna.tune.rows.dialogues import Message
from puna.tune.rows.packing import AnswerRows, Row, collate
from puna.tune.stage import Stage, StageObjective, run_stage
from puna.version import __version__


class RewardModel(LlamaForCausalLM):
    """The network with `score` (1, hidden_size) instead of the language head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if not config.tie_word_embeddings:
            del self.lm_head
        self.score = nn.Linear(config.hidden_size, 1, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """See `LlamaForCausalLM`."""
        return self.score.weight


class RewardHead(FromCheckpoint):
    """Creates the network that a reward stage trains."""

    streams = False

    def make(self) -> LlamaForCausalLM:
        """See `ModelFactory`."""
        return RewardModel(self.config)

    def fill(self, model: LlamaForCausalLM, seed: int) -> None:
        """Load a reward model's weights, or a language model's with a zero head.

        With a zero head all answers score equally.
        """
        parameters = dict(model.named_parameters())
        parameters["score.weight"].zero_()
        for path in weight_files(self.directory):
            for name in tensor_headers(path):
                if name in parameters:
                    copy_whole(read_tensor(path, name), parameters[name])

    def save(
        self, directory: Path, state: Mapping[str, Tensor | Pending], *, dtype: torch.dtype, lineage: Mapping[str, Any]
    ) -> None:
        """Write a LlamaForSequenceClassification."""
        labels = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1, "id2label": {"0": "reward"}}
        name = str(dtype).removeprefix("torch.")
        with new_directory(directory, replace=True) as place:
            save_tensors(place, complete(state), dtype)
            write_json(place / "config.json", {**self.config.to_file(), **labels, "dtype": name, "torch_dtype": name})
            self.tokenizer.save(place)
            write_json(place / "puna.json", {"puna": __version__, **lineage})


class RewardBatch(NamedTuple):
    """A micro-batch.

    ends: (answers,) end of each answer in the flattened rows; pairs: (pairs, 2), better first.
    """

    rows: AnswerRows
    ends: Tensor
    pairs: Tensor
    pairs_everywhere: int


class Reward(StageObjective):
    """The objective of a reward model."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        recipe = stage.recipe
        assert isinstance(recipe, RewardRecipe)
        self.recipe = recipe
        data, longest = recipe.data, recipe.train.seq_len
        drop = data.overlong == "drop"
        self.items, self.heldout, self.notes = read_ranked(
            data.files,
            read_preferences,
            lambda item: ranked_of(item.prompt, item.answers, item.tools, stage.tokenizer, longest, drop=drop),
            data.heldout,
            lambda item: item.prompt,
        )

    def batch(self, data_step: int) -> Sequence[RewardBatch]:
        """This process's rankings of the step."""
        train, share = self.recipe.train, self.stage.share
        numbers = numbers_of_step(len(self.items), train.batch, data_step, train.seed)
        chosen = [self.items[number] for number in numbers]
        pairs = sum(_pairs(item) for item in chosen)
        starts = [share.first + index * share.rows for index in range(share.micro_batches)]
        return [self._part(chosen[start : start + share.rows], pairs) for start in starts]

    def _part(self, items: Sequence[Ranked], pairs_everywhere: int) -> RewardBatch:
        rows, ends = rows_and_ends([row for item in items for row in item.rows(self.recipe.train.seq_len)])
        first, pairs = 0, []
        for item in items:
            pairs += list(itertools.combinations(range(first, first + len(item.answers)), 2))
            first += len(item.answers)
        device = self.stage.device
        laid = collate(rows, device)
        return RewardBatch(
            laid, torch.tensor(ends, device=device), torch.tensor(pairs, device=device), pairs_everywhere
        )

    def loss(self, network: nn.Module, batch: RewardBatch) -> tuple[Tensor, Metrics]:
        """The loss of the pairs, as a share of the global batch's mean."""
        scores = scores_of(network, batch.rows, batch.ends)
        better, worse = scores[batch.pairs[:, 0]], scores[batch.pairs[:, 1]]
        share = 1.0 / batch.pairs_everywhere
        right = (better > worse).float() + 0.5 * (better == worse).float()
        measures = {"accuracy": right.sum() * share, "margin": (better - worse).detach().sum() * share}
        return bradley_terry(better, worse).sum() * share, measures

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """Loss and accuracy on held-out rankings; equal scores count as half right."""
        if not self.heldout:
            return {}
        sums = {"loss": 0.0, "accuracy": 0.0}
        pairs = sum(_pairs(item) for item in self.heldout)
        rows = self.stage.share.rows
        for start in range(0, len(self.heldout), rows):
            part = self._part(self.heldout[start : start + rows], pairs)
            with self.stage.autocast():
                loss, measures = self.loss(self.stage.model, part)
            sums["loss"] += float(loss)
            sums["accuracy"] += float(measures["accuracy"])
        return {**sums, "pairs": float(pairs), SCORE: sums["accuracy"]}


class Judge:
    """A reward model loaded from disk, for scoring answers."""

    def __init__(self, directory: Path, device: torch.device | str = "cpu") -> None:
        """Raises PunaError when the directory does not contain a reward model."""
        if "LlamaForSequenceClassification" not in read_json(directory / "config.json").get("architectures", []):
            raise PunaError(f"{directory} does not contain a reward model.", "Create one with puna tune reward.")
        network = RewardHead(directory)
        self.tokenizer, self.device = network.tokenizer, torch.device(device)
        with torch.device("meta"):
            self.model = network.make()
        self.model.to_empty(device=self.device)
        with torch.no_grad():
            network.fill(self.model, 0)
        self.longest = network.config.max_position_embeddings

    @torch.no_grad()
    def scores(
        self, prompt: Sequence[Message], answers: Sequence[Sequence[Message]], tools: Sequence[dict[str, Any]] = ()
    ) -> list[float]:
        """Score each answer to a prompt.

        An answer too long for the model is truncated and scored at its end.
        """
        scores = []
        for answer in answers:  # one at a time: duplicate answers are allowed here
            ranked = ranked_of(prompt, [answer], tools, self.tokenizer, self.longest)
            if ranked is None:
                scores.append(float("-inf"))
                continue
            rows, ends = rows_and_ends(ranked.rows(self.longest))
            laid = collate(rows, self.device)
            scores.append(float(scores_of(self.model, laid, torch.tensor(ends, device=self.device))[0]))
        return scores


def rows_and_ends(rows: list[Row]) -> tuple[list[Row], list[int]]:
    """Return the rows, and the end of each answer, in order, in the flattened rows."""
    width = max(row.width for row in rows)
    ends = []
    for number, row in enumerate(rows):
        place = number * width + len(row.prompt)
        for answer, *_ in row.answers:
            place += len(answer.ids)
            ends.append(place - 1)
    return rows, ends


def scores_of(network: nn.Module, rows: AnswerRows, ends: Tensor) -> Tensor:
    """The score of each answer, (answers,), float32."""

    def head(hidden: Tensor, weight: Tensor) -> Tensor:
        # Not a matrix product: autocast would round the scores to bf16, but small differences between them matter.
        return (hidden.flatten(0, -2)[ends].float() * weight.float()).sum(-1)

    scores: Tensor = network(rows.ids, positions=rows.positions, mask=rows.document_mask(), head=head)
    return scores


def _pairs(item: Ranked) -> int:
    return len(item.answers) * (len(item.answers) - 1) // 2


def run(recipe: RewardRecipe, run_dir: Path, **options: Any) -> dict[str, Any]:
    """Train a reward model; options and result are those of `tune.stage.run_stage`."""
    return run_stage(recipe, run_dir, Reward, factory=RewardHead, **options)
