"""What all routes of the page share: its state, who asks, and that a write comes from the page itself."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from puna.serve import auth
from puna.serve.assistant.markdown import render
from puna.serve.assistant.runs import Runs
from puna.serve.assistant.session import secret_in
from puna.serve.assistant.store import MissingError, Store
from puna.serve.backend import Backend
from puna.serve.errors import ApiError
from puna.serve.server import Server

T = TypeVar("T")


class Page:
    """The state of the assistant: its store, the answers on their way, and the server that generates."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.store = Store(server.settings.data or str(data_folder()))
        self.runs = Runs()
        if server.keys.wanted:
            place = server.settings.data
            server.keys.sign_with(secret_in(data_folder() if not place or "://" in place else Path(place)))

    def backend(self, name: str) -> Backend:
        """The model of this name; the first one when it is no longer served."""
        try:
            return self.server.models.get(name)
        except ApiError:
            return self.server.models.get(None)

    async def ask(self, question: Callable[..., T], *details: Any, **more: Any) -> T:
        """Ask the store, on a thread. Raises ApiError 404 for what is missing, or somebody else's."""
        try:
            return await run_in_threadpool(question, *details, **more)
        except MissingError:
            raise ApiError(404, "There is no such thing here, or it is not yours.") from None

    async def close(self) -> None:
        """End what is being written, and keep it."""
        await self.runs.close()
        self.store.close()

    def view(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message as the page gets it: an answer also as HTML, and whether it is being written."""
        view = {key: value for key, value in message.items() if key != "conversation"}
        if message["role"] == "assistant":
            view["html"] = render(message["content"])
            view["reasoning_html"] = render(message["reasoning"]) if message["reasoning"] else ""
            view["writing"] = self.runs.writing(message["id"])
        return view


def data_folder() -> Path:
    """Where a person's data lies when nothing else was said: $XDG_DATA_HOME/puna, else ~/.local/share/puna."""
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "puna"


def page_of(request: Request) -> Page:
    page: Page = request.app.state.assistant
    return page


def same_origin(request: Request) -> None:
    """Refuse a write that another site could have had a browser send. Raises ApiError 403 or 415.

    Browsers name the page that asks in Origin, and ask before they send JSON for another site.
    """
    if request.method in ("GET", "HEAD"):
        return
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "The content type must be application/json.")
    if urlsplit(request.headers.get("origin", "")).netloc != request.headers.get("host"):
        raise ApiError(403, "This can only be asked for by the page itself: Origin must be this server.")


Here = Annotated[Page, Depends(page_of)]
User = Annotated[str, Depends(auth.user)]
