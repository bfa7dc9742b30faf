"""Paged attention for CUDA: keys and values are read in place, in their blocks.

`FlashAttention` is torch's variable-length flash attention, which follows a block table (torch 2.12, half precision,
blocks of 256). `FlexAttention` runs torch's FlexAttention over the whole pool with a mask that says which block belongs
to which sequence; it is compiled when first needed, and serves older torch and float32 (blocks of 128). Both consist of
tensors on the device and of numbers that do not depend on their values, so that a decode step can be captured as a CUDA
graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.engine.device_copy import to_device
from puna.model.torch_compat import has_compiled_flex, has_paged_attention

AttentionBackend = Literal["flash", "flex", "gather"]
BLOCK_SIZES: dict[AttentionBackend, int] = {"flash": 256, "flex": 128, "gather": 16}
"""The default block size, and what any other must be a multiple of. flash: what torch's flash attention 2
accepts ("Paged KV cache block size must be divisible by 256", flash_api.cpp); flex: FlexAttention's own block."""
_QUERY_BLOCK = 128  # queries that share a list of blocks: FlexAttention's default


def best_backend(device: torch.device, dtype: torch.dtype, head_dim: int) -> AttentionBackend:
    """The best backend on this device, for a block size of its choice."""
    if device.type != "cuda":
        return "gather"
    half = dtype in (torch.bfloat16, torch.float16)
    if half and head_dim % 8 == 0 and head_dim <= 256 and has_paged_attention():
        return "flash"
    return "flex" if head_dim >= 16 and has_compiled_flex() else "gather"


def attention_backend(device: torch.device, dtype: torch.dtype, head_dim: int, block_size: int) -> AttentionBackend:
    """The backend used on this device for blocks of this size."""
    best = best_backend(device, dtype, head_dim)
    if best == "flash" and block_size % BLOCK_SIZES["flash"] and has_compiled_flex():
        best = "flex"
    return best if block_size % BLOCK_SIZES[best] == 0 else "gather"


