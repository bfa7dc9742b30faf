"""The block pool: no leaks, no false hits, and blocks in use never change."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from puna.engine.core.kv_cache import BlockPool
from puna.model.config import ModelConfig

CONFIG = ModelConfig(preset="nano")
SIZE = 4
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=14)  # only two tokens, so that prefixes coincide


def make(blocks: int) -> BlockPool:
    return BlockPool(CONFIG, blocks, SIZE, device="cpu", dtype=torch.float32)


def write(pool: BlockPool, blocks: Sequence[int], tokens: Sequence[int], start: int = 0) -> None:
    """Stand in for a forward: each slot stores a number that encodes the tokens before it, as keys and values do."""
    for at in range(start, len(tokens)):
        value = hash(tuple(tokens[: at + 1])) % 65_521
        pool.store[:, :, :, blocks[at // SIZE], at % SIZE] = float(value)


def read(pool: BlockPool, blocks: Sequence[int], count: int) -> list[int]:
    return [int(pool.store[0, 0, 0, blocks[at // SIZE], at % SIZE, 0]) for at in range(count)]


class Pool(RuleBasedStateMachine):
    """Sequences arrive, use what is cached of them, write the rest, and leave, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = make(9)
        self.held: list[tuple[list[int], list[int]]] = []  # tokens, blocks

    @rule(tokens=TOKENS)
    def come(self, tokens: list[int]) -> None:
        found = self.pool.match_prefix(tokens)
        assert found.tokens <= len(tokens)
        expected = [hash(tuple(tokens[: at + 1])) % 65_521 for at in range(found.tokens)]
        assert read(self.pool, found.blocks, found.tokens) == expected, "a hit contains the values of these tokens"
        rest = self.pool.allocate(self.pool.blocks_for(len(tokens)) - len(found.blocks))
        if rest is None:
            self.pool.release(found.blocks)
            return
        assert not self.pool.store[:, :, :, rest].any(), "new blocks are zero"
        blocks = found.blocks + rest
        write(self.pool, blocks, tokens, found.tokens)
        digests, parent = list(found.digests), self.pool.root
        for block in range(self.pool.blocks_for(len(tokens))):
            parent = digests[-1] if digests else self.pool.root
            if block >= len(digests):
                digests.append(self.pool.cache_block(blocks[block], parent, tokens[block * SIZE : (block + 1) * SIZE]))
        self.held.append((tokens, blocks))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 100), forget=st.booleans())
    def go(self, which: int, forget: bool) -> None:
        _, blocks = self.held.pop(which % len(self.held))
        self.pool.release(blocks, uncache=forget)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 100))
    def share(self, which: int) -> None:
        tokens, blocks = self.held[which % len(self.held)]
        self.pool.retain(blocks)
        self.held.append((tokens, list(blocks)))

    @rule()
    def new_weights(self) -> None:
        self.pool.reset_prefix_cache(version=1)
        self.held, held = [], self.held
        for _, blocks in held:
            self.pool.release(blocks)
        assert self.pool.match_prefix([0] * 8).tokens == 0

    @invariant()
    def sound(self) -> None:
        self.pool.check()
        assert self.pool.counts()["held"] == len({block for _, blocks in self.held for block in blocks})
        for tokens, blocks in self.held:
            expected = [hash(tuple(tokens[: at + 1])) % 65_521 for at in range(len(tokens))]
            assert read(self.pool, blocks, len(tokens)) == expected, "held blocks never change"


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def entered(pool: BlockPool, tokens: list[int]) -> list[int]:
    taken = pool.allocate(pool.blocks_for(len(tokens)))
    assert taken is not None
    write(pool, taken, tokens)
    parent = pool.root
    for block, at in enumerate(range(0, len(tokens), SIZE)):
        parent = pool.cache_block(taken[block], parent, tokens[at : at + SIZE])
    return taken


def test_a_longer_prompt_takes_whole_pages_and_a_copy_of_the_last() -> None:
    pool = make(8)
    first = entered(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    pool.release(first)
    found = pool.match_prefix([1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12])
    assert found.tokens == 9
    assert found.blocks[:2] == first[:2]
    assert found.blocks[2] not in first, "a block that is written to is a copy"


def test_a_hit_compares_tokens_not_only_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.engine.core.kv_cache._digest", lambda parent, tokens: b"always the same")
    pool = make(8)
    pool.reset_prefix_cache(0)
    pool.release(entered(pool, [1, 2, 3, 4]))
    assert pool.match_prefix([4, 3, 2, 1, 5]).tokens == 0


def test_the_least_recently_used_goes_first_and_ends_before_beginnings() -> None:
    pool = make(4)
    old, new = entered(pool, [1] * 8), entered(pool, [2] * 8)
    pool.release(old)
    pool.release(new)
    pool.release(pool.match_prefix([1] * 8).blocks)  # used again
    taken = pool.allocate(3)
    assert taken is not None
    assert set(taken) == {*new, old[1]}
    assert pool.match_prefix([1] * 8).tokens == 4


def test_too_much_is_not_given_and_nothing_is_lost() -> None:
    pool = make(3)
    assert pool.allocate(4) is None
    held = pool.allocate(2)
    assert held is not None
    assert pool.allocate(2) is None
    assert pool.copy(held[0]) is not None
    assert pool.copy(held[0]) is None
    pool.check()


def test_a_lost_page_is_noticed() -> None:
    pool = make(3)
    pool.allocate(1)
    pool.ref_counts[pool.ref_counts.index(1)] = 0
    with pytest.raises(RuntimeError, match="in two places or in none"):
        pool.check()
