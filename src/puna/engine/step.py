"""One step of the engine: plan, forward, choose a token for each row, hand the tokens to those who asked.

What fails here fails the request it belongs to and nobody else. A forward that raises is computed again in halves,
until whoever cannot be computed is alone: with his prompt, or with the memory that it takes. Logits that are not finite
fail the one whose they are, a tokenizer's exception the one it was decoding for.
"""

from collections.abc import Callable, Sequence
from time import monotonic

import torch
from torch import Tensor

from puna.engine.faults import failure, let_go
from puna.engine.grammar import GrammarError
from puna.engine.request import Continuation, EngineError, Request, Step, TokenLogprob
from puna.engine.runner import Runner
from puna.engine.sampling import Constraint, History, likeliest, sample
from puna.engine.scheduler import Chunk, Scheduler


class Stepper:
    """Makes steps, one at a time. token_bytes: what a token stands for."""

    def __init__(self, scheduler: Scheduler, runner: Runner, token_bytes: Callable[[int], bytes]) -> None:
        self.scheduler, self.runner, self.token_bytes = scheduler, runner, token_bytes
        self.weight_version = 0
        self.steps = 0
        self.progress = monotonic()
        """When a step last came to its end."""

    def step(self) -> None:
        """Compute one step of whatever there is to do."""
        try:
            self.scheduler.reap(monotonic())
            chunks = self.scheduler.plan()
            if not chunks:
                return
            self._compute(chunks)
        except Exception:
            raise
        except BaseException:  # Ctrl-C, on the thread of a caller, at whatever point
            self.scheduler.recover()
            raise
        self.steps += 1
        self.progress = monotonic()

    def _compute(self, chunks: Sequence[Chunk]) -> None:
        chunks = [chunk for chunk in chunks if not chunk.continuation.request.done]
        if not chunks:
            return
        logits = self._forward(chunks)
        if isinstance(logits, Tensor):
            try:
                self._deliver(chunks, logits)
            except Exception as error:
                for chunk in chunks:
                    self._fail(chunk.continuation.request, "The engine failed in a step", error)
        elif len(chunks) == 1:
            self._fail(chunks[0].continuation.request, "The engine failed in a step", logits)
        else:
            half = len(chunks) // 2
            self._compute(chunks[:half])
            self._compute(chunks[half:])

    def _forward(self, chunks: Sequence[Chunk]) -> Tensor | Exception:
        try:
            return self.runner.forward(chunks)
        except Exception as error:
            let_go(error)
            return error

    @torch.inference_mode()
    def _deliver(self, chunks: Sequence[Chunk], logits: Tensor) -> None:
        """Take note of what was computed and choose the next tokens. logits: (rows of all chunks, vocabulary)."""
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
        if not texts:
            return
        chosen = logits[rows] if rows != list(range(len(logits))) else logits
        # A NaN or an infinity anywhere shows in the largest.
        finite = chosen.amax(-1).isfinite().tolist()
        for continuation, whole in zip(texts, finite, strict=True):
            if not whole and not continuation.request.done:
                self.scheduler.drop(continuation.request, _not_finite(len(continuation.ids)))
        alive = [i for i, continuation in enumerate(texts) if not continuation.request.done]
        if alive:
            self._choose([texts[i] for i in alive], chosen[alive] if len(alive) < len(texts) else chosen)

    def _choose(self, texts: Sequence[Continuation], logits: Tensor) -> None:
        constraint = _constraint(texts)
        if constraint is not None and not (possible := constraint.allowed.any(-1)).all():
            for i in (row for row, ok in zip(constraint.rows, possible.tolist(), strict=True) if not ok):
                matcher = texts[i].matcher
                error = GrammarError(matcher.error if matcher else "")
                self._fail(texts[i].request, "The grammar could not go on", error)
            alive = [i for i, continuation in enumerate(texts) if not continuation.request.done]
            if alive:
                self._choose([texts[i] for i in alive], logits[alive])
            return
        params = [continuation.params for continuation in texts]
        ids, logprobs = sample(
            logits,
            params,
            [continuation.draw() for continuation in texts],
            [History(c.request.prompt, c.text_ids if c.params.adjusts else ()) for c in texts],
            constraint,
        )
        tokens = ids.tolist()
        asked = [i for i, p in enumerate(params) if p.top_logprobs]
        tops: dict[int, tuple[TokenLogprob, ...]] = {}
        if asked:
            most = max(params[i].top_logprobs for i in asked)
            for i, row in zip(asked, likeliest(logits[asked], [tokens[i] for i in asked], most), strict=True):
                tops[i] = self._named(row[1 : 1 + params[i].top_logprobs])
        for i, (continuation, token, logprob) in enumerate(zip(texts, tokens, logprobs.tolist(), strict=True)):
            request = continuation.request
            if request.done:
                continue  # a sibling failed a moment ago
            try:
                text = continuation.accept(token)
            except GrammarError as error:
                self._fail(request, "The grammar could not go on", error)
                continue
            except Exception as error:
                self._fail(request, f"Token {token} could not be made text", error)
                continue
            reason = continuation.finish_reason
            step = Step(continuation.index, token, logprob, text, reason, self.weight_version, tops.get(i, ()))
            request.put(step)
            if reason is not None:
                self.scheduler.end(continuation)

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
