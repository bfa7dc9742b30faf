"""In-flight steps: sampled tokens that are still on the device, so that the next step can start before they are read.

While the host turns one step's tokens into text, the device may already compute the next step from the tokens
themselves (overlap or asynchronous scheduling in vLLM and SGLang). If a sequence turns out to have ended, it was
computed once too often, and that token is discarded. Without overlap each step is read at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from puna.engine.core.scheduler import Chunk
from puna.engine.device_copy import HostCopy, to_device
from puna.engine.request import TokenSequence
from puna.engine.sampling import Constraint, History, sample


@dataclass(frozen=True)
class InFlightStep:
    """The results of a step. sequences: those whose next tokens it sampled."""

    sequences: Sequence[TokenSequence]
    ids: Tensor  # (sequences,), on the device
    results: HostCopy  # of (sequences, 3) float64: id, log probability, whether all logits were finite
    top_logits: dict[int, Tensor] = field(default_factory=dict)  # (vocabulary,) of the sequences with top_logprobs
    chunks: Sequence[Chunk] = ()  # of a step scheduled ahead: not yet marked as computed

    @classmethod
    def sample(
        cls,
        sequences: Sequence[TokenSequence],
        logits: Tensor,
        constraint: Constraint | None = None,
        chunks: Sequence[Chunk] = (),
    ) -> "InFlightStep":
        """Sample the next token of each sequence. logits: (sequences, vocabulary); chunks: if scheduled ahead."""
        params = [sequence.params for sequence in sequences]
        histories = [History(s.request.prompt, s.output_ids if s.params.adjusts else ()) for s in sequences]
        draws = [sequence.draw(ahead=bool(chunks)) for sequence in sequences]
        ids, logprobs = sample(logits, params, draws, histories, constraint)
        # A NaN or an infinity anywhere shows in the maximum.
        results = torch.stack((ids.double(), logprobs.double(), logits.amax(-1).isfinite().double()), -1)
        top_logits = {i: logits[i] for i, p in enumerate(params) if p.top_logprobs}
        return cls(sequences, ids, HostCopy(results), top_logits, chunks)

    @property
    def allows_overlap(self) -> bool:
        """Whether the next tokens can be sampled before these are known."""
        return not any(s.params.looks_back or s.params.top_logprobs for s in self.sequences)

    def ids_of(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """(sequences,): the tokens of some of its sequences, on the device."""
        if list(sequences) == list(self.sequences):
            return self.ids
        row = {sequence: i for i, sequence in enumerate(self.sequences)}
        return self.ids[to_device([row[sequence] for sequence in sequences], self.ids.device)]
