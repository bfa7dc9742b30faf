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
from puna.web.markdown import render
from puna.web.streams import Streams

T = TypeVar("T")


class Assistant:
    """The state of the assistant, at `app.state.assistant`."""

    def __init__(self, server: Server, engine: Engine) -> None:
        self.server = server
        self.store = Store(engine)
        self.answers: Streams[LiveAnswer] = Streams()

    def backend(self, name: str) -> Backend:
        """The model of this name, or the first one when it is no longer served."""
        try:
            return self.server.models.get(name)
        except ApiError:
            return self.server.models.get(None)

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
            view["html"] = render(message["content"])
            view["reasoning_html"] = render(message["reasoning"]) if message["reasoning"] else ""
            view["writing"] = self.answers.active(message["id"])
        return view


def _assistant(request: Request) -> Assistant:
    found: Assistant = request.app.state.assistant
    return found


AssistantDep = Annotated[Assistant, Depends(_assistant)]
