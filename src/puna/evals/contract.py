"""The contract: a benchmark is a list of items, each asks the model one thing, and a function scores what came back.

A model is asked in one of three ways. `Choices`: how likely is each of these continuations? `Text`: what do you write?
`MultiTurn`: what do you make of this problem with tools, in several turns? An item
holds all that its score needs as plain JSON, so that a result can be read, checked and drawn long after. A benchmark is
a value, not a class to derive from: a loader, a scorer and sentences that say what was asked and how.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from puna.tasks.contract import Problem, Verdict

if TYPE_CHECKING:
    from puna.evals.datasets import EvalData

MAX_ANSWER = 200_000
"""Characters of an answer that a scorer looks at; a longer one scores 0 unread."""


class Choices(NamedTuple):
    """How likely is each continuation after its context? contexts and continuations: one of each per choice.

    lengths: characters of each choice as a person reads it, without the blank that joins it to its context.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    lengths: tuple[int, ...] = ()

    @staticmethod
    def after(context: str, choices: Sequence[str], *, join: str = " ") -> "Choices":
        """The same context for every choice, with `join` between them."""
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
    """What does the model make of a problem of ours with its task's tools? Asked in chat turns, which a model that is
    asked in text cannot hold.

    max_tokens: of a turn. instruct: whether the task is explained.
    """

    problem: Problem
    max_tokens: int
    instruct: bool = True

    @property
    def prompt(self) -> str:
        """What the problem says."""
        return self.problem.prompt


class Transcript(NamedTuple):
    """What came of `MultiTurn`. messages: all that was said after the prompt, by the model and by its tools."""

    messages: tuple[Mapping[str, str], ...]
    verdict: Verdict

    @property
    def answer(self) -> str:
        """The model's last message, unless it called tools: what they said is nobody's answer."""
        last = self.messages[-1] if self.messages else {"role": "tool"}
        return last["content"] if last["role"] == "assistant" else ""


class Likelihood(NamedTuple):
    """Of one continuation: the sum of its tokens' log probabilities in nats, how many there are, and whether each of
    them was the likeliest token."""

    logprob: float
    tokens: int
    greedy: bool


class Score(NamedTuple):
    """value: 0 to 1, higher is better. answer: what was read out of the response, shown to people. parts: more numbers.

    reason: why the value is not 1, in a few words.
    """

    value: float
    answer: str = ""
    reason: str = ""
    parts: Mapping[str, float] = {}


@dataclass(frozen=True)
class Item:
    """One question.

    id: unique in its benchmark and the same for ever; target: what the score compares with, plain JSON. group: a part
    of the benchmark that gets a row of its own (a subject, a level). body: the question and its answer without
    instructions and examples, which is what a corpus is searched for. reference: what a model that is right would
    write, which the scorer gives 1.
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

    prompt: the prompt format in words, as it stands in every result; metric: what the value is; source: paper or origin
    with licence. constants: texts a model that knows nothing might always write, scored beside it. chance: what
    guessing scores; None: one divided by the number of choices, and 0 where the model writes. corpus_metric: turns all
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
    """Whether programs are run on the way to an answer, by tools."""
    summary: bool = True
    """Whether the value is a share of items; False where only `corpus_metric` says how good the model is (chrF)."""
    corpus_metric: Callable[[Sequence[Mapping[str, Any]]], dict[str, float]] | None = field(default=None, compare=False)


def most_likely(by: str) -> Scorer:
    """Right when the likeliest choice is item.target. by: "sum" of log probabilities, or the sum per "character" or per
    "token", which takes away the advantage of short choices.

    parts: the same question answered by each of the three, and `probability`, the share of the right choice when one is
    drawn by `by` (softmax over the choices): what a sampled answer scores on average.
    """
    import math

    def score(item: Item, response: Sequence[Likelihood]) -> Score:
        assert isinstance(item.ask, Choices)
        lengths = item.ask.lengths or tuple(map(len, item.ask.continuations))
        values = {
            "sum": [one.logprob for one in response],
            "character": [one.logprob / max(1, size) for one, size in zip(response, lengths, strict=True)],
            "token": [one.logprob / max(1, one.tokens) for one in response],
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
    """Right when every token of the one continuation is the likeliest (LAMBADA)."""
    [one] = response
    import math

    return Score(float(one.greedy), "", "" if one.greedy else "other words are likelier",
                 {"probability": math.exp(max(one.logprob, -700.0)), "logprob": one.logprob})  # fmt: skip
