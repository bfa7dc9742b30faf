"""An answer being written: a resumable stream of rendered blocks, saved regularly.

Blocks are rendered at most ten times a second, and less often when rendering is slow: the engine needs the processor.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from puna.apps.assistant.answer import AnswerDelta, Draft
from puna.web.errors import ApiError, MissingError
from puna.web.live_markdown import LiveMarkdown
from puna.web.streams import Stream

RENDER_SECONDS = 0.1
SAVE_SECONDS = 2.0

Save = Callable[[Draft], None]
Finish = Callable[[Draft, ApiError | None], dict[str, Any]]

log = logging.getLogger("puna.assistant")


class LiveAnswer(Stream):
    """One answer.

    save: stores the draft, on a thread, now and then. finish: stores it and returns the last event. plain: the content
    is shown as it is, and not as Markdown.
    """

    def __init__(
        self,
        user: str,
        source: AsyncGenerator[AnswerDelta],
        draft: Draft,
        *,
        save: Save,
        finish: Finish,
        plain: bool = False,
    ) -> None:
        super().__init__(user)
        self.draft = draft
        self._source, self._save, self._finish = source, save, finish
        self._areas = {"content": LiveMarkdown(plain=plain), "reasoning": LiveMarkdown()}
        self._dirty = asyncio.Event()
        self._stopped = ""
        self._consumer = asyncio.create_task(self._consume())
        self._task = asyncio.create_task(self._work())

    async def stop(self, reason: str = "stopped") -> None:
        """End the answer where it is. reason: stored as its finish_reason."""
        self.cancel(reason)
        await self._task

    def cancel(self, reason: str = "stopped") -> None:
        """The same without waiting until it is saved."""
        self._stopped = self._stopped or reason
        self._consumer.cancel()

    def changes_since(self, version: int) -> dict[str, Any]:
        """The blocks that changed, how many there are in each area, and counts of tokens."""
        return {
            "blocks": {name: area.changes_since(version) for name, area in self._areas.items()},
            "sizes": {name: len(area) for name, area in self._areas.items()},
            "usage": self.draft.counts(),
        }

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
        try:
            await self._show_until_consumed()
            await self._consumer
        except asyncio.CancelledError:
            self.draft.finish_reason = self._stopped or "interrupted"
        except ApiError as found:
            error = found
        except MissingError:
            error = _deleted()
        except Exception:
            log.exception("An answer failed.")
            error = ApiError(500, "Something went wrong in the server; its log has details.")
        self._consumer.cancel()
        if error is not None:
            self.draft.finish_reason = "error"
        self.end(await self._finished(error))

    async def _show_until_consumed(self) -> None:
        saved = time.monotonic()
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

    async def _finished(self, error: ApiError | None) -> dict[str, Any]:
        try:
            await self._show(final=True)
            return await asyncio.to_thread(self._finish, self.draft, error)
        except MissingError:
            return _deleted().body()
        except Exception:
            log.exception("An answer could not be saved.")
            return ApiError(500, "The answer could not be saved; the server's log has details.").body()

    async def _show(self, *, final: bool = False) -> None:
        """Render the draft and publish what changed."""
        texts = {"content": self.draft.content, "reasoning": self.draft.reasoning}

        def render() -> dict[str, list[str]]:
            return {name: self._areas[name].render(text, final=final) for name, text in texts.items()}

        rendered = await asyncio.to_thread(render)
        self.version += 1
        for name, found in rendered.items():
            self._areas[name].put(found, self.version)
        self.publish()


def _deleted() -> ApiError:
    return ApiError(404, "This conversation was deleted.")
