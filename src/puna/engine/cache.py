"""A plain key-value cache: one padded tensor of keys and one of values per layer.

Rows hold sequences of unequal length, each from column 0 on. A row's new tokens are written where its own end is, over
whatever padding an earlier step left there, and the mask hides all columns beyond it. So a row computes what it would
alone, and prompts of unequal length need no mask at all in the first step: there causality hides the padding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_GROWTH = 256  # columns added at a time, at least: one copy of the cache per 256 tokens


class KVCache:
    """Keys and values of `rows` sequences, growing as they do. Meets `puna.model.llama.Cache`."""

    def __init__(self, rows: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.lengths = [0] * rows  # tokens of each row
        self.mask: Tensor | None = None
        self.positions = torch.empty(0)
        self._store: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> (rows, capacity, kv_heads, head_dim) twice
        self._first = True  # every row was empty: nothing to read back
        self._end = 0

    def extend(self, counts: Sequence[int]) -> Tensor:
        """Announce that the next forward brings `counts[i]` tokens for row i, padded on the right to the largest count.

        Returns their positions (rows, seq) and sets the mask of that forward.
        """
        seq = max(counts)
        start = torch.tensor(self.lengths, device=self.device)
        self.positions = start[:, None] + torch.arange(seq, device=self.device)
        self._first = not any(self.lengths)
        self._end = max(self.lengths) + seq
        equal = len(set(self.lengths)) == 1
        if self._first or (seq == 1 and equal):
            self.mask = None
        else:
            columns = torch.arange(self._end, device=self.device)
            self.mask = (columns <= self.positions[:, :, None])[:, None]  # (rows, 1, seq, end)
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        return self.positions

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write (rows, seq, kv_heads, head_dim) at the announced positions; return all columns in use, both times."""
        keys, values = self._room(layer, key)
        if self._first:
            keys[:, : self._end], values[:, : self._end] = key, value
            return key, value
        rows = torch.arange(len(self.lengths), device=self.device)[:, None]
        keys[rows, self.positions], values[rows, self.positions] = key, value
        return keys[:, : self._end], values[:, : self._end]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, in this order."""
        index = torch.tensor(rows, device=self.device)
        self.lengths = [self.lengths[row] for row in rows]
        self._store = {
            layer: (keys.index_select(0, index), values.index_select(0, index))
            for layer, (keys, values) in self._store.items()
        }

    def _room(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's tensors, with room for all announced columns. New columns are zero: a hidden NaN would show."""
        old = self._store.get(layer)
        capacity = old[0].shape[1] if old else 0
        if old and self._end <= capacity:
            return old
        grown = max(self._end, capacity + _GROWTH)
        pair = []
        for tensor in old or (like[:, :0], like[:, :0]):
            wide = tensor.new_zeros(len(self.lengths), grown, *like.shape[2:])
            wide[:, :capacity] = tensor
            pair.append(wide)
        self._store[layer] = (pair[0], pair[1])
        return self._store[layer]
