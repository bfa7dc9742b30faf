"""Rewards: the verdict of a task on each answer, weighed as the recipe says.

What breaks stays where it breaks: a check that raises leaves its own answer without a reward and moves no other. The
same answer to the same problem is checked once. Programs are run by the sandbox, several at a time and while other
answers are still being written, behind at least the isolation that the recipe asks for. How often programs pass what
they could see beside what they could not is the measure of hacking.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch

from puna.core.errors import PunaError
from puna.tasks.catalogue import find
from puna.tasks.contract import Problem, Task, Verdict
from puna.tasks.problems import programs
from puna.tune.rl.losses import overlong_penalty
from puna.tune.rl.recipe import RewardConfig
from puna.tune.rl.sampling import Sample

GRADERS = 2
"""Programs checked at a time: each has a warm process of its own."""

Check = Callable[[Task, Problem, str], Verdict]


@dataclass
class Rewarded:
    """rewards: one per sample, NaN where the check broke down; verdicts: the same, None there; broken: why."""

    rewards: list[float]
    verdicts: list[Verdict | None]
    broken: list[str] = field(default_factory=list)


def checker(sandbox: str) -> Check:
    """Scores an answer; programs behind at least this isolation."""

    def check(task: Task, problem: Problem, text: str) -> Verdict:
        if not task.code:
            return task.check(problem, text)
        evaluate = partial(programs.in_sandbox, floor=sandbox)
        return task.check(problem, text, partial(programs.grade, evaluate=evaluate))

    return check


class Grading(ThreadPoolExecutor):
    """Checks answers on threads of its own, the same answer to the same problem once; a context that ends with them."""

    def __init__(self, check: Check) -> None:
        super().__init__(GRADERS)
        self.check = check
        self._found: dict[tuple[str, int, int, str], Future[Verdict | str]] = {}

    def begin(self, sample: Sample) -> None:
        """Check a program while other answers are being written. Other checks would take the interpreter from them."""
        if find(sample.problem.task).code:
            self.verdict(sample)

    def verdict(self, sample: Sample) -> "Future[Verdict | str]":
        """What a check says of an answer, or in a sentence why it broke down."""
        problem = sample.problem
        key = (problem.task, problem.level, problem.seed, sample.text)
        if key not in self._found:
            self._found[key] = self.submit(_verdict, self.check, sample)
        return self._found[key]


def reward(samples: Sequence[Sample], config: RewardConfig, grading: Grading, *, max_tokens: int) -> Rewarded:
    """The reward of each sample, in their order.

    Raises PunaError where this machine's sandbox is below the recipe's floor, before anything is learned from it.
    """
    found = [sample.verdict or grading.verdict(sample) for sample in samples]
    done = Rewarded([], [])
    lengths = torch.tensor([sum(sample.answer.mask) for sample in samples])
    losses = torch.zeros(len(samples))
    if config.overlong == "penalty":
        losses = overlong_penalty(lengths, max_tokens, config.overlong_cache)
    for known, loss in zip(found, losses.tolist(), strict=True):
        verdict = known.result() if isinstance(known, Future) else known
        if isinstance(verdict, str):
            done.broken.append(verdict)
            done.rewards.append(math.nan)
            done.verdicts.append(None)
            continue
        done.verdicts.append(verdict)
        done.rewards.append(_weighed(verdict, config) + loss)
    return done


def _verdict(check: Check, sample: Sample) -> Verdict | str:
    try:
        return check(find(sample.problem.task), sample.problem, sample.text)
    except PunaError:
        raise
    except Exception as error:
        problem = sample.problem
        return f"{problem.task}, level {problem.level}, seed {problem.seed}: {type(error).__name__}: {error}"


def _weighed(verdict: Verdict, config: RewardConfig) -> float:
    return verdict.score + sum(weight * verdict.breakdown.get(part, 0.0) for part, weight in config.parts.items())


def hack_measure(verdicts: Iterable[Verdict | None]) -> dict[str, float]:
    """Share of programs that are right on all visible examples, and on all hidden inputs; empty without programs.

    visible well above hidden means that examples are memorised instead of the task being solved.
    """
    parts = [verdict.breakdown for verdict in verdicts if verdict and "hidden" in verdict.breakdown]
    if not parts:
        return {}
    return {name: sum(part[name] >= 1 for part in parts) / len(parts) for name in ("visible", "hidden")}
