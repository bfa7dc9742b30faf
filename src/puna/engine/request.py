"""A request on its way: what was asked, what came of it so far, and how its consumer hears of it.

A request has n continuations. The first computes the prompt; the others come to life when that is done, with the same
pages. Each knows its tokens, how many of them the cache holds (`computed`) and in which pages; so one that lost its
pages needs nothing but to be computed again.

Steps travel through a queue, so a consumer on any thread iterates a request while the engine fills it.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Literal, NamedTuple

from puna.core.errors import DeadlineError as DeadlineError
from puna.core.errors import EngineError as EngineError
from puna.engine.grammar import Matcher
from puna.engine.sampling import SamplingParams
from puna.text.stream import TextStream
from puna.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]


class TokenLogprob(NamedTuple):
    """A token and its log probability in nats under the model's own distribution."""

    id: int
    logprob: float
    bytes: bytes
    """What it stands for, perhaps half a character; a special token's name. Empty without a tokenizer."""


class Step(NamedTuple):
    """One token of one continuation."""

    continuation: int
    """Which of the request's n continuations."""
    id: int
    logprob: float
    """Log probability under the model's own distribution (temperature 1, no filter), in nats."""
    text: str
    """Text that is now certain: empty while a character or a stop string is open."""
    finish_reason: FinishReason | None
    weight_version: int
    """Version of the weights that chose it."""
    top: tuple[TokenLogprob, ...]
    """The likeliest tokens there, as many as `top_logprobs` asked for."""


@dataclass(frozen=True)
class Completion:
    """What the model added to one prompt."""

    ids: list[int]
    """Generated ids, with the end token or the last token of a stop string when one ended the text."""
    text: str
    """Their text, without end tokens and stop strings."""
    logprobs: list[float]
    """Log probability of each id under the model's own distribution (temperature 1, no filter), in nats."""
    finish_reason: FinishReason
    """stop: an end token, a stop string or the end of the grammar; length: max_tokens or the end of the context;
    cancelled: by its consumer."""
    weight_versions: list[int] = field(default_factory=list)
    """Per id, the version of the weights that chose it."""
    top_logprobs: list[tuple[TokenLogprob, ...]] = field(default_factory=list)
    """Per id, the likeliest tokens there, likeliest first; empty tuples unless asked for."""
    prompt_logprobs: list[tuple[TokenLogprob, ...]] = field(default_factory=list)
    """Per token of the prompt, itself and the likeliest ones there; nothing for the first, and for those before
    `prompt_logprobs_from`. Empty unless asked for."""


_arrivals = itertools.count()


class Request:
    """One prompt and its n continuations. Iterate it for its steps, from any one thread; `cancel` may come from any."""

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        limit: int,
        end_ids: set[int],
        tokenizer: Tokenizer | None,
        matcher: Matcher | None = None,
        deadline: float | None = None,
        deliver: Callable[["Step | Exception | None"], None] | None = None,
    ) -> None:
        """limit: tokens at most per continuation; matcher: at the beginning of its grammar; deadline: on
        time.monotonic's clock; deliver: see Engine.submit."""
        self.prompt, self.params, self.deadline = list(prompt), params, deadline
        self.arrival = next(_arrivals)
        self.steps: SimpleQueue[Step | Exception | None] = SimpleQueue()
        self._deliver = deliver or self.steps.put
        self.prompt_logprobs: list[tuple[TokenLogprob, ...] | None] = [()]
        if params.prompt_logprobs is not None:
            first = min(params.prompt_logprobs_from, len(prompt))
            self.prompt_logprobs = [()] * first + [None] * (len(prompt) - first)
        self.continuations = [
            Continuation(self, i, limit, end_ids, tokenizer, matcher.copy() if matcher and i else matcher)
            for i in range(params.n)
        ]
        self.forked = params.n == 1
        self.cached_tokens = 0
        """Tokens of the prompt that were found in the prefix cache."""
        self.cancelled = False
        self.done = False
        """Nothing more will be put into `steps`."""
        self.undelivered: Exception | None = None
        """What its consumer's `deliver` raised; it was then cancelled."""

    def __iter__(self) -> Iterator[Step]:
        """Yield steps as they are made, to the end. Raises PunaError when the request failed on its way."""
        while (step := self.steps.get()) is not None:
            if isinstance(step, Exception):
                raise step
            yield step

    def put(self, step: Step | Exception | None) -> None:
        """Hand over a step, at the end None or the error that ended it; called by whoever makes the steps.

        A consumer that raises hears no more: it ends its own request and nobody else's.
        """
        if self.undelivered is not None:
            return
        try:
            self._deliver(step)
        except Exception as error:
            self.undelivered = error
            self.cancel()

    def cancel(self) -> None:
        """Ask the engine to stop. Its pages are free before the next step; iterating then ends."""
        self.cancelled = True

    def completions(self, steps: Sequence[Step]) -> list[Completion]:
        """The continuations that the steps make, in their order."""
        rows: list[list[Step]] = [[] for _ in self.continuations]
        for step in steps:
            rows[step.continuation].append(step)
        asked = self.params.prompt_logprobs is not None
        return [
            Completion(
                ids=[step.id for step in row],
                text="".join(step.text for step in row),
                logprobs=[step.logprob for step in row],
                finish_reason=(row[-1].finish_reason if row else continuation.finish_reason) or "cancelled",
                weight_versions=[step.weight_version for step in row],
                top_logprobs=[step.top for step in row],
                prompt_logprobs=[tops or () for tops in self.prompt_logprobs] if asked else [],
            )
            for continuation, row in zip(self.continuations, rows, strict=True)
        ]

    @property
    def wants_prompt(self) -> bool:
        """Whether logits of the prompt are still missing, so that not all of it may be skipped."""
        return None in self.prompt_logprobs

    @property
    def needed_from(self) -> int:
        """The first position whose logits are wanted: what stands before it may come from the cache."""
        return self.prompt_logprobs.index(None) - 1 if self.wants_prompt else len(self.prompt) - 1

    def finish(self, error: Exception | None = None) -> None:
        """Tell the consumer that this was all."""
        if not self.done:
            self.done = True
            self.put(error)


