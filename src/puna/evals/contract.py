"""The contract of a benchmark: a list of items, each with one question, and a function that scores the answers.

There are three kinds of questions. `Choices`: how likely is each of these continuations? `Text`: what does the model
write? `MultiTurn`: how does it solve this problem with tools, in several turns? An item has everything that scoring
needs as plain JSON, so that a result can be read and checked long after. A benchmark is a value, not a class to derive
from: a loader, a scorer and sentences that say what was asked and how.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from puna.tasks.contract import Problem, Verdict

if TYPE_CHECKING:
    from puna.evals.datasets import EvalData

MAX_ANSWER = 200_000
"""The longest answer, in characters, that is scored; a longer one scores 0."""


class Choices(NamedTuple):
    """How likely is each continuation after its context? contexts and continuations: one of each per choice.

    lengths: characters of each choice, without the space that joins it to its context.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    lengths: tuple[int, ...] = ()

    @staticmethod
    def after(context: str, choices: Sequence[str], *, join: str = " ") -> "Choices":
        """Use the same context for every choice, with `join` between them."""
        return Choices((context,) * len(choices), tuple(join + choice for choice in choices), tuple(map(len, choices)))


class Text(NamedTuple):
    """What does the model write after `prompt`? messages: the same question for a model that was trained to chat.

    Without messages a chat model continues the prompt like any other. tools: functions it may call, in OpenAI's form.
    """

    prompt: str
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()


class MultiTurn(NamedTuple):
    """How does the model solve a task's problem with the task's tools? Asked in chat turns only.

    max_tokens: of one turn. instruct: whether the task is explained.
    """

    problem: Problem
    max_tokens: int
    instruct: bool = True

    @property
    def prompt(self) -> str:
        """The text of the problem."""
        return self.problem.prompt


class Transcript(NamedTuple):
    """The answer to `MultiTurn`. messages: everything after the prompt, from the model and its tools."""

    messages: tuple[Mapping[str, str], ...]
    verdict: Verdict

    @property
    def answer(self) -> str:
        """The model's last message; empty if the dialogue ends with a tool's result, which is not an answer."""
        last = self.messages[-1] if self.messages else {"role": "tool"}
        return last["content"] if last["role"] == "assistant" else ""


class Likelihood(NamedTuple):
    """How likely one continuation is.

    logprob: the sum of its tokens' log probabilities, in nats. tokens: their number, at least 1. greedy: whether each
    of them was the likeliest token.
    """

    logprob: float
    tokens: int
    greedy: bool


class Score(NamedTuple):
    """value: 0 to 1, higher is better. answer: what was extracted from the response, for the report.

    parts: further numbers. reason: why the value is not 1, in a few words.
    """

    value: float
    answer: str = ""
    reason: str = ""
    parts: Mapping[str, float] = {}


@dataclass(frozen=True)
class Item:
    """One question.

    id: unique in its benchmark, and stable. target: what the answer is compared with, plain JSON. group: a part of the
    benchmark that is reported separately (a subject, a level). body: the question and its answer without instructions
    and examples, which is what a corpus is searched for. reference: a right answer, which the scorer gives 1.
    """

    id: str
    ask: Choices | Text | MultiTurn
    target: Any
    group: str = ""
    body: str = ""
    reference: str = ""


Response = str | Transcript | Sequence[Likelihood]
Scorer = Callable[[Item, Any], Score]


@dataclass(frozen=True)
class Benchmark:
    """What is asked and how it is scored.

    prompt: the prompt format in words, repeated in every result. metric: what the value is. source: paper or origin,
    and licence. constants: texts that a model which knows nothing might always write; they are scored too. chance: what
    guessing scores; None: one divided by the number of choices, and 0 for text. corpus_metric: turns all
    rows into further figures of the benchmark, such as chrF over a corpus.
    """

    name: str
    title: str
    suites: tuple[str, ...]
    load: Callable[["EvalData"], list[Item]]
    score: Scorer
    prompt: str
    metric: str
    source: str
    constants: tuple[str, ...] = ()
    chance: float | Callable[[Sequence[Item]], float] | None = None
    code: bool = False
    """Whether answers are programs, which only the sandbox may run."""
    sandbox: bool = False
    """Whether tools run programs that the model wrote."""
    summary: bool = True
    """Whether the mean value is meaningful; False if only `corpus_metric` is (chrF)."""
    corpus_metric: Callable[[Sequence[Mapping[str, Any]]], dict[str, float]] | None = field(default=None, compare=False)


def most_likely(by: str) -> Scorer:
    """Return a scorer that is right if the likeliest choice is item.target.

    by: the "sum" of log probabilities, or the sum per "character" or per "token", which removes the advantage of short
    choices.

    The score's parts are the result by each of the three, and `probability`: the softmax over the choices at the right
    one, which is what a sampled answer scores on average.
    """
    import math

    def score(item: Item, response: Sequence[Likelihood]) -> Score:
        assert isinstance(item.ask, Choices)
        _require_tokens(response)
        lengths = item.ask.lengths or tuple(map(len, item.ask.continuations))
        values = {
            "sum": [one.logprob for one in response],
            "character": [one.logprob / max(1, size) for one, size in zip(response, lengths, strict=True)],
            "token": [one.logprob / one.tokens for one in response],
        }
        best = {name: max(range(len(row)), key=row.__getitem__) for name, row in values.items()}
        chosen, sums = best[by], values["sum"]
        top = max(sums)
        weights = [math.exp(value - top) for value in sums]
        parts = {f"by_{name}": float(index == item.target) for name, index in best.items()}
        parts["probability"] = weights[item.target] / math.fsum(weights)
        text = item.ask.continuations[chosen].strip() if len(set(item.ask.continuations)) > 1 else str(chosen)
        return Score(float(chosen == item.target), text, "" if chosen == item.target else "another choice", parts)

    return score


def exact_continuation(item: Item, response: Sequence[Likelihood]) -> Score:
    """Score 1 if every token of the single continuation is the likeliest (LAMBADA)."""
    import math

    [one] = response
    _require_tokens(response)

    return Score(float(one.greedy), "", "" if one.greedy else "other words are likelier",
                 {"probability": math.exp(max(one.logprob, -700.0)), "logprob": one.logprob})  # fmt: skip


def _require_tokens(response: Sequence[Likelihood]) -> None:
    """Raise ValueError for a continuation without tokens: its log probability of 0 would beat every other one."""
    if any(one.tokens < 1 for one in response):
        raise ValueError("a continuation has no tokens")
