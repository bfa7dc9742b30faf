"""Attention over pages: what `model.llama` calls with the keys and values of a step's new tokens.

The tokens of all sequences of a step lie end to end in one row. Each brings its own part, writes it into its pages and
sees its own tokens up to itself. On CUDA pages are read where they lie (`engine.paged`), on a CPU by kernels where they
can (`engine.whole`). Elsewhere pages are gathered: sequences that bring one token (decode) in groups of about equal
length, those that bring more (prefill) one by one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.engine.paged import Flash, Flex, way
from puna.engine.pages import PagePool
from puna.engine.transfer import to_device
from puna.model.llama import attend

_MANY = 8  # sequences from which decode attends by batched products


@dataclass(frozen=True)
class Span:
    """The new tokens of one sequence: positions start to start + count. block_table: pages for all of them."""

    block_table: Sequence[int]
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


class PagedAttention:
    """The cache of one forward over the spans, laid end to end. Meets `puna.model.llama.Cache`."""

    def __init__(self, pool: PagePool, slots: Tensor, groups: "Sequence[Group]") -> None:
        """slots: (tokens,), where in the pool each new token goes; groups: who attends how, all tokens in all of
        them."""
        self.pool, self._slots, self._groups = pool, slots, groups

    @classmethod
    def of(cls, pool: PagePool, spans: Sequence[Span]) -> "PagedAttention":
        """For these spans."""
        size = pool.page_size
        slots = [span.block_table[p // size] * size + p % size for span in spans for p in range(span.start, span.end)]
        return cls(pool, to_device(slots, pool.store.device), _groups(spans, pool))

    @classmethod
    def decode(cls, pool: PagePool, slots: Tensor, tables: Tensor, lengths: Tensor) -> "PagedAttention":
        """For one new token a sequence, from tensors alone: nothing depends on the numbers in them.

        slots, lengths: (sequences,), a length counts the new token; tables: (sequences, pages), padded with the pool's
        spare page.
        """
        size, width = pool.page_size, tables.shape[1]
        how = way(pool.store.device, pool.store.dtype, pool.store.shape[-1], size)
        if how == "flash":
            return cls(pool, slots, [Flash.decode(tables, lengths, size)])
        if how == "flex":
            return cls(pool, slots, [Flex.build(slice(None), tables, lengths - 1, 1, pool.pages + 1, size)])
        visible = torch.arange(width * size, device=slots.device) < lengths[:, None]
        group = _Group(slice(None), tables, None, width * size, visible[:, None, None], decodes=True)
        return cls(pool, slots, [group])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store key and value (1, tokens, kv_heads, head_dim) and attend query (1, tokens, heads, head_dim)."""
        keys, values = self.pool.keys(layer), self.pool.values(layer)
        for pages, new in ((keys, key), (values, value)):
            pages.flatten(1, 2).index_copy_(1, self._slots, new[0].to(pages.dtype).transpose(0, 1))
        if len(self._groups) == 1:  # the whole step: nothing to put together
            return self._groups[0].attend(query[0], keys, values)[None]
        out = torch.empty_like(query)
        for group in self._groups:
            out[0, group.tokens] = group.attend(query[0, group.tokens], keys, values)
        return out


@dataclass(frozen=True)
class _Group:
    """Sequences that attend in one call: one that brings several tokens, or any number that bring one each."""

    tokens: Tensor | slice  # which of the step's tokens
    tables: Tensor  # (sequences, pages)
    first: int | None  # the first page, where there is one sequence and its pages lie in a row
    length: int  # keys that are looked at: of the longest, or to the end of its last page
    visible: Tensor | None  # bool, broadcasts to (sequences, 1, seq, length); None: all keys, or causal
    decodes: bool

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(tokens, heads, head_dim) of query (tokens, heads, head_dim) over its pages."""
        seen, held = (self._gather(pages).to(query.dtype) for pages in (keys, values))
        if self.decodes:
            return _decode(query, seen, held, self.visible)
        seen, held = seen.permute(1, 2, 0, 3), held.permute(1, 2, 0, 3)  # (1, length, kv_heads, head_dim)
        return attend(query[None], seen, held, visible=self.visible)[0]

    def _gather(self, pages: Tensor) -> Tensor:
        """(kv_heads, sequences, length, head_dim) of the sequences' pages, as far as the longest goes."""
        count = self.tables.shape[1]
        if self.first is not None:
            return pages[:, None, self.first : self.first + count].flatten(2, 3)[:, :, : self.length]
        # Copies whole pages; indexing with the table takes five times as long (32 x 160 tokens, torch 2.13, CPU).
        rows = pages.index_select(1, self.tables.flatten())
        return rows.view(len(pages), len(self.tables), -1, pages.shape[-1])[:, :, : self.length]


