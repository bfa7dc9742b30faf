"""The paged key-value cache: fixed pages of tokens, shared between sequences that begin alike.

A sequence holds a list of pages, its block table; page i has its tokens i * page_size and on. Pages are counted
references: several sequences may read one. A page whose keys are known is entered under a digest of its tokens and of
all before them, and it stays so after its last holder has gone, until its room is wanted: the least recently used goes
first. A later prompt that begins alike takes such pages instead of computing them. A hit compares the tokens
themselves, and weights of another version never share a digest (vLLM's hash-chained prefix cache, with SGLang's reuse
within a page by copying it).

At every moment free + cached + held pages are all there are: `check` says so or raises.
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

from puna.engine.transfer import to_device
from puna.model.config import ModelConfig

_SCAN = 64  # newest continuations of a page that are compared token by token


@dataclass(frozen=True)
class CachedPage:
    """What a page holds from its first slot on. tokens: as many as are known, a whole page or less."""

    digest: bytes
    parent: bytes  # digest of the page before it
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Prefix:
    """Pages found for the beginning of a prompt, already held for the caller."""

    pages: list[int]
    digests: list[bytes]  # of the whole pages among them
    tokens: int  # how many tokens they hold that the prompt begins with


class PagePool:
    """All pages of one model on one device, who holds them, and which of them are known by what they hold."""

    def __init__(
        self, config: ModelConfig, pages: int, page_size: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.pages, self.page_size = pages, page_size
        self.spare = pages
        """One page more, which nobody is ever given: what fills a row up points there."""
        # Heads outside, so that what a sequence has gathered of one head lies in a row, as batched products want it.
        shape = (config.num_key_value_heads, pages + 1, page_size, config.head_dim)
        # Not filled here: a system gives memory to what is written, so an idle pool costs nothing. See `take`.
        self.store = torch.empty(config.num_hidden_layers, 2, *shape, device=device, dtype=dtype)
        self.store[:, :, :, self.spare] = 0
        self.clears = True
        """Whether pages are zero when they are taken; without it for who never looks at what it has not written."""
        self.references = [0] * pages
        self._free = list(range(pages))  # a heap: the first come out first, so a sequence's pages mostly lie in a row
        self._cached: OrderedDict[int, None] = OrderedDict()  # known, held by nobody, least recently used first
        self._known: dict[int, CachedPage] = {}
        self._by_digest: dict[bytes, int] = {}
        self._children: dict[bytes, dict[int, None]] = {}
        self.root = b""
        self.drop_cache(version=0)

    @property
    def available(self) -> int:
        """Pages that can be had now."""
        return len(self._free) + len(self._cached)

    def keys(self, layer: int) -> Tensor:
        """(kv_heads, pages + 1, page_size, head_dim)."""
        return self.store[layer, 0]

    def values(self, layer: int) -> Tensor:
        """(kv_heads, pages + 1, page_size, head_dim)."""
        return self.store[layer, 1]

    def pages_for(self, tokens: int) -> int:
        """How many pages that many tokens take."""
        return -(-tokens // self.page_size)

    # -- holding -----------------------------------------------------------------------------------------------------

    def take(self, count: int) -> list[int] | None:
        """Hold `count` pages nobody else holds, evicting cached ones where needed; None, and no change, if too few.

        They are zero where `clears` says so: attention gives hidden slots the weight 0, and 0 times what a faulty
        request left there (NaN) would still be NaN.
        """
        if count > self.available:
            return None
        taken = []
        for _ in range(count):
            if not self._free:
                page, _ = self._cached.popitem(last=False)
                self._forget(page)
                heappush(self._free, page)
            taken.append(heappop(self._free))
            self.references[taken[-1]] = 1
        if taken and self.clears:
            self.store.index_fill_(3, to_device(taken, self.store.device), 0)
        return taken

    def retain(self, pages: Sequence[int]) -> None:
        """Hold pages once more."""
        for page in pages:
            self.references[page] += 1
            self._cached.pop(page, None)

    def release(self, pages: Sequence[int], *, forget: bool = False) -> None:
        """Let pages go. Known ones stay findable until their room is wanted, unless `forget`.

        The last of a sequence becomes the oldest: a beginning is of more use than an end.
        """
        for page in reversed(pages):
            self.references[page] -= 1
            if self.references[page]:
                continue
            if forget:
                self._forget(page)
            if page in self._known:
                self._cached[page] = None
            else:
                heappush(self._free, page)

    def copy(self, page: int) -> int | None:
        """A held copy of a page's keys and values in all layers; None if there is no room for one."""
        self.retain([page])  # or it might itself be evicted to make room
        taken = self.take(1)
        if taken is not None:
            self.store[:, :, :, taken[0]] = self.store[:, :, :, page]
        self.release([page])
        return taken[0] if taken is not None else None

    # -- finding -----------------------------------------------------------------------------------------------------

    def register(self, page: int, parent: bytes, tokens: Sequence[int]) -> bytes:
        """Enter a held page under what it holds, unless another page has the same; returns the digest for both."""
        digest = _digest(parent, tokens)
        if digest not in self._by_digest:
            self._forget(page)
            self._known[page] = CachedPage(digest, parent, tuple(tokens))
            self._by_digest[digest] = page
            self._children.setdefault(parent, {})[page] = None
        return digest

    def match(self, tokens: Sequence[int]) -> Prefix:
        """Hold the pages that hold the longest known beginning of `tokens`.

        The last one may agree only in part: it is then a copy, which the caller may go on writing.
        """
        size, pages, digests, parent = self.page_size, [], [], self.root
        for start in range(0, len(tokens) - size + 1, size):
            part = tuple(tokens[start : start + size])
            page = self._by_digest.get(_digest(parent, part))
            known = self._known[page] if page is not None else None
            if page is None or known is None or known.tokens != part or known.parent != parent:
                break
            self.retain([page])
            pages.append(page)
            digests.append(known.digest)
            parent = known.digest
        done = len(pages) * size
        common, source = self._continuation(parent, tokens[done : done + size])
        if source is not None and (copied := self.copy(source)) is not None:
            pages.append(copied)
            done += common
        return Prefix(pages, digests, done)

    def drop_cache(self, version: int) -> None:
        """Forget what all pages hold; from now on digests belong to weights of this version."""
        for page in list(self._known):
            self._forget(page)
        for page in self._cached:
            heappush(self._free, page)
        self._cached.clear()
        self.root = _digest(b"weights", [version])

    def reset(self) -> None:
        """Take all pages from whoever holds them and forget what they hold, in whatever state they are."""
        self.references = [0] * self.pages
        self._free = list(range(self.pages))
        for known in (self._cached, self._known, self._by_digest, self._children):
            known.clear()

    def check(self) -> None:
        """Raise RuntimeError unless every page is exactly one of free, cached and held, and every entry is whole."""
        held = {page for page, count in enumerate(self.references) if count}
        free, cached = set(self._free), set(self._cached)
        wrong = [
            name
            for name, holds in {
                "a page is in two places or in none": len(self._free) + len(cached) + len(held) == self.pages
                and free | cached | held == set(range(self.pages)),
                "a count is negative": min(self.references) >= 0,
                "a free page is known": not free & self._known.keys(),
                "a cached page is not known": cached <= self._known.keys(),
                "digests and pages disagree": {e.digest: p for p, e in self._known.items()} == self._by_digest,
                "parents and children disagree": {(e.parent, p) for p, e in self._known.items()}
                == {(parent, p) for parent, pages in self._children.items() for p in pages},
            }.items()
            if not holds
        ]
        if wrong:
            raise RuntimeError(f"The page pool is inconsistent: {'; '.join(wrong)}.")

    def counts(self) -> dict[str, int]:
        """Pages free, cached and held."""
        free, cached = len(self._free), len(self._cached)
        return {"free": free, "cached": cached, "held": self.pages - free - cached}

    def _continuation(self, parent: bytes, wanted: Sequence[int]) -> tuple[int, int | None]:
        """(tokens in common, page) of the known page after `parent` that agrees longest with the tokens wanted."""
        best: tuple[int, int | None] = (0, None)
        for page in islice(reversed(self._children.get(parent, {})), _SCAN):
            common = 0
            for known, token in zip(self._known[page].tokens, wanted, strict=False):
                if known != token:
                    break
                common += 1
            if common > best[0]:
                best = (common, page)
        return best

    def _forget(self, page: int) -> None:
        known = self._known.pop(page, None)
        if known is None:
            return
        del self._by_digest[known.digest]
        siblings = self._children[known.parent]
        del siblings[page]
        if not siblings:
            del self._children[known.parent]


def _digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()