class Continuation:
    """One of a request's texts: its tokens, its pages, and what of it is certain."""

    def __init__(
        self,
        request: Request,
        index: int,
        limit: int,
        end_ids: set[int],
        tokenizer: Tokenizer | None,
        matcher: Matcher | None,
    ) -> None:
        self.request, self.index, self.params, self.limit = request, index, request.params, limit
        self.end_ids = end_ids
        self.ids = list(request.prompt)
        self.computed = 0  # tokens whose keys and values are in the pages
        self.block_table: list[int] = []
        self.digests: list[bytes] = []  # of the block table's whole pages, as far as they were entered
        self._uniforms = self.params.uniforms(index)
        self._drawn: list[float] = []
        self.finish_reason: FinishReason | None = None
        self._matcher, self._free = matcher, self.params.grammar_after is not None
        self._held = ""  # text that may be the beginning of a stop string
        self._text: TextStream | None = None
        if tokenizer is not None:
            self._text = TextStream(tokenizer, skip_special=True)
            # The text goes on where the prompt ends: perhaps within a character, and not with a space that is dropped.
            self._text.push(self.ids[-1])

    @property
    def order(self) -> tuple[int, int]:
        """Who came first."""
        return (self.request.arrival, self.index)

    @property
    def pending(self) -> int:
        """Tokens still to be computed before the next one can be chosen; 1 while decoding."""
        return len(self.ids) - self.computed

    @property
    def text_ids(self) -> list[int]:
        """The tokens that were generated."""
        return self.ids[len(self.request.prompt) :]

    @property
    def matcher(self) -> Matcher | None:
        """What the next token must obey."""
        return None if self._free else self._matcher

    @property
    def ended(self) -> bool:
        """Nothing more is wanted of it."""
        return self.request.done or self.finish_reason is not None

    def draw(self, *, ahead: bool = False) -> float:
        """The uniform number that chooses the next token: the same until one is accepted. ahead: the one after it."""
        while len(self._drawn) <= ahead:
            self._drawn.append(self._uniforms.random())
        return self._drawn[ahead]

    def accept(self, token: int) -> str:
        """Take the next id; return the text that is now certain. Sets `finish_reason` when the text ends."""
        self._drawn = self._drawn[1:]
        self.ids.append(token)
        ended = token in self.end_ids
        if self.matcher is not None and not ended:
            ended_by_grammar = self.matcher.accept(token)
        else:
            ended_by_grammar, self._free = False, self._free and token != self.params.grammar_after
        full = len(self.ids) - len(self.request.prompt) >= self.limit
        last = ended or ended_by_grammar or full
        if self._text is not None:
            self._held += "" if ended else self._text.push(token)
            self._held += self._text.close() if last else ""
        cut = min((at for at in (self._held.find(stop) for stop in self.params.stop) if at >= 0), default=-1)
        if cut >= 0:
            self.finish_reason = "stop"
            return self._held[:cut]
        self.finish_reason = "stop" if ended or ended_by_grammar else "length" if full else None
        keep = 0 if last else _open_suffix(self._held, self.params.stop)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text


def _open_suffix(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a stop string may begin."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
