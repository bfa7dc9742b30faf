"""Sampled answers to problems, in the form the trainer learns from and the task checks.

Token ids are never decoded and encoded again: an episode with tools continues from the ids themselves, and the tools'
output is marked as not written by the model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from puna.core.errors import PunaError
from puna.engine.generate import Completion, SamplingParams
from puna.tasks import tools
from puna.tasks.contract import Problem, Task, Verdict
from puna.tasks.episodes import Attempt, Group, run_attempts
from puna.text.tokenizer import Tokenizer
from puna.tune.rollout import Generator
from puna.tune.rows.packing import Answer


@dataclass
class Sample:
    """One answer: for the trainer (`answer`) and for whoever checks it.

    verdict: what a tool episode ended with; a single answer is checked later.
    """

    problem: Problem
    text: str
    answer: Answer
    versions: list[int] = field(default_factory=list)
    """Versions of the weights that wrote it."""
    verdict: Verdict | None = None


@dataclass
class Asked:
    """A problem's prompt and the answers to it."""

    problem: Problem
    prompt: list[int]
    samples: list[Sample]


def ask(
    generator: Generator,
    tokenizer: Tokenizer,
    problems: Sequence[tuple[Task, Problem]],
    *,
    samples: int,
    seeds: Sequence[int],
    max_tokens: int,
    seq_len: int,
    turns: int = 4,
    instruct: bool = False,
    sandbox: str = "confined",
    ended: Callable[[Sample], None] | None = None,
) -> list[Asked]:
    """`samples` answers to each problem, drawn from the model's own distribution.

    seeds: one per problem; the same seed gives the same answers, whatever else is asked. max_tokens: of an answer or a
    turn; seq_len: of a prompt with its answer. A task with tools is an episode of at most `turns` turns. ended: hears
    of each single answer as soon as it and those before it are written; programs come first.
    Raises PunaError for a prompt that leaves no room, and where an episode's program has no sandbox of that level.
    """
    run_code = partial(tools.in_sandbox, floor=sandbox)
    groups = [
        [
            Attempt(
                task,
                problem,
                tokenizer,
                max_tokens=max_tokens,
                seed=seed,
                sample=number,
                instruct=instruct,
                turns=turns,
                run_code=run_code,
            )
            for number in range(samples)
        ]
        for (task, problem), seed in zip(problems, seeds, strict=True)
    ]
    for first, *_ in groups:
        if len(first.prompt) >= seq_len:
            raise PunaError(
                f"A problem of {first.problem.task} is {len(first.prompt)} tokens long; rows of train.seq_len = "
                f"{seq_len} leave no room for an answer.",
                "Make rows longer.",
            )

    def write(waiting: Sequence[Group]) -> Iterator[Completion]:
        params = [
            SamplingParams(
                max_tokens=min(max_tokens, seq_len - len(group[0].prompt)), seed=group[0].turn_seed, n=len(group)
            )
            for group in waiting
        ]
        return chain.from_iterable(generator.generate_each([group[0].prompt for group in waiting], params))

    def heard(attempt: Attempt) -> None:
        if ended and not attempt.task.tools:
            ended(_sample(attempt))

    run_attempts(sorted(groups, key=lambda group: not group[0].task.code), write, longest=seq_len, on_finished=heard)
    return [Asked(group[0].problem, group[0].turns[0].prompt, [_sample(one) for one in group]) for group in groups]


def _sample(attempt: Attempt) -> Sample:
    """A finished attempt as the trainer reads it."""
    answer = Answer([], [], [], attempt.ended)
    versions: list[int] = []
    begin = len(attempt.turns[0].prompt)
    for prompt, written in attempt.turns:
        # Between two turns stand the end of the message, tool results and the next header: not the model's.
        between = prompt[begin + len(answer.ids) :]
        answer.ids.extend([*between, *written.ids])
        answer.mask.extend([0] * len(between) + [1] * len(written.ids))
        answer.logprobs.extend([0.0] * len(between) + written.logprobs)
        versions += written.weight_versions
    return Sample(attempt.problem, attempt.text, answer, versions, attempt.verdict)
