"""One forward for a mixed batch of prompts and texts, and how large a pool this machine has room for.

The tokens of all chunks lie end to end in one row, so nothing is padded. In the deterministic mode a chunk is computed
page by page instead, each page of each sequence in a forward of its own that always has the whole page's shape: a
token then passes through the same kernels with the same shapes at the same row whatever runs beside it, however its
prompt was cut and whether its neighbours came from the prefix cache, and so its logits are the same to the bit. It
costs a page's arithmetic for each token that is written. A step in one call needs none of this: there each row is
computed alike whatever the others are.

On a CPU a step is one call into compiled kernels where that can be (`engine.whole`). Elsewhere one that brings one
token of each of its sequences may be padded to one of a few sizes (`engine.decode`).
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from puna.engine.attention import PagedAttention, Span
from puna.engine.decode import DecodeSteps
from puna.engine.fused import head
from puna.engine.paged import PAGE_SIZES, best_way
from puna.engine.pages import PagePool
from puna.engine.scheduler import Chunk
from puna.engine.transfer import to_device
from puna.engine.whole import whole_step
from puna.model.llama import LlamaForCausalLM

_SHARE = {"cpu": 0.25, "cuda": 0.8}
"""How much of the memory that is free now the pool may take. On a CPU it is taken only as pages are written."""


class Runner:
    """A model and the pages it computes into. vocabulary: tokens that may be said, the first of the model's; buckets:
    decode steps are padded to a few sizes, and on CUDA captured."""

    def __init__(
        self, model: LlamaForCausalLM, pool: PagePool, vocabulary: int, *, deterministic: bool, buckets: bool = False
    ) -> None:
        self.model, self.pool, self.vocabulary, self.deterministic = model, pool, vocabulary, deterministic
        self.head = head(model)
        self.whole = whole_step(model, pool, vocabulary)
        self.decode_steps = None
        if buckets and not deterministic and self.whole is None:
            self.decode_steps = DecodeSteps(model, pool, capture=pool.store.device.type == "cuda")

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk], said: Tensor | None = None) -> Tensor:
        """Compute the chunks into their pages. Returns the logits of their rows, end to end: (rows, vocabulary).

        said: (chunks,) on the device, the one token of each chunk, where these are ahead of what is known here.
        """
        if self.deterministic and self.whole is None:  # a step in one call is so anyway
            return torch.cat([tile for i, chunk in enumerate(chunks) for tile in self._tiles(chunk, said, i)])
        known = [token for chunk in chunks for token in chunk.continuation.ids[chunk.start : chunk.end]]
        tables = [chunk.continuation.block_table for chunk in chunks]
        if self.decode_steps is not None and all(c.count == 1 and c.rows == [c.start] for c in chunks):
            starts = [chunk.start for chunk in chunks]
            hidden = self.decode_steps.hidden(known if said is None else said, starts, tables)
            if hidden is not None:
                return self.head(hidden)[:, : self.vocabulary]
        device = self.pool.store.device
        spans = [Span(table, chunk.start, chunk.count) for table, chunk in zip(tables, chunks, strict=True)]
        begins = accumulate((chunk.count for chunk in chunks), initial=0)
        rows = [begin + row - chunk.start for begin, chunk in zip(begins, chunks, strict=False) for row in chunk.rows]
        return self._logits(to_device(known, device) if said is None else said, spans, rows)

    def _tiles(self, chunk: Chunk, said: Tensor | None, at: int) -> list[Tensor]:
        """The logits of a chunk's rows, page by page. What lies before the chunk in its first page is the same again;
        what lies behind its end in its last one is written over when its turn comes. at: which of `said` is its."""
        size, known, table = self.pool.page_size, chunk.continuation.ids, chunk.continuation.block_table
        tiles = []
        for first in range(chunk.start // size * size, chunk.end, size):
            wanted = [row - first for row in chunk.rows if first <= row < first + size]
            page = known[first : min(first + size, chunk.end)]
            ids = to_device(page + [0] * (size - len(page)), self.pool.store.device)
            if said is not None:
                ids[chunk.start - first] = said[at]
            span = Span(table, first, size)
            tiles.append(self._logits(ids, [span], range(size))[wanted])
        return tiles

    def _logits(self, ids: Tensor, spans: Sequence[Span], rows: Sequence[int]) -> Tensor:
        """After these of the spans' tokens: (rows, vocabulary)."""
        if self.whole is not None:
            return self.whole(ids, spans, rows)
        positions = [position for span in spans for position in range(span.start, span.end)]
        index = to_device(rows, ids.device, torch.long)
        return self.model(
            ids[None],
            positions=to_device(positions, ids.device)[None],
            cache=PagedAttention.of(self.pool, spans),
            head=lambda hidden, _: self.head(hidden[0, index])[:, : self.vocabulary],
        )


def make_pool(
    model: LlamaForCausalLM, *, max_batch: int, kv_tokens: int | None = None, page_size: int | None = None
) -> PagePool:
    """A pool for `kv_tokens`; by default for max_batch whole contexts, or as many as a share of free memory holds."""
    config, weight = model.config, model.head_weight
    if page_size is None:
        page_size = PAGE_SIZES[best_way(weight.device, weight.dtype, config.head_dim)]
    if kv_tokens is None:
        token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * weight.itemsize
        fitting = int(_free_bytes(weight.device) * _SHARE.get(weight.device.type, 0.25)) // token_bytes
        whole = -(-config.max_position_embeddings // page_size) * page_size
        kv_tokens = min(max_batch * whole, max(fitting, page_size))
    return PagePool(config, max(1, -(-kv_tokens // page_size)), page_size, device=weight.device, dtype=weight.dtype)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
