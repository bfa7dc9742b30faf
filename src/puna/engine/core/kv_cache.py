"""The paged KV cache: fixed-size blocks of tokens, shared between sequences with a common prefix.

A sequence holds a list of blocks, its block table; block i stores its tokens from i * block_size on. Blocks are
reference-counted: several sequences may read one. A block with known content is indexed by a digest of its tokens and
of all tokens before them. It stays indexed after its last holder has released it, until its space is needed; the least
recently used block is evicted first. A later prompt with the same prefix takes these blocks instead of computing them.
A hit compares the tokens themselves, and weights of different versions never share a digest. This is vLLM's
hash-chained prefix cache, plus SGLang's reuse of a partly matching block by copying it.

At every moment free + cached + held blocks add up to the whole pool: `check` verifies it or raises.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice

import torch
from torch import Tensor

from puna.engine.device_copy import to_device
from puna.model.config import ModelConfig

_MAX_COMPARED = 64  # newest successors of a block that are compared token by token


@dataclass(frozen=True)
class CachedBlock:
    """The known content of a block, from its first slot on. tokens: a whole block or fewer."""

    digest: bytes
    parent: bytes  # digest of the block before it
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class CachedPrefix:
    """Blocks found for the beginning of a prompt, already held for the caller."""

    blocks: list[int]
    digests: list[bytes]  # of the full blocks among them
    tokens: int  # how many of the prompt's first tokens they hold


class BlockPool:
    """All blocks of one model on one device: their holders, and the index of their content."""

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.null_block = num_blocks
        """One extra block that is never allocated: padding in block tables points to it."""
        # Heads come first, so that the gathered keys of one head are contiguous, as batched products need them.
        shape = (config.num_key_value_heads, num_blocks + 1, block_size, config.head_dim)
        # Not zeroed here: the system maps memory when it is written, so an idle pool costs nothing. See `allocate`.
        self.store = torch.empty(config.num_hidden_layers, 2, *shape, device=device, dtype=dtype)
        self.store[:, :, :, self.null_block] = 0
        self.zero_on_allocate = True
        """Whether blocks are zeroed when they are allocated; off for kernels that never read unwritten slots."""
        self.ref_counts = [0] * num_blocks
        self._free = list(range(num_blocks))  # a heap: the lowest come first, so a sequence's blocks are often adjacent
        self._evictable: OrderedDict[int, None] = OrderedDict()  # cached and not held, least recently used first
        self._cached: dict[int, CachedBlock] = {}
        self._by_digest: dict[bytes, int] = {}
        self._successors: dict[bytes, dict[int, None]] = {}
        self.root = b""
        self.reset_prefix_cache(version=0)

    @property
    def available(self) -> int:
        """Number of blocks that can be allocated now."""
        return len(self._free) + len(self._evictable)

    def keys(self, layer: int) -> Tensor:
        """(kv_heads, num_blocks + 1, block_size, head_dim)."""
        return self.store[layer, 0]

    def values(self, layer: int) -> Tensor:
        """(kv_heads, num_blocks + 1, block_size, head_dim)."""
        return self.store[layer, 1]

    def blocks_for(self, tokens: int) -> int:
        """Number of blocks that so many tokens take."""
        return -(-tokens // self.block_size)

    # -- allocation --------------------------------------------------------------------------------------------------

    def allocate(self, count: int) -> list[int] | None:
        """Allocate `count` blocks, evicting cached ones as needed; None, and no change, if there are too few.

        They are zeroed if `zero_on_allocate` is set: attention gives masked slots the weight 0, but 0 times a NaN left
        there by a faulty request would still be NaN.
        """
        if count > self.available:
            return None
        blocks = []
        for _ in range(count):
            if not self._free:
                block, _ = self._evictable.popitem(last=False)
                self._uncache(block)
                heappush(self._free, block)
            blocks.append(heappop(self._free))
            self.ref_counts[blocks[-1]] = 1
        if blocks and self.zero_on_allocate:
            self.store.index_fill_(3, to_device(blocks, self.store.device), 0)
        return blocks

    def retain(self, blocks: Sequence[int]) -> None:
        """Add one reference to each block."""
        for block in blocks:
            self.ref_counts[block] += 1
            self._evictable.pop(block, None)

    def release(self, blocks: Sequence[int], *, uncache: bool = False) -> None:
        """Drop one reference to each block. Cached ones can still be matched until evicted, unless `uncache`.

        A sequence's last block becomes the first to be evicted: a prefix is more useful than an end.
        """
        for block in reversed(blocks):
            self.ref_counts[block] -= 1
            if self.ref_counts[block]:
                continue
            if uncache:
                self._uncache(block)
            if block in self._cached:
                self._evictable[block] = None
            else:
                heappush(self._free, block)

    def copy(self, block: int) -> int | None:
        """Allocate a copy of a block's keys and values in all layers; None if there is no space."""
        self.retain([block])  # or it might be evicted itself to make space
        blocks = self.allocate(1)
        if blocks is not None:
            self.store[:, :, :, blocks[0]] = self.store[:, :, :, block]
        self.release([block])
        return blocks[0] if blocks is not None else None

    # -- prefix cache ------------------------------------------------------------------------------------------------

    def cache_block(self, block: int, parent: bytes, tokens: Sequence[int]) -> bytes:
        """Index a held block by its content, unless another block has the same; returns the digest of both."""
        digest = _digest(parent, tokens)
        if digest not in self._by_digest:
            self._uncache(block)
            self._cached[block] = CachedBlock(digest, parent, tuple(tokens))
            self._by_digest[digest] = block
            self._successors.setdefault(parent, {})[block] = None
        return digest

    def match_prefix(self, tokens: Sequence[int]) -> CachedPrefix:
        """Find and hold the blocks of the longest cached prefix of `tokens`.

        The last one may match only in part: it is then a copy, which the caller may write to.
        """
        size, blocks, digests, parent = self.block_size, [], [], self.root
        for start in range(0, len(tokens) - size + 1, size):
            part = tuple(tokens[start : start + size])
            block = self._by_digest.get(_digest(parent, part))
            cached = self._cached[block] if block is not None else None
            if block is None or cached is None or cached.tokens != part or cached.parent != parent:
                break
            self.retain([block])
            blocks.append(block)
            digests.append(cached.digest)
            parent = cached.digest
        matched = len(blocks) * size
        common, source = self._partial_match(parent, tokens[matched : matched + size])
        if source is not None and (copied := self.copy(source)) is not None:
            blocks.append(copied)
            matched += common
        return CachedPrefix(blocks, digests, matched)

    def reset_prefix_cache(self, version: int) -> None:
        """Forget the content of all blocks; from now on digests belong to weights of this version."""
        for block in list(self._cached):
            self._uncache(block)
        for block in self._evictable:
            heappush(self._free, block)
        self._evictable.clear()
        self.root = _digest(b"weights", [version])

    def reset(self) -> None:
        """Free all blocks, whoever holds them, and forget their content, in whatever state the pool is."""
        self.ref_counts = [0] * self.num_blocks
        self._free = list(range(self.num_blocks))
        for index in (self._evictable, self._cached, self._by_digest, self._successors):
            index.clear()

    def check(self) -> None:
        """Raise RuntimeError unless each block is exactly one of free, cached and held, and the index is consistent."""
        held = {block for block, count in enumerate(self.ref_counts) if count}
        free, evictable = set(self._free), set(self._evictable)
        wrong = [
            name
            for name, holds in {
                "a block is in two places or in none": len(self._free) + len(evictable) + len(held) == self.num_blocks
                and free | evictable | held == set(range(self.num_blocks)),
                "a reference count is negative": min(self.ref_counts) >= 0,
                "a free block is cached": not free & self._cached.keys(),
                "an evictable block is not cached": evictable <= self._cached.keys(),
                "digests and blocks disagree": {c.digest: b for b, c in self._cached.items()} == self._by_digest,
                "parents and successors disagree": {(c.parent, b) for b, c in self._cached.items()}
                == {(parent, b) for parent, blocks in self._successors.items() for b in blocks},
            }.items()
            if not holds
        ]
        if wrong:
            raise RuntimeError(f"The block pool is inconsistent: {'; '.join(wrong)}.")

    def counts(self) -> dict[str, int]:
        """Number of free, cached and held blocks."""
        free, cached = len(self._free), len(self._evictable)
        return {"free": free, "cached": cached, "held": self.num_blocks - free - cached}

    def _partial_match(self, parent: bytes, wanted: Sequence[int]) -> tuple[int, int | None]:
        """(common tokens, block) of the cached block after `parent` that shares the longest prefix with `wanted`."""
        best: tuple[int, int | None] = (0, None)
        for block in islice(reversed(self._successors.get(parent, {})), _MAX_COMPARED):
            common = 0
            for cached, token in zip(self._cached[block].tokens, wanted, strict=False):
                if cached != token:
                    break
                common += 1
            if common > best[0]:
                best = (common, block)
        return best

    def _uncache(self, block: int) -> None:
        cached = self._cached.pop(block, None)
        if cached is None:
            return
        del self._by_digest[cached.digest]
        siblings = self._successors[cached.parent]
        del siblings[block]
        if not siblings:
            del self._successors[cached.parent]


def _digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()
