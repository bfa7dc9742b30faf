"""One step of the engine: plan, forward, choose a token for each row, hand the tokens to those who asked. Where steps
overlap, the last of these comes when the next step is on its way (`engine.flight`).

What fails here fails the request it belongs to and nobody else. A forward that raises is computed again in halves,
until whoever cannot be computed is alone: with his prompt, or with the memory that it takes. Logits that are not finite
fail the one whose they are, a tokenizer's exception the one it was decoding for.
"""

from collections.abc import Callable, Sequence
from time import monotonic

import torch
from torch import Tensor

from puna.engine.faults import failure, let_go
from puna.engine.flight import Flight
from puna.engine.grammar import GrammarError
from puna.engine.request import Continuation, EngineError, Request, Step, TokenLogprob
from puna.engine.runner import Runner
from puna.engine.sampling import Constraint, likeliest
from puna.engine.scheduler import Chunk, Scheduler
from puna.engine.transfer import to_device


class Stepper:
    """Makes steps, one at a time. token_bytes: what a token stands for; overlap: a step's tokens are read when the next
    step is on its way, where that one needs to know no more of them than the device does."""

    def __init__(
        self, scheduler: Scheduler, runner: Runner, token_bytes: Callable[[int], bytes], *, overlap: bool = False
    ) -> None:
        self.scheduler, self.runner, self.token_bytes, self.overlap = scheduler, runner, token_bytes, overlap
        self.weight_version = 0
        self.steps = 0
        self.ahead = 0
        """Steps that were on their way before the tokens of the last one were known."""
        self.progress = monotonic()
        """When a step last came to its end."""
        self._flight: Flight | None = None

    def step(self) -> None:
        """Compute one step of whatever there is to do."""
        try:
            self.scheduler.reap(monotonic())
            last, self._flight = self._flight, None
            if last is not None:
                self._flight = self._follow(last)
                self._land(last)
            if self._flight is None:
                chunks = self.scheduler.plan()
                if not chunks and last is None:
                    return
                self._flight = self._compute(chunks)
                if self._flight is not None and not (self.overlap and self._flight.may_be_followed):
                    self.settle()
            if not self.scheduler.running:  # all that it could bring has ended meanwhile
                self._flight = None
        except Exception:
            raise
        except BaseException:  # Ctrl-C, on the thread of a caller, at whatever point
            self._flight = None
            self.scheduler.recover()
            raise
        self.steps += 1
        self.progress = monotonic()

    def settle(self) -> None:
        """Wait for a step that is on its way."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._land(flight)

    def _follow(self, flight: Flight) -> Flight | None:
        """The step after one whose tokens are not known yet; None where they have to be."""
        chunks = self.scheduler.plan_ahead(flight.texts)
        if not chunks:
            return None
        texts = [chunk.continuation for chunk in chunks]
        try:
            with torch.inference_mode():
                logits = self.runner.forward(chunks, flight.ids_of(texts))
                following = Flight.choose(texts, logits, chunks=chunks)
        except Exception as error:  # whose fault it is comes out when it is computed again, with all that is known
            let_go(error)
            return None
        self.ahead += 1
        return following

    def _compute(self, chunks: Sequence[Chunk]) -> Flight | None:
        """Compute chunks and choose the tokens after them; None where there is nothing to wait for any more."""
        chunks = [chunk for chunk in chunks if not chunk.continuation.request.done]
        if not chunks:
            return None
        logits = self._forward(chunks)
        if isinstance(logits, Tensor):
            try:
                return self._choose(*self._enter(chunks, logits))
            except Exception as error:
                for chunk in chunks:
                    self._fail(chunk.continuation.request, "The engine failed in a step", error)
        elif len(chunks) == 1:
            self._fail(chunks[0].continuation.request, "The engine failed in a step", logits)
        else:
            for half in (chunks[: len(chunks) // 2], chunks[len(chunks) // 2 :]):
                flight = self._compute(half)
                if flight is not None:
                    self._land(flight)
        return None

    def _forward(self, chunks: Sequence[Chunk]) -> Tensor | Exception:
        try:
            return self.runner.forward(chunks)
        except Exception as error:
            let_go(error)
            return error

    @torch.inference_mode()
    def _enter(self, chunks: Sequence[Chunk], logits: Tensor) -> tuple[list[Continuation], Tensor]:
        """Take note of what was computed. logits: (rows of all chunks, vocabulary).

        Returns the texts whose next token can be chosen, and their logits.
        """
        rows, texts = [], []
        at = 0
        for chunk in chunks:
            self.scheduler.advance(chunk)
            scored = len(chunk.prompt_rows)
            if scored:
                self._score(chunk, logits[at : at + scored])
            at += scored + chunk.complete
            if not chunk.complete or chunk.continuation.request.done:
                continue
            for continuation in [*self.scheduler.fork(chunk.continuation)]:
                if not continuation.limit:  # the prompt was all
                    continuation.finish_reason = "length"
                    self.scheduler.end(continuation)
                    continue
                rows.append(at - 1)
                texts.append(continuation)
        return texts, logits if rows == list(range(len(logits))) else logits[to_device(rows, logits.device, torch.long)]

    @torch.inference_mode()
    def _choose(self, texts: Sequence[Continuation], logits: Tensor) -> Flight | None:
        constraint = _constraint(texts)
        if constraint is not None and not (possible := constraint.allowed.any(-1)).all():
            for i in (row for row, ok in zip(constraint.rows, possible.tolist(), strict=True) if not ok):
                matcher = texts[i].matcher
                error = GrammarError(matcher.error if matcher else "")
                self._fail(texts[i].request, "The grammar could not go on", error)
            alive = [i for i, continuation in enumerate(texts) if not continuation.request.done]
            return self._choose([texts[i] for i in alive], logits[alive])
        return Flight.choose(texts, logits, constraint) if texts else None

    @torch.inference_mode()
    def _land(self, flight: Flight) -> None:
        """Read the tokens and hand them to those who asked."""
        try:
            numbers = flight.readout.tolist()
            tops = self._tops(flight, [int(id) for id, _, _ in numbers])
        except Exception as error:
            for continuation in flight.texts:
                if not continuation.ended:
                    self._fail(continuation.request, "The engine failed in a step", error)
            return
        for continuation, (_, _, finite) in zip(flight.texts, numbers, strict=True):
            if not finite and not continuation.ended:
                self.scheduler.drop(continuation.request, _not_finite(len(continuation.ids)))
        for chunk in flight.chunks:
            if not chunk.continuation.ended:
                self.scheduler.advance(chunk)
        for i, (continuation, (id, logprob, _)) in enumerate(zip(flight.texts, numbers, strict=True)):
            if not continuation.ended:  # as it may have a moment ago, with a sibling, or with the token before
                self._hand_over(continuation, int(id), logprob, tops.get(i, ()))

    def _hand_over(self, continuation: Continuation, token: int, logprob: float, top: tuple[TokenLogprob, ...]) -> None:
        request = continuation.request
        try:
            text = continuation.accept(token)
        except GrammarError as error:
            self._fail(request, "The grammar could not go on", error)
            return
        except Exception as error:
            self._fail(request, f"Token {token} could not be made text", error)
            return
        reason = continuation.finish_reason
        request.put(Step(continuation.index, token, logprob, text, reason, self.weight_version, top))
        if reason is not None:
            self.scheduler.end(continuation)

    def _tops(self, flight: Flight, tokens: Sequence[int]) -> dict[int, tuple[TokenLogprob, ...]]:
        """The likeliest tokens, for the texts that want them."""
        if not flight.asked:
            return {}
        wanted = {i: flight.texts[i].params.top_logprobs for i in flight.asked}
        logits, most = torch.stack([*flight.asked.values()]), max(wanted.values())
        rows = likeliest(logits, [tokens[i] for i in wanted], most)
        return {i: self._named(row[1 : 1 + count]) for (i, count), row in zip(wanted.items(), rows, strict=True)}

    def _score(self, chunk: Chunk, logits: Tensor) -> None:
        """Note how likely the prompt's tokens were. logits: (prompt_rows, vocabulary)."""
        if not logits.amax(-1).isfinite().all():
            self.scheduler.drop(chunk.continuation.request, _not_finite(chunk.end))
            return
        request, first = chunk.continuation.request, chunk.prompt_rows.start + 1
        tokens = request.prompt[first : first + len(logits)]
        for position, row in enumerate(likeliest(logits, tokens, request.params.prompt_logprobs or 0), first):
            request.prompt_logprobs[position] = self._named(row)

    def _named(self, row: Sequence[tuple[int, float]]) -> tuple[TokenLogprob, ...]:
        return tuple(TokenLogprob(id, logprob, self.token_bytes(id)) for id, logprob in row)

    def _fail(self, request: Request, what: str, error: Exception) -> None:
        self.scheduler.drop(request, failure(what, error))


def _constraint(texts: Sequence[Continuation]) -> Constraint | None:
    """What the grammars of those that have one allow."""
    rows = [i for i, continuation in enumerate(texts) if continuation.matcher is not None]
    matchers = [matcher for continuation in texts if (matcher := continuation.matcher) is not None]
    return Constraint(rows, matchers[0].grammars.allowed(matchers)) if rows else None


def _not_finite(tokens: int) -> EngineError:
    return EngineError(f"The model's logits after {tokens:,} tokens are not finite.", "The weights may be damaged.")
