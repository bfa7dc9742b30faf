"""Collect sets of answers to learn from: draw problems, generate answers, compute rewards.

Every process answers its share of the problems, then all receive all answers. So each has the same record, the same
curriculum and the same plan of updates, and the number of processes may change when a stage is resumed. Anything random
is a function of (seed, data step, round, number) and of the curricula, whose state the objective stores.
"""

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from puna.core.errors import PunaError
from puna.tasks.catalogue import find
from puna.tasks.contract import Problem, Task, Verdict, refused
from puna.tasks.curriculum import Curriculum
from puna.tasks.episodes import seed_of
from puna.tasks.heldout import is_heldout
from puna.train import parallel
from puna.train.objective import SCORE
from puna.tune.measure import Measured, measure_tasks
from puna.tune.rl.recipe import OnPolicyRecipe
from puna.tune.rl.rewards import Check, Grading, checker, reward
from puna.tune.rl.sampling import PromptGroup, generate_rollouts
from puna.tune.rollout import Generator, make_generator, send_weights, vllm_generator
from puna.tune.rows.packing import Answer
from puna.tune.stage import Stage

_TRIES = 400  # after this many held-out problems in a row, the level has no others


@dataclass
class Scored:
    """One problem with its answers and rewards; a reward is NaN when its check failed."""

    problem: Problem
    prompt: list[int]
    answers: list[Answer]
    rewards: list[float]
    verdicts: list[Verdict | None]

    @property
    def passed(self) -> list[bool]:
        """For each answer, whether it solves the problem."""
        return [bool(verdict and verdict.passed) for verdict in self.verdicts]

    @property
    def known(self) -> list[float]:
        """The rewards that are not NaN."""
        return [value for value in self.rewards if value == value]

    @property
    def has_signal(self) -> bool:
        """Whether the rewards of the answers differ, so that there is something to learn."""
        known = self.known
        return len(known) > 1 and max(known) > min(known)


