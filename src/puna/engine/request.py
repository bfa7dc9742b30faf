"""Requests: a prompt, the sequences generated from it, and the queue its consumer reads.

A request has n sequences. The first computes the prompt; the others start when that is done and share its blocks. A
sequence knows its tokens, how many of them are in the KV cache (`computed`) and in which blocks, so a preempted one
needs nothing but to be computed again.

Outputs travel through a queue, so any thread can iterate a request while the engine fills it.
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
from puna.text.detokenizer import IncrementalDetokenizer
from puna.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]


class Logprob(NamedTuple):
    """A token and its log probability in nats under the model's own distribution."""

    id: int
    logprob: float
    bytes: bytes
    """The bytes the token stands for, perhaps part of a character; a special token's name. Empty without a
    tokenizer."""


class TokenOutput(NamedTuple):
    """One generated token of one sequence."""

    sequence: int
    """Index of the sequence within its request."""
    id: int
    logprob: float
    """Log probability under the model's own distribution (temperature 1, no filter), in nats."""
    text: str
    """Text that is now certain: empty while a character or a stop string is incomplete."""
    finish_reason: FinishReason | None
    weight_version: int
    """Version of the weights that produced it."""
    top: tuple[Logprob, ...]
    """The most likely tokens at this position, as many as `top_logprobs` asked for."""


@dataclass(frozen=True)
class Completion:
    """What the model added to one prompt."""

    ids: list[int]
    """Generated ids, including the end token, or the last token of a stop string, that ended the text."""
    text: str
    """Their text, without end tokens and stop strings."""
    logprobs: list[float]
    """Log probability of each id under the model's own distribution (temperature 1, no filter), in nats."""
    finish_reason: FinishReason
    """stop: an end token, a stop string or the end of the grammar; length: max_tokens or the end of the context;
    cancelled: by its consumer."""
    weight_versions: list[int] = field(default_factory=list)
    """Per id, the version of the weights that produced it."""
    top_logprobs: list[tuple[Logprob, ...]] = field(default_factory=list)
    """Per id, the most likely tokens at its position, most likely first; empty tuples unless requested."""
    prompt_logprobs: list[tuple[Logprob, ...]] = field(default_factory=list)
    """Per prompt token, the token itself and the most likely ones at its position; empty for the first token and for
    those before `prompt_logprobs_from`. An empty list unless requested."""


_arrivals = itertools.count()


class Request:
    """One prompt and its n sequences. Iterate it for its outputs from one thread; `cancel` is safe from any."""

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
        deliver: Callable[["TokenOutput | Exception | None"], None] | None = None,
    ) -> None:
        """limit: maximum number of generated tokens per sequence; matcher: at the beginning of its grammar; deadline:
        on time.monotonic's clock; deliver: see Engine.submit."""
        self.prompt, self.params, self.deadline = list(prompt), params, deadline
        self.arrival = next(_arrivals)
        self.outputs: SimpleQueue[TokenOutput | Exception | None] = SimpleQueue()
        self._deliver = deliver or self.outputs.put
        self.prompt_logprobs: list[tuple[Logprob, ...] | None] = [()]
        if params.prompt_logprobs is not None:
            first = min(params.prompt_logprobs_from, len(prompt))
            self.prompt_logprobs = [()] * first + [None] * (len(prompt) - first)
        self.sequences = [
            TokenSequence(self, i, limit, end_ids, tokenizer, matcher.copy() if matcher and i else matcher)
            for i in range(params.n)
        ]
        self.forked = params.n == 1
        self.cached_tokens = 0
        """Tokens of the prompt that were found in the prefix cache."""
        self.cancelled = False
        self.done = False
        """Nothing more will be put into `outputs`."""
        self.delivery_error: Exception | None = None
        """What the consumer's `deliver` raised; the request was then cancelled."""

    def __iter__(self) -> Iterator[TokenOutput]:
        """Yield outputs as they are made, to the end. Raises PunaError when the request failed."""
        while (output := self.outputs.get()) is not None:
            if isinstance(output, Exception):
                raise output
            yield output

    def put(self, output: TokenOutput | Exception | None) -> None:
        """Deliver an output, or at the end None or the error that ended the request.

        When the consumer raises, its request is cancelled and gets no more outputs; others are not affected.
        """
        if self.delivery_error is not None:
            return
        try:
            self._deliver(output)
        except Exception as error:
            self.delivery_error = error
            self.cancel()

    def cancel(self) -> None:
        """Ask the engine to stop. Its blocks are freed before the next step; iterating then ends."""
        self.cancelled = True

    def completions(self, outputs: Sequence[TokenOutput]) -> list[Completion]:
        """Collect outputs into one completion per sequence, in order."""
        rows: list[list[TokenOutput]] = [[] for _ in self.sequences]
        for output in outputs:
            rows[output.sequence].append(output)
        scored = self.params.prompt_logprobs is not None
        return [
            Completion(
                ids=[output.id for output in row],
                text="".join(output.text for output in row),
                logprobs=[output.logprob for output in row],
                finish_reason=(row[-1].finish_reason if row else sequence.finish_reason) or "cancelled",
                weight_versions=[output.weight_version for output in row],
                top_logprobs=[output.top for output in row],
                prompt_logprobs=[tops or () for tops in self.prompt_logprobs] if scored else [],
            )
            for sequence, row in zip(self.sequences, rows, strict=True)
        ]

    @property
    def needs_prompt_logits(self) -> bool:
        """Whether logits of the prompt are still missing, so that not all of it may come from the cache."""
        return None in self.prompt_logprobs

    @property
    def first_needed(self) -> int:
        """The first position whose logits are needed: all positions before it may come from the cache."""
        return self.prompt_logprobs.index(None) - 1 if self.needs_prompt_logits else len(self.prompt) - 1

    def finish(self, error: Exception | None = None) -> None:
        """Tell the consumer that there is nothing more."""
        if not self.done:
            self.done = True
            self.put(error)


