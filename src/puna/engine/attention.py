"""Attention over KV blocks: what `model.llama` calls with the keys and values of a step's new tokens.

The tokens of all sequences of a step form one row. Each sequence's new tokens are written into its blocks, and each
token attends to its own sequence up to itself. On CUDA blocks are read in place (`engine.cuda.paged_attention`), on a
CPU by the native step where possible (`engine.cpu.native_step`). Elsewhere blocks are gathered: sequences with one new
token (decode) in groups of about equal length, those with more (prefill) one by one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.engine.core.kv_cache import BlockPool
from puna.engine.cuda.paged_attention import FlashAttention, FlexAttention, attention_backend
from puna.engine.device_copy import to_device
from puna.model.llama import attend

_BATCHED = 8  # sequences from which decode uses batched products


@dataclass(frozen=True)
class QuerySpan:
    """The new tokens of one sequence: positions start to start + count. block_table: blocks for all of them."""

    block_table: Sequence[int]
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


class PagedAttention:
    """The KV cache of one forward over the spans, end to end. Implements `puna.model.llama.Cache`."""

    def __init__(self, pool: BlockPool, slots: Tensor, groups: "Sequence[Group]") -> None:
        """slots: (tokens,), where each new token is stored in the pool; groups: how each token attends, together all
        tokens."""
        self.pool, self._slots, self._groups = pool, slots, groups

    @classmethod
    def of(cls, pool: BlockPool, spans: Sequence[QuerySpan]) -> "PagedAttention":
        """The cache for these spans."""
        size = pool.block_size
        slots = [span.block_table[p // size] * size + p % size for span in spans for p in range(span.start, span.end)]
        return cls(pool, to_device(slots, pool.store.device), _groups(spans, pool))

    @classmethod
    def decode(cls, pool: BlockPool, slots: Tensor, tables: Tensor, lengths: Tensor) -> "PagedAttention":
        """The cache for one new token per sequence, from tensors alone: no shape depends on the values in them.

        slots, lengths: (sequences,), a length counts the new token; tables: (sequences, blocks), padded with the pool's
        null block.
        """
        size, width = pool.block_size, tables.shape[1]
        backend = attention_backend(pool.store.device, pool.store.dtype, pool.store.shape[-1], size)
        if backend == "flash":
            return cls(pool, slots, [FlashAttention.decode(tables, lengths, size)])
        if backend == "flex":
            flex = FlexAttention.build(slice(None), tables, lengths - 1, 1, pool.num_blocks + 1, size)
            return cls(pool, slots, [flex])
        visible = torch.arange(width * size, device=slots.device) < lengths[:, None]
        return cls(pool, slots, [_Group(slice(None), tables, None, width * size, visible[:, None, None], decodes=True)])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store key and value (1, tokens, kv_heads, head_dim) and attend query (1, tokens, heads, head_dim)."""
        keys, values = self.pool.keys(layer), self.pool.values(layer)
        for blocks, new in ((keys, key), (values, value)):
            blocks.flatten(1, 2).index_copy_(1, self._slots, new[0].to(blocks.dtype).transpose(0, 1))
        if len(self._groups) == 1:  # the whole step: nothing to merge
            return self._groups[0].attend(query[0], keys, values)[None]
        out = torch.empty_like(query)
        for group in self._groups:
            out[0, group.tokens] = group.attend(query[0, group.tokens], keys, values)
        return out


@dataclass(frozen=True)
class _Group:
    """Sequences that attend in one call: one with several new tokens, or any number with one each."""

    tokens: Tensor | slice  # which of the step's tokens
    tables: Tensor  # (sequences, blocks)
    first: int | None  # the first block, if there is one sequence and its blocks are contiguous
    length: int  # keys to attend to: of the longest sequence, or to the end of its last block
    visible: Tensor | None  # bool, broadcasts to (sequences, 1, seq, length); None: all keys, or causal
    decodes: bool

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(tokens, heads, head_dim) of query (tokens, heads, head_dim) over its blocks."""
        keys, values = (self._gather(blocks).to(query.dtype) for blocks in (keys, values))
        if self.decodes:
            return _decode(query, keys, values, self.visible)
        keys, values = keys.permute(1, 2, 0, 3), values.permute(1, 2, 0, 3)  # (1, length, kv_heads, head_dim)
        return attend(query[None], keys, values, visible=self.visible)[0]

    def _gather(self, blocks: Tensor) -> Tensor:
        """(kv_heads, sequences, length, head_dim) of the sequences' blocks, up to the longest length."""
        count = self.tables.shape[1]
        if self.first is not None:
            return blocks[:, None, self.first : self.first + count].flatten(2, 3)[:, :, : self.length]
        # Copies whole blocks; indexing with the table takes five times as long (32 x 160 tokens, torch 2.13, CPU).
        rows = blocks.index_select(1, self.tables.flatten())
        return rows.view(len(blocks), len(self.tables), -1, blocks.shape[-1])[:, :, : self.length]