class Collector:
    """Collects sets of answers.

    seconds: time for "generation", and for "reward" after generation had ended.
    """

    def __init__(self, stage: Stage, recipe: OnPolicyRecipe, check: Check | None = None) -> None:
        self.stage, self.recipe = stage, recipe
        self.check = check or checker(recipe.reward.sandbox)
        self.curricula = {
            entry.name: _curriculum(entry.name, entry.levels, recipe, recipe.train.seed) for entry in recipe.tasks
        }
        self.levels = {entry.name: sorted(entry.levels) for entry in recipe.tasks}
        self.generator = self._generator()
        self.version = 0
        self.seconds = {"generation": 0.0, "reward": 0.0}

    def _generator(self) -> Generator:
        stage, rollout, longest = self.stage, self.recipe.rollout, self.recipe.train.seq_len
        parent = Path(self.recipe.model)
        if rollout.generator == "vllm":
            generator: Generator = vllm_generator(
                stage.config, stage.tokenizer, parent, max_batch=rollout.max_batch, seq_len=longest
            )
            return generator
        # Use the trainer's matmul precision, so that both assign the same probabilities.
        dtype = torch.float32 if stage.recipe.train.precision == "fp32" else torch.bfloat16
        return make_generator(
            stage.config,
            stage.tokenizer,
            parent,
            device=stage.device,
            dtype=dtype,
            max_batch=rollout.max_batch,
            seq_len=longest,
        )

    def refresh(self) -> None:
        """Send the current weights to the generator."""
        self.version = send_weights(self.stage.model, self.generator, lora=self.recipe.lora)

    def collect(self, count: int, data_step: int, round_: int = 0) -> list[Scored]:
        """Answer `count` problems (over all processes) with the generator's weights.

        Returned in drawing order.
        """
        recipe, rollout, world = self.recipe, self.recipe.rollout, self.stage.world
        drawn = [self._draw(data_step, round_, number) for number in range(count)]
        mine = range(world.data_rank, count, world.data_size)
        start = time.perf_counter()
        with Grading(self.check) as grading:
            asked = generate_rollouts(
                self.generator,
                self.stage.tokenizer,
                [drawn[number] for number in mine],
                samples=rollout.samples,
                seeds=[seed_of(recipe.train.seed, data_step, round_, number) for number in mine],
                max_tokens=rollout.max_tokens,
                seq_len=min(recipe.train.seq_len, self.stage.config.max_position_embeddings),
                turns=rollout.turns,
                instruct=rollout.instruct,
                sandbox=recipe.reward.sandbox,
                ended=grading.begin,
            )
            written = time.perf_counter()
            self.seconds["generation"] += written - start
            scored = self._rewarded(asked, grading)
        self.seconds["reward"] += time.perf_counter() - written
        whole = parallel.gather_over_ranks(scored, world)
        result = [whole[number % len(whole)][number // len(whole)] for number in range(count)]
        for one in result:
            for verdict in one.verdicts:
                if verdict:
                    place = self.levels[one.problem.task].index(one.problem.level) + 1
                    self.curricula[one.problem.task].record(place, verdict.score)
        return result

    def _draw(self, data_step: int, round_: int, number: int) -> tuple[Task, Problem]:
        names = [entry.name for entry in self.recipe.tasks]
        shares = [entry.share for entry in self.recipe.tasks]
        draw = random.Random(f"tasks/{self.recipe.train.seed}/{data_step}/{round_}/{number}")
        name = draw.choices(names, shares)[0]
        task = find(name)
        for _ in range(_TRIES):
            drawn = self.curricula[name].draw()
            problem = task.sample(drawn.seed, self.levels[name][drawn.level - 1])
            if not is_heldout(problem):
                return task, problem
        raise PunaError(f"{name} has no problems to train on at these levels.", "Choose higher levels.")

    def _rewarded(self, asked: Sequence[PromptGroup], grading: Grading) -> list[Scored]:
        samples = [sample for one in asked for sample in one.samples]
        done = reward(samples, self.recipe.reward, grading, max_tokens=self.recipe.rollout.max_tokens)
        if done.broken:
            self.stage.note("warning", f"{len(done.broken)} checks failed; the first: {done.broken[0]}")
        rows, at = [], 0
        for one in asked:
            here = slice(at, at := at + len(one.samples))
            answers = [sample.answer for sample in one.samples]
            rows.append(Scored(one.problem, one.prompt, answers, done.rewards[here], done.verdicts[here]))
        return rows

    def measure(self) -> list[Measured]:
        """Measure held-out problems of the recipe's `measure`, or else of all its tasks.

        Uses the current weights. They are prompted like training problems; every process gets the same result.
        """
        recipe = self.recipe
        self.refresh()

        def measure() -> list[Measured]:
            return measure_tasks(
                self.generator,  # type: ignore[arg-type]
                recipe.measure.asked or [(entry.name, level) for entry in recipe.tasks for level in entry.levels],
                problems=recipe.measure.problems,
                samples=recipe.measure.samples,
                max_tokens=recipe.rollout.max_tokens,
                instruct=recipe.rollout.instruct,
                check=self._check_heldout,
            )

        return self.stage.from_first(measure)

    def evaluate(self) -> dict[str, float]:
        """Held-out accuracy, greedy and sampled.

        The score is the mean of both over tasks and levels. Empty when the recipe sets no problems.
        """
        if not self.recipe.measure.problems:
            return {}
        measures: dict[str, float] = {}
        scores = []
        for one in self.measure():
            greedy, sampled, any_of_k = one.greedy or 0.0, one.pass_1 or 0.0, one.pass_k or 0.0
            name = f"{one.task}.{one.level}"
            measures |= {f"{name}.greedy": greedy, f"{name}.pass@1": sampled, f"{name}.pass@{one.k}": any_of_k}
            scores.append((greedy + sampled) / 2)
        return {SCORE: sum(scores) / len(scores), **measures}

    def _check_heldout(self, task: Task, problem: Problem, text: str) -> Verdict:
        """Check a held-out answer; a check that fails counts as not solved."""
        try:
            return self.check(task, problem, text)
        except PunaError:
            raise
        except Exception as error:
            return refused(f"The check failed: {type(error).__name__}.")

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return {name: curriculum.state() for name, curriculum in self.curricula.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        for name, curriculum in self.curricula.items():
            curriculum.restore(state[name])


def _curriculum(name: str, levels: Sequence[int], recipe: OnPolicyRecipe, seed: int) -> Curriculum:
    """A curriculum over exactly the given levels: its level 1 is the lowest of them."""
    task, bounds = find(name), recipe.curriculum
    named = dataclasses.replace(task, levels=tuple(task.levels[level - 1] for level in sorted(levels)))
    return Curriculum(named, low=bounds.low, high=bounds.high, window=bounds.window, seed=seed)


def pass_rates(scored: Sequence[Scored]) -> dict[str, tuple[int, int]]:
    """Per task: (problems with at least one right answer, problems)."""
    rates: dict[str, tuple[int, int]] = {}
    for one in scored:
        solved, count = rates.get(one.problem.task, (0, 0))
        rates[one.problem.task] = (solved + any(one.passed), count + 1)
    return rates


def summary(scored: Sequence[Scored]) -> dict[str, float]:
    """Summarize a set of answers.

    Returns the mean reward and its standard error over problems, pass rate, length, share of answers that ended, and
    share of problems whose rewards differ.
    """
    answers = [answer for one in scored for answer in one.answers]
    rewards = [value for one in scored for value in one.known]
    passed = [ok for one in scored for ok in one.passed]
    return {
        "reward": sum(rewards) / max(1, len(rewards)),
        "reward_error": _standard_error([sum(known) / len(known) for one in scored if (known := one.known)]),
        "pass": sum(passed) / max(1, len(passed)),
        "length": sum(sum(answer.mask) for answer in answers) / max(1, len(answers)),
        "ended": sum(answer.ended for answer in answers) / max(1, len(answers)),
        "teaching": sum(one.has_signal for one in scored) / max(1, len(scored)),
        "broken": float(sum(value != value for one in scored for value in one.rewards)),
    }


def _standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean.

    With a single value, the largest possible for rewards from 0 to 1.
    """
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.5
