"""What the assistant's routes share: the store, running answers, and the server."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from puna.apps.assistant.live_answer import LiveAnswer
from puna.apps.assistant.store import Store
from puna.serve.backends.base import Backend
from puna.serve.server import Server
from puna.web.errors import ApiError
from puna.web.markdown import render, render_plain
from puna.web.streams import Streams

T = TypeVar("T")


class Assistant:
    """The state of the assistant, at `app.state.assistant`."""

    def __init__(self, server: Server, engine: Engine) -> None:
        self.server = server
        self.store = Store(engine)
        self.answers: Streams[LiveAnswer] = Streams()

    def backend(self, name: str | None) -> Backend | None:
        """The model of this name; None when it is not served, or not any more."""
        try:
            return self.server.models.get(name) if name else None
        except ApiError:
            return None

    def is_text(self, message: dict[str, Any]) -> bool:
        """Whether a base model wrote this answer: its text is a text's continuation, and no Markdown."""
        if message["stage"] is not None:
            return bool(message["stage"] == "base")
        backend = self.backend(message["model"])
        return backend is not None and backend.card.stage == "base"

    async def query(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a function of the store on a thread. MissingError becomes a 404 response."""
        return await run_in_threadpool(function, *args, **kwargs)

    async def close(self) -> None:
        """End the answers being written, and save them."""
        await self.answers.close()

    def view(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message as the page gets it: answers also as HTML, and whether they are being written."""
        view = {key: value for key, value in message.items() if key != "conversation"}
        if message["role"] == "assistant":
            as_text = view["plain"] = self.is_text(message)
            view["html"] = render_plain(message["content"]) if as_text else render(message["content"])
            view["reasoning_html"] = render(message["reasoning"]) if message["reasoning"] else ""
            view["writing"] = self.answers.active(message["id"])
        return view


def _assistant(request: Request) -> Assistant:
    found: Assistant = request.app.state.assistant
    return found


AssistantDep = Annotated[Assistant, Depends(_assistant)]