class TokenSequence:
    """One sequence of a request: its tokens, its blocks, its grammar, and its text as far as it is certain."""

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
        self.computed = 0  # tokens whose keys and values are in the blocks
        self.block_table: list[int] = []
        self.digests: list[bytes] = []  # of the full blocks in the block table that the prefix cache knows
        self._uniforms = self.params.uniforms(index)
        self._drawn: list[float] = []
        self.finish_reason: FinishReason | None = None
        self._matcher, self._grammar_pending = matcher, self.params.grammar_after is not None
        self._held_back = ""  # text that may be the beginning of a stop string
        self._detokenizer: IncrementalDetokenizer | None = None
        if tokenizer is not None:
            self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special=True)
            # Start where the prompt ends: perhaps within a character, and without dropping a leading space.
            self._detokenizer.push(self.ids[-1])

    @property
    def order(self) -> tuple[int, int]:
        """Order of arrival."""
        return (self.request.arrival, self.index)

    @property
    def uncomputed(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 while decoding."""
        return len(self.ids) - self.computed

    @property
    def output_ids(self) -> list[int]:
        """The generated tokens."""
        return self.ids[len(self.request.prompt) :]

    @property
    def matcher(self) -> Matcher | None:
        """The grammar that the next token must obey."""
        return None if self._grammar_pending else self._matcher

    @property
    def ended(self) -> bool:
        """Whether no more tokens of it are needed."""
        return self.request.done or self.finish_reason is not None

    def draw(self, *, ahead: bool = False) -> float:
        """The uniform number that selects the next token, the same until one is appended. ahead: the one after it."""
        while len(self._drawn) <= ahead:
            self._drawn.append(self._uniforms.random())
        return self._drawn[ahead]

    def append(self, token: int) -> str:
        """Append the next id; return the text that is now certain. Sets `finish_reason` when the sequence ends."""
        self._drawn = self._drawn[1:]
        self.ids.append(token)
        ended = token in self.end_ids
        if self.matcher is not None and not ended:
            ended_by_grammar = self.matcher.accept(token)
        else:
            ended_by_grammar = False
            self._grammar_pending = self._grammar_pending and token != self.params.grammar_after
        full = len(self.ids) - len(self.request.prompt) >= self.limit
        last = ended or ended_by_grammar or full
        if self._detokenizer is not None:
            self._held_back += "" if ended else self._detokenizer.push(token)
            self._held_back += self._detokenizer.close() if last else ""
        cut = min((at for at in (self._held_back.find(stop) for stop in self.params.stop) if at >= 0), default=-1)
        if cut >= 0:
            self.finish_reason = "stop"
            return self._held_back[:cut]
        self.finish_reason = "stop" if ended or ended_by_grammar else "length" if full else None
        keep = 0 if last else _open_suffix(self._held_back, self.params.stop)
        certain = len(self._held_back) - keep
        text, self._held_back = self._held_back[:certain], self._held_back[certain:]
        return text


def _open_suffix(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that a stop string may begin with."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
