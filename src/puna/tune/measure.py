"""Measure how well a model solves held-out tasks, greedy and sampled, with intervals.

Greedy accuracy is what a user gets; pass@1 is the average of sampling at temperature 1; pass@k is whether any of k
samples is right. All three are needed: tuning that only makes a model more confident raises pass@1 and lowers pass@k.
Problems are held out by construction (`tasks.heldout`), and are the same for every model.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from puna.core.errors import PunaError
from puna.core.statistics import clustered, pass_at_k, wilson
from puna.engine.generate import Completion, Engine, SamplingParams
from puna.tasks.catalogue import find
from puna.tasks.contract import Problem, Task, Verdict
from puna.tasks.episodes import Attempt, Group, run_attempts
from puna.tasks.heldout import heldout_problems

Check = Callable[[Task, Problem, str], Verdict]
_GRADERS = 2  # programs are checked in the sandbox, one process per thread


@dataclass(frozen=True)
class Measured:
    """A model's results on a task at a level.

    Intervals are 95 %; None when nothing was sampled or decoded greedily. greedy: share solved at temperature 0
    (Wilson). pass_1: mean share of `samples` that are right, pass_k: share of problems that `k` samples solve
    (unbiased, arXiv 2107.03374); both intervals are over problems. score: mean of the verdicts' scores, greedy. ended:
    share of the samples (or the greedy answers) that ended with an end token. tokens: their mean length.
    """

    task: str
    level: int
    problems: int
    greedy: float | None
    greedy_interval: tuple[float, float] | None
    score: float | None
    samples: int
    pass_1: float | None
    pass_1_interval: tuple[float, float] | None
    k: int
    pass_k: float | None
    pass_k_interval: tuple[float, float] | None
    ended: float
    tokens: float

    def plain(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """One answer of a model to one problem."""

    problem: Problem
    text: str
    verdict: Verdict
    ended: bool
    tokens: int
    messages: list[dict[str, Any]]
    """Everything after the prompt, including tool results."""


def measure_tasks(
    engine: Engine,
    asked: Iterable[tuple[str, int]],
    *,
    problems: int = 100,
    samples: int = 8,
    k: int = 0,
    greedy: bool = True,
    max_tokens: int = 128,
    temperature: float = 1.0,
    instruct: bool = False,
    seed: int = 0,
    check: Check | None = None,
) -> list[Measured]:
    """Measure each (task, level).

    k: of pass@k; 0 means `samples`. instruct: also give the task's instruction. samples: per problem, 0 for none.
    check: how an answer is scored, `task.check` by default. The same arguments give the same problems with the same
    seeds, regardless of the order or the engine's batch size. Raises PunaError for an unknown task, a tokenizer without
    chat tokens, or programs without a sandbox.
    """
    if not greedy and samples < 1:
        raise PunaError("There is nothing to measure: no greedy answers and no samples.", "Set samples to 1 or more.")
    k = k or samples
    if k > samples:
        raise PunaError(f"pass@{k} needs {k} samples, but samples is {samples}.", f"Set samples to {k}.")
    results = []
    for name, level in asked:
        chosen = heldout_problems(name, level, problems, seed)
        ask = partial(answer, engine, chosen, max_tokens=max_tokens, instruct=instruct, seed=seed, check=check)
        first = ask(samples=1, temperature=0.0) if greedy else []
        drawn = ask(samples=samples, temperature=temperature) if samples else []
        results.append(_measured(name, level, first, drawn, samples, k))
    return results


def answer(
    engine: Engine,
    problems: Sequence[Problem],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    max_tokens: int = 128,
    instruct: bool = False,
    seed: int = 0,
    check: Check | None = None,
) -> list[Answer]:
    """Answer each problem: `samples` answers for the first, then for the second, and so on.

    Tasks with tools are run as episodes, turn by turn; `max_tokens` applies to each turn.
    """
    check = check or (lambda task, problem, text: task.check(problem, text))
    tasks = {problem.task: find(problem.task) for problem in problems}
    if engine.tokenizer is None:
        raise PunaError("The model has no tokenizer, so it cannot solve problems.", "Add tokenizer.json.")
    groups = [
        [
            Attempt(
                tasks[problem.task],
                problem,
                engine.tokenizer,
                max_tokens=max_tokens,
                seed=seed + index * samples,
                sample=number,
                instruct=instruct,
            )
            for number in range(samples)
        ]
        for index, problem in enumerate(problems)
    ]

    def write(waiting: Sequence[Group]) -> list[Completion]:
        params = [
            SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=group[0].turn_seed, n=len(group))
            for group in waiting
        ]
        return engine.generate([group[0].prompt for group in waiting], params)

    run_attempts(groups, write, longest=engine.model.config.max_position_embeddings)
    attempts = [attempt for group in groups for attempt in group]
    with ThreadPoolExecutor(_GRADERS) as pool:
        graded = pool.map(lambda one: one.verdict or check(one.task, one.problem, one.text), attempts)
        return [
            Answer(
                one.problem, one.text, verdict, one.ended, sum(len(t.written.ids) for t in one.turns), one.transcript
            )
            for one, verdict in zip(attempts, graded, strict=True)
        ]


def _measured(
    name: str, level: int, first: Sequence[Answer], drawn: Sequence[Answer], samples: int, k: int
) -> Measured:
    solved = sum(entry.verdict.passed for entry in first)
    groups = [drawn[start : start + samples] for start in range(0, len(drawn), max(1, samples))]
    rights = [sum(entry.verdict.passed for entry in group) for group in groups]
    shares = [right / samples for right in rights]
    passes = [pass_at_k(samples, right, k) for right in rights]
    texts = drawn or first
    count = len(first) or len(rights)
    return Measured(
        task=name,
        level=level,
        problems=count,
        greedy=solved / count if first else None,
        greedy_interval=wilson(solved, count) if first else None,
        score=sum(entry.verdict.score for entry in first) / count if first else None,
        samples=samples,
        pass_1=sum(shares) / count if drawn else None,
        pass_1_interval=clustered(shares) if drawn else None,
        k=k,
        pass_k=sum(passes) / count if drawn else None,
        pass_k_interval=clustered(passes) if drawn else None,
        ended=sum(entry.ended for entry in texts) / len(texts),
        tokens=sum(entry.tokens for entry in texts) / len(texts),
    )
