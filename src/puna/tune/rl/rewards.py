"""Rewards: the verdict of a task on each answer, weighted as configured.

Failures are isolated: a check that raises leaves its own answer without a reward and affects no other. The same answer
to the same problem is checked once. Programs run in the sandbox, several at a time and while other answers are still
being generated, with at least the isolation that the recipe requires. Reward hacking is measured by how often programs
pass visible examples compared with hidden ones.
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
"""Programs checked at a time; each has its own warm process."""

Check = Callable[[Task, Problem, str], Verdict]


@dataclass
class Rewarded:
    """The rewards of some samples.

    rewards: one per sample, NaN if the check failed; verdicts: likewise, with None; broken: error messages.
    """

    rewards: list[float]
    verdicts: list[Verdict | None]
    broken: list[str] = field(default_factory=list)


def checker(sandbox: str) -> Check:
    """Return a check that scores an answer, and runs programs with at least this isolation."""

    def check(task: Task, problem: Problem, text: str) -> Verdict:
        if not task.code:
            return task.check(problem, text)
        evaluate = partial(programs.in_sandbox, floor=sandbox)
        return task.check(problem, text, partial(programs.grade, evaluate=evaluate))

    return check


class Grading(ThreadPoolExecutor):
    """Checks answers in its own threads, the same answer to the same problem once.

    A context that ends them.
    """

    def __init__(self, check: Check) -> None:
        super().__init__(GRADERS)
        self.check = check
        self._found: dict[tuple[str, int, int, str], Future[Verdict | str]] = {}

    def begin(self, sample: Sample) -> None:
        """Start checking a program while other answers are generated.

        Other checks would compete for the interpreter.
        """
        if find(sample.problem.task).code:
            self.verdict(sample)

    def verdict(self, sample: Sample) -> "Future[Verdict | str]":
        """The verdict of a check, or a sentence that says why it failed."""
        problem = sample.problem
        key = (problem.task, problem.level, problem.seed, sample.text)
        if key not in self._found:
            self._found[key] = self.submit(_verdict, self.check, sample)
        return self._found[key]


def reward(samples: Sequence[Sample], config: RewardConfig, grading: Grading, *, max_tokens: int) -> Rewarded:
    """Compute the reward of each sample, in order.

    Raises PunaError when this machine's sandbox is weaker than the recipe requires, before anything is learned.
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
    """Share of programs that pass all visible examples, and all hidden inputs.

    Empty without programs. visible well above hidden means that the model memorises examples instead of solving the
    task.
    """
    parts = [verdict.breakdown for verdict in verdicts if verdict and "hidden" in verdict.breakdown]
    if not parts:
        return {}
    return {name: sum(part[name] >= 1 for part in parts) / len(parts) for name in ("visible", "hidden")}