def _decode(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of one query a sequence. query, as the result: (sequences, heads, head_dim); keys and values:
    (kv_heads, sequences, length, head_dim); visible: (sequences, 1, 1, length).

    The query heads of a key-value head see the same keys, so they are the rows of one product. SDPA wins while
    sequences are few; from some eight on batched products take a quarter of its time (32 x 160 tokens, bfloat16).
    """
    kv_heads, sequences, length, size = keys.shape
    rows = query.unflatten(1, (kv_heads, -1))  # (sequences, kv_heads, rows, head_dim)
    if sequences < _MANY:
        out = F.scaled_dot_product_attention(rows, keys.transpose(0, 1), values.transpose(0, 1), attn_mask=visible)
        return out.flatten(1, 2)
    rows = rows.transpose(0, 1).reshape(kv_heads * sequences, -1, size)
    scores = torch.bmm(rows, keys.reshape(-1, length, size).transpose(1, 2)).float().mul_(size**-0.5)
    if visible is not None:
        scores.view(kv_heads, sequences, -1, length).masked_fill_(~visible[:, 0], float("-inf"))
    out = torch.bmm(scores.softmax(-1).to(query.dtype), values.reshape(-1, length, size))
    return out.view(kv_heads, sequences, -1, size).transpose(0, 1).flatten(1, 2)


Group = _Group | Flash | Flex


def _groups(spans: Sequence[Span], pool: PagePool) -> list[Group]:
    page_size, device = pool.page_size, pool.store.device
    how = way(device, pool.store.dtype, pool.store.shape[-1], page_size)
    if how == "flash":
        pages = max(-(-span.end // page_size) for span in spans)
        counts, ends = [span.count for span in spans], [span.end for span in spans]
        padded = [_padded(span.block_table, pages, pool.spare) for span in spans]
        return [Flash.build(padded, counts, ends, page_size, device)]
    if how == "flex":
        return _flex_groups(spans, pool)
    groups: list[Group] = []
    decode: dict[int, list[tuple[int, Span]]] = defaultdict(list)
    for at, span in zip(accumulate((s.count for s in spans), initial=0), spans, strict=False):
        pages = -(-span.end // page_size)
        if span.count == 1:
            decode[bucket(pages)].append((at, span))
            continue
        visible = None
        if span.start:
            keys = torch.arange(span.end, device=device)
            visible = (keys <= torch.arange(span.start, span.end, device=device)[:, None])[None, None]
        table = span.block_table[:pages]
        tables = torch.tensor([table], device=device)
        groups.append(_Group(slice(at, at + span.count), tables, _in_a_row(table), span.end, visible, decodes=False))
    for rows in decode.values():
        lengths = [span.end for _, span in rows]
        longest = max(lengths)
        pages = -(-longest // page_size)
        tokens = torch.tensor([at for at, _ in rows], device=device)
        # Many read whole pages: cutting what was gathered to length would copy it once more.
        looked_at = pages * page_size if len(rows) >= _MANY else longest
        visible = None
        if min(lengths) < looked_at:
            visible = torch.arange(looked_at, device=device) < torch.tensor(lengths, device=device)[:, None]
            visible = visible[:, None, None]
        padded = [_padded(span.block_table, pages, pool.spare) for _, span in rows]
        first = _in_a_row(padded[0]) if len(rows) == 1 else None
        tables = torch.tensor(padded, device=device)
        groups.append(_Group(tokens, tables, first, looked_at, visible, decodes=True))
    return groups


def _flex_groups(spans: Sequence[Span], pool: PagePool) -> list[Group]:
    """Those that bring one token together, each of the others alone."""
    device = pool.store.device
    rows: list[tuple[int, Span]] = []
    together: list[list[tuple[int, Span]]] = [rows]
    for at, span in zip(accumulate((s.count for s in spans), initial=0), spans, strict=False):
        if span.count == 1:
            rows.append((at, span))
        else:
            together.append([(at, span)])
    groups: list[Group] = []
    for members in filter(None, together):
        at, first = members[0]
        alone = len(members) == 1
        tokens = slice(at, at + first.count) if alone else to_device([at for at, _ in members], device)
        pages = max(-(-span.end // pool.page_size) for _, span in members)
        tables = to_device([_padded(span.block_table, pages, pool.spare) for _, span in members], device)
        starts = to_device([span.start for _, span in members], device)
        groups.append(Flex.build(tokens, tables, starts, first.count, pool.pages + 1, pool.page_size))
    return groups


def _in_a_row(table: Sequence[int]) -> int | None:
    """The first of these pages when each of the others is its neighbour's: then they need not be copied."""
    return table[0] if all(b - a == 1 for a, b in pairwise(table)) else None


def _padded(block_table: Sequence[int], pages: int, spare: int) -> list[int]:
    """A block table of that length, filled with the pool's spare page: nobody else's numbers are ever touched."""
    return [*block_table[:pages], *[spare] * (pages - len(block_table))]


def bucket(pages: int) -> int:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, …: the least of these that is not below `pages`, so padding stays under a half."""
    power = 1 << (pages - 1).bit_length()
    return power * 3 // 4 if power >= 4 and pages <= power * 3 // 4 else power
