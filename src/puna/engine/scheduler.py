"""Who computes what in the next step.

A step has a budget of tokens. Texts that are being written (decode) get one token each first, so that nobody who reads
waits for somebody's long prompt; what is left goes to prompts, in pieces that fit (chunked prefill, arXiv 2308.16369).
A waiting continuation is admitted when there are pages for all its tokens. When a text grows and no page is left, the
newest one running gives up its pages and waits to be computed again; since no request is accepted that would not fit
alone, the oldest always goes on.

Both lists are kept in order of arrival. Nothing here touches a number of the model.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from puna.engine.pages import PagePool
from puna.engine.request import Continuation, DeadlineError, Request


@dataclass(frozen=True)
class Chunk:
    """Tokens of one continuation that one step computes: positions start to start + count."""

    continuation: Continuation
    start: int
    count: int
    ahead: bool = False
    """Its token is chosen, but not known yet."""

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def complete(self) -> bool:
        """Whether the next token can be chosen after it."""
        return self.ahead or self.end == len(self.continuation.ids)

    @property
    def prompt_rows(self) -> range:
        """Positions whose logits say how likely the prompt's next token was, where that was asked for."""
        request = self.continuation.request
        if not request.wants_prompt:
            return range(0)
        return range(max(self.start, request.needed_from), min(self.end, len(request.prompt) - 1))

    @property
    def rows(self) -> list[int]:
        """Positions whose logits are wanted."""
        return [*self.prompt_rows, *([self.end - 1] if self.complete else [])]