def _decode(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of one query per sequence. query and the result: (sequences, heads, head_dim); keys and values:
    (kv_heads, sequences, length, head_dim); visible: (sequences, 1, 1, length).

    The query heads of a key-value head share its keys, so they are the rows of one product. SDPA is faster for a few
    sequences; from about eight on, batched products take a quarter of its time (32 x 160 tokens, bfloat16).
    """
    kv_heads, sequences, length, size = keys.shape
    rows = query.unflatten(1, (kv_heads, -1))  # (sequences, kv_heads, rows, head_dim)
    if sequences < _BATCHED:
        out = F.scaled_dot_product_attention(rows, keys.transpose(0, 1), values.transpose(0, 1), attn_mask=visible)
        return out.flatten(1, 2)
    rows = rows.transpose(0, 1).reshape(kv_heads * sequences, -1, size)
    scores = torch.bmm(rows, keys.reshape(-1, length, size).transpose(1, 2)).float().mul_(size**-0.5)
    if visible is not None:
        scores.view(kv_heads, sequences, -1, length).masked_fill_(~visible[:, 0], float("-inf"))
    out = torch.bmm(scores.softmax(-1).to(query.dtype), values.reshape(-1, length, size))
    return out.view(kv_heads, sequences, -1, size).transpose(0, 1).flatten(1, 2)


Group = _Group | FlashAttention | FlexAttention


def _groups(spans: Sequence[QuerySpan], pool: BlockPool) -> list[Group]:
    block_size, device = pool.block_size, pool.store.device
    backend = attention_backend(device, pool.store.dtype, pool.store.shape[-1], block_size)
    if backend == "flash":
        blocks = max(-(-span.end // block_size) for span in spans)
        counts, ends = [span.count for span in spans], [span.end for span in spans]
        padded = [_pad(span.block_table, blocks, pool.null_block) for span in spans]
        return [FlashAttention.build(padded, counts, ends, block_size, device)]
    if backend == "flex":
        return _flex_groups(spans, pool)
    groups: list[Group] = []
    decode: dict[int, list[tuple[int, QuerySpan]]] = defaultdict(list)
    for at, span in zip(accumulate((s.count for s in spans), initial=0), spans, strict=False):
        blocks = -(-span.end // block_size)
        if span.count == 1:
            decode[bucket(blocks)].append((at, span))
            continue
        visible = None
        if span.start:
            keys = torch.arange(span.end, device=device)
            visible = (keys <= torch.arange(span.start, span.end, device=device)[:, None])[None, None]
        table = span.block_table[:blocks]
        tables = torch.tensor([table], device=device)
        groups.append(_Group(slice(at, at + span.count), tables, _contiguous(table), span.end, visible, decodes=False))
    for rows in decode.values():
        lengths = [span.end for _, span in rows]
        longest = max(lengths)
        blocks = -(-longest // block_size)
        tokens = torch.tensor([at for at, _ in rows], device=device)
        # Batched products read whole blocks: cutting the gathered keys to length would copy them once more.
        attended = blocks * block_size if len(rows) >= _BATCHED else longest
        visible = None
        if min(lengths) < attended:
            visible = torch.arange(attended, device=device) < torch.tensor(lengths, device=device)[:, None]
            visible = visible[:, None, None]
        padded = [_pad(span.block_table, blocks, pool.null_block) for _, span in rows]
        first = _contiguous(padded[0]) if len(rows) == 1 else None
        tables = torch.tensor(padded, device=device)
        groups.append(_Group(tokens, tables, first, attended, visible, decodes=True))
    return groups


def _flex_groups(spans: Sequence[QuerySpan], pool: BlockPool) -> list[Group]:
    """The sequences with one new token together, each of the others alone."""
    device = pool.store.device
    decode: list[tuple[int, QuerySpan]] = []
    together: list[list[tuple[int, QuerySpan]]] = [decode]
    for at, span in zip(accumulate((s.count for s in spans), initial=0), spans, strict=False):
        if span.count == 1:
            decode.append((at, span))
        else:
            together.append([(at, span)])
    groups: list[Group] = []
    for members in filter(None, together):
        at, first = members[0]
        alone = len(members) == 1
        tokens = slice(at, at + first.count) if alone else to_device([at for at, _ in members], device)
        blocks = max(-(-span.end // pool.block_size) for _, span in members)
        tables = to_device([_pad(span.block_table, blocks, pool.null_block) for _, span in members], device)
        starts = to_device([span.start for _, span in members], device)
        groups.append(FlexAttention.build(tokens, tables, starts, first.count, pool.num_blocks + 1, pool.block_size))
    return groups


def _contiguous(table: Sequence[int]) -> int | None:
    """The first of these blocks if they are contiguous: then they need not be copied."""
    return table[0] if all(b - a == 1 for a, b in pairwise(table)) else None


def _pad(block_table: Sequence[int], blocks: int, null_block: int) -> list[int]:
    """A block table of that length, padded with the pool's null block, which belongs to no sequence."""
    return [*block_table[:blocks], *[null_block] * (blocks - len(block_table))]


def bucket(blocks: int) -> int:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, …: the least of these not below `blocks`, so padding stays under half."""
    power = 1 << (blocks - 1).bit_length()
    return power * 3 // 4 if power >= 4 and blocks <= power * 3 // 4 else power
