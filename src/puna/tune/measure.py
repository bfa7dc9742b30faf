"""How well a model does tasks: held-out problems, greedily and sampled, with intervals, through one engine.

Greedy accuracy says what a user gets; pass@1 is what sampling at temperature 1 gets on average; pass@k whether any of k
samples is right. All three are needed: tuning that only makes a model surer of itself raises pass@1 and lowers pass@k.
Problems are held out by construction (`tasks.heldout`), and the same ones for every model.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from puna.core.errors import PunaError
from puna.core.statistics import clustered, pass_at_k, wilson
from puna.engine.generate import Engine, SamplingParams
from puna.tasks.catalogue import find
from puna.tasks.heldout import heldout_problems
from puna.tasks.task import Problem, Task, Verdict, refused
from puna.tasks.tools import Episode
from puna.text.chat import render

Check = Callable[[Task, Problem, str], Verdict]
_TURN = 7919  # between the seeds of an episode's turns, more than samples are ever drawn
_GRADERS = 2  # programs are checked in the sandbox, one process a thread


@dataclass(frozen=True)
class Measured:
    """What a model scored on a task at a level. Intervals are 95 %; None where nothing was sampled or asked greedily.

    greedy: share solved at temperature 0 (Wilson). pass_1: mean share of `samples` that are right, pass_k: share of
    problems that `k` samples solve (unbiased, arXiv 2107.03374); both intervals are over problems. score: mean of the
    verdicts' scores, greedily. ended: share of the samples (or the greedy answers) that ended by themselves. tokens:
    their mean length.
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
    """All that was said after the prompt, tool results included."""


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
    """Measure each (task, level). k: of pass@k; 0 means `samples`. instruct: give the task's instruction as well.

    samples: for each problem, 0 for none. check: how an answer is scored, `task.check` by default. The same arguments
    ask the same problems with the same seeds, whatever the order or the engine's batch size.
    Raises PunaError for a task that there is not, a tokenizer without chat tokens, or programs without a sandbox.
    """
    if not greedy and samples < 1:
        raise PunaError("Neither greedy answers nor samples are asked for.", "Set samples to 1 or more.")
    k = k or samples
    if k > samples:
        raise PunaError(f"pass@{k} needs {k} samples, but {samples} are asked for.", f"Set samples to {k}.")
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
    """Answers to each problem, `samples` in a row for the first, then for the second, and so on.

    Tasks with tools are worked on as episodes, turn by turn; `max_tokens` is for each turn.
    """
    check = check or (lambda task, problem, text: task.check(problem, text))
    tasks = {problem.task: find(problem.task) for problem in problems}
    episodes = [
        _Episode(tasks[problem.task], problem, instruct, seed + index * samples + number)
        for index, problem in enumerate(problems)
        for number in range(samples)
    ]
    waiting, together = episodes, samples  # at first the samples of a problem share their prompt
    while waiting:
        begun = waiting[::together]
        params = [
            SamplingParams(
                max_tokens=max_tokens, temperature=temperature, seed=entry.seed + _TURN * entry.turn, n=together
            )
            for entry in begun
        ]
        prompts = [entry.prompt(engine) for entry in begun]
        for entry, done in zip(waiting, engine.generate(prompts, params), strict=True):
            entry.take(done.text, done.ids, done.finish_reason == "stop")
        longest = engine.model.config.max_position_embeddings
        waiting = [entry for entry in waiting if not entry.done and len(entry.prompt(engine)) < longest]
        together = 1
    with ThreadPoolExecutor(_GRADERS) as pool:
        graded = pool.map(lambda entry: entry.verdict or check(entry.task, entry.problem, entry.text), episodes)
        return [
            Answer(entry.problem, entry.text, verdict, entry.ended, entry.tokens, entry.said)
            for entry, verdict in zip(episodes, graded, strict=True)
        ]


class _Episode:
    """One problem being answered: a single answer, or turns with tools."""

    def __init__(self, task: Task, problem: Problem, instruct: bool, seed: int) -> None:
        self.task, self.problem, self.seed = task, problem, seed
        self.messages = problem.messages(task.instruction if instruct else "")
        self.episode = Episode(task, problem, instruct=instruct) if task.tools else None
        self.text, self.ended, self.done = "", False, False
        self.turn = self.tokens = 0

    @property
    def verdict(self) -> Verdict | None:
        """What the episode ended with; a single answer is graded later, with the others."""
        if self.episode is None:
            return None
        return self.episode.verdict or refused("The episode did not fit the model's context.")

    @property
    def said(self) -> list[dict[str, Any]]:
        """All messages after the prompt."""
        if self.episode is None:
            return [{"role": "assistant", "content": self.text}]
        return self.episode.messages[len(self.messages) :]

    def prompt(self, engine: Engine) -> list[int]:
        """The ids that the model continues."""
        if engine.tokenizer is None:
            raise PunaError("The model has no tokenizer, so it cannot be given problems.", "Add tokenizer.json.")
        messages, tools = (self.episode.messages, self.episode.tools) if self.episode else (self.messages, None)
        return render(messages, engine.tokenizer, tools=tools, add_generation_prompt=True).ids

    def take(self, text: str, ids: Sequence[int], ended: bool) -> None:
        """What the model wrote."""
        self.text, self.ended = text, ended
        self.turn += 1
        self.tokens += len(ids)
        if self.episode:
            self.episode.step(text, ids)
        self.done = self.episode is None or self.episode.done


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
