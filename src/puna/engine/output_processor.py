"""The output processor: turns sampled tokens into outputs, delivers them, and ends finished or failed requests."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from puna.engine.core.errors import as_engine_error
from puna.engine.core.scheduler import Chunk, Scheduler
from puna.engine.cuda.in_flight import InFlightStep
from puna.engine.grammar import GrammarError
from puna.engine.request import EngineError, Logprob, Request, TokenOutput, TokenSequence
from puna.engine.sampling import gather_logprobs

STEP_FAILED = "The engine failed in a step"
GRAMMAR_FAILED = "The grammar could not go on"


class OutputProcessor:
    """Reads the results of steps. token_bytes: the bytes a token stands for.

    A failure here ends the request it belongs to and no other.
    """

    def __init__(self, scheduler: Scheduler, token_bytes: Callable[[int], bytes]) -> None:
        self.scheduler, self.token_bytes = scheduler, token_bytes

    @torch.inference_mode()
    def process(self, step: InFlightStep, weight_version: int) -> None:
        """Read a step's tokens and deliver them to their requests."""
        try:
            results = step.results.tolist()
            tops = self._top_logprobs(step, [int(id) for id, _, _ in results])
        except Exception as error:
            for sequence in step.sequences:
                if not sequence.ended:
                    self.fail(sequence.request, STEP_FAILED, error)
            return
        for sequence, (_, _, finite) in zip(step.sequences, results, strict=True):
            if not finite and not sequence.ended:
                self.scheduler.abort(sequence.request, _not_finite(len(sequence.ids)))
        for chunk in step.chunks:
            if not chunk.sequence.ended:
                self.scheduler.mark_computed(chunk)
        for i, (sequence, (id, logprob, _)) in enumerate(zip(step.sequences, results, strict=True)):
            if not sequence.ended:  # it may have, with a sibling or with the token before
                self._deliver(sequence, int(id), logprob, tops.get(i, ()), weight_version)

    def score_prompt(self, chunk: Chunk, logits: Tensor) -> None:
        """Record the log probabilities of the prompt's tokens. logits: (prompt_rows, vocabulary)."""
        if not logits.amax(-1).isfinite().all():
            self.scheduler.abort(chunk.sequence.request, _not_finite(chunk.end))
            return
        request, first = chunk.sequence.request, chunk.prompt_rows.start + 1
        tokens = request.prompt[first : first + len(logits)]
        for position, row in enumerate(gather_logprobs(logits, tokens, request.params.prompt_logprobs or 0), first):
            request.prompt_logprobs[position] = self._token_logprobs(row)

    def fail(self, request: Request, what: str, error: Exception) -> None:
        """End a request with an error that says what failed, and how."""
        self.scheduler.abort(request, as_engine_error(what, error))

    def _deliver(
        self, sequence: TokenSequence, token: int, logprob: float, top: tuple[Logprob, ...], version: int
    ) -> None:
        request = sequence.request
        try:
            text = sequence.append(token)
        except GrammarError as error:
            self.fail(request, GRAMMAR_FAILED, error)
            return
        except Exception as error:
            self.fail(request, f"Token {token} could not be decoded to text", error)
            return
        reason = sequence.finish_reason
        request.put(TokenOutput(sequence.index, token, logprob, text, reason, version, top))
        if reason is not None:
            self.scheduler.finish(sequence)

    def _top_logprobs(self, step: InFlightStep, tokens: Sequence[int]) -> dict[int, tuple[Logprob, ...]]:
        """The most likely tokens, for the sequences that want them."""
        if not step.top_logits:
            return {}
        wanted = {i: step.sequences[i].params.top_logprobs for i in step.top_logits}
        logits, most = torch.stack([*step.top_logits.values()]), max(wanted.values())
        rows = gather_logprobs(logits, [tokens[i] for i in wanted], most)
        return {
            i: self._token_logprobs(row[1 : 1 + count]) for (i, count), row in zip(wanted.items(), rows, strict=True)
        }

    def _token_logprobs(self, row: Sequence[tuple[int, float]]) -> tuple[Logprob, ...]:
        return tuple(Logprob(id, logprob, self.token_bytes(id)) for id, logprob in row)


def _not_finite(tokens: int) -> EngineError:
    return EngineError(f"The model's logits after {tokens:,} tokens are not finite.", "The weights may be damaged.")
