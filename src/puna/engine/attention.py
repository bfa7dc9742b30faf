"""Attention over pages: what `model.llama` calls with the keys and values of a step's new tokens.

The tokens of all sequences of a step lie end to end in one row. Each brings its own part, writes it into its pages and
sees its own tokens up to itself. On CUDA flash attention reads pages through the block table (`varlen_attn`, torch
2.12). Elsewhere pages are gathered: sequences that bring one token (decode) in groups of about equal length, those that
bring more (prefill) one by one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from puna.engine.pages import PagePool
from puna.model.features import has_paged_attention
from puna.model.llama import attend

CUDA_PAGE = 256
"""Flash attention 2 in torch wants page sizes that 256 divides (string in libtorch_cuda 2.13)."""
CPU_PAGE = 16


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
        self._groups: list[_Group] = []
        if reads_pages(device, pool.store.dtype):
            self._paged = _Paged.build(spans, size, device)
        else:
            self._groups = _groups(spans, size, device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store key and value (1, tokens, kv_heads, head_dim) and attend query (1, tokens, heads, head_dim)."""
        keys, values = self.pool.keys(layer), self.pool.values(layer)
        keys.flatten(0, 1).index_copy_(0, self._slots, key[0].to(keys.dtype))
        values.flatten(0, 1).index_copy_(0, self._slots, value[0].to(values.dtype))
        if self._paged is not None:
            return self._paged.attend(query, keys, values)
        out = torch.empty_like(query)
        for group in self._groups:
            seen, held = (_gather(pages, group).to(query.dtype) for pages in (keys, values))
            asking = query[0, group.tokens].unflatten(0, (len(group.tables), -1))
            part = attend(asking, seen, held, visible=group.visible)
            out[0, group.tokens] = part.flatten(0, 1)
        return out


@dataclass(frozen=True)
class _Group:
    """Sequences that attend in one call."""

    tokens: Tensor | slice  # which of the step's tokens
    tables: Tensor  # (sequences, pages)
    length: int  # keys of the longest
    visible: Tensor | None  # bool, broadcasts to (sequences, 1, seq, length); None: all keys, or causal


def _gather(pages: Tensor, group: _Group) -> Tensor:
    """(sequences, length, kv_heads, head_dim) of a group's sequences, as far as the longest goes."""
    # Copies whole pages; indexing with the table takes five times as long (32 x 160 tokens, torch 2.13, CPU, 2026-11).
    rows = pages.index_select(0, group.tables.flatten()).view(len(group.tables), -1, *pages.shape[2:])
    return rows[:, : group.length]


def _groups(spans: Sequence[Span], page_size: int, device: torch.device) -> list[_Group]:
    groups = []
    decode: dict[int, list[tuple[int, Span]]] = defaultdict(list)
    for at, span in zip(accumulate((s.count for s in spans), initial=0), spans, strict=False):
        pages = -(-span.end // page_size)
        if span.count == 1:
            decode[_bucket(pages)].append((at, span))
            continue
        visible = None
        if span.start:
            keys = torch.arange(span.end, device=device)
            visible = (keys <= torch.arange(span.start, span.end, device=device)[:, None])[None, None]
        table = torch.tensor([span.block_table[:pages]], device=device)
        groups.append(_Group(slice(at, at + span.count), table, span.end, visible))
    for rows in decode.values():
        lengths = [span.end for _, span in rows]
        longest = max(lengths)
        pages = -(-longest // page_size)
        visible = None
        if min(lengths) < longest:
            visible = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
            visible = visible[:, None, None]
        tables = torch.tensor([_padded(span.block_table, pages) for _, span in rows], device=device)
        tokens = torch.tensor([at for at, _ in rows], device=device)
        groups.append(_Group(tokens, tables, longest, visible))
    return groups


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
            keys,
            values,
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
