"""The scheduler: decides which tokens of which sequences the next step computes.

A step has a token budget. Sequences that are decoding get one token each first, so that no reader waits for somebody
else's long prompt; the rest of the budget goes to prompts, in chunks that fit (chunked prefill, arXiv 2308.16369). A
waiting sequence is admitted when there are blocks for all its tokens. When a sequence grows and no block is left, the
newest running one is preempted: it gives up its blocks and waits to be computed again. As no request is accepted that
would not fit alone, the oldest sequence always makes progress.

Both lists are kept in order of arrival. Nothing here touches tensors.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from puna.engine.core.kv_cache import BlockPool
from puna.engine.request import DeadlineError, Request, TokenSequence


@dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence that one step computes: positions start to start + count."""

    sequence: TokenSequence
    start: int
    count: int
    ahead: bool = False
    """Its one token has been sampled but is known only on the device."""

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def complete(self) -> bool:
        """Whether the next token can be sampled after it."""
        return self.ahead or self.end == len(self.sequence.ids)

    @property
    def prompt_rows(self) -> range:
        """Positions whose logits give the next prompt token's log probability, if that was requested."""
        request = self.sequence.request
        if not request.needs_prompt_logits:
            return range(0)
        return range(max(self.start, request.first_needed), min(self.end, len(request.prompt) - 1))

    @property
    def rows(self) -> list[int]:
        """Positions whose logits are needed."""
        return [*self.prompt_rows, *([self.end - 1] if self.complete else [])]


