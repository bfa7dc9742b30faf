"""One step of the engine: schedule, forward, sample, process outputs.

With overlap, a step's outputs are processed after the next step has started (`engine.cuda.in_flight`).

A failure ends the request it belongs to and no other. When a forward raises, its chunks are computed again in halves,
until the one that fails is alone: because of its prompt, or of the memory it takes. Logits that are not finite end the
request they belong to, and a tokenizer's exception the one being decoded.
"""

from collections.abc import Callable, Sequence
from time import monotonic

import torch
from torch import Tensor

from puna.engine.core.errors import release_frames
from puna.engine.core.model_runner import ModelRunner
from puna.engine.core.scheduler import Chunk, Scheduler
from puna.engine.cuda.in_flight import InFlightStep
from puna.engine.device_copy import to_device
from puna.engine.grammar import GrammarError
from puna.engine.output_processor import GRAMMAR_FAILED, STEP_FAILED, OutputProcessor
from puna.engine.request import TokenSequence
from puna.engine.sampling import Constraint


class EngineCore:
    """Makes steps, one at a time. token_bytes: the bytes a token stands for; overlap: process a step's outputs after
    the next step has started, if that one depends on nothing that only the host knows."""

    def __init__(
        self, scheduler: Scheduler, runner: ModelRunner, token_bytes: Callable[[int], bytes], *, overlap: bool = False
    ) -> None:
        self.scheduler, self.runner, self.overlap = scheduler, runner, overlap
        self.outputs = OutputProcessor(scheduler, token_bytes)
        self.weight_version = 0
        self.steps = 0
        self.overlapped_steps = 0
        """Steps that started before the tokens of the previous one were known."""
        self.last_progress = monotonic()
        """When a step last ended."""
        self._in_flight: InFlightStep | None = None

    def step(self) -> None:
        """Make one step of whatever there is to do."""
        try:
            self.scheduler.abort_expired(monotonic())
            last, self._in_flight = self._in_flight, None
            if last is not None:
                self._in_flight = self._step_ahead(last)
                self.outputs.process(last, self.weight_version)
            if self._in_flight is None:
                chunks = self.scheduler.schedule()
                if not chunks and last is None:
                    return
                self._in_flight = self._execute(chunks)
                if self._in_flight is not None and not (self.overlap and self._in_flight.allows_overlap):
                    self.finish_in_flight()
            if not self.scheduler.running:  # all that it could produce has ended meanwhile
                self._in_flight = None
        except Exception:
            raise
        except BaseException:  # Ctrl-C on a caller's thread, at any point
            self._in_flight = None
            self.scheduler.recover()
            raise
        self.steps += 1
        self.last_progress = monotonic()

    def finish_in_flight(self) -> None:
        """Wait for the in-flight step, if there is one, and process its outputs."""
        step, self._in_flight = self._in_flight, None
        if step is not None:
            self.outputs.process(step, self.weight_version)

    def _step_ahead(self, step: InFlightStep) -> InFlightStep | None:
        """Start the step after one whose tokens are not known yet; None if they have to be."""
        chunks = self.scheduler.schedule_ahead(step.sequences)
        if not chunks:
            return None
        sequences = [chunk.sequence for chunk in chunks]
        try:
            with torch.inference_mode():
                logits = self.runner.forward(chunks, step.ids_of(sequences))
                following = InFlightStep.sample(sequences, logits, chunks=chunks)
        except Exception as error:  # which request failed is found when it is computed again, with all tokens known
            release_frames(error)
            return None
        self.overlapped_steps += 1
        return following

    def _execute(self, chunks: Sequence[Chunk]) -> InFlightStep | None:
        """Compute chunks and sample the tokens after them; None if nothing was sampled."""
        chunks = [chunk for chunk in chunks if not chunk.sequence.request.done]
        if not chunks:
            return None
        logits = self._forward(chunks)
        if isinstance(logits, Tensor):
            try:
                return self._sample(*self._mark_computed(chunks, logits))
            except Exception as error:
                for chunk in chunks:
                    self.outputs.fail(chunk.sequence.request, STEP_FAILED, error)
        elif len(chunks) == 1:
            self.outputs.fail(chunks[0].sequence.request, STEP_FAILED, logits)
        else:
            for half in (chunks[: len(chunks) // 2], chunks[len(chunks) // 2 :]):
                step = self._execute(half)
                if step is not None:
                    self.outputs.process(step, self.weight_version)
        return None

    def _forward(self, chunks: Sequence[Chunk]) -> Tensor | Exception:
        try:
            return self.runner.forward(chunks)
        except Exception as error:
            release_frames(error)
            return error

    @torch.inference_mode()
    def _mark_computed(self, chunks: Sequence[Chunk], logits: Tensor) -> tuple[list[TokenSequence], Tensor]:
        """Note what was computed. logits: (rows of all chunks, vocabulary).

        Returns the sequences whose next token can be sampled, and their logits.
        """
        rows, sequences = [], []
        at = 0
        for chunk in chunks:
            self.scheduler.mark_computed(chunk)
            scored = len(chunk.prompt_rows)
            if scored:
                self.outputs.score_prompt(chunk, logits[at : at + scored])
            at += scored + chunk.complete
            if not chunk.complete or chunk.sequence.request.done:
                continue
            for sequence in [*self.scheduler.fork(chunk.sequence)]:
                if not sequence.limit:  # only the prompt was to be scored
                    sequence.finish_reason = "length"
                    self.scheduler.finish(sequence)
                    continue
                rows.append(at - 1)
                sequences.append(sequence)
        if rows == list(range(len(logits))):
            return sequences, logits
        return sequences, logits[to_device(rows, logits.device, torch.long)]

    @torch.inference_mode()
    def _sample(self, sequences: Sequence[TokenSequence], logits: Tensor) -> InFlightStep | None:
        constraint = _constraint(sequences)
        if constraint is not None and not (possible := constraint.allowed.any(-1)).all():
            for i in (row for row, ok in zip(constraint.rows, possible.tolist(), strict=True) if not ok):
                matcher = sequences[i].matcher
                error = GrammarError(matcher.error if matcher else "")
                self.outputs.fail(sequences[i].request, GRAMMAR_FAILED, error)
            alive = [i for i, sequence in enumerate(sequences) if not sequence.request.done]
            return self._sample([sequences[i] for i in alive], logits[alive])
        return InFlightStep.sample(sequences, logits, constraint) if sequences else None


def _constraint(sequences: Sequence[TokenSequence]) -> Constraint | None:
    """The tokens that the sequences' grammars allow."""
    rows = [i for i, sequence in enumerate(sequences) if sequence.matcher is not None]
    matchers = [matcher for sequence in sequences if (matcher := sequence.matcher) is not None]
    return Constraint(rows, matchers[0].grammars.allowed(matchers)) if rows else None