class Scheduler:
    """The requests on their way and the pages they hold."""

    def __init__(self, pool: PagePool, *, max_batch: int, step_tokens: int, prefix_cache: bool = True) -> None:
        self.pool, self.max_batch, self.prefix_cache = pool, max_batch, prefix_cache
        self.step_tokens = max(step_tokens, max_batch)  # or a prompt might never get a turn
        self.running: list[Continuation] = []
        self.waiting: list[Continuation] = []
        self.preemptions = 0
        self._requests: dict[Request, None] = {}

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        """Let a request wait for its turn. It must fit into the pool alone."""
        self._requests[request] = None
        insort(self.waiting, request.continuations[0], key=_order)

    def requests(self) -> list[Request]:
        """All that are on their way."""
        return list(self._requests)

    def restart(self, version: int) -> None:
        """Forget all keys and values, which weights before this version made; texts on their way begin anew."""
        for continuation in list(self.running):
            self.preempt(continuation)
        self.pool.drop_cache(version)

    def recover(self) -> None:
        """Begin all texts anew after a step was interrupted, at whatever point; nothing that pages hold is trusted."""
        self.pool.reset()
        self.running, self.waiting = [], []
        for request in self.requests():
            unfinished = [c for c in request.continuations if c.finish_reason is None]
            if not unfinished:
                self._finish(request)
            for continuation in unfinished:
                continuation.block_table, continuation.digests, continuation.computed = [], [], 0
            self.waiting += unfinished if request.forked else unfinished[:1]
        self.waiting.sort(key=_order)

    # -- before a step -----------------------------------------------------------------------------------------------

    def reap(self, now: float) -> None:
        """Drop requests that were cancelled or whose deadline has passed, and free their pages."""
        for request in self.requests():
            if request.cancelled:
                self.drop(request)
            elif request.deadline is not None and now >= request.deadline:
                made = sum(len(c.text_ids) for c in request.continuations)
                message = f"The deadline passed after {made:,} tokens."
                self.drop(request, DeadlineError(message, "Give it more time, or ask for fewer tokens."))

    def plan(self) -> list[Chunk]:
        """Choose the next step's tokens; every chunk's pages are there and its own. Empty: nothing to do."""
        chunks: list[Chunk] = []
        preemptions = self.preemptions
        at = 0
        while at < len(self.running):  # only those behind can lose their pages meanwhile
            continuation = self.running[at]
            if continuation.pending == 1 and self._make_room(continuation):
                chunks.append(Chunk(continuation, continuation.computed, 1))
            at += 1
        budget = self.step_tokens - len(chunks)
        for continuation in self.running:
            if continuation.pending > 1 and budget:
                chunks.append(Chunk(continuation, continuation.computed, min(continuation.pending, budget)))
                budget -= chunks[-1].count
        # Who has just lost her pages would take them back at once.
        while self.waiting and budget and len(self.running) < self.max_batch and preemptions == self.preemptions:
            continuation = self.waiting[0]
            if not self._admit(continuation):
                break
            chunks.append(Chunk(continuation, continuation.computed, min(continuation.pending, budget)))
            budget -= chunks[-1].count
        return chunks

    def plan_ahead(self, texts: Sequence[Continuation]) -> list[Chunk]:
        """The step after one that says the next token of each of these, before that token is known.

        Empty where it takes more than going on: somebody could join, has a prompt to be computed, or has no page of his
        own to go on in. A text that will have all its tokens is left out.
        """
        if self.waiting and len(self.running) < self.max_batch:
            return []
        known = set(texts)
        if not all(continuation in known for continuation in self.running):
            return []
        chunks = []
        for continuation in self.running:
            if len(continuation.text_ids) + 1 < continuation.limit:
                if not self._own_page(continuation, len(continuation.ids)):
                    return []
                chunks.append(Chunk(continuation, len(continuation.ids), 1, ahead=True))
        return chunks

    def _admit(self, continuation: Continuation) -> bool:
        """Move the first waiting one to the running, with pages for all its tokens; False if they are not there."""
        # One page for each running text: it would be pushed out again by their growth.
        headroom = len(self.running)
        if self.pool.available <= headroom:
            return False
        tokens, request = len(continuation.ids), continuation.request
        found = None
        if self.prefix_cache:
            # Positions whose logits are wanted are computed, the last one always.
            reusable = min(request.needed_from, tokens - 1) if request.wants_prompt else tokens - 1
            found = self.pool.match(continuation.ids[:reusable])
        pages = found.pages if found else []
        needed = self.pool.pages_for(tokens) - len(pages)
        new = self.pool.take(needed) if needed + headroom <= self.pool.available else None
        if new is None:
            self.pool.release(pages)
            return False
        continuation.block_table = pages + new
        continuation.digests = found.digests if found else []
        continuation.computed = found.tokens if found else 0
        if tokens == len(request.prompt):
            request.cached_tokens = continuation.computed
        insort(self.running, self.waiting.pop(0), key=_order)
        return True

    def _make_room(self, continuation: Continuation) -> bool:
        """See to a page of its own for the next token, at the cost of newer ones; False if it was the newest itself."""
        while not self._own_page(continuation, continuation.computed):
            newest = self.running[-1]
            self.preempt(newest)
            if newest is continuation:
                return False
        return True

    def _own_page(self, continuation: Continuation, position: int) -> bool:
        """See to a page that it alone holds for its token at a position; False if no page is left."""
        table, at = continuation.block_table, position // self.pool.page_size
        if at == len(table):
            taken = self.pool.take(1)
            table += taken or []
            return taken is not None
        if self.pool.references[table[at]] == 1:
            return True
        # Shared with others that continue the same prompt: copy on write.
        copy = self.pool.copy(table[at])
        if copy is None:
            return False
        self.pool.release([table[at]])
        table[at] = copy
        return True

    def preempt(self, continuation: Continuation) -> None:
        """Take a running continuation's pages away and let it wait to be computed again."""
        self.running.remove(continuation)
        self._release(continuation)
        insort(self.waiting, continuation, key=_order)
        self.preemptions += 1

    # -- after a step ------------------------------------------------------------------------------------------------

    def advance(self, chunk: Chunk) -> None:
        """The chunk is in the pages: enter those that became whole into the prefix cache."""
        continuation, size = chunk.continuation, self.pool.page_size
        continuation.computed = chunk.end
        if not self.prefix_cache:
            return
        for page in range(len(continuation.digests), chunk.end // size):
            self._register(continuation, page, size)

    def fork(self, leader: Continuation) -> Sequence[Continuation]:
        """All continuations of a request whose prompt was computed by the leader; the others share its pages.

        Those beyond the batch's limit get none and wait.
        """
        request = leader.request
        if request.forked:
            return [leader]
        request.forked = True
        for sibling in request.continuations[1:]:
            if len(self.running) >= self.max_batch:
                insort(self.waiting, sibling, key=_order)
                continue
            self.pool.retain(leader.block_table)
            sibling.block_table, sibling.digests = list(leader.block_table), list(leader.digests)
            sibling.computed = leader.computed
            insort(self.running, sibling, key=_order)
        return request.continuations

    def end(self, continuation: Continuation) -> None:
        """A text is finished: its pages stay findable, the last one as far as it goes."""
        self._remove(continuation)
        if all(c.finish_reason for c in continuation.request.continuations):
            self._finish(continuation.request)

    def drop(self, request: Request, error: Exception | None = None) -> None:
        """End all of a request. After an error nothing that its pages hold is trusted."""
        for continuation in request.continuations:
            self._remove(continuation, forget=error is not None)
        self._finish(request, error)

    def _finish(self, request: Request, error: Exception | None = None) -> None:
        self._requests.pop(request, None)
        request.finish(error)

    def _remove(self, continuation: Continuation, *, forget: bool = False) -> None:
        for ours in (self.running, self.waiting):
            if continuation in ours:
                ours.remove(continuation)
        self._release(continuation, forget=forget)

    def _release(self, continuation: Continuation, *, forget: bool = False) -> None:
        whole, size = len(continuation.digests), self.pool.page_size
        if self.prefix_cache and continuation.computed > whole * size and not forget:
            self._register(continuation, whole, continuation.computed - whole * size)
        self.pool.release(continuation.block_table, forget=forget)
        continuation.block_table, continuation.digests, continuation.computed = [], [], 0

    def _register(self, continuation: Continuation, page: int, count: int) -> None:
        """Enter a page under the first `count` tokens it holds."""
        first = page * self.pool.page_size
        parent = continuation.digests[page - 1] if page else self.pool.root
        tokens = continuation.ids[first : first + count]
        digest = self.pool.register(continuation.block_table[page], parent, tokens)
        if count == self.pool.page_size:
            continuation.digests.append(digest)


def _order(continuation: Continuation) -> tuple[int, int]:
    return continuation.order
