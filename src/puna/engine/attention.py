"""Attention over pages: what `model.llama` calls with the keys and values of a step's new tokens.

The tokens of all sequences of a step lie end to end in one row. Each brings its own part, writes it into its pages and
sees its own tokens up to itself. On CUDA flash attention reads pages through the block table (`varlen_attn`, torch
2.12). Elsewhere pages are gathered: sequences that bring one token (decode) in groups of about equal length, those that
bring more (prefill) one by one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.engine.kernels import Kernels, kernels
from puna.engine.pages import PagePool
from puna.model.features import has_paged_attention
from puna.model.llama import attend

CUDA_PAGE = 256
"""Flash attention 2 in torch wants page sizes that 256 divides (string in libtorch_cuda 2.13)."""
CPU_PAGE = 16
_MANY = 8  # sequences from which decode attends by batched products


def reads_pages(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention reads pages where they lie: CUDA, half precision, a torch that can."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and has_paged_attention()


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

    def __init__(self, pool: PagePool, spans: Sequence[Span]) -> None:
        self.pool, device = pool, pool.store.device
        size = pool.page_size
        slots = [span.block_table[p // size] * size + p % size for span in spans for p in range(span.start, span.end)]
        self._slots = torch.tensor(slots, device=device)  # where each new token goes
        self._paged: _Paged | None = None
        self._groups: list[_Group | _Rows] = []
        self.kernels = kernels() if device.type == "cpu" and pool.store.dtype == torch.bfloat16 else None
        if reads_pages(device, pool.store.dtype):
            self._paged = _Paged.build(spans, size, device)
        else:
            self._groups = _groups(spans, size, device, self.kernels)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store key and value (1, tokens, kv_heads, head_dim) and attend query (1, tokens, heads, head_dim)."""
        keys, values = self.pool.keys(layer), self.pool.values(layer)
        for pages, new in ((keys, key), (values, value)):
            pages.flatten(1, 2).index_copy_(1, self._slots, new[0].to(pages.dtype).transpose(0, 1))
        return self._see(query, keys, values)

    def turn_and_attend(self, layer: int, qkv: Tensor, angles: Tensor, heads: int) -> Tensor:
        """The same for queries, keys and values in one, not yet rotated, by the kernels: see Kernels.turn."""
        assert self.kernels is not None
        keys, values = self.pool.keys(layer), self.pool.values(layer)
        return self._see(self.kernels.turn(qkv[0], angles, self._slots, keys, values, heads)[None], keys, values)

    def _see(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if self._paged is not None:
            return self._paged.attend(query, keys, values)
        if len(self._groups) == 1:  # the whole step: nothing to put together
            return self._groups[0].attend(query[0], keys, values)[None]
        out = torch.empty_like(query)
        for group in self._groups:
            out[0, group.tokens] = group.attend(query[0, group.tokens], keys, values)
        return out


@dataclass(frozen=True)
class _Rows:
    """Sequences that bring one token each, for the kernel that reads pages where they lie."""

    kernels: Kernels
    tokens: Tensor  # which of the step's tokens
    tables: Tensor  # int64 (sequences, pages of the longest)
    lengths: Tensor  # int64 (sequences,)
    longest: int

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(tokens, heads, head_dim) of query (tokens, heads, head_dim) over its pages."""
        return self.kernels.attend(query.contiguous(), keys, values, self.tables, self.lengths, self.longest)


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


def _groups(
    spans: Sequence[Span], page_size: int, device: torch.device, kernels: Kernels | None
) -> list[_Group | _Rows]:
    groups: list[_Group | _Rows] = []
    decode: dict[int, list[tuple[int, Span]]] = defaultdict(list)
    for at, span in zip(accumulate((s.count for s in spans), initial=0), spans, strict=False):
        pages = -(-span.end // page_size)
        if span.count == 1:
            decode[_bucket(pages) if kernels is None else 0].append((at, span))
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
        if kernels is not None:
            tables = torch.tensor([_padded(span.block_table, pages) for _, span in rows])
            groups.append(_Rows(kernels, tokens, tables, torch.tensor(lengths), longest))
            continue
        # Many read whole pages: cutting what was gathered to length would copy it once more.
        looked_at = pages * page_size if len(rows) >= _MANY else longest
        visible = None
        if min(lengths) < looked_at:
            visible = torch.arange(looked_at, device=device) < torch.tensor(lengths, device=device)[:, None]
            visible = visible[:, None, None]
        padded = [_padded(span.block_table, pages) for _, span in rows]
        first = _in_a_row(padded[0]) if len(rows) == 1 else None
        tables = torch.tensor(padded, device=device)
        groups.append(_Group(tokens, tables, first, looked_at, visible, decodes=True))
    return groups


def _in_a_row(table: Sequence[int]) -> int | None:
    """The first of these pages when each of the others is its neighbour's: then they need not be copied."""
    return table[0] if all(b - a == 1 for a, b in pairwise(table)) else None


def _padded(block_table: Sequence[int], pages: int) -> list[int]:
    """A block table of that length. It is filled with a page of its own: nobody else's numbers are ever touched."""
    return [*block_table[:pages], *[block_table[0]] * (pages - len(block_table))]


def _bucket(pages: int) -> int:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, …: the least of these that is not below `pages`, so padding stays under a half."""
    power = 1 << (pages - 1).bit_length()
    return power * 3 // 4 if power >= 4 and pages <= power * 3 // 4 else power


@dataclass(frozen=True)
class _Paged:
    """What flash attention wants to know of a step to read pages where they lie."""

    cu_queries: Tensor  # int32 (sequences + 1,): where each sequence's queries begin
    cu_keys: Tensor  # int32 (sequences + 1,)
    used: Tensor  # int32 (sequences,): keys of each
    tables: Tensor  # int32 (sequences, pages)
    max_queries: int
    max_keys: int

    @classmethod
    def build(cls, spans: Sequence[Span], page_size: int, device: torch.device) -> "_Paged":
        pages = max(-(-span.end // page_size) for span in spans)

        def tensor(values: object) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        return cls(
            cu_queries=tensor([*accumulate((span.count for span in spans), initial=0)]),
            # Flash attention 2 asks for this beside `used`; version 3 infers it.
            cu_keys=tensor([*accumulate((span.end for span in spans), initial=0)]),
            used=tensor([span.end for span in spans]),
            tables=tensor([_padded(span.block_table, pages) for span in spans]),
            max_queries=max(span.count for span in spans),
            max_keys=pages * page_size,
        )

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(
            query[0],
            keys.permute(1, 2, 0, 3),  # (pages, page_size, kv_heads, head_dim); only the last must be dense
            values.permute(1, 2, 0, 3),
            self.cu_queries,
            self.cu_keys,
            self.max_queries,
            self.max_keys,
            window_size=(-1, 0),  # any distance back, none ahead
            enable_gqa=True,
            seqused_k=self.used,
            block_table=self.tables,
            # Chosen by the kernel it gives NaN now and then (pytorch/torchtitan#3235), and it depends on batch mates.
            num_splits=1,
        )
        return out.view_as(query)  # type: ignore[union-attr]