@dataclass(frozen=True)
class FlashAttention:
    """The inputs of flash attention for a step's tokens, end to end, each sequence over its blocks."""

    tokens: slice  # all of the step's
    cu_queries: Tensor  # int32 (sequences + 1,): where each sequence's queries begin
    cu_keys: Tensor  # int32 (sequences + 1,): flash attention 2 needs it as well as `used`; version 3 infers it
    used: Tensor  # int32 (sequences,): keys of each
    tables: Tensor  # int32 (sequences, blocks)
    max_queries: int
    max_keys: int

    @classmethod
    def build(cls, tables: Sequence[Sequence[int]], counts: Sequence[int], ends: Sequence[int],
              block_size: int, device: torch.device) -> "FlashAttention":  # fmt: skip
        """tables: blocks of each sequence, equally many; counts: new tokens of each; ends: tokens of each, with
        them."""
        return cls(
            tokens=slice(None),
            cu_queries=to_device([*accumulate(counts, initial=0)], device, torch.int32),
            cu_keys=to_device([*accumulate(ends, initial=0)], device, torch.int32),
            used=to_device(ends, device, torch.int32),
            tables=to_device(tables, device, torch.int32),
            max_queries=max(counts),
            max_keys=len(tables[0]) * block_size,
        )

    @classmethod
    def decode(cls, tables: Tensor, lengths: Tensor, block_size: int) -> "FlashAttention":
        """One new token per sequence, its last. tables: (sequences, blocks); lengths: (sequences,), with the new
        token."""
        used = lengths.int()
        return cls(
            tokens=slice(None),
            cu_queries=torch.arange(len(used) + 1, dtype=torch.int32, device=used.device),
            cu_keys=F.pad(used.cumsum(0), (1, 0)).int(),
            used=used,
            tables=tables.int(),
            max_queries=1,
            max_keys=tables.shape[1] * block_size,
        )

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(tokens, heads, head_dim) of query (tokens, heads, head_dim) over one layer's blocks (kv_heads, blocks,
        block_size, head_dim)."""
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(
            query,
            keys.permute(1, 2, 0, 3),  # (blocks, block_size, kv_heads, head_dim); only the last must be dense
            values.permute(1, 2, 0, 3),
            self.cu_queries,
            self.cu_keys,
            self.max_queries,
            self.max_keys,
            # Any distance back, none ahead. A single query is the last token and sees all; flash attention lets the
            # query heads of a key-value head read its keys together only when no window is given.
            window_size=(-1, 0) if self.max_queries > 1 else (-1, -1),
            enable_gqa=True,
            seqused_k=self.used,
            block_table=self.tables,
            # Left to the kernel, it gives NaN now and then (pytorch/torchtitan#3235), and it depends on batch mates.
            num_splits=1,
        )
        return cast(Tensor, out)


@dataclass(frozen=True)
class FlexAttention:
    """The mask of FlexAttention for one call: any number of sequences with one new token, or one with several."""

    tokens: Tensor | slice  # which of the step's tokens
    mask: Any  # BlockMask (sequences, 1, queries, slots of the pool)

    @classmethod
    def build(cls, tokens: Tensor | slice, tables: Tensor, starts: Tensor, count: int,
              blocks: int, block_size: int) -> "FlexAttention":  # fmt: skip
        """tables: int (sequences, blocks of the longest), padded with a block of no sequence; starts:
        (sequences,), position of each one's first new token; count: new tokens of each; blocks: the pool's."""
        from torch.nn.attention.flex_attention import BlockMask

        sequences, width = tables.shape
        rows = -(-count // _QUERY_BLOCK)
        # The inverse: which of a sequence's blocks a block of the pool is. Padding comes after all tokens: it cannot be
        # seen, whichever of its positions wins.
        place = torch.full((sequences, blocks), -1, dtype=torch.int32, device=tables.device)
        order = torch.arange(width, dtype=torch.int32, device=tables.device).expand(sequences, width)
        place.scatter_(1, tables.long(), order)
        ends = torch.arange(1, rows + 1, device=tables.device).mul(_QUERY_BLOCK).clamp_max(count)
        listed = torch.zeros((sequences, 1, rows, blocks), dtype=torch.int32, device=tables.device)
        listed[..., :width] = tables[:, None, None]
        attended = (starts[:, None] + ends - 1).div(block_size, rounding_mode="floor") + 1  # (sequences, rows)

        def sees(batch: Tensor, head: Tensor, query: Tensor, slot: Tensor) -> Tensor:
            at = place[batch, slot // block_size]
            return (at >= 0) & (at * block_size + slot % block_size <= starts[batch] + query)

        mask = BlockMask.from_kv_blocks(
            attended[:, None].int(),
            listed,
            BLOCK_SIZE=(_QUERY_BLOCK, block_size),
            mask_mod=sees,
            seq_lengths=(count, blocks * block_size),
            compute_q_blocks=False,  # only a backward would read them
        )
        return cls(tokens, mask)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As FlashAttention.attend."""
        sequences = self.mask.kv_num_blocks.shape[0]
        queries = query.unflatten(0, (sequences, -1)).transpose(1, 2)  # (sequences, heads, count, head_dim)
        keys, values = keys.flatten(1, 2)[None], values.flatten(1, 2)[None]  # (1, kv_heads, pool slots, head_dim)
        grouped = queries.shape[1] != keys.shape[1]
        out = _flex(query.device.type)(queries, keys, values, block_mask=self.mask, enable_gqa=grouped)
        return out.transpose(1, 2).flatten(0, 1)


@lru_cache(maxsize=2)
def _flex(device: str) -> Callable[..., Tensor]:
    """FlexAttention, compiled for the GPU; uncompiled elsewhere, where only tests use it."""
    from torch.nn.attention.flex_attention import flex_attention

    return cast(
        Callable[..., Tensor], torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention
    )
