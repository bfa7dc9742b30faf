"""A step on its way: its tokens are chosen on the device, and nobody here knows them yet.

While the host turns the tokens of one step into text, the device may compute the next one from those tokens themselves.
That step is asked for before the last one is read. Whose text turns out to have ended has then been computed once too
often, and that token is thrown away.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from puna.engine.request import Continuation
from puna.engine.sampling import Constraint, History, sample
from puna.engine.scheduler import Chunk
from puna.engine.transfer import Readout, to_device


@dataclass(frozen=True)
class Flight:
    """What comes of a step. texts: whose next tokens it brings."""

    texts: Sequence[Continuation]
    ids: Tensor  # (texts,), on the device
    readout: Readout  # of (texts, 3) float64: id, log probability, whether all logits were finite
    asked: dict[int, Tensor] = field(default_factory=dict)  # logits (vocabulary,) of the texts that want the likeliest
    chunks: Sequence[Chunk] = ()  # of a step that was ahead: not yet entered into the prefix cache

    @classmethod
    def choose(
        cls,
        texts: Sequence[Continuation],
        logits: Tensor,
        constraint: Constraint | None = None,
        chunks: Sequence[Chunk] = (),
    ) -> "Flight":
        """Choose the next token of each text. logits: (texts, vocabulary); chunks: as the field, of a step ahead."""
        params = [continuation.params for continuation in texts]
        histories = [History(c.request.prompt, c.text_ids if c.params.adjusts else ()) for c in texts]
        draws = [continuation.draw(ahead=bool(chunks)) for continuation in texts]
        ids, logprobs = sample(logits, params, draws, histories, constraint)
        # A NaN or an infinity anywhere shows in the largest.
        numbers = torch.stack((ids.double(), logprobs.double(), logits.amax(-1).isfinite().double()), -1)
        asked = {i: logits[i] for i, p in enumerate(params) if p.top_logprobs}
        return cls(texts, ids, Readout(numbers), asked, chunks)

    @property
    def may_be_followed(self) -> bool:
        """Whether the tokens after these can be chosen before these are known."""
        return not any(c.params.looks_back or c.params.top_logprobs for c in self.texts)

    def ids_of(self, texts: Sequence[Continuation]) -> Tensor:
        """(texts,): the tokens of some of its texts, on the device."""
        if list(texts) == list(self.texts):
            return self.ids
        row = {continuation: i for i, continuation in enumerate(self.texts)}
        return self.ids[to_device([row[continuation] for continuation in texts], self.ids.device)]