class Scheduler:
    """The open requests and the blocks they hold."""

    def __init__(self, pool: BlockPool, *, max_batch: int, step_tokens: int, prefix_cache: bool = True) -> None:
        self.pool, self.max_batch, self.prefix_cache = pool, max_batch, prefix_cache
        self.step_tokens = max(step_tokens, max_batch)  # or a prompt might never get a turn
        self.running: list[TokenSequence] = []
        self.waiting: list[TokenSequence] = []
        self.preemptions = 0
        self._requests: dict[Request, None] = {}

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        """Put a request into the waiting list. It must fit into the pool alone."""
        self._requests[request] = None
        insort(self.waiting, request.sequences[0], key=_order)

    def requests(self) -> list[Request]:
        """All open requests."""
        return list(self._requests)

    def recompute_all(self, version: int) -> None:
        """Discard all keys and values when weights change to this version; open sequences are computed again."""
        for sequence in list(self.running):
            self.preempt(sequence)
        self.pool.reset_prefix_cache(version)

    def recover(self) -> None:
        """Restart all sequences after a step was interrupted at any point; no block's content is trusted."""
        self.pool.reset()
        self.running, self.waiting = [], []
        for request in self.requests():
            unfinished = [sequence for sequence in request.sequences if sequence.finish_reason is None]
            if not unfinished:
                self._close(request)
            for sequence in unfinished:
                sequence.block_table, sequence.digests, sequence.computed = [], [], 0
            self.waiting += unfinished if request.forked else unfinished[:1]
        self.waiting.sort(key=_order)

    # -- before a step -----------------------------------------------------------------------------------------------

    def abort_expired(self, now: float) -> None:
        """Abort requests that were cancelled or whose deadline has passed."""
        for request in self.requests():
            if request.cancelled:
                self.abort(request)
            elif request.deadline is not None and now >= request.deadline:
                made = sum(len(sequence.output_ids) for sequence in request.sequences)
                message = f"The deadline passed after {made:,} tokens."
                self.abort(request, DeadlineError(message, "Give it more time, or ask for fewer tokens."))

    def schedule(self) -> list[Chunk]:
        """Choose the next step's chunks; each has blocks of its own to write to. Empty: nothing to do."""
        chunks: list[Chunk] = []
        preemptions = self.preemptions
        at = 0
        while at < len(self.running):  # only later ones can be preempted meanwhile
            sequence = self.running[at]
            if sequence.uncomputed == 1 and self._ensure_block(sequence):
                chunks.append(Chunk(sequence, sequence.computed, 1))
            at += 1
        budget = self.step_tokens - len(chunks)
        for sequence in self.running:
            if sequence.uncomputed > 1 and budget:
                chunks.append(Chunk(sequence, sequence.computed, min(sequence.uncomputed, budget)))
                budget -= chunks[-1].count
        # A sequence that has just been preempted would take its blocks back at once.
        while self.waiting and budget and len(self.running) < self.max_batch and preemptions == self.preemptions:
            sequence = self.waiting[0]
            if not self._admit(sequence):
                break
            chunks.append(Chunk(sequence, sequence.computed, min(sequence.uncomputed, budget)))
            budget -= chunks[-1].count
        return chunks

    def schedule_ahead(self, sequences: Sequence[TokenSequence]) -> list[Chunk]:
        """Choose the step after one that samples a token for each of these, before that token is known.

        Empty if it takes more than decoding on: a waiting sequence could join, a prompt is to be computed, or there is
        no exclusive block to write to. A sequence that reaches its limit with that token is left out.
        """
        if self.waiting and len(self.running) < self.max_batch:
            return []
        sampled = set(sequences)
        if not all(sequence in sampled for sequence in self.running):
            return []
        chunks = []
        for sequence in self.running:
            if len(sequence.output_ids) + 1 < sequence.limit:
                if not self._ensure_exclusive_block(sequence, len(sequence.ids)):
                    return []
                chunks.append(Chunk(sequence, len(sequence.ids), 1, ahead=True))
        return chunks

    def _admit(self, sequence: TokenSequence) -> bool:
        """Move the first waiting sequence to the running ones; False if there are no blocks for all its tokens."""
        # Keep one block for each running sequence: otherwise their growth would preempt this one again.
        headroom = len(self.running)
        if self.pool.available <= headroom:
            return False
        tokens, request = len(sequence.ids), sequence.request
        prefix = None
        if self.prefix_cache:
            # Positions whose logits are needed are computed, always including the last one.
            reusable = min(request.first_needed, tokens - 1) if request.needs_prompt_logits else tokens - 1
            prefix = self.pool.match_prefix(sequence.ids[:reusable])
        cached = prefix.blocks if prefix else []
        needed = self.pool.blocks_for(tokens) - len(cached)
        new = self.pool.allocate(needed) if needed + headroom <= self.pool.available else None
        if new is None:
            self.pool.release(cached)
            return False
        sequence.block_table = cached + new
        sequence.digests = prefix.digests if prefix else []
        sequence.computed = prefix.tokens if prefix else 0
        if tokens == len(request.prompt):
            request.cached_tokens = sequence.computed
        insort(self.running, self.waiting.pop(0), key=_order)
        return True

    def _ensure_block(self, sequence: TokenSequence) -> bool:
        """Get an exclusive block for the next token by preempting newer sequences; False if it was the newest."""
        while not self._ensure_exclusive_block(sequence, sequence.computed):
            newest = self.running[-1]
            self.preempt(newest)
            if newest is sequence:
                return False
        return True

    def _ensure_exclusive_block(self, sequence: TokenSequence, position: int) -> bool:
        """Get a block for the token at a position that only this sequence holds; False if no block is left."""
        table, at = sequence.block_table, position // self.pool.block_size
        if at == len(table):
            new = self.pool.allocate(1)
            table += new or []
            return new is not None
        if self.pool.ref_counts[table[at]] == 1:
            return True
        # Shared with other sequences of the same prompt: copy on write.
        copy = self.pool.copy(table[at])
        if copy is None:
            return False
        self.pool.release([table[at]])
        table[at] = copy
        return True

    def preempt(self, sequence: TokenSequence) -> None:
        """Release a running sequence's blocks and let it wait to be computed again."""
        self.running.remove(sequence)
        self._release(sequence)
        insort(self.waiting, sequence, key=_order)
        self.preemptions += 1

    # -- after a step ------------------------------------------------------------------------------------------------

    def mark_computed(self, chunk: Chunk) -> None:
        """Note that the chunk is in the KV cache, and add the blocks it filled to the prefix cache."""
        sequence, size = chunk.sequence, self.pool.block_size
        sequence.computed = chunk.end
        if not self.prefix_cache:
            return
        for block in range(len(sequence.digests), chunk.end // size):
            self._cache_block(sequence, block, size)

    def fork(self, leader: TokenSequence) -> Sequence[TokenSequence]:
        """All sequences of a request whose prompt the leader has computed; the others share its blocks.

        Those beyond the batch limit get no blocks and wait.
        """
        request = leader.request
        if request.forked:
            return [leader]
        request.forked = True
        for sibling in request.sequences[1:]:
            if len(self.running) >= self.max_batch:
                insort(self.waiting, sibling, key=_order)
                continue
            self.pool.retain(leader.block_table)
            sibling.block_table, sibling.digests = list(leader.block_table), list(leader.digests)
            sibling.computed = leader.computed
            insort(self.running, sibling, key=_order)
        return request.sequences

    def finish(self, sequence: TokenSequence) -> None:
        """Remove a finished sequence: its blocks stay in the prefix cache, the last one as far as it is filled."""
        self._remove(sequence)
        if all(sibling.finish_reason for sibling in sequence.request.sequences):
            self._close(sequence.request)

    def abort(self, request: Request, error: Exception | None = None) -> None:
        """End all sequences of a request. After an error its blocks are not kept in the prefix cache."""
        for sequence in request.sequences:
            self._remove(sequence, uncache=error is not None)
        self._close(request, error)

    def _close(self, request: Request, error: Exception | None = None) -> None:
        self._requests.pop(request, None)
        request.finish(error)

    def _remove(self, sequence: TokenSequence, *, uncache: bool = False) -> None:
        for queue in (self.running, self.waiting):
            if sequence in queue:
                queue.remove(sequence)
        self._release(sequence, uncache=uncache)

    def _release(self, sequence: TokenSequence, *, uncache: bool = False) -> None:
        full, size = len(sequence.digests), self.pool.block_size
        if self.prefix_cache and sequence.computed > full * size and not uncache:
            self._cache_block(sequence, full, sequence.computed - full * size)
        self.pool.release(sequence.block_table, uncache=uncache)
        sequence.block_table, sequence.digests, sequence.computed = [], [], 0

    def _cache_block(self, sequence: TokenSequence, block: int, count: int) -> None:
        """Index a block by the first `count` tokens it holds."""
        first = block * self.pool.block_size
        parent = sequence.digests[block - 1] if block else self.pool.root
        tokens = sequence.ids[first : first + count]
        digest = self.pool.cache_block(sequence.block_table[block], parent, tokens)
        if count == self.pool.block_size:
            sequence.digests.append(digest)


def _order(sequence: TokenSequence) -> tuple[int, int]:
    return sequence.order
