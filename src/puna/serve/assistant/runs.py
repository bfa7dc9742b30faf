"""Answers while they are written: they go on when nobody looks, and whoever comes back sees all of it.

A run keeps the answer's blocks of HTML, each with the version at which it last changed. A reader says which version it
has and gets what changed since; so a browser that lost its connection, or was closed, takes up where it was. Blocks are
rendered ten times a second at most, and less often when that takes long: the engine needs the processor too.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from puna.serve.assistant.generation import Draft, Piece
from puna.serve.assistant.markdown import Live, blocks
from puna.serve.assistant.store import MissingError
from puna.serve.errors import ApiError

RENDER_SECONDS = 0.1
SAVE_SECONDS = 2.0
KEEP_SECONDS = 60.0  # how long a finished run can be taken up before its end is read from the database
HEARTBEAT_SECONDS = 15.0
RUNS_PER_USER = 8

Save = Callable[[Draft], None]
Finish = Callable[[Draft, ApiError | None], dict[str, Any]]

log = logging.getLogger(__name__)


class Run:
    """One answer. save: keeps what there is, on a thread, now and then. finish: keeps it and says what it became."""

    def __init__(self, user: str, source: AsyncGenerator[Piece], draft: Draft, save: Save, finish: Finish) -> None:
        self.user, self.draft = user, draft
        self.result: dict[str, Any] | None = None
        self.ended = 0.0
        self._source, self._save, self._finish = source, save, finish
        self._version = 0
        self._live = {"content": Live(), "reasoning": Live()}
        self._blocks: dict[str, list[tuple[int, str]]] = {"content": [], "reasoning": []}
        self._changed, self._dirty = asyncio.Event(), asyncio.Event()
        self._stopped = ""
        self._consumer = asyncio.create_task(self._consume())
        self.task = asyncio.create_task(self._work())

    def stop(self, reason: str = "stopped") -> None:
        """End the answer where it is. reason: what is kept as its finish_reason."""
        self._stopped = self._stopped or reason
        self._consumer.cancel()

    async def follow(self, after: int = 0) -> AsyncGenerator[tuple[int, str, dict[str, Any]]]:
        """(version, event, data) from after a version on: `update` again and again, then `done` or `failed`."""
        seen = min(after, self._version)
        while True:
            changed = self._changed
            if self._version > seen or after == 0:
                yield self._version, "update", self._update(seen)
                seen, after = self._version, -1
            if self.result is not None:
                yield self._version, "failed" if "error" in self.result else "done", self.result
                return
            try:
                await asyncio.wait_for(changed.wait(), HEARTBEAT_SECONDS)
            except TimeoutError:
                yield seen, "", {}

    def _update(self, seen: int) -> dict[str, Any]:
        changes = {
            area: [[at, html] for at, (version, html) in enumerate(blocks) if version > seen]
            for area, blocks in self._blocks.items()
        }
        sizes = {area: len(blocks) for area, blocks in self._blocks.items()}
        return {"blocks": changes, "sizes": sizes, "usage": self.draft.counts()}

    async def _consume(self) -> None:
        try:
            async for piece in self._source:
                self.draft.add(piece)
                self._dirty.set()
        finally:
            self._dirty.set()
            await self._source.aclose()

    async def _work(self) -> None:
        error: ApiError | None = None
        saved = time.monotonic()
        try:
            await self._show()
            while not self._consumer.done():
                await self._dirty.wait()
                self._dirty.clear()
                begun = time.monotonic()
                await self._show()
                now = time.monotonic()
                if now - saved > SAVE_SECONDS:
                    await asyncio.to_thread(self._save, self.draft)
                    saved = now
                await asyncio.wait({self._consumer}, timeout=max(RENDER_SECONDS, 3 * (now - begun)))
            await self._consumer
        except asyncio.CancelledError:
            self.draft.finish_reason = self._stopped or "interrupted"
        except ApiError as found:
            error = found
        except MissingError:
            error = ApiError(404, "This conversation was deleted.")
        except Exception:
            log.exception("an answer failed")
            error = ApiError(500, "Something went wrong inside the server; its log says what.")
        self._consumer.cancel()
        if error is not None:
            self.draft.finish_reason = "error"
        try:
            await self._show(final=True)
            self.result = await asyncio.to_thread(self._finish, self.draft, error)
        except MissingError:
            self.result = ApiError(404, "This conversation was deleted.").body()
        except Exception:
            log.exception("an answer could not be kept")
            self.result = ApiError(500, "The answer could not be saved; the server's log says why.").body()
        self.ended = time.monotonic()
        self._publish()

    async def _show(self, *, final: bool = False) -> None:
        """Render what there is and tell the readers what changed."""
        texts = {"content": self.draft.content, "reasoning": self.draft.reasoning}

        def made() -> dict[str, list[str]]:
            return {area: blocks(text) if final else self._live[area].blocks(text) for area, text in texts.items()}

        rendered = await asyncio.to_thread(made)
        self._version += 1
        for area, now in rendered.items():
            before = self._blocks[area]
            self._blocks[area] = [
                before[at] if at < len(before) and before[at][1] == html else (self._version, html)
                for at, html in enumerate(now)
            ]
        self._publish()

    def _publish(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Runs:
    """The answers on their way, by the id of what they write."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}

    def check(self, user: str) -> None:
        """Raise ApiError 429 when too many answers of this user are on their way."""
        if sum(run.user == user and run.result is None for run in self._runs.values()) >= RUNS_PER_USER:
            raise ApiError(429, f"{RUNS_PER_USER} answers are on their way already; wait for one, or stop it.")

    def start(
        self, id: str, user: str, source: AsyncGenerator[Piece], draft: Draft, *, save: Save, finish: Finish
    ) -> Run:
        """Begin to write. From the server's event loop only."""
        now = time.monotonic()
        for key in [
            key for key, run in self._runs.items() if run.result is not None and now - run.ended > KEEP_SECONDS
        ]:
            del self._runs[key]
        run = self._runs[id] = Run(user, source, draft, save, finish)
        return run

    def get(self, user: str, id: str) -> Run | None:
        """The run of this id if it is the user's."""
        run = self._runs.get(id)
        return run if run is not None and run.user == user else None

    def writing(self, id: str) -> bool:
        """Whether this answer is being written now."""
        run = self._runs.get(id)
        return run is not None and run.result is None

    async def close(self) -> None:
        """End all answers, and wait until what there is of them is kept."""
        for run in self._runs.values():
            run.stop("interrupted")
        await asyncio.gather(*(run.task for run in self._runs.values()))


def sse(version: int, event: str, data: dict[str, Any], **more: Any) -> str:
    """One event of a stream; without a name it is a sign of life."""
    if not event:
        return ": still here\n\n"
    text = json.dumps({**data, **more}, ensure_ascii=False, separators=(",", ":"))
    return f"id: {version}\nevent: {event}\ndata: {text}\n\n"
