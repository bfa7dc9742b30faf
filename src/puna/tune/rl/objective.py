"""Reinforcement with verifiable rewards: make the better checked answers more likely.

    curriculum -> problems -> engine -> answers -> task's verdict -> advantages -> policy loss -> optimizer

One set of answers serves `rollout.updates` optimizer steps. Problems whose answers all score the same have no learning
signal; they are left out and replaced by others. Known failures are monitored: the stage refuses to start without
signal and ends when the signal is gone, and when entropy, divergence, length, the share of ended answers or the reward
leave their bounds, it rolls back to the best weights, with lower rates. At every step that learns from fresh answers,
the trainer's log probabilities are compared with those of the engine that wrote them.

Losses and papers: `tune.rl.losses`. Rows: `tune.rows.packing`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from puna.core.errors import PunaError
from puna.core.statistics import pass_at_k
from puna.model.llama import LlamaForCausalLM
from puna.model.store import load_model
from puna.train import parallel
from puna.train.objective import RollBack
from puna.tune.rl.alarm import Alarm
from puna.tune.rl.collect import Collector, Scored, summary
from puna.tune.rl.losses import METHODS, advantages, policy_loss, token_weights
from puna.tune.rl.recipe import RLRecipe
from puna.tune.rl.rewards import Check, hack_measure
from puna.tune.rl.updates import MicroBatch, TimeBreakdown, Update, micro_batches, plan_updates
from puna.tune.rows.packing import AnswerGroup, AnswerRows, grouped, token_logprobs
from puna.tune.stage import Stage, StageObjective, run_stage

_START_SAMPLES = 8  # one of them must be right for a problem to count as solved at the start
_MOVING = 0.8  # weight of the previous moving reward when a new set arrives


def run(recipe: RLRecipe, run_dir: Path, *, resume: bool = False, **options: Any) -> dict[str, Any]:
    """Run the stage; see `run_stage`, whose last event is returned."""
    return run_stage(recipe, run_dir, partial(RL, recipe=recipe), resume=resume, **options)


class RL(StageObjective):
    """The objective of reinforcement.

    check: how answers are scored; None: by their task's verdict.
    """

    shown = ("reward", "pass", "teaching", "entropy", "length", "logprob_gap", "visible", "hidden")

    def __init__(self, stage: Stage, recipe: RLRecipe, check: Check | None = None) -> None:
        super().__init__(stage)
        self.recipe = recipe
        self.collector = Collector(stage, recipe, check)
        self.alarm = Alarm(recipe.alarm)
        self.shares = TimeBreakdown(stage)
        self.queue: list[Update] = []
        self.sets = 0
        """Number of sets of answers so far."""
        self.moving: float | None = None
        """The moving mean of the reward over all generated problems."""
        self.reference = _reference(stage) if recipe.policy.kl else None
        self._seen: list[dict[str, Tensor]] = []  # measures of updates not read yet, on the device
        self._set_measures: list[dict[str, float]] = []  # measures of updates on this set, over all processes

    # -- the loop's side ---------------------------------------------------------------------------------------------

    def batch(self, data_step: int) -> Sequence[MicroBatch]:
        """See `Objective`.

        Raises RollBack when the policy collapses, PunaError when there is nothing to learn from.
        """
        self.shares.begin(self.collector.seconds)
        self._check_updates()
        if not self.queue:
            self._fill(data_step)
        batches = micro_batches(self.queue.pop(0), self.stage) if self.queue else []
        self.shares.end(self.collector.seconds)
        return batches

    def loss(self, network: nn.Module, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """See `Objective`."""
        policy, rows = self.recipe.policy, batch.rows
        logprobs, entropy = _score(network, rows, self.recipe.train.loss_chunk)
        reference = None
        if self.reference is not None:
            with torch.no_grad():
                reference = rows.matrix(_score(self.reference, rows, self.recipe.train.loss_chunk)[0])
        weights = token_weights(
            rows.mask,
            policy.method,
            max_tokens=self.recipe.rollout.max_tokens,
            answers=max(1, batch.answers),
            tokens=max(1, batch.tokens),
        )
        usual = METHODS[policy.method].clip
        loss, sums = policy_loss(
            rows.matrix(logprobs),
            rows.old_logprobs,
            rows.mask,
            rows.advantage,
            weights,
            policy.method,
            times=rows.times,
            clip=(policy.clip_low or usual[0], policy.clip_high or usual[1]),
            ref_logprobs=reference,
            kl=policy.kl,
        )
        often = rows.times[rows.answer]
        measures = {name: value / max(1, batch.tokens) for name, value in sums.items()}
        measures |= {"tokens": sums["tokens"], "dropped": sums["dropped"]}
        measures["entropy"] = (entropy * often).sum() / max(1, batch.tokens)
        if batch.fresh:
            gap = (rows.matrix(logprobs.detach()) - rows.old_logprobs).abs() * rows.mask
            gap = gap.nan_to_num(posinf=0.0)  # counted as dropped
            measures["logprob_gap"] = (gap * rows.times[:, None]).sum() / max(1, batch.tokens)
            measures["logprob_gap_max"] = _largest(gap)
        self._note({name: value.detach() for name, value in measures.items()}, first=batch.first)
        return loss, {**measures, **batch.notes}

    def _note(self, measures: dict[str, Tensor], *, first: bool) -> None:
        """Add the measures of a micro-batch to those of its update."""
        if first:
            self._seen.append(measures)
            return
        before = self._seen[-1]
        for name, value in measures.items():
            before[name] = before[name].maximum(value) if name.endswith("_max") else before[name] + value

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out accuracy; see `Collector.evaluate`."""
        return self.collector.evaluate()

    def state(self) -> dict[str, Any]:
        """See `Objective`."""
        return {
            "queue": [update.plain() for update in self.queue],
            "curricula": self.collector.state(),
            "alarm": self.alarm.state(),
            "sets": self.sets,
            "moving": self.moving,
            "looked": self._update_measures(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See `Objective`."""
        self.queue = [Update.from_plain(plain) for plain in state["queue"]]
        self.collector.restore(state["curricula"])
        self.alarm.restore(state["alarm"])
        self.sets, self.moving = state["sets"], state["moving"]
        self._seen, self._set_measures = [], state["looked"]

    # -- a set of answers --------------------------------------------------------------------------------------------

    def _fill(self, data_step: int) -> None:
        """Collect a set of answers and plan the updates on it; no updates when the stage is over."""
        recipe, rollout = self.recipe, self.recipe.rollout
        wanted = recipe.train.batch * rollout.updates
        self.collector.refresh()
        asked: list[Scored] = []
        teaching: list[Scored] = []
        for round_ in range(1 + recipe.curriculum.refill):
            asked += self.collector.collect(wanted - len(teaching), data_step, round_)
            teaching = [one for one in asked if one.has_signal]
            if len(teaching) >= wanted:
                break
        if not self.sets:
            self._check_start(asked)
        self.sets += 1
        found = summary(asked)
        positions = [curriculum.position for curriculum in self.collector.curricula.values()]
        self._check_collapse(self.alarm.answers(found, positions))
        self.moving = (
            found["reward"] if self.moving is None else _MOVING * self.moving + (1 - _MOVING) * found["reward"]
        )
        if self.moving > recipe.curriculum.stop_reward:
            self.stage.finished = (
                f"The moving reward is {self.moving:.2f}, above curriculum.stop_reward = "
                f"{recipe.curriculum.stop_reward:g}: there is little left to learn here."
            )
            return
        verdicts = [verdict for one in asked for verdict in one.verdicts]
        notes = {**found, "problems": float(len(asked)), **hack_measure(verdicts), **self.shares.shares()}
        notes |= {
            f"position {name}": curriculum.position
            for name, curriculum in self.collector.curricula.items()
            if len(curriculum.counts) > 1
        }
        self.queue = plan_updates(
            [self._group(one) for one in teaching],
            count=rollout.updates,
            epochs=rollout.epochs,
            seed=f"updates/{recipe.train.seed}/{data_step}",
            notes=notes,
        )

    def _group(self, one: Scored) -> AnswerGroup:
        method = METHODS[self.recipe.policy.method]
        found = advantages(torch.tensor([one.rewards]), method.baseline, method.scale)[0].tolist()
        answers = one.answers
        if self.recipe.reward.overlong == "mask":
            answers = [
                type(answer)(
                    answer.ids, answer.mask if answer.ended else [0] * len(answer.mask), answer.logprobs, answer.ended
                )
                for answer in answers
            ]
        return grouped(one.prompt, answers, found)

    def _check_start(self, asked: Sequence[Scored]) -> None:
        """Refuse to start when hardly any problem is ever solved, because nothing would be learned."""
        k = min(_START_SAMPLES, self.recipe.rollout.samples)
        least = self.recipe.curriculum.min_pass
        solved: dict[str, list[float]] = {}
        for one in asked:
            solved.setdefault(one.problem.task, []).append(pass_at_k(len(one.passed), sum(one.passed), k))
        low = {name: sum(rates) / len(rates) for name, rates in solved.items()}
        low = {name: rate for name, rate in low.items() if rate < least}
        if len(low) == len(solved):
            found = ", ".join(f"{name} {rate:.1%}" for name, rate in low.items())
            raise PunaError(
                f"At the start, {k} samples solve too few of the problems ({found}): below {least:.0%} there is "
                "nothing to reinforce.",
                "Fine-tune on demonstrations first (puna tune sft), or start at an easier level.",
            )
        for name, rate in low.items():
            self.stage.note("warning", f"{name}: {k} samples solve {rate:.1%} of the problems; little will be learned.")

    # -- watching ----------------------------------------------------------------------------------------------------

    def _update_measures(self) -> list[dict[str, float]]:
        """Measures of the updates on this set so far.

        Waits for the device; every process must call it.
        """
        seen, self._seen = self._seen, []
        for update in seen:
            names = sorted(name for name in update if not name.endswith("_max"))
            values = parallel.sum_over_ranks(
                torch.stack([update[name].float() for name in names]), self.stage.world
            ).tolist()
            self._set_measures.append(dict(zip(names, values, strict=True)))
        return self._set_measures

    def _check_updates(self) -> None:
        """Judge the updates on the last set before a new one is collected."""
        if self.queue or not self._update_measures():
            return
        updates, self._set_measures = self._set_measures, []
        gap = next((update["logprob_gap"] for update in updates if "logprob_gap" in update), 0.0)
        if gap > self.recipe.rollout.logprob_gap:
            self.stage.note(
                "warning",
                f"trainer and generator differ by {gap:.3g} nats per token on average: the answers come from a "
                "different policy.",
            )
        entropy, kl = (sum(update[name] for update in updates) / len(updates) for name in ("entropy", "kl_old"))
        self._check_collapse(self.alarm.update(entropy=entropy, kl=kl))

    def _check_collapse(self, reason: str) -> None:
        if not reason:
            return
        self.queue, self._seen, self._set_measures, self.moving = [], [], [], None
        raise RollBack(reason, to="best", lr_scale=self.recipe.alarm.lr_scale)


def _reference(stage: Stage) -> LlamaForCausalLM:
    """The weights that the stage started from, frozen."""
    model = load_model(Path(stage.recipe.model), device=stage.device)
    return model.requires_grad_(False)


def _score(network: nn.Module, rows: AnswerRows, chunk: int) -> tuple[Tensor, Tensor]:
    """Log probability and entropy of each chosen token, (tokens,)."""
    head = partial(token_logprobs, source=rows.source, target=rows.target, chunk=chunk)
    scored: tuple[Tensor, Tensor] = network(rows.ids, positions=rows.positions, mask=rows.document_mask(), head=head)
    return scored


def _largest(values: Tensor) -> Tensor:
    return values.max() if values.numel() else values.new_zeros(())
