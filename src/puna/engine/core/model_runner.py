"""The model runner: one forward for a mixed batch of chunks, and the size of the block pool.

The tokens of all chunks form one row, so nothing is padded. In the deterministic mode a chunk is computed block by
block instead, each block of each sequence in a forward of its own that always has the full block's shape. A token then
passes through the same kernels with the same shapes at the same row, whatever else is in the batch, however its prompt
was split into chunks, and whether its prefix came from the cache; so its logits are the same to the bit. The price is a
block's arithmetic for each generated token. The native CPU step needs none of this: it computes each row alike whatever
the others are.

On a CPU a step is one call into compiled kernels where possible (`engine.cpu.native_step`). Elsewhere a step in which
each sequence brings one token may be padded to one of a few sizes (`engine.cuda.graphs`).
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from puna.engine.attention import PagedAttention, QuerySpan
from puna.engine.core.kv_cache import BlockPool
from puna.engine.core.scheduler import Chunk
from puna.engine.cpu.fused_model import output_head
from puna.engine.cpu.native_step import native_step
from puna.engine.cuda.graphs import DecodeGraphs
from puna.engine.cuda.paged_attention import BLOCK_SIZES, best_backend
from puna.engine.device_copy import to_device
from puna.model.llama import LlamaForCausalLM

_SHARE = {"cpu": 0.25, "cuda": 0.8}
"""How much of the free memory the pool may take. On a CPU it is taken only as blocks are written."""


class ModelRunner:
    """A model and the block pool it computes into.

    vocabulary: tokens that can be generated, the first of the model's; buckets: pad decode steps to a few sizes, and
    capture them on CUDA.
    """

    def __init__(
        self, model: LlamaForCausalLM, pool: BlockPool, vocabulary: int, *, deterministic: bool, buckets: bool = False
    ) -> None:
        self.model, self.pool, self.vocabulary, self.deterministic = model, pool, vocabulary, deterministic
        self.head = output_head(model)
        self.native_step = native_step(model, pool, vocabulary)
        self.decode_graphs = None
        if buckets and not deterministic and self.native_step is None:
            self.decode_graphs = DecodeGraphs(model, pool, capture=pool.store.device.type == "cuda")

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk], device_ids: Tensor | None = None) -> Tensor:
        """Compute the chunks into their blocks. Returns the logits of their rows, end to end: (rows, vocabulary).

        device_ids: (chunks,), the one token of each chunk, if these are known only on the device.
        """
        if self.deterministic and self.native_step is None:  # the native step is deterministic anyway
            return torch.cat([row for i, chunk in enumerate(chunks) for row in self._by_block(chunk, device_ids, i)])
        ids = [token for chunk in chunks for token in chunk.sequence.ids[chunk.start : chunk.end]]
        tables = [chunk.sequence.block_table for chunk in chunks]
        if self.decode_graphs is not None and all(c.count == 1 and c.rows == [c.start] for c in chunks):
            starts = [chunk.start for chunk in chunks]
            hidden = self.decode_graphs.hidden(ids if device_ids is None else device_ids, starts, tables)
            if hidden is not None:
                return self.head(hidden)[:, : self.vocabulary]
        spans = [QuerySpan(table, chunk.start, chunk.count) for table, chunk in zip(tables, chunks, strict=True)]
        begins = accumulate((chunk.count for chunk in chunks), initial=0)
        rows = [begin + row - chunk.start for begin, chunk in zip(begins, chunks, strict=False) for row in chunk.rows]
        return self._logits(to_device(ids, self.pool.store.device) if device_ids is None else device_ids, spans, rows)

    def _by_block(self, chunk: Chunk, device_ids: Tensor | None, at: int) -> list[Tensor]:
        """The logits of a chunk's rows, block by block. at: the chunk's index in `device_ids`.

        Tokens before the chunk in its first block are computed again with the same result; padding after its end in the
        last block is overwritten when those tokens come.
        """
        size, known, table = self.pool.block_size, chunk.sequence.ids, chunk.sequence.block_table
        logits = []
        for first in range(chunk.start // size * size, chunk.end, size):
            wanted = [row - first for row in chunk.rows if first <= row < first + size]
            block = known[first : min(first + size, chunk.end)]
            ids = to_device(block + [0] * (size - len(block)), self.pool.store.device)
            if device_ids is not None:
                ids[chunk.start - first] = device_ids[at]
            span = QuerySpan(table, first, size)
            logits.append(self._logits(ids, [span], range(size))[wanted])
        return logits

    def _logits(self, ids: Tensor, spans: Sequence[QuerySpan], rows: Sequence[int]) -> Tensor:
        """The logits after these of the spans' tokens: (rows, vocabulary)."""
        if self.native_step is not None:
            return self.native_step(ids, spans, rows)
        positions = [position for span in spans for position in range(span.start, span.end)]
        index = to_device(rows, ids.device, torch.long)
        return self.model(
            ids[None],
            positions=to_device(positions, ids.device)[None],
            cache=PagedAttention.of(self.pool, spans),
            head=lambda hidden, _: self.head(hidden[0, index])[:, : self.vocabulary],
        )


def make_block_pool(
    model: LlamaForCausalLM, *, max_batch: int, kv_tokens: int | None = None, block_size: int | None = None
) -> BlockPool:
    """A pool for `kv_tokens`; by default for max_batch full contexts, or as many as a share of free memory holds."""
    config, weight = model.config, model.head_weight
    if block_size is None:
        block_size = BLOCK_SIZES[best_backend(weight.device, weight.dtype, config.head_dim)]
    if kv_tokens is None:
        token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * weight.itemsize
        fitting = int(_free_bytes(weight.device) * _SHARE.get(weight.device.type, 0.25)) // token_bytes
        context = -(-config.max_position_embeddings // block_size) * block_size
        kv_tokens = min(max_batch * context, max(fitting, block_size))
    return BlockPool(config, max(1, -(-kv_tokens // block_size)), block_size, device=weight.device, dtype=weight.dtype)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
