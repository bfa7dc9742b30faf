"""Attention that reads keys and values where they lie in their pages, for CUDA.

`Flash` is torch's variable-length flash attention, which follows a block table (torch 2.12, half precision, pages of
256). `Flex` is FlexAttention over the whole pool with a mask that says whose page is whose; it is compiled when it is
first needed, and serves older torch and float32 (pages of 128). Both are made of tensors on the device and of numbers
that do not depend on them, so that a decode step can be captured as a CUDA graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.engine.transfer import to_device
from puna.model.features import has_compiled_flex, has_paged_attention

Way = Literal["flash", "flex", "gather"]
PAGE_SIZES: dict[Way, int] = {"flash": 256, "flex": 128, "gather": 16}
"""What a page's size has to be a multiple of, and is unless asked otherwise. flash: what torch's flash attention 2
accepts ("Paged KV cache block size must be divisible by 256", flash_api.cpp); flex: FlexAttention's own block."""
_QUERY_BLOCK = 128  # queries that share a list of pages: FlexAttention's default


def best_way(device: torch.device, dtype: torch.dtype, head_dim: int) -> Way:
    """How attention over pages is best done there, when pages have the size that it wants."""
    if device.type != "cuda":
        return "gather"
    half = dtype in (torch.bfloat16, torch.float16)
    if half and head_dim % 8 == 0 and head_dim <= 256 and has_paged_attention():
        return "flash"
    return "flex" if head_dim >= 16 and has_compiled_flex() else "gather"


def way(device: torch.device, dtype: torch.dtype, head_dim: int, page_size: int) -> Way:
    """How attention over pages of this size is done there."""
    best = best_way(device, dtype, head_dim)
    if best == "flash" and page_size % PAGE_SIZES["flash"] and has_compiled_flex():
        best = "flex"
    return best if page_size % PAGE_SIZES[best] == 0 else "gather"


@dataclass(frozen=True)
class Flash:
    """A step's tokens, end to end, each sequence over its pages."""

    tokens: slice  # all of the step's
    cu_queries: Tensor  # int32 (sequences + 1,): where each sequence's queries begin
    cu_keys: Tensor  # int32 (sequences + 1,): flash attention 2 asks for it beside `used`; version 3 infers it
    used: Tensor  # int32 (sequences,): keys of each
    tables: Tensor  # int32 (sequences, pages)
    max_queries: int
    max_keys: int

    @classmethod
    def build(cls, tables: Sequence[Sequence[int]], counts: Sequence[int], ends: Sequence[int],
              page_size: int, device: torch.device) -> "Flash":  # fmt: skip
        """tables: pages of each sequence, equally many; counts: new tokens of each; ends: tokens of each after them."""
        return cls(
            tokens=slice(None),
            cu_queries=to_device([*accumulate(counts, initial=0)], device, torch.int32),
            cu_keys=to_device([*accumulate(ends, initial=0)], device, torch.int32),
            used=to_device(ends, device, torch.int32),
            tables=to_device(tables, device, torch.int32),
            max_queries=max(counts),
            max_keys=len(tables[0]) * page_size,
        )

    @classmethod
    def decode(cls, tables: Tensor, lengths: Tensor, page_size: int) -> "Flash":
        """One new token a sequence, its last. tables: (sequences, pages); lengths: (sequences,), with the new token."""
        used = lengths.int()
        return cls(
            tokens=slice(None),
            cu_queries=torch.arange(len(used) + 1, dtype=torch.int32, device=used.device),
            cu_keys=F.pad(used.cumsum(0), (1, 0)).int(),
            used=used,
            tables=tables.int(),
            max_queries=1,
            max_keys=tables.shape[1] * page_size,
        )

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(tokens, heads, head_dim) of query (tokens, heads, head_dim) over one layer's pages (kv_heads, pages,
        page_size, head_dim)."""
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(
            query,
            keys.permute(1, 2, 0, 3),  # (pages, page_size, kv_heads, head_dim); only the last must be dense
            values.permute(1, 2, 0, 3),
            self.cu_queries,
            self.cu_keys,
            self.max_queries,
            self.max_keys,
            # Any distance back, none ahead. A single query is the last token and sees all; flash attention lets the
            # query heads of a key-value head read its keys together only when it is told of no window.
            window_size=(-1, 0) if self.max_queries > 1 else (-1, -1),
            enable_gqa=True,
            seqused_k=self.used,
            block_table=self.tables,
            # Chosen by the kernel it gives NaN now and then (pytorch/torchtitan#3235), and it depends on batch mates.
            num_splits=1,
        )
        return cast(Tensor, out)


@dataclass(frozen=True)
class Flex:
    """Sequences that bring equally many tokens, in one call: any number that bring one, or one that brings several."""

    tokens: Tensor | slice  # which of the step's tokens
    mask: Any  # BlockMask (sequences, 1, queries, slots of the pool)

    @classmethod
    def build(cls, tokens: Tensor | slice, tables: Tensor, starts: Tensor, count: int,
              pages: int, page_size: int) -> "Flex":  # fmt: skip
        """tables: int (sequences, pages of the longest), padded with pages that nobody's tokens are in; starts:
        (sequences,), position of each one's first new token; count: new tokens of each; pages: the pool's."""
        from torch.nn.attention.flex_attention import BlockMask

        sequences, width = tables.shape
        rows = -(-count // _QUERY_BLOCK)
        # The way back: which of a sequence's pages a page of the pool is. Padding stands behind all tokens: it cannot
        # be seen, whichever of its places wins.
        place = torch.full((sequences, pages), -1, dtype=torch.int32, device=tables.device)
        order = torch.arange(width, dtype=torch.int32, device=tables.device).expand(sequences, width)
        place.scatter_(1, tables.long(), order)
        ends = torch.arange(1, rows + 1, device=tables.device).mul(_QUERY_BLOCK).clamp_max(count)
        listed = torch.zeros((sequences, 1, rows, pages), dtype=torch.int32, device=tables.device)
        listed[..., :width] = tables[:, None, None]
        looked_at = (starts[:, None] + ends - 1).div(page_size, rounding_mode="floor") + 1  # (sequences, rows)

        def sees(batch: Tensor, head: Tensor, query: Tensor, slot: Tensor) -> Tensor:
            at = place[batch, slot // page_size]
            return (at >= 0) & (at * page_size + slot % page_size <= starts[batch] + query)

        mask = BlockMask.from_kv_blocks(
            looked_at[:, None].int(),
            listed,
            BLOCK_SIZE=(_QUERY_BLOCK, page_size),
            mask_mod=sees,
            seq_lengths=(count, pages * page_size),
            compute_q_blocks=False,  # only a backward would read them
        )
        return cls(tokens, mask)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As Flash.attend."""
        sequences = self.mask.kv_num_blocks.shape[0]
        queries = query.unflatten(0, (sequences, -1)).transpose(1, 2)  # (sequences, heads, count, head_dim)
        seen, held = keys.flatten(1, 2)[None], values.flatten(1, 2)[None]  # (1, kv_heads, slots of the pool, head_dim)
        grouped = queries.shape[1] != seen.shape[1]
        out = _flex(query.device.type)(queries, seen, held, block_mask=self.mask, enable_gqa=grouped)
        return out.transpose(1, 2).flatten(0, 1)


@lru_cache(maxsize=2)
def _flex(device: str) -> Callable[..., Tensor]:
    """FlexAttention, compiled for the GPU; as it is elsewhere, where only tests want it."""
    from torch.nn.attention.flex_attention import flex_attention

    return cast(
        Callable[..., Tensor], torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention
    )
